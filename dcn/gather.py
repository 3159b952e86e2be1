"""The "torch" backend: deformable convolution for CPUs in plain PyTorch, with a backward pass written by hand.

The input becomes a table of pixels, one row of channels each, inside a border of zeros. A sample is a bag of four
neighbouring rows, weighted by their bilinear shares times the mask, and `embedding_bag` sums bags at the speed of
memory. A block of samples is gathered into columns small enough to stay in the cache, and one matrix product per
block finishes the convolution. Columns are never stored: the backward pass gathers them again.

The gradients, block by block:
    weight: grad_output times the columns.
    mask, offset: the dot products of the columns' gradient with the four rows of each bag, combined.
    input: the columns' gradient, scattered back. Samples are sorted by pixel and `embedding_bag` sums those of one
        pixel, so that no two writers ever meet: the result does not depend on the run or the number of threads.

Legend: B batch, C channels in, N channels out, G offset groups, K = kh*kw kernel points, Ho x Wo output size,
P output pixels of the batch or of a block, S = P*K*G samples of C/G channels each.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# A block's columns should stay in the cache from the gather to the product, yet be many enough to hide the cost of the
# calls and of the weight, which every product reads anew. Measured from 1 to 16 MiB, 32 MiB of last-level cache: 8 is
# the fastest or within 7 % of it at 128 to 512 channels, 1 takes up to twice as long.
BLOCK_BYTES = 8 * 2**20


class Table(NamedTuple):
    """Images as rows of channels, with zeros wherever a sample may look outside.

    There are two lines of zeros above and below each image and two zeros left and right of each line; neighbours share
    them. A place clamped to the border can then be read without a test, and no pixel is ever multiplied by 0 for a
    sample that does not touch it, which would turn an infinity into NaN.
    """

    rows: Tensor  # (R, C/G)
    images: Tensor  # the same memory without the border, (B, C, H, W)
    steps: Tensor  # (4,) from the row above and left of a sample to its four rows

    @classmethod
    def zeros(cls, input: Tensor, offset_groups: int, dtype: torch.dtype) -> "Table":
        """Make the table of images shaped as `input` `(B, C, H, W)`."""
        batch, channels, height, width = input.shape
        line = width + 2
        pixels = input.new_zeros(((batch * (height + 2) + 2) * line + 2, channels), dtype=dtype)
        strides = ((height + 2) * line * channels, 1, line * channels, channels)
        images = pixels.as_strided(input.shape, strides, (2 * line + 2) * channels)
        steps = torch.tensor([0, 1, line, line + 1]) * offset_groups
        return cls(pixels.view(-1, channels // offset_groups), images, steps)


class Samples(NamedTuple):
    """Where the samples lie, each tensor `(P, K, G)`."""

    index: Tensor  # row of the table with the pixel above and left
    below: Tensor  # distance from that pixel, in [0, 1), or NaN
    right: Tensor
    mask: Tensor | None

    def blocks(self, channels: int) -> Iterator[tuple[slice, "Samples"]]:
        """Cut into runs of output pixels, all of about the same size."""
        pixels, points, _ = self.index.shape
        count = max(1, round(pixels * points * channels * self.below.element_size() / BLOCK_BYTES))
        size = max(1, -(-pixels // count))
        for start in range(0, pixels, size):
            span = slice(start, start + size)
            yield span, Samples(*(None if t is None else t[span] for t in self))

    def shares(self) -> Tensor:
        """Bilinear shares `(4, S)` of the pixels above left, above right, below left and below right."""
        vertical = torch.stack((1 - self.below, self.below)).view(2, 1, -1)
        horizontal = torch.stack((1 - self.right, self.right)).view(1, 2, -1)
        return (vertical * horizontal).view(4, -1)

    def masked(self, values: Tensor) -> Tensor:
        """Multiply values `(..., S)` by the mask."""
        return values if self.mask is None else values * self.mask.view(-1)


def place_samples(
    input: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    dtype: torch.dtype,
) -> Samples:
    """Find the row and the distances of every sample; arguments as in `dcn.deform_conv2d`."""
    batch, _, height, width = input.shape
    out_size = offset.shape[-2:]
    grid_y, grid_x = (
        torch.arange(n, dtype=dtype)[:, None] * s - p + torch.arange(k, dtype=dtype) * d
        for n, k, s, p, d in zip(out_size, kernel_size, stride, padding, dilation, strict=True)
    )  # (Ho, kh), (Wo, kw)
    shifts = offset.unflatten(1, (-1, *kernel_size, 2)).permute(4, 0, 5, 6, 2, 3, 1)  # (2, B, Ho, Wo, kh, kw, G)
    shifts = shifts.to(dtype).contiguous()
    # Beyond these bounds, infinity included, every place reads zeros only: see `Table`.
    y = (shifts[0] + grid_y[:, None, :, None, None]).clamp_(-2, height)
    x = (shifts[1] + grid_x[:, None, :, None]).clamp_(-2, width)
    top, left = y.floor(), x.floor()
    # NaN stays in the distances, and so in the result, but must not become an index.
    row, column = (t.nan_to_num(nan=-2).long() + 2 for t in (top, left))
    row += (torch.arange(batch) * (height + 2)).view(-1, 1, 1, 1, 1, 1)
    offset_groups, points = y.shape[-1], kernel_size[0] * kernel_size[1]
    index = (row * (width + 2) + column) * offset_groups + torch.arange(offset_groups)
    if mask is not None:
        mask = mask.unflatten(1, (offset_groups, points)).permute(0, 3, 4, 2, 1).to(dtype).contiguous()
    shape = (batch * out_size[0] * out_size[1], points, offset_groups)
    return Samples(*(t if t is None else t.view(shape) for t in (index, y - top, x - left, mask)))


def forward(input, offset, weight, bias, mask, stride, padding, dilation) -> Tensor:
    """Compute the output `(B, N, Ho, Wo)`; arguments as in `dcn.deform_conv2d`."""
    samples, table, kernel = _prepare(input, offset, weight, bias, mask, stride, padding, dilation)
    rows = kernel.new_empty((samples.index.shape[0], weight.shape[0]))  # (P, N)
    for span, block in samples.blocks(input.shape[1]):
        columns = _gather(table, block, block.masked(block.shares()))
        product = _join_groups(_multiply(_split_columns(columns, block, kernel), kernel))
        rows[span] = product if bias is None else product + bias
    output = empty_as(input, (offset.shape[0], weight.shape[0], *offset.shape[2:]))
    return _fill_images(output, rows.view(len(offset), *offset.shape[2:], len(weight)))


def backward(grad_output, input, offset, weight, bias, mask, stride, padding, dilation, needs) -> list[Tensor]:
    """Compute the gradients of input, offset, weight, bias and mask, in this order, skipping those not in `needs`."""
    samples, table, kernel = _prepare(input, offset, weight, bias, mask, stride, padding, dilation)
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    back_kernel = _transpose(kernel)
    grad_rows = grad_output.permute(0, 2, 3, 1).to(kernel.dtype).reshape(-1, weight.shape[0]).contiguous()  # (P, N)
    grad_table = Table.zeros(input, samples.index.shape[2], kernel.dtype) if need_input else None
    grad_places = kernel.new_empty((*samples.index.shape, 2)) if need_offset else None
    grad_factors = kernel.new_empty(samples.index.shape) if need_mask else None
    grad_kernel = torch.zeros_like(back_kernel) if need_weight else None

    for span, block in samples.blocks(input.shape[1]):
        shares = block.shares()
        weights = block.masked(shares)
        grad = _split_groups(grad_rows[span], kernel)
        if need_weight:
            columns = _gather(table, block, weights)
            grad_kernel += _multiply(_transpose(_split_columns(columns, block, kernel)), _transpose(grad))
        if need_input or need_offset or need_mask:
            grad_columns = _join_columns(_multiply(grad, back_kernel), block, table)
        if need_offset or need_mask:
            dots = _dot(table, block, grad_columns)
        if need_offset:
            grad_places[span] = block.masked(_differentiate(dots, block)).t().view(*block.index.shape, 2)
        if need_mask:
            grad_factors[span] = (shares * dots).sum(0).view(block.index.shape)
        if need_input:
            _scatter(grad_table, block, grad_columns, weights)

    grads = []
    if need_input:
        grads.append(_fill_images(empty_as(input, input.shape), grad_table.images.permute(0, 2, 3, 1)))
    if need_offset:
        grads.append(_as_channels(grad_places, offset))
    if need_weight:
        grad_weight = _transpose(grad_kernel).unflatten(2, (*weight.shape[2:], -1)).flatten(0, 1).permute(0, 3, 1, 2)
        grads.append(empty_as(weight, weight.shape).copy_(grad_weight))
    if need_bias:
        grads.append(grad_rows.sum(0).to(bias.dtype))
    if need_mask:
        grads.append(_as_channels(grad_factors.unsqueeze(-1), mask))
    return grads


def empty_as(like: Tensor, shape: Sequence[int]) -> Tensor:
    """Make an empty tensor in the dtype and the memory format of `like`."""
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    memory_format = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def _prepare(input, offset, weight, bias, mask, stride, padding, dilation) -> tuple[Samples, Table, Tensor]:
    """Bring samples, input and weight into the layouts of the loops: the weight to `(groups, N/groups, K*C/groups)`."""
    tensors = [t for t in (input, offset, weight, bias, mask) if t is not None]
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    samples = place_samples(input, offset, mask, weight.shape[2:], stride, padding, dilation, dtype)
    table = Table.zeros(input, samples.index.shape[2], dtype)
    table.images.copy_(input)
    groups = input.shape[1] // weight.shape[1]
    kernel = weight.to(dtype).permute(0, 2, 3, 1).reshape(groups, weight.shape[0] // groups, -1)
    return samples, table, kernel


def _bags(table: Table, block: Samples) -> Tensor:
    """Rows `(S, 4)` of the four pixels around each sample."""
    return block.index.view(-1, 1) + table.steps


def _gather(table: Table, block: Samples, weights: Tensor) -> Tensor:
    """Sum the four rows of each sample with weights `(4, S)`, to `(S, C/G)`."""
    return F.embedding_bag(_bags(table, block), table.rows, mode="sum", per_sample_weights=weights.t().contiguous())


def _dot(table: Table, block: Samples, grad_columns: Tensor) -> Tensor:
    """Multiply the gradient `(S, C/G)` of each sample with its four rows, to `(4, S)`."""
    bags = _bags(table, block)
    starts = torch.arange(0, bags.numel(), 4)
    owners = torch.arange(len(bags)).repeat_interleave(4)
    # This is what autograd itself calls for the gradient of `per_sample_weights`; autograd is off inside an operator.
    dot = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return dot(grad_columns, table.rows, bags.view(-1), starts, owners, mode=0).view(-1, 4).t()


def _differentiate(dots: Tensor, block: Samples) -> Tensor:
    """Turn the products `(4, S)` with the four pixels into derivatives `(2, S)` by the place (dy, dx)."""
    above_left, above_right, below_left, below_right = dots
    dy = torch.lerp(below_left - above_left, below_right - above_right, block.right.view(-1))
    dx = torch.lerp(above_right - above_left, below_right - below_left, block.below.view(-1))
    return torch.stack((dy, dx))


def _scatter(grad_table: Table, block: Samples, grad_columns: Tensor, weights: Tensor) -> None:
    """Add the gradient `(S, C/G)` of the samples, times weights `(4, S)`, to the four rows of each."""
    # Stable, for the sums to be taken in the same order every time.
    index, order = block.index.view(-1).sort(stable=True)
    index, counts = torch.unique_consecutive(index, return_counts=True)
    starts = counts.cumsum(0) - counts
    for step, weight in zip(grad_table.steps, weights.index_select(1, order), strict=True):
        sums = F.embedding_bag(order, grad_columns, starts, mode="sum", per_sample_weights=weight)
        grad_table.rows.index_add_(0, index + step, sums)


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """Multiply `(groups, m, k)` by the transpose of `(groups, n, k)`, to `(groups, m, n)`."""
    if len(a) > 1 or a.dtype != torch.float32:
        return torch.bmm(a, b.transpose(1, 2))
    # oneDNN's 1x1 convolution of m channels-last pixels is this product too, at twice the speed of MKL's on AMD.
    # A dilated one goes to oneDNN from a single thread as well, and dilation says nothing of one point.
    _, count, length = a.shape
    pixels = a.reshape(1, count, 1, length).permute(0, 3, 1, 2)
    return F.conv2d(pixels, b[0, :, :, None, None], dilation=2).permute(0, 2, 3, 1).reshape(1, count, -1)


def _split_groups(rows: Tensor, kernel: Tensor) -> Tensor:
    """`(P, N)` to `(groups, P, N/groups)`."""
    return rows.unflatten(1, kernel.shape[:2]).transpose(0, 1)


def _join_groups(product: Tensor) -> Tensor:
    """`(groups, P, N/groups)` to `(P, N)`."""
    return product.transpose(0, 1).flatten(1)


def _split_columns(columns: Tensor, block: Samples, kernel: Tensor) -> Tensor:
    """`(S, C/G)` to `(groups, P, K*C/groups)`."""
    pixels, points, _ = block.index.shape
    return columns.view(pixels, points, len(kernel), -1).permute(2, 0, 1, 3).flatten(2)


def _join_columns(grouped: Tensor, block: Samples, table: Table) -> Tensor:
    """`(groups, P, K*C/groups)` to `(S, C/G)`."""
    split = grouped.unflatten(2, (block.index.shape[1], -1))
    return split.permute(1, 2, 0, 3).reshape(-1, table.rows.shape[1])


def _fill_images(images: Tensor, rows: Tensor) -> Tensor:
    """Copy `(B, H, W, C)` into `(B, C, H, W)`, image by image: PyTorch transposes fast in two dimensions only."""
    for image, pixels in zip(images, rows, strict=True):
        image.flatten(1).copy_(pixels.flatten(0, 1).t())
    return images


def _transpose(matrices: Tensor) -> Tensor:
    """Swap the last two of three dimensions; a single matrix the fast way."""
    if len(matrices) == 1:
        return matrices[0].t().contiguous().unsqueeze(0)
    return matrices.transpose(1, 2).contiguous()


def _as_channels(grad: Tensor, like: Tensor) -> Tensor:
    """Bring `(P, K, G, n)` into the layout of an offset or mask, `(B, G*K*n, Ho, Wo)`."""
    batch, _, height, width = like.shape
    _, points, offset_groups, count = grad.shape
    grad = grad.view(batch, height, width, points, offset_groups, count).permute(0, 4, 3, 5, 1, 2)
    return torch.empty(like.shape, dtype=like.dtype).view(grad.shape).copy_(grad).view(like.shape)
