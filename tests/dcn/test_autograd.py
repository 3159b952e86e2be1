"""The "torch" backend as PyTorch sees it: derivatives, tracing, determinism, and what it leaves alone."""

import pytest
import torch

from dcn import deform_conv2d, gather

SHAPES = {"stride": [2, 1], "padding": [1, 0], "dilation": [1, 2]}


def make(dtype=torch.float64, groups=1, offset_groups=1, mask=True, bias=True, channels=4, size=(5, 6), **layout):
    """Tensors in the operator's own order: input, offset, weight, bias, mask."""
    torch.manual_seed(0)
    out, points = ((size[0] - 1) // 2 + 1, size[1] - 2), 6 * offset_groups
    tensors = (
        torch.randn(2, channels, *size, dtype=dtype),
        # Places stay away from whole pixels, where the derivative has two sides.
        torch.randint(-2, 3, (2, 2 * points, *out)) + 0.2 + 0.6 * torch.rand(2, 2 * points, *out, dtype=dtype),
        torch.randn(4, channels // groups, 3, 2, dtype=dtype),
        torch.randn(4, dtype=dtype) if bias else None,
        torch.rand(2, points, *out, dtype=dtype) if mask else None,
    )
    return [t if t is None else t.to(**layout).requires_grad_() for t in tensors]


def run(input, offset, weight, bias, mask):
    return deform_conv2d(input, offset, weight, bias, mask=mask, **SHAPES, backend="torch")


@pytest.mark.parametrize("case", [{}, {"groups": 2, "offset_groups": 2, "mask": False}, {"size": (2, 4)}], ids=str)
def test_gradients_equal_finite_differences(case):
    assert torch.autograd.gradcheck(run, make(**{"size": (3, 4), **case}))


@pytest.mark.parametrize(
    "case",
    [{}, {"mask": False, "bias": False}, {"groups": 2, "offset_groups": 2}, {"memory_format": torch.channels_last}],
    ids=str,
)
def test_opcheck(case):
    layout = case.pop("memory_format", None)
    tensors = make(dtype=torch.float32, **case)
    if layout:
        tensors = [
            t.detach().contiguous(memory_format=layout).requires_grad_() if t is not None and t.dim() == 4 else t
            for t in tensors
        ]
    torch.library.opcheck(torch.ops.resnet_dcn.deform_conv2d, (*tensors, *SHAPES.values()))


def test_compiles_into_one_graph():
    tensors = make(dtype=torch.float32)
    expected = torch.autograd.grad(run(*tensors).sin().sum(), tensors)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for got, want in zip(torch.autograd.grad(compiled(*tensors).sin().sum(), tensors), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_backward_inside_autocast_is_exact_too():
    tensors = make(dtype=torch.float32)
    expected = torch.autograd.grad(run(*tensors).sum(), tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        grads = torch.autograd.grad(run(*tensors).sum(), tensors)
    for got, want in zip(grads, expected, strict=True):
        assert torch.equal(got, want)


def test_second_derivative_points_to_the_reference():
    tensors = make()
    (grad,) = torch.autograd.grad(run(*tensors).square().sum(), tensors[0], create_graph=True)
    with pytest.raises(NotImplementedError, match='no second derivative; use backend="reference"'):
        grad.sum().backward()


def test_results_do_not_depend_on_the_run_or_the_threads():
    tensors = make(dtype=torch.float32, channels=64, size=(61, 40))

    def results():
        output = run(*tensors)
        return output, *torch.autograd.grad(output, tensors, torch.ones_like(output))

    expected, threads = results(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        again = results()
        torch.set_num_threads(1)
        alone = results()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    for first, second, third in zip(expected, again, alone, strict=True):
        assert torch.equal(first, second)
        assert torch.equal(first, third)


def test_blocks_of_any_size_give_the_same(monkeypatch):
    tensors = make()
    expected = run(*tensors), *torch.autograd.grad(run(*tensors).sin().sum(), tensors)
    for size in (1, 1000, 2**40):
        monkeypatch.setattr(gather, "BLOCK_BYTES", size)
        got = run(*tensors), *torch.autograd.grad(run(*tensors).sin().sum(), tensors)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_output_and_gradient_keep_the_memory_format():
    tensors = [t.detach() for t in make(channels=4)]
    output = run(*tensors)
    assert output.is_contiguous()
    image = tensors[0].contiguous(memory_format=torch.channels_last).requires_grad_()
    output = run(image, *tensors[1:])
    assert output.is_contiguous(memory_format=torch.channels_last)
    (grad,) = torch.autograd.grad(output.sum(), image)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_inputs_are_left_alone():
    tensors = make()
    before = [t.detach().clone() for t in tensors]
    torch.autograd.grad(run(*tensors).sum(), tensors)
    for tensor, copy in zip(tensors, before, strict=True):
        assert torch.equal(tensor, copy)


def test_other_devices_are_refused():
    with pytest.raises(ValueError, match="'torch' cannot run here: it is made for the CPU, `input` is on meta"):
        run(*(t.detach().to("meta") for t in make()))
