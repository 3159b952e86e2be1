"""The result of a reader of any format: images with their objects, by split."""

from pathlib import Path
from typing import Any, NamedTuple

Box = tuple[float, float, float, float]


class LabelledObject(NamedTuple):
    """An object in an image, not yet checked.

    Attributes:
        name: Class name.
        place: File and line or element, for messages.
        bbox: (x, y, width, height) in pixels, or None for the box around `segmentation`.
        segmentation: Polygons `[[x, y, ...], ...]` in pixels or run lengths, as COCO has them; None if there is none.
        iscrowd: 1 for a region that neither training nor evaluation counts.
        area: In square pixels, or None for the area of the polygons, or of the box.
    """

    name: str
    place: str
    bbox: Box | None
    segmentation: list[list[float]] | dict[str, Any] | None = None
    iscrowd: int = 0
    area: float | None = None


class LabelledImage(NamedTuple):
    """An image and its objects.

    Attributes:
        path: Image file.
        size: (width, height) in the pixels of its objects.
        objects: Its objects.
        has_labels: Whether there are labels for it, which may be empty.
    """

    path: Path
    size: tuple[int, int]
    objects: list[LabelledObject]
    has_labels: bool = True


class Labels(NamedTuple):
    """The content of a data set.

    Attributes:
        splits: Images of each split: train, val and test, as far as the data set has them.
        category_ids: Id of each class, by its name.
    """

    splits: dict[str, list[LabelledImage]]
    category_ids: dict[str, int]


def sorted_classes(splits: dict[str, list[LabelledImage]]) -> dict[str, int]:
    """Return ids from 1 for the class names of all objects, in alphabetical order."""
    names = {found.name for images in splits.values() for image in images for found in image.objects}
    return {name: key for key, name in enumerate(sorted(names), start=1)}
