"""Values of a COCO file whose meaning is certain although the file writes them in another way, or not at all.

Each function changes the entries in place and yields the problems that it solved, for warnings.
"""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from .band_files import RGB
from .coco_file import MAX_PX, Problem, declared_size, is_box, is_number
from .image_files import ImageError
from .images import upright_size
from .segmentation import extent_of_mask
from .shown import shown

_INTEGERS = ("id", "image_id", "category_id", "iscrowd")
# Larger floats skip integers.
_MAX_EXACT = 2**53


def read_whole_numbers(raw: dict[str, Any]) -> Iterator[Problem]:
    """Convert whole numbers such as 1.0 to integers; pandas writes a column so if one of its values is missing."""
    found = []
    for part, entries in raw.items():
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            if not isinstance(entry, dict):
                continue
            for field in _INTEGERS:
                value = entry.get(field)
                if type(value) is float and value.is_integer() and abs(value) < _MAX_EXACT:
                    entry[field] = int(value)
                    found.append(f"{part}[{index}] has {field} {value}")
    if found:
        yield Problem("whole numbers written as fractions, read as integers", found)


def complete(raw: dict[str, Any], image_dir: Path, channels: int = RGB) -> Iterator[Problem]:
    """Complete the checked entries: names, file names, sizes of images, ids, boxes, areas and crowd flags.

    Annotation ids are replaced by 1, 2, ...: pycocotools treats a match with id 0 as no match. "file_id" keeps the id
    of the file for messages, or the position if the ids cannot identify annotations. `channels` is the number of
    channels of the images.
    """
    measure = partial(_measure_images, channels=channels)
    for step in (_name_categories, _find_files, measure, _number_annotations, _complete_annotations):
        yield from step(raw, image_dir)


def _name_categories(raw: dict[str, Any], _: Path) -> Iterator[Problem]:
    ids = [category["id"] for category in raw["categories"]]
    names = [category.get("name") for category in raw["categories"]]
    texts = ["" if name is None else str(name).strip() for name in names]
    nameless = [f"category {key}" for key, text in zip(ids, texts, strict=True) if not text]
    texts = [(text and str(name)) or str(key) for key, name, text in zip(ids, names, texts, strict=True)]
    twice = [text for text, count in Counter(texts).items() if count > 1]
    for category, name in zip(raw["categories"], unique_names(ids, texts), strict=True):
        category["name"] = name
    if nameless:
        yield Problem("categories without a name, named by their id", nameless)
    if twice:
        yield Problem("duplicate category names, completed with the id", twice)


def unique_names(category_ids: list[int], names: list[str]) -> list[str]:
    """Return the names of categories, each with its id as a suffix if another category has the same name."""
    shared = Counter(names)
    return [name if shared[name] == 1 else f"{name} ({key})" for key, name in zip(category_ids, names, strict=True)]


def _find_files(raw: dict[str, Any], image_dir: Path) -> Iterator[Problem]:
    """Read backslashes as folders where only that names an existing file; exports made on Windows have them."""
    found = []
    for entry in raw["images"]:
        name = entry["file_name"]
        if "\\" in name and not _is_file(image_dir / name):
            other = name.replace("\\", "/")
            if _is_file(image_dir / other):
                entry["file_name"] = other
                found.append(name)
    if found:
        yield Problem("file names with backslashes, read as folders", found)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _measure_images(raw: dict[str, Any], image_dir: Path, channels: int) -> Iterator[Problem]:
    """Take the sizes that the file does not declare from the headers of the images; a broken image has none."""
    found = []
    for entry in raw["images"]:
        if declared_size(entry) is None:
            try:
                entry["width"], entry["height"] = upright_size(image_dir / entry["file_name"], channels)
            except ImageError:
                entry["width"] = entry["height"] = None
            else:
                found.append(entry["file_name"])
    if found:
        yield Problem("images without width and height, measured in the image files", found)


def _number_annotations(raw: dict[str, Any], _: Path) -> Iterator[Problem]:
    annotations = raw["annotations"]
    ids = [annotation.get("id") for annotation in annotations]
    counts = Counter(key for key in ids if type(key) in (int, str))
    positions = range(1, len(ids) + 1)
    wrong = [
        f"annotation {position} has id {shown(key, 60)}"
        for position, key in zip(positions, ids, strict=True)
        if type(key) is not int or counts[key] > 1
    ]
    are_names = len(counts) == len(ids)
    for position, key, annotation in zip(positions, ids, annotations, strict=True):
        annotation["id"], annotation["file_id"] = position, key if are_names else position
    if wrong:
        yield Problem("annotation ids that are missing, repeated or no integers, counted from 1 instead", wrong)


def _complete_annotations(raw: dict[str, Any], _: Path) -> Iterator[Problem]:
    sizes = {entry["id"]: declared_size(entry) for entry in raw["images"]}
    boxes, areas = [], []
    for annotation in raw["annotations"]:
        annotation["iscrowd"] = int(annotation.get("iscrowd") or 0)
        bbox, area = annotation.get("bbox"), annotation.get("area")
        if bbox is None or bbox == []:
            bbox = extent_of_mask(annotation.get("segmentation"), sizes[annotation["image_id"]])
            if bbox is not None:
                annotation["bbox"] = bbox
                boxes.append(_name(annotation))
        if not (is_number(area) and 0 <= area < MAX_PX**2) and is_box(bbox):
            annotation["area"] = max(bbox[2], 0) * max(bbox[3], 0)
            areas.append(f"{_name(annotation)} has area {shown(area, 60)}")
    if boxes:
        yield Problem("annotations without a box, which get the box of their mask", boxes)
    if areas:
        yield Problem("annotations without a valid area, which get the area of their box", areas)


def _name(annotation: dict[str, Any]) -> str:
    return f"annotation {annotation['file_id']} in image {annotation['image_id']}"
