"""torchvision's detectors, of today and of the first years."""

import re

import pytest
import torch
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork

from engine.converters.conversion import classes_of, convert_backbone, convert_detector
from engine.converters.mapping import map_tensors
from engine.converters.torchvision_keys import TORCHVISION
from models import resnet
from tests.detectors import assemble

NAMES = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by category id
IDS = [index for index, name in enumerate(NAMES) if index and name != "N/A"]


@pytest.fixture(scope="module")
def theirs():
    """A detector of 91 outputs that, as a trained one, never names the ids that COCO leaves out."""
    torch.manual_seed(0)
    sizes = {"min_size": 96, "max_size": 160, "box_score_thresh": 0.0}
    model = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91, **sizes).eval()
    gaps = [index for index, name in enumerate(NAMES) if name == "N/A"]
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        model.roi_heads.box_predictor.cls_score.weight.mul_(20)
        model.roi_heads.box_predictor.bbox_pred.weight.mul_(20)
        model.roi_heads.box_predictor.cls_score.weight[gaps] = 0
        model.roi_heads.box_predictor.cls_score.bias[gaps] = -1e4
    return model.double()


def test_the_whole_detector_finds_the_same(theirs):
    options = {
        "min_size": 96,
        "max_size": 160,
        "score_threshold": 0.0,
        "rpn_pre_nms_top_n_test": 1000,
        "rpn_post_nms_top_n_test": 1000,
        "anchors": "torchvision",
    }
    ours = assemble("faster_rcnn", resnet("resnet50"), 80, **options).double().eval()
    state = theirs.state_dict()
    assert len(IDS) == 80
    assert classes_of(state, TORCHVISION) == 90
    converted = convert_detector(
        state,
        TORCHVISION,
        ours.state_dict(),
        input_format="rgb_std",
        eps=1e-5,
        mask_scale=2.0,
        kept=[index - 1 for index in IDS],
    )
    ours.load_state_dict(converted.tensors)
    image = torch.rand(3, 90, 130, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (our,), (their,) = ours([image]), theirs([image])
    assert len(their["boxes"]) > 20
    torch.testing.assert_close(our["scores"], their["scores"], rtol=1e-5, atol=1e-6)
    assert [IDS[label - 1] for label in our["labels"]] == their["labels"].tolist()
    torch.testing.assert_close(our["boxes"], their["boxes"], rtol=0, atol=1e-3)
    assert len({*their["labels"].tolist()}) > 5


def test_an_epsilon_of_0_is_folded(theirs, image):
    """torchvision's own detectors on COCO have batch norms without an epsilon."""
    state = theirs.state_dict()
    state["backbone.body.bn1.running_var"] = torch.full((64,), 1e-5, dtype=torch.float64)
    network = resnet("resnet50").double()
    converted = convert_backbone(state, TORCHVISION, input_format="rgb_std", eps=0.0, mask_scale=2.0)
    network.load_state_dict(converted.tensors, strict=False)
    ours = network.bn1(network.conv1(image))
    weight, bias, mean = (
        state[f"backbone.body.bn1.{part}"].view(-1, 1, 1) for part in ("weight", "bias", "running_mean")
    )
    x = torch.nn.functional.conv2d(image, state["backbone.body.conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(ours, (x - mean) / 1e-5**0.5 * weight + bias, rtol=1e-9, atol=1e-9)


def test_names_of_the_first_detectors(theirs):
    state = theirs.state_dict()
    old = {
        re.sub(r"(_blocks\.\d)\.0\.", r"\1.", key).replace("rpn.head.conv.0.0.", "rpn.head.conv."): value
        for key, value in state.items()
        if not key.endswith("num_batches_tracked")  # they were frozen
    }
    assert "rpn.head.conv.weight" in old
    assert "backbone.fpn.layer_blocks.3.weight" in old
    mapped = map_tensors(old, TORCHVISION)
    assert not mapped.unknown
    assert {*mapped.tensors} == {key for key in state if not key.endswith("num_batches_tracked")}
    assert all(torch.equal(mapped.tensors[key], state[key]) for key in mapped.tensors)


@pytest.mark.parametrize(
    ("prefix", "module", "old"),
    [
        (
            "head.",
            RetinaNetHead(32, 9, 5),
            lambda key: re.sub(r"conv\.(\d)\.0", lambda m: f"conv.{2 * int(m[1])}", key),
        ),
        ("roi_heads.mask_head.", MaskRCNNHeads(8, (8, 8, 8, 8), 1), lambda key: f"mask_fcn{int(key[0]) + 1}{key[3:]}"),
        ("rpn.head.", RPNHead(8, 3), lambda key: key.replace("conv.0.0", "conv")),
        ("backbone.fpn.", FeaturePyramidNetwork([4, 8], 8), lambda key: key.replace(".0.weight", ".weight")),
    ],
)
def test_torchvision_reads_the_old_names_alike(prefix, module, old):
    """torchvision renames them itself where a file has no version."""
    state = module.state_dict()
    renamed = {old(key): value for key, value in state.items()}
    assert {*renamed} != {*state}
    module.load_state_dict(dict(renamed))  # a plain dict has no version: torchvision must know these names
    mapped = map_tensors({prefix + key: value for key, value in renamed.items()}, TORCHVISION)
    assert {key: id(value) for key, value in mapped.tensors.items()} == {
        prefix + key: id(value) for key, value in state.items()
    }


@pytest.mark.parametrize("head", [RetinaNetHead(32, 9, 5), FCOSHead(32, 1, 5)])
def test_the_names_of_today_stay(head):
    state = {f"head.{key}": value for key, value in head.state_dict().items()}
    mapped = map_tensors(state, TORCHVISION)
    assert [*mapped.tensors] == [*state]


def test_a_classifier_is_a_backbone():
    state = resnet18().state_dict()
    converted = convert_backbone(state, TORCHVISION, input_format="rgb_std", eps=1e-5, mask_scale=2.0)
    network = resnet("resnet18")
    assert {*converted.tensors} == {key for key in network.state_dict() if not key.startswith("fc.")}
    assert all(torch.equal(value, state[key]) for key, value in converted.tensors.items())
    assert converted.found == {"name": "resnet18", "dcn_v2_stages": []}
    dropped = {entry.source: entry.why for entry in converted.entries if entry.status == "dropped"}
    assert dropped["fc.weight"] == "ImageNet classifier"
    assert dropped["bn1.num_batches_tracked"] == "batch norm counter"
