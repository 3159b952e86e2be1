"""Mask R-CNN, https://arxiv.org/abs/1703.06870: Faster R-CNN with a head for the pixels of each object."""

from typing import Any

from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

from .faster_rcnn import faster_rcnn
from .fpn import level_names
from .roi_pool import roi_pool
from .two_stage import TwoStageDetector

MASK_ROI_SIZE = 14
MASK_CONVS = 4


def mask_rcnn(
    backbone: BackboneWithFPN,
    num_classes: int,
    *,
    mask_head_channels: int = 256,
    roi_canonical_size: int = 224,
    roi_aligned: bool = False,
    **options: Any,
) -> TwoStageDetector:
    """Build Mask R-CNN on a pyramid; the defaults are the common COCO recipe.

    It is `faster_rcnn` with masks: targets hold `masks`, uint8 `(n, H, W)`, beside their boxes, the losses
    `loss_mask`, and detections `masks`, `(n, 1, H, W)` with probabilities in the image given. The loss is a mean over
    images of the mean over the positive samples of each, see `ImagewiseRoIHeads`.

    Args:
        backbone: from `resnet_fpn`.
        num_classes: foreground classes, without background.
        mask_head_channels: width of the mask head's convolutions.
        roi_canonical_size: see `faster_rcnn`; of boxes and masks.
        roi_aligned: see `faster_rcnn`; of boxes and masks.
        options: the other ones of `faster_rcnn`.

    Raises:
        ValueError: as `faster_rcnn`.
    """
    pooling = {"roi_canonical_size": roi_canonical_size, "roi_aligned": roi_aligned}
    detector = faster_rcnn(backbone, num_classes, **pooling, **options)
    add_mask_head(detector, num_classes, channels=mask_head_channels, **pooling)
    return detector


def add_mask_head(
    detector: TwoStageDetector, num_classes: int, *, channels: int, roi_canonical_size: int, roi_aligned: bool
) -> None:
    """Give the heads of a detector torchvision's mask head; see `mask_rcnn`."""
    heads, backbone = detector.roi_heads, detector.backbone
    heads.mask_roi_pool = roi_pool(
        level_names(backbone), MASK_ROI_SIZE, canonical_size=roi_canonical_size, aligned=roi_aligned
    )
    heads.mask_head = MaskRCNNHeads(backbone.out_channels, [channels] * MASK_CONVS, dilation=1)
    heads.mask_predictor = MaskRCNNPredictor(channels, channels, num_classes + 1)  # the background is class 0
