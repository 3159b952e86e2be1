"""The fast backends in PyTorch: derivatives, tracing, checkpointing, threads and unchanged inputs."""

import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from dcn import BACKENDS, DeformConv2d, deform_conv2d, torch_backend

FAST_BACKENDS = [
    name
    for name, backend in BACKENDS.items()
    if name != "reference" and backend.unavailable_reason(torch.empty(0)) is None
]
# backends that compute in float64, which finite differences need
FINE_BACKENDS = [name for name in FAST_BACKENDS if BACKENDS[name].unavailable_reason(torch.empty(0).double()) is None]
SHAPES = {"stride": [2, 1], "padding": [1, 0], "dilation": [1, 2]}


def make(dtype=torch.float32, groups=1, offset_groups=1, mask=True, bias=True, channels=4, size=(5, 6)):
    """Return tensors in the order of the operator: input, offset, weight, bias, mask."""
    torch.manual_seed(0)
    out, points = ((size[0] - 1) // 2 + 1, size[1] - 2), 6 * offset_groups
    tensors = (
        torch.randn(2, channels, *size, dtype=dtype),
        # Locations are not close to whole pixels, where the derivative has two sides.
        torch.randint(-2, 3, (2, 2 * points, *out)) + 0.2 + 0.6 * torch.rand(2, 2 * points, *out, dtype=dtype),
        torch.randn(4, channels // groups, 3, 2, dtype=dtype),
        torch.randn(4, dtype=dtype) if bias else None,
        torch.rand(2, points, *out, dtype=dtype) if mask else None,
    )
    return [t if t is None else t.requires_grad_() for t in tensors]


def can_compile():
    return bool(shutil.which("g++")) and (Path(sysconfig.get_path("include")) / "Python.h").is_file()


def channels_last(tensors):
    return [
        t.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        if t is not None and t.dim() == 4
        else t
        for t in tensors
    ]


def run(input, offset, weight, bias, mask, backend="torch"):
    return deform_conv2d(input, offset, weight, bias, mask=mask, **SHAPES, backend=backend)


def grads(output, tensors):
    return torch.autograd.grad(output.sin().sum(), [t for t in tensors if t is not None])


def check_equal(first, second):
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("case", [{}, {"groups": 2, "offset_groups": 2, "mask": False}, {"size": (2, 4)}], ids=str)
@pytest.mark.parametrize("backend", FINE_BACKENDS)
def test_gradients_equal_finite_differences(backend, case):
    tensors = make(torch.float64, **{"size": (3, 4), **case})
    assert torch.autograd.gradcheck(lambda *tensors: run(*tensors, backend), tensors)


@pytest.mark.parametrize("layout", [list, pytest.param(channels_last, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "case", [{}, {"mask": False, "bias": False}, {"groups": 2, "offset_groups": 2, "size": (3, 4)}], ids=str
)
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_opcheck(backend, case, layout):
    operator = getattr(torch.ops.resnet_dcn, f"deform_conv2d_{backend}")
    torch.library.opcheck(operator, (*layout(make(**case)), *SHAPES.values()))


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_opcheck_of_the_backward_operator(backend):
    # neither contiguous nor channels-last
    tensors = [t.detach().mT.contiguous().mT if t.dim() == 4 else t.detach() for t in make()]
    operator = getattr(torch.ops.resnet_dcn, f"deform_conv2d_{backend}_backward")
    arguments = (torch.ones_like(run(*tensors, backend)), *tensors, *SHAPES.values(), [True] * 5)
    torch.library.opcheck(operator, arguments, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    "compiler",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not can_compile(), reason="inductor needs g++ and Python's headers"),
            ],
        ),
    ],
)
@pytest.mark.parametrize("layout", [list, channels_last])
def test_compiles_into_one_graph(compiler, layout):
    tensors = layout(make(channels=8, size=(9, 10)))

    def wrapped(*tensors):
        return run(tensors[0].relu(), *tensors[1:]).sin() * 2

    expected = torch.autograd.grad(wrapped(*tensors).square().sum(), tensors)
    compiled = torch.compile(wrapped, fullgraph=True, backend=compiler)
    torch.testing.assert_close(compiled(*tensors), wrapped(*tensors))
    for got, want in zip(torch.autograd.grad(compiled(*tensors).square().sum(), tensors), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_exports_with_dynamic_batch_and_size():
    module = DeformConv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), offset_groups=2)
    torch.nn.init.normal_(module.conv_offset.weight, std=0.1)
    sizes = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    exported = torch.export.export(module, (torch.randn(2, 4, 9, 12),), dynamic_shapes=(sizes,))
    assert any("torchvision.deform_conv2d" in str(node.target) for node in exported.graph.nodes)
    for shape in ((2, 4, 9, 12), (3, 4, 20, 15)):
        image = torch.randn(shape)
        torch.testing.assert_close(exported.module()(image), module(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_activation_checkpointing_gives_the_same(backend, reentrant):
    tensors = make()
    expected = grads(run(*tensors, backend), tensors)
    again = grads(checkpoint(run, *tensors, backend, use_reentrant=reentrant), tensors) if not reentrant else None
    if reentrant:  # which supports only .backward()
        checkpoint(run, *tensors, backend, use_reentrant=True).sin().sum().backward()
        again = [t.grad for t in tensors]
    for got, want in zip(again, expected, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("backend", FINE_BACKENDS)
def test_vmap_runs_each_sample(backend):
    input, offset, weight, bias, mask = (t.detach() for t in make())

    def one(input, offset, mask):
        return run(input[None], offset[None], weight, bias, mask[None], backend)[0]

    torch.testing.assert_close(torch.func.vmap(one)(input, offset, mask), run(input, offset, weight, bias, mask))


@pytest.mark.parametrize("backend", FINE_BACKENDS)
def test_backward_inside_autocast_is_exact_too(backend):
    tensors = make()
    expected = grads(run(*tensors, backend), tensors)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = grads(run(*tensors, backend), tensors)
    check_equal(got, expected)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_second_derivative_points_to_the_reference(backend):
    tensors = make()
    (grad,) = torch.autograd.grad(run(*tensors, backend).square().sum(), tensors[0], create_graph=True)
    with pytest.raises(NotImplementedError, match=f'"{backend}" .*no second derivative; use backend="reference"'):
        grad.sum().backward()


@pytest.mark.parametrize("backend", FINE_BACKENDS)
def test_results_do_not_depend_on_the_run_or_the_threads(backend):
    tensors = make(channels=64, size=(61, 40))

    def results():
        output = run(*tensors, backend)
        return output, *grads(output, tensors)

    expected, threads = results(), torch.get_num_threads()
    torch.use_deterministic_algorithms(True)
    try:
        # the sums of torchvision's operator depend on the threads on some processors
        torch.set_num_threads(threads if backend == "torchvision" else 2)
        again = results()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    check_equal(again, expected)


def test_python_threads_do_not_disturb_each_other():
    cases = [make(channels=32, size=(21 + n, 30)) for n in range(4)]
    expected = [grads(run(*tensors), tensors) for tensors in cases]
    results = [[] for _ in cases]

    def work(n):
        for _ in range(5):
            results[n].append(grads(run(*cases[n]), cases[n]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got, want in zip(results, expected, strict=True):
        assert len(got) == 5
        for each in got:
            check_equal(each, want)


FORKED = """
import torch
from torch.utils.data import DataLoader, Dataset
from dcn import DeformConv2d

torch.manual_seed(0)
torch.set_num_threads(2)
module = DeformConv2d(16, 16, 3, padding=1)
image = torch.randn(1, 16, 70, 70)
module(image).sum().backward()  # starts the threads that a forked child lacks

class Filtered(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        output = module(image)
        output.sum().backward()
        return output.detach()

for output in DataLoader(Filtered(), num_workers=2, multiprocessing_context="fork"):
    torch.testing.assert_close(output[0], module(image).detach())
print("done")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_runs_in_forked_data_workers():
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", FORKED], cwd=root, capture_output=True, text=True, timeout=600)
    assert done.stdout == "done\n", done.stderr


def test_blocks_of_any_size_give_the_same(monkeypatch):
    tensors = make(torch.float64)
    expected = run(*tensors), *grads(run(*tensors), tensors)
    for size in (1, 1000, 2**40):
        monkeypatch.setattr(torch_backend, "BLOCK_BYTES", size)
        got = run(*tensors), *grads(run(*tensors), tensors)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_results_keep_the_memory_format(backend):
    tensors = make()
    assert run(*tensors, backend).is_contiguous()
    last = channels_last(tensors)
    output = run(*last, backend)
    assert output.is_contiguous(memory_format=torch.channels_last)
    for tensor, grad in zip(last, grads(output, last), strict=True):
        assert grad.stride() == tensor.stride()


@pytest.mark.parametrize("backend", FAST_BACKENDS)
def test_inputs_are_not_changed(backend):
    tensors = make()
    before = [t.detach().clone() for t in tensors]
    grads(run(*tensors, backend), tensors)
    check_equal(tensors, before)
