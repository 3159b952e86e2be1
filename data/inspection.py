"""Everything about a data set that would hurt a training, and what is in it."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from .annotations import CocoAnnotations
from .arrays import to_arrays
from .coco_file import Problem, category_names, declared_size, fill_in, read_instances, structure_problems
from .image_check import image_problems
from .objects import TrainingAnnotation, training_annotations, with_boxes, with_masks
from .segmentation import to_rle

# COCO's classes of size, by area in pixels.
SMALL_AREA, LARGE_AREA = 32**2, 96**2
# The detectors' smallest anchors hardly meet a box with a shorter side.
_TINY_PX = 2
_THIN = 20  # ratio of sides beyond every anchor's
_RARE = 10  # boxes of a class
# Overlap, of the box of a mask and the box beside it, below which one of them is of something else.
_SAME_BOX = 0.5


@dataclass(frozen=True)
class Inspection:
    """What `inspect_dataset` found.

    Attributes:
        errors: what training refuses.
        warnings: what it takes, and what is likely a mistake or makes learning hard.
        classes: by name in the order of ids, the number of `images` and of `boxes` to learn from.
        box_sizes: how many boxes are "small", "medium" and "large", as COCO's APs, APm and APl count them.
        image_sizes: how many images are of each (width, height), None where the file states none.
        boxes_per_image: how many images have so many boxes to learn from.
        crowd: number of crowd regions.
        masks: number of boxes to learn from that have a mask that can be read.
        usable: the data set without what is wrong, to draw samples of.
    """

    errors: list[Problem]
    warnings: list[Problem]
    classes: dict[str, dict[str, int]]
    box_sizes: dict[str, int]
    image_sizes: Counter
    boxes_per_image: Counter
    crowd: int
    masks: int
    usable: CocoAnnotations

    @property
    def has_masks(self) -> bool:
        """Whether every box to learn from has a mask."""
        return self.masks == len(self.usable.arrays.boxes) > 0


def inspect_dataset(
    images: str | Path,
    annotations: str | Path,
    *,
    masks: bool = False,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Inspection:
    """Look at a data set in COCO format as `load_annotations` does, and go on after what is wrong.

    Args:
        images: folder of the pictures.
        annotations: the JSON file.
        masks: whether the training needs masks. Else those that cannot be read are warnings, if the file has any mask.
        progress: wraps the iteration over the pictures.

    Raises:
        DatasetError: if there is nothing to look at: no folder, no file, no COCO instances in it.
    """
    image_dir, path = Path(images), Path(annotations)
    raw, sha256 = read_instances(image_dir, path)
    errors = list(structure_problems(raw))
    fill_in(raw)
    errors += image_problems(raw["images"], image_dir, progress=progress)
    masked, unmasked = with_masks(raw)
    if masks:
        raw = masked
        errors += [unmasked] if unmasked.found else []
    training, invalid = training_annotations(raw, "clip")
    if invalid.found:
        errors.append(invalid)
    names = category_names(raw)
    learned = [found.annotation for found in training]
    counts = Counter(annotation["category_id"] for annotation in learned)
    images_of = Counter(category for _, category in {(a["image_id"], a["category_id"]) for a in learned})
    warnings = _warnings(raw, training, names, counts)
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
        fixed_boxes=len(invalid.found),
        dropped_masks=len(unmasked.found) if masks else 0,
        sha256=sha256,
    )
    return Inspection(
        errors=errors,
        warnings=[problem for problem in warnings if problem.found],
        classes={name: {"images": images_of[key], "boxes": counts[key]} for key, name in names.items()},
        box_sizes={"small": 0, "medium": 0, "large": 0} | Counter(map(_size_class, learned)),
        image_sizes=Counter(declared_size(entry) for entry in raw["images"]),
        boxes_per_image=Counter(arrays.counts.tolist()),
        crowd=crowd,
        masks=readable_masks,
        usable=usable,
    )


def compare_splits(
    splits: Sequence[CocoAnnotations], progress: Callable[[Iterable], Iterable] = iter
) -> tuple[list[Problem], list[Problem]]:
    """Find what no split shows alone: other categories, and pictures that stand twice, in several splits or in one.

    Args:
        splits: of one data set.
        progress: wraps the iteration over the pictures that are compared.

    Returns:
        What training refuses, and what is likely a mistake.
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
    errors = [Problem("categories that only one split has", [f"{key} {name!r}" for key, name in other])]
    warnings = [
        Problem("pictures that are in both splits, so that validation flatters", leaks),
        Problem("pictures that are copies of another", within),
    ]
    return [problem for problem in errors if problem.found], [problem for problem in warnings if problem.found]


def find_copies(files: Iterable[Path], progress: Callable[[Iterable], Iterable] = iter) -> list[list[Path]]:
    """Find files with the same bytes; only those of the same length are read."""
    by_length: dict[int, list[Path]] = {}
    for file in dict.fromkeys(files):
        if file.is_file():
            by_length.setdefault(file.stat().st_size, []).append(file)
    alike: dict[tuple[int, str], list[Path]] = {}
    for length, group in progress([item for item in by_length.items() if len(item[1]) > 1]):
        for file in group:
            with file.open("rb") as stream:
                alike.setdefault((length, hashlib.file_digest(stream, "sha256").hexdigest()), []).append(file)
    return [group for group in alike.values() if len(group) > 1]


def _size_class(annotation: dict[str, Any]) -> str:
    area = annotation["area"]
    return "small" if area < SMALL_AREA else "medium" if area < LARGE_AREA else "large"


def _mask_warnings(raw: dict[str, Any]) -> Problem:
    """Find masks that are not of their box: of another image's size, as a share of the image, or of another object."""
    sizes = {entry["id"]: declared_size(entry) for entry in raw["images"]}
    found = []
    for annotation in with_boxes(raw)["annotations"]:
        rle = to_rle(annotation["segmentation"], sizes[annotation["image_id"]])
        extent = coco_mask.toBbox(rle)
        if coco_mask.iou(extent[None], np.array([annotation["bbox"]], dtype=float), [0]) < _SAME_BOX:
            found.append(f"annotation {annotation['file_id']} in image {annotation['image_id']}")
    return Problem(
        "masks whose extent is not that of their box, so that one of them is likely of something else", found
    )


def _warnings(
    raw: dict[str, Any], training: list[TrainingAnnotation], names: dict[int, str], counts: Counter
) -> list[Problem]:
    same = Counter((a["image_id"], a["category_id"], *bbox) for a, bbox in training)
    learned = {a["image_id"] for a, _ in training}
    files = Counter(entry["file_name"] for entry in raw["images"])
    named = Counter(names.values())
    sides = {(a["image_id"], a["file_id"]): bbox[2:] for a, bbox in training}
    return [
        Problem("images without a stated width and height, so that boxes and picture cannot be compared", [
            entry["file_name"] for entry in raw["images"] if declared_size(entry) is None
        ]),
        Problem("file names that stand twice", [name for name, count in files.items() if count > 1]),
        Problem("category names that stand twice", [name for name, count in named.items() if count > 1]),
        Problem("classes without a box", [name for key, name in names.items() if not counts[key]]),
        Problem(f"classes with fewer than {_RARE} boxes", [
            f"{name} ({counts[key]})" for key, name in names.items() if 0 < counts[key] < _RARE
        ]),
        Problem("images without a box to learn from", [
            entry["file_name"] for entry in raw["images"] if entry["id"] not in learned
        ]),
        Problem("boxes that stand twice, of the same class on the same place", [
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
