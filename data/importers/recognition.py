"""Which format a folder has, by its files."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..json_file import JsonError, read_json
from .coco import is_coco
from .findings import Findings
from .folder import LabelFolder
from .label_studio import is_label_studio
from .labelme import is_labelme
from .xml_file import XmlError, read_xml
from .yolo import has_labels
from .yolo_layout import find_dataset_file, is_name_file

# Files of a kind that are opened; all files of a data set are alike.
_OPENED = 20


def recognise(folder: LabelFolder) -> list[str]:
    """Return the names of the formats that files of a folder have."""
    found = {_xml_format(path) for path in folder.with_suffix(".xml")[:_OPENED]}
    found |= {_json_format(path) for path in folder.with_suffix(".json")[:_OPENED]}
    if _is_yolo(folder):
        found.add("yolo")
    return sorted(name for name in found if name)


def describe_files(folder: LabelFolder) -> str:
    """Count the files of a folder by their suffix."""
    counts = Counter(file.suffix.lower() or "no suffix" for file in folder.files).most_common(5)
    return ", ".join(f"{count} of {suffix}" for suffix, count in counts) or "no files"


def _is_yolo(folder: LabelFolder) -> bool:
    if find_dataset_file(folder, Findings()):
        return True
    texts = folder.with_suffix(".txt", ".names")
    return any(map(is_name_file, texts)) or any(map(has_labels, texts[:_OPENED]))


def _xml_format(path: Path) -> str | None:
    try:
        return {"annotation": "voc", "annotations": "cvat"}.get(read_xml(path).tag)
    except XmlError:
        return None


def _json_format(path: Path) -> str | None:
    try:
        value = read_json(path)
    except JsonError:
        return None
    return next((name for name, fits in _JSON.items() if fits(value)), None)


_JSON: dict[str, Callable[[Any], bool]] = {
    "coco": is_coco,
    "labelme": is_labelme,
    "label_studio": is_label_studio,
}
