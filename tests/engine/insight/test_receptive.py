"""Effective receptive fields against convolutions by hand, finite differences and loops; no side effects remain."""

import copy
import math
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional

from dcn import DeformConv2d
from engine.building.model import build_model
from engine.config.loading import load_config
from engine.insight.receptive import energy_radii, eval_mode, receptive_fields, zero_offsets
from engine.insight.sampling_locations import Frame
from models.resize import Resize
from models.transform import DetectorTransform

CPU = torch.device("cpu")
DCN = "model.backbone.dcn_v2_stages=[2]"


class Body(nn.Sequential):
    return_layers = {"layer1": "p2"}  # noqa: RUF012

    def forward(self, x):
        return OrderedDict(p2=super().forward(x))


class Detector(nn.Module):
    """The parts of a detector that receptive fields need."""

    def __init__(self, *layers, min_size=64):
        super().__init__()
        self.transform = DetectorTransform(min_size, 500, [0.0] * 3, [1.0] * 3)
        self.backbone = nn.Module()
        self.backbone.body = Body(*layers)


@pytest.fixture
def detector(tiny_config):
    config = load_config(tiny_config, [DCN])
    torch.manual_seed(0)
    model, _ = build_model(config.model, config.data, 5)
    for module in model.modules():
        if isinstance(module, DeformConv2d):
            nn.init.normal_(module.conv_offset.weight, std=0.05)
            nn.init.normal_(module.conv_offset.bias, std=0.5)
    return model


@pytest.fixture
def image():
    return torch.randint(256, (3, 64, 90), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_one_convolution():
    conv = nn.Conv2d(3, 5, (3, 5), stride=2, padding=(1, 2), bias=False)
    (field,) = receptive_fields(Detector(conv), torch.zeros(3, 64, 90, dtype=torch.uint8), [(20, 31)], device=CPU)
    # the unit nearest to x = 20, y = 31 is (row 16 or 15, column 10), at twice that of the image
    row, column = (int(location) for location in field.centre)
    assert column == 20
    assert row in (30, 32)
    expected = torch.zeros(64, 90)
    expected[row - 1 : row + 2, column - 2 : column + 3] = conv.weight.detach().sum(0).norm(dim=0)
    torch.testing.assert_close(field.gradient.float(), expected)
    assert field.gradient.shape == (64, 90)  # without the padding
    assert (field.stage, field.stride) == ("layer1", 2.0)


def test_locations_of_a_resized_image():
    # a 1x1 convolution of stride 8 on twice the image: its unit sees one pixel
    conv = nn.Conv2d(3, 2, 1, stride=8)
    image = torch.zeros(3, 32, 70, dtype=torch.uint8)
    fields = receptive_fields(Detector(conv), image, [(0, 0), (33, 14), (69, 31)], device=CPU)
    for field, (row, column) in zip(fields, [(0, 0), (32, 64), (64, 136)], strict=True):
        # 31 is 62.5 of the network's input, beyond the last unit of the padded one at 56
        row = min(row, 56)
        (y, x) = (field.gradient > 0).nonzero()[0].tolist()
        assert (y, x) == (row, column)
        assert field.centre.tolist() == [(row + 0.5) / 2 - 0.5, (column + 0.5) / 2 - 0.5]
        assert list(field.radii.values()) == [0.0, 0.0]


def test_gradient_of_a_whole_network_by_differences(detector, image):
    detector.double().eval()
    (field,) = receptive_fields(detector, image, [(40.5, 30.2)], device=CPU)
    prepared, _ = detector.transform([image.double() / 255])
    row, column = ((field.frame.to_network(field.centre)) / field.stride).round().long().tolist()

    def unit(pixels):
        with torch.no_grad():
            return [*detector.backbone.body(pixels).values()][-1][0, :, row, column].sum().item()

    for y, x in [(20, 30), (31, 47), (40, 44)]:
        squares = 0.0
        for channel in range(3):
            step = torch.zeros_like(prepared.tensors)
            step[0, channel, y, x] = 1e-5
            squares += ((unit(prepared.tensors + step) - unit(prepared.tensors - step)) / 2e-5) ** 2
        assert field.gradient[y, x].item() == pytest.approx(math.sqrt(squares), rel=1e-3, abs=1e-8)


def test_a_field_in_a_letterbox():
    """An image of 40 x 90 in a square of 90: the network's input is the image, 25 rows further down."""
    conv = nn.Conv2d(3, 1, 9, padding=4, bias=False)
    nn.init.ones_(conv.weight)
    detector = Detector(conv)
    detector.transform = Resize("letterbox", (90,), 1).transform([0.0] * 3, [1.0] * 3)
    (field,) = receptive_fields(detector, torch.zeros(3, 40, 90, dtype=torch.uint8), [(70, 12)], device=CPU)
    assert field.gradient.shape == (40, 90)
    assert field.centre.tolist() == [12, 70]
    assert field.gradient.nonzero().amin(0).tolist() == [8, 66]
    assert field.gradient.nonzero().amax(0).tolist() == [16, 74]
    assert 3 < field.radii[0.5] < field.radii[0.9] < 6


@pytest.mark.parametrize("origin", [(0, 0), (5, 9)])
@pytest.mark.parametrize("size", [(12, 17), (24, 17)])
def test_radii_as_a_loop_finds_them(size, origin):
    frame = Frame((12, 17), size, (64, 64), origin)
    gradient = torch.rand(size, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    centre = torch.tensor([4.3, 9.1], dtype=torch.float64)
    radii = energy_radii(gradient, centre, frame)
    found = []
    for row in range(size[0]):
        for column in range(size[1]):
            y, x = (row + 0.5) * 12 / size[0] - 0.5, (column + 0.5) * 17 / size[1] - 0.5
            found.append((math.hypot(y - 4.3, x - 9.1), gradient[row, column].item() ** 2))
    found.sort()
    whole = sum(energy for _, energy in found)
    for share, radius in radii.items():
        within = sum(energy for distance, energy in found if distance <= radius + 1e-9)
        short = sum(energy for distance, energy in found if distance < radius - 1e-9)
        assert short < share * whole <= within + 1e-9
    assert radii[0.5] < radii[0.9]
    assert all(math.isnan(radius) for radius in energy_radii(torch.zeros(size), centre, frame).values())


def test_the_regular_grid_is_that_of_the_start(detector):
    images = torch.rand(1, 3, 64, 96)
    start = copy.deepcopy(detector)
    for module in start.modules():
        if isinstance(module, DeformConv2d):
            nn.init.zeros_(module.conv_offset.weight)
            nn.init.zeros_(module.conv_offset.bias)
    with torch.no_grad():
        before, expected = detector.backbone(images), start.backbone(images)
        with zero_offsets(detector):
            flat = detector.backbone(images)
        after = detector.backbone(images)
    for level in before:
        torch.testing.assert_close(flat[level], expected[level])
        assert torch.equal(before[level], after[level])
    assert not torch.allclose(before["p3"], flat["p3"])


def test_plain_convolutions_on_the_regular_grid():
    layer = DeformConv2d(2, 3, 3, padding=1, bias=True)
    nn.init.normal_(layer.conv_offset.weight)
    x = torch.rand(1, 2, 8, 9)
    with zero_offsets(layer):
        torch.testing.assert_close(layer(x), functional.conv2d(x, layer.weight, layer.bias, padding=1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_is_left_as_it_was(detector, image, training, frozen):
    detector.train(training).requires_grad_(not frozen)
    before = copy.deepcopy(detector.state_dict())
    state, pixels = torch.get_rng_state(), image.clone()
    with torch.no_grad():
        fields = receptive_fields(detector, image, [(40, 30), (10, 50)], device=CPU)
        again = receptive_fields(detector, image, [(10, 50)], device=CPU)
    assert torch.equal(fields[1].gradient, again[0].gradient)
    assert fields[0].gradient.sum() > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(image, pixels)
    assert detector.training == training
    for name, parameter in detector.named_parameters():
        assert parameter.grad is None, name
        assert parameter.requires_grad != frozen, name
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name]), name
    with torch.inference_mode():
        assert torch.equal(receptive_fields(detector, image, [(10, 50)], device=CPU)[0].gradient, fields[1].gradient)


def test_the_mode_is_restored(detector):
    detector.train()
    with eval_mode(detector):
        assert not detector.training
    assert detector.training
    with pytest.raises(RuntimeError):
        receptive_fields(detector, torch.zeros(5, 64, 64, dtype=torch.uint8), [(1, 1)], device=CPU)
    assert detector.training
