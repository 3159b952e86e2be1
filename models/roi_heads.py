"""The second stage: what is in the proposals, where exactly, and which of its pixels."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, maskrcnn_inference, maskrcnn_loss

from .boxes import Float32BoxCoder, at_least_float32
from .sampling import ImageSampler

BOX_SEED_OFFSET = 0x424F58
# Of the sample that the heads are trained on, and from which IoU on it is positive.
POSITIVE_FRACTION, POSITIVE_IOU = 0.25, 0.5
BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class Samples(NamedTuple):
    """The boxes that heads are trained on, a list of one tensor for each image.

    Attributes:
        boxes: `(n, 4)` in pixels of the image.
        matched: int64 `(n,)`, index of the object that each is compared with, 0 where there is none.
        labels: int64 `(n,)`, its class, 0 for the background.
    """

    boxes: list[Tensor]
    matched: list[Tensor]
    labels: list[Tensor]


class PerImageRoIHeads(RoIHeads):
    """torchvision's heads, whose samples are drawn by seed and whose losses are means over images.

    The losses of boxes are divided by full samples of all images. An image's loss of masks is the mean over its
    positive samples, 0 without any. torchvision takes means over what was drawn from, or is positive in, all images of
    the batch together, which would depend on how a batch is split.

    Args:
        box_roi_pool: of `roi_pool`.
        box_head: maps pooled features to vectors.
        box_predictor: maps these to logits of classes, background first, and box deltas.
        batch_size: proposals per image to be trained on.
        score_threshold: detections below are dropped.
        nms_threshold: IoU above which the lower of two detections of a class is dropped.
        detections_per_image: the most that are kept.
    """

    def __init__(
        self,
        box_roi_pool: nn.Module,
        box_head: nn.Module,
        box_predictor: nn.Module,
        *,
        batch_size: int,
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

    def forward(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_shapes: list[tuple[int, int]],
        targets: list[dict] | None = None,
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """Give detections and losses, of which one is empty, as torchvision's heads do."""
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
        """Draw samples and give the losses of boxes; the samples are what masks are learned from."""
        samples = self.draw_samples(proposals, targets)
        logits, box_deltas = self._predict(features, samples.boxes, image_shapes)
        loss_classifier, loss_box_reg = self.sample_losses(logits, box_deltas, samples, targets, self.box_coder)
        return samples, {"loss_classifier": loss_classifier, "loss_box_reg": loss_box_reg}

    def draw_samples(self, proposals: list[Tensor], targets: list[dict]) -> Samples:
        """Draw the boxes to learn from among the proposals and the true boxes."""
        self.check_targets(targets)
        true = [target["boxes"].to(proposals[0].dtype) for target in targets]
        boxes = self.add_gt_proposals(proposals, true)
        matched, labels = self.assign_targets_to_proposals(boxes, true, [target["labels"] for target in targets])
        drawn = [torch.where(mask)[0] for mask in self.sampler(labels, targets)]
        return Samples(
            *([own[places] for own, places in zip(each, drawn, strict=True)] for each in (boxes, matched, labels))
        )

    def sample_losses(
        self, logits: Tensor, box_deltas: Tensor, samples: Samples, targets: list[dict], coder: BoxCoder
    ) -> tuple[Tensor, ...]:
        """Return the losses of classes and of boxes, means over images, of what was predicted for samples."""
        true = [  # of backgrounds it does not matter what
            target["boxes"].to(boxes.dtype)[matched] if len(target["boxes"]) else boxes
            for boxes, matched, target in zip(samples.boxes, samples.matched, targets, strict=True)
        ]
        losses = fastrcnn_loss(logits, box_deltas, samples.labels, coder.encode(true, samples.boxes))
        return tuple(self.sampler.mean_over_images(loss, samples.labels) for loss in losses)

    def box_predictions(self, features, proposals, image_shapes) -> list[dict[str, Tensor]]:
        """Give `boxes`, `labels` and `scores` of each image."""
        logits, box_deltas = self._predict(features, proposals, image_shapes)
        return self.postprocess_detections(logits, box_deltas, proposals, image_shapes)

    def postprocess_detections(self, logits, box_deltas, proposals, image_shapes) -> list[dict[str, Tensor]]:
        """Take the best of all classes and boxes; see torchvision's `postprocess_detections`."""
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
        boxes = [own[places] for own, places in zip(samples.boxes, positive, strict=True)]
        matched = [own[places] for own, places in zip(samples.matched, positive, strict=True)]
        logits = self._mask_logits(features, boxes, image_shapes).split([len(places) for places in positive])
        losses = [
            maskrcnn_loss(own_logits, [own_boxes], [target["masks"]], [target["labels"]], [own_matched])
            for own_logits, own_boxes, own_matched, target in zip(logits, boxes, matched, targets, strict=True)
        ]
        return torch.stack(losses).mean()
