"""The reference compared with the formula, written as loops over every number."""

import itertools
import math

import pytest
import torch

from dcn import deform_conv2d, reference

# groups, offset groups, kernel, stride, padding, dilation, mask and bias; all axes have different sizes
CASES = {
    "plain": (1, 1, (3, 2), (1, 1), (1, 0), (1, 1), True, True),
    "strided": (1, 1, (2, 3), (2, 1), (0, 2), (1, 1), True, False),
    "dilated": (1, 1, (3, 2), (1, 2), (2, 1), (2, 1), False, True),
    "grouped": (2, 1, (1, 3), (1, 2), (1, 0), (1, 1), True, True),
    "offset groups": (1, 2, (3, 1), (1, 1), (0, 1), (1, 2), True, True),
    "both": (4, 2, (2, 3), (1, 2), (1, 1), (1, 1), False, False),
}


def pixel(image, row, column):
    height, width = len(image), len(image[0])
    return image[row][column] if 0 <= row < height and 0 <= column < width else 0.0


def interpolate(image, y, x):
    """Weight every pixel around (y, x) with (1 - distance in y) * (1 - distance in x)."""
    rows, columns = (range(math.floor(place), math.floor(place) + 2) for place in (y, x))
    return sum(
        (1 - abs(y - row)) * (1 - abs(x - column)) * pixel(image, row, column)
        for row, column in itertools.product(rows, columns)
    )


def evaluate(input, offset, weight, bias, stride, padding, dilation, mask):
    """y(p) = sum over k of w_k * x(p + p_k + dp_k) * dm_k, one output number after the other."""
    batch, channels, _, _ = input.shape
    out_channels, group_channels, kh, kw = weight.shape
    out_group, offset_group = out_channels * group_channels // channels, channels * 2 * kh * kw // offset.shape[1]
    images = input.tolist()
    output = torch.zeros(batch, out_channels, *offset.shape[2:], dtype=torch.float64)
    for b, n, oy, ox in itertools.product(*map(range, output.shape)):
        total = 0.0 if bias is None else bias[n].item()
        for c, ky, kx in itertools.product(range(group_channels), range(kh), range(kw)):
            channel = n // out_group * group_channels + c
            point = (channel // offset_group * kh + ky) * kw + kx
            dy, dx = offset[b, 2 * point, oy, ox].item(), offset[b, 2 * point + 1, oy, ox].item()
            y = oy * stride[0] - padding[0] + ky * dilation[0] + dy
            x = ox * stride[1] - padding[1] + kx * dilation[1] + dx
            factor = 1.0 if mask is None else mask[b, point, oy, ox].item()
            total += weight[n, c, ky, kx].item() * factor * interpolate(images[b][channel], y, x)
        output[b, n, oy, ox] = total
    return output


def make(case, size=(5, 7), batch=2, channels=4, spread=1.5):
    groups, offset_groups, (kh, kw), stride, padding, dilation, has_mask, has_bias = CASES[case]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    out = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(size, (kh, kw), stride, padding, dilation, strict=True)
    ]
    points = offset_groups * kh * kw
    return {
        "input": draw(batch, channels, *size),
        "offset": draw(batch, 2 * points, *out) * spread,
        "weight": draw(4, channels // groups, kh, kw),
        "bias": draw(4) if has_bias else None,
        "mask": draw(batch, points, *out).sigmoid() if has_mask else None,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
    }


@pytest.mark.parametrize("case", CASES)
def test_equals_the_formula_written_as_loops(case):
    arguments = make(case)
    torch.testing.assert_close(reference.deform_conv2d(**arguments), evaluate(**arguments))


@pytest.mark.parametrize("case", ["plain", "both"])
def test_gradients_equal_finite_differences(case):
    arguments = make(case, size=(3, 4), batch=1)
    names = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
    # At whole pixels the derivative has two sides, and a finite difference is their mean.
    arguments["offset"] = arguments["offset"].floor() + 0.2 + 0.6 * torch.rand_like(arguments["offset"])
    tensors = [arguments[name].requires_grad_() for name in names]

    def run(*values):
        return reference.deform_conv2d(**{**arguments, **dict(zip(names, values, strict=True))})

    assert torch.autograd.gradcheck(run, tensors)


def test_is_differentiable_twice():
    arguments = make("plain", size=(3, 2), batch=1)
    offset = arguments["offset"].floor() + 0.2 + 0.6 * torch.rand_like(arguments["offset"])

    def run(input, offset):
        return deform_conv2d(**{**arguments, "input": input, "offset": offset}, backend="reference")

    tensors = [arguments["input"].requires_grad_(), offset.requires_grad_()]
    assert torch.autograd.gradgradcheck(run, tensors)
