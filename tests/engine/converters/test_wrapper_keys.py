"""Layers of others in torchvision's networks, against their arithmetic written out."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import deform_conv2d

from dcn import DeformConv2d
from engine.converters.conversion import convert_backbone
from engine.converters.recognition import detect_source
from engine.converters.wrapper_keys import interleaved
from models import resnet


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def seed_layer(x, p_conv, m_conv, weight):
    """4uiiurz1's: rows and columns of places are predicted apart, each corner of one is clamped into the padding."""
    _, channels, height, width = x.shape
    offset, mask = F.conv2d(x, *p_conv, padding=1)[0], m_conv and F.conv2d(x, *m_conv, padding=1).sigmoid()[0]
    padded = F.pad(x, (1, 1, 1, 1))[0]
    out = torch.zeros(1, len(weight), height, width, dtype=x.dtype)
    for i in range(height):
        for j in range(width):
            for tap in range(9):
                row = min(max(i + 1 + tap // 3 - 1 + offset[tap, i, j].item(), 0), height + 1)
                column = min(max(j + 1 + tap % 3 - 1 + offset[9 + tap, i, j].item(), 0), width + 1)
                top, left = int(row), int(column)
                sample = torch.zeros(channels, dtype=x.dtype)
                for y in (top, top + 1):
                    for z in (left, left + 1):
                        share = (1 - abs(row - y)) * (1 - abs(column - z))
                        sample += share * padded[:, min(y, height + 1), min(z, width + 1)]
                value = weight[:, :, tap // 3, tap % 3] @ sample
                out[0, :, i, j] += value if mask is None else mask[tap, i, j] * value
    return out


def with_layers(**tensors):
    """A ResNet-18 whose layer4.1.conv2 is another's layer."""
    state = {key: value.double() for key, value in resnet("resnet18", norm="bn").state_dict().items()}
    del state["layer4.1.conv2.weight"]
    return state | {f"layer4.1.conv2.{key.replace('__', '.')}": value for key, value in tensors.items()}


def converted_layer(state, title, mask_scale):
    source = detect_source(state)
    assert source.title == title
    converted = convert_backbone(state, source, input_format="rgb_std", eps=1e-5, mask_scale=mask_scale)
    found = converted.found
    assert (found["dcn_v2_stages"], found["dcn_every"]) == ([4], 2)
    layer = DeformConv2d(512, 512, padding=1, mask_scale=mask_scale, modulation=found["modulation"]).double()
    prefix = "layer4.1.conv2."
    layer.load_state_dict(
        {key.removeprefix(prefix): value for key, value in converted.tensors.items() if key.startswith(prefix)}
    )
    return layer, converted.tensors


@pytest.mark.parametrize("mask_scale", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("modulated", [True, False])
def test_the_seed(modulated, mask_scale):
    tensors = {
        "conv__weight": draw(512, 512, 3, 3, seed=1),
        "p_conv__weight": 0.02 * draw(18, 512, 3, 3, seed=2),
        "p_conv__bias": draw(18, seed=3),
        "m_conv__weight": 0.02 * draw(9, 512, 3, 3, seed=4),
        "m_conv__bias": draw(9, seed=5),
    }
    if not modulated:
        tensors = {key: value for key, value in tensors.items() if not key.startswith("m_conv")}
    title = "4uiiurz1/pytorch-deform-conv-v2"
    layer, _ = converted_layer(with_layers(**tensors), title, mask_scale)
    x = draw(1, 512, 4, 5, seed=6)
    m_conv = (tensors["m_conv__weight"], tensors["m_conv__bias"]) if modulated else None
    theirs = seed_layer(x, (tensors["p_conv__weight"], tensors["p_conv__bias"]), m_conv, tensors["conv__weight"])
    torch.testing.assert_close(layer(x), theirs, rtol=1e-9, atol=1e-9)


def test_rows_then_columns_become_turns():
    assert interleaved(torch.arange(18))[:6].tolist() == [0, 9, 1, 10, 2, 11]


@pytest.mark.parametrize("mask_scale", [1.0, 2.0])
def test_developer0hye(mask_scale):
    """Offsets as torchvision has them, masks of twice the sigmoid, and here a bias before the norm."""
    tensors = {
        "regular_conv__weight": draw(512, 512, 3, 3, seed=1),
        "regular_conv__bias": draw(512, seed=7),
        "offset_conv__weight": 0.02 * draw(18, 512, 3, 3, seed=2),
        "offset_conv__bias": draw(18, seed=3),
        "modulator_conv__weight": 0.02 * draw(9, 512, 3, 3, seed=4),
        "modulator_conv__bias": draw(9, seed=5),
    }
    state = with_layers(**tensors)
    state["layer4.1.bn2.running_mean"] = draw(512, seed=8)
    title = "developer0hye/PyTorch-Deformable-Convolution-v2"
    layer, ours = converted_layer(state, title, mask_scale)
    x = draw(1, 512, 4, 5, seed=6)
    offset = F.conv2d(x, tensors["offset_conv__weight"], tensors["offset_conv__bias"], padding=1)
    mask = 2 * F.conv2d(x, tensors["modulator_conv__weight"], tensors["modulator_conv__bias"], padding=1).sigmoid()
    theirs = deform_conv2d(
        x, offset, tensors["regular_conv__weight"], tensors["regular_conv__bias"], padding=1, mask=mask
    )
    norm = "layer4.1.bn2.running_mean"
    torch.testing.assert_close(
        layer(x) - ours[norm].view(-1, 1, 1), theirs - state[norm].view(-1, 1, 1), rtol=1e-9, atol=1e-9
    )


def test_yolact():
    """Stages from 0, offsets and masks by one convolution, a bias before the norm; its head is left out."""
    plain = resnet("resnet50", dcn_v2_stages=(3,), dcn_every=3, norm="bn").state_dict()
    generator = torch.Generator().manual_seed(0)
    plain = {key: torch.rand(value.shape, generator=generator) for key, value in plain.items() if "fc." not in key}
    theirs = {}
    for key, value in plain.items():
        if key.startswith("layer"):
            key = f"layers.{int(key[5]) - 1}{key[6:]}".replace("conv_offset", "conv_offset_mask")
        theirs[f"backbone.{key}"] = value
    bias = torch.rand(256, generator=generator)
    theirs |= {"backbone.layers.2.2.conv2.bias": bias, "fpn.lat_layers.0.weight": torch.rand(3)}
    source = detect_source(theirs)
    assert source.title == "YOLACT"
    converted = convert_backbone(theirs, source, input_format="rgb_std", eps=1e-5, mask_scale=1.0)
    assert (converted.found["name"], converted.found["dcn_v2_stages"], converted.found["dcn_every"]) == (
        "resnet50",
        [3],
        3,
    )
    wanted = {key: value for key, value in plain.items() if not key.endswith("num_batches_tracked")}
    wanted["layer3.2.bn2.running_mean"] = wanted["layer3.2.bn2.running_mean"] - bias
    assert {*converted.tensors} == {*wanted}
    for key, value in wanted.items():
        torch.testing.assert_close(converted.tensors[key], value, rtol=0, atol=1e-7)
