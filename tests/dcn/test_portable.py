"""Programs recorded of the layer contain torchvision's operator, and compute what the layer computes."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import dcn

OPTIONS = {
    "plain": {},
    "v1 with bias": {"modulation": False, "bias": True},
    "groups": {"stride": (2, 1), "offset_groups": 2, "groups": 2, "kernel_size": (3, 5), "padding": (1, 2)},
    "dilated": {"dilation": 2, "padding": 2, "mask_scale": 1.0},
}
BACKENDS = ["auto", "torch", "torchvision", "reference"]
# torch.jit is deprecated, but programs of it are in use
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def trace(layer: nn.Module, x: torch.Tensor):
    return torch.jit.trace(layer, x)


def script(layer: nn.Module, x: torch.Tensor):
    return torch.jit.script(layer)


def export(layer: nn.Module, x: torch.Tensor):
    return torch.export.export(layer, (x,)).module()


def make_layer(**options) -> dcn.DeformConv2d:
    torch.manual_seed(0)
    layer = dcn.DeformConv2d(4, 6, **{"kernel_size": 3, "padding": 1} | options)
    nn.init.normal_(layer.conv_offset.weight, std=0.3)
    nn.init.normal_(layer.conv_offset.bias)
    return layer.eval()


def names_of(program) -> str:
    return str(program.inlined_graph if hasattr(program, "inlined_graph") else program.graph)


@pytest.mark.parametrize("record", [trace, script, export])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_program_computes_what_the_layer_computes(record, name):
    layer, x = make_layer(**OPTIONS[name]), torch.randn(2, 4, 9, 13)
    program = record(layer, x)
    assert "torchvision" in names_of(program)
    assert "resnet_dcn" not in names_of(program)
    for other in (x, torch.randn(2, 4, 9, 13)):
        torch.testing.assert_close(program(other), layer(other), rtol=1e-4, atol=1e-5)
    assert type(layer) is dcn.DeformConv2d


@pytest.mark.parametrize("record", [trace, script, export])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_backend_does_not_matter(record, backend):
    layer, x = make_layer(backend=backend), torch.randn(1, 4, 6, 7)
    program = record(nn.Sequential(nn.ReLU(), layer), x)
    assert "resnet_dcn" not in names_of(program)
    torch.testing.assert_close(program(x), layer(x.relu()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("record", [trace, script])
def test_recorded_programs_have_the_gradients_of_the_layer(record):
    layer, x = make_layer(), torch.randn(1, 4, 6, 7)
    found, expected = (
        torch.autograd.grad(module(x).square().sum(), [*layer.parameters()]) for module in (record(layer, x), layer)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("record", [trace, script, export])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=str)
def test_offsets_that_are_not_finite_give_the_result_of_the_backend(record, value):
    """torchvision's operator reads memory outside of the input at a NaN."""
    layer, x = make_layer(backend="torchvision"), torch.randn(1, 4, 6, 7)
    program = record(layer, x)
    with torch.no_grad():
        layer.conv_offset.bias[3] = value
    found = record(layer, x)(x)
    torch.testing.assert_close(found, layer(x), rtol=1e-4, atol=1e-5, equal_nan=True)
    assert program(x).shape == found.shape


@pytest.mark.parametrize("record", [trace, script, export])
def test_half_precision_keeps_its_dtype(record):
    layer, x = make_layer().bfloat16(), torch.randn(1, 4, 6, 7).bfloat16()
    found = record(layer, x)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, layer(x), rtol=2e-2, atol=2e-2)


def test_a_trace_warns_of_nothing_in_this_project():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trace(make_layer(), torch.randn(1, 4, 6, 7))
    assert not [str(one.filename) for one in caught if "dcn/" in str(one.filename)]


def test_a_process_without_this_project_runs_the_programs(tmp_path):
    layer, x = make_layer(), torch.randn(1, 4, 6, 7)
    torch.save((x, layer(x).detach()), tmp_path / "expected.pt")
    trace(layer, x).save(tmp_path / "trace.pt")
    script(layer, x).save(tmp_path / "script.pt")
    torch.export.save(torch.export.export(layer, (x,)), tmp_path / "export.pt2")
    program = """if True:
        import sys, torch, torchvision
        x, expected = torch.load("expected.pt")
        for run in (torch.jit.load("trace.pt"), torch.jit.load("script.pt"), torch.export.load("export.pt2").module()):
            torch.testing.assert_close(run(x), expected, rtol=1e-4, atol=1e-5)
        assert "dcn" not in sys.modules
    """
    subprocess.run([sys.executable, "-I", "-c", program], cwd=tmp_path, check=True, timeout=120)
