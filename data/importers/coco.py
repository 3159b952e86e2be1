"""COCO JSON, as COCO itself, Roboflow and many labelling tools write it.

Format: https://cocodataset.org/#format-data
"""

from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..coco_file import category_names, declared_size, is_box, is_number, structure_problems
from ..json_file import JsonError, read_json
from ..meaning import complete, read_whole_numbers
from ..shown import shown
from .findings import Findings
from .folder import ImageIndex, LabelFolder, split_of
from .records import LabelledImage, LabelledObject, Labels

_PARTS = ("images", "annotations", "categories")


def is_coco(value: Any) -> bool:
    """Return whether the content of a JSON file is a COCO data set."""
    return isinstance(value, dict) and all(isinstance(value.get(part), list) for part in _PARTS)


def read_coco(
    folder: LabelFolder, images: ImageIndex, found: Findings, progress: Callable[[Iterable], Iterable]
) -> Labels:
    """Read COCO files, one per split. Boxes, masks, areas, crowd flags and ids of categories stay."""
    splits, categories = {}, []
    for split, (path, raw) in _files(folder, found).items():
        place = folder.name(path)
        _leave_out_root_category(raw, place, found)
        paths = _find_images(raw, place, path.relative_to(folder.root).parent, images, found)
        deque(read_whole_numbers(raw), maxlen=0)
        for problem in structure_problems(raw):
            for entry in problem.found:
                found.error(problem.what, f"{place}: {entry}")
        for problem in complete(raw, images.root):
            for entry in problem.found:
                found.note(problem.what, f"{place}: {entry}")
        names = category_names(raw)
        categories.append(names)
        splits[split] = _read_split(raw, paths, names, place, images, found, progress)
    images.leave_out_others(found)
    return Labels(splits, _category_ids(categories, found))


def _files(folder: LabelFolder, found: Findings) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Return the file of each split."""
    by_split: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in folder.with_suffix(".json"):
        try:
            raw = read_json(path)
        except JsonError as error:
            found.error("files that are not valid JSON", str(error))
            continue
        if is_coco(raw):
            by_split.setdefault(split_of(path.relative_to(folder.root)) or "train", []).append((path, raw))
        else:
            found.leave_out("JSON files without the lists images, annotations and categories", folder.name(path))
    files = {}
    for split, candidates in by_split.items():
        instances = [file for file in candidates if file[0].stem.startswith("instances")]
        if len(candidates) > 1 and len(instances) != 1:
            names = ", ".join(folder.name(path) for path, _ in candidates)
            found.error(f"more than one COCO file for {split}; give a file instead of the folder", names)
        files[split] = (instances or candidates)[0]
        for path, _ in candidates:
            if path != files[split][0]:
                found.leave_out("further COCO files of a split", folder.name(path))
    return files


def _leave_out_root_category(raw: dict[str, Any], place: str, found: Findings) -> None:
    """Remove the category that Roboflow adds as the supercategory of all others, and that has no objects."""
    categories = [entry for entry in raw["categories"] if isinstance(entry, dict)]
    parents = {shown(entry.get("supercategory")) for entry in categories[1:]}
    if len(categories) < 2 or parents != {shown(categories[0].get("name"))}:
        return
    root = categories[0].get("id")
    if not any(isinstance(a, dict) and a.get("category_id") == root for a in raw["annotations"]):
        raw["categories"] = raw["categories"][1:]
        found.leave_out("categories without objects that contain all others", f"{place}: {categories[0].get('name')}")


def _find_images(raw: dict[str, Any], place: str, folder: Path, images: ImageIndex, found: Findings) -> dict[str, Path]:
    """Replace the names of images by paths below the root of the images; return the image of each path."""
    paths: dict[str, Path] = {}
    kept, missing = [], set()
    for index, entry in enumerate(raw["images"]):
        name = entry.get("file_name") if isinstance(entry, dict) else None
        if not isinstance(name, str) or not name:
            kept.append(entry)
            continue
        path = images.find_one(name, f"{place}, images[{index}]", found, folder)
        if path is None:
            missing.add(shown(entry.get("id")))
            continue
        relative = path.relative_to(images.root).as_posix()
        if relative in paths:
            found.error("images that a file has twice", f"{place}, images[{index}]: {name}")
        paths[relative] = path
        images.owners[path] = place
        kept.append(entry | {"file_name": relative})
    raw["images"] = kept
    annotations = [a for a in raw["annotations"] if not (isinstance(a, dict) and shown(a.get("image_id")) in missing)]
    for _ in range(len(raw["annotations"]) - len(annotations)):
        found.leave_out("annotations of images that do not exist", place)
    raw["annotations"] = annotations
    return paths


def _read_split(
    raw: dict[str, Any],
    paths: dict[str, Path],
    names: dict[int, str],
    place: str,
    images: ImageIndex,
    found: Findings,
    progress: Callable[[Iterable], Iterable],
) -> list[LabelledImage]:
    objects: dict[int, list[LabelledObject]] = {}
    for annotation in raw["annotations"]:
        where = f"{place}, annotation {annotation['file_id']}"
        bbox, area = annotation.get("bbox"), annotation.get("area")
        if not is_box(bbox):
            found.error("annotations without a box of four numbers", f"{where}: {shown(bbox)}")
            continue
        if annotation.get("keypoints"):
            found.leave_out("key points", where)
        item = LabelledObject(
            names[annotation["category_id"]],
            where,
            tuple(bbox),
            annotation.get("segmentation") or None,
            annotation["iscrowd"],
            area if is_number(area) else None,
        )
        objects.setdefault(annotation["image_id"], []).append(item)
    result = []
    for entry in progress(raw["images"]):
        path = paths[entry["file_name"]]
        size = images.size_of(path, f"{place}, image {entry['id']}", found, declared_size(entry))
        if size:
            result.append(LabelledImage(path, size, objects.get(entry["id"], [])))
    return result


def _category_ids(categories: list[dict[int, str]], found: Findings) -> dict[str, int]:
    """Return the id of each name in all files; ids that contradict each other are counted from 1 instead."""
    pairs = {(name, key) for names in categories for key, name in names.items()}
    ids = dict(sorted(pairs, key=lambda pair: pair[1]))
    if len(ids) == len(pairs) == len({key for _, key in pairs}):
        return ids
    found.note("category ids that differ between the files, counted from 1 instead", ", ".join(map(shown, ids)))
    return {name: key for key, name in enumerate(ids, start=1)}
