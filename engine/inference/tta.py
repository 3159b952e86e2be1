"""Test-time augmentation by horizontal flip."""

import torch
from torch import Tensor, nn
from torchvision.ops import batched_nms
from torchvision.transforms.v2.functional import horizontal_flip_bounding_boxes
from torchvision.tv_tensors import BoundingBoxFormat

from models.masks import Detections, join_patches


class HorizontalFlipTta(nn.Module):
    """A detector in eval mode that merges the detections of an image and of the flipped image by NMS.

    Args:
        model: detector; maps a list of images `(3, H, W)` to a list of dicts with `boxes` (xyxy pixels of the image),
            `labels`, `scores` and optionally `masks` `(n, 1, H, W)` or their patches.
        nms_threshold: IoU above which the detection with the lower score of two of a class is dropped.
        detections_per_image: maximum number of detections per image.
    """

    def __init__(self, model: nn.Module, *, nms_threshold: float, detections_per_image: int) -> None:
        super().__init__()
        self.model = model
        self.nms_threshold = nms_threshold
        self.detections_per_image = detections_per_image

    def forward(self, images: list[Tensor]) -> list[Detections]:
        """Return the merged detections of each image, the best first.

        Raises:
            RuntimeError: in train mode.
        """
        if self.training:
            raise RuntimeError("HorizontalFlipTta works in eval mode only: call eval(), and train its `model` instead")
        found = self.model(images)
        flipped = self.model([image.flip(-1) for image in images])
        return [
            self._merge(one, flip_detections(other, image.shape[-1]))
            for one, other, image in zip(found, flipped, images, strict=True)
        ]

    def _merge(self, one: Detections, other: Detections) -> Detections:
        both = {name: torch.cat([one[name], other[name]]) for name in ("boxes", "labels", "scores")}
        kept = batched_nms(both["boxes"], both["scores"], both["labels"], self.nms_threshold)
        kept = kept[: self.detections_per_image]
        merged = {name: values[kept] for name, values in both.items()}
        if "masks" in one:
            first = len(one["masks"])  # masks are large, so only the kept ones are stacked
            masks = [one["masks"][i] if i < first else other["masks"][i - first] for i in kept.tolist()]
            merged["masks"] = torch.stack(masks) if masks else one["masks"][:0]
        if "mask_patches" in one:
            merged |= join_patches(one, other, kept)
        return merged


def flip_detections(found: Detections, width: int) -> Detections:
    """Flip the boxes and masks of detections horizontally in an image of `width` pixels."""
    size = (0, width)  # the height does not matter
    flipped = found | {"boxes": horizontal_flip_bounding_boxes(found["boxes"], BoundingBoxFormat.XYXY, size)}
    if "mask_flipped" in found:
        flipped["mask_flipped"] = ~found["mask_flipped"]
    return flipped | {"masks": found["masks"].flip(-1)} if "masks" in found else flipped
