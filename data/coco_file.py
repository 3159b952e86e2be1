"""Reading a COCO annotation file and checking its fields, ids and names."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

from .json_file import JsonError, parse_json, read_bytes
from .paths import resolved
from .shown import escaped, shortened, shown

# Largest side and coordinate in pixels. COCO's evaluation ignores larger areas, and float32 would lose small boxes.
MAX_PX = 1e5
_MAX_NAMED = 3
_MAX_LINE = 500
_NUMBERS = (int, float)
# Required and optional fields of each part's entries, with their types; optional fields may be null.
_FIELDS: dict[str, tuple[dict[str, tuple[type, ...]], dict[str, tuple[type, ...]]]] = {
    "images": ({"id": (int,), "file_name": (str,)}, {"width": (int, float), "height": (int, float)}),
    "categories": ({"id": (int,)}, {"name": (str, int)}),
    "annotations": (
        {"image_id": (int,), "category_id": (int,)},
        {"iscrowd": (int, bool)},
    ),
}
# Ranges of numbers, without the upper bound; all other numbers are ids, which must fit into int64 tensors.
_RANGES = {"width": (0, MAX_PX), "height": (0, MAX_PX), "iscrowd": (0, 2)}
_IDS = (-(2**63), 2**63)
# Suffixes of label files of other formats.
_OTHER_LABELS = (".xml", ".txt", ".yaml", ".yml")
# A longer name is damage; names appear in tables, charts and messages.
_MAX_NAME = 1000


class DatasetError(ValueError):
    """The data set is missing or invalid; the message contains the file, the problem and the number of cases."""


class Problem(NamedTuple):
    """One kind of problem in a data set, with all its occurrences.

    Attributes:
        what: Description of the problem.
        found: Each occurrence, for example an annotation or a file name.
        hint: Advice, added after the number of occurrences.
    """

    what: str
    found: list[str]
    hint: str = ""

    def __str__(self) -> str:
        """Format the problem with its count and first occurrences."""
        first = ", ".join(map(one_line, self.found[:_MAX_NAMED])) + (", ..." if len(self.found) > _MAX_NAMED else "")
        return f"{self.what}: {len(self.found)}{self.hint}; the first: {first}"


def one_line(text: str) -> str:
    """Return a bounded text without control characters, for messages."""
    return shortened(escaped(text), _MAX_LINE)


def read_instances(
    image_dir: Path, path: Path, download_hint: str | None = None, parts: Iterable[str] = tuple(_FIELDS)
) -> tuple[dict[str, Any], str]:
    """Read a COCO instances file; return its content and the hex SHA-256 of its bytes.

    Args:
        image_dir: Folder of the images.
        path: JSON file.
        download_hint: How to get the data set, for the error if it is missing.
        parts: Lists that the file must have.

    Raises:
        DatasetError: If the file or the image folder does not exist, or the file is not a COCO instances file.
    """
    _check_exists(image_dir, "image folder", os.path.isdir, download_hint)
    _check_exists(path, "annotation file", os.path.exists, download_hint)
    try:
        content = read_bytes(path, "annotation file")
        raw = parse_json(content, f"annotation file {path}")
    except JsonError as error:
        raise DatasetError(f"{error}{_import_hint(path)}") from None
    for part in parts:
        if not isinstance(raw, dict) or not isinstance(raw.get(part), list):
            raise DatasetError(
                f"annotation file {path} is not a COCO instances file: the list {part!r} is missing"
                f"{_import_hint(path, raw)}"
            )
    for part in {"categories", "images"}.intersection(parts):
        if not raw[part]:
            raise DatasetError(f"annotation file {path} must have at least one entry in {part!r}, got an empty list")
    return raw, hashlib.sha256(content).hexdigest()


def _check_exists(path: Path, what: str, exists: Callable[[Path], bool], download_hint: str | None) -> None:
    if not exists(path):
        hint = f"; to get it: {download_hint}" if download_hint else ""
        raise DatasetError(f"{what} {path} does not exist (resolved: {resolved(path)}){hint}")


def _import_hint(path: Path, raw: Any = None) -> str:
    """Return which command converts labels of another format, for a message; empty if nothing shows another format."""
    tasks = isinstance(raw, list) and raw and isinstance(raw[0], dict) and "annotations" in raw[0]
    is_other_json = tasks or (isinstance(raw, dict) and "shapes" in raw)
    if not (is_other_json or path.suffix.lower() in _OTHER_LABELS or os.path.isdir(path)):  # noqa: PTH112
        return ""
    return f"; `python tools/import_dataset.py {path} OUT` converts labels of other formats to COCO files"


def structure_problems(raw: dict[str, Any]) -> Iterator[Problem]:
    """Yield problems of fields, ids and file names, and remove their entries from `raw` to check the rest."""
    for part, (needed, optional) in _FIELDS.items():
        fields = [(field, types, field in optional) for field, types in (needed | optional).items()]
        wrong = {index: problem for index, entry in enumerate(raw[part]) if (problem := _wrong_field(entry, fields))}
        if wrong:
            raw[part] = [entry for index, entry in enumerate(raw[part]) if index not in wrong]
            yield Problem(f"invalid entries of {part}", [f"{part}[{i}] {problem}" for i, problem in wrong.items()])
    for part in ("images", "categories"):
        ids = Counter(entry["id"] for entry in raw[part])
        twice = [str(key) for key, count in ids.items() if count > 1]
        if twice:
            seen = set()  # the first of each remains
            raw[part] = [e for e in raw[part] if not (e["id"] in seen or seen.add(e["id"]))]
            yield Problem(f"duplicate ids of {part}", twice)
    outside = [entry["file_name"] for entry in raw["images"] if _leads_out(entry["file_name"])]
    if outside:
        raw["images"] = [entry for entry in raw["images"] if entry["file_name"] not in set(outside)]
        hint = "; a name must be relative to the image folder, without '..'"
        yield Problem("file names outside of the image folder", outside, hint)
    for part, field in (("images", "image_id"), ("categories", "category_id")):
        known = {entry["id"] for entry in raw[part]}
        wrong = {i: a for i, a in enumerate(raw["annotations"]) if a[field] not in known}
        if wrong:
            raw["annotations"] = [a for i, a in enumerate(raw["annotations"]) if i not in wrong]
            found = [f"{a.get('id', i)} ({field} {a[field]})" for i, a in wrong.items()]
            used = {a[field] for a in (*wrong.values(), *raw["annotations"])}
            yield Problem(f"annotations whose {field} is not in {part}", found, _shift(used, known, field, part))


def _shift(used: set[int], known: set[int], field: str, part: str) -> str:
    """Return a hint if ids of annotations seem to count from another number than the ids that they refer to."""
    for step in (-1, 1):
        if used <= {key + step for key in known} and (len(used) > 1 or len(known) == 1):
            return (
                f"; {field} runs from {min(used)} to {max(used)} and the ids of {part} from {min(known)} to "
                f"{max(known)}, so that they seem to be shifted by one"
            )
    return ""


def _leads_out(name: str) -> bool:
    """Return whether a file name is absolute or contains "..", on POSIX or Windows."""
    return any(
        path.is_absolute() or path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name))
    )


def _wrong_field(entry: Any, fields: list[tuple[str, tuple[type, ...], bool]]) -> str | None:
    """Return the problem of an entry; `fields` has name, types, and whether the value may be missing."""
    if not isinstance(entry, dict):
        return f"must be a mapping, got {shown(entry, 60)}"
    for field, types, is_optional in fields:
        value = entry.get(field)
        # the exact type, since a bool is an int too
        if type(value) not in types and not (value is None and is_optional):
            return f"must have {field!r} of type {' or '.join(t.__name__ for t in types)}, got {shown(value, 60)}"
        if problem := _wrong_value(field, value):
            return f"must have {field!r} {problem}, got {shown(value, 60)}"
    return None


def _wrong_value(field: str, value: Any) -> str | None:
    if isinstance(value, str):
        if field == "name" and len(value) > _MAX_NAME:
            return f"of at most {_MAX_NAME} characters"
        try:
            value.encode()
        except UnicodeEncodeError:  # half a surrogate pair, with which messages and logs would fail
            return "of valid Unicode"
    elif value is not None:
        low, high = _RANGES.get(field, _IDS)
        if not low <= value < high:  # also for NaN
            return f"in the range {low:g} <= {field} < {high:g}"
    return None


def category_names(raw: dict[str, Any]) -> dict[int, str]:
    """Return the category names by id, in ascending order, of a completed file."""
    return dict(sorted((category["id"], category["name"]) for category in raw["categories"]))


def declared_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    """Return (width, height) of an image's entry, None if they are missing."""
    return (entry["width"], entry["height"]) if entry.get("width") and entry.get("height") else None


def is_box(bbox: Any) -> bool:
    """Return whether a `bbox` is a list of four numbers of pixels."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return False
    x, y, w, h = bbox  # a loop over the four would be the slowest part of loading
    if not (type(x) in _NUMBERS and type(y) in _NUMBERS and type(w) in _NUMBERS and type(h) in _NUMBERS):
        return False
    return -MAX_PX < x < MAX_PX and -MAX_PX < y < MAX_PX and -MAX_PX < w < MAX_PX and -MAX_PX < h < MAX_PX


def is_number(value: Any) -> bool:
    """Return whether a value is an int or a float, and not a bool."""
    return type(value) in _NUMBERS
