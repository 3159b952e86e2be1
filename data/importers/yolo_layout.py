"""Where a YOLO data set has its class names, splits and images: `data.yaml`, Darknet's `obj.data`, or folders alone."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, NamedTuple

import yaml

from ..shown import shown
from .findings import Findings
from .folder import SPLITS, ImageIndex, LabelFolder, absolute, list_files, read_lines

# Roboflow and older releases write valid.
_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels", "predefined_classes.txt")
_MAX_CLASSES = 100_000
_WRONG = "entries of a data set file that are not valid"


class DatasetFile(NamedTuple):
    """A data.yaml, or Darknet's obj.data, and its values; all scalars are text."""

    path: Path
    values: dict[str, Any]


def find_dataset_file(folder: LabelFolder, found: Findings) -> DatasetFile | None:
    """Return the file with the class names and the splits of a data set; more than one is an error."""
    files: list[DatasetFile] = []
    for path in sorted([folder.only] if folder.only else folder.files, key=lambda path: len(path.parts)):
        if files and len(path.parts) > len(files[0].path.parts):
            break  # a file of an inner folder, such as the settings of a run
        values = None
        if path.suffix.lower() in (".yaml", ".yml"):
            values = _read_yaml(path, found)
        elif path.suffix.lower() == ".data":
            pairs = (line.partition("=") for line in read_lines(path, found) or ())
            values = {key.strip(): value.strip() for key, equals, value in pairs if equals}
            values |= {"nc": values["classes"]} if "classes" in values else {}
        if isinstance(values, dict) and values.keys() & {"train", "val", "valid", "names", "nc"}:
            files.append(DatasetFile(path, values))
    if len(files) > 1:
        names = ", ".join(folder.name(file.path) for file in files)
        found.error("data sets with more than one data.yaml; name the file instead of the folder", names)
    return files[0] if files else None


class _Loader(yaml.BaseLoader):
    """Reads every scalar as text, so that the class `no` is not False; a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        values = super().construct_mapping(node, deep)
        if len(values) != len(node.value):
            raise yaml.constructor.ConstructorError(None, None, "a key is given twice", node.start_mark)
        return values


def _read_yaml(path: Path, found: Findings) -> Any:
    lines = read_lines(path, found)
    try:
        return yaml.load("\n".join(lines or ()), _Loader)  # noqa: S506 - makes texts, lists and mappings only
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        found.error("files that are not valid YAML", f"{path}{where}: {getattr(error, 'problem', None) or error}")
        return None


def class_names(file: DatasetFile | None, folder: LabelFolder, found: Findings) -> dict[int, str] | None:
    """Return the class names by their numbers; None if no file has them."""
    if folder.classes is not None:
        names, where = dict(enumerate(folder.classes)), "--classes"
    elif file is not None:
        names, where = _names_in(file, folder, found), folder.name(file.path)
    else:
        names, where = _names_beside(folder, found)
    counts = Counter((names or {}).values())
    if twice := [shown(name) for name, count in counts.items() if count > 1]:
        found.error("class names that are not unique", f"{where}: {', '.join(twice)}")
    return names


def _names_in(file: DatasetFile, folder: LabelFolder, found: Findings) -> dict[int, str] | None:
    """Return the class names of a data set file: a list, a mapping from their numbers, or the name of a file."""
    place, names, count = folder.name(file.path), file.values.get("names"), file.values.get("nc")
    if file.values.get("kpt_shape"):
        found.error("data sets of another task", f"{place}: kpt_shape declares key points; boxes and masks are read")
    if count and not (isinstance(count, str) and count.isdecimal() and 0 < int(count) <= _MAX_CLASSES):
        found.error(_WRONG, f"{place}: nc must be the number of classes, got {shown(count)}")
        count = None
    if not names:
        if count:
            found.note("class names that are missing, replaced by their numbers", f"{place}: nc is {count}")
        return {number: str(number) for number in range(int(count))} if count else None
    if isinstance(names, str):
        paths = (file.path.parent / names, file.path.parent / PureWindowsPath(names).name)
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            found.error(_WRONG, f"{place}: names must be a list, a mapping or an existing file, got {shown(names)}")
            return None
        names = _names_of_file(path, found)
    pairs = names if isinstance(names, dict) else {str(number): name for number, name in enumerate(names or ())}
    for number, name in pairs.items():
        if not (number.isdecimal() and int(number) <= _MAX_CLASSES and isinstance(name, str) and name.strip()):
            got = f"{shown(number, 40)}: {shown(name, 40)}"
            found.error(_WRONG, f"{place}: names must have a number and a text for each class, got {got}")
            return None
    if count and int(count) != len(pairs):
        found.error(_WRONG, f"{place}: nc is {count}, and names has {len(pairs)} classes")
    return {int(number): name for number, name in pairs.items()} or None


def _names_of_file(path: Path, found: Findings) -> list[str]:
    return [line.strip() for line in read_lines(path, found) or () if line.strip()]


def _names_beside(folder: LabelFolder, found: Findings) -> tuple[dict[int, str] | None, str]:
    """Return the class names of a text file, as labelImg and Darknet write them, and the name of the file."""
    files = [file for file in folder.files if is_name_file(file)]
    named = [(_names_of_file(file, found), folder.name(file)) for file in files]
    named = [(dict(enumerate(names)), where) for names, where in named if names]
    if any(names != named[0][0] for names, _ in named):
        found.error("files of class names that differ", ", ".join(where for _, where in named))
    return named[0] if named else (None, "the labels")


def is_name_file(path: Path) -> bool:
    """Return whether a text file has class names instead of labels."""
    return path.name.lower() in _NAME_FILES or path.suffix.lower() == ".names"


def entries_of(file: DatasetFile, folder: LabelFolder, found: Findings) -> Iterator[tuple[str, str]]:
    """Yield the split and the path of each entry of a data set file."""
    for split in SPLITS:
        entries = next((file.values[key] for key in _KEYS[split] if file.values.get(key)), [])
        for entry in entries if isinstance(entries, list) else [entries]:
            if isinstance(entry, str) and entry.strip():
                yield split, entry.strip()
            else:
                place = f"{folder.name(file.path)}: {split}"
                found.error(_WRONG, f"{place} must be a folder, a text file or a list of them, got {shown(entry)}")


def images_of_splits(file: DatasetFile, folder: LabelFolder, found: Findings) -> dict[str, list[Path]]:
    """Return the images of the splits in a data set file: folders, lists of folders, or text files with a list."""
    root = file.values.get("path")
    bases = [file.path.parent / root] if isinstance(root, str) and root.strip() else []
    bases.append(file.path.parent)
    splits: dict[str, list[Path]] = {}
    for split, entry in entries_of(file, folder, found):
        path = _locate(entry, bases)
        if path is not None:
            splits.setdefault(split, []).extend(_images_at(path, bases, folder, found))
        elif split == "test":  # many exports name a test split that they do not have
            found.leave_out("splits whose folder does not exist", f"{folder.name(file.path)}: {split}: {entry}")
        else:
            place = f"{folder.name(file.path)}: {split}: {entry}, relative to {bases[0]}"
            found.error("folders of splits that do not exist", place)
    return splits


def _locate(entry: str, bases: list[Path]) -> Path | None:
    """Return the file or folder of an entry, which may be the path on another machine.

    Roboflow writes ../train/images for the folder next to the file. So the longest end of a path that exists counts.
    """
    parts = PureWindowsPath(entry).parts
    for name in (entry, *(str(PurePosixPath(*parts[start:])) for start in range(1, len(parts)))):
        for base in bases:
            try:
                if (base / name).exists():
                    return absolute(base / name)
            except (OSError, ValueError):  # a name that the system cannot have
                continue
    return None


def _images_at(path: Path, bases: list[Path], folder: LabelFolder, found: Findings) -> Iterator[Path]:
    """Yield the images of a folder, or of a text file with an image on each line."""
    if path.is_dir():
        yield from ImageIndex(path, list_files(path)).paths
        return
    for number, line in enumerate(read_lines(path, found) or (), start=1):
        if name := line.strip():
            image = _locate(name, [path.parent, *bases, folder.root])
            if image is not None and image.is_file():
                yield image
            else:
                found.error("images of a list that do not exist", f"{folder.name(path)}, line {number}: {shown(name)}")
