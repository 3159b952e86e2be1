"""Detection data set of a checked COCO annotation file."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors

from .albumentations_pipeline import Pipeline
from .annotations import CocoAnnotations
from .ignored_boxes import IgnoredBoxes, with_ignored_inside
from .image_files import ImageError
from .images import read_image
from .mask_grid import mask_grid, with_masks
from .mixing import Mixing

_DUMMY_PX = 64


class CocoDetection(Dataset):
    """Images and targets in the format of torchvision's detectors.

    Item i is `(image, target)`. The image is `(channels, H, W)`, uint8 or float32, see `pixels.to_tensor`. The target
    is a dict of `boxes` `(n, 4)` float32 (xyxy pixels), `labels` `(n,)` int64 counted from 1 (0 is the background),
    `image_id` int, and optionally `masks` `(n, H, W)` uint8 with values 0 and 1. Images with crowd regions also have
    `ignored` `(k, 4)` float32, their boxes: detectors are not trained on the background in them. Evaluation reads crowd
    regions from the annotation file.

    Args:
        annotations: Result of `load_annotations`; for masks loaded with `invalid_masks`.
        transform: `transform(image, target, size=, strong=)` returns image and target as tensors; a `TrainTransform`
            or the result of `eval_transform`.
        keep_images_without_boxes: Whether the data set includes images without training annotations.
        masks: Whether targets have masks.
        ignore_crowd_regions: Whether targets have `ignored`; without it crowd regions are background.
        mixing: Combination of images with random others of the data set, one of the strong augmentations. An image
            cannot be read if its partner cannot.
        pipeline: Pipeline of Albumentations that comes before `transform`, one of the strong augmentations.

    Raises:
        ValueError: If `masks` is True and the annotations were loaded without masks.
    """

    def __init__(
        self,
        annotations: CocoAnnotations,
        transform: Callable[..., tuple],
        *,
        keep_images_without_boxes: bool = True,
        masks: bool = False,
        ignore_crowd_regions: bool = True,
        mixing: Mixing | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        if masks and annotations.arrays.segmentations is None:
            raise ValueError(
                f"`masks` needs annotations loaded with `invalid_masks`, got {annotations.path} loaded without"
            )
        # only arrays, see `AnnotationArrays`
        self.image_dir = annotations.image_dir
        self.arrays = annotations.arrays
        self.read_options = annotations.read_options
        self.transform = transform
        self.mixing = mixing
        self.pipeline = pipeline
        self.masks = masks
        self.ignore_crowd_regions = ignore_crowd_regions
        self.images = np.flatnonzero(self.arrays.counts >= (0 if keep_images_without_boxes else 1))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict]:
        """Read image `index` with all augmentations of the transform, see `read`."""
        return self.read(index)

    def read(self, index: int, size: int | None = None, strong: bool = True) -> tuple[Tensor, dict]:
        """Read, decode and transform image `index`.

        Args:
            index: Index in the data set, from 0.
            size: Size to resize the image to; None draws a size for the image.
            strong: Whether the strong augmentations are on.

        Raises:
            ImageError: If the file cannot be read; the message contains its name.
        """
        sample = self._read_alone(index, size, strong)
        if strong and self.mixing is not None:
            # drawn from the random state of the image, like its augmentation
            partner = lambda: self._read_alone(int(torch.randint(len(self), ())), size, strong)  # noqa: E731
            sample = self.mixing(sample, partner)
        return with_ignored_inside(*sample) if "ignored" in sample[1] else sample

    def _read_alone(self, index: int, size: int | None, strong: bool) -> tuple[Tensor, dict]:
        """Read, decode and transform image `index` without others; its ignored boxes may extend out of the image."""
        position, arrays = self.images[index], self.arrays
        image = read_image(self.image_dir / arrays.file_name(position), arrays.size(position), self.read_options)
        span = arrays.span(position)
        boxes = torch.tensor(arrays.boxes[span])
        whole = image.shape[2], image.shape[1]
        if arrays.size(position) is None and (boxes[:, 2:] > torch.tensor(whole)).any():
            # the file could not be measured when the annotations were read
            raise ImageError(f"image {arrays.file_name(position)} is smaller than its boxes; declare width and height")
        target = {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=whole[::-1]),
            "labels": torch.tensor(arrays.labels[span]),
            "image_id": int(arrays.image_ids[position]),
        }
        ignored = arrays.ignored_of(position) if self.ignore_crowd_regions else ()
        if len(ignored):
            target["ignored"] = IgnoredBoxes.of(torch.tensor(ignored), whole[::-1])
        segmentations = arrays.segmentations_of(position) if self.masks else None
        if strong and self.pipeline is not None:
            image, target, segmentations = self.pipeline(image, target, segmentations)
            whole = image.shape[2], image.shape[1]
        if segmentations is None:
            return self.transform(image, target, size=size, strong=strong)
        grid = mask_grid(whole, len(segmentations))
        image, target = self.transform(image, target | grid, size=size, strong=strong)
        return image, with_masks(target, segmentations, whole)

    def dummy(self, size: int | None = None, strong: bool = True) -> tuple[Tensor, dict]:
        """Return a transformed black image without any object; arguments as of `read`."""
        image = torch.zeros(self.read_options.channels, _DUMMY_PX, _DUMMY_PX, dtype=torch.uint8)
        boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(_DUMMY_PX, _DUMMY_PX))
        target = {"boxes": boxes, "labels": torch.zeros(0, dtype=torch.int64), "image_id": -1}
        if self.masks:
            target["masks"] = tv_tensors.Mask(torch.zeros(0, _DUMMY_PX, _DUMMY_PX, dtype=torch.uint8))
        return self.transform(image, target, size=size, strong=strong)

    @property
    def aspect_ratios(self) -> list[float]:
        """Return width over height of each image by its declared size, 1 if the annotation file has no size."""
        width, height = self.arrays.sizes[self.images].T
        return np.divide(width, height, out=np.ones_like(width), where=height > 0).tolist()
