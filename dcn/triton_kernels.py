"""Triton kernels of the "triton" backend; `triton_backend.py` launches them and contains the legend.

The kernels get images as `(B, H, W, C)` and the weight as `(N, K, C/groups)`, and number the output pixels of the batch
from 0 to P-1. They process channels in segments: runs of channels in one group and one offset group.
"""

import triton
import triton.language as tl

# Arguments that change with the image size; kernels are not compiled again for their special values.
SIZE_ARGUMENTS = [
    "pixels", "height", "width", "out_height", "out_width", "offset_image", "offset_channel", "mask_image",
    "mask_channel", "stride_y", "stride_x", "padding_y", "padding_x", "dilation_y", "dilation_x",
]  # fmt: skip


@triton.jit
def _split(pixel, out_height, out_width):
    """Split an output pixel's number in the batch into image, number in the image, row and column."""
    image = pixel // (out_height * out_width)
    in_image = pixel % (out_height * out_width)
    return image.to(tl.int64), in_image, in_image // out_width, in_image % out_width


@triton.jit
def _locate(
    offset, mask, sample, image, in_image, valid, grid_y, grid_x, height, width,
    offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel, HAS_MASK: tl.constexpr,
):  # fmt: skip
    """Return row and column of the pixel above and left of each sample, the distances from it, and the mask.

    The distances are NaN where the offset is.
    """
    pointer = offset + image * offset_image + 2 * sample * offset_channel + in_image * offset_pixel
    y = grid_y + tl.load(pointer, mask=valid, other=0.0).to(tl.float32)
    x = grid_x + tl.load(pointer + offset_channel, mask=valid, other=0.0).to(tl.float32)
    # Beyond these bounds, infinity included, every corner is outside; NaN must not become an index.
    bounded_y = tl.minimum(tl.maximum(tl.where(y == y, y, -2.0), -2.0), height * 1.0)
    bounded_x = tl.minimum(tl.maximum(tl.where(x == x, x, -2.0), -2.0), width * 1.0)
    top = tl.floor(bounded_y)
    left = tl.floor(bounded_x)
    below = tl.where(y == y, bounded_y - top, float("nan"))
    right = tl.where(x == x, bounded_x - left, float("nan"))
    mask_value = tl.full(y.shape, 1.0, tl.float32)
    if HAS_MASK:
        pointer = mask + image * mask_image + sample * mask_channel + in_image * mask_pixel
        mask_value = tl.load(pointer, mask=valid, other=0.0).to(tl.float32)
    return top.to(tl.int32), left.to(tl.int32), below, right, mask_value


@triton.jit
def _corner(image, row, column, valid, height, width, channels):
    """Return the index of each pixel's first channel in the images, and whether the pixel is inside."""
    inside = valid & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return ((image * height + row) * width + column) * channels, inside


@triton.jit
def _read(images, start, inside, channel, used):
    return tl.load(images + start[:, None] + channel[None, :], mask=inside[:, None] & used[None, :], other=0.0).to(
        tl.float32
    )


@triton.jit
def _multiply(a, b, total, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """Add the matrix product in float32."""
    if UPCAST:  # Triton's interpreter cannot multiply bfloat16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, total, input_precision=PRECISION)


@triton.jit
def _columns(images, top, left, below, right, mask_value, image, valid, height, width, channels, channel, used):
    """Interpolate one tile of columns, `(pixels, channels)` in float32."""
    start, inside = _corner(image, top, left, valid, height, width, channels)
    total = ((1 - below) * (1 - right) * mask_value)[:, None] * _read(images, start, inside, channel, used)
    start, inside = _corner(image, top, left + 1, valid, height, width, channels)
    total += ((1 - below) * right * mask_value)[:, None] * _read(images, start, inside, channel, used)
    start, inside = _corner(image, top + 1, left, valid, height, width, channels)
    total += (below * (1 - right) * mask_value)[:, None] * _read(images, start, inside, channel, used)
    start, inside = _corner(image, top + 1, left + 1, valid, height, width, channels)
    total += (below * right * mask_value)[:, None] * _read(images, start, inside, channel, used)
    return total


@triton.jit(do_not_specialize=SIZE_ARGUMENTS)
def forward(
    images, offset, mask, weight, bias, output,
    offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel,
    output_image, output_channel, output_pixel,
    pixels, height, width, channels, out_height, out_width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    group_in, group_out, offset_group_in, segment,
    POINTS: tl.constexpr, KERNEL_WIDTH: tl.constexpr, HAS_MASK: tl.constexpr, HAS_BIAS: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Compute one tile of the output, BP pixels x BN channels of one group; columns stay in registers."""
    blocks = tl.cdiv(group_out, BN)
    group = tl.program_id(1) // blocks
    n = tl.program_id(1) % blocks * BN + tl.arange(0, BN)
    n_used = n < group_out
    n += group * group_out
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    valid = pixel < pixels
    image, in_image, row, column = _split(pixel, out_height, out_width)

    total = tl.zeros((BP, BN), tl.float32)
    for point in range(POINTS):
        grid_y = (row * stride_y - padding_y + point // KERNEL_WIDTH * dilation_y).to(tl.float32)
        grid_x = (column * stride_x - padding_x + point % KERNEL_WIDTH * dilation_x).to(tl.float32)
        for first in range(0, group_in, segment):
            sample = (group * group_in + first) // offset_group_in * POINTS + point
            top, left, below, right, mask_value = _locate(
                offset, mask, sample, image, in_image, valid, grid_y, grid_x, height, width,
                offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel, HAS_MASK,
            )  # fmt: skip
            for start in range(0, segment, BC):
                channel = first + start + tl.arange(0, BC)
                used = start + tl.arange(0, BC) < segment
                tile = _columns(
                    images, top, left, below, right, mask_value, image, valid, height, width, channels,
                    group * group_in + channel, used,
                )  # fmt: skip
                kernel = tl.load(
                    weight + (n[None, :] * POINTS + point) * group_in + channel[:, None],
                    mask=n_used[None, :] & used[:, None],
                    other=0.0,
                )
                total = _multiply(tile.to(kernel.dtype), kernel, total, UPCAST, PRECISION)
    if HAS_BIAS:
        total += tl.load(bias + n, mask=n_used, other=0.0).to(tl.float32)[None, :]
    # Transposed, so that neighbouring threads write neighbouring pixels of (B, C, H, W). For channels-last Triton
    # transposes it back.
    pointer = output + (image * output_image + in_image * output_pixel)[None, :] + n[:, None] * output_channel
    tl.store(pointer, tl.trans(total.to(output.dtype.element_ty)), mask=valid[None, :] & n_used[:, None])


@triton.jit
def _add_corner(grad_images, start, inside, channel, used, sample_weight, grad):
    """Add a sample's gradient to one of its pixels; several programs may add to the same pixel."""
    pointer = grad_images + start[:, None] + channel[None, :]
    tl.atomic_add(pointer, sample_weight[:, None] * grad, mask=inside[:, None] & used[None, :], sem="relaxed")


@triton.jit(do_not_specialize=SIZE_ARGUMENTS)
def backward_samples(
    images, offset, mask, weight, grad_output, grad_images, grad_offset, grad_mask,
    offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel,
    pixels, height, width, channels, out_channels, out_height, out_width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    group_in, group_out, offset_group_in, segment,
    POINTS: tl.constexpr, KERNEL_WIDTH: tl.constexpr, HAS_MASK: tl.constexpr,
    NEED_IMAGES: tl.constexpr, NEED_OFFSET: tl.constexpr, NEED_MASK: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of offset and mask, and add to the input's, for BP pixels, a kernel point and offset group.

    The gradient of the columns is the product of the output's gradient and the weight, tile by tile in registers.
    """
    point = tl.program_id(1)
    offset_group = tl.program_id(2)
    pixel = tl.program_id(0) * BP + tl.arange(0, BP)
    valid = pixel < pixels
    image, in_image, row, column = _split(pixel, out_height, out_width)
    grid_y = (row * stride_y - padding_y + point // KERNEL_WIDTH * dilation_y).to(tl.float32)
    grid_x = (column * stride_x - padding_x + point % KERNEL_WIDTH * dilation_x).to(tl.float32)
    sample = offset_group * POINTS + point
    top, left, below, right, mask_value = _locate(
        offset, mask, sample, image, in_image, valid, grid_y, grid_x, height, width,
        offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel, HAS_MASK,
    )  # fmt: skip
    above_left, is_above_left = _corner(image, top, left, valid, height, width, channels)
    above_right, is_above_right = _corner(image, top, left + 1, valid, height, width, channels)
    below_left, is_below_left = _corner(image, top + 1, left, valid, height, width, channels)
    below_right, is_below_right = _corner(image, top + 1, left + 1, valid, height, width, channels)

    # Dot products of the columns' gradient with the four pixels around each sample.
    dot_above_left = tl.zeros((BP,), tl.float32)
    dot_above_right = tl.zeros((BP,), tl.float32)
    dot_below_left = tl.zeros((BP,), tl.float32)
    dot_below_right = tl.zeros((BP,), tl.float32)
    for first in range(offset_group * offset_group_in, (offset_group + 1) * offset_group_in, segment):
        group = first // group_in
        for start in range(0, segment, BC):
            channel = first + start + tl.arange(0, BC)
            used = start + tl.arange(0, BC) < segment
            grad = tl.zeros((BP, BC), tl.float32)
            for first_n in range(0, group_out, BN):
                n = group * group_out + first_n + tl.arange(0, BN)
                n_used = first_n + tl.arange(0, BN) < group_out
                grad_output_tile = tl.load(
                    grad_output + pixel.to(tl.int64)[:, None] * out_channels + n[None, :],
                    mask=valid[:, None] & n_used[None, :],
                    other=0.0,
                )
                kernel = tl.load(
                    weight + (n[:, None] * POINTS + point) * group_in + (channel - group * group_in)[None, :],
                    mask=n_used[:, None] & used[None, :],
                    other=0.0,
                )
                grad = _multiply(grad_output_tile, kernel, grad, UPCAST, PRECISION)
            if NEED_OFFSET or NEED_MASK:
                dot_above_left += tl.sum(grad * _read(images, above_left, is_above_left, channel, used), 1)
                dot_above_right += tl.sum(grad * _read(images, above_right, is_above_right, channel, used), 1)
                dot_below_left += tl.sum(grad * _read(images, below_left, is_below_left, channel, used), 1)
                dot_below_right += tl.sum(grad * _read(images, below_right, is_below_right, channel, used), 1)
            if NEED_IMAGES:
                sample_weight = (1 - below) * (1 - right) * mask_value
                _add_corner(grad_images, above_left, is_above_left, channel, used, sample_weight, grad)
                sample_weight = (1 - below) * right * mask_value
                _add_corner(grad_images, above_right, is_above_right, channel, used, sample_weight, grad)
                sample_weight = below * (1 - right) * mask_value
                _add_corner(grad_images, below_left, is_below_left, channel, used, sample_weight, grad)
                sample_weight = below * right * mask_value
                _add_corner(grad_images, below_right, is_below_right, channel, used, sample_weight, grad)

    # Gradients are contiguous, (B, channels, pixels).
    samples = tl.num_programs(1) * tl.num_programs(2)
    in_images = out_height * out_width
    if NEED_OFFSET:
        by_y = (1 - right) * (dot_below_left - dot_above_left) + right * (dot_below_right - dot_above_right)
        by_x = (1 - below) * (dot_above_right - dot_above_left) + below * (dot_below_right - dot_below_left)
        pointer = grad_offset + (image * samples + sample) * 2 * in_images + in_image
        tl.store(pointer, (mask_value * by_y).to(grad_offset.dtype.element_ty), mask=valid)
        tl.store(pointer + in_images, (mask_value * by_x).to(grad_offset.dtype.element_ty), mask=valid)
    if NEED_MASK:
        above = (1 - right) * dot_above_left + right * dot_above_right
        under = (1 - right) * dot_below_left + right * dot_below_right
        pointer = grad_mask + (image * samples + sample) * in_images + in_image
        tl.store(pointer, ((1 - below) * above + below * under).to(grad_mask.dtype.element_ty), mask=valid)


@triton.jit(do_not_specialize=SIZE_ARGUMENTS)
def backward_weight(
    images, offset, mask, grad_output, grad_weight,
    offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel,
    pixels, height, width, channels, out_channels, out_height, out_width,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    group_in, group_out, offset_group_in, segment,
    POINTS: tl.constexpr, KERNEL_WIDTH: tl.constexpr, HAS_MASK: tl.constexpr,
    UPCAST: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Compute one tile of one part of the weight's gradient; each part sums over separate tiles of pixels."""
    blocks = tl.cdiv(segment, BC)
    start = tl.program_id(0) % blocks * BC
    point = tl.program_id(0) // blocks % POINTS
    first = tl.program_id(0) // (blocks * POINTS) * segment
    group = first // group_in
    sample = first // offset_group_in * POINTS + point
    channel = first + start + tl.arange(0, BC)
    used = start + tl.arange(0, BC) < segment
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    n_used = n < group_out
    n += group * group_out

    total = tl.zeros((BN, BC), tl.float32)
    for tile in range(tl.program_id(2), tl.cdiv(pixels, BP), tl.num_programs(2)):
        pixel = tile * BP + tl.arange(0, BP)
        valid = pixel < pixels
        image, in_image, row, column = _split(pixel, out_height, out_width)
        grid_y = (row * stride_y - padding_y + point // KERNEL_WIDTH * dilation_y).to(tl.float32)
        grid_x = (column * stride_x - padding_x + point % KERNEL_WIDTH * dilation_x).to(tl.float32)
        top, left, below, right, mask_value = _locate(
            offset, mask, sample, image, in_image, valid, grid_y, grid_x, height, width,
            offset_image, offset_channel, offset_pixel, mask_image, mask_channel, mask_pixel, HAS_MASK,
        )  # fmt: skip
        columns = _columns(
            images, top, left, below, right, mask_value, image, valid, height, width, channels, channel, used
        )
        grad_output_tile = tl.load(
            grad_output + pixel.to(tl.int64)[None, :] * out_channels + n[:, None],
            mask=valid[None, :] & n_used[:, None],
            other=0.0,
        )
        total = _multiply(grad_output_tile, columns.to(grad_output_tile.dtype), total, UPCAST, PRECISION)
    parts = grad_weight + tl.program_id(2).to(tl.int64) * out_channels * POINTS * group_in
    pointer = parts + (n[:, None] * POINTS + point) * group_in + (channel - group * group_in)[None, :]
    tl.store(pointer, total, mask=n_used[:, None] & used[None, :])
