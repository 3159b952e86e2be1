"""Weights of a first convolution, spread over another number of channels."""

import pytest
import torch
from torch.nn.functional import conv2d

from models import build_detector, load_backbone_weights, resnet
from models.weights import spread_channels


@pytest.mark.parametrize("inputs", [1, 3, 4])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7, 9])
def test_equal_channels_have_the_same_response(inputs, channels):
    weight = torch.randn(5, inputs, 3, 3, dtype=torch.float64)
    grey = torch.randn(2, 1, 8, 9, dtype=torch.float64)
    spread = spread_channels(weight, channels)
    assert spread.shape == (5, channels, 3, 3)
    expected = conv2d(grey.expand(-1, inputs, -1, -1), weight)
    assert torch.allclose(conv2d(grey.expand(-1, channels, -1, -1), spread), expected)


def test_colours_are_repeated_in_order():
    red, green, blue = weight = torch.tensor([[[[1.0]], [[2.0]], [[4.0]]]]).unbind(1)
    weight = torch.stack(weight, 1)
    assert spread_channels(weight, 4).flatten().tolist() == [0.5, 2, 4, 0.5]
    assert spread_channels(weight, 6).flatten().tolist() == [0.5, 1, 2, 0.5, 1, 2]
    assert spread_channels(weight, 1).flatten().tolist() == [(red + green + blue).item()]
    assert torch.equal(spread_channels(weight, 3), weight)


@pytest.mark.parametrize("name", ["resnet18", "resnet18_vd"])
def test_pretrained_weights_of_rgb(tmp_path, name):
    torch.save(resnet(name).state_dict(), tmp_path / "rgb.pth")
    body = resnet(name, in_channels=5)
    report = load_backbone_weights(body, name, str(tmp_path / "rgb.pth"))
    assert report.spread_from == 3
    assert load_backbone_weights(resnet(name), name, str(tmp_path / "rgb.pth")).spread_from is None
    key = "conv1.0.weight" if name.endswith("vd") else "conv1.weight"
    own, theirs = body.state_dict()[key], torch.load(tmp_path / "rgb.pth")[key]
    assert torch.equal(own, spread_channels(theirs, 5))
    body(torch.rand(1, 5, 64, 64)).sum().backward()
    weight = body.get_parameter(key)
    assert (weight.grad.abs().sum((0, 2, 3)) > 0).all()


def test_normalisation_must_be_given():
    with pytest.raises(ValueError, match=r"data\.mean and data\.std must be set for data\.channels 2"):
        build_detector({"data": {"channels": 2}, "model": {"backbone": {"name": "resnet18"}}}, 1)
    with pytest.raises(ValueError, match=r"data\.std must have a value for each of 2 channels, got 3"):
        build_detector({"data": {"channels": 2, "mean": [0, 0], "std": [1, 1, 1]}}, 1, body=resnet("resnet18"))
    with pytest.raises(ValueError, match="`in_channels` must be at least 1, got 0"):
        resnet("resnet18", in_channels=0)
