"""A COCO annotation file, read once and checked before any training."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from .images import ImageError, check_image
from .segmentation import segmentation_problem

INVALID_BOX_POLICIES = ("raise", "clip", "drop")
INVALID_MASK_POLICIES = ("raise", "drop")
# Annotation tools round; a box that is outside by less is cut to the image without a word.
ROUNDING_PX = 1
# Smaller sides may vanish in float32, and the detectors take no box without a size.
_LEAST_PX = 0.01
# No picture is so large, COCO's evaluation ignores what is, and beyond it float32 would lose the smallest boxes.
_MOST_PX = 1e5
_NAMED = 3
# The fields that the entries of each part need, and those they may leave out or empty, by type.
_FIELDS: dict[str, tuple[dict[str, tuple[type, ...]], dict[str, tuple[type, ...]]]] = {
    "images": ({"id": (int,), "file_name": (str,)}, {"width": (int, float), "height": (int, float)}),
    "categories": ({"id": (int,)}, {"name": (str, int)}),
    "annotations": (
        {"image_id": (int,), "category_id": (int,)},
        {"id": (int, str), "area": (int, float), "iscrowd": (int, bool)},
    ),
}
# From where to below where the numbers of a field may be; all others are ids, which tensors hold.
_RANGES = {"width": (0, _MOST_PX), "height": (0, _MOST_PX), "area": (0, _MOST_PX**2)}
_IDS = (-(2**63), 2**63)


class DatasetError(ValueError):
    """A data set that cannot be used; the message names the file, what is wrong and how often."""


class Problem(NamedTuple):
    """One kind of mistake in a data set, with every place where it was found."""

    what: str
    found: list[str]
    hint: str = ""

    def __str__(self) -> str:
        """Say what, how often, and where first."""
        first = ", ".join(self.found[:_NAMED]) + (", ..." if len(self.found) > _NAMED else "")
        return f"{self.what}: {len(self.found)}{self.hint}; the first: {first}"


@dataclass(frozen=True)
class CocoAnnotations:
    """What a COCO annotation file says, with every image and category in its place.

    Attributes:
        image_dir: folder of the pictures.
        path: the annotation file.
        images: entries of the file, `id`, `file_name`, maybe `width` and `height`.
        boxes: by image id, the annotations to learn from, their boxes inside the image.
        category_ids: ids of the file in rising order; label l of the model stands for `category_ids[l - 1]`.
        class_names: names in the same order.
        raw: the whole file as it stands but for annotation ids, counted anew, and missing areas and crowd flags, filled
            in; evaluation uses it.
        fixed_boxes: how many invalid boxes were clipped or dropped.
        dropped_masks: how many annotations were left out for want of a mask.
        sha256: hex digest of the annotation file's bytes, which tells whether it is still the same.
    """

    image_dir: Path
    path: Path
    images: list[dict[str, Any]]
    boxes: dict[int, list[dict[str, Any]]]
    category_ids: list[int]
    class_names: list[str]
    raw: dict[str, Any]
    fixed_boxes: int
    dropped_masks: int
    sha256: str


def load_annotations(
    images: str | Path,
    annotations: str | Path,
    *,
    invalid_boxes: str = "raise",
    invalid_masks: str | None = None,
    source: str | None = None,
    check_images: bool = True,
    progress: Callable[[Iterable], Iterable] = iter,
) -> CocoAnnotations:
    """Read and check a data set in COCO format.

    Args:
        images: folder of the pictures.
        annotations: the JSON file.
        invalid_boxes: what to do with boxes that have no size, are no numbers, or reach out of their image by more
            than a pixel: "raise" an error, "clip" them to the image (and drop what has no size then), or "drop" them.
        invalid_masks: what to do with annotations, crowd regions among them, whose `segmentation` is missing or cannot
            be read: "raise" an error, or "drop" them, also from `raw`. None: no masks are needed, and nobody looks.
        source: where to get the data set, for the error when it is missing.
        check_images: whether to look at every picture's file, see `check_image`.
        progress: wraps the iteration over the pictures.

    Raises:
        DatasetError: if something is missing or wrong, with the count and the first ones by name.
    """
    if invalid_boxes not in INVALID_BOX_POLICIES:
        raise ValueError(f"`invalid_boxes` must be one of {', '.join(INVALID_BOX_POLICIES)}, got {invalid_boxes!r}")
    if invalid_masks not in (None, *INVALID_MASK_POLICIES):
        raise ValueError(f"`invalid_masks` must be one of {', '.join(INVALID_MASK_POLICIES)}, got {invalid_masks!r}")
    image_dir, path = Path(images), Path(annotations)
    raw, sha256 = read_instances(image_dir, path, source)
    _raise_first(path, structure_problems(raw))
    fill_in(raw)
    if check_images:
        _raise_first(path, picture_problems(raw["images"], image_dir, source, progress))
    dropped_masks = 0
    if invalid_masks is not None:
        raw, unmasked = with_masks(raw)
        dropped_masks = len(unmasked.found)
        if invalid_masks == "raise":
            _raise_first(path, [unmasked] if unmasked.found else [])
    boxes, invalid = learnable_boxes(raw, invalid_boxes)
    if invalid_boxes == "raise":
        _raise_first(path, [invalid] if invalid.found else [])
    raw = with_boxes(raw)
    names = category_names(raw)
    return CocoAnnotations(
        image_dir=image_dir,
        path=path,
        images=raw["images"],
        boxes=boxes,
        category_ids=list(names),
        class_names=list(names.values()),
        raw=raw,
        fixed_boxes=len(invalid.found),
        dropped_masks=dropped_masks,
        sha256=sha256,
    )


def _raise_first(path: Path, problems: Iterable[Problem]) -> None:
    for problem in problems:
        raise DatasetError(f"annotation file {path}: {problem}")


def read_instances(image_dir: Path, path: Path, source: str | None = None) -> tuple[dict[str, Any], str]:
    """Read a JSON file that has the lists of a COCO instances file; returns it and the SHA-256 of its bytes in hex.

    Raises:
        DatasetError: if it or the folder of the pictures does not exist, or it is something else.
    """
    _check_exists(image_dir, "image folder", Path.is_dir, source)
    _check_exists(path, "annotation file", Path.is_file, source)
    try:
        content = path.read_bytes()
        raw = json.loads(content)
    except OSError as error:
        raise DatasetError(f"annotation file {path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"annotation file {path} is no JSON: {error}") from None
    for part in _FIELDS:
        if not isinstance(raw, dict) or not isinstance(raw.get(part), list):
            raise DatasetError(f"annotation file {path} is no COCO instances file: it has no list {part!r}")
    for part in ("categories", "images"):
        if not raw[part]:
            raise DatasetError(f"annotation file {path} has no {part}")
    return raw, hashlib.sha256(content).hexdigest()


def _check_exists(path: Path, what: str, exists: Callable[[Path], bool], source: str | None) -> None:
    if not exists(path):
        hint = f"; to get it: {source}" if source else ""
        raise DatasetError(f"{what} {path} does not exist (resolved: {path.resolve()}){hint}")


def structure_problems(raw: dict[str, Any]) -> Iterator[Problem]:
    """Yield what is wrong with fields, ids and file names; takes it out of `raw`, so that the rest can be looked at."""
    for part, fields in _FIELDS.items():
        wrong = {index: problem for index, entry in enumerate(raw[part]) if (problem := _wrong_field(entry, *fields))}
        if wrong:
            raw[part] = [entry for index, entry in enumerate(raw[part]) if index not in wrong]
            yield Problem(f"wrong entries of {part}", [f"{part}[{i}] {problem}" for i, problem in wrong.items()])
    for part in _FIELDS:
        ids = Counter(entry["id"] for entry in raw[part] if entry.get("id") is not None)
        twice = [str(key) for key, count in ids.items() if count > 1]
        if twice:
            seen = set()  # the first of each stays
            raw[part] = [e for e in raw[part] if e.get("id") is None or not (e["id"] in seen or seen.add(e["id"]))]
            yield Problem(f"ids of {part} that stand twice", twice)
    outside = [entry["file_name"] for entry in raw["images"] if _leads_out(entry["file_name"])]
    if outside:
        raw["images"] = [entry for entry in raw["images"] if entry["file_name"] not in set(outside)]
        yield Problem("file names that lead out of the image folder", outside)
    for part, field in (("images", "image_id"), ("categories", "category_id")):
        known = {entry["id"] for entry in raw[part]}
        wrong = {i: a for i, a in enumerate(raw["annotations"]) if a[field] not in known}
        if wrong:
            raw["annotations"] = [a for i, a in enumerate(raw["annotations"]) if i not in wrong]
            found = [f"{a.get('id', i)} ({field} {a[field]})" for i, a in wrong.items()]
            yield Problem(f"annotations whose {field} is not among the {part}", found)


def _leads_out(name: str) -> bool:
    """Whether a file name is absolute or climbs, as either system reads it: annotation files come from others."""
    return any(
        path.is_absolute() or path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name))
    )


def _wrong_field(entry: Any, needed: dict[str, tuple[type, ...]], optional: dict[str, tuple[type, ...]]) -> str | None:
    if not isinstance(entry, dict):
        return f"must be a mapping, got {entry!r:.60}"
    for field, types in (needed | optional).items():
        value = entry.get(field)
        # the exact type, since a bool is an int too
        if type(value) not in types and not (value is None and field in optional):
            return f"needs {field!r} of type {' or '.join(t.__name__ for t in types)}, got {value!r:.60}"
        if problem := _wrong_value(field, value):
            return f"needs {field!r} {problem}, got {value!r:.60}"
    return None


def _wrong_value(field: str, value: Any) -> str | None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:  # half a surrogate pair, on which the first message or log would fail
            return "of whole characters"
    elif value is not None:
        low, high = _RANGES.get(field, _IDS)
        if not low <= value < high:  # a NaN too
            return f"from {low:g} to below {high:g}"
    return None


def fill_in(raw: dict[str, Any]) -> None:
    """Supply what pycocotools needs.

    Ids are counted anew from 1: pycocotools takes a match with an annotation of id 0 for no match. Messages name an
    annotation by "file_id", the id in the file or, without one, the place.
    """
    for index, annotation in enumerate(raw["annotations"], start=1):
        annotation["file_id"] = annotation.get("id", index)
        annotation["id"] = index
        annotation["iscrowd"] = int(bool(annotation.get("iscrowd")))
        if annotation.get("area") is None and _is_box(annotation.get("bbox")):
            annotation["area"] = max(annotation["bbox"][2], 0) * max(annotation["bbox"][3], 0)


def category_names(raw: dict[str, Any]) -> dict[int, str]:
    """Name the categories by id, in rising order; one without a name goes by its id."""
    names = {category["id"]: category.get("name") for category in raw["categories"]}
    return {key: str(key if names[key] is None else names[key]) for key in sorted(names)}


def picture_problems(
    images: list[dict],
    image_dir: Path,
    source: str | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Iterator[Problem]:
    """Yield which pictures are missing, and which cannot be used; arguments as of `load_annotations`."""
    missing, broken = [], []
    for entry in progress(images):
        file = image_dir / entry["file_name"]
        try:
            if file.is_file():
                check_image(file, stated_size(entry))
            else:
                missing.append(entry["file_name"])
        except (ImageError, OSError) as error:
            broken.append(str(error))
    if missing:
        hint = f"; to get it: {source}" if source else ""
        yield Problem(f"images that are not in {image_dir}", missing, f" of {len(images)}{hint}")
    if broken:
        yield Problem("images that cannot be used", broken)


def stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """(width, height) that an image's entry states, None when it does not."""
    return (entry["width"], entry["height"]) if entry.get("width") and entry.get("height") else None


def learnable_boxes(raw: dict[str, Any], policy: str) -> tuple[dict[int, list[dict]], Problem]:
    """Find the boxes to learn from, by image id and inside their image, and those that are invalid."""
    sizes = {entry["id"]: stated_size(entry) for entry in raw["images"]}
    boxes: dict[int, list[dict]] = {entry["id"]: [] for entry in raw["images"]}
    invalid = []
    for annotation in raw["annotations"]:
        if annotation["iscrowd"]:
            continue
        bbox, size = annotation.get("bbox"), sizes[annotation["image_id"]]
        inside = _clip(bbox, size) if _is_box(bbox) else None
        problem = _problem(bbox, inside, size)
        if problem:
            invalid.append(f"annotation {annotation['file_id']} in image {annotation['image_id']}: {bbox!r} {problem}")
        if inside and (not problem or policy == "clip"):
            boxes[annotation["image_id"]].append(annotation | {"bbox": inside})
    hint = "; mend them, or set data.invalid_boxes to clip or drop"
    return boxes, Problem("invalid boxes (x, y, width, height)", invalid, hint)


def with_boxes(raw: dict[str, Any]) -> dict[str, Any]:
    """Leave out annotations that have no box to judge by."""
    return raw | {"annotations": [annotation for annotation in raw["annotations"] if _is_box(annotation.get("bbox"))]}


def with_masks(raw: dict[str, Any]) -> tuple[dict[str, Any], Problem]:
    """Leave out annotations without a mask that can be read, and say which they are."""
    sizes = {entry["id"]: stated_size(entry) for entry in raw["images"]}
    kept, wrong = [], []
    for annotation in raw["annotations"]:
        problem = segmentation_problem(annotation.get("segmentation"), sizes[annotation["image_id"]])
        if problem is None:
            kept.append(annotation)
        else:
            wrong.append(f"annotation {annotation['file_id']} in image {annotation['image_id']} {problem}")
    hint = "; mend them, or set data.invalid_boxes to clip or drop to leave them out"
    return raw | {"annotations": kept}, Problem("annotations without a mask that can be read", wrong, hint)


def _is_box(bbox: Any) -> bool:
    numbers = isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(v, int | float) for v in bbox)
    return numbers and all(abs(v) < _MOST_PX for v in bbox)


def _clip(bbox: list[float], size: tuple[int, int] | None) -> list[float] | None:
    """Cut a box (x, y, width, height) to its image; None when nothing is left."""
    x, y, w, h = bbox
    width, height = size or (math.inf, math.inf)
    left, top, right, bottom = max(x, 0), max(y, 0), min(x + w, width), min(y + h, height)
    return [left, top, right - left, bottom - top] if min(right - left, bottom - top) > _LEAST_PX else None


def _problem(bbox: Any, inside: list[float] | None, size: tuple[int, int] | None) -> str | None:
    if not _is_box(bbox):
        return "is no list of four numbers of pixels"
    x, y, w, h = bbox
    if min(w, h) <= _LEAST_PX:
        return "has no size"
    width, height = size or (math.inf, math.inf)
    if inside is None or min(x, y) < -ROUNDING_PX or x + w > width + ROUNDING_PX or y + h > height + ROUNDING_PX:
        return f"is not inside its image of {width}x{height}"
    return None
