"""Networks told by their tensors, for every backbone there is."""

import pytest
import torch

from engine.converters.architecture import describe_backbone, describe_pyramid, missing_in_backbone
from models import RESNETS, FpnOptions, resnet, resnet_fpn


def body(name, **options):
    with torch.device("meta"):
        state = resnet(name, **options).state_dict()
    return {f"backbone.body.{key}": value for key, value in state.items() if not key.startswith("fc.")}


@pytest.mark.parametrize("name", RESNETS)
def test_every_backbone_is_inferred_from_its_shapes(name):
    tensors = body(name)
    assert describe_backbone(tensors) == {"name": name, "dcn_v2_stages": []}
    assert missing_in_backbone(tensors) == []


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"dcn_v2_stages": [3, 4]}, {"modulation": True, "offset_groups": 1}),
        ({"dcn_v2_stages": [2], "modulation": False}, {"modulation": False, "offset_groups": 1}),
        ({"dcn_v2_stages": [2, 4], "offset_groups": 4}, {"modulation": True, "offset_groups": 4}),
        ({"dcn_v2_stages": [4], "offset_groups": 2, "modulation": False}, {"modulation": False, "offset_groups": 2}),
        ({"dcn_v2_stages": [3], "dcn_every": 3}, {"modulation": True, "offset_groups": 1, "dcn_every": 3}),
    ],
)
def test_deformable_layers_are_inferred(options, found):
    expected = {"name": "resnet101", "dcn_v2_stages": options["dcn_v2_stages"], **found}
    assert describe_backbone(body("resnet101", **options)) == expected


def test_another_network_has_no_name():
    tensors = body("resnet50")
    tensors = {key: value for key, value in tensors.items() if ".layer3.5." not in key}
    assert describe_backbone(tensors)["name"] is None


@pytest.mark.parametrize("name", ["resnet18", "resnet50_vd", "resnext50_32x4d"])
def test_every_missing_tensor_of_a_norm_and_its_convolution_is_seen(name):
    tensors = body(name)
    for key in tensors:
        if "downsample" in key or ".conv1.0." in key or ".conv1.1." in key or ".conv1.3." in key or ".conv1.4." in key:
            continue
        rest = {other: value for other, value in tensors.items() if other != key}
        assert missing_in_backbone(rest) or key.endswith("num_batches_tracked"), key


@pytest.mark.parametrize("extra_levels", ["pool", "p6p7", "p6p7_from_c5"])
def test_pyramids_are_inferred(extra_levels):
    with torch.device("meta"):
        pyramid = resnet_fpn(resnet("resnet18"), FpnOptions(out_channels=96, extra_levels=extra_levels))
    tensors = {f"backbone.{key}": value for key, value in pyramid.state_dict().items()}
    assert describe_pyramid(tensors) == {"out_channels": 96, "extra_levels": extra_levels}
    assert describe_pyramid(body("resnet18")) == {}
