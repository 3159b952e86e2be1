"""Tests of the Triton backend alone: compilation for GPUs that this machine lacks, and the deterministic mode."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dcn import BACKENDS, deform_conv2d, triton_backend

pytestmark = pytest.mark.skipif(not triton_backend.HAS_TRITON, reason="Triton is not installed")

# Compile each kernel for compute capabilities, including the assembler, and print properties of its code.
COMPILE = """
import json
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from dcn import triton_backend, triton_kernels

POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}

def build(name, capability, dtype, groups):
    input, offset = torch.empty(1, 128, 9, 8, dtype=dtype), torch.empty(1, 18, 9, 8)
    weight, mask = torch.empty(256, 128 // groups, 3, 3), torch.empty(1, 9, 9, 8)
    constants = triton_backend.choose_constants(name, input, offset, mask, weight)
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    # A launch detects strides of 1 and numbers divisible by 16.
    constants |= {"offset_pixel": 1, "mask_pixel": 1, "output_pixel": 1}
    divisible = ("channels", "out_channels", "group_in", "group_out", "offset_group_in", "segment")
    constants |= {"HAS_BIAS": True, "NEED_IMAGES": True, "NEED_OFFSET": True, "NEED_MASK": True}
    kernel = getattr(triton_kernels, name)
    signature = {}
    for argument in kernel.arg_names:
        if argument in constants:
            signature[argument] = "constexpr"
        elif argument in ("images", "weight", "output", "grad_output", "bias"):
            signature[argument] = POINTERS[dtype]
        elif argument in ("offset", "mask", "grad_images", "grad_offset", "grad_mask", "grad_weight"):
            signature[argument] = "*fp32"
        else:
            signature[argument] = "i32"
    used = {(kernel.arg_names.index(name),): value for name, value in constants.items() if name in kernel.arg_names}
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, argument in enumerate(kernel.arg_names)
        if signature[argument].startswith("*") or argument in divisible
    }
    target = GPUTarget("cuda", capability, 32)
    compiled = compile(ASTSource(kernel, signature, used, aligned), target=target, options=options)
    ptx = compiled.asm["ptx"]
    return [compiled.metadata.shared, "mma" in ptx, "cp.async" in ptx, len(compiled.asm["cubin"])]

for name in ("forward", "backward_samples", "backward_weight"):
    for capability, dtype, groups in ((80, "float32", 1), (80, "float16", 2), (90, "bfloat16", 1)):
        print(json.dumps([name, dtype, *build(name, capability, getattr(torch, dtype), groups)]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton brings NVIDIA's assembler on Linux only")
@pytest.mark.slow
def test_kernels_compile_for_gpus():
    root, environment = Path(__file__).parents[2], os.environ | {"TRITON_INTERPRET": "0"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=root, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) == 9
    for kernel, dtype, shared, tensor_cores, loads_ahead, size in rows:
        assert shared <= 99 * 1024, kernel  # of compute capability 8.6, the smallest of the supported ones
        assert loads_ahead == (dtype != "float32" or kernel != "backward_weight"), (kernel, dtype)
        assert tensor_cores == (dtype != "float32"), (kernel, dtype)
        assert size > 1000


@pytest.mark.parametrize("switch", ["ieee", "tf32"])
def test_float32_products_obey_the_switch_of_matrix_products(switch):
    input, offset, weight = torch.empty(1, 4, 5, 6), torch.empty(1, 18, 3, 4), torch.empty(2, 4, 3, 3)
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    matmul.fp32_precision = switch
    try:
        constants = triton_backend.choose_constants("forward", input, offset, None, weight)
    finally:
        matmul.fp32_precision = before
    assert constants["PRECISION"] == switch


def make():
    torch.manual_seed(0)
    # Many samples per pixel, so that the order of additions matters.
    tensors = torch.randn(1, 6, 7, 9), torch.randn(1, 36, 7, 8), torch.randn(4, 6, 3, 2), None, torch.rand(1, 18, 7, 8)
    return [t if t is None else t.requires_grad_() for t in tensors]


def grads(backend, tensors, device):
    moved = [t if t is None else t.detach().to(device).requires_grad_() for t in tensors]
    input, offset, weight, bias, mask = moved
    output = deform_conv2d(input, offset, weight, bias, padding=(1, 0), mask=mask, backend=backend)
    seed = torch.linspace(-1, 1, output.numel(), device=device).view_as(output)
    return [g.cpu() for g in torch.autograd.grad(output, [t for t in moved if t is not None], seed)]


@pytest.mark.skipif(
    BACKENDS["triton"].unavailable_reason(torch.empty(0)) is not None, reason="Triton does not interpret"
)
def test_deterministic_mode_takes_the_input_gradient_from_the_torch_backend():
    tensors = make()
    loose = grads("triton", tensors, "cpu")
    torch.use_deterministic_algorithms(True)
    try:
        strict = grads("triton", tensors, "cpu")
        sorted_sums = grads("torch", tensors, "cpu")
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(strict[0], sorted_sums[0])
    assert not torch.equal(loose[0], sorted_sums[0])
    for a, b in zip(loose, strict, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
def test_deterministic_mode_repeats_on_a_gpu():
    tensors = make()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = grads("triton", tensors, "cuda"), grads("triton", tensors, "cuda")
    finally:
        torch.use_deterministic_algorithms(False)
    expected = grads("reference", tensors, "cpu")
    for a, b, c in zip(first, second, expected, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(a, c, rtol=1e-4, atol=1e-4)
