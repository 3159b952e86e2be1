"""Cascade R-CNN, https://arxiv.org/abs/1712.00726: three box heads, each of which starts from the last one's boxes."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.resnet import ResNet
from torchvision.ops import box_iou, clip_boxes_to_image

from .boxes import Float32BoxCoder, at_least_float32
from .detector import ClassRows, DetectorSpec
from .faster_rcnn import TINY, FasterRcnnOptions, faster_rcnn
from .mask_rcnn import MASK_ROWS, MASK_TINY, MaskRcnnOptions, add_mask_head
from .options import Affects, Bounds, PositiveFloat
from .roi_heads import PerImageRoIHeads, Samples

# Of each stage: the IoU from which on a box is positive, and the weights of its box deltas (x, y, w, h).
STAGE_IOUS = (0.5, 0.6, 0.7)
STAGE_BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
STAGES = len(STAGE_IOUS)


@dataclass(frozen=True)
class CascadeRcnnOptions(FasterRcnnOptions):
    """Cascade R-CNN: three box heads in a row."""

    stage_loss_weights: Annotated[list[PositiveFloat], Bounds(min_length=STAGES, max_length=STAGES), Affects.RESULT] = (
        field(default_factory=lambda: [1.0, 0.5, 0.25])
    )
    """Weight of each stage's losses; detectron2 has [1, 1, 1]."""


@dataclass(frozen=True)
class CascadeMaskRcnnOptions(CascadeRcnnOptions, MaskRcnnOptions):
    """Cascade R-CNN and a mask of each object."""


def cascade_rcnn(body: ResNet, num_classes: int, options: CascadeRcnnOptions, **parts: Any) -> GeneralizedRCNN:
    """Build Cascade R-CNN on a pyramid, see `DetectorSpec.build`.

    It is `faster_rcnn` with three box heads in a row: a stage's boxes, moved and clipped to the image, are the next
    one's proposals. What is positive needs IoUs of 0.5, 0.6 and 0.7 in turn, and boxes are moved alike for all classes.
    A detection's score is the mean of the stages' probabilities, its box the last one's. The losses are
    `loss_classifier_1` to `_3` and `loss_box_reg_1` to `_3`, their weights included; mmdetection has the default
    weights, and with detectron2's a third of the heads' gradient goes into the pyramid.

    In training, samples are drawn once, with the true boxes among the proposals; the later stages see what became of
    those samples and label them anew, without a draw and without the true boxes. So do detectron2 and PaddleDetection;
    mmdetection draws anew for each stage from the last one's boxes and the true ones.

    Raises:
        ValueError: as `faster_rcnn`, or if there are not three weights.
    """
    weights = options.stage_loss_weights
    if len(weights) != STAGES:
        raise ValueError(
            f"`stage_loss_weights` must be one for each of the {STAGES} stages, got {len(weights)}: {[*weights]}"
        )
    detector = faster_rcnn(body, num_classes, options, **parts)
    detector.roi_heads = CascadeRoIHeads(detector.roi_heads, weights)
    return detector


def cascade_mask_rcnn(body: ResNet, num_classes: int, options: CascadeMaskRcnnOptions, **parts: Any) -> GeneralizedRCNN:
    """Build Cascade R-CNN with the mask head of Mask R-CNN.

    There is one mask head, as in detectron2: it learns from the samples of the first stage, where an IoU of 0.5 is
    positive, and in evaluation looks at the boxes of the last one. mmdetection has one for each stage and takes the
    mean of their masks.

    Raises:
        ValueError: as `cascade_rcnn`.
    """
    detector = cascade_rcnn(body, num_classes, options, **parts)
    add_mask_head(detector, num_classes, options)
    return detector


class CascadeRoIHeads(PerImageRoIHeads):
    """Three box heads in a row; see `cascade_rcnn`.

    Args:
        single: the heads of Faster R-CNN, whose box head is the first stage's.
        loss_weights: one for each stage.
    """

    def __init__(self, single: PerImageRoIHeads, loss_weights: Sequence[float]) -> None:
        first = single.box_head
        inputs, channels = first.fc6.in_features, first.fc7.out_features
        super().__init__(
            single.box_roi_pool,
            nn.ModuleList([first, *(TwoMLPHead(inputs, channels) for _ in range(STAGES - 1))]),
            nn.ModuleList(_predictor(channels, single.box_predictor.cls_score.out_features) for _ in range(STAGES)),
            batch_size=single.sampler.batch_size_per_image,
            score_threshold=single.score_thresh,
            nms_threshold=single.nms_thresh,
            detections_per_image=single.detections_per_img,
        )
        self.loss_weights = [*loss_weights]
        self.matchers = [Matcher(iou, iou) for iou in STAGE_IOUS]
        self.box_coders = [Float32BoxCoder(weights) for weights in STAGE_BOX_WEIGHTS]
        self.box_coder = self.box_coders[-1]  # of detections

    def box_loss(self, features, proposals, image_shapes, targets) -> tuple[Samples, dict[str, Tensor]]:
        """Draw samples, and give the losses of boxes of all stages; the samples are those of the first one."""
        samples = drawn = self.draw_samples(proposals, targets)
        losses = {}
        for stage in range(STAGES):
            logits, box_deltas = self._predict_stage(stage, features, samples.boxes, image_shapes)
            loss_classifier, loss_box_reg = self.sample_losses(
                logits, _for_all_classes(box_deltas, logits), samples, targets, self.box_coders[stage]
            )
            losses[f"loss_classifier_{stage + 1}"] = self.loss_weights[stage] * loss_classifier
            losses[f"loss_box_reg_{stage + 1}"] = self.loss_weights[stage] * loss_box_reg
            if stage < STAGES - 1:
                samples = self._label(stage + 1, self._move(stage, box_deltas, samples.boxes, image_shapes), targets)
        return drawn, losses

    def box_predictions(self, features, proposals, image_shapes) -> list[dict[str, Tensor]]:
        """Give `boxes`, `labels` and `scores` of each image."""
        probabilities = []
        for stage in range(STAGES):
            logits, box_deltas = self._predict_stage(stage, features, proposals, image_shapes)
            probabilities.append(logits.softmax(-1))
            if stage < STAGES - 1:
                proposals = self._move(stage, box_deltas, proposals, image_shapes)
        mean_logits = torch.stack(probabilities).mean(0).log()  # whose softmax is the mean
        return self.postprocess_detections(mean_logits, _for_all_classes(box_deltas, logits), proposals, image_shapes)

    def _predict_stage(self, stage: int, features, boxes, image_shapes) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(features, boxes, image_shapes)
        logits, box_deltas = self.box_predictor[stage](self.box_head[stage](pooled))
        return at_least_float32(logits), box_deltas

    def _move(self, stage: int, box_deltas: Tensor, boxes: list[Tensor], image_shapes) -> list[Tensor]:
        """Give the boxes that a stage makes of its proposals; the next one does not teach it where to put them."""
        moved = self.box_coders[stage].decode(box_deltas.detach(), boxes).view(-1, 4).split([len(own) for own in boxes])
        return [clip_boxes_to_image(own, shape) for own, shape in zip(moved, image_shapes, strict=True)]

    def _label(self, stage: int, boxes: list[Tensor], targets: list[dict]) -> Samples:
        """Compare boxes with the true ones by the IoU of a stage; an empty box is background."""
        matched, labels = [], []
        for own, target in zip(boxes, targets, strict=True):
            if not len(target["boxes"]):
                matched.append(own.new_zeros(len(own), dtype=torch.int64))
                labels.append(matched[-1])
                continue
            found = self.matchers[stage](box_iou(target["boxes"].to(own.dtype), own))
            matched.append(found.clamp(min=0))
            labels.append(torch.where(found >= 0, target["labels"][matched[-1]], 0))
        return Samples(boxes, matched, labels)


def _predictor(channels: int, num_outputs: int) -> FastRCNNPredictor:
    predictor = FastRCNNPredictor(channels, num_outputs)
    predictor.bbox_pred = nn.Linear(channels, 4)
    return predictor


def _for_all_classes(box_deltas: Tensor, logits: Tensor) -> Tensor:
    """Repeat the box deltas `(N, 4)` of boxes for each class of the logits `(N, n)`: torchvision takes `(N, 4 * n)`."""
    return box_deltas.repeat(1, logits.shape[1])


# boxes are moved alike for all classes
CASCADE_ROWS = {r"roi_heads\.box_predictor\.\d\.cls_score\.(weight|bias)": ClassRows()}
CASCADE_RCNN_SPEC = DetectorSpec(
    cascade_rcnn,
    CascadeRcnnOptions,
    class_rows=CASCADE_ROWS,
    export="engine.export.two_stage:CascadeRCNNGraph",
    tiny=TINY,
)
CASCADE_MASK_RCNN_SPEC = replace(
    CASCADE_RCNN_SPEC,
    build=cascade_mask_rcnn,
    options=CascadeMaskRcnnOptions,
    has_masks=True,
    class_rows=CASCADE_ROWS | MASK_ROWS,
    tiny=TINY | MASK_TINY,
)
