"""detectron2's names beside those of its Faster R-CNN, which is in test_conversion.py."""

import pytest
import torch

from engine.converters.conversion import convert_backbone, convert_detector
from engine.converters.detectron2_keys import DETECTRON2
from engine.converters.mapping import map_tensors

NAMES = {
    "stem.conv1.weight": "backbone.body.conv1.weight",  # of the zoo's ImageNet networks
    "stem.conv1.norm.running_var": "backbone.body.bn1.running_var",
    "backbone.bottom_up.res5.2.conv3.norm.bias": "backbone.body.layer4.2.bn3.bias",
    "backbone.res3.0.shortcut.weight": "backbone.body.layer2.0.downsample.0.weight",
    "backbone.fpn_lateral3.weight": "backbone.fpn.inner_blocks.0.0.weight",
    "backbone.fpn_lateral5.bias": "backbone.fpn.inner_blocks.2.0.bias",
    "backbone.fpn_output4.weight": "backbone.fpn.layer_blocks.1.0.weight",
    "backbone.top_block.p7.bias": "backbone.fpn.extra_blocks.p7.bias",
    "head.cls_subnet.6.weight": "head.classification_head.conv.3.0.weight",
    "head.bbox_subnet.2.bias": "head.regression_head.conv.1.0.bias",
    "head.cls_score.weight": "head.classification_head.cls_logits.weight",
    "head.bbox_pred.bias": "head.regression_head.bbox_reg.bias",
    "roi_heads.box_head.1.fc2.weight": "roi_heads.box_head.1.fc7.weight",
    "roi_heads.box_predictor.2.cls_score.bias": "roi_heads.box_predictor.2.cls_score.bias",
    "roi_heads.mask_head.mask_fcn4.weight": "roi_heads.mask_head.3.0.weight",
    "roi_heads.mask_head.deconv.bias": "roi_heads.mask_predictor.conv5_mask.bias",
    "roi_heads.mask_head.predictor.weight": "roi_heads.mask_predictor.mask_fcn_logits.weight",
    "stem.fc.weight": None,
    "pixel_mean": None,
    "proposal_generator.anchor_generator.cell_anchors.0": None,
    "anchor_generator.cell_anchors.4": None,
}


def test_names():
    mapped = map_tensors({name: torch.zeros(1) for name in NAMES}, DETECTRON2)
    assert {entry.source: entry.ours for entry in mapped.entries} == NAMES
    assert all(entry.why for entry in mapped.entries if entry.ours is None)


def test_a_detector_without_a_pyramid_raises(peer):
    state = peer.backbone(peer.names["detectron2"])
    state = {key.replace("backbone.bottom_up.res5", "roi_heads.res5"): value for key, value in state.items()}
    options = {"input_format": "bgr", "eps": 1e-5, "mask_scale": 1.0}
    with pytest.raises(ValueError, match="C4 models without a feature pyramid"):
        convert_backbone(state, DETECTRON2, **options)


def test_its_fcos_raises(peer):
    state = peer.backbone(peer.names["detectron2"]) | {"head.ctrness.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"contains head\.ctrness\.weight: FCOS"):
        convert_detector(state, DETECTRON2, {}, input_format="bgr", eps=1e-5, mask_scale=1.0, kept=[])


def test_a_backbone_alone_is_no_detector(peer):
    state = peer.backbone(peer.names["detectron2"])
    with pytest.raises(ValueError, match="not contain a known classifier"):
        convert_detector(state, DETECTRON2, {}, input_format="bgr", eps=1e-5, mask_scale=1.0, kept=[])
