"""mmdetection's names beside those of its Faster R-CNN, which is in test_conversion.py."""

import pytest
import torch

from engine.converters.conversion import convert_backbone, convert_detector
from engine.converters.mapping import map_tensors
from engine.converters.mmdetection_keys import MMDETECTION

NAMES = {
    "backbone.layer2.3.conv2_offset.weight": "backbone.body.layer2.3.conv2.conv_offset.weight",  # of mmdetection 1
    "backbone.layer2.3.conv2.conv_offset.bias": "backbone.body.layer2.3.conv2.conv_offset.bias",
    "backbone.stem.0.weight": "backbone.body.conv1.0.weight",
    "backbone.stem.4.running_var": "backbone.body.conv1.4.running_var",
    "backbone.stem.6.weight": "backbone.body.conv1.6.weight",
    "backbone.stem.7.running_mean": "backbone.body.bn1.running_mean",
    "backbone.layer2.0.downsample.1.weight": "backbone.body.layer2.0.downsample.1.weight",
    # three levels, and P6 and P7 on top
    "neck.lateral_convs.0.conv.weight": "backbone.fpn.inner_blocks.0.0.weight",
    "neck.lateral_convs.1.conv.weight": "backbone.fpn.inner_blocks.1.0.weight",
    "neck.lateral_convs.2.conv.weight": "backbone.fpn.inner_blocks.2.0.weight",
    "neck.fpn_convs.2.conv.bias": "backbone.fpn.layer_blocks.2.0.bias",
    "neck.fpn_convs.3.conv.bias": "backbone.fpn.extra_blocks.p6.bias",
    "neck.fpn_convs.4.conv.weight": "backbone.fpn.extra_blocks.p7.weight",
    "bbox_head.cls_convs.3.conv.weight": "head.classification_head.conv.3.0.weight",
    "bbox_head.reg_convs.0.conv.bias": "head.regression_head.conv.0.0.bias",
    "bbox_head.retina_cls.weight": "head.classification_head.cls_logits.weight",
    "bbox_head.retina_reg.bias": "head.regression_head.bbox_reg.bias",
    "roi_head.bbox_head.2.shared_fcs.1.weight": "roi_heads.box_head.2.fc7.weight",
    "roi_head.bbox_head.0.fc_cls.bias": "roi_heads.box_predictor.0.cls_score.bias",
    "roi_head.bbox_head.1.fc_reg.bias": "roi_heads.box_predictor.1.bbox_pred.bias",
    "roi_head.mask_head.convs.3.conv.weight": "roi_heads.mask_head.3.0.weight",
    "roi_head.mask_head.upsample.bias": "roi_heads.mask_predictor.conv5_mask.bias",
    "roi_head.mask_head.conv_logits.weight": "roi_heads.mask_predictor.mask_fcn_logits.weight",
}


def test_names():
    mapped = map_tensors({name: torch.zeros(1) for name in NAMES}, MMDETECTION)
    assert {entry.source: entry.ours for entry in mapped.entries} == NAMES


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bbox_head.scales.0.scale", "learns a scale per level"),
        ("bbox_head.conv_centerness.weight", "learns a scale per level"),
        ("bbox_head.fc_cls.weight", r"upgrade_model_version\.py"),
        ("roi_head.mask_head.0.convs.0.conv.weight", "averages the mask heads of all stages"),
    ],
)
def test_detectors_of_another_kind_raise_but_not_their_backbones(name, reason, peer):
    state = peer.backbone(peer.names["mmdetection"]) | {name: torch.zeros(3)}
    options = {"input_format": "rgb_std", "eps": 1e-5, "mask_scale": 1.0}
    with pytest.raises(ValueError, match=f"contains {name}: .*{reason}.*without --config"):
        convert_detector(state, MMDETECTION, {}, kept=[], **options)
    assert convert_backbone(state, MMDETECTION, **options).found["name"] == "resnet50"


def test_two_tensors_for_one_place_raise(peer):
    state = peer.backbone(peer.names["mmdetection"])
    state["backbone.layer2.0.conv2_offset.weight"] = state["backbone.layer2.0.conv2.conv_offset.weight"]
    with pytest.raises(ValueError, match="both map to"):
        convert_backbone(state, MMDETECTION, input_format="rgb_std", eps=1e-5, mask_scale=1.0)
