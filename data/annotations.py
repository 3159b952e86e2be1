"""`load_annotations`: read and check a data set in COCO format before training."""

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from .arrays import AnnotationArrays, to_arrays
from .classes import ClassChanges, ClassesKept, change_categories, change_classes
from .coco_file import DatasetError, Problem, category_names, read_instances, structure_problems
from .conventions import convention_problems
from .image_check import CHECK_POLICIES, check_stamp, image_problems
from .images import ReadOptions
from .json_file import pause_garbage_collection
from .meaning import complete, read_whole_numbers
from .objects import INVALID_BOX_POLICIES, INVALID_MASK_POLICIES, check_boxes, with_masks

_READ_OPTIONS = ReadOptions()


@dataclass(frozen=True)
class CocoAnnotations:
    """The checked content of a COCO annotation file.

    Attributes:
        image_dir: Folder of the images.
        path: Annotation file.
        arrays: Images and training annotations, in the form that data loaders share between processes.
        category_ids: Category ids in ascending order; label l of the model is `category_ids[l - 1]`.
        class_names: Names in the same order.
        classes_kept: Effect of `ClassChanges`; None without changes.
        crowd_regions: Number of crowd annotations.
        fixed_boxes: Number of invalid boxes that were clipped or dropped.
        dropped_masks: Number of annotations that were dropped because their mask is missing or invalid.
        sha256: Hex digest of the annotation file, to detect changes.
        checked: Stamp of the image files, see `check_stamp`, if they were checked in this call or earlier.
        check_skipped: Whether the image files were checked earlier and not in this call.
        raw: Whole file for evaluation, completed by `complete` and without the annotations that a policy drops; None if
            `keep_raw` was False.
        read_options: How the images are read.
        warnings: Values that were completed, clipped or left out, and numbers that seem to follow another convention.
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
    warnings: tuple[Problem, ...] = ()
    classes_kept: ClassesKept | None = None

    @property
    def why_no_boxes(self) -> str:
        """Return the reasons why the data set has no training boxes."""
        if self.classes_kept and not self.classes_kept.boxes:
            return f"data.classes keeps none of its {self.classes_kept.boxes_before:,} annotations"
        reasons = {
            "invalid boxes": self.fixed_boxes,
            "crowd regions (iscrowd 1), which training skips": self.crowd_regions,
            "annotations without a readable `segmentation`, which the detector's masks need": self.dropped_masks,
        }
        found = [f"{count} {what}" for what, count in reasons.items() if count]
        return f"its annotations are {', '.join(found)}" if found else "it has no annotations"


class ImageList(NamedTuple):
    """The images of an annotation file, and its categories.

    Attributes:
        images: Entries of the images.
        category_ids: Category ids in ascending order, None if the file has no categories.
        class_names: Names in the same order.
    """

    images: list[dict[str, Any]]
    category_ids: list[int] | None
    class_names: list[str] | None


def load_image_list(images: str | Path, annotations: str | Path, *, classes: ClassChanges | None = None) -> ImageList:
    """Read the images and the categories of a COCO file, which may have no annotations, as COCO's test splits.

    Args:
        images: Folder of the images.
        annotations: JSON file.
        classes: Changes of the categories, if the file has any.

    Raises:
        DatasetError: If the file is missing, or an image or a category is invalid, or the changes do not fit.
    """
    image_dir, path = Path(images), Path(annotations)
    raw = _read_parts(image_dir, path, ("images",), ("categories",))
    names = category_names(raw) or None
    if names and classes:
        names, _ = change_categories(names, classes, path)
    return ImageList(raw["images"], names and [*names], names and [*names.values()])


def load_categories(annotations: str | Path) -> dict[int, str]:
    """Return the category names of a COCO file by id, in ascending order. The file needs no images or annotations.

    Raises:
        DatasetError: If the file is missing, or a category is invalid.
    """
    path = Path(annotations)
    return category_names(_read_parts(path.parent, path, ("categories",)))


def _read_parts(image_dir: Path, path: Path, needed: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """Read, check and complete some lists of a COCO file; the others are empty."""
    raw, _ = read_instances(image_dir, path, parts=needed)
    used = {part: raw[part] for part in (*needed, *optional) if isinstance(raw.get(part), list)}
    raw = {"images": [], "categories": [], "annotations": []} | used
    deque(read_whole_numbers(raw), maxlen=0)
    _raise_first(path, structure_problems(raw))
    deque(complete(raw, image_dir), maxlen=0)
    return raw


@pause_garbage_collection()
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
    classes: ClassChanges | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> CocoAnnotations:
    """Read and check a data set in COCO format.

    Args:
        images: Folder of the images.
        annotations: JSON file.
        invalid_boxes: Policy for boxes that have no size, are not numbers, or extend more than one pixel out of their
            image: "raise" an error, "clip" them to the image (and drop boxes that have no size then), or "drop" them,
            also in `raw`. "keep" is for evaluation alone: boxes out of their image remain as they are, and other
            invalid boxes raise an error.
        invalid_masks: Policy for annotations, including crowd regions, whose `segmentation` is missing or invalid:
            "raise" an error, or "drop" them, also from `raw`. None does not check masks.
        download_hint: How to get the data set, for the error if it is missing.
        check_images: When to check every image file, see `check_image`: "always", "never", or "first_time", which
            skips the check if the stamp is in `checked`.
        checked: Stamps of earlier checks.
        keep_raw: Whether to keep `raw`, which needs much memory.
        read_options: How the images are read.
        classes: Changes of the classes, also in `raw`. Annotations of other classes are left out before any check of
            boxes and masks. All images remain.
        progress: Function that wraps the iteration over the images.

    Raises:
        DatasetError: If something is missing or invalid, with the number of cases and the first ones, or if `classes`
            does not fit the file.
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
    warnings = [*read_whole_numbers(raw)]
    _raise_first(path, structure_problems(raw))
    warnings += complete(raw, image_dir, read_options.channels)
    raw, classes_kept = change_classes(raw, classes, path) if classes else (raw, None)
    stamp = None if check_images == "never" else check_stamp(sha256, raw["images"], image_dir, read_options)
    skipped = check_images == "first_time" and stamp in checked
    if stamp and not skipped:
        _raise_first(path, image_problems(raw["images"], image_dir, read_options, download_hint, progress))
    conventions = convention_problems(raw, masks=invalid_masks is not None)
    _raise_first(path, conventions.errors)
    warnings += conventions.warnings
    dropped_masks = 0
    if invalid_masks is not None:
        raw, unmasked = with_masks(raw)
        dropped_masks = len(unmasked.found)
        if invalid_masks == "raise":
            _raise_first(path, [unmasked] if unmasked.found else [])
        warnings.append(unmasked._replace(hint="; data.invalid_annotations skips them"))
    objects = check_boxes(raw, invalid_boxes)
    if invalid_boxes in ("raise", "keep"):
        _raise_first(path, [objects.invalid] if objects.invalid.found else [])
    how = "clips them, or drops them if nothing remains" if invalid_boxes == "clip" else "drops them"
    warnings += [
        objects.invalid._replace(hint=f"; data.invalid_annotations {how}"),
        objects.outside,
        objects.boxless_crowds,
    ]
    raw = raw | {"annotations": objects.annotations}
    names = category_names(raw)
    return CocoAnnotations(
        image_dir=image_dir,
        path=path,
        arrays=to_arrays(
            raw["images"], objects.training, [*names], masks=invalid_masks is not None, ignored=objects.ignored
        ),
        category_ids=[*names],
        class_names=[*names.values()],
        crowd_regions=sum(annotation["iscrowd"] for annotation in raw["annotations"]),
        fixed_boxes=len(objects.invalid.found),
        dropped_masks=dropped_masks,
        sha256=sha256,
        checked=stamp,
        check_skipped=skipped,
        raw=raw if keep_raw else None,
        read_options=read_options,
        warnings=tuple(problem for problem in warnings if problem.found),
        classes_kept=classes_kept,
    )


def _raise_first(path: Path, problems: Iterable[Problem]) -> None:
    for problem in problems:
        raise DatasetError(f"annotation file {path}: {problem}")
