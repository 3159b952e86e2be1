"""Faster R-CNN, https://arxiv.org/abs/1506.01497, from torchvision's parts."""

from collections.abc import Sequence

from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from .fpn import check_anchor_sizes, level_names
from .roi_heads import ImagewiseRoIHeads
from .roi_pool import roi_pool
from .two_stage import ImagewiseRPN, TwoStageDetector

ROI_SIZE = 7
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def faster_rcnn(
    backbone: BackboneWithFPN,
    num_classes: int,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    roi_canonical_size: int = 224,
    roi_aligned: bool = False,
    box_head_channels: int = 1024,
    rpn_proposals_train: int = 2000,
    rpn_proposals_test: int = 1000,
    rpn_batch_size: int = 256,
    box_batch_size: int = 512,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 100,
) -> TwoStageDetector:
    """Build Faster R-CNN on a pyramid; the defaults are the common COCO recipe.

    It follows torchvision's contract: in train mode `model(images, targets)` gives a dict of losses, in eval mode
    `model(images)` a list of dicts with `boxes` (xyxy pixels of the image given), `labels` and `scores`. Images are
    `(3, H, W)` in [0, 1]; labels count from 1, since 0 is the background. In training, images are taken as they come,
    and targets may hold a "seed", see `TwoStageDetector`.

    Args:
        backbone: from `resnet_fpn`.
        num_classes: foreground classes, without background.
        min_size: shorter side in pixels to which images are scaled in evaluation.
        max_size: bound on the longer side after that.
        anchor_sizes: one size in pixels for each map of the pyramid, those on top included.
        aspect_ratios: heights over widths of the anchors, at every level.
        roi_canonical_size: side in pixels of the boxes that are pooled from level 4 of the pyramid; half the side is
            pooled one level lower (eq. (1) of the FPN paper). Small images want a smaller one.
        roi_aligned: whether boxes are pooled as mmdetection, detectron2 and PaddleDetection do; see `AlignedRoIPool`.
        box_head_channels: width of the two fully connected layers.
        rpn_proposals_train: proposals kept per level before, and per image after NMS, in training.
        rpn_proposals_test: the same in evaluation.
        rpn_batch_size: anchors per image that the RPN is trained on.
        box_batch_size: proposals per image that the box head is trained on.
        score_threshold: detections below are dropped.
        nms_threshold: IoU above which the lower of two detections of a class is dropped.
        detections_per_image: the most that are kept.

    Raises:
        ValueError: if the number of anchor sizes is not that of the maps, or `num_classes` is below 1.
    """
    check_anchor_sizes(backbone, anchor_sizes)
    if num_classes < 1:
        raise ValueError(f"`num_classes` must be at least 1, got {num_classes}")
    pool = roi_pool(level_names(backbone), ROI_SIZE, canonical_size=roi_canonical_size, aligned=roi_aligned)
    heads = ImagewiseRoIHeads(
        pool,
        TwoMLPHead(backbone.out_channels * ROI_SIZE**2, box_head_channels),
        FastRCNNPredictor(box_head_channels, num_classes + 1),  # the background is class 0
        batch_size=box_batch_size,
        score_threshold=score_threshold,
        nms_threshold=nms_threshold,
        detections_per_image=detections_per_image,
    )
    rpn = ImagewiseRPN(
        backbone.out_channels,
        anchor_sizes=anchor_sizes,
        aspect_ratios=aspect_ratios,
        proposals_train=rpn_proposals_train,
        proposals_test=rpn_proposals_test,
        batch_size=rpn_batch_size,
    )
    # images are scaled in evaluation alone
    transform = GeneralizedRCNNTransform(min_size, max_size, IMAGENET_MEAN, IMAGENET_STD, _skip_resize=True)
    return TwoStageDetector(backbone, rpn, heads, transform)
