"""Registration of a backend as a PyTorch operator that autograd, `torch.compile` and `torch.export` support.

A backend computes the output and its gradients. This module adds the fake kernels for tensors without data, the
autograd formula, and switches autocast off.
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
        name: Name of the backend, used in operator names and messages.
        forward: Function of input, offset, weight, bias, mask, stride, padding and dilation. The arguments are
            checked, with the meaning of `dcn.deform_conv2d`. Returns the output in the dtype and memory format of the
            input.
        backward: Function of the output's gradient, the arguments of `forward` and a list of five booleans. Returns
            the gradients of input, offset, weight, bias and mask whose boolean is True.

    Returns:
        Function of input, offset, weight, bias, stride, padding, dilation and mask.
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
        needs_grad: list[bool],
    ) -> list[Tensor]:
        with torch.autocast(input.device.type, enabled=False):
            return backward(grad_output, input, offset, weight, bias, mask, stride, padding, dilation, needs_grad)

    @operator.register_fake
    def _(input, offset, weight, bias, mask, stride, padding, dilation):
        return empty_as(input, (offset.shape[0], weight.shape[0], *offset.shape[2:]))

    @backward_operator.register_fake
    def _(grad_output, input, offset, weight, bias, mask, stride, padding, dilation, needs_grad):
        tensors = (input, offset, weight, bias, mask)
        return [empty_as(t, t.shape) for t, need in zip(tensors, needs_grad, strict=True) if need]

    def setup_context(ctx, inputs, output):
        *tensors, ctx.stride, ctx.padding, ctx.dilation = inputs
        ctx.save_for_backward(*tensors)

    def compute_grads(ctx, grad_output):
        needs_grad = list(ctx.needs_input_grad[:5])
        layout = ctx.stride, ctx.padding, ctx.dilation
        grads = iter(backward_operator(grad_output, *ctx.saved_tensors, *layout, needs_grad))
        return *(next(grads) if need else None for need in needs_grad), None, None, None

    def raise_no_second_derivative(ctx, *grads):
        raise NotImplementedError(f'the "{name}" DCN backend has no second derivative; use backend="reference"')

    operator.register_autograd(compute_grads, setup_context=setup_context)
    backward_operator.register_autograd(raise_no_second_derivative)

    def run(input, offset, weight, bias, stride, padding, dilation, mask):
        return operator(input, offset, weight, bias, mask, stride, padding, dilation)

    return run
