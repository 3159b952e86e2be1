"""The "torch" backend: deformable convolution for CPUs in plain PyTorch, with a handwritten backward pass.

The input is copied into a table with one row of channels per pixel and a border of zeros. A sample is the sum of four
neighbouring rows, each times its bilinear weight and the mask. `embedding_bag` computes these sums at memory
bandwidth. The columns of a block of samples fit into the cache, and one matrix product per block completes the
convolution. Columns are not stored: the backward pass gathers them again.

Gradients, block by block:
    weight: Product of grad_output and the columns.
    mask, offset: Combinations of the dot products of the columns' gradient with the four rows of each sample.
    input: The columns' gradient, scattered back. Samples are sorted by pixel, and `embedding_bag` sums the samples of
        a pixel. No two threads write to the same row, so the result depends neither on the run nor on the number of
        threads.

Legend: B batch size, C input channels, N output channels, G offset groups, K = kh*kw kernel points, Ho x Wo output
size. P are the output pixels of the batch or of a block, S = P*K*G the samples, of C/G channels each.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .tensors import compute_dtype, copy_as, empty_as

# Target size of a block's columns. They should stay in the cache from the gather to the product, but be large enough to
# amortise the calls. They should not be smaller than the weight, which every product reads and rearranges again.
# Measured for 3 to 18 MiB with two threads and 32 MiB of last-level cache: larger blocks are at most 5 % faster and
# need several times their size in memory.
BLOCK_BYTES = 4 * 2**20


class PaddedImages(NamedTuple):
    """Images as rows of channels, with zeros around each image.

    There are two lines of zeros above and below each image and two zeros left and right of each line; neighbours share
    them. A location clamped to this border can be read without a bounds check. A sample never multiplies a pixel that
    it does not touch by 0, which would turn an infinity into NaN.
    """

    rows: Tensor  # (R, C/G)
    images: Tensor  # the same memory without the border, (B, C, H, W)
    steps: Tensor  # (4,), from the row above and left of a sample to its four rows

    @classmethod
    def zeros(cls, input: Tensor, offset_groups: int, dtype: torch.dtype) -> "PaddedImages":
        """Return a table of zeros for images with the shape of `input`, `(B, C, H, W)`."""
        batch, channels, height, width = input.shape
        line = width + 2
        pixels = input.new_zeros(((batch * (height + 2) + 2) * line + 2, channels), dtype=dtype)
        strides = ((height + 2) * line * channels, 1, line * channels, channels)
        images = pixels.as_strided(input.shape, strides, (2 * line + 2) * channels)
        steps = torch.tensor([0, 1, line, line + 1], device=input.device) * offset_groups
        return cls(pixels.view(-1, channels // offset_groups), images, steps)


class Samples(NamedTuple):
    """Sampling locations and masks; each tensor is `(B, Ho*Wo, K, G)`, or `(S,)` for the samples of a block."""

    index: Tensor  # row of `PaddedImages` with the pixel above and left
    below: Tensor  # vertical distance from that pixel, in [0, 1), or NaN
    right: Tensor  # horizontal distance from that pixel, in [0, 1), or NaN
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
    """Output pixels that are computed together: one or more whole images, or a part of an image."""

    images: slice
    pixels: slice

    def select(self, values: Tensor) -> Tensor:
        """Return the block's pixels of `(B, Ho*Wo, ...)`, as a view `(P, ...)`."""
        return values[self.images, self.pixels].flatten(0, 1)

    def select_samples(self, samples: Samples) -> Samples:
        """Return the block's samples, as views `(S,)`."""
        return Samples(*(t if t is None else self.select(t).view(-1) for t in samples))


def split_blocks(samples: Samples, kernel: Tensor) -> list[Block]:
    """Split the output into blocks of about `BLOCK_BYTES` of columns, in the order of the samples in memory."""
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
    """Compute the row, the distances and the mask of every sample; arguments as in `dcn.deform_conv2d`."""
    batch, _, height, width = input.shape
    out_size = offset.shape[-2:]
    arange = functools.partial(torch.arange, device=input.device)
    grid_y, grid_x = (
        arange(n, dtype=dtype)[:, None] * s - p + arange(k, dtype=dtype) * d
        for n, k, s, p, d in zip(out_size, kernel_size, stride, padding, dilation, strict=True)
    )  # (Ho, kh), (Wo, kw)
    shifts = offset.unflatten(1, (-1, *kernel_size, 2)).permute(4, 0, 5, 6, 2, 3, 1)  # (2, B, Ho, Wo, kh, kw, G)
    shifts = shifts.to(dtype).contiguous()
    # Beyond these bounds, infinity included, every location reads only zeros, see `PaddedImages`.
    y = (shifts[0] + grid_y[:, None, :, None, None]).clamp_(-2, height)
    x = (shifts[1] + grid_x[:, None, :, None]).clamp_(-2, width)
    top, left = y.floor(), x.floor()
    # NaN remains in the distances, and therefore in the result, but must not become an index.
    row, column = (t.nan_to_num(nan=-2).long() + 2 for t in (top, left))
    row += (arange(batch) * (height + 2)).view(-1, 1, 1, 1, 1, 1)
    offset_groups, points = y.shape[-1], kernel_size[0] * kernel_size[1]
    index = (row * (width + 2) + column) * offset_groups + arange(offset_groups)
    if mask is not None:
        mask = mask.unflatten(1, (offset_groups, points)).permute(0, 3, 4, 2, 1).to(dtype).contiguous()
    shape = (batch, out_size[0] * out_size[1], points, offset_groups)
    return Samples(*(t if t is None else t.view(shape) for t in (index, y - top, x - left, mask)))


def unavailable_reason(*tensors: Tensor) -> str | None:
    """Return the reason why the backend does not support `tensors`, or None."""
    device = tensors[0].device
    return None if device.type == "cpu" else f"it runs on CPUs only, `input` is on {device}"


def forward(input, offset, weight, bias, mask, stride, padding, dilation) -> Tensor:
    """Compute the output `(B, N, Ho, Wo)`; arguments as in `dcn.deform_conv2d`."""
    samples, padded, kernel = _prepare(input, offset, weight, bias, mask, stride, padding, dilation)
    output = empty_as(input, (offset.shape[0], weight.shape[0], *offset.shape[2:]))
    for block in split_blocks(samples, kernel):
        part = block.select_samples(samples)
        columns = _gather(padded, _corner_indices(padded, part), part.masked(part.bilinear_weights()))
        product = _join_groups(_multiply(_split_columns(columns, samples, kernel), kernel.transpose(1, 2)))
        _write_block(output, block, product if bias is None else product + bias)
        del columns, product  # free them before the next block
    return output


def backward(grad_output, input, offset, weight, bias, mask, stride, padding, dilation, needs_grad) -> list[Tensor]:
    """Return the gradients of input, offset, weight, bias and mask that `needs_grad` selects, in this order."""
    samples, padded, kernel = _prepare(input, offset, weight, bias, mask, stride, padding, dilation)
    need_input, need_offset, need_weight, need_bias, need_mask = needs_grad
    blocks = split_blocks(samples, kernel)
    grad_padded = PaddedImages.zeros(input, samples.index.shape[3], kernel.dtype) if need_input else None
    grad_offset = kernel.new_empty((*samples.index.shape, 2)) if need_offset else None
    grad_mask = kernel.new_empty(samples.index.shape) if need_mask else None
    grad_kernel = torch.zeros_like(kernel) if need_weight else None
    orders = _sort(samples, blocks, padded) if need_input else [None] * len(blocks)

    for block, order in zip(blocks, orders, strict=True):
        part = block.select_samples(samples)
        indices, bilinear_weights = _corner_indices(padded, part), part.bilinear_weights()
        weights = part.masked(bilinear_weights)
        grad = _split_groups(_read_block(grad_output, block, kernel.dtype), kernel)
        if need_weight:
            columns = _gather(padded, indices, weights)
            grad_kernel += _multiply(grad.transpose(1, 2), _split_columns(columns, samples, kernel))
            del columns  # free them before grad_columns
        if need_input or need_offset or need_mask:
            grad_columns = _join_columns(_multiply(grad, kernel), samples, padded)
        if need_offset or need_mask:
            dots = _dot(padded, indices, grad_columns)
        if need_offset:
            target = block.select(grad_offset)
            target.copy_(part.masked(_differentiate(dots, part)).t().view_as(target))
        if need_mask:
            target = block.select(grad_mask)
            target.copy_((bilinear_weights * dots).sum(0).view_as(target))
        if need_input:
            _scatter(grad_padded, *order, grad_columns, weights)
        grad_columns = None  # free it before the next block's columns

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
    """Return samples, table and weight in the layouts of the loops; the weight is `(groups, N/groups, K*C/groups)`."""
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
    """Make glibc's allocator keep up to 64 MB of freed memory for the next block.

    Its threshold follows the largest freed piece, up to 32 MiB. Below the threshold it returns memory to the system,
    and every block's columns are newly mapped pages, which takes up to half of the operator's time.
    """
    torch.empty(2**25 - 2**16, dtype=torch.uint8)


def _read_block(images: Tensor, block: Block, dtype: torch.dtype) -> Tensor:
    """Return a block's pixels of `(B, C, H, W)`, as `(P, C)`."""
    return images.flatten(2)[block.images, :, block.pixels].to(dtype).transpose(1, 2).flatten(0, 1)


def _write_block(images: Tensor, block: Block, rows: Tensor) -> None:
    """Write `(P, C)` as a block's pixels of `(B, C, H, W)`."""
    part = images.flatten(2)[block.images, :, block.pixels]
    part.copy_(rows.view(len(part), -1, rows.shape[1]).transpose(1, 2))


def _corner_indices(padded: PaddedImages, part: Samples) -> Tensor:
    """Return the rows `(S, 4)` of the four pixels around each sample."""
    return part.index.unsqueeze(1) + padded.steps


def _gather(padded: PaddedImages, indices: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of the four rows of each sample, `(S, C/G)`; the weights are `(4, S)`."""
    return F.embedding_bag(indices, padded.rows, mode="sum", per_sample_weights=weights.t().contiguous())


def _dot(padded: PaddedImages, indices: Tensor, grad_columns: Tensor) -> Tensor:
    """Return the dot products `(4, S)` of each sample's gradient `(S, C/G)` with its four rows."""
    starts = torch.arange(0, indices.numel(), 4, device=indices.device)
    owners = torch.arange(len(indices), device=indices.device).repeat_interleave(4)
    # Autograd calls this function for the gradient of `per_sample_weights`. Autograd is off inside of an operator.
    dot = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return dot(grad_columns, padded.rows, indices.view(-1), starts, owners, mode=0).view(-1, 4).t()


def _differentiate(dots: Tensor, part: Samples) -> Tensor:
    """Return the derivatives `(2, S)` by the location (dy, dx), from the dot products `(4, S)` with the four pixels."""
    above_left, above_right, below_left, below_right = dots
    dy = torch.lerp(below_left - above_left, below_right - above_right, part.right)
    dx = torch.lerp(above_right - above_left, below_right - below_left, part.below)
    return torch.stack((dy, dx))


def _sort(samples: Samples, blocks: list[Block], padded: PaddedImages) -> list[tuple[Tensor, Tensor]]:
    """Sort the samples of each block by their row; return the rows and the samples' numbers in the block.

    One call sorts all blocks: PyTorch sorts integers four times as fast from 2**15 elements on. The sort is stable,
    so that the order of the sums is fixed.
    """
    sizes = [block.select(samples.index).numel() for block in blocks]
    device = samples.index.device
    number = torch.arange(len(blocks), device=device).repeat_interleave(torch.tensor(sizes, device=device).long())
    rows, order = (samples.index.view(-1) + number * len(padded.rows)).sort(stable=True)
    starts = [sum(sizes[:n]) for n in range(len(sizes))]
    rows = (part - n * len(padded.rows) for n, part in enumerate(rows.split(sizes)))
    order = (part - start for part, start in zip(order.split(sizes), starts, strict=True))
    return list(zip(rows, order, strict=True))


def _scatter(grad_padded: PaddedImages, rows: Tensor, order: Tensor, grad_columns: Tensor, weights: Tensor) -> None:
    """Add the samples' gradient `(S, C/G)`, times weights `(4, S)`, to the four rows of each sample; see `_sort`."""
    rows, counts = torch.unique_consecutive(rows, return_counts=True)
    starts = counts.cumsum(0) - counts
    for step, weight in zip(grad_padded.steps, weights.index_select(1, order), strict=True):
        sums = F.embedding_bag(order, grad_columns, starts, mode="sum", per_sample_weights=weight)
        grad_padded.rows.index_add_(0, rows + step, sums)


def _multiply(a: Tensor, b: Tensor) -> Tensor:
    """Return the product `(groups, m, n)` of `(groups, m, k)` and `(groups, k, n)`."""
    if len(a) > 1 or a.dtype != torch.float32 or a.device.type != "cpu":
        return torch.bmm(a, b)
    # oneDNN's 1x1 convolution of m channels-last pixels computes this product twice as fast as MKL on AMD. The plain
    # convolution needs no copy if b is a transpose, the transposed convolution if it is not. PyTorch selects oneDNN
    # with a single thread only for a dilated convolution; a 1x1 kernel does not depend on the dilation.
    _, count, length = a.shape
    pixels = a.contiguous().view(1, count, 1, length).permute(0, 3, 1, 2)
    if b.stride(1) == 1:
        product = F.conv2d(pixels, b[0].t()[:, :, None, None], dilation=2)
    else:
        product = F.conv_transpose2d(pixels, b[0, :, :, None, None], dilation=2)
    return product.permute(0, 2, 3, 1).reshape(1, count, -1)


def _split_groups(rows: Tensor, kernel: Tensor) -> Tensor:
    """Reshape `(P, N)` to `(groups, P, N/groups)`."""
    return rows.unflatten(1, kernel.shape[:2]).transpose(0, 1)


def _join_groups(product: Tensor) -> Tensor:
    """Reshape `(groups, P, N/groups)` to `(P, N)`."""
    return product.transpose(0, 1).flatten(1)


def _split_columns(columns: Tensor, samples: Samples, kernel: Tensor) -> Tensor:
    """Reshape `(S, C/G)` to `(groups, P, K*C/groups)`."""
    _, _, points, offset_groups = samples.index.shape
    pixels = columns.view(-1, points, offset_groups * columns.shape[1])
    return pixels.unflatten(2, (len(kernel), -1)).permute(2, 0, 1, 3).flatten(2)


def _join_columns(grouped: Tensor, samples: Samples, padded: PaddedImages) -> Tensor:
    """Reshape `(groups, P, K*C/groups)` to `(S, C/G)`."""
    split = grouped.unflatten(2, (samples.index.shape[2], -1))
    return split.permute(1, 2, 0, 3).reshape(-1, padded.rows.shape[1])


def _as_channels(grad: Tensor, like: Tensor) -> Tensor:
    """Permute `(B, Ho*Wo, K, G, n)` to the layout of an offset or mask, `(B, G*K*n, Ho, Wo)`."""
    batch, _, points, offset_groups, count = grad.shape
    grad = grad.view(batch, *like.shape[2:], points, offset_groups, count).permute(0, 4, 3, 5, 1, 2)
    result = empty_as(like, like.shape)
    result.unflatten(1, (offset_groups, points, count)).copy_(grad)
    return result
