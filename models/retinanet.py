"""RetinaNet, https://arxiv.org/abs/1708.02002, from torchvision's parts."""

from collections.abc import Sequence

from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.backbone_utils import BackboneWithFPN

from .boxes import Float32Anchors
from .fpn import check_anchor_sizes
from .one_stage import in_float32, without_background


class ImagewiseRetinaNet(RetinaNet):
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


def retinanet(
    backbone: BackboneWithFPN,
    num_classes: int,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
    scales_per_octave: int = 3,
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    positive_iou: float = 0.5,
    negative_iou: float = 0.4,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    topk_candidates: int = 1000,
    detections_per_image: int = 100,
) -> ImagewiseRetinaNet:
    """Build RetinaNet on a pyramid; the defaults are the common COCO recipe, on P3 to P7.

    It follows torchvision's contract, as `faster_rcnn` does: in train mode `model(images, targets)` gives a dict of
    losses, in eval mode `model(images)` a list of dicts with `boxes` (xyxy pixels of the image given), `labels` and
    `scores`. Images are `(3, H, W)` in [0, 1]; labels count from 1, and output 0 of the head stays unused. In training,
    images are taken as they come.

    Args:
        backbone: from `resnet_fpn`.
        num_classes: foreground classes.
        min_size: shorter side in pixels to which images are scaled in evaluation.
        max_size: bound on the longer side after that.
        anchor_sizes: one size in pixels for each map of the pyramid, those on top included.
        scales_per_octave: n: anchors at a level are the size times 2**(0/n), 2**(1/n), ..., in whole pixels.
        aspect_ratios: heights over widths of the anchors, at every level.
        positive_iou: IoU with a box from which an anchor is to detect it. The best anchors of each box always are.
        negative_iou: IoU below which an anchor is to detect nothing; those in between are ignored.
        score_threshold: detections below are dropped.
        nms_threshold: IoU above which the lower of two detections of a class is dropped.
        topk_candidates: the most detections of a level, before NMS.
        detections_per_image: the most that are kept.

    Raises:
        ValueError: if the number of anchor sizes is not that of the maps, a number is below 1, or the IoUs are not in
            order.
    """
    check_anchor_sizes(backbone, anchor_sizes)
    for name, count in (("num_classes", num_classes), ("scales_per_octave", scales_per_octave)):
        if count < 1:
            raise ValueError(f"`{name}` must be at least 1, got {count}")
    if negative_iou > positive_iou:
        raise ValueError(f"`negative_iou` must be at most `positive_iou` = {positive_iou}, got {negative_iou}")
    scales = [2 ** (step / scales_per_octave) for step in range(scales_per_octave)]
    return ImagewiseRetinaNet(
        backbone,
        num_classes + 1,
        min_size=min_size,
        max_size=max_size,
        anchor_generator=Float32Anchors(
            tuple(tuple(int(size * scale) for scale in scales) for size in anchor_sizes),
            (tuple(aspect_ratios),) * len(anchor_sizes),
        ),
        fg_iou_thresh=positive_iou,
        bg_iou_thresh=negative_iou,
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        topk_candidates=topk_candidates,
        detections_per_img=detections_per_image,
        _skip_resize=True,  # in training
    )
