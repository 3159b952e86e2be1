"""The "torchvision" backend: torchvision's compiled operator with the guarantees of the other backends.

torchvision's operator requires one dtype for all tensors and does not support bfloat16. At a NaN offset it reads
memory outside of the input, and may crash. At an infinite offset its gradient is NaN.
"""

import torch
import torchvision.ops  # noqa: F401 - loads the operators
from torch import Tensor

from .tensors import compute_dtype, copy_as, empty_as

# Evaluated at import, because `torch.compile` cannot trace the call.
HAS_CUDA = torch.ops.torchvision._cuda_version() != -1
# An offset beyond every image that float32 still resolves to a fraction of a pixel.
FAR = 2.0**20


def unavailable_reason(*tensors: Tensor) -> str | None:
    """Return the reason why the backend does not support `tensors`, or None."""
    if tensors[0].device.type == "cuda" and not HAS_CUDA:
        return "this torchvision was built without CUDA; install the torchvision that belongs to this torch"
    return None


def forward(input, offset, weight, bias, mask, stride, padding, dilation) -> Tensor:
    """Compute the output `(B, N, Ho, Wo)`; arguments as in `dcn.deform_conv2d`."""
    tensors, numbers = _to_torchvision(input, offset, weight, bias, mask, stride, padding, dilation)
    output = torch.ops.torchvision.deform_conv2d(*tensors, *numbers)
    return empty_as(input, output.shape).copy_(output)


def backward(grad_output, input, offset, weight, bias, mask, stride, padding, dilation, needs_grad) -> list[Tensor]:
    """Return the gradients of input, offset, weight, bias and mask that `needs_grad` selects, in this order."""
    tensors, numbers = _to_torchvision(input, offset, weight, bias, mask, stride, padding, dilation)
    grad_output = grad_output.to(tensors[0].dtype).contiguous()
    # torchvision's autograd calls this function. Autograd is off inside of an operator.
    grad_input, grad_weight, grad_offset, grad_mask, grad_bias = torch.ops.torchvision._deform_conv2d_backward(
        grad_output, *tensors, *numbers
    )
    grads = (grad_input, grad_offset, grad_weight, grad_bias, grad_mask)
    return [
        copy_as(t, grad)
        for t, grad, need in zip((input, offset, weight, bias, mask), grads, needs_grad, strict=True)
        if need
    ]


def _to_torchvision(input, offset, weight, bias, mask, stride, padding, dilation) -> tuple[list[Tensor], tuple]:
    """Return the tensors and numbers in torchvision's order, in one dtype and with finite offsets."""
    dtype = compute_dtype(input, offset, weight, bias, mask)
    points = weight.shape[2] * weight.shape[3]
    if mask is None:
        mask = offset.new_ones((len(offset), offset.shape[1] // 2, *offset.shape[2:]))
    # A NaN offset is replaced by one that reads 0; NaN in its mask propagates to the result instead.
    is_nan = offset.isnan().unflatten(1, (-1, 2)).any(2)
    mask = torch.where(is_nan, torch.nan, mask.to(dtype))
    offset = offset.to(dtype).nan_to_num(nan=FAR).clamp(-FAR, FAR)
    if bias is None:
        bias = input.new_zeros(len(weight))
    tensors = [t.to(dtype).contiguous() for t in (input, weight, offset, mask, bias)]
    groups, offset_groups = input.shape[1] // weight.shape[1], offset.shape[1] // (2 * points)
    return tensors, (*stride, *padding, *dilation, groups, offset_groups, True)
