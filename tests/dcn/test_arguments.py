"""Errors of `deform_conv2d` for invalid arguments, and its selection of a backend."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dcn import BACKENDS, deform_conv2d, torchvision_backend, triton_backend
from dcn.functional import choose_backend

SHAPES = {"input": (2, 6, 7, 9), "offset": (2, 12, 7, 8), "weight": (4, 6, 3, 2), "bias": (4,), "mask": (2, 6, 7, 8)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": (6, 7, 9)}, r"`input` must have 4 dimensions, got 3"),
        ({"bias": (4, 1)}, r"`bias` must have 1 dimensions, got 2"),
        ({"bias": (5,)}, r"`bias` must have shape \(4,\), got \(5,\)"),
        (
            {"weight": (4, 4, 3, 2)},
            r"`weight` .* input channels that divides the 6 channels of `input`, got 4",
        ),
        ({"weight": (3, 3, 3, 2)}, r"`weight` must have a multiple of 2 output channels \(groups\), got 3"),
        ({"input": (2, 6, 0, 9)}, r"`input` \(2, 6, 0, 9\) and `weight` \(4, 6, 3, 2\) must not be empty"),
        ({"weight": (0, 6, 3, 2)}, r"`weight` \(0, 6, 3, 2\) must not be empty, except for the batch"),
        ({"weight": (4, 6, 0, 2)}, r"`weight` \(4, 6, 0, 2\) must not be empty, except for the batch"),
        ({"offset": (2, 18, 7, 8)}, r"`offset` must have a multiple of 2\*K = 12 channels for a 3x2 kernel, got 18"),
        ({"offset": (2, 0, 7, 8)}, r"multiple of 2\*K = 12 channels for a 3x2 kernel, got 0"),
        ({"offset": (2, 48, 7, 8)}, r"48 channels has 4 offset groups, which must divide the 6 channels"),
        ({"offset": (2, 12, 8, 7)}, r"`offset` must have shape \(2, 12, 7, 8\), got \(2, 12, 8, 7\)"),
        ({"offset": (3, 12, 7, 8)}, r"`offset` must have shape \(2, 12, 7, 8\), got \(3, 12, 7, 8\)"),
        ({"mask": (2, 12, 7, 8)}, r"`mask` must have shape \(2, 6, 7, 8\), got \(2, 12, 7, 8\)"),
        ({"mask": (2, 6, 1, 1)}, r"`mask` must have shape \(2, 6, 7, 8\), got \(2, 6, 1, 1\)"),
        ({"input": (2, 6, 7, 1)}, r"a 3x2 kernel with dilation \(1, 1\) does not fit into `input` \(2, 6, 7, 1\)"),
        ({"stride": 0}, r"`stride` must be at least 1, got \(0, 0\)"),
        ({"padding": (1, -1)}, r"`padding` must be at least 0, got \(1, -1\)"),
        ({"dilation": (0, 1)}, r"`dilation` must be at least 1, got \(0, 1\)"),
    ],
)
def test_errors_contain_the_requirement_and_the_actual_value(changes, message):
    arguments = {name: torch.zeros(changes.get(name, shape)) for name, shape in SHAPES.items()}
    numbers = {"padding": (1, 0)} | {k: v for k, v in changes.items() if k not in SHAPES}
    with pytest.raises(ValueError, match=message):
        deform_conv2d(**arguments, **numbers)


def test_errors_on_dtype_and_device():
    arguments = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    with pytest.raises(ValueError, match=r"`offset` must be of a floating-point dtype, got torch.int64"):
        deform_conv2d(**dict(arguments, offset=arguments["offset"].long()))
    with pytest.raises(ValueError, match=r"`weight` must be on the device of `input`, cpu, got meta"):
        deform_conv2d(**dict(arguments, weight=arguments["weight"].to("meta")))


def test_unknown_backend_lists_the_known():
    arguments = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    with pytest.raises(
        ValueError, match=r"unknown DCN backend 'cuda', known: auto, torch, torchvision, triton, reference"
    ):
        deform_conv2d(**arguments, padding=(1, 0), backend="cuda")


def test_auto_selects_the_first_available_backend():
    assert choose_backend("auto", torch.empty(1)) == next(iter(BACKENDS)) == "torch"
    assert choose_backend("reference", torch.empty(1)) == "reference"


def on(device, dtype=torch.float32):
    """Return the attributes that `unavailable_reason` reads, for a device that this machine may lack."""
    return SimpleNamespace(device=torch.device(device), dtype=dtype)


def test_auto_on_a_gpu_falls_back_from_torchvision_to_triton_to_the_reference(monkeypatch):
    gpu = on("cuda:0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torchvision_backend, "HAS_CUDA", True)
    assert choose_backend("auto", gpu) == "torchvision"
    monkeypatch.setattr(torchvision_backend, "HAS_CUDA", False)
    assert choose_backend("auto", gpu) == ("triton" if triton_backend.HAS_TRITON else "reference")
    monkeypatch.setattr(triton_backend, "HAS_TRITON", False)
    assert choose_backend("auto", gpu) == "reference"
    assert choose_backend("auto", on("mps")) == "torchvision"


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("torch", [on("mps")], "'torch' cannot run here: it runs on CPUs only, `input` is on mps"),
        (
            "torchvision",
            [on("cuda")],
            "'torchvision' cannot run here: this torchvision was built without CUDA; install",
        ),
        ("triton", [on("cpu")], "'triton' cannot run here: it runs on GPUs only; TRITON_INTERPRET=1 runs it slowly"),
        ("triton", [on("xpu")], "it runs on CUDA and ROCm devices only, `input` is on xpu"),
        ("triton", [on("cuda"), on("cuda", torch.float64)], "it computes in float32, but a tensor is torch.float64"),
        ("triton", [on("cuda")], "it needs a GPU of compute capability 8.0 or higher, Tesla T4 has less"),
    ],
)
def test_a_backend_reports_why_it_is_unavailable(name, tensors, message, monkeypatch):
    monkeypatch.setattr(triton_backend, "HAS_TRITON", True)
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    monkeypatch.setattr(torchvision_backend, "HAS_CUDA", False)
    with pytest.raises(ValueError, match=re.escape(message)):
        choose_backend(name, *tensors)


def test_triton_may_be_missing(monkeypatch):
    monkeypatch.setattr(triton_backend, "HAS_TRITON", False)
    with pytest.raises(ValueError, match="Triton is not installed; it comes with the CUDA builds of torch for Linux"):
        choose_backend("triton", on("cuda"))


@pytest.mark.parametrize("backend", ["torch", "torchvision"])
def test_importing_dcn_is_enough(backend):
    code = (
        "import torch, dcn; "
        f"print(dcn.DeformConv2d(2, 3, 3, backend={backend!r})(torch.rand(1, 2, 5, 6)).shape == (1, 3, 3, 4))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=600)
    assert done.stdout == "True\n", done.stderr
