"""RetinaNet and FCOS as graphs over whole batches, with torchvision's modules and constants."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torchvision.ops import clip_boxes_to_image

from models.retinanet import AFTER_NMS, BEFORE_NMS

from .batches import ABSENT, gather_rows, make_anchors, prepare, split_by_label, top_detections, topk_per_level


class RetinaNetGraph(nn.Module):
    """Detection on images that need no resizing, equal to `model(images)`.

    Args:
        model: detector in eval mode.
        suppress: `suppression.suppress` or `suppress_as_operator`.
    """

    def __init__(self, model: nn.Module, suppress: Callable[..., Tensor]) -> None:
        super().__init__()
        self.model = model
        self.suppress = suppress

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Detect in images `(B, channels, H, W)` in [0, 1]; see `batches.OUTPUTS`."""
        model = self.model
        padded = prepare(images, model.transform)
        maps = [*model.backbone(padded).values()]
        outputs = model.head(maps)
        scores = self.scores(outputs)[..., 1:]  # (B, locations, C), without class 0, which is unused
        scores = torch.where(scores > model.score_thresh, scores, ABSENT)
        classes = scores.shape[-1]

        per_location = model.anchor_generator.num_anchors_per_location()
        counts = [level.shape[-2] * level.shape[-1] * n for level, n in zip(maps, per_location, strict=True)]
        scores = scores.flatten(1)
        scores, order = topk_per_level(scores, [n * classes for n in counts], model.topk_candidates)
        locations, labels = order // classes, order % classes
        anchors = make_anchors(model.anchor_generator, padded, maps)[locations.flatten()]
        boxes = self.decode(gather_rows(outputs["bbox_regression"], locations).flatten(0, 1), anchors).unflatten(
            0, order.shape
        )
        size, clipping = images.shape[-2:], getattr(model, "clip_boxes", BEFORE_NMS)
        boxes = clip_boxes_to_image(boxes, size) if clipping == BEFORE_NMS else boxes

        keep = self.suppress(boxes, split_by_label(scores, labels, classes), model.nms_thresh, ABSENT)
        scores, labels, most = torch.where(keep.any(1), scores, ABSENT), labels + 1, model.detections_per_img
        found = top_detections(boxes, scores, labels, most)
        if clipping == AFTER_NMS:
            boxes = clip_boxes_to_image(found["boxes"], size)
            has_size = (boxes[..., 2:] > boxes[..., :2]).all(-1)
            found = top_detections(boxes, torch.where(has_size, found["scores"], ABSENT), found["labels"], most)
        return found

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Return the scores of all classes from the outputs of the head."""
        return outputs["cls_logits"].sigmoid()

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Decode the box regression of anchors to boxes `(n, 4)`."""
        return self.model.box_coder.decode_single(deltas, anchors)


class FCOSGraph(RetinaNetGraph):
    """The same for FCOS, which multiplies scores by centerness and predicts distances to the box sides."""

    def scores(self, outputs: dict[str, Tensor]) -> Tensor:
        """Return the scores of all classes from the outputs of the head."""
        return (outputs["cls_logits"].sigmoid() * outputs["bbox_ctrness"].sigmoid()).sqrt()

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Decode the box regression of anchors to boxes `(n, 4)`."""
        return self.model.box_coder.decode(deltas, anchors)
