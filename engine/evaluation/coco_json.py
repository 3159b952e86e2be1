"""Detections as COCO files for other tools."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from pycocotools import mask as rle


def coco_dataset(
    images: Sequence[dict[str, Any]],
    results: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]],
    *,
    description: str,
) -> dict[str, Any]:
    """Convert detections to a COCO instances file, which annotation tools can load.

    Args:
        images: entries with `id`, `file_name`, `width` and `height`.
        results: COCO results of these images, see `coco_results`.
        categories: entries with `id` and `name`.
        description: description of the file.

    Returns:
        `info`, `images`, `categories` and `annotations`. Annotations have a `score` in addition to the usual fields.
    """
    annotations = []
    for index, result in enumerate(results, start=1):
        mask = result.get("segmentation")
        area = float(rle.area(mask)) if mask else result["bbox"][2] * result["bbox"][3]
        annotations.append({"id": index, "iscrowd": 0, "area": area, "segmentation": [], **result})
    return {
        "info": {"description": description},
        "images": [*images],
        "categories": [*categories],
        "annotations": annotations,
    }


def match_files(files: Sequence[Path], images: Sequence[dict[str, Any]], annotations: Path) -> list[dict[str, Any]]:
    """Return the entry of an annotation file for each image file: the entry whose `file_name` ends the path.

    Raises:
        ValueError: if a file has no entry, or two files have the same entry.
    """
    by_name = {PurePosixPath(entry["file_name"]).parts: entry for entry in images}
    matches = []
    for file in files:
        ends = (file.parts[start:] for start in range(len(file.parts)))
        matches.append(next((by_name[end] for end in ends if end in by_name), None))
    missing = [str(file) for file, match in zip(files, matches, strict=True) if match is None]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(files)} images are not in {annotations}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    taken: dict[int, Path] = {}
    for file, match in zip(files, matches, strict=True):
        if match["id"] in taken:
            raise ValueError(f"{taken[match['id']]} and {file} are both image {match['id']} of {annotations}")
        taken[match["id"]] = file
    return matches
