"""Detection data set over a checked COCO annotation file."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .annotations import CocoAnnotations, stated_size
from .images import read_image
from .segmentation import decode_masks


class CocoDetection(Dataset):
    """Pictures and targets in torchvision's detector contract.

    Item i is `(image, target)`: image `(3, H, W)` uint8, target a dict of `boxes` `(n, 4)` float32 xyxy pixels,
    `labels` `(n,)` int64 counted from 1 (0 is the background), `image_id` int, and if asked for `masks` `(n, H, W)`
    uint8 of 0 and 1. Crowd regions are left out: they mark what must not be learned from, and evaluation reads them
    from the annotation file.

    Args:
        annotations: of `load_annotations`; for masks with its `invalid_masks`.
        transform: maps `(image, target)` to the same.
        keep_empty: whether images without any box to learn from are in the set.
        masks: whether targets have masks.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        transform: Callable[..., tuple],
        *,
        keep_empty: bool = True,
        masks: bool = False,
    ) -> None:
        self.annotations = annotations
        self.transform = transform
        self.masks = masks
        self.entries = [e for e in annotations.images if keep_empty or annotations.boxes[e["id"]]]
        self._labels = {category: label for label, category in enumerate(annotations.category_ids, start=1)}

    def __len__(self) -> int:
        """Count the images."""
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        """Read, decode and transform image `index`; raises `ImageError` naming a file that cannot be read."""
        entry = self.entries[index]
        image = read_image(self.annotations.image_dir / entry["file_name"], stated_size(entry))
        found = self.annotations.boxes[entry["id"]]
        boxes = torch.tensor([a["bbox"] for a in found], dtype=torch.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]  # xywh to xyxy
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width)),
            "labels": torch.tensor([self._labels[a["category_id"]] for a in found], dtype=torch.int64),
            "image_id": entry["id"],
        }
        if self.masks:
            # of the stated size, which is that of the picture as it was read
            masks = decode_masks([a["segmentation"] for a in found], image.size)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return self.transform(image, target)

    @property
    def aspect_ratios(self) -> list[float]:
        """Width over height of each image as the annotation file states it, 1 where it does not."""
        sizes = [stated_size(entry) for entry in self.entries]
        return [size[0] / size[1] if size else 1.0 for size in sizes]
