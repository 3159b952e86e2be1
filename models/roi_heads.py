"""RoI heads of the two-stage detectors: classification, box regression and masks of proposals."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, smooth_l1_loss
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_inference, maskrcnn_loss

from .boxes import Float32BoxCoder, at_least_float32
from .ignored import is_ignored
from .sampling import ImageSampler

BOX_SEED_OFFSET = 0x424F58
# Maximum fraction of positive samples, and their minimum IoU.
POSITIVE_FRACTION, POSITIVE_IOU = 0.25, 0.5
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class Samples(NamedTuple):
    """The sampled boxes on which the heads are trained, one tensor per image in each list.

    Attributes:
        boxes: `(n, 4)`, xyxy pixels of the image.
        matched: `(n,)` int64, index of the matched ground-truth box; 0 without a match.
        labels: `(n,)` int64, class of the matched box; 0 for the background, -1 in ignored regions.
    """

    boxes: list[Tensor]
    matched: list[Tensor]
    labels: list[Tensor]


class PerImageRoIHeads(RoIHeads):
    """torchvision's RoI heads, with samples drawn by seed and losses that are means over images.

    Classification and box losses are divided by the requested number of samples of all images. The mask loss is a mean
    over images: each image contributes the mean over its positive samples, or 0 without positives. In torchvision all
    losses are means over the samples of the whole batch, so that they depend on how a batch is split.

    Args:
        box_roi_pool: Pooling module of `models.roi_pool`.
        box_head: Module that maps pooled features to vectors.
        box_predictor: Module that maps vectors to class logits, background first, and box deltas.
        batch_size: Number of sampled proposals per image in training.
        smooth_l1_beta: Error below which the box loss is quadratic; 0 is plain L1.
        score_threshold: Minimum score of detections.
        nms_threshold: IoU above which NMS removes the detection with the lower score of two detections of a class.
        detections_per_image: Maximum number of detections per image.
    """

    def __init__(
        self,
        box_roi_pool: nn.Module,
        box_head: nn.Module,
        box_predictor: nn.Module,
        *,
        batch_size: int,
        smooth_l1_beta: float,
        score_threshold: float,
        nms_threshold: float,
        detections_per_image: int,
    ) -> None:
        super().__init__(
            box_roi_pool,
            box_head,
            box_predictor,
            fg_iou_thresh=POSITIVE_IOU,
            bg_iou_thresh=POSITIVE_IOU,
            batch_size_per_image=batch_size,
            positive_fraction=POSITIVE_FRACTION,
            bbox_reg_weights=BOX_WEIGHTS,
            score_thresh=score_threshold,
            nms_thresh=nms_threshold,
            detections_per_img=detections_per_image,
        )
        self.sampler = ImageSampler(batch_size, POSITIVE_FRACTION, seed_offset=BOX_SEED_OFFSET)
        self.box_coder = Float32BoxCoder(BOX_WEIGHTS)
        self.smooth_l1_beta = smooth_l1_beta
        self.register_buffer("class_weights", None, persistent=False)  # see `set_class_weights`

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Return detections and losses, of which one is empty, as in torchvision's heads."""
        if self.training:
            samples, losses = self.box_loss(features, proposals, image_shapes, targets)
            if self.has_mask():
                losses["loss_mask"] = self._mask_loss(features, samples, image_shapes, targets)
            return [], losses
        detections = self.box_predictions(features, proposals, image_shapes)
        if self.has_mask():
            logits = self._mask_logits(features, [found["boxes"] for found in detections], image_shapes)
            masks = maskrcnn_inference(logits, [found["labels"] for found in detections])
            detections = [found | {"masks": own} for found, own in zip(detections, masks, strict=True)]
        return detections, {}

    def box_loss(self, features, proposals, image_shapes, targets) -> tuple[Samples, dict[str, Tensor]]:
        """Draw samples; return them, for the mask loss, and the classification and box losses."""
        samples = self.draw_samples(proposals, targets)
        logits, box_deltas = self._predict(features, samples.boxes, image_shapes)
        loss_classifier, loss_box_reg = self.sample_losses(logits, box_deltas, samples, targets, self.box_coder)
        return samples, {"loss_classifier": loss_classifier, "loss_box_reg": loss_box_reg}

    def draw_samples(self, proposals: list[Tensor], targets: list[dict]) -> Samples:
        """Draw training samples from the proposals and the ground-truth boxes."""
        self.check_targets(targets)
        gt_boxes = [target["boxes"].to(proposals[0].dtype) for target in targets]
        boxes = self.add_gt_proposals(proposals, gt_boxes)
        matched, labels = self.assign_targets_to_proposals(boxes, gt_boxes, [target["labels"] for target in targets])
        labels = [without_ignored(*image, POSITIVE_IOU) for image in zip(labels, boxes, targets, strict=True)]
        drawn = [torch.where(mask)[0] for mask in self.sampler(labels, targets)]
        return Samples(
            *([own[indices] for own, indices in zip(each, drawn, strict=True)] for each in (boxes, matched, labels))
        )

    def sample_losses(
        self, logits: Tensor, box_deltas: Tensor, samples: Samples, targets: list[dict], coder: BoxCoder
    ) -> tuple[Tensor, ...]:
        """Return the classification and box losses of predictions for samples, means over images."""
        matched_boxes = [  # any boxes will do for the background
            target["boxes"].to(boxes.dtype)[matched] if len(target["boxes"]) else boxes
            for boxes, matched, target in zip(samples.boxes, samples.matched, targets, strict=True)
        ]
        labels, encoded = torch.cat(samples.labels), torch.cat(coder.encode(matched_boxes, samples.boxes))
        if any("ignored" in target for target in targets):
            kept = labels >= 0
            logits, box_deltas, labels, encoded = logits[kept], box_deltas[kept], labels[kept], encoded[kept]
        (positive,) = torch.where(labels > 0)
        box_loss = smooth_l1_loss(
            box_deltas.unflatten(1, (-1, 4))[positive, labels[positive]],
            encoded[positive],
            reduction="sum",
            beta=self.smooth_l1_beta,
        )
        losses = self._classification_loss(logits, labels), box_loss / len(labels)
        return tuple(self.sampler.mean_over_images(loss, samples.labels) for loss in losses)

    def _classification_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean over samples; with weights of classes, too, the divisor is the number of samples."""
        if self.class_weights is None:
            return cross_entropy(logits, labels)
        return cross_entropy(logits, labels, self.class_weights.to(logits.dtype), reduction="sum") / len(labels)

    def box_predictions(self, features, proposals, image_shapes) -> list[dict[str, Tensor]]:
        """Return `boxes`, `labels` and `scores` of each image."""
        logits, box_deltas = self._predict(features, proposals, image_shapes)
        return self.postprocess_detections(logits, box_deltas, proposals, image_shapes)

    def postprocess_detections(self, logits, box_deltas, proposals, image_shapes) -> list[dict[str, Tensor]]:
        """Return the detections after thresholding and NMS, one dict per image instead of torchvision's tuple."""
        found = super().postprocess_detections(logits, box_deltas, proposals, image_shapes)
        return [
            {"boxes": boxes, "labels": labels, "scores": scores} for boxes, scores, labels in zip(*found, strict=True)
        ]

    def _predict(self, features, boxes, image_shapes) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(features, boxes, image_shapes)
        logits, box_deltas = self.box_predictor(self.box_head(pooled))
        return at_least_float32(logits), box_deltas

    def _mask_logits(self, features, boxes, image_shapes) -> Tensor:
        pooled = self.mask_roi_pool(features, boxes, image_shapes)
        return at_least_float32(self.mask_predictor(self.mask_head(pooled)))

    def _mask_loss(self, features, samples: Samples, image_shapes, targets) -> Tensor:
        positive = [torch.where(labels > 0)[0] for labels in samples.labels]
        boxes = [own[indices] for own, indices in zip(samples.boxes, positive, strict=True)]
        matched = [own[indices] for own, indices in zip(samples.matched, positive, strict=True)]
        logits = self._mask_logits(features, boxes, image_shapes).split([len(indices) for indices in positive])
        losses = [
            maskrcnn_loss(own_logits, [own_boxes], [target["masks"]], [target["labels"]], [own_matched])
            for own_logits, own_boxes, own_matched, target in zip(logits, boxes, matched, targets, strict=True)
        ]
        return torch.stack(losses).mean()


def without_ignored(labels: Tensor, boxes: Tensor, target: dict, positive_iou: float) -> Tensor:
    """Return the labels `(n,)` of an image's proposals, with -1 for background in ignored regions."""
    return labels.masked_fill((labels == 0) & is_ignored(boxes, target, positive_iou), -1)
