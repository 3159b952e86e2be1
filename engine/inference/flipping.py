"""A detector that looks at the mirror image too, and merges what it finds in both."""

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms
from torchvision.transforms.v2.functional import horizontal_flip_bounding_boxes
from torchvision.tv_tensors import BoundingBoxFormat

Detections = dict[str, Tensor]


class MirrorMerged(nn.Module):
    """A detector in eval mode whose detections are those of an image and of its mirror image, merged.

    Both are found by the model as they would be alone. Of detections of one class that overlap, the best stays.

    Args:
        model: gives for `(3, H, W)` images a list of dicts with `boxes` (xyxy pixels of the image), `labels`, `scores`
            and maybe `masks` `(n, 1, H, W)`.
        nms_threshold: IoU above which the lower of two detections of a class is dropped.
        detections_per_image: the most that are kept.
    """

    def __init__(self, model: nn.Module, *, nms_threshold: float, detections_per_image: int) -> None:
        super().__init__()
        self.model = model
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image

    def forward(self, images: list[Tensor]) -> list[Detections]:
        """Give detections as the model does, the best first.

        Raises:
            RuntimeError: in train mode.
        """
        if self.training:
            raise RuntimeError("MirrorMerged only detects: call eval() before, and train its `model` instead")
        found = self.model(images)
        mirrored = self.model([image.flip(-1) for image in images])
        return [
            self._merge(one, flip_detections(other, image.shape[-1]))
            for one, other, image in zip(found, mirrored, images, strict=True)
        ]

    def _merge(self, one: Detections, other: Detections) -> Detections:
        both = {name: torch.cat([one[name], other[name]]) for name in ("boxes", "labels", "scores")}
        kept = batched_nms(both["boxes"], both["scores"], both["labels"], self.nms_threshold)
        kept = kept[: self.detections_per_image]
        merged = {name: values[kept] for name, values in both.items()}
        if "masks" in one:
            first = len(one["masks"])  # they are large: not all of both are put together
            masks = [one["masks"][i] if i < first else other["masks"][i - first] for i in kept.tolist()]
            merged["masks"] = torch.stack(masks) if masks else one["masks"][:0]
        return merged


def flip_detections(found: Detections, width: int) -> Detections:
    """Mirror detections in an image of `width` pixels: boxes from x to `width` - x, and masks."""
    size = (0, width)  # the height does not matter
    flipped = found | {"boxes": horizontal_flip_bounding_boxes(found["boxes"], BoundingBoxFormat.XYXY, size)}
    return flipped | {"masks": found["masks"].flip(-1)} if "masks" in found else flipped
