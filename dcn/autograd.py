"""Registers the "torch" backend with PyTorch, so that autograd, `torch.compile` and `torch.export` know it.

`gather.py` computes; here are the two operators, what they return for tensors without data, and how they differentiate.
"""

import torch
from torch import Tensor

from . import gather


def deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask) -> Tensor:
    """Run the "torch" backend on checked arguments."""
    return _forward(input, offset, weight, bias, mask, stride, padding, dilation)


def can_run(input: Tensor) -> str | None:
    """Say why `input` cannot be served, or None."""
    return None if input.device.type == "cpu" else f"it is made for the CPU, `input` is on {input.device}"


@torch.library.custom_op("resnet_dcn::deform_conv2d", mutates_args=(), device_types="cpu")
def _forward(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> Tensor:
    with torch.autocast("cpu", enabled=False):  # places in half precision would be off by a pixel
        return gather.forward(input, offset, weight, bias, mask, stride, padding, dilation)


@torch.library.custom_op("resnet_dcn::deform_conv2d_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad_output: Tensor,
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    needs: list[bool],
) -> list[Tensor]:
    with torch.autocast("cpu", enabled=False):
        return gather.backward(grad_output, input, offset, weight, bias, mask, stride, padding, dilation, needs)


@_forward.register_fake
def _(input, offset, weight, bias, mask, stride, padding, dilation) -> Tensor:
    return gather.empty_as(input, (offset.shape[0], weight.shape[0], *offset.shape[2:]))


@_backward.register_fake
def _(grad_output, input, offset, weight, bias, mask, stride, padding, dilation, needs) -> list[Tensor]:
    tensors = (input, offset, weight, bias, mask)
    return [gather.empty_as(t, t.shape) for t, need in zip(tensors, needs, strict=True) if need]


def _save(ctx, inputs, output) -> None:
    *tensors, ctx.stride, ctx.padding, ctx.dilation = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, grad_output):
    needs = list(ctx.needs_input_grad[:5])
    grads = iter(_backward(grad_output, *ctx.saved_tensors, ctx.stride, ctx.padding, ctx.dilation, needs))
    return *(next(grads) if need else None for need in needs), None, None, None


def _refuse(ctx, *grads):
    raise NotImplementedError('the "torch" DCN backend has no second derivative; use backend="reference"')


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(_refuse)
