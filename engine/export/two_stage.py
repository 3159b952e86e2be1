"""Faster R-CNN as a graph over whole batches, from the modules and numbers of torchvision's."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import concat_box_prediction_layers
from torchvision.ops import MultiScaleRoIAlign, clip_boxes_to_image, roi_align

from .batches import ABSENT, anchors_of, best, is_large, pick, prepare, split_by_label, top_of_levels

# torchvision's `RoIHeads.postprocess_detections` has this number in its code
LEAST_SIDE = 1e-2


class FasterRCNNGraph(nn.Module):
    """From images to detections, as `model(images)` gives them for images that need no resizing.

    Args:
        model: Faster R-CNN in eval mode that has detected before, so that its RoI pooling knows its scales.
        suppress: `suppression.suppress` or `suppress_as_operator`.
    """

    def __init__(self, model: nn.Module, suppress: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self.suppress = suppress

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Detect in images `(B, 3, H, W)` in [0, 1]; see `batches.OUTPUTS`."""
        size = images.shape[-2:]
        padded = prepare(images, self.model.transform)
        maps = self.model.backbone(padded)
        proposals, is_there = self._propose(padded, list(maps.values()), size)
        return self._detect(maps, proposals, is_there, size)

    def _propose(self, padded: Tensor, maps: list[Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Give proposals `(B, P, 4)` and which of them there are `(B, P)`, as `RegionProposalNetwork` does."""
        rpn = self.model.rpn
        batch = padded.shape[0]  # `len` would fix it
        objectness, deltas = rpn.head(maps)
        counts = [level.shape[1] * level.shape[2] * level.shape[3] for level in objectness]
        objectness, deltas = concat_box_prediction_layers(objectness, deltas)
        objectness, deltas = objectness.reshape(batch, -1), deltas.reshape(batch, -1, 4)

        most = rpn.pre_nms_top_n()
        objectness, order = top_of_levels(objectness, counts, most)
        anchors = anchors_of(rpn.anchor_generator, padded, maps)[order.flatten()]
        boxes = rpn.box_coder.decode_single(pick(deltas, order).flatten(0, 1), anchors).unflatten(0, order.shape)
        boxes = clip_boxes_to_image(boxes, size)
        scores = objectness.sigmoid()
        is_there = (objectness > -torch.inf) & (scores >= rpn.score_thresh) & is_large(boxes, rpn.min_size)
        scores = torch.where(is_there, scores, ABSENT)

        levels = torch.arange(len(maps), device=scores.device).repeat_interleave(most).expand_as(scores)
        keep = self.suppress(boxes, split_by_label(scores, levels, len(maps)), rpn.nms_thresh, ABSENT)
        scores = torch.where(keep.any(1), scores, ABSENT)
        scores, order = scores.topk(min(rpn.post_nms_top_n(), scores.shape[1]), dim=1)
        return pick(boxes, order), scores > ABSENT

    def _detect(
        self, maps: dict[str, Tensor], proposals: Tensor, is_there: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """Classify and refine proposals, as `RoIHeads` does."""
        heads = self.model.roi_heads
        batch, count = proposals.shape[:2]
        logits, deltas = heads.box_predictor(heads.box_head(pool(heads.box_roi_pool, maps, proposals)))
        boxes = heads.box_coder.decode_single(deltas, proposals.flatten(0, 1))
        # (B, C, P, 4) and (B, C, P), without the background
        boxes = clip_boxes_to_image(boxes.reshape(batch, count, -1, 4), size)[:, :, 1:].transpose(1, 2)
        scores = logits.softmax(-1).reshape(batch, count, -1)[:, :, 1:].transpose(1, 2)
        scores = torch.where(is_there[:, None] & is_large(boxes, LEAST_SIDE), scores, ABSENT)

        # every class has boxes of its own, and is thus a set with one class
        keep = self.suppress(
            boxes.flatten(0, 1), scores.flatten(0, 1)[:, None], heads.nms_thresh, heads.score_thresh
        ).reshape(scores.shape)
        labels = torch.arange(1, scores.shape[1] + 1, device=scores.device)[:, None].expand_as(scores)
        return best(
            boxes.flatten(1, 2),
            torch.where(keep, scores, ABSENT).flatten(1),
            labels.flatten(1),
            heads.detections_per_img,
        )


def pool(pooler: MultiScaleRoIAlign, maps: dict[str, Tensor], boxes: Tensor) -> Tensor:
    """Pool boxes of a whole batch from the levels of a pyramid that their sizes ask for.

    Args:
        pooler: that has been used before, so that it knows its scales.
        maps: `(B, C, Hl, Wl)` of each level.
        boxes: `(B, P, 4)`.

    Returns:
        `(B * P, C, h, w)`.
    """
    image = torch.arange(boxes.shape[0], device=boxes.device)[:, None, None].expand(-1, boxes.shape[1], 1)
    rois = torch.cat([image.to(boxes), boxes], 2).flatten(0, 1)
    levels = pooler.map_levels([rois[:, 1:]])
    pooled = None
    for level, (name, scale) in enumerate(zip(pooler.featmap_names, pooler.scales, strict=True)):
        chosen = torch.where(levels == level)[0]
        part = roi_align(maps[name], rois[chosen], pooler.output_size, scale, pooler.sampling_ratio)
        pooled = part.new_zeros((rois.shape[0], *part.shape[1:])) if pooled is None else pooled
        pooled = pooled.index_put((chosen,), part)
    return pooled
