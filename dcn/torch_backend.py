"""The "torch" backend: deformable convolution for CPUs in plain PyTorch, with a backward pass written by hand.

The input becomes a table of pixels with a border of zeros, one row of channels per pixel. A sample is the sum of four
neighbouring rows, weighted by their bilinear weights times the mask, and `embedding_bag` sums them at the speed of
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

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .tensors import compute_dtype, copy_as, empty_as

# A block's columns should stay in the cache from the gather to the product, yet be many enough to hide the cost of the
# calls, and no fewer bytes than the weight, which every product reads and rearranges anew. Measured with two threads,
# 3 to 18 MiB, 32 MiB of last-level cache: larger blocks are at most 5 % faster and take their size several times over.
BLOCK_BYTES = 4 * 2**20


class PaddedImages(NamedTuple):
    """Images as rows of channels, with zeros wherever a sample may look outside.

    There are two lines of zeros above and below each image and two zeros left and right of each line; neighbours share
    them. A place clamped to the border can then be read without a test, and no pixel is ever multiplied by 0 for a
    sample that does not touch it, which would turn an infinity into NaN.
    """

    rows: Tensor  # (R, C/G)
    images: Tensor  # the same memory without the border, (B, C, H, W)
    steps: Tensor  # (4,) from the row above and left of a sample to its four rows

    @classmethod
    def zeros(cls, input: Tensor, offset_groups: int, dtype: torch.dtype) -> "PaddedImages":
        """Make the table for images shaped as `input` `(B, C, H, W)`."""
        batch, channels, height, width = input.shape
        line = width + 2
        pixels = input.new_zeros(((batch * (height + 2) + 2) * line + 2, channels), dtype=dtype)
        strides = ((height + 2) * line * channels, 1, line * channels, channels)
        images = pixels.as_strided(input.shape, strides, (2 * line + 2) * channels)
        steps = torch.tensor([0, 1, line, line + 1], device=input.device) * offset_groups
        return cls(pixels.view(-1, channels // offset_groups), images, steps)


class Samples(NamedTuple):
    """Where the samples lie, each tensor `(B, Ho*Wo, K, G)`, or `(S,)` for those of one block."""

    index: Tensor  # row of `PaddedImages` with the pixel above and left
    below: Tensor  # distance from that pixel, in [0, 1), or NaN
    right: Tensor
    mask: Tensor | None

    def bilinear_weights(self) -> Tensor:
        """Return the bilinear weights `(4, S)` of the pixels above left, above right, below left and below right."""
        vertical = torch.stack((1 - self.below, self.below)).unsqueeze(1)
        horizontal = torch.stack((1 - self.right, self.right)).unsqueeze(0)
        return (vertical * horizontal).flatten(0, 1)

    def masked(self, values: Tensor) -> Tensor:
        """Multiply values `(..., S)` by the mask."""
        return values if self.mask is None else values * self.mask


class Block(NamedTuple):
    """Output pixels that are computed together: some whole images, or a part of one."""

    images: slice
    pixels: slice

    def of(self, values: Tensor) -> Tensor:
        """Cut `(B, Ho*Wo, ...)` to the block's pixels, as a view `(P, ...)`."""
        return values[self.images, self.pixels].flatten(0, 1)

    def samples(self, samples: Samples) -> Samples:
        """Cut to the block's samples, a view."""
        return Samples(*(t if t is None else self.of(t).view(-1) for t in samples))


def split_blocks(samples: Samples, kernel: Tensor) -> list[Block]:
    """Cut the output into blocks of about the same size, see `BLOCK_BYTES`; in the order of the samples in memory."""
    batch, pixels = samples.index.shape[:2]
    column_bytes = kernel.shape[0] * kernel.shape[2] * kernel.element_size()  # K*C numbers
    size = pixels * column_bytes / max(BLOCK_BYTES, kernel.numel() * kernel.element_size())
    images = max(1, round(1 / size))
    part = -(-pixels // max(1, round(size)))
    return [
        Block(slice(i, i + images), slice(p, p + part)) for i in range(0, batch, images) for p in range(0, pixels, part)
    ]


def locate_samples(
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
    arange = functools.partial(torch.arange, device=input.device)
    grid_y, grid_x = (
        arange(n, dtype=dtype)[:, None] * s - p + arange(k, dtype=dtype) * d
        for n, k, s, p, d in zip(out_size, kernel_size, stride, padding, dilation, strict=True)
    )  # (Ho, kh), (Wo, kw)
    shifts = offset.unflatten(1, (-1, *kernel_size, 2)).permute(4, 0, 5, 6, 2, 3, 1)  # (2, B, Ho, Wo, kh, kw, G)
    shifts = shifts.to(dtype).contiguous()
    # Beyond these bounds, infinity included, every place reads zeros only: see `PaddedImages`.
    y = (shifts[0] + grid_y[:, None, :, None, None]).clamp_(-2, height)
    x = (shifts[1] + grid_x[:, None, :, None]).clamp_(-2, width)
    top, left = y.floor(), x.floor()
    # NaN stays in the distances, and so in the result, but must not become an index.
    row, column = (t.nan_to_num(nan=-2).long() + 2 for t in (top, left))
    row += (arange(batch) * (height + 2)).view(-1, 1, 1, 1, 1, 1)
    offset_groups, points = y.shape[-1], kernel_size[0] * kernel_size[1]
    index = (row * (width + 2) + column) * offset_groups + arange(offset_groups)
    if mask is not None:
        mask = mask.unflatten(1, (offset_groups, points)).permute(0, 3, 4, 2, 1).to(dtype).contiguous()
    shape = (batch, out_size[0] * out_size[1], points, offset_groups)
    return Samples(*(t if t is None else t.view(shape) for t in (index, y - top, x - left, mask)))


def unavailable_reason(*tensors: Tensor) -> str | None:
    """Say why `tensors` cannot be served, or None."""
    device = tensors[0].device
    return None if device.type == "cpu" else f"it is made for the CPU, `input` is on {device}"


def forward(input, offset, weight, bias, mask, stride, padding, dilation) -> Tensor:
    """Compute the output `(B, N, Ho, Wo)`; arguments as in `dcn.deform_conv2d`."""
    samples, padded, kernel = _prepare(input, offset, weight, bias, mask, stride, padding, dilation)
    output = empty_as(input, (offset.shape[0], weight.shape[0], *offset.shape[2:]))
    for block in split_blocks(samples, kernel):
        part = block.samples(samples)
        columns = _gather(padded, _corner_indices(padded, part), part.masked(part.bilinear_weights()))
        product = _join_groups(_multiply(_split_columns(columns, samples, kernel), kernel.transpose(1, 2)))
        _write_block(output, block, product if bias is None else product + bias)
        del columns, product  # before the next block's
    return output


def backward(grad_output, input, offset, weight, bias, mask, stride, padding, dilation, needs) -> list[Tensor]:
    """Compute the gradients of input, offset, weight, bias and mask, in this order, skipping those not in `needs`."""
    samples, padded, kernel = _prepare(input, offset, weight, bias, mask, stride, padding, dilation)
    need_input, need_offset, need_weight, need_bias, need_mask = needs
    blocks = split_blocks(samples, kernel)
    grad_padded = PaddedImages.zeros(input, samples.index.shape[3], kernel.dtype) if need_input else None
    grad_offset = kernel.new_empty((*samples.index.shape, 2)) if need_offset else None
    grad_mask = kernel.new_empty(samples.index.shape) if need_mask else None
    grad_kernel = torch.zeros_like(kernel) if need_weight else None
    orders = _sort(samples, blocks, padded) if need_input else [None] * len(blocks)

    for block, order in zip(blocks, orders, strict=True):
        part = block.samples(samples)
        indices, bilinear_weights = _corner_indices(padded, part), part.bilinear_weights()
        weights = part.masked(bilinear_weights)
        grad = _split_groups(_read_block(grad_output, block, kernel.dtype), kernel)
        if need_weight:
            columns = _gather(padded, indices, weights)
            grad_kernel += _multiply(grad.transpose(1, 2), _split_columns(columns, samples, kernel))
            del columns  # before grad_columns
        if need_input or need_offset or need_mask:
            grad_columns = _join_columns(_multiply(grad, kernel), samples, padded)
        if need_offset or need_mask:
            dots = _dot(padded, indices, grad_columns)
        if need_offset:
            block.of(grad_offset).copy_(part.masked(_differentiate(dots, part)).t().view_as(block.of(grad_offset)))
        if need_mask:
            block.of(grad_mask).copy_((bilinear_weights * dots).sum(0).view_as(block.of(grad_mask)))
        if need_input:
            _scatter(grad_padded, *order, grad_columns, weights)
        grad_columns = None  # before the next block's columns

    grads = []
    if need_input:
        grads.append(copy_as(input, grad_padded.images))
    if need_offset:
        grads.append(_as_channels(grad_offset, offset))
    if need_weight:
        grad_weight = grad_kernel.unflatten(2, (*weight.shape[2:], -1)).flatten(0, 1).permute(0, 3, 1, 2)
        grads.append(copy_as(weight, grad_weight))
    if need_bias:
        grads.append(grad_output.sum((0, 2, 3), dtype=kernel.dtype).to(bias.dtype))
    if need_mask:
        grads.append(_as_channels(grad_mask.unsqueeze(-1), mask))
    return grads


def _prepare(input, offset, weight, bias, mask, stride, padding, dilation) -> tuple[Samples, PaddedImages, Tensor]:
    """Bring samples, input and weight into the layouts of the loops: the weight to `(groups, N/groups, K*C/groups)`."""
    _keep_freed_memory()
    dtype = compute_dtype(input, offset, weight, bias, mask)
    samples = locate_samples(input, offset, mask, weight.shape[2:], stride, padding, dilation, dtype)
    padded = PaddedImages.zeros(input, samples.index.shape[3], dtype)
    padded.images.copy_(input)
    groups = input.shape[1] // weight.shape[1]
    kernel = weight.to(dtype).permute(0, 2, 3, 1).reshape(groups, weight.shape[0] // groups, -1)
    return samples, padded, kernel


@functools.cache
def _keep_freed_memory() -> None:
    """Teach glibc's allocator to keep memory of up to 64 MB for the next block instead of returning it to the system.

    It learns from the largest piece freed so far, up to 32 MiB; any training step teaches it sooner or later. Before
    that, every block's columns are pages new to the process, which takes up to half the time of the operator.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _read_block(images: Tensor, block: Block, dtype: torch.dtype) -> Tensor:
    """Read a block's pixels of `(B, C, H, W)`, to `(P, C)`."""
    return images.flatten(2)[block.images, :, block.pixels].to(dtype).transpose(1, 2).flatten(0, 1)


def _write_block(images: Tensor, block: Block, rows: Tensor) -> None:
    """Write `(P, C)` as a block's pixels of `(B, C, H, W)`."""
    part = images.flatten(2)[block.images, :, block.pixels]
    part.copy_(rows.view(len(part), -1, rows.shape[1]).transpose(1, 2))


def _corner_indices(padded: PaddedImages, part: Samples) -> Tensor:
    """Rows `(S, 4)` of the four pixels around each sample."""
    return part.index.unsqueeze(1) + padded.steps


def _gather(padded: PaddedImages, indices: Tensor, weights: Tensor) -> Tensor:
    """Sum the four rows of each sample with weights `(4, S)`, to `(S, C/G)`."""
    return F.embedding_bag(indices, padded.rows, mode="sum", per_sample_weights=weights.t().contiguous())


def _dot(padded: PaddedImages, indices: Tensor, grad_columns: Tensor) -> Tensor:
    """Multiply the gradient `(S, C/G)` of each sample with its four rows, to `(4, S)`."""
    starts = torch.arange(0, indices.numel(), 4, device=indices.device)
    owners = torch.arange(len(indices), device=indices.device).repeat_interleave(4)
    # This is what autograd itself calls for the gradient of `per_sample_weights`; autograd is off inside an operator.
    dot = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return dot(grad_columns, padded.rows, indices.view(-1), starts, owners, mode=0).view(-1, 4).t()


def _differentiate(dots: Tensor, part: Samples) -> Tensor:
    """Turn the products `(4, S)` with the four pixels into derivatives `(2, S)` by the place (dy, dx)."""
    above_left, above_right, below_left, below_right = dots
    dy = torch.lerp(below_left - above_left, below_right - above_right, part.right)
    dx = torch.lerp(above_right - above_left, below_right - below_left, part.below)
    return torch.stack((dy, dx))


def _sort(samples: Samples, blocks: list[Block], padded: PaddedImages) -> list[tuple[Tensor, Tensor]]:
    """Sort the samples of each block by their row of the table, to the rows and the samples' numbers in the block.

    All blocks in one call: PyTorch sorts integers four times as fast from 2**15 on. Stable, for the sums to be taken
    in the same order every time.
    """
    sizes = [block.of(samples.index).numel() for block in blocks]
    device = samples.index.device
    number = torch.arange(len(blocks), device=device).repeat_interleave(torch.tensor(sizes, device=device).long())
    rows, order = (samples.index.view(-1) + number * len(padded.rows)).sort(stable=True)
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    rows = (part - n * len(padded.rows) for n, part in enumerate(rows.split(sizes)))
    order = (part - start for part, start in zip(order.split(sizes), starts, strict=True))
    return list(zip(rows, order, strict=True))


def _scatter(grad_padded: PaddedImages, rows: Tensor, order: Tensor, grad_columns: Tensor, weights: Tensor) -> None:
    """Add the gradient `(S, C/G)` of the samples, times weights `(4, S)`, to the four rows of each; see `_sort`."""
    rows, counts = torch.unique_consecutive(rows, return_counts=True)
    starts = counts.cumsum(0) - counts
    for step, weight in zip(grad_padded.steps, weights.index_select(1, order), strict=True):
        sums = F.embedding_bag(order, grad_columns, starts, mode="sum", per_sample_weights=weight)
        grad_padded.rows.index_add_(0, rows + step, sums)


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """Multiply `(groups, m, k)` by `(groups, k, n)`, to `(groups, m, n)`."""
    if len(a) > 1 or a.dtype != torch.float32 or a.device.type != "cpu":
        return torch.bmm(a, b)
    # oneDNN's convolution of m channels-last pixels by one point is this product too, at twice the speed of MKL's on
    # AMD: the plain one where b is a transpose, the transposed one where it is not, as no copy is made then. A dilated
    # one goes to oneDNN from a single thread as well, and dilation says nothing of one point.
    _, count, length = a.shape
    pixels = a.contiguous().view(1, count, 1, length).permute(0, 3, 1, 2)
    if b.stride(1) == 1:
        product = F.conv2d(pixels, b[0].t()[:, :, None, None], dilation=2)
    else:
        product = F.conv_transpose2d(pixels, b[0, :, :, None, None], dilation=2)
    return product.permute(0, 2, 3, 1).reshape(1, count, -1)


def _split_groups(rows: Tensor, kernel: Tensor) -> Tensor:
    """`(P, N)` to `(groups, P, N/groups)`."""
    return rows.unflatten(1, kernel.shape[:2]).transpose(0, 1)


def _join_groups(product: Tensor) -> Tensor:
    """`(groups, P, N/groups)` to `(P, N)`."""
    return product.transpose(0, 1).flatten(1)


def _split_columns(columns: Tensor, samples: Samples, kernel: Tensor) -> Tensor:
    """`(S, C/G)` to `(groups, P, K*C/groups)`."""
    _, _, points, offset_groups = samples.index.shape
    pixels = columns.view(-1, points, offset_groups * columns.shape[1])
    return pixels.unflatten(2, (len(kernel), -1)).permute(2, 0, 1, 3).flatten(2)


def _join_columns(grouped: Tensor, samples: Samples, padded: PaddedImages) -> Tensor:
    """`(groups, P, K*C/groups)` to `(S, C/G)`."""
    split = grouped.unflatten(2, (samples.index.shape[2], -1))
    return split.permute(1, 2, 0, 3).reshape(-1, padded.rows.shape[1])


def _as_channels(grad: Tensor, like: Tensor) -> Tensor:
    """Bring `(B, Ho*Wo, K, G, n)` into the layout of an offset or mask, `(B, G*K*n, Ho, Wo)`."""
    batch, _, points, offset_groups, count = grad.shape
    grad = grad.view(batch, *like.shape[2:], points, offset_groups, count).permute(0, 4, 3, 5, 1, 2)
    result = empty_as(like, like.shape)
    result.unflatten(1, (offset_groups, points, count)).copy_(grad)
    return result
