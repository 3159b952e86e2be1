"""Small detectors of every kind that can be exported, whose layers look astray and whose heads find something."""

import pytest
import torch
from torch import nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from dcn import DeformConv2d
from models import faster_rcnn, resnet, resnet_fpn

SIZES = (16, 32, 64)
SMALL = {"min_size": 64, "max_size": 96}


def _pyramid(channels: int, **options) -> nn.Module:
    network = resnet("resnet18", norm="gn", **options)
    return resnet_fpn(network, levels=[2, 3], channels=channels)  # strides 4, 8 and 16


def _faster_rcnn() -> nn.Module:
    """DCNv2. A level has 1440, 360 or 90 anchors for 80 x 96 pixels."""
    return faster_rcnn(
        _pyramid(16, dcn_v2_stages=[2]),
        4,
        **SMALL,
        anchor_sizes=SIZES,
        box_head_channels=16,
        rpn_proposals_test=150,
        score_threshold=0.272,
        detections_per_image=40,
    )


def _anchors(sizes, ratios) -> AnchorGenerator:
    return AnchorGenerator(tuple((size,) for size in sizes), (ratios,) * len(sizes))


def _one_stage(kind, channels, anchors, **options) -> nn.Module:
    """DCNv1 with 2 offset groups, for 4 classes and torchvision's class 0, which no detector of ours finds."""
    deform = {"modulation": False, "offset_groups": 2}
    pyramid = _pyramid(channels, dcn_v2_stages=[2], **deform)
    first = pyramid.body["layer2"][0]
    first.conv1 = DeformConv2d.from_conv(first.conv1, **deform)  # which has a stride of 2
    model = kind(
        pyramid,
        5,
        **SMALL,
        anchor_generator=anchors,
        topk_candidates=300,
        detections_per_img=40,
        **options,
    )
    # so that torchvision itself does not find it either
    logits = model.head.classification_head.cls_logits
    for n in range(anchors.num_anchors_per_location()[0]):
        nn.init.constant_(logits.bias[5 * n], -1e4)
    return model


MAKERS = {
    "faster_rcnn": _faster_rcnn,
    "retinanet": lambda: _one_stage(RetinaNet, 16, _anchors(SIZES, (0.5, 2.0)), score_thresh=0.7),
    "fcos": lambda: _one_stage(FCOS, 32, _anchors((4, 8, 16), (1.0,)), score_thresh=0.28),
}
# the layers that decide, and how far their weights are spread
HEADS = {
    "conv_offset": 0.05,
    "rpn.head.cls_logits": 0.2,
    "rpn.head.bbox_pred": 0.2,
    "box_predictor.cls_score": 0.4,
    "box_predictor.bbox_pred": 0.3,
    "classification_head.cls_logits": 0.15,
    "regression_head.bbox_reg": 0.1,
    "regression_head.bbox_ctrness": 0.1,
}


@pytest.fixture(scope="session")
def make_detector():
    """`make_detector(name)`: in eval mode; the same every time."""

    def make(name: str) -> nn.Module:
        torch.manual_seed(0)
        with torch.no_grad():
            model = MAKERS[name]().eval()
            for path, module in model.named_modules():
                spread = next((value for end, value in HEADS.items() if path.endswith(end)), None)
                if spread:
                    nn.init.normal_(module.weight, std=spread)
                elif "_head.conv." in path and isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight)
        return model

    return make


@pytest.fixture(scope="session")
def pictures():
    """Smooth pictures of two sizes, none of which is a multiple of 32; shorter sides of 64 are not resized."""
    random = torch.Generator().manual_seed(1)

    def draw(height: int, width: int) -> torch.Tensor:
        coarse = torch.rand(1, 3, 5, 7, generator=random)
        return nn.functional.interpolate(coarse, (height, width), mode="bilinear")[0]

    return [draw(64, 90), draw(81, 64)]
