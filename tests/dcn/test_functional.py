"""Every backend compared with the reference, and the guarantees of the operator for all backends."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import dcn

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
# "torch on cpu" and so on: every backend on every device that it supports
HERE = [
    f"{name} on {device}"
    for device in DEVICES
    for name, backend in dcn.BACKENDS.items()
    if backend.unavailable_reason(torch.empty(0, device=device)) is None
]
FAST = [backend for backend in HERE if backend != "reference on cpu"]
TRITON = [backend for backend in HERE if backend.startswith("triton")]
TENSORS = ("input", "offset", "weight", "bias", "mask")
TOLERANCE = {torch.float64: {"rtol": 1e-9, "atol": 1e-9}, torch.float32: {"rtol": 1e-4, "atol": 1e-4}}
# in Python, a thousand times slower: some of its tests run only in make test-all
INTERPRETED = "triton on cpu"
SELDOM = [pytest.param(name, marks=pytest.mark.slow) if name == INTERPRETED else name for name in HERE]
# every fast backend with every supported dtype
SERVED = [
    (backend, dtype) for backend in FAST for dtype in TOLERANCE if not (backend in TRITON and dtype == torch.float64)
]
CASES = [
    {},
    {"mask": False},
    {"stride": (2, 1), "padding": (0, 3)},
    {"bias": False},
    {"stride": (1, 3), "dilation": (2, 1), "padding": (2, 1)},
    {"mask": False, "bias": False, "spread": 0.0},
    {"groups": 2, "offset_groups": 3},
    {"kernel": (1, 1), "padding": (0, 0)},
    {"channels": 1, "out_channels": 1, "size": (1, 3), "kernel": (1, 3), "padding": (0, 1)},
    {"kernel": (2, 5), "padding": (3, 2), "dilation": (1, 2)},
    {"batch": 3, "spread": 30.0},
    {"groups": 2},
    {"batch": 1, "out_channels": 1},
    {"offset_groups": 3},
]


def exact(backend):
    """Return the most precise dtype of a backend."""
    return torch.float32 if backend in TRITON else torch.float64


def deform_conv2d(*tensors, backend="reference on cpu", **arguments):
    """Compute on the backend's device, with tensors on the CPU."""
    name, device = backend.split(" on ")
    tensors = [t if t is None else t.to(device) for t in tensors]
    arguments = {
        key: value.to(device) if isinstance(value, torch.Tensor) else value for key, value in arguments.items()
    }
    return dcn.deform_conv2d(*tensors, **arguments, backend=name).cpu()


def make(
    batch=2, channels=6, out_channels=4, size=(7, 9), kernel=(3, 2), stride=(1, 1), padding=(1, 0), dilation=(1, 1),
    groups=1, offset_groups=1, mask=True, bias=True, spread=1.5, dtype=torch.float64, seed=0,
):  # fmt: skip
    """Draw the arguments of `deform_conv2d`; all axes have different sizes, so that swapped axes are detected."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, kernel, stride, padding, dilation, strict=True)
    ]
    points = offset_groups * math.prod(kernel)
    return {
        "input": draw(batch, channels, *size),
        "offset": draw(batch, 2 * points, *out) * spread,
        "weight": draw(out_channels, channels // groups, *kernel),
        "bias": draw(out_channels) if bias else None,
        "mask": draw(batch, points, *out).sigmoid() if mask else None,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
    }


def run(arguments, backend):
    """Compute the output and the gradients by name, for one fixed gradient of the output."""
    arguments = dict(arguments)
    for name in TENSORS:
        if arguments[name] is not None:
            arguments[name] = arguments[name].detach().requires_grad_()
    output = deform_conv2d(**arguments, backend=backend)
    names = [name for name in TENSORS if arguments[name] is not None]
    seed = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).sin().mul(3).view(output.shape).to(output.dtype)
    grads = torch.autograd.grad(output, [arguments[name] for name in names], seed)
    return {"output": output.detach(), **dict(zip(names, grads, strict=True))}


def check_against_reference(arguments, backend, **tolerance):
    got, expected = run(arguments, backend), run(arguments, "reference on cpu")
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, **tolerance, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    ("backend", "dtype", "case"),
    [
        pytest.param(*served, case, marks=pytest.mark.slow if served[0] == INTERPRETED and index % 2 else [])
        for served in SERVED
        for index, case in enumerate(CASES)
    ],
    ids=str,
)
def test_output_and_all_gradients_equal_the_reference(backend, dtype, case):
    check_against_reference(make(**case, dtype=dtype), backend, **TOLERANCE[dtype])


@pytest.mark.parametrize(
    "case",
    [
        {"batch": 2, "size": (41, 63)},  # several blocks to an image
        {"batch": 3, "size": (41, 31), "groups": 2, "offset_groups": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize(("backend", "dtype"), [pair for pair in SERVED if pair[0] not in TRITON], ids=str)
def test_large_images_equal_the_reference(backend, dtype, case):
    sums_of_thousands = {torch.float64: TOLERANCE[torch.float64], torch.float32: {"rtol": 1e-3, "atol": 2e-3}}
    arguments = make(**case, channels=64, out_channels=8, dtype=dtype)
    check_against_reference(arguments, backend, **sums_of_thousands[dtype])


@pytest.mark.parametrize("backend", TRITON)
def test_channels_beyond_one_tile_equal_the_reference(backend):
    arguments = make(batch=1, channels=72, out_channels=140, size=(6, 5), groups=2, dtype=torch.float32)
    check_against_reference(arguments, backend, rtol=1e-4, atol=1e-3)


GEOMETRY = {
    "groups": st.sampled_from([1, 2, 3, 6]),
    "offset_groups": st.sampled_from([1, 2, 4, 12]),
    "kernel": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
    "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
    "size": st.tuples(st.integers(5, 8), st.integers(5, 8)),
    "mask": st.booleans(),
}


@pytest.mark.parametrize("backend", TRITON)
def test_a_program_of_the_weight_gradient_takes_several_tiles(backend, monkeypatch):
    monkeypatch.setattr(dcn.triton_backend, "WEIGHT_PROGRAMS", 1)
    check_against_reference(make(batch=3, dtype=torch.float32), backend, **TOLERANCE[torch.float32])


@settings(max_examples=25)
@given(**GEOMETRY)
def test_any_groups_and_geometry_equal_the_reference(**case):
    arguments = make(**case, channels=12, out_channels=6)
    for backend in FAST:
        if backend not in TRITON:
            check_against_reference(arguments, backend, **TOLERANCE[torch.float64])


@pytest.mark.slow
@pytest.mark.parametrize("backend", TRITON)
@settings(max_examples=6)
@given(**GEOMETRY | {"groups": st.sampled_from([1, 2, 3]), "offset_groups": st.sampled_from([1, 2, 3])})
def test_any_groups_and_geometry_equal_the_reference_in_triton(backend, **case):
    arguments = make(**case, batch=1, channels=6, out_channels=6, dtype=torch.float32)
    check_against_reference(arguments, backend, **TOLERANCE[torch.float32])


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("backend", HERE)
def test_zero_offset_and_unit_mask_is_a_convolution(backend, groups):
    arguments = make(stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=groups, dtype=exact(backend))
    arguments["offset"].zero_()
    arguments["mask"].fill_(1)
    expected = F.conv2d(
        *(arguments[name] for name in ("input", "weight", "bias", "stride", "padding", "dilation")), groups
    )
    torch.testing.assert_close(deform_conv2d(**arguments, backend=backend), expected)


@pytest.mark.parametrize("backend", HERE)
def test_whole_offset_shifts_the_image(backend):
    arguments = make(mask=False, dtype=exact(backend))
    arguments["offset"][:, 0::2] = 2
    arguments["offset"][:, 1::2] = -1
    shifted = torch.zeros_like(arguments["input"])
    shifted[:, :, :-2, 1:] = arguments["input"][:, :, 2:, :-1]
    # At the borders the padding differs, so only the inside is compared.
    arguments["padding"] = (0, 0)
    arguments["offset"] = arguments["offset"][:, :, 1:-1]
    expected = F.conv2d(shifted, arguments["weight"], arguments["bias"])
    output = deform_conv2d(**arguments, backend=backend)
    torch.testing.assert_close(output[..., 1:], expected[..., 1:])


@pytest.mark.parametrize("backend", HERE)
def test_zero_mask_leaves_the_bias(backend):
    arguments = make(dtype=exact(backend))
    arguments["mask"].zero_()
    output = deform_conv2d(**arguments, backend=backend)
    assert torch.equal(output, arguments["bias"].view(1, -1, 1, 1).expand_as(output))


@pytest.mark.parametrize("backend", HERE)
def test_offset_groups_move_their_own_channels_only(backend):
    arguments = make(channels=6, offset_groups=3, dtype=exact(backend))
    points = 6
    order = [2, 0, 1]
    permuted = dict(arguments)
    permuted["input"] = arguments["input"].unflatten(1, (3, 2))[:, order].flatten(1, 2)
    permuted["weight"] = arguments["weight"].unflatten(1, (3, 2))[:, order].flatten(1, 2)
    permuted["offset"] = arguments["offset"].unflatten(1, (3, 2 * points))[:, order].flatten(1, 2)
    permuted["mask"] = arguments["mask"].unflatten(1, (3, points))[:, order].flatten(1, 2)
    torch.testing.assert_close(deform_conv2d(**permuted, backend=backend), deform_conv2d(**arguments, backend=backend))


@pytest.mark.parametrize("backend", HERE)
def test_one_nan_offset_spoils_one_pixel_and_no_gradient_of_the_input(backend):
    arguments = make(batch=2, dtype=exact(backend))
    arguments["offset"][1, 5, 3, 4] = math.nan
    results = run(arguments, backend)
    spoiled = results["output"].isnan()
    assert spoiled[1, :, 3, 4].all()
    assert spoiled.sum() == spoiled.shape[1]
    assert results["input"].isfinite().all()


@pytest.mark.parametrize("value", [1e10, -1e10, math.inf, -math.inf])
@pytest.mark.parametrize("backend", SELDOM)
def test_wild_offsets_give_the_bias_and_no_gradient(backend, value):
    arguments = make(dtype=exact(backend))
    arguments["offset"].fill_(value)
    results = run(arguments, backend)
    bias = arguments["bias"].view(1, -1, 1, 1)
    assert torch.equal(results["output"], bias.expand_as(results["output"]))
    for name in ("input", "offset", "weight", "mask"):
        assert not results[name].any(), name


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # inf * 0, in the interpreter
@pytest.mark.parametrize("poison", [math.inf, math.nan])
@pytest.mark.parametrize("backend", HERE)
def test_a_broken_pixel_spoils_only_samples_that_touch_it(backend, poison):
    arguments = make(batch=2, size=(7, 9), spread=4.0, mask=False, dtype=exact(backend))
    arguments["input"][0, :, 0, 0] = poison  # where clamped indices of locations outside would point
    arguments["input"][0, :, 6, 8] = poison
    arguments["input"][1, :, 6, 0] = poison
    clean = dict(arguments, input=torch.where(arguments["input"].isfinite(), arguments["input"], 0))
    marker = torch.zeros_like(arguments["input"])
    marker[~arguments["input"].isfinite()] = 1
    touched = deform_conv2d(**dict(arguments, input=marker, weight=torch.ones_like(arguments["weight"]), bias=None))
    output = deform_conv2d(**arguments, backend=backend)
    untouched = (touched == 0).expand_as(output)
    assert 0 < untouched.sum() < untouched.numel()
    torch.testing.assert_close(output[untouched], deform_conv2d(**clean, backend=backend)[untouched])
    assert not output[~untouched].isfinite().any()


@pytest.mark.parametrize("backend", HERE)
def test_empty_batch(backend):
    results = run(make(batch=0, dtype=exact(backend)), backend)
    assert results["output"].shape == (0, 4, 7, 8)
    assert results["input"].shape == (0, 6, 7, 9)
    assert not results["weight"].any()
    assert not results["bias"].any()


@pytest.mark.parametrize("backend", FAST)
def test_bias_may_be_a_slice(backend):
    arguments = make(dtype=exact(backend))
    larger = torch.full((8,), math.nan, dtype=exact(backend))
    larger[::2] = arguments["bias"]
    expected = run(arguments, "reference on cpu")
    for name, value in run(dict(arguments, bias=larger[::2]), backend).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", FAST)
def test_one_channel_does_not_make_the_output_channels_last(backend):
    arguments = make(channels=1, dtype=exact(backend))
    assert deform_conv2d(**arguments, backend=backend).is_contiguous()


@pytest.mark.skipif(sys.platform != "linux", reason="needs memory that is promised and not given")
@pytest.mark.parametrize("backend", [backend for backend in TRITON if backend.endswith("cpu")])
def test_indices_beyond_31_bits(backend):
    arguments = make(batch=3, channels=2, mask=False, dtype=torch.float32)
    offset = arguments["offset"]
    far = torch.empty(2**31 + offset[0].numel(), dtype=torch.bfloat16)  # untouched, so that it takes no memory
    far = far.as_strided(offset.shape, (2**30, *offset.stride()[1:]))
    far.copy_(offset)
    expected = deform_conv2d(**dict(arguments, offset=far.contiguous()))
    output = deform_conv2d(**dict(arguments, offset=far), backend=backend)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", SELDOM)
def test_memory_layout_does_not_matter(backend):
    arguments = make(channels=4, out_channels=4, dtype=exact(backend))
    expected = run(arguments, "reference on cpu")

    def spread_out(tensor):
        """Every other number of a larger, reversed tensor."""
        if tensor.dim() < 4:
            return tensor
        larger = tensor.new_full((*tensor.shape[:-1], 2 * tensor.shape[-1]), math.nan)
        larger[..., ::2] = tensor
        return larger[..., ::2]

    def channels_last(tensor):
        return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor

    for change in (spread_out, channels_last):
        changed = {k: change(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
        for name, value in run(changed, backend).items():
            torch.testing.assert_close(value, expected[name])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", [backend for backend in HERE if backend not in TRITON])
def test_half_precision_input_is_computed_in_float32(backend, dtype):
    arguments = make(dtype=torch.float32)
    arguments["input"] = arguments["input"].to(dtype)
    output = deform_conv2d(**arguments, backend=backend)
    exact = deform_conv2d(**dict(arguments, input=arguments["input"].float()), backend="reference on cpu")
    # One rounding to the nearest for any sum: half a step of the output's dtype.
    torch.testing.assert_close(output.float(), exact, rtol=torch.finfo(dtype).eps / 2, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("names", [("input",), TENSORS], ids=["half input", "all half"])
@pytest.mark.parametrize("backend", SELDOM)
def test_half_precision_gradients_stay_close_to_float32(backend, names, dtype):
    """Documented tolerance: output and gradients within two steps of the dtype at their largest number."""
    arguments = make(channels=32, out_channels=20, dtype=torch.float32)
    half = dict(arguments, **{name: arguments[name].to(dtype) for name in names})
    same = {name: value.float() if isinstance(value, torch.Tensor) else value for name, value in half.items()}
    got, expected = run(half, backend), run(same, "reference on cpu")
    for name, value in expected.items():
        assert got[name].dtype == (dtype if name in names or name == "output" else torch.float32), name
        atol = 2 * torch.finfo(dtype).eps * value.abs().max().item()
        torch.testing.assert_close(
            got[name].float(), value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("backend", HERE)
def test_gradient_of_the_bias_is_summed_in_float32(backend):
    arguments = make(dtype=torch.float32)
    arguments["input"] = arguments["input"].half()
    bias = arguments["bias"].requires_grad_()
    output = deform_conv2d(**arguments, backend=backend)
    (grad,) = torch.autograd.grad(output, bias, torch.full_like(output, 1000))
    assert torch.equal(grad, torch.full_like(bias, 112000))  # more than float16 can hold


@pytest.mark.parametrize("name", ["offset", "weight", "mask"])
@pytest.mark.parametrize("backend", [backend for backend in HERE if backend not in TRITON])
def test_one_tensor_in_float64_makes_all_of_it_float64(backend, name):
    arguments = make(dtype=torch.float32)
    arguments[name] = arguments[name].double() + 1e-9
    double = {key: value.double() if isinstance(value, torch.Tensor) else value for key, value in arguments.items()}
    output = deform_conv2d(**arguments, backend=backend)
    assert output.dtype == torch.float32
    assert torch.equal(output, deform_conv2d(**double, backend=backend).float())


@pytest.mark.parametrize("backend", TRITON)
def test_every_tensor_is_checked(backend):
    arguments = make(dtype=torch.float32)
    with pytest.raises(ValueError, match=r"it computes in float32, but a tensor is torch\.float64"):
        deform_conv2d(**dict(arguments, mask=arguments["mask"].double()), backend=backend)


@pytest.mark.parametrize("backend", HERE)
def test_autocast_keeps_sampling_locations_in_float32(backend):
    arguments = make(batch=1, channels=2, size=(3, 150), dtype=torch.float32)
    arguments["input"] = arguments["input"].bfloat16()
    arguments["offset"][:, 1::2] += 50.0625  # columns; 1/16 of a pixel is lost in bfloat16
    arguments["offset"].requires_grad_()

    def grad(output):
        return torch.autograd.grad(output.float().sin().sum(), arguments["offset"])[0]

    expected = deform_conv2d(**arguments, backend=backend)
    with torch.autocast(backend.split(" on ")[1], dtype=torch.bfloat16):
        output = deform_conv2d(**arguments, backend=backend)
    assert output.dtype == torch.bfloat16
    assert (output != arguments["bias"].bfloat16().view(1, -1, 1, 1)).any()
    assert torch.equal(output, expected)
    assert torch.equal(grad(output), grad(expected))


@pytest.mark.parametrize("wanted", TENSORS)
@pytest.mark.parametrize("backend", SELDOM)
def test_one_gradient_alone_is_the_same(backend, wanted):
    arguments = make(dtype=exact(backend))
    tensor = arguments[wanted].requires_grad_()
    (grad,) = torch.autograd.grad(deform_conv2d(**arguments, backend=backend).sin().sum(), tensor)
    for name in TENSORS:
        arguments[name] = arguments[name].detach().requires_grad_()
    (expected,) = torch.autograd.grad(deform_conv2d(**arguments, backend=backend).sin().sum(), arguments[wanted])
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("backend", HERE)
def test_runs_without_autograd(backend, mode):
    arguments = make(dtype=exact(backend))
    arguments["weight"].requires_grad_()
    expected = deform_conv2d(**arguments, backend=backend).detach()
    with mode():
        output = deform_conv2d(**arguments, backend=backend)
    assert not output.requires_grad
    assert torch.equal(output, expected)


def test_single_numbers_apply_to_both_axes():
    arguments = make(kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1))
    expected = dcn.deform_conv2d(**arguments)
    assert torch.equal(dcn.deform_conv2d(**dict(arguments, stride=2, padding=1, dilation=1)), expected)
