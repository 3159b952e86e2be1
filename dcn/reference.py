"""The definition of deformable convolution in plain PyTorch; every backend is tested against this module.

It is written for readability and supports second derivatives. It is slow.
Legend: B batch size, C input channels, N output channels, G offset groups, K = kh*kw kernel points, Ho x Wo output
size.
"""

import torch
from torch import Tensor

from .tensors import compute_dtype


def deform_conv2d(
    input: Tensor,
    offset: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    mask: Tensor | None,
) -> Tensor:
    """Evaluate the formula of DCNv2, https://arxiv.org/abs/1811.11168 eq. (1), on checked arguments.

    Shapes and meaning are those of `dcn.deform_conv2d`, which checks them. Sampling locations are float32, or float64
    if any tensor is float64.

    Returns:
        Output, `(B, N, Ho, Wo)`, in the dtype of `input`.
    """
    batch, channels, _, _ = input.shape
    out_channels, group_channels, kh, kw = weight.shape
    points = kh * kw
    offset_groups = offset.shape[1] // (2 * points)
    out_h, out_w = offset.shape[-2:]
    dtype = compute_dtype(input, offset, weight, bias, mask)

    offset = offset.to(dtype).reshape(batch, offset_groups, points, 2, out_h, out_w)
    y = (
        offset[:, :, :, 0]
        + _grid(out_h, kh, stride[0], padding[0], dilation[0], offset).repeat_interleave(kw, 0)[..., None]
    )
    x = offset[:, :, :, 1] + _grid(out_w, kw, stride[1], padding[1], dilation[1], offset).repeat(kh, 1)[:, None]
    columns = sample(input.to(dtype).unflatten(1, (offset_groups, -1)), y, x)  # (B, G, C/G, K, Ho, Wo)
    if mask is not None:
        columns = columns * mask.to(dtype).reshape(batch, offset_groups, 1, points, out_h, out_w)

    groups = channels // group_channels
    columns = columns.reshape(batch, groups, group_channels, points, out_h, out_w)
    kernel = weight.to(dtype).reshape(groups, out_channels // groups, group_channels, points)
    with torch.autocast(input.device.type, enabled=False):
        output = torch.einsum("bgckhw,gnck->bgnhw", columns, kernel).flatten(1, 2)
    if bias is not None:
        output = output + bias.to(dtype)[:, None, None]
    return output.to(input.dtype)


def sample(image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Sample an image at fractional locations by bilinear interpolation; every pixel outside the image is 0.

    A location less than one pixel outside of the border therefore still reads the border pixel. A location at
    +-infinity returns 0. A NaN location returns NaN, so that an invalid offset is visible in the result.

    Args:
        image: Images, `(B, G, c, H, W)`.
        y: Row of each location in pixels, `(B, G, K, Ho, Wo)`.
        x: Column of each location in pixels, `(B, G, K, Ho, Wo)`.

    Returns:
        Samples, `(B, G, c, K, Ho, Wo)`.
    """
    height, width = image.shape[-2:]
    y = torch.where(y.isinf(), -2, y)
    x = torch.where(x.isinf(), -2, x)
    top, left = y.detach().floor(), x.detach().floor()
    below, right = y - top, x - left

    def corner(row: Tensor, column: Tensor) -> Tensor:
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        index = torch.where(inside, row * width + column, 0).long()
        # (B, G, 1, P), expanded over the channels, so that one gather reads all kernel points
        index = index.flatten(2).unsqueeze(2).expand(-1, -1, image.shape[2], -1)
        pixels = image.flatten(3).gather(3, index).unflatten(3, y.shape[2:])
        return torch.where(inside.unsqueeze(2), pixels, 0)

    def blend(first: Tensor, second: Tensor, fraction: Tensor) -> Tensor:
        return first * (1 - fraction).unsqueeze(2) + second * fraction.unsqueeze(2)

    upper = blend(corner(top, left), corner(top, left + 1), right)
    lower = blend(corner(top + 1, left), corner(top + 1, left + 1), right)
    return blend(upper, lower, below)


def _grid(out_size: int, kernel: int, stride: int, padding: int, dilation: int, like: Tensor) -> Tensor:
    """Return the locations of the undeformed kernel along one axis, `(kernel, out_size)`."""
    output = torch.arange(out_size, device=like.device, dtype=like.dtype) * stride - padding
    return torch.arange(kernel, device=like.device, dtype=like.dtype)[:, None] * dilation + output
