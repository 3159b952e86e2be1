"""RetinaNet, https://arxiv.org/abs/1708.02002, built from torchvision's parts."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss
from torchvision.models.detection import RetinaNet
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.resnet import ResNet
from torchvision.ops import batched_nms, clip_boxes_to_image

from .anchors import ANCHORS, make_anchors
from .detector import ClassRows, DeformOptions, DetectorSpec
from .fpn import MAX_LEVELS, FpnOptions, check_anchor_sizes, map_strides, resnet_fpn
from .ignored import is_ignored
from .one_stage import in_float32, weighted_focal_loss, without_background
from .options import Affects, AspectRatio, Bounds, Choices, Count, Fraction, NonNegativeFloat, Pixels, ValueBefore
from .resnet import check_name
from .transform import DetectorTransform

# when boxes are clipped to the image
CLIPPING = BEFORE_NMS, AFTER_NMS, NEVER = "before_nms", "after_nms", "never"


class PerImageRetinaNetHead(RetinaNetHead):
    """torchvision's RetinaNet head, whose losses are means over the images of a batch, as in torchvision.

    The losses of each image are sums over its anchors, divided by the number of positive anchors of the image.
    mmdetection and the paper's code divide by the positives of the whole batch. See
    docs/concepts/losses-and-batches.md.

    Args:
        channels: Number of channels of the pyramid.
        num_anchors: Number of anchors per location.
        num_outputs: Number of outputs of the classifier per anchor.
        smooth_l1_beta: Error below which the box loss is quadratic; 0 is plain L1, torchvision's loss.
        negative_iou: IoU below which anchors are negative.
    """

    def __init__(
        self, channels: int, num_anchors: int, num_outputs: int, *, smooth_l1_beta: float, negative_iou: float
    ) -> None:
        super().__init__(channels, num_anchors, num_outputs)
        self.smooth_l1_beta = smooth_l1_beta
        self.negative_iou = negative_iou
        self.register_buffer("class_weights", None, persistent=False)  # see `set_class_weights`

    def compute_loss(
        self,
        targets: list[dict],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses; names start with "loss_" as in the other detectors.

        Args:
            targets: `boxes` and `labels` of each image, and optionally `ignored` regions.
            head_outputs: Outputs of the head, each `(B, locations * num_anchors, n)`.
            anchors: Anchors of each image, `(locations * num_anchors, 4)`.
            matched_idxs: Index of the box of each anchor, negative for none, one tensor per image.
        """
        outputs = in_float32(head_outputs)
        matched_idxs = [
            matched.masked_fill(
                (matched == Matcher.BELOW_LOW_THRESHOLD) & is_ignored(own, target, self.negative_iou),
                Matcher.BETWEEN_THRESHOLDS,
            )
            for matched, own, target in zip(matched_idxs, anchors, targets, strict=True)
        ]
        regression = [
            self._box_loss(*image)
            for image in zip(targets, outputs["bbox_regression"], anchors, matched_idxs, strict=True)
        ]
        return {
            "loss_classification": self._classification_loss(targets, outputs, matched_idxs),
            "loss_bbox_regression": torch.stack(regression).mean(),
        }

    def _classification_loss(
        self, targets: list[dict], outputs: dict[str, Tensor], matched_idxs: list[Tensor]
    ) -> Tensor:
        if self.class_weights is None:
            return self.classification_head.compute_loss(targets, outputs, matched_idxs)
        images = zip(outputs["cls_logits"], targets, matched_idxs, strict=True)
        return torch.stack([weighted_focal_loss(*image, self.class_weights) for image in images]).mean()

    def _box_loss(self, target: dict, box_deltas: Tensor, anchors: Tensor, matched: Tensor) -> Tensor:
        (positive,) = torch.where(matched >= 0)
        boxes = target["boxes"][matched[positive]]
        encoded = self.regression_head.box_coder.encode_single(boxes, anchors[positive])
        loss = smooth_l1_loss(box_deltas[positive], encoded, reduction="sum", beta=self.smooth_l1_beta)
        return loss / max(1, len(positive))


class ClippedRetinaNet(RetinaNet):
    """torchvision's RetinaNet, with a choice of when boxes are clipped to the image.

    Args:
        clip_boxes: Name in `CLIPPING`.
        parts: Arguments of torchvision's `RetinaNet`.
    """

    def __init__(self, *parts: Any, clip_boxes: str, **options: Any) -> None:
        super().__init__(*parts, **options)
        check_name("clip_boxes", clip_boxes, CLIPPING)
        self.clip_boxes = clip_boxes

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return `boxes`, `labels` and `scores` of each image, without class 0."""
        outputs = without_background(in_float32(head_outputs))
        logits, box_deltas = (zip(*outputs[name], strict=True) for name in ("cls_logits", "bbox_regression"))
        return [self._detect(*image) for image in zip(logits, box_deltas, anchors, image_shapes, strict=True)]

    def _detect(
        self, logits: Sequence[Tensor], box_deltas: Sequence[Tensor], anchors: list[Tensor], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Return the detections of an image of `size` from the outputs of each level."""
        levels = [self._candidates(*level) for level in zip(logits, box_deltas, anchors, strict=True)]
        boxes, scores, labels = (torch.cat(values) for values in zip(*levels, strict=True))
        if self.clip_boxes == BEFORE_NMS:
            boxes = clip_boxes_to_image(boxes, size)
        keep = batched_nms(boxes, scores, labels, self.nms_thresh)[: self.detections_per_img]
        if self.clip_boxes == AFTER_NMS:
            boxes = clip_boxes_to_image(boxes, size)
            keep = keep[(boxes[keep, 2:] > boxes[keep, :2]).all(1)]
        return {"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]}

    def _candidates(self, logits: Tensor, box_deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes, scores and labels of a level, at most `topk_candidates`."""
        every = logits.sigmoid().flatten()
        (above,) = torch.where(every > self.score_thresh)
        scores, order = every[above].topk(min(self.topk_candidates, len(above)))
        places, labels = above[order] // logits.shape[1], above[order] % logits.shape[1]
        return self.box_coder.decode_single(box_deltas[places], anchors[places]), scores, labels


@dataclass(frozen=True)
class RetinaNetOptions:
    """RetinaNet; the defaults are the common COCO recipe on levels 3 to 7."""

    anchor_sizes: Annotated[list[Pixels], Bounds(min_length=1, max_length=MAX_LEVELS), Affects.NETWORK] = field(
        default_factory=lambda: [32, 64, 128, 256, 512]
    )
    """One anchor size in pixels for each pyramid level, including the extra levels."""
    anchors: Annotated[str, Choices(ANCHORS), Affects.MEANING, ValueBefore("torchvision")] = "exact"
    """Kind of anchors: exact (exact sizes, fixed strides), as in detectron2, mmdetection and PaddleDetection; or
    torchvision (whole pixels, strides by image size), for weights of torchvision and of 0.1."""
    scales_per_octave: Annotated[int, Bounds(ge=1, le=20), Affects.NETWORK] = 3
    """Anchor scales n per level: the level's size times 2**(0/n), 2**(1/n), ..."""
    aspect_ratios: Annotated[list[AspectRatio], Bounds(min_length=1, max_length=20), Affects.NETWORK] = field(
        default_factory=lambda: [0.5, 1.0, 2.0]
    )
    """Aspect ratios of the anchors, height over width."""
    positive_iou: Annotated[Fraction, Affects.RESULT] = 0.5
    """Minimum IoU with a box of positive anchors; the anchors with the highest IoU of a box are always positive."""
    negative_iou: Annotated[Fraction, Affects.RESULT] = 0.4
    """IoU below which anchors are negative; anchors between the two thresholds are ignored."""
    score_threshold: Annotated[Fraction, Affects.RESULT] = 0.05
    """Minimum score of detections."""
    nms_threshold: Annotated[Fraction, Affects.RESULT] = 0.5
    """IoU above which NMS removes the detection with the lower score of two detections of a class."""
    topk_candidates: Annotated[Count, Affects.RESULT] = 1000
    """Maximum number of detections per pyramid level before NMS."""
    detections_per_image: Annotated[Count, Affects.RESULT] = 100
    """Maximum number of detections per image."""
    clip_boxes: Annotated[str, Choices(CLIPPING), Affects.RESULT] = BEFORE_NMS
    """When boxes are clipped to the image: before_nms, as in torchvision and mmdetection; after_nms, as in detectron2,
    without boxes that have no size then; or never, as in PaddleDetection."""
    smooth_l1_beta: Annotated[NonNegativeFloat, Affects.RESULT] = 0.0
    """Errors below this value are squared in the box loss (smooth L1); 0 is plain L1, as in torchvision, mmdetection
    and PaddleDetection. detectron2's default is 0.1."""


def retinanet(
    body: ResNet,
    num_classes: int,
    options: RetinaNetOptions,
    *,
    fpn: FpnOptions,
    transform: DetectorTransform,
    dcn: DeformOptions,
) -> ClippedRetinaNet:
    """Build RetinaNet on a feature pyramid, see `DetectorSpec.build`. Only the ResNet can be deformable.

    Output 0 of the head is unused, because labels count from 1.

    Raises:
        ValueError: If the number of anchor sizes differs from the number of pyramid levels, a number is below 1, or
            `negative_iou` is above `positive_iou`.
    """
    backbone = resnet_fpn(body, fpn)
    check_anchor_sizes(backbone, options.anchor_sizes)
    if options.scales_per_octave < 1:
        raise ValueError(f"`scales_per_octave` must be at least 1, got {options.scales_per_octave}")
    if options.negative_iou > options.positive_iou:
        raise ValueError(
            f"`negative_iou` must be at most `positive_iou` = {options.positive_iou}, got {options.negative_iou}"
        )
    scales = [2 ** (step / options.scales_per_octave) for step in range(options.scales_per_octave)]
    anchors = make_anchors(
        options.anchors,
        [[size * scale for scale in scales] for size in options.anchor_sizes],
        options.aspect_ratios,
        map_strides(backbone).values(),
    )
    detector = ClippedRetinaNet(
        backbone,
        num_classes + 1,
        anchor_generator=anchors,
        head=PerImageRetinaNetHead(
            backbone.out_channels,
            anchors.num_anchors_per_location()[0],
            num_classes + 1,
            smooth_l1_beta=options.smooth_l1_beta,
            negative_iou=options.negative_iou,
        ),
        clip_boxes=options.clip_boxes,
        fg_iou_thresh=options.positive_iou,
        bg_iou_thresh=options.negative_iou,
        score_thresh=options.score_threshold,
        nms_thresh=options.nms_threshold,
        topk_candidates=options.topk_candidates,
        detections_per_img=options.detections_per_image,
    )
    detector.transform = transform
    return detector


CLASS_ROWS = {r"head\.classification_head\.cls_logits\.(weight|bias)": ClassRows(None)}
RETINANET_SPEC = DetectorSpec(
    retinanet,
    RetinaNetOptions,
    class_rows=CLASS_ROWS,
    export="engine.export.one_stage:RetinaNetGraph",
    tiny={"anchor_sizes": [16, 32, 64]},
)
