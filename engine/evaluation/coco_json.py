"""What a detector found in pictures, as files that other tools read."""

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
    """Put detections into the form of a COCO instances file, so that annotation tools can load them.

    Args:
        images: entries with `id`, `file_name`, `width` and `height`.
        results: COCO results of these images, see `coco_results`.
        categories: with `id` and `name`.
        description: what the file says of itself.

    Returns:
        `info`, `images`, `categories` and `annotations`, each of these with a `score` beside the usual fields.
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
    """Find the entry of an annotation file for each picture: the one whose `file_name` its path ends with.

    Raises:
        ValueError: if there is none, or two pictures have the same.
    """
    by_name = {PurePosixPath(entry["file_name"]).parts: entry for entry in images}
    matches = []
    for file in files:
        ends = (file.parts[start:] for start in range(len(file.parts)))
        matches.append(next((by_name[end] for end in ends if end in by_name), None))
    missing = [str(file) for file, match in zip(files, matches, strict=True) if match is None]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(files)} pictures are not among the images of {annotations}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
        )
    taken: dict[int, Path] = {}
    for file, match in zip(files, matches, strict=True):
        if match["id"] in taken:
            raise ValueError(f"{taken[match['id']]} and {file} are both image {match['id']} of {annotations}")
        taken[match["id"]] = file
    return matches
