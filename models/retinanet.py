"""RetinaNet, https://arxiv.org/abs/1708.02002, built from torchvision's parts."""

from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.resnet import ResNet

from .anchors import ANCHORS, make_anchors
from .detector import ClassRows, DeformOptions, DetectorSpec
from .fpn import FpnOptions, check_anchor_sizes, map_strides, resnet_fpn
from .one_stage import in_float32, without_background
from .options import Affects, Bounds, Choices, Fraction, PositiveFloat, PositiveInt
from .transform import DetectorTransform


class PerImageRetinaNet(RetinaNet):
    """torchvision's RetinaNet, whose losses are means over the images of a batch, as in torchvision.

    The losses of each image are sums over its anchors, divided by the number of positive anchors of the image.
    mmdetection and the paper's code divide by the positives of the whole batch. See
    docs/concepts/losses-and-batches.md.
    """

    def compute_loss(
        self, targets: list[dict], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """Return the losses, with names that start with "loss_" as in the other detectors."""
        losses = super().compute_loss(targets, in_float32(head_outputs), anchors)
        return {f"loss_{name}": loss for name, loss in losses.items()}

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return torchvision's detections, without class 0."""
        return super().postprocess_detections(without_background(in_float32(head_outputs)), anchors, image_shapes)


@dataclass(frozen=True)
class RetinaNetOptions:
    """RetinaNet; the defaults are the common COCO recipe on levels 3 to 7."""

    anchor_sizes: Annotated[list[PositiveInt], Affects.NETWORK] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    """One anchor size in pixels for each pyramid level, including the extra levels."""
    anchors: Annotated[str, Choices(ANCHORS), Affects.MEANING] = "torchvision"
    """Position and size of the anchors: exact (exact sizes, a stride of 2**l pixels on level l), as in detectron2,
    mmdetection and PaddleDetection; or torchvision (whole pixels, strides that depend on the image size). Weights need
    the anchors that they were trained with."""
    scales_per_octave: Annotated[PositiveInt, Affects.NETWORK] = 3
    """Anchor scales n per level: the level's size times 2**(0/n), 2**(1/n), ..."""
    aspect_ratios: Annotated[list[PositiveFloat], Bounds(min_length=1), Affects.NETWORK] = field(
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
    topk_candidates: Annotated[PositiveInt, Affects.RESULT] = 1000
    """Maximum number of detections per pyramid level before NMS."""
    detections_per_image: Annotated[PositiveInt, Affects.RESULT] = 100
    """Maximum number of detections per image."""


def retinanet(
    body: ResNet,
    num_classes: int,
    options: RetinaNetOptions,
    *,
    fpn: FpnOptions,
    transform: DetectorTransform,
    dcn: DeformOptions,
) -> PerImageRetinaNet:
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
    detector = PerImageRetinaNet(
        backbone,
        num_classes + 1,
        anchor_generator=make_anchors(
            options.anchors,
            [[size * scale for scale in scales] for size in options.anchor_sizes],
            options.aspect_ratios,
            map_strides(backbone).values(),
        ),
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
