"""Pascal VOC: an XML file per image, as labelImg, CVAT, Roboflow and the VOC challenges write it.

Format: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

import math
from collections.abc import Callable, Iterable
from pathlib import Path

from ..shown import shown
from .findings import Findings
from .folder import SPLITS, ImageIndex, LabelFolder, read_lines, split_of_folder
from .records import Box, LabelledImage, LabelledObject, Labels, sorted_classes
from .xml_file import Element, XmlError, read_xml

_WRONG = "elements of VOC files that are not valid"
# The challenges count pixels from 1 and include the last one. Other programs write the edges of the box from 0.
_FROM_ONE = "The VOC"


def read_voc(
    folder: LabelFolder, images: ImageIndex, found: Findings, progress: Callable[[Iterable], Iterable]
) -> Labels:
    """Read a data set of VOC files.

    Folders and paths in the files are those of another machine and do not count, except to choose between images of the
    same name. Objects that are difficult become crowd regions, because VOC's evaluation does not count them.
    """
    lists = _image_sets(folder, found)
    splits: dict[str, list[LabelledImage]] = {}
    for path in progress(folder.with_suffix(".xml")):
        names = [split for split, stems in lists.items() if path.stem in stems]
        if lists and not names:
            found.leave_out("label files that no list of ImageSets/Main names", folder.name(path))
            continue
        image = _read_file(path, folder, images, found)
        if image and images.claim(image.path, folder.name(path), found):
            for split in names or [split_of_folder(path.relative_to(folder.root)) or "train"]:
                splits.setdefault(split, []).append(image)
    images.leave_out_others(found)
    return Labels(splits, sorted_classes(splits))


def _image_sets(folder: LabelFolder, found: Findings) -> dict[str, set[str]]:
    """Return the names in ImageSets/Main/{train,val,test}.txt, or of trainval.txt if there is neither train nor val."""
    lists = {}
    for file in folder.files:
        if file.suffix == ".txt" and file.parent.name == "Main" and file.stem in (*SPLITS, "trainval"):
            stems = {line.split()[0] for line in read_lines(file, found) or () if line.split()}
            lists[file.stem] = lists.get(file.stem, set()) | stems
    both = lists.pop("trainval", None)
    if both and not lists.keys() & {"train", "val"}:
        lists["train"] = both
    stems = {path.stem for path in folder.with_suffix(".xml")}
    for split, names in lists.items():
        for name in sorted(names - stems):
            found.error("names in ImageSets/Main without a label file", f"{split}.txt: {shown(name)}")
    return lists


def _read_file(path: Path, folder: LabelFolder, images: ImageIndex, found: Findings) -> LabelledImage | None:
    place = folder.name(path)
    try:
        root = read_xml(path)
    except XmlError as error:
        found.error("files that are not valid XML", f"{place}: {error}")
        return None
    if root.tag != "annotation":
        found.error(_WRONG, f"{place}: the root must be <annotation>, got <{root.tag}>")
        return None
    name, written = root.value("filename"), root.value("path").replace("\\", "/")
    stated = written if written.endswith(f"/{name}") else f"{root.value('folder')}/{name}"
    image = images.find_for(stated, path, folder, found)
    size = image and images.size_of(image, place, found, _declared_size(root))
    starts_at_one = root.value("source/database").startswith(_FROM_ONE)
    if starts_at_one:
        found.note("VOC files of the challenges, with pixels counted from 1", place)
    objects = [_read_object(element, place, starts_at_one, found) for element in root.findall("object")]
    return LabelledImage(image, size, [*filter(None, objects)]) if size else None


def _declared_size(root: Element) -> tuple[int, int] | None:
    """Return (width, height), None if they are missing or 0, as some programs write."""
    sides = [root.value("size/width"), root.value("size/height")]
    return tuple(map(int, sides)) if all(side.isdecimal() and int(side) > 0 for side in sides) else None


def _read_object(element: Element, place: str, starts_at_one: bool, found: Findings) -> LabelledObject | None:
    place = f"{place}, line {element.line}"
    name = element.value("name")
    if not name:
        found.error(_WRONG, f"{place}: <object> must have a <name> that is not empty")
        return None
    for part in element.findall("part"):
        found.leave_out("parts of objects", f"{place}: {part.findtext('name')}")
    box = _read_box(element, place, starts_at_one, found)
    if box is None:
        return None
    polygons = _read_polygon(element, place, found)
    if polygons is None:
        return None
    is_difficult = element.value("difficult") == "1"
    if is_difficult:
        found.note("difficult objects, imported as crowd regions: training and evaluation do not count them", place)
    return LabelledObject(name, place, box, polygons, iscrowd=int(is_difficult))


def _read_box(element: Element, place: str, starts_at_one: bool, found: Findings) -> Box | None:
    values = []
    for tag in ("xmin", "ymin", "xmax", "ymax"):
        text = element.value(f"bndbox/{tag}")
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            found.error(_WRONG, f"{place}: <{tag}> of <bndbox> must be a number of pixels, got {shown(text, 40)}")
            return None
        values.append(value)
    left, top, right, bottom = values
    if starts_at_one:
        left, top = left - 1, top - 1
    return left, top, right - left, bottom - top


def _read_polygon(element: Element, place: str, found: Findings) -> list[list[float]] | None:
    """Return Roboflow's <polygon> with <x1>, <y1>, <x2>, ... as a list of one polygon; empty if there is none."""
    outline = element.find("polygon")
    if outline is None:
        return []
    points = []
    for number in range(1, len(outline) // 2 + 1):
        for tag in (f"x{number}", f"y{number}"):
            try:
                points.append(float(outline.findtext(tag) or ""))
            except ValueError:
                got = shown(outline.findtext(tag), 40)
                found.error(_WRONG, f"{place}: <{tag}> of <polygon> must be a number of pixels, got {got}")
                return None
    return [points]
