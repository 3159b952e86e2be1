"""YOLO: a text file per image, with a line per object: class number, and a box or a polygon in fractions of the image.

Format: https://docs.ultralytics.com/datasets/detect and https://docs.ultralytics.com/datasets/segment
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath

from ..shown import shown
from .findings import Findings
from .folder import ImageIndex, LabelFolder, read_lines, split_of_folder
from .records import LabelledImage, LabelledObject, Labels
from .yolo_layout import DatasetFile, class_names, entries_of, find_dataset_file, images_of_splits, is_name_file

_WRONG = "lines of YOLO labels that are not valid"
_BOX, _ORIENTED = 5, 9
# Rounded labels can leave the image by less; anything farther out is not a fraction.
_SLACK = 0.01


def read_yolo(
    folder: LabelFolder, images: ImageIndex, found: Findings, progress: Callable[[Iterable], Iterable]
) -> Labels:
    """Read a YOLO data set.

    Boxes become pixels by the size of the image, and polygons stay polygons. An image without a label file has no
    objects, as in YOLO. If the images are in another folder, such an image is left out.
    """
    file = find_dataset_file(folder, found)
    names = class_names(file, folder, found)
    labels = _labels_of_images(folder, images, found)
    splits = _splits(file, folder, images, labels, found)
    used = dict.fromkeys(image for paths in splits.values() for image in paths)
    for image, label in labels.items():
        if image not in used:
            found.leave_out("label files of images that are in no split", folder.name(label))
    numbers: set[int] = set()
    read = {}
    for image in progress(used):
        label = labels.get(image) or _label_beside(image)
        size = images.size_of(image, folder.name(label or image), found)
        objects = _read_labels(label, folder, names, size, numbers, found) if label else []
        if size:
            read[image] = LabelledImage(image, size, objects, has_labels=label is not None)
    if names is None:
        names = {number: str(number) for number in range(max(numbers, default=0) + 1)}
        hint = "class names that are missing, replaced by their numbers; --classes a,b,c names them"
        found.note(hint, f"{len(numbers)} classes, up to number {max(numbers, default=0)}")
    first = 0 if 0 in names else 1  # ids from 1, as in COCO
    return Labels(
        {split: [read[image] for image in dict.fromkeys(paths) if image in read] for split, paths in splits.items()},
        {names[number]: number + 1 - first for number in sorted(names)},
    )


def _labels_of_images(folder: LabelFolder, images: ImageIndex, found: Findings) -> dict[Path, Path]:
    """Return the label file of each image that has one, by the name of the image and its folder."""
    labels: dict[Path, Path] = {}
    for label in (file for file in folder.files if file.suffix.lower() == ".txt" and not is_name_file(file)):
        relative = label.relative_to(folder.root)
        matches = images.find(str(_with_part(relative, "labels", "images")), relative.parent)
        if len(matches) > 1:
            found.error("label files that fit more than one image", f"{relative}: {matches[0]} or {matches[1]}")
        elif matches and matches[0] in labels:
            place = f"{matches[0]}: {folder.name(labels[matches[0]])} and {relative}"
            found.error("images with more than one label file", place)
        elif matches:
            labels[matches[0]] = label
        elif "labels" in relative.parts or has_labels(label):
            found.error(f"label files whose image is not below {images.root}", str(relative))
        else:
            found.leave_out("text files without labels", str(relative))
    return labels


def has_labels(path: Path) -> bool:
    """Return whether the first line of a text file is a label."""
    lines = read_lines(path, Findings()) or [""]
    words = lines[0].split()
    return len(words) >= _BOX and all(_number(word) is not None for word in words)


def _with_part(path: Path, old: str, new: str) -> PurePosixPath:
    """Return a path whose last folder of a name has another one."""
    parts = [*path.parts]
    for index in range(len(parts) - 2, -1, -1):
        if parts[index].lower() == old:
            parts[index] = new
            break
    return PurePosixPath(*parts)


def _label_beside(image: Path) -> Path | None:
    """Return the label file of an image that a list names outside of the data set's folder."""
    for folder in (Path(_with_part(image, "images", "labels")), image):
        if folder.with_suffix(".txt").is_file():
            return folder.with_suffix(".txt")
    return None


def _splits(
    file: DatasetFile | None, folder: LabelFolder, images: ImageIndex, labels: dict[Path, Path], found: Findings
) -> dict[str, list[Path]]:
    """Return the images of each split: by the data set file, or by the names of folders, or all in train."""
    if file is not None and not folder.has_other_images:
        splits = images_of_splits(file, folder, found)
        if splits:
            return splits
    if not folder.has_other_images:
        return _by_folder(images.paths, images.root)
    for image in images.paths:
        if image not in labels:
            found.leave_out("images without a label file", str(image))
    splits = {}
    entries = [*entries_of(file, folder, found)] if file else []
    for image, label in labels.items():
        relative = _with_part(label.relative_to(folder.root), "labels", "images").parent
        named = [split for split, entry in entries if _ends_with(entry, relative)]
        for split in named or [split_of_folder(label.relative_to(folder.root)) or "train"]:
            splits.setdefault(split, []).append(image)
    return splits


def _ends_with(entry: str, relative: PurePosixPath) -> bool:
    """Return whether a folder of a data set file is the folder of a label, with labels for images."""
    parts = [part for part in PurePosixPath(entry).parts if part != ".."]
    return parts[-len(relative.parts) :] == [*relative.parts]


def _by_folder(paths: Iterable[Path], root: Path) -> dict[str, list[Path]]:
    splits: dict[str, list[Path]] = {}
    for path in paths:
        splits.setdefault(split_of_folder(path.relative_to(root)) or "train", []).append(path)
    return splits


def _read_labels(
    path: Path,
    folder: LabelFolder,
    names: dict[int, str] | None,
    size: tuple[int, int] | None,
    numbers: set[int],
    found: Findings,
) -> list[LabelledObject]:
    """Read a label file; `numbers` receives the class numbers."""
    objects, seen = [], set()
    for count, line in enumerate(read_lines(path, found) or (), start=1):
        words = line.split()
        if not words:
            continue
        place = f"{folder.name(path)}, line {count}"
        values = [_number(word) for word in words]
        problem = _line_problem(words, values)
        if problem:
            found.error(_WRONG, f"{place}: {problem}")
            continue
        number = int(values[0])
        numbers.add(number)
        if names is not None and number not in names:
            what = f"{number}; there are {len(names)} names, up to number {max(names)}"
            found.error("lines whose class number has no name", f"{place}: {what}")
            continue
        if tuple(values) in seen:
            found.leave_out("repeated lines of YOLO labels", place)
            continue
        seen.add(tuple(values))
        if len(values) == _ORIENTED:
            found.note("lines with 9 numbers, as oriented boxes have, read as polygons of four corners", place)
        if size:
            objects.append(_object(str(number) if names is None else names[number], place, values[1:], size))
    return objects


def _number(word: str) -> float | None:
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in word else None


def _line_problem(words: list[str], values: list[float | None]) -> str | None:
    if None in values:
        return f"must have numbers separated by spaces, got {shown(words[values.index(None)], 40)}"
    if not (values[0] >= 0 and values[0].is_integer() and values[0] < 100_000):
        return f"must begin with a class number, 0 or above, got {shown(words[0], 40)}"
    if len(values) == _BOX + 1:
        return "has 6 numbers, a class, a box and a confidence as in predictions; labels have 5"
    if len(values) < _BOX or (len(values) > _BOX and len(values) % 2 == 0):
        return (
            "must have a class and 4 numbers of a box, or a class and at least 3 points of a polygon, got "
            f"{len(values)} numbers; key points are not read"
        )
    outside = [word for word, value in zip(words[1:], values[1:], strict=True) if not -_SLACK <= value <= 1 + _SLACK]
    return f"must have fractions of the image, from 0 to 1, got {shown(outside[0], 40)}" if outside else None


def _object(name: str, place: str, values: list[float], size: tuple[int, int]) -> LabelledObject:
    width, height = size
    if len(values) == _BOX - 1:
        x, y, w, h = (value * side for value, side in zip(values, (width, height) * 2, strict=True))
        return LabelledObject(name, place, (x - w / 2, y - h / 2, w, h))
    points = [value * side for value, side in zip(values, (width, height) * (len(values) // 2), strict=True)]
    return LabelledObject(name, place, None, [points])
