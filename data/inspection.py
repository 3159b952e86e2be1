"""`inspect_dataset`: list the problems and the content of a data set without stopping at the first problem."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .annotations import CocoAnnotations
from .arrays import to_arrays
from .classes import ClassChanges, change_classes
from .coco_file import Problem, category_names, declared_size, is_box, read_instances, structure_problems
from .conventions import SAME_BOX, convention_problems, overlap
from .image_check import count_pixels, inspect_images
from .images import ReadOptions
from .json_file import pause_garbage_collection
from .meaning import complete, read_whole_numbers
from .objects import TrainingAnnotation, check_boxes, with_masks
from .regular_files import open_regular
from .segmentation import extent_of_mask

# Bounds of COCO's size categories, in pixels of area.
SMALL_AREA, LARGE_AREA = 32**2, 96**2
# Boxes with a shorter side hardly overlap with the smallest anchors.
_TINY_PX = 2
_THIN = 20  # ratio of sides, beyond the ratio of every anchor
_RARE = 10  # boxes of a class
_READ_OPTIONS = ReadOptions()


@dataclass(frozen=True)
class Inspection:
    """The result of `inspect_dataset`.

    Attributes:
        errors: Problems that stop training.
        warnings: Problems that do not stop training, but are likely errors or make training harder.
        classes: Number of `images` and of training `boxes` by class name, in the order of ids.
        box_sizes: Number of "small", "medium" and "large" boxes, with the bounds of COCO's APs, APm and APl.
        image_sizes: Number of images by declared (width, height); None if the file has no size.
        pixels: Result of `count_pixels`.
        boxes_per_image: Number of images by their number of training boxes.
        crowd: Number of crowd regions.
        masks: Number of training boxes with a valid mask.
        usable: The data set without invalid entries, for drawing samples.
    """

    errors: list[Problem]
    warnings: list[Problem]
    classes: dict[str, dict[str, int]]
    box_sizes: dict[str, int]
    image_sizes: Counter
    pixels: dict[str, tuple[int, tuple[float, float] | None]]
    boxes_per_image: Counter
    crowd: int
    masks: int
    usable: CocoAnnotations

    @property
    def has_masks(self) -> bool:
        """Return whether every training box has a valid mask."""
        return self.masks == len(self.usable.arrays.boxes) > 0


@pause_garbage_collection()
def inspect_dataset(
    images: str | Path,
    annotations: str | Path,
    *,
    masks: bool = False,
    read_options: ReadOptions = _READ_OPTIONS,
    invalid_annotations: str = "raise",
    max_detections: int = 100,
    classes: ClassChanges | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Inspection:
    """Check a data set in COCO format as `load_annotations` does, but continue after problems.

    Args:
        images: Folder of the images.
        annotations: JSON file.
        masks: Whether training needs masks. If not, invalid masks are warnings, provided that the file has any mask.
        read_options: How the images are read.
        invalid_annotations: The policy of training: with "clip" or "drop", invalid boxes and masks are warnings.
        max_detections: Number of detections of a class that evaluation counts in an image.
        classes: See `load_annotations`.
        progress: Function that wraps the iteration over the images.

    Raises:
        DatasetError: If the folder or the file does not exist, the file is not a COCO instances file, or `classes` does
            not fit it.
    """
    image_dir, path = Path(images), Path(annotations)
    raw, sha256 = read_instances(image_dir, path)
    warnings = [*read_whole_numbers(raw)]
    errors = list(structure_problems(raw))
    warnings += complete(raw, image_dir, read_options.channels)
    raw, classes_kept = change_classes(raw, classes, path) if classes else (raw, None)
    broken, doubtful, facts = inspect_images(raw["images"], image_dir, read_options, progress)
    errors += broken
    conventions = convention_problems(raw, masks=masks)
    errors += conventions.errors
    warnings += conventions.warnings
    accepted = f"; data.invalid_annotations: {invalid_annotations} accepts them"
    masked, unmasked = with_masks(raw)
    if masks:
        raw = masked
        if invalid_annotations == "raise":
            errors += [unmasked] if unmasked.found else []
        else:
            warnings.append(unmasked._replace(hint=accepted))
    objects = check_boxes(raw, "clip" if invalid_annotations == "raise" else invalid_annotations)
    training = objects.training
    if invalid_annotations == "raise":
        errors += [objects.invalid] if objects.invalid.found else []
    else:
        warnings.append(objects.invalid._replace(hint=accepted))
    warnings.append(objects.boxless_crowds)
    names = category_names(raw)
    learned = [found.annotation for found in training]
    counts = Counter(annotation["category_id"] for annotation in learned)
    images_of = Counter(category for _, category in {(a["image_id"], a["category_id"]) for a in learned})
    warnings += _warnings(raw, training, names, counts, max_detections) + doubtful
    if masked["annotations"]:
        warnings += [_mask_warnings(masked)] if masks else [unmasked._replace(hint=""), _mask_warnings(masked)]
    readable = {annotation["id"] for annotation in masked["annotations"]}
    readable_masks = sum(annotation["id"] in readable for annotation in learned)
    arrays = to_arrays(raw["images"], training, [*names], masks=readable_masks == len(learned))
    crowd = sum(annotation["iscrowd"] for annotation in raw["annotations"])
    usable = CocoAnnotations(
        image_dir=image_dir,
        path=path,
        arrays=arrays,
        category_ids=[*names],
        class_names=[*names.values()],
        crowd_regions=crowd,
        fixed_boxes=len(objects.invalid.found),
        dropped_masks=len(unmasked.found) if masks else 0,
        sha256=sha256,
        read_options=read_options,
        classes_kept=classes_kept,
    )
    return Inspection(
        errors=errors,
        warnings=[problem for problem in warnings if problem.found],
        classes={name: {"images": images_of[key], "boxes": counts[key]} for key, name in names.items()},
        box_sizes={"small": 0, "medium": 0, "large": 0} | Counter(map(_size_class, learned)),
        image_sizes=Counter(declared_size(entry) for entry in raw["images"]),
        pixels=count_pixels(facts.values()),
        boxes_per_image=Counter(arrays.counts.tolist()),
        crowd=crowd,
        masks=readable_masks,
        usable=usable,
    )


def compare_splits(
    splits: Sequence[CocoAnnotations], progress: Callable[[Iterable], Iterable] = iter
) -> tuple[list[Problem], list[Problem]]:
    """Compare the splits of a data set: different categories, and duplicate images across and within splits.

    Args:
        splits: Splits of one data set.
        progress: Function that wraps the iteration over the compared images.

    Returns:
        Problems that stop training, and problems that are likely errors.
    """
    categories = [set(zip(split.category_ids, split.class_names, strict=True)) for split in splits]
    other = sorted(set.union(*categories) - set.intersection(*categories))
    owners: dict[Path, set[int]] = {}
    for number, split in enumerate(splits):
        for image in range(len(split.arrays)):
            owners.setdefault(split.image_dir / split.arrays.file_name(image), set()).add(number)
    leaks = [str(file) for file, numbers in owners.items() if len(numbers) > 1]
    within = []
    for group in find_copies(owners, progress):
        across = len(set.union(*(owners[file] for file in group))) > 1
        (leaks if across else within).append(" = ".join(map(str, group)))
    errors = [Problem("categories that are not in all splits", [f"{key} {name!r}" for key, name in other])]
    warnings = [
        Problem("images that are in both splits, which makes validation too optimistic", leaks),
        Problem("duplicate images", within),
    ]
    return [problem for problem in errors if problem.found], [problem for problem in warnings if problem.found]


def find_copies(files: Iterable[Path], progress: Callable[[Iterable], Iterable] = iter) -> list[list[Path]]:
    """Return groups of files with the same bytes; only files of the same length are read."""
    by_length: dict[int, list[Path]] = {}
    for file in dict.fromkeys(files):
        if file.is_file():
            by_length.setdefault(file.stat().st_size, []).append(file)
    by_digest: dict[tuple[int, str], list[Path]] = {}
    for length, group in progress([item for item in by_length.items() if len(item[1]) > 1]):
        for file in group:
            with open_regular(file) as stream:
                by_digest.setdefault((length, hashlib.file_digest(stream, "sha256").hexdigest()), []).append(file)
    return [group for group in by_digest.values() if len(group) > 1]


def _size_class(annotation: dict[str, Any]) -> str:
    area = annotation["area"]
    return "small" if area < SMALL_AREA else "medium" if area < LARGE_AREA else "large"


def _mask_warnings(raw: dict[str, Any]) -> Problem:
    """Return masks that do not match their box, for example in relative coordinates or of another object."""
    sizes = {entry["id"]: declared_size(entry) for entry in raw["images"]}
    boxed = [annotation for annotation in raw["annotations"] if is_box(annotation.get("bbox"))]
    extents = [extent_of_mask(annotation["segmentation"], sizes[annotation["image_id"]]) for annotation in boxed]
    boxes = [annotation["bbox"] for annotation in boxed]
    same = overlap(*(np.array(values, dtype=np.float64).reshape(-1, 4) for values in (extents, boxes))) >= SAME_BOX
    found = [f"annotation {boxed[i]['file_id']} in image {boxed[i]['image_id']}" for i in np.flatnonzero(~same)]
    return Problem(f"masks whose bounding box has an IoU below {SAME_BOX} with the annotated box", found)


def _warnings(
    raw: dict[str, Any],
    training: list[TrainingAnnotation],
    names: dict[int, str],
    counts: Counter,
    max_detections: int,
) -> list[Problem]:
    same = Counter((a["image_id"], a["category_id"], *bbox) for a, bbox in training)
    learned = {a["image_id"] for a, _ in training}
    files = Counter(entry["file_name"] for entry in raw["images"])
    crowds = Counter(a["category_id"] for a in raw["annotations"] if a["iscrowd"])
    of_class = Counter((a["image_id"], a["category_id"]) for a, _ in training)
    file_names = {entry["id"]: entry["file_name"] for entry in raw["images"]}
    sides = {(a["image_id"], a["file_id"]): bbox[2:] for a, bbox in training}
    return [
        Problem("all annotations are crowd regions (iscrowd 1), which training skips", [
            f"annotation {a['file_id']} in image {a['image_id']}"
            for a in raw["annotations"]
            if a["iscrowd"] and not training
        ]),
        Problem(f"more than {max_detections} objects of a class in an image, where AP cannot reach 100", [
            f"{file_names[image]} ({count} {names[category]})"
            for (image, category), count in of_class.items()
            if count > max_detections
        ], "; evaluation counts that many detections (eval.max_detections)"),
        Problem("duplicate file names", [name for name, count in files.items() if count > 1]),
        Problem("classes without boxes", [
            f"{name} ({crowds[key]} crowd regions)" if crowds[key] else name
            for key, name in names.items()
            if not counts[key]
        ]),
        Problem(f"classes with fewer than {_RARE} boxes", [
            f"{name} ({counts[key]})" for key, name in names.items() if 0 < counts[key] < _RARE
        ]),
        Problem("images without training boxes", [
            entry["file_name"] for entry in raw["images"] if entry["id"] not in learned
        ], "; training skips them, or with data.keep_images_without_boxes=true uses them as background"),
        Problem("duplicate boxes, of the same class at the same location", [
            f"{names[category]} {box} in image {image}" for (image, category, *box), count in same.items() if count > 1
        ]),
        Problem(f"boxes with a side below {_TINY_PX} pixels", [
            f"annotation {key} in image {image}" for (image, key), side in sides.items() if min(side) < _TINY_PX
        ]),
        Problem(f"boxes more than {_THIN} times as long as wide", [
            f"annotation {key} in image {image}"
            for (image, key), side in sides.items()
            if min(side) >= _TINY_PX and max(side) > _THIN * min(side)
        ]),
    ]  # fmt: skip
