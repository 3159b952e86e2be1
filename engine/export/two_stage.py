"""Faster and Cascade R-CNN, with or without masks, as graphs over whole batches, with their modules and constants."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import clip_boxes_to_image

from models.roi_pool import PyramidRoIAlign

from .batches import (
    ABSENT,
    MASKS,
    gather_rows,
    is_large,
    make_anchors,
    prepare,
    split_by_label,
    top_detections,
    topk_per_level,
)

# constant in torchvision's `RoIHeads.postprocess_detections`
MIN_BOX_SIDE = 1e-2


class FasterRCNNGraph(nn.Module):
    """Detection on images that need no resizing, equal to `model(images)`.

    Args:
        model: Faster R-CNN in eval mode.
        suppress: `suppression.suppress` or `suppress_as_operator`.
    """

    def __init__(self, model: nn.Module, suppress: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self.suppress = suppress

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Detect in images `(B, channels, H, W)` in [0, 1]; see `batches.OUTPUTS` and `batches.MASKS`."""
        size = images.shape[-2:]
        padded = prepare(images, self.model.transform)
        maps = self.model.backbone(padded)
        proposals, is_there = self._propose(padded, list(maps.values()), size)
        found = self._detect(maps, proposals, is_there, size)
        heads = self.model.roi_heads
        return found | {MASKS: predict_masks(heads, maps, found)} if heads.has_mask() else found

    def _propose(self, padded: Tensor, maps: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return proposals `(B, P, 4)` and whether each is valid `(B, P)`, as `RegionProposalNetwork`."""
        rpn = self.model.rpn
        batch = padded.shape[0]  # `len` would make it a constant
        objectness, deltas = rpn.head(maps)
        counts = [level.shape[1] * level.shape[2] * level.shape[3] for level in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        objectness, deltas = objectness.reshape(batch, -1), deltas.reshape(batch, -1, 4)

        most = rpn.pre_nms_top_n()
        objectness, order = topk_per_level(objectness, counts, most)
        anchors = make_anchors(rpn.anchor_generator, padded, maps)[order.flatten()]
        boxes = rpn.box_coder.decode_single(gather_rows(deltas, order).flatten(0, 1), anchors).unflatten(0, order.shape)
        boxes = clip_boxes_to_image(boxes, size)
        scores = objectness.sigmoid()
        is_there = (objectness > -torch.inf) & (scores >= rpn.score_thresh) & is_large(boxes, rpn.min_size)
        scores = torch.where(is_there, scores, ABSENT)

        levels = torch.arange(len(maps), device=scores.device).repeat_interleave(most).expand_as(scores)
        keep = self.suppress(boxes, split_by_label(scores, levels, len(maps)), rpn.nms_thresh, ABSENT)
        scores = torch.where(keep.any(1), scores, ABSENT)
        scores, order = scores.topk(min(rpn.post_nms_top_n(), scores.shape[1]), dim=1)
        return gather_rows(boxes, order), scores > ABSENT

    def _detect(
        self, maps: dict[str, Tensor], proposals: Tensor, is_there: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Classify and refine proposals, and return the highest scores, as `RoIHeads`."""
        heads = self.model.roi_heads
        boxes, scores = self.classify(maps, proposals, size)
        scores = torch.where(is_there[:, None] & is_large(boxes, MIN_BOX_SIDE), scores, ABSENT)

        # each class has separate boxes, so it is a set with one class
        keep = self.suppress(
            boxes.flatten(0, 1), scores.flatten(0, 1)[:, None], heads.nms_thresh, heads.score_thresh
        ).reshape(scores.shape)
        labels = torch.arange(1, scores.shape[1] + 1, device=scores.device)[:, None].expand_as(scores)
        return top_detections(
            boxes.flatten(1, 2),
            torch.where(keep, scores, ABSENT).flatten(1),
            labels.flatten(1),
            heads.detections_per_img,
        )

    def classify(self, maps: dict[str, Tensor], proposals: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return boxes `(B, C, P, 4)` and scores `(B, C, P)` of each class, without the background."""
        heads = self.model.roi_heads
        logits, box_deltas = heads.box_predictor(
            heads.box_head(pool_rois(heads.box_roi_pool, maps, to_rois(proposals)))
        )
        boxes = _decode(heads.box_coder, box_deltas, proposals, size)[:, :, 1:].transpose(1, 2)
        return boxes, _split_classes(logits.softmax(-1), proposals)


class CascadeRCNNGraph(FasterRCNNGraph):
    """The same for Cascade R-CNN: each stage refines the boxes of the previous one; boxes are class-agnostic."""

    def classify(self, maps: dict[str, Tensor], proposals: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Return boxes `(B, C, P, 4)` and scores `(B, C, P)` of each class, without the background."""
        heads = self.model.roi_heads
        probabilities = []
        for head, predictor, coder in zip(heads.box_head, heads.box_predictor, heads.box_coders, strict=True):
            logits, box_deltas = predictor(head(pool_rois(heads.box_roi_pool, maps, to_rois(proposals))))
            probabilities.append(logits.softmax(-1))
            proposals = _decode(coder, box_deltas, proposals, size)[:, :, 0]
        scores = _split_classes(torch.stack(probabilities).mean(0), proposals)
        return proposals[:, None].expand(-1, scores.shape[1], -1, -1), scores


def _decode(coder: BoxCoder, box_deltas: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Decode `box_deltas` `(B * P, 4 * n)` of boxes `(B, P, 4)` to `(B, P, n, 4)`, clipped to the image."""
    moved = coder.decode_single(box_deltas, boxes.flatten(0, 1))
    return clip_boxes_to_image(moved.reshape(*boxes.shape[:2], -1, 4), size)


def _split_classes(probabilities: Tensor, proposals: Tensor) -> Tensor:
    """Reshape probabilities `(B * P, 1 + C)` of proposals `(B, P, 4)` to `(B, C, P)`, without the background."""
    return probabilities.reshape(*proposals.shape[:2], -1)[:, :, 1:].transpose(1, 2)


def predict_masks(heads: RoIHeads, maps: dict[str, Tensor], found: dict[str, Tensor]) -> Tensor:
    """Predict the mask of each box, as `RoIHeads`; see `batches.MASKS`.

    The mask head processes valid boxes, and one padding box of images without any: some runtimes fail on zero boxes.
    """
    labels = found["labels"]
    is_first = torch.arange(labels.shape[1], device=labels.device) == 0
    (chosen,) = torch.where(((labels > 0) | is_first).flatten())
    pooled = pool_rois(heads.mask_roi_pool, maps, to_rois(found["boxes"])[chosen])
    every_class = heads.mask_predictor(heads.mask_head(pooled)).sigmoid()
    own = labels.flatten()[chosen]
    part = gather_rows(every_class, own[:, None])[:, 0] * (own > 0)[:, None, None]
    masks = part.new_zeros((labels.numel(), *part.shape[1:])).index_put((chosen,), part)
    return masks.unflatten(0, labels.shape)


def to_rois(boxes: Tensor) -> Tensor:
    """Convert boxes `(B, P, 4)` to RoIAlign's format `(B * P, 5)`, with the image index first."""
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None, None].expand(-1, boxes.shape[1], 1)
    return torch.cat([image.to(boxes), boxes], 2).flatten(0, 1)


def pool_rois(pooler: PyramidRoIAlign, maps: dict[str, Tensor], rois: Tensor) -> Tensor:
    """Pool RoIs from the pyramid levels that match their sizes.

    Args:
        pooler: pooler of `models.roi_pool`.
        maps: feature map `(B, C, Hl, Wl)` of each level.
        rois: `(N, 5)`, of `to_rois`.

    Returns:
        `(N, C, h, w)`.
    """
    levels = pooler.map_levels([rois[:, 1:]])
    pooled = None
    for level, name in enumerate(pooler.strides):
        chosen = torch.where(levels == level)[0]
        part = pooler.pool_level(maps, name, rois[chosen])
        pooled = part.new_zeros((rois.shape[0], *part.shape[1:])) if pooled is None else pooled
        pooled = pooled.index_put((chosen,), part)
    return pooled
