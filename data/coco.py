"""Detection data set over a checked COCO annotation file."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .annotations import CocoAnnotations
from .images import read_image
from .segmentation import decode_masks

_DUMMY_PX = 64


class CocoDetection(Dataset):
    """Pictures and targets in torchvision's detector contract.

    Item i is `(image, target)`: image `(3, H, W)` uint8, target a dict of `boxes` `(n, 4)` float32 xyxy pixels,
    `labels` `(n,)` int64 counted from 1 (0 is the background), `image_id` int, and if asked for `masks` `(n, H, W)`
    uint8 of 0 and 1. Crowd regions are left out: they mark what must not be learned from, and evaluation reads them
    from the annotation file.

    Args:
        annotations: of `load_annotations`; for masks with its `invalid_masks`.
        transform: `transform(image, target, size=, strong=)` returns the same of tensors; a `TrainTransform` or that
            of `eval_transform`.
        keep_empty: whether images without any box to learn from are in the set.
        masks: whether targets have masks.

    Raises:
        ValueError: if masks are asked for and the annotations were loaded without.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        transform: Callable[..., tuple],
        *,
        keep_empty: bool = True,
        masks: bool = False,
    ) -> None:
        if masks and annotations.arrays.segmentations is None:
            raise ValueError(f"`masks` needs annotations loaded with `invalid_masks`, got {annotations.path} without")
        # nothing but arrays, see `AnnotationArrays`
        self.image_dir = annotations.image_dir
        self.arrays = annotations.arrays
        self.transform = transform
        self.masks = masks
        self.images = np.flatnonzero(self.arrays.counts >= (0 if keep_empty else 1))

    def __len__(self) -> int:
        """Count the images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        """Read image `index` with all augmentations of the transform; see `read`."""
        return self.read(index)

    def read(self, index: int, size: int | None = None, strong: bool = True) -> tuple[Tensor, dict]:
        """Read, decode and transform image `index`.

        Args:
            index: counted from 0.
            size: to which it is resized; None: to a size of its own.
            strong: whether the strong augmentations are on.

        Raises:
            ImageError: naming a file that cannot be read.
        """
        place, arrays = self.images[index], self.arrays
        image = read_image(self.image_dir / arrays.file_name(place), arrays.size(place))
        span = arrays.span(place)
        boxes = torch.tensor(arrays.boxes[span])
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(image.height, image.width)),
            "labels": torch.tensor(arrays.labels[span]),
            "image_id": int(arrays.image_ids[place]),
        }
        if self.masks:
            # of the stated size, which is that of the picture as it was read
            masks = decode_masks(arrays.segmentations_of(place), image.size)
            target["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        return self.transform(image, target, size=size, strong=strong)

    def dummy(self, size: int | None = None, strong: bool = True) -> tuple[Tensor, dict]:
        """Transform a black image without any object, as `read` does those of files."""
        image = Image.new("RGB", (_DUMMY_PX, _DUMMY_PX))
        boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(_DUMMY_PX, _DUMMY_PX))
        target = {"boxes": boxes, "labels": torch.zeros(0, dtype=torch.int64), "image_id": -1}
        if self.masks:
            target["masks"] = tv_tensors.Mask(torch.zeros(0, _DUMMY_PX, _DUMMY_PX, dtype=torch.uint8))
        return self.transform(image, target, size=size, strong=strong)

    @property
    def aspect_ratios(self) -> list[float]:
        """Width over height of each image as the annotation file states it, 1 where it does not."""
        width, height = self.arrays.sizes[self.images].T
        return np.divide(width, height, out=np.ones_like(width), where=height > 0).tolist()
