"""Reading a COCO annotation file, and checking the fields, ids and names in it."""

import gc
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

# No picture is so large, COCO's evaluation ignores what is, and beyond it float32 would lose the smallest boxes.
MAX_PX = 1e5
_MAX_NAMED = 3
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
_RANGES = {"width": (0, MAX_PX), "height": (0, MAX_PX), "area": (0, MAX_PX**2)}
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
        first = ", ".join(self.found[:_MAX_NAMED]) + (", ..." if len(self.found) > _MAX_NAMED else "")
        return f"{self.what}: {len(self.found)}{self.hint}; the first: {first}"


def read_instances(image_dir: Path, path: Path, source: str | None = None) -> tuple[dict[str, Any], str]:
    """Read a JSON file that has the lists of a COCO instances file; returns it and the SHA-256 of its bytes in hex.

    Raises:
        DatasetError: if it or the folder of the pictures does not exist, or it is something else.
    """
    _check_exists(image_dir, "image folder", Path.is_dir, source)
    _check_exists(path, "annotation file", Path.is_file, source)
    collects = gc.isenabled()
    gc.disable()  # it would search the growing tree again and again, for more than half of the time
    try:
        content = path.read_bytes()
        raw = json.loads(content)
    except OSError as error:
        raise DatasetError(f"annotation file {path} cannot be read: {error}") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"annotation file {path} is no JSON: {error}") from None
    finally:
        if collects:
            gc.enable()
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
        if annotation.get("area") is None and is_box(annotation.get("bbox")):
            annotation["area"] = max(annotation["bbox"][2], 0) * max(annotation["bbox"][3], 0)


def category_names(raw: dict[str, Any]) -> dict[int, str]:
    """Name the categories by id, in rising order; one without a name goes by its id."""
    names = {category["id"]: category.get("name") for category in raw["categories"]}
    return {key: str(key if names[key] is None else names[key]) for key in sorted(names)}


def declared_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """(width, height) that an image's entry states, None when it does not."""
    return (entry["width"], entry["height"]) if entry.get("width") and entry.get("height") else None


def is_box(bbox: Any) -> bool:
    """Whether a `bbox` is a list of four numbers of pixels."""
    numbers = isinstance(bbox, list) and len(bbox) == 4 and all(isinstance(v, int | float) for v in bbox)
    return numbers and all(abs(v) < MAX_PX for v in bbox)
