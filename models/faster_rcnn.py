"""Faster R-CNN, https://arxiv.org/abs/1506.01497, built from torchvision's parts."""

from dataclasses import dataclass, field
from typing import Annotated

from torch import nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.resnet import ResNet

from .anchors import ANCHORS, make_anchors
from .detector import ClassRows, DeformOptions, DetectorSpec
from .fpn import MAX_LEVELS, FpnOptions, check_anchor_sizes, level_names, map_strides, resnet_fpn
from .options import (
    Affects,
    AspectRatio,
    Bounds,
    Channels,
    Choices,
    Count,
    Fraction,
    NonNegativeFloat,
    OldName,
    Pixels,
    ValueBefore,
)
from .roi_heads import PerImageRoIHeads
from .roi_pool import PyramidRoIAlign
from .transform import DetectorTransform
from .two_stage import PerImageRPN

ROI_SIZE = 7
SMOOTH_L1_BETA = 1 / 9  # torchvision's


@dataclass(frozen=True)
class FasterRcnnOptions:
    """Faster R-CNN."""

    anchor_sizes: Annotated[list[Pixels], Bounds(min_length=1, max_length=MAX_LEVELS), Affects.NETWORK] = field(
        default_factory=lambda: [32, 64, 128, 256, 512]
    )
    """One anchor size in pixels for each pyramid level, including the extra levels."""
    anchors: Annotated[str, Choices(ANCHORS), Affects.MEANING, ValueBefore("torchvision")] = "exact"
    """Kind of anchors: exact (exact sizes, fixed strides), as in detectron2, mmdetection and PaddleDetection; or
    torchvision (whole pixels, strides by image size), for weights of torchvision and of 0.1."""
    aspect_ratios: Annotated[list[AspectRatio], Bounds(min_length=1, max_length=20), Affects.NETWORK] = field(
        default_factory=lambda: [0.5, 1.0, 2.0]
    )
    """Aspect ratios of the anchors, height over width."""
    roi_canonical_size: Annotated[Pixels, Affects.NETWORK] = 224
    """Side in pixels of boxes pooled from P4; boxes of half this side are pooled from P3. Use less for small images."""
    roi_aligned: Annotated[bool, Affects.MEANING] = False
    """Whether RoIAlign shifts boxes by half a pixel, as in mmdetection, detectron2 and PaddleDetection. Weights from
    these frameworks need true; torchvision's RoIAlign is false."""
    roi_sampling_ratio: Annotated[Annotated[int, Bounds(ge=0, le=16)] | None, Affects.MEANING] = None
    """Sampling points of RoIAlign per bin and direction; 0: more in larger boxes, as in the other frameworks. null: 0
    with `roi_aligned`, otherwise 2 as in torchvision."""
    box_head_channels: Annotated[Channels, Affects.NETWORK] = 1024
    """Width of the box head's two fully connected layers."""
    rpn_pre_nms_top_n_train: Annotated[Count, Affects.RESULT, OldName("rpn_proposals_train")] = 2000
    """Maximum number of proposals per pyramid level before NMS, in training."""
    rpn_post_nms_top_n_train: Annotated[Count, Affects.RESULT, OldName("rpn_proposals_train")] = 2000
    """Maximum number of proposals per image after NMS, in training."""
    rpn_pre_nms_top_n_test: Annotated[Count, Affects.RESULT, OldName("rpn_proposals_test")] = 1000
    """Maximum number of proposals per pyramid level before NMS, in evaluation."""
    rpn_post_nms_top_n_test: Annotated[Count, Affects.RESULT, OldName("rpn_proposals_test")] = 1000
    """Maximum number of proposals per image after NMS, in evaluation."""
    rpn_smooth_l1_beta: Annotated[NonNegativeFloat, Affects.RESULT] = SMOOTH_L1_BETA
    """Errors below this value are squared in the RPN's box loss (smooth L1); 0 is plain L1, as in detectron2,
    mmdetection and PaddleDetection. The default is torchvision's 1/9."""
    box_smooth_l1_beta: Annotated[NonNegativeFloat, Affects.RESULT] = SMOOTH_L1_BETA
    """The same for the loss of the box head, or of each box head of a cascade."""
    rpn_batch_size_per_image: Annotated[Count, Affects.RESULT, OldName("rpn_batch_size")] = 256
    """Number of anchors sampled per image to train the RPN."""
    box_batch_size_per_image: Annotated[Count, Affects.RESULT, OldName("box_batch_size")] = 512
    """Number of proposals sampled per image to train the box head."""
    score_threshold: Annotated[Fraction, Affects.RESULT] = 0.05
    """Minimum score of detections."""
    nms_threshold: Annotated[Fraction, Affects.RESULT] = 0.5
    """IoU above which NMS removes the detection with the lower score of two detections of a class."""
    detections_per_image: Annotated[Count, Affects.RESULT] = 100
    """Maximum number of detections per image."""


def faster_rcnn(
    body: ResNet,
    num_classes: int,
    options: FasterRcnnOptions,
    *,
    fpn: FpnOptions,
    transform: DetectorTransform,
    dcn: DeformOptions,
) -> GeneralizedRCNN:
    """Build Faster R-CNN on a feature pyramid, see `DetectorSpec.build`. Only the ResNet can be deformable.

    Targets may contain a "seed", see `models.two_stage`.

    Raises:
        ValueError: If the number of anchor sizes differs from the number of pyramid levels.
    """
    backbone = resnet_fpn(body, fpn)
    check_anchor_sizes(backbone, options.anchor_sizes)
    heads = PerImageRoIHeads(
        box_pool(backbone, ROI_SIZE, options),
        TwoMLPHead(backbone.out_channels * ROI_SIZE**2, options.box_head_channels),
        FastRCNNPredictor(options.box_head_channels, num_classes + 1),  # the background is class 0
        batch_size=options.box_batch_size_per_image,
        smooth_l1_beta=options.box_smooth_l1_beta,
        score_threshold=options.score_threshold,
        nms_threshold=options.nms_threshold,
        detections_per_image=options.detections_per_image,
    )
    rpn = PerImageRPN(
        backbone.out_channels,
        anchors=make_anchors(
            options.anchors,
            [[size] for size in options.anchor_sizes],
            options.aspect_ratios,
            map_strides(backbone).values(),
        ),
        pre_nms_top_n={"training": options.rpn_pre_nms_top_n_train, "testing": options.rpn_pre_nms_top_n_test},
        post_nms_top_n={"training": options.rpn_post_nms_top_n_train, "testing": options.rpn_post_nms_top_n_test},
        batch_size=options.rpn_batch_size_per_image,
        smooth_l1_beta=options.rpn_smooth_l1_beta,
    )
    return GeneralizedRCNN(backbone, rpn, heads, transform)


def box_pool(backbone: nn.Module, output_size: int, options: FasterRcnnOptions) -> PyramidRoIAlign:
    """Build the pooling of box features from a pyramid of `resnet_fpn`."""
    return PyramidRoIAlign(
        level_names(backbone),
        output_size,
        canonical_size=options.roi_canonical_size,
        aligned=options.roi_aligned,
        sampling_ratio=options.roi_sampling_ratio,
    )


CLASS_ROWS = {
    r"roi_heads\.box_predictor\.cls_score\.(weight|bias)": ClassRows(),
    r"roi_heads\.box_predictor\.bbox_pred\.(weight|bias)": ClassRows(4),
}
TINY = {
    "anchor_sizes": [16, 32, 64],
    "box_head_channels": 32,
    "rpn_pre_nms_top_n_train": 100,
    "rpn_post_nms_top_n_train": 100,
    "rpn_batch_size_per_image": 64,
    "box_batch_size_per_image": 32,
}
FASTER_RCNN_SPEC = DetectorSpec(
    faster_rcnn,
    FasterRcnnOptions,
    class_rows=CLASS_ROWS,
    export="engine.export.two_stage:FasterRCNNGraph",
    tiny=TINY,
)
