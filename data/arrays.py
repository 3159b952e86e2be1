"""Annotations of many images as arrays, whose memory forked processes share.

Reading a Python object changes its reference count, so that a forked process copies the memory page. With millions of
objects every loader worker would copy all of them. Arrays remain shared.
"""

import pickle
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .coco_file import declared_size
from .objects import TrainingAnnotation


class PackedBytes:
    """A list of byte strings in one buffer.

    Args:
        items: Byte strings of any length.
    """

    def __init__(self, items: Iterable[bytes]) -> None:
        self._buffer, ends = bytearray(), array("q", [0])
        for item in items:
            self._buffer += item
            ends.append(len(self._buffer))
        self._ends = np.array(ends)

    def __len__(self) -> int:
        """Return the number of items."""
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> bytes:
        """Return a copy of item `index`, counted from 0."""
        return bytes(self._buffer[self._ends[index] : self._ends[index + 1]])


@dataclass(frozen=True)
class AnnotationArrays:
    """Images and their training annotations, in the order of the images.

    Attributes:
        image_ids: `(images,)` int64.
        file_names: File names relative to the image folder, UTF-8.
        sizes: `(images, 2)` float64, declared (width, height) in pixels; 0 if the annotation file has no size.
        offsets: `(images + 1,)` int64; image i has the annotations `offsets[i]` to `offsets[i + 1] - 1`.
        boxes: `(annotations, 4)` float32, xyxy pixels inside the image.
        labels: `(annotations,)` int64, counted from 1.
        segmentations: Pickled segmentation of each annotation; None if masks are not needed.
        ignored_boxes: `(regions, 4)` float32, xyxy pixels of crowd regions.
        ignored_images: `(regions,)` int64, index of the image of each crowd region.
    """

    image_ids: NDArray[np.int64]
    file_names: PackedBytes
    sizes: NDArray[np.float64]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    segmentations: PackedBytes | None
    ignored_boxes: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 4), dtype=np.float32))
    ignored_images: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.image_ids)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Return the number of annotations of each image, `(images,)`."""
        return np.diff(self.offsets)

    def file_name(self, image: int) -> str:
        """Return the file name of an image, by its index."""
        return self.file_names[image].decode()

    def size(self, image: int) -> tuple[float, float] | None:
        """Return the declared (width, height) of an image, by its index; None if the file has no size."""
        width, height = (int(side) if side.is_integer() else side for side in self.sizes[image].tolist())
        return (width, height) if width else None

    def span(self, image: int) -> slice:
        """Return the slice of an image's annotations."""
        return slice(*self.offsets[image : image + 2].tolist())

    def ignored_of(self, image: int) -> NDArray[np.float32]:
        """Return the boxes of an image's crowd regions, `(n, 4)` xyxy pixels, by the image's index."""
        return self.ignored_boxes[self.ignored_images == image]

    def segmentations_of(self, image: int) -> list[list | dict[str, Any]]:
        """Return the segmentations of an image, as in the annotation file."""
        span = self.span(image)
        return [pickle.loads(self.segmentations[index]) for index in range(span.start, span.stop)]


def to_arrays(
    images: Sequence[dict[str, Any]],
    annotations: Sequence[TrainingAnnotation],
    category_ids: Sequence[int],
    *,
    masks: bool,
    ignored: Sequence[TrainingAnnotation] = (),
) -> AnnotationArrays:
    """Pack checked annotations.

    Args:
        images: Image entries of the annotation file.
        annotations: Training annotations, in the order of `images`.
        category_ids: Label l is `category_ids[l - 1]`.
        masks: Whether to keep the segmentations.
        ignored: Crowd regions, in any order.
    """
    labels = {category: label for label, category in enumerate(category_ids, start=1)}
    index_of = {entry["id"]: index for index, entry in enumerate(images)}
    owners = _owners(annotations, index_of)
    return AnnotationArrays(
        image_ids=np.array([*index_of], dtype=np.int64),
        file_names=PackedBytes(entry["file_name"].encode() for entry in images),
        sizes=np.array([declared_size(entry) or (0, 0) for entry in images], dtype=np.float64).reshape(-1, 2),
        offsets=np.append(0, np.cumsum(np.bincount(owners, minlength=len(images)))),
        boxes=_boxes(annotations),
        labels=np.fromiter(
            (labels[found.annotation["category_id"]] for found in annotations), np.int64, len(annotations)
        ),
        segmentations=PackedBytes(pickle.dumps(found.annotation["segmentation"]) for found in annotations)
        if masks
        else None,
        ignored_boxes=_boxes(ignored),
        ignored_images=_owners(ignored, index_of),
    )


def _owners(annotations: Sequence[TrainingAnnotation], index_of: dict[int, int]) -> NDArray[np.int64]:
    return np.fromiter((index_of[found.annotation["image_id"]] for found in annotations), np.int64, len(annotations))


def _boxes(annotations: Sequence[TrainingAnnotation]) -> NDArray[np.float32]:
    boxes = np.array([found.bbox for found in annotations], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # xywh to xyxy
    return boxes
