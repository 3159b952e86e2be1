"""Small detectors of every kind that can be exported, whose layers look astray and whose heads find something."""

import copy
import functools

import pytest
import torch
from torch import nn

from dcn import DeformConv2d
from models import resnet
from tests.detectors import assemble

SIZES = (16, 32, 64)
SMALL = {"min_size": 64, "max_size": 96}


def _two_stage(detector: str, levels: list[int], *, dcn_v2_stages: tuple[int, ...] = (2,), **options) -> nn.Module:
    """DCNv2. The maps of strides 4, 8 and 16 have 1440, 360 or 90 anchors for 80 x 96 pixels."""
    return assemble(
        detector,
        resnet("resnet18", norm="gn", dcn_v2_stages=dcn_v2_stages),
        4,
        fpn={"levels": levels, "out_channels": 16},
        **SMALL,
        anchor_sizes=SIZES[-len(levels) - 1 :],
        box_head_channels=16,
        rpn_pre_nms_top_n_test=300,
        rpn_post_nms_top_n_test=300,
        detections_per_image=40,
        **options,
    )


def _one_stage(detector: str, channels: int, **options) -> nn.Module:
    """DCNv1 with 2 offset groups, and maps of strides 8 and 16."""
    deform = {"modulation": False, "offset_groups": 2}
    body = resnet("resnet18", norm="gn", dcn_v2_stages=[2], **deform)
    first = body.layer2[0]
    first.conv1 = DeformConv2d.from_conv(first.conv1, **deform)  # which has a stride of 2
    fpn = {"levels": [3], "out_channels": channels}
    return assemble(
        detector, body, 4, fpn=fpn, **deform, **SMALL, topk_candidates=80, detections_per_image=40, **options
    )


MAKERS = {
    "faster_rcnn": lambda **options: _two_stage("faster_rcnn", [2, 3], **options),
    "cascade_rcnn": lambda **options: _two_stage(
        "cascade_rcnn", [3], roi_aligned=True, anchors="torchvision", **options
    ),
    "mask_rcnn": lambda **options: _two_stage("mask_rcnn", [2, 3], mask_head_channels=8, **options),
    "cascade_mask_rcnn": lambda **options: _two_stage(
        "cascade_mask_rcnn", [3], mask_head_channels=8, roi_aligned=True, **options
    ),
    "retinanet": lambda **options: _one_stage("retinanet", 16, anchor_sizes=SIZES[:2], scales_per_octave=2, **options),
    "fcos": lambda: _one_stage("fcos", 64, num_dcn_convs=2),
}
# the layers that decide, and how far their weights are spread
HEADS = {
    "conv_offset": 0.05,
    "rpn.head.cls_logits": 0.2,
    "rpn.head.bbox_pred": 0.2,
    "box_predictor.cls_score": 0.4,
    "box_predictor.bbox_pred": 0.3,
    # of a cascade's stages: the box_deltas of later ones move boxes less
    **{f"box_predictor.{stage}.cls_score": 1.0 for stage in range(3)},
    **{f"box_predictor.{stage}.bbox_pred": 0.3 * (stage + 1) for stage in range(3)},
    "mask_predictor.mask_fcn_logits": 3.0,
    "classification_head.cls_logits": 0.15,
    "regression_head.bbox_reg": 0.1,
    "regression_head.bbox_ctrness": 0.1,
}


@pytest.fixture(scope="session")
def make_detector(choose_threshold, pictures):
    """`make_detector(name)`: in eval mode; the same every time; those of two stages take `dcn_v2_stages=()` too.

    Of the pictures, turned and moved too, some have fewer detections above its threshold than its limit, some more.
    """

    @functools.cache
    def make_once(name: str, **options) -> nn.Module:
        torch.manual_seed(0)
        with torch.no_grad():
            model = MAKERS[name](**options).eval()
            for path, module in model.named_modules():
                spread = next((value for end, value in HEADS.items() if path.endswith(end)), None)
                if spread:
                    nn.init.normal_(module.weight, std=spread)
                elif "_head.conv." in path and isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        images = [image for picture in pictures for image in (picture, picture.flip(-1), picture.roll(20, -1))]
        choose_threshold(model, images, some_at_most=35, some_at_least=45)
        return model

    return lambda name, **options: copy.deepcopy(make_once(name, **options))


@pytest.fixture(scope="session")
def choose_threshold(widest_gap):
    """`choose_threshold(model, images, some_at_most=a, some_at_least=b)`, of detections: as far as can be from all."""

    def choose(model: nn.Module, images: list[torch.Tensor], *, some_at_most: int, some_at_least: int) -> None:
        heads = getattr(model, "roi_heads", model)
        limit, heads.detections_per_img, heads.score_thresh = heads.detections_per_img, 1000, 0.01
        heads.has_mask = lambda: False  # masks take long, and change no score
        with torch.inference_mode():
            scores = [model([image])[0]["scores"] for image in images]
        low, high = min(one[some_at_most] for one in scores), max(one[some_at_least - 1] for one in scores)
        del heads.has_mask
        heads.detections_per_img = limit
        heads.score_thresh = widest_gap(torch.cat(scores), low.item(), high.item())

    return choose


@pytest.fixture(scope="session")
def pictures():
    """Smooth pictures of two sizes, none of which is a multiple of 32; shorter sides of 64 are not resized."""
    random = torch.Generator().manual_seed(1)

    def draw(height: int, width: int) -> torch.Tensor:
        coarse = torch.rand(1, 3, 5, 7, generator=random)
        return nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]

    return [draw(64, 90), draw(81, 64)]
