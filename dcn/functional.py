"""`deform_conv2d`: check the arguments, select a backend and run it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.modules.utils import _pair

from . import reference, torch_backend, torchvision_backend, triton_backend
from .autograd import make_operator
from .portable import is_recorded, portable_deform_conv2d
from .tensors import compute_dtype


class Backend(NamedTuple):
    """An implementation of the operator.

    Attributes:
        run: Function of checked arguments: input, offset, weight, bias, stride, padding, dilation, mask.
        unavailable_reason: Function of the tensors among these arguments, input first. Returns the reason why the
            backend does not support them, or None if it does.
    """

    run: Callable[..., Tensor]
    unavailable_reason: Callable[..., str | None]


# "auto" selects the first one that supports the tensors: "torch" on CPUs, "torchvision" elsewhere.
BACKENDS = {
    "torch": Backend(
        make_operator("torch", torch_backend.forward, torch_backend.backward), torch_backend.unavailable_reason
    ),
    "torchvision": Backend(
        make_operator("torchvision", torchvision_backend.forward, torchvision_backend.backward),
        torchvision_backend.unavailable_reason,
    ),
    "triton": Backend(
        make_operator("triton", triton_backend.forward, triton_backend.backward), triton_backend.unavailable_reason
    ),
    "reference": Backend(reference.deform_conv2d, lambda *tensors: None),
}


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    mask: Tensor | None = None,
    *,
    backend: str = "auto",
) -> Tensor:
    """Compute a deformable convolution: DCNv2 with `mask`, DCNv1 without.

    Each output pixel samples the input at K shifted locations by bilinear interpolation. Pixels outside the image are
    0. A location less than one pixel outside therefore still reads the border pixel. The signature and the layouts
    are those of `torchvision.ops.deform_conv2d`. `torch.jit.trace` and `torch.export` record torchvision's operator
    instead of a backend, so that processes without this project can run the program.
    Papers: v1 https://arxiv.org/abs/1703.06211, v2 https://arxiv.org/abs/1811.11168.

    Shapes: B batch size, C input channels, N output channels, G offset groups, K = kh*kw kernel points, Ho x Wo output
    size.

    Args:
        input: Input, `(B, C, H, W)`.
        offset: Offsets in input pixels, `(B, 2*G*K, Ho, Wo)`, ordered by group, kernel point and (dy, dx).
        weight: Weight, `(N, C/groups, kh, kw)`.
        bias: Bias, `(N,)`.
        stride: Stride of the output grid, as in `torch.nn.functional.conv2d`.
        padding: Zero padding on each side, as in `torch.nn.functional.conv2d`.
        dilation: Spacing of the kernel points, as in `torch.nn.functional.conv2d`.
        mask: Factor of each sample, `(B, G*K, Ho, Wo)`, usually a sigmoid. None means 1 everywhere.
        backend: A name in `dcn.BACKENDS`, or "auto" for the first one that supports the tensors.

    Returns:
        Output, `(B, N, Ho, Wo)`, in the dtype of `input`. Sampling uses float32, or float64 if a tensor is float64,
            also under autocast.

    Raises:
        ValueError: If a shape, dtype, device or backend is invalid. The message contains the expected and the actual
            value.
    """
    stride, padding, dilation = _pair(stride), _pair(padding), _pair(dilation)
    if not torch.jit.is_tracing():  # where sizes are tensors
        check_arguments(input, offset, weight, bias, stride, padding, dilation, mask)
    if is_recorded():
        check_backend(backend)
        offset = offset.to(compute_dtype(input, offset, weight, bias, mask))
        return portable_deform_conv2d(input, offset, weight, bias, stride, padding, dilation, mask)
    tensors = [t for t in (input, offset, weight, bias, mask) if t is not None]
    return BACKENDS[choose_backend(backend, *tensors)].run(input, offset, weight, bias, stride, padding, dilation, mask)


def check_backend(name: str) -> None:
    """Raise `ValueError` unless `name` is a backend's name or "auto"."""
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"unknown DCN backend {name!r}, known: {', '.join(['auto', *BACKENDS])}")


def choose_backend(name: str, *tensors: Tensor) -> str:
    """Return the name of the backend for `tensors`: the one requested, or with "auto" the first that supports them.

    Raises:
        ValueError: If the backend is unknown or does not support the tensors; the message contains the reason.
    """
    check_backend(name)
    if name == "auto":
        return next(name for name, backend in BACKENDS.items() if backend.unavailable_reason(*tensors) is None)
    reason = BACKENDS[name].unavailable_reason(*tensors)
    if reason is not None:
        raise ValueError(f"DCN backend {name!r} cannot run here: {reason}")
    return name


def check_arguments(input, offset, weight, bias, stride, padding, dilation, mask) -> None:
    """Raise `ValueError` if an argument is invalid, with its name, the requirement and the actual value."""
    tensors = {"input": input, "offset": offset, "weight": weight, "bias": bias, "mask": mask}
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        dims = 1 if name == "bias" else 4
        if tensor.dim() != dims:
            raise ValueError(f"`{name}` must have {dims} dimensions, got {tensor.dim()} (shape {tuple(tensor.shape)})")
        if not tensor.is_floating_point():
            raise ValueError(f"`{name}` must be of a floating-point dtype, got {tensor.dtype}")
        if tensor.device != input.device:
            raise ValueError(f"`{name}` must be on the device of `input`, {input.device}, got {tensor.device}")
    for name, values, minimum in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if min(values) < minimum:
            raise ValueError(f"`{name}` must be at least {minimum}, got {values}")

    batch, channels, height, width = input.shape
    out_channels, group_channels, kh, kw = weight.shape
    if min(weight.shape) < 1 or min(channels, height, width) < 1:
        raise ValueError(
            f"`input` {tuple(input.shape)} and `weight` {tuple(weight.shape)} must not be empty, except for the batch"
        )
    if channels % group_channels:
        raise ValueError(
            f"`weight` must have a number of input channels that divides the {channels} channels of `input`, "
            f"got {group_channels} (shape {tuple(weight.shape)})"
        )
    groups = channels // group_channels
    if out_channels % groups:
        raise ValueError(f"`weight` must have a multiple of {groups} output channels (groups), got {out_channels}")

    points = kh * kw
    offset_channels = offset.shape[1]
    if offset_channels == 0 or offset_channels % (2 * points):
        raise ValueError(
            f"`offset` must have a multiple of 2*K = {2 * points} channels for a {kh}x{kw} kernel,"
            f" got {offset_channels} (shape {tuple(offset.shape)})"
        )
    offset_groups = offset_channels // (2 * points)
    if channels % offset_groups:
        raise ValueError(
            f"`offset` with {offset_channels} channels has {offset_groups} offset groups, which must divide the "
            f"{channels} channels of `input`"
        )
    out_size = tuple(
        (size + 2 * p - d * (k - 1) - 1) // s + 1
        for size, k, s, p, d in zip((height, width), (kh, kw), stride, padding, dilation, strict=True)
    )
    if min(out_size) < 1:
        raise ValueError(f"a {kh}x{kw} kernel with dilation {dilation} does not fit into `input` {tuple(input.shape)}")
    _check_shape("offset", offset, (batch, offset_channels, *out_size))
    if mask is not None:
        _check_shape("mask", mask, (batch, offset_groups * points, *out_size))
    if bias is not None:
        _check_shape("bias", bias, (out_channels,))


def _check_shape(name: str, tensor: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"`{name}` must have shape {expected}, got {tuple(tensor.shape)}")
