"""RetinaNet, https://arxiv.org/abs/1708.02002, from torchvision's parts."""

from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.resnet import ResNet

from .boxes import Float32Anchors
from .detector import ClassRows, DeformOptions, DetectorSpec
from .fpn import FpnOptions, check_anchor_sizes, resnet_fpn
from .one_stage import in_float32, without_background
from .options import Affects, Bounds, Fraction, PositiveFloat, PositiveInt
from .transform import DetectorTransform


class PerImageRetinaNet(RetinaNet):
    """torchvision's RetinaNet; its losses are means over the images of a batch, and so they are in torchvision.

    Each image's losses are sums over its anchors, divided by the number of those that are positive. Nothing is drawn by
    chance, and so the losses and gradients of a batch are the means of those of its parts, weighted by their numbers of
    images, as long as the parts are padded to the same size and batch norm is frozen or absent. (mmdetection and the
    paper's code divide by the positives of the whole batch.)
    """

    def compute_loss(
        self, targets: list[dict], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """Give the losses under names that begin with "loss_", as those of the other detectors do."""
        losses = super().compute_loss(targets, in_float32(head_outputs), anchors)
        return {f"loss_{name}": loss for name, loss in losses.items()}

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Detect as torchvision does, but nothing of class 0."""
        return super().postprocess_detections(without_background(in_float32(head_outputs)), anchors, image_shapes)


@dataclass(frozen=True)
class RetinaNetOptions:
    """Heads of RetinaNet; the defaults are the common COCO recipe, on levels 3 to 7."""

    anchor_sizes: Annotated[list[PositiveInt], Affects.NETWORK] = field(default_factory=lambda: [32, 64, 128, 256, 512])
    """One anchor size in pixels for each pyramid map, those on top included."""
    scales_per_octave: Annotated[PositiveInt, Affects.NETWORK] = 3
    """n: the anchors of a map are its size times 2**(0/n), 2**(1/n), ..., in whole pixels."""
    aspect_ratios: Annotated[list[PositiveFloat], Bounds(min_length=1), Affects.NETWORK] = field(
        default_factory=lambda: [0.5, 1.0, 2.0]
    )
    """Height over width of the anchors."""
    positive_iou: Annotated[Fraction, Affects.RESULT] = 0.5
    """IoU with a box from which an anchor learns to detect it; the best anchors of a box always do."""
    negative_iou: Annotated[Fraction, Affects.RESULT] = 0.4
    """IoU below which an anchor learns to detect nothing; those in between are ignored."""
    score_threshold: Annotated[Fraction, Affects.RESULT] = 0.05
    """Detections below are dropped."""
    nms_threshold: Annotated[Fraction, Affects.RESULT] = 0.5
    """IoU above which the weaker of two detections of a class is dropped."""
    topk_candidates: Annotated[PositiveInt, Affects.RESULT] = 1000
    """The most detections of a pyramid map, before NMS."""
    detections_per_image: Annotated[PositiveInt, Affects.RESULT] = 100
    """The most detections of an image."""


def retinanet(
    body: ResNet,
    num_classes: int,
    options: RetinaNetOptions,
    *,
    fpn: FpnOptions,
    transform: DetectorTransform,
    dcn: DeformOptions,
) -> PerImageRetinaNet:
    """Build RetinaNet on a pyramid, see `DetectorSpec.build`; nothing but its ResNet is deformable.

    Output 0 of the head stays unused, since labels count from 1.

    Raises:
        ValueError: if the number of anchor sizes is not that of the maps, a number is below 1, or the IoUs are not in
            order.
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
        anchor_generator=Float32Anchors(
            tuple(tuple(int(size * scale) for scale in scales) for size in options.anchor_sizes),
            (tuple(options.aspect_ratios),) * len(options.anchor_sizes),
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
