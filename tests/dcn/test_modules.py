"""`DeformConv2d`: predictions, initial values and training."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dcn import BACKENDS, DeformConv2d

# backends that compute in float64, which finite differences need
CPU_BACKENDS = [
    name for name, backend in BACKENDS.items() if backend.unavailable_reason(torch.empty(0).double()) is None
]


def layer(seed=0, **changes):
    torch.manual_seed(seed)
    options = {"in_channels": 4, "out_channels": 6, "kernel_size": (3, 2), "padding": (1, 0), **changes}
    return DeformConv2d(**options).double()


def image(channels=4, size=(7, 9)):
    torch.manual_seed(1)
    return torch.randn(2, channels, *size, dtype=torch.float64)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 2)},
        {"kernel_size": 3, "padding": 1, "stride": 2, "bias": False},
        {"kernel_size": (2, 3), "padding": (0, 2), "dilation": (1, 2)},
        {"kernel_size": 3, "stride": (1, 2), "groups": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize(("mask_scale", "share"), [(2.0, 1.0), (1.0, 0.5)])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_starts_as_the_convolution_it_was_made_from(backend, mask_scale, share, options):
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 6, **options).double()
    deformable = DeformConv2d.from_conv(conv, mask_scale=mask_scale, offset_groups=2, backend=backend)
    assert deformable.weight is conv.weight
    assert deformable.bias is conv.bias
    bias = 0 if conv.bias is None else conv.bias.view(1, -1, 1, 1)
    expected = (conv(image()) - bias) * share + bias
    torch.testing.assert_close(deformable(image()), expected, rtol=1e-12, atol=1e-12)


def test_v1_starts_as_the_convolution_whatever_the_mask_scale():
    conv = nn.Conv2d(4, 6, (3, 2)).double()
    deformable = DeformConv2d.from_conv(conv, modulation=False, mask_scale=1.0)
    torch.testing.assert_close(deformable(image()), conv(image()))


def test_from_conv_keeps_every_number():
    conv = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2), groups=2, bias=False)
    deformable = DeformConv2d.from_conv(conv, offset_groups=4)
    for name in ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias"):
        assert getattr(deformable, name) == getattr(conv, name)
    assert deformable.offset_groups == 4
    assert deformable.conv_offset.groups == 1


@pytest.mark.parametrize(("padding_mode", "padding"), [("reflect", 1), ("zeros", "same")])
def test_from_conv_raises_for_other_paddings(padding_mode, padding):
    conv = nn.Conv2d(4, 6, 3, padding=padding, padding_mode=padding_mode)
    with pytest.raises(ValueError, match=f"must be a number of zeros, got {padding_mode}"):
        DeformConv2d.from_conv(conv)


@pytest.mark.parametrize(("modulation", "channels"), [(True, 3 * 6 * 2), (False, 2 * 6 * 2)])
def test_v1_predicts_offsets_only(modulation, channels):
    module = layer(offset_groups=2, modulation=modulation)
    assert module.conv_offset.out_channels == channels
    offset, mask = module.predict(image())
    assert offset.shape == (2, 24, 7, 8)
    assert (mask is None) is not modulation
    assert mask is None or mask.shape == (2, 12, 7, 8)


def test_starts_with_no_offset_and_half_of_the_mask_scale():
    offset, mask = layer(mask_scale=1.5).predict(image())
    assert not offset.any()
    assert (mask == 0.75).all()


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_keys_are_those_of_mmcv(bias):
    keys = {"weight", "conv_offset.weight", "conv_offset.bias"} | ({"bias"} if bias else set())
    assert set(layer(bias=bias).state_dict()) == keys


def test_weight_is_initialised_as_that_of_a_convolution():
    conv, deformable = nn.Conv2d(4, 6, (3, 2)), DeformConv2d(4, 6, (3, 2), bias=True)
    for module in (conv, deformable):
        torch.manual_seed(0)
        module.reset_parameters()
    assert torch.equal(deformable.weight, conv.weight)
    assert torch.equal(deformable.bias, conv.bias)


@pytest.mark.parametrize("modulation", [True, False])
@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_conv_offset_learns_through_the_bilinear_weights(backend, modulation):
    """Check that the convolution that predicts the offsets is trained.

    After one step away from zero, where whole offsets make the derivative one-sided, the gradient of its weight is
    not zero and equals a finite difference of the loss.
    """
    module = layer(backend=backend, modulation=modulation, offset_groups=2)
    x, target = image(), torch.randn(2, 6, 7, 8, dtype=torch.float64)

    def loss():
        return F.mse_loss(module(x), target)

    loss().backward()
    assert module.conv_offset.weight.grad.abs().max() > 0
    nn.init.uniform_(module.conv_offset.bias, 0.2, 0.4)  # keeps the locations away from whole pixels
    torch.optim.SGD(module.conv_offset.parameters(), lr=0.01).step()

    module.zero_grad()
    loss().backward()
    weight = module.conv_offset.weight
    offset_part = weight.grad[: module.offset_channels]
    assert (offset_part.flatten(1).norm(dim=1) > 0).all()

    torch.manual_seed(2)
    direction = torch.zeros_like(weight)
    direction[: module.offset_channels] = torch.randn_like(offset_part)  # the path through the locations only
    step = 1e-6
    with torch.no_grad():
        weight += step * direction
        above = loss()
        weight -= 2 * step * direction
        below = loss()
    torch.testing.assert_close((weight.grad * direction).sum(), (above - below) / (2 * step), rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("backend", CPU_BACKENDS)
def test_training_the_offsets_alone_lowers_the_loss(backend):
    module = layer(backend=backend, in_channels=2, out_channels=2, kernel_size=(3, 1), padding=(1, 0))
    x = F.interpolate(image(2, (3, 4)), (9, 12), mode="bicubic")
    with torch.no_grad():
        target = F.conv2d(x.roll((1, -1), (2, 3)), module.weight, padding=(1, 0))
    optimizer = torch.optim.Adam(module.conv_offset.parameters(), lr=0.05)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(module(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_autocast_keeps_predictions_in_float32():
    module, x = layer().float(), image().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        offset, mask = module.predict(x)
        half, full = module(x.bfloat16()), module(x)
    assert offset.dtype == mask.dtype == torch.float32
    # as nn.Conv2d: a float32 input, for example from a batch norm, is also cast
    assert half.dtype == full.dtype == torch.bfloat16
    assert torch.equal(half, full)
    assert module(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 3}, "`groups` must divide in_channels = 4, got 3"),
        ({"groups": 4}, "`groups` must divide out_channels = 6, got 4"),
        ({"offset_groups": 3}, "`offset_groups` must divide in_channels = 4, got 3"),
        ({"offset_groups": 0}, "`offset_groups` must divide in_channels = 4, got 0"),
        ({"mask_scale": 0.0}, "`mask_scale` must be a positive number, got 0.0"),
        ({"mask_scale": float("nan")}, "`mask_scale` must be a positive number, got nan"),
        ({"backend": "triton!"}, "unknown DCN backend 'triton!', known: auto, torch, torchvision, triton, reference"),
    ],
)
def test_invalid_numbers_are_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        layer(**options)


def test_print_shows_what_a_convolution_shows():
    assert "4, 6, kernel_size=(3, 2), stride=(1, 1), padding=(1, 0)" in repr(layer())
