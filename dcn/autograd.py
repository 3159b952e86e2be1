"""Makes a PyTorch operator of a backend, so that autograd, `torch.compile` and `torch.export` know it.

A backend computes a result and its gradients; here is what the operator returns for tensors without data, how it
differentiates, and what autocast may not touch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .tensors import empty_as


def make_operator(
    name: str, forward: Callable[..., Tensor], backward: Callable[..., list[Tensor]]
) -> Callable[..., Tensor]:
    """Register `torch.ops.resnet_dcn.deform_conv2d_<name>` and its backward operator.

    Args:
        name: of the backend, for the operators' names and for messages.
        forward: takes input, offset, weight, bias, mask, stride, padding and dilation as `dcn.deform_conv2d` does,
            checked; gives the output in the dtype and memory format of the input.
        backward: takes the output's gradient, then the same, then five booleans; gives a list of the gradients of
            input, offset, weight, bias and mask, without those whose boolean is False.

    Returns:
        A function of input, offset, weight, bias, stride, padding, dilation and mask.
    """

    @torch.library.custom_op(f"resnet_dcn::deform_conv2d_{name}", mutates_args=())
    def operator(
        input: Tensor,
        offset: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
    ) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return forward(input, offset, weight, bias, mask, stride, padding, dilation)

    @torch.library.custom_op(f"resnet_dcn::deform_conv2d_{name}_backward", mutates_args=())
    def backward_operator(
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
        with torch.autocast(input.device.type, enabled=False):
            return backward(grad_output, input, offset, weight, bias, mask, stride, padding, dilation, needs)

    @operator.register_fake
    def _(input, offset, weight, bias, mask, stride, padding, dilation):
        return empty_as(input, (offset.shape[0], weight.shape[0], *offset.shape[2:]))

    @backward_operator.register_fake
    def _(grad_output, input, offset, weight, bias, mask, stride, padding, dilation, needs):
        tensors = (input, offset, weight, bias, mask)
        return [empty_as(t, t.shape) for t, need in zip(tensors, needs, strict=True) if need]

    def save(ctx, inputs, output):
        *tensors, ctx.stride, ctx.padding, ctx.dilation = inputs
        ctx.save_for_backward(*tensors)

    def differentiate(ctx, grad_output):
        needs = list(ctx.needs_input_grad[:5])
        grads = iter(backward_operator(grad_output, *ctx.saved_tensors, ctx.stride, ctx.padding, ctx.dilation, needs))
        return *(next(grads) if need else None for need in needs), None, None, None

    def refuse(ctx, *grads):
        raise NotImplementedError(f'the "{name}" DCN backend has no second derivative; use backend="reference"')

    operator.register_autograd(differentiate, setup_context=save)
    backward_operator.register_autograd(refuse)

    def run(input, offset, weight, bias, stride, padding, dilation, mask):
        return operator(input, offset, weight, bias, mask, stride, padding, dilation)

    return run
