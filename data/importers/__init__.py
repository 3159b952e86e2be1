"""Data sets of other formats, read as COCO data sets: a reader per format in the table `FORMATS`."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..coco_file import DatasetError
from ..shown import shown
from .coco import read_coco
from .coco_dicts import coco_datasets, image_root
from .cvat import read_cvat
from .findings import Findings
from .folder import ImageIndex, LabelFolder, absolute, list_files
from .label_studio import read_label_studio
from .labelme import read_labelme
from .recognition import describe_files, recognise
from .records import LabelledImage, LabelledObject, Labels
from .result import check_result_folder, write_result
from .tile_folder import keep_tiles, new_tiles
from .voc import read_voc
from .yolo import read_yolo

Reader = Callable[[LabelFolder, ImageIndex, Findings, Callable[[Iterable], Iterable]], Labels]


class Format(NamedTuple):
    """A format of labels: its name for people, and the function that reads a folder of it."""

    title: str
    read: Reader


FORMATS = {
    "yolo": Format("YOLO", read_yolo),
    "voc": Format("Pascal VOC", read_voc),
    "coco": Format("COCO", read_coco),
    "labelme": Format("LabelMe", read_labelme),
    "cvat": Format("CVAT for images", read_cvat),
    "label_studio": Format("Label Studio", read_label_studio),
}

_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar")


def open_source(source: Path, *, exclude: Path, images: Path | None, classes: list[str] | None) -> LabelFolder:
    """Return the files of a folder, or of the folder of a file.

    Args:
        source: Folder, or its label file.
        exclude: Folder whose files do not count, such as an earlier result.
        images: Folder of the images, if it is another one.
        classes: Class names that the user gave.

    Raises:
        DatasetError: If the source does not exist, or is an archive.
    """
    source = absolute(source)
    if not source.exists():
        raise DatasetError(f"SOURCE {source} does not exist")
    if source.suffix.lower() in _ARCHIVES and source.is_file():
        raise DatasetError(f"SOURCE {source} is an archive: unpack it first")
    root = source if source.is_dir() else source.parent
    only = None if source.is_dir() else source
    return LabelFolder(root, list_files(root, absolute(exclude)), only, classes, images is not None)


def format_of(folder: LabelFolder) -> str:
    """Return the name of the format that the files of a folder have.

    Raises:
        DatasetError: If there is none, or more than one.
    """
    names = recognise(folder)
    if len(names) == 1:
        return names[0]
    where = folder.only or folder.root
    if names:
        raise DatasetError(f"{where} has labels of the formats {' and '.join(names)}: choose one with --format")
    raise DatasetError(f"{where} has no labels of a known format ({', '.join(FORMATS)}), got {describe_files(folder)}")


def read_labels(
    folder: LabelFolder, name: str, images: ImageIndex, progress: Callable[[Iterable], Iterable] = iter
) -> tuple[Labels, Findings]:
    """Read all labels of a format; what is wrong, and what is left out, is in the findings."""
    found = Findings()
    labels = FORMATS[name].read(folder, images, found, progress)
    for split, entries in labels.splits.items():
        if not entries:
            found.leave_out("splits without an image", split)
    labels = labels._replace(splits={split: entries for split, entries in labels.splits.items() if entries})
    for names in _alike(labels.category_ids):
        found.note("class names that differ only in case or spaces, kept apart", " and ".join(map(shown, names)))
    seen: dict[Path, str] = {}
    for split, entries in labels.splits.items():
        for image in entries:
            if image.path in seen:
                found.note("images in more than one split", f"{image.path} in {seen[image.path]} and {split}")
            seen[image.path] = split
    return labels, found


def _alike(names: Iterable[str]) -> Iterator[list[str]]:
    """Yield the class names that differ only in case or spaces, as after typing errors."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault("".join(name.casefold().split()), []).append(name)
    return (group for group in groups.values() if len(group) > 1)
