"""A data set in COCO format, read once and checked before any training."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .arrays import AnnotationArrays, to_arrays
from .coco_file import DatasetError, Problem, category_names, fill_in, read_instances, structure_problems
from .image_check import CHECK_POLICIES, check_stamp, image_problems
from .objects import INVALID_BOX_POLICIES, INVALID_MASK_POLICIES, training_annotations, with_boxes, with_masks


@dataclass(frozen=True)
class CocoAnnotations:
    """What a COCO annotation file says, with every image and category in its place.

    Attributes:
        image_dir: folder of the images.
        path: the annotation file.
        arrays: the images and the annotations to learn from; all that a data set for loaders holds.
        category_ids: ids of the file in rising order; label l of the model stands for `category_ids[l - 1]`.
        class_names: names in the same order.
        crowd_regions: how many annotations mark a crowd.
        fixed_boxes: how many invalid boxes were clipped or dropped.
        dropped_masks: how many annotations were left out because they have no mask.
        sha256: hex digest of the annotation file's bytes, which tells whether it is still the same.
        checked: the stamp of its image files, see `check_stamp`, if they were checked, now or earlier.
        check_skipped: whether that was earlier.
        raw: the whole file for evaluation; annotation ids are counted from 1, and missing areas and crowd flags filled
            in. None if it was not asked for.
    """

    image_dir: Path
    path: Path
    arrays: AnnotationArrays
    category_ids: list[int]
    class_names: list[str]
    crowd_regions: int
    fixed_boxes: int
    dropped_masks: int
    sha256: str
    checked: dict[str, Any] | None = None
    check_skipped: bool = False
    raw: dict[str, Any] | None = None


def load_annotations(
    images: str | Path,
    annotations: str | Path,
    *,
    invalid_boxes: str = "raise",
    invalid_masks: str | None = None,
    source: str | None = None,
    check_images: str = "always",
    checked: Collection[dict[str, Any]] = (),
    keep_raw: bool = True,
    progress: Callable[[Iterable], Iterable] = iter,
) -> CocoAnnotations:
    """Read and check a data set in COCO format.

    Args:
        images: folder of the images.
        annotations: the JSON file.
        invalid_boxes: what to do with boxes that have no size, are no numbers, or reach out of their image by more
            than a pixel: "raise" an error, "clip" them to the image (and drop what has no size then), or "drop" them.
        invalid_masks: what to do with annotations, crowd regions among them, whose `segmentation` is missing or cannot
            be read: "raise" an error, or "drop" them, also from `raw`. None: no masks are needed, and nobody looks.
        source: where to get the data set, for the error when it is missing.
        check_images: when to check every image file, see `check_image`: "always", "never", or "first_time", which is
            unless its stamp is among `checked`.
        checked: stamps of earlier checks.
        keep_raw: whether to keep `raw`, which takes much memory.
        progress: wraps the iteration over the images.

    Raises:
        DatasetError: if something is missing or wrong, with the count and the first ones by name.
    """
    for name, value, policies in (
        ("invalid_boxes", invalid_boxes, INVALID_BOX_POLICIES),
        ("invalid_masks", invalid_masks, (None, *INVALID_MASK_POLICIES)),
        ("check_images", check_images, CHECK_POLICIES),
    ):
        if value not in policies:
            raise ValueError(f"`{name}` must be one of {', '.join(filter(None, policies))}, got {value!r}")
    image_dir, path = Path(images), Path(annotations)
    raw, sha256 = read_instances(image_dir, path, source)
    _raise_first(path, structure_problems(raw))
    fill_in(raw)
    stamp = None if check_images == "never" else check_stamp(sha256, raw["images"], image_dir)
    skipped = check_images == "first_time" and stamp in checked
    if stamp and not skipped:
        _raise_first(path, image_problems(raw["images"], image_dir, source, progress))
    dropped_masks = 0
    if invalid_masks is not None:
        raw, unmasked = with_masks(raw)
        dropped_masks = len(unmasked.found)
        if invalid_masks == "raise":
            _raise_first(path, [unmasked] if unmasked.found else [])
    training, invalid = training_annotations(raw, invalid_boxes)
    if invalid_boxes == "raise":
        _raise_first(path, [invalid] if invalid.found else [])
    raw = with_boxes(raw)
    names = category_names(raw)
    return CocoAnnotations(
        image_dir=image_dir,
        path=path,
        arrays=to_arrays(raw["images"], training, [*names], masks=invalid_masks is not None),
        category_ids=[*names],
        class_names=[*names.values()],
        crowd_regions=sum(annotation["iscrowd"] for annotation in raw["annotations"]),
        fixed_boxes=len(invalid.found),
        dropped_masks=dropped_masks,
        sha256=sha256,
        checked=stamp,
        check_skipped=skipped,
        raw=raw if keep_raw else None,
    )


def _raise_first(path: Path, problems: Iterable[Problem]) -> None:
    for problem in problems:
        raise DatasetError(f"annotation file {path}: {problem}")
