"""The "triton" backend: deformable convolution for GPUs that interpolates inside the matrix product.

A program reads the four pixels around each sample, interpolates them in float32 and multiplies by the weight, tile by
tile, so that the columns are never written to memory. Half-precision inputs are multiplied in their dtype. Sums,
sampling locations and masks are float32.

Gradients:
    mask, offset, input: One program per tile of pixels, kernel point and offset group. The input's gradient is a
        float32 sum of atomic additions, whose order varies from run to run. If
        `torch.use_deterministic_algorithms` is on, the "torch" backend computes this gradient.
    weight: The columns are interpolated again. Several programs sum over parts of the pixels, and their sums are
        added.

The tests run the kernels in Triton's interpreter and compile them for compute capability 8.0 and 9.0.

Legend: B batch size, C input channels, N output channels, G offset groups, K = kh*kw kernel points, Ho x Wo output
size, P output pixels of the batch. A `segment` is a run of channels in one group and one offset group.
"""

import importlib.util
import math
import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from . import torch_backend
from .tensors import copy_as, empty_as

# Evaluated at import, because `torch.compile` cannot trace the call.
HAS_TRITON = importlib.util.find_spec("triton") is not None
# Programs for the weight's gradient: several per multiprocessor, of which GPUs have 80 to 150.
WEIGHT_PROGRAMS = 1024


def unavailable_reason(*tensors: Tensor) -> str | None:
    """Return the reason why the backend does not support `tensors`, or None."""
    if not HAS_TRITON:
        return "Triton is not installed; it comes with the CUDA builds of torch for Linux"
    if any(t.dtype == torch.float64 for t in tensors):
        return "it computes in float32, but a tensor is torch.float64"
    device = tensors[0].device
    if device.type == "cpu":
        return (
            None if is_interpreted() else "it runs on GPUs only; TRITON_INTERPRET=1 runs it slowly on a CPU, for tests"
        )
    if device.type != "cuda":
        return f"it runs on CUDA and ROCm devices only, `input` is on {device}"
    if torch.version.hip is None and torch.cuda.get_device_capability(device) < (8, 0):
        return f"it needs a GPU of compute capability 8.0 or higher, {torch.cuda.get_device_name(device)} has less"
    return None


def is_interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels on a CPU."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "yes", "on", "y")


def forward(input, offset, weight, bias, mask, stride, padding, dilation) -> Tensor:
    """Compute the output `(B, N, Ho, Wo)`; arguments as in `dcn.deform_conv2d`."""
    from . import triton_kernels  # Triton may be missing

    output = empty_as(input, (offset.shape[0], weight.shape[0], *offset.shape[2:]))
    pixels = output.numel() // len(weight)
    images, flat_offset, flat_mask, kernel = _prepare(input, offset, mask, weight)
    bias = None if bias is None else bias.contiguous()
    sizes, constants = _sizes(input, offset, weight), choose_constants("forward", input, offset, mask, weight)
    groups = len(weight) // sizes["group_out"]
    grid = (_ceil_div(pixels, constants["BP"]), groups * _ceil_div(sizes["group_out"], constants["BN"]))
    if pixels:
        with _on(input):
            triton_kernels.forward[grid](
                images, flat_offset, flat_mask, kernel, bias, output,
                *flat_offset.stride(), *_strides(flat_mask), *output.flatten(2).stride(),
                pixels, *input.shape[2:], input.shape[1], *output.shape[2:], *stride, *padding, *dilation,
                **sizes, **constants, HAS_BIAS=bias is not None,
            )  # fmt: skip
    return output


def backward(grad_output, input, offset, weight, bias, mask, stride, padding, dilation, needs_grad) -> list[Tensor]:
    """Return the gradients of input, offset, weight, bias and mask that `needs_grad` selects, in this order."""
    from . import triton_kernels

    need_input, need_offset, need_weight, need_bias, need_mask = needs_grad
    tensors = (input, offset, weight, bias, mask)
    grads: list[Tensor | None] = [None] * 5  # of `tensors`, in any dtype and memory format

    images, flat_offset, flat_mask, kernel = _prepare(input, offset, mask, weight)
    grad_output_nhwc = grad_output.permute(0, 2, 3, 1).to(kernel.dtype).contiguous()  # (B, Ho, Wo, N)
    pixels = grad_output_nhwc.numel() // len(weight)
    sizes, constants = _sizes(input, offset, weight), choose_constants("backward_samples", input, offset, mask, weight)
    points, offset_groups = constants["POINTS"], input.shape[1] // sizes["offset_group_in"]
    tiles = _ceil_div(pixels, constants["BP"])
    layout = (
        *flat_offset.stride(), *_strides(flat_mask),
        pixels, *input.shape[2:], input.shape[1], len(weight), *grad_output.shape[2:], *stride, *padding, *dilation,
    )  # fmt: skip

    if need_input and torch.are_deterministic_algorithms_enabled():
        only_input = [True, False, False, False, False]
        (grads[0],) = torch_backend.backward(grad_output, *tensors, stride, padding, dilation, only_input)
        need_input = False
    if need_input or need_offset or need_mask:
        grad_images = torch.zeros_like(images, dtype=torch.float32) if need_input else None
        grads[1] = offset.new_empty(offset.shape) if need_offset else None
        grads[4] = mask.new_empty(mask.shape) if need_mask else None
        if pixels:
            with _on(input):
                triton_kernels.backward_samples[tiles, points, offset_groups](
                    images, flat_offset, flat_mask, kernel, grad_output_nhwc, grad_images, grads[1], grads[4], *layout,
                    **sizes, **constants, NEED_IMAGES=need_input, NEED_OFFSET=need_offset, NEED_MASK=need_mask,
                )  # fmt: skip
        if need_input:
            grads[0] = grad_images.permute(0, 3, 1, 2)
    if need_weight:
        columns = input.shape[1] // sizes["segment"] * points * _ceil_div(sizes["segment"], constants["BC"])
        blocks = _ceil_div(sizes["group_out"], constants["BN"])
        parts = max(1, min(tiles, WEIGHT_PROGRAMS // (columns * blocks)))
        constants = choose_constants("backward_weight", input, offset, mask, weight)
        grad_kernels = kernel.new_zeros((parts, *kernel.shape), dtype=torch.float32)
        if pixels:
            with _on(input):
                triton_kernels.backward_weight[columns, blocks, parts](
                    images, flat_offset, flat_mask, grad_output_nhwc, grad_kernels, *layout, **sizes, **constants
                )
        grads[2] = grad_kernels.sum(0).unflatten(1, weight.shape[2:]).permute(0, 3, 1, 2)
    if need_bias:
        grads[3] = grad_output.sum((0, 2, 3), dtype=torch.float32)
    return [copy_as(t, grad) for t, grad, need in zip(tensors, grads, needs_grad, strict=True) if need]


def _prepare(input, offset, mask, weight) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Return the tensors in the layouts of the kernels, without copies if all are channels-last.

    Returns:
        Images `(B, H, W, C)`, offset `(B, 2*G*K, Ho*Wo)`, mask `(B, G*K, Ho*Wo)` and weight `(N, K, C/groups)`.
    """
    images = input.permute(0, 2, 3, 1).contiguous()
    kernel = weight.to(input.dtype).permute(0, 2, 3, 1).contiguous().flatten(1, 2)
    return images, offset.flatten(2), None if mask is None else mask.flatten(2), kernel


def _sizes(input: Tensor, offset: Tensor, weight: Tensor) -> dict[str, int]:
    """Return the numbers of channels of a group, of an offset group and of a segment."""
    channels, group_in, points = input.shape[1], weight.shape[1], weight.shape[2] * weight.shape[3]
    offset_group_in = channels * 2 * points // offset.shape[1]
    return {
        "group_in": group_in,
        "group_out": len(weight) * group_in // channels,
        "offset_group_in": offset_group_in,
        "segment": math.gcd(group_in, offset_group_in),
    }


def choose_constants(kernel: str, input: Tensor, offset: Tensor, mask: Tensor | None, weight: Tensor) -> dict[str, Any]:
    """Return the compile-time constants of a kernel, by its name in `triton_kernels.py`.

    Tiles of BP pixels, BC channels and BN output channels fit into the shared memory of compute capability 8.0 and
    9.0. With 8 warps and these stages they also fit into the registers, except for a few bytes in float32, according
    to ptxas. They have not been tuned on a GPU.
    """
    sizes = _sizes(input, offset, weight)
    half = input.dtype in (torch.bfloat16, torch.float16)
    precision = "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
    tensor_cores = half or precision == "tf32"
    # Half precision leaves room to load two tiles ahead; scalar float32 sums need all registers.
    stages = {"forward": 3 if half else 2, "backward_samples": 2, "backward_weight": 2 if tensor_cores else 1}
    return {
        "POINTS": weight.shape[2] * weight.shape[3],
        "KERNEL_WIDTH": weight.shape[3],
        "HAS_MASK": mask is not None,
        "UPCAST": is_interpreted() and half,
        "PRECISION": precision,
        "BP": 64,
        "BC": min(32, max(16, _power_of_two(sizes["segment"]))),
        "BN": min(128 if half else 64, max(16, _power_of_two(sizes["group_out"]))),
        "num_warps": 8,
        "num_stages": stages[kernel],
    }


def _strides(tensor: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if tensor is None else tensor.stride()


def _on(input: Tensor) -> AbstractContextManager:
    """Make the input's GPU the current device, on which Triton launches kernels."""
    return torch.cuda.device(input.device) if input.device.type == "cuda" else nullcontext()


def _ceil_div(count: int, size: int) -> int:
    return -(-count // size)


def _power_of_two(count: int) -> int:
    """Return the smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
