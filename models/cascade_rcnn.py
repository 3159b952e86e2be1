"""Cascade R-CNN, https://arxiv.org/abs/1712.00726: three box heads, each of which refines the previous one's boxes."""

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
from .roi_heads import PerImageRoIHeads, Samples, without_ignored

# Per stage: the minimum IoU of positive boxes, and the weights of the box deltas (x, y, w, h).
STAGE_IOUS = (0.5, 0.6, 0.7)
STAGE_BOX_WEIGHTS = ((10.0, 10.0, 5.0, 5.0), (20.0, 20.0, 10.0, 10.0), (30.0, 30.0, 15.0, 15.0))
STAGES = len(STAGE_IOUS)


@dataclass(frozen=True)
class CascadeRcnnOptions(FasterRcnnOptions):
    """Cascade R-CNN: three consecutive box heads."""

    stage_loss_weights: Annotated[
        list[Annotated[PositiveFloat, Bounds(le=1000)]], Bounds(min_length=STAGES, max_length=STAGES), Affects.RESULT
    ] = field(default_factory=lambda: [1.0, 0.5, 0.25])
    """Weight of each stage's losses; detectron2 uses [1, 1, 1]."""


@dataclass(frozen=True)
class CascadeMaskRcnnOptions(CascadeRcnnOptions, MaskRcnnOptions):
    """Cascade R-CNN with a mask head."""


def cascade_rcnn(body: ResNet, num_classes: int, options: CascadeRcnnOptions, **parts: Any) -> GeneralizedRCNN:
    """Build Cascade R-CNN on a feature pyramid, see `DetectorSpec.build`.

    The network is `faster_rcnn` with three consecutive box heads. The boxes of a stage, refined and clipped to the
    image, are the proposals of the next stage. Positive boxes need an IoU of 0.5, 0.6 and 0.7 in stages 1 to 3, and box
    regression is class-agnostic. The score of a detection is the mean of the stages' probabilities, its box is the last
    stage's. The losses are `loss_classifier_1` to `_3` and `loss_box_reg_1` to `_3`, multiplied by their weights. The
    default weights are mmdetection's. With detectron2's weights a third of the heads' gradient enters the pyramid.

    In training, samples are drawn once, from the proposals and the ground-truth boxes. Later stages only label the
    refined boxes of these samples again. detectron2 and PaddleDetection do the same. In mmdetection each stage draws
    samples from the previous stage's boxes and the ground truth.

    Raises:
        ValueError: As `faster_rcnn`, or if the number of weights is not three.
    """
    weights = options.stage_loss_weights
    if len(weights) != STAGES:
        raise ValueError(
            f"`stage_loss_weights` must have {STAGES} weights, one for each stage, got {len(weights)}: {[*weights]}"
        )
    detector = faster_rcnn(body, num_classes, options, **parts)
    detector.roi_heads = CascadeRoIHeads(detector.roi_heads, weights)
    return detector


def cascade_mask_rcnn(body: ResNet, num_classes: int, options: CascadeMaskRcnnOptions, **parts: Any) -> GeneralizedRCNN:
    """Build Cascade R-CNN with the mask head of Mask R-CNN.

    The network has one mask head, as in detectron2. It is trained on positive samples of the first stage (IoU of at
    least 0.5). In evaluation it gets the boxes of the last stage. mmdetection has a mask head per stage and averages
    their masks.

    Raises:
        ValueError: As `cascade_rcnn`.
    """
    detector = cascade_rcnn(body, num_classes, options, **parts)
    add_mask_head(detector, num_classes, options)
    return detector


class CascadeRoIHeads(PerImageRoIHeads):
    """Three consecutive box heads, see `cascade_rcnn`.

    Args:
        single: RoI heads of Faster R-CNN, whose box head becomes the first stage.
        loss_weights: Weight of each stage's losses.
    """

    def __init__(self, single: PerImageRoIHeads, loss_weights: Sequence[float]) -> None:
        first = single.box_head
        inputs, channels = first.fc6.in_features, first.fc7.out_features
        super().__init__(
            single.box_roi_pool,
            nn.ModuleList([first, *(TwoMLPHead(inputs, channels) for _ in range(STAGES - 1))]),
            nn.ModuleList(_predictor(channels, single.box_predictor.cls_score.out_features) for _ in range(STAGES)),
            batch_size=single.sampler.batch_size_per_image,
            smooth_l1_beta=single.smooth_l1_beta,
            score_threshold=single.score_thresh,
            nms_threshold=single.nms_thresh,
            detections_per_image=single.detections_per_img,
        )
        self.loss_weights = [*loss_weights]
        self.matchers = [Matcher(iou, iou) for iou in STAGE_IOUS]
        self.box_coders = [Float32BoxCoder(weights) for weights in STAGE_BOX_WEIGHTS]
        self.box_coder = self.box_coders[-1]  # of detections

    def box_loss(self, features, proposals, image_shapes, targets) -> tuple[Samples, dict[str, Tensor]]:
        """Draw samples; return the samples of the first stage and the classification and box losses of all stages."""
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
        """Return `boxes`, `labels` and `scores` of each image."""
        probabilities = []
        for stage in range(STAGES):
            logits, box_deltas = self._predict_stage(stage, features, proposals, image_shapes)
            probabilities.append(logits.softmax(-1))
            if stage < STAGES - 1:
                proposals = self._move(stage, box_deltas, proposals, image_shapes)
        mean_logits = torch.stack(probabilities).mean(0).log()  # their softmax is the mean
        return self.postprocess_detections(mean_logits, _for_all_classes(box_deltas, logits), proposals, image_shapes)

    def _predict_stage(self, stage: int, features, boxes, image_shapes) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(features, boxes, image_shapes)
        logits, box_deltas = self.box_predictor[stage](self.box_head[stage](pooled))
        return at_least_float32(logits), box_deltas

    def _move(self, stage: int, box_deltas: Tensor, boxes: list[Tensor], image_shapes) -> list[Tensor]:
        """Return the refined boxes of a stage, detached: the loss of the next stage has no gradient through them."""
        moved = self.box_coders[stage].decode(box_deltas.detach(), boxes).view(-1, 4).split([len(own) for own in boxes])
        return [clip_boxes_to_image(own, shape) for own, shape in zip(moved, image_shapes, strict=True)]

    def _label(self, stage: int, boxes: list[Tensor], targets: list[dict]) -> Samples:
        """Match boxes with the ground truth by the IoU threshold of a stage; an empty box is background."""
        matched, labels = [], []
        for own, target in zip(boxes, targets, strict=True):
            if not len(target["boxes"]):
                matched.append(own.new_zeros(len(own), dtype=torch.int64))
                labels.append(matched[-1])
                continue
            found = self.matchers[stage](box_iou(target["boxes"].to(own.dtype), own))
            matched.append(found.clamp(min=0))
            labels.append(torch.where(found >= 0, target["labels"][matched[-1]], 0))
        labels = [without_ignored(*image, STAGE_IOUS[stage]) for image in zip(labels, boxes, targets, strict=True)]
        return Samples(boxes, matched, labels)


def _predictor(channels: int, num_outputs: int) -> FastRCNNPredictor:
    predictor = FastRCNNPredictor(channels, num_outputs)
    predictor.bbox_pred = nn.Linear(channels, 4)
    return predictor


def _for_all_classes(box_deltas: Tensor, logits: Tensor) -> Tensor:
    """Repeat box deltas `(N, 4)` for each class of the logits `(N, n)`: torchvision expects `(N, 4 * n)`."""
    return box_deltas.repeat(1, logits.shape[1])


# box regression is class-agnostic, so only the classifiers have rows of classes
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
