"""`load_annotations`: read and check a data set in COCO format before training."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .arrays import AnnotationArrays, to_arrays
from .coco_file import DatasetError, Problem, category_names, fill_in, read_instances, structure_problems
from .image_check import CHECK_POLICIES, check_stamp, image_problems
from .images import ReadOptions
from .objects import INVALID_BOX_POLICIES, INVALID_MASK_POLICIES, training_annotations, with_boxes, with_masks

_READ_OPTIONS = ReadOptions()


@dataclass(frozen=True)
class CocoAnnotations:
    """The checked content of a COCO annotation file.

    Attributes:
        image_dir: Folder of the images.
        path: Annotation file.
        arrays: Images and training annotations, in the form that data loaders share between processes.
        category_ids: Category ids of the file in ascending order; label l of the model is `category_ids[l - 1]`.
        class_names: Names in the same order.
        crowd_regions: Number of crowd annotations.
        fixed_boxes: Number of invalid boxes that were clipped or dropped.
        dropped_masks: Number of annotations that were dropped because their mask is missing or invalid.
        sha256: Hex digest of the annotation file, to detect changes.
        checked: Stamp of the image files, see `check_stamp`, if they were checked in this call or earlier.
        check_skipped: Whether the image files were checked earlier and not in this call.
        raw: Whole file for evaluation, with annotation ids counted from 1, and missing areas and crowd flags filled
            in; None if `keep_raw` was False.
        read_options: How the images are read.
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
    read_options: ReadOptions = _READ_OPTIONS


def load_annotations(
    images: str | Path,
    annotations: str | Path,
    *,
    invalid_boxes: str = "raise",
    invalid_masks: str | None = None,
    download_hint: str | None = None,
    check_images: str = "always",
    checked: Collection[dict[str, Any]] = (),
    keep_raw: bool = True,
    read_options: ReadOptions = _READ_OPTIONS,
    progress: Callable[[Iterable], Iterable] = iter,
) -> CocoAnnotations:
    """Read and check a data set in COCO format.

    Args:
        images: Folder of the images.
        annotations: JSON file.
        invalid_boxes: Policy for boxes that have no size, are not numbers, or extend more than one pixel out of their
            image: "raise" an error, "clip" them to the image (and drop boxes that have no size then), or "drop" them.
        invalid_masks: Policy for annotations, including crowd regions, whose `segmentation` is missing or invalid:
            "raise" an error, or "drop" them, also from `raw`. None does not check masks.
        download_hint: How to get the data set, for the error if it is missing.
        check_images: When to check every image file, see `check_image`: "always", "never", or "first_time", which
            skips the check if the stamp is in `checked`.
        checked: Stamps of earlier checks.
        keep_raw: Whether to keep `raw`, which needs much memory.
        read_options: How the images are read.
        progress: Function that wraps the iteration over the images.

    Raises:
        DatasetError: If something is missing or invalid, with the number of cases and the first ones.
        ValueError: If a policy is unknown.
    """
    for name, value, policies in (
        ("invalid_boxes", invalid_boxes, INVALID_BOX_POLICIES),
        ("invalid_masks", invalid_masks, (None, *INVALID_MASK_POLICIES)),
        ("check_images", check_images, CHECK_POLICIES),
    ):
        if value not in policies:
            raise ValueError(f"`{name}` must be one of {', '.join(filter(None, policies))}, got {value!r}")
    image_dir, path = Path(images), Path(annotations)
    raw, sha256 = read_instances(image_dir, path, download_hint)
    _raise_first(path, structure_problems(raw))
    fill_in(raw)
    stamp = None if check_images == "never" else check_stamp(sha256, raw["images"], image_dir, read_options)
    skipped = check_images == "first_time" and stamp in checked
    if stamp and not skipped:
        _raise_first(path, image_problems(raw["images"], image_dir, read_options, download_hint, progress))
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
        read_options=read_options,
    )


def _raise_first(path: Path, problems: Iterable[Problem]) -> None:
    for problem in problems:
        raise DatasetError(f"annotation file {path}: {problem}")
