"""A COCO data set cut into overlapping tiles: image files, boxes and masks."""

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from .image_files import ImageError
from .segmentation import decode_masks, to_rle
from .tile_files import TileName, Window, tile_entry, tile_names, write_tiles

# width and height of an image -> its tiles, xyxy pixels
Windows = Callable[[int, int], Sequence[Window]]
# As data/objects.py: a smaller side can vanish in float32.
_MIN_PX = 0.01


class CutCounts(NamedTuple):
    """Counts of a split after the cut.

    Attributes:
        tiles: Number of tiles.
        empty: Number of tiles without an object or a region.
        objects: Objects in tiles; an object counts in each tile that shows it.
        cut: Objects in tiles that are cut and visible enough.
        ignored: Parts of objects that are cut and not visible enough.
        never: Places of objects that are visible enough in no tile.
        unreadable: Messages of images without tiles.
    """

    tiles: int
    empty: int
    objects: int
    cut: int
    ignored: int
    never: list[str]
    unreadable: list[str]


class _Mask(NamedTuple):
    """The pixels of an object: `(h, w)` of 0 and 1, whose first pixel is column `left` and row `top` of the image."""

    pixels: NDArray[np.uint8]
    left: int
    top: int


def cut_datasets(
    datasets: dict[str, dict[str, Any]],
    root: Path,
    folder: Path,
    *,
    windows: Windows,
    min_visible: float,
    progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[dict[str, dict[str, Any]], dict[str, CutCounts]]:
    """Cut the images and annotations of all splits into tiles, and write the images.

    Tiles stay in the split of their image. JPEG files become JPEG files of quality 95 without chroma subsampling, all
    others PNG files.

    Args:
        datasets: COCO data set of each split.
        root: Folder of the images.
        folder: Folder of the tiles.
        windows: Function that returns the tiles of an image.
        min_visible: Fraction of an object, of its mask or else of its box, that a tile must show. Objects that are cut
            below it become crowd regions, which training and evaluation ignore.
        progress: Function that wraps the iteration over the images.

    Returns:
        The data sets with new ids, and the counts, by split.

    Raises:
        DatasetError: If two images have the same names of tiles.
    """
    names = tile_names(datasets)
    ids = count(1), count(1)
    cut, counts = {}, {}
    for split, raw in datasets.items():
        cut[split], counts[split] = _cut_split(raw, root, folder, names, windows, min_visible, ids, progress)
    return cut, counts


class Part(NamedTuple):
    """An annotation in a tile, and the fraction of the object that the tile shows."""

    annotation: dict[str, Any]
    visible: float


def cut_annotation(
    annotation: dict[str, Any], size: tuple[int, int], windows: Sequence[Window], min_visible: float
) -> list[Part | None]:
    """Return an annotation of an image of (width, height) in each of its tiles; None in tiles that do not show it.

    An object that a tile shows whole keeps its polygons and area. Other masks become run lengths.
    """
    x, y, w, h = annotation["bbox"]
    box = np.array([x, y, x + w, y + h], dtype=np.float64)
    mask = _mask_of(annotation, size)
    parts = [_in_window(annotation, box, mask, window, size) for window in windows]
    return [
        part._replace(annotation=part.annotation | {"iscrowd": 1}) if part and part.visible < min_visible else part
        for part in parts
    ]


def _cut_split(
    raw: dict[str, Any],
    root: Path,
    folder: Path,
    names: dict[str, TileName],
    windows: Windows,
    min_visible: float,
    ids: tuple[count, count],
    progress: Callable[[Iterable], Iterable],
) -> tuple[dict[str, Any], CutCounts]:
    annotations_of: dict[int, list[dict[str, Any]]] = {entry["id"]: [] for entry in raw["images"]}
    for annotation in raw["annotations"]:
        annotations_of[annotation["image_id"]].append(annotation)
    images, annotations, never, unreadable = [], [], [], []
    empty = cut = 0
    for entry in progress(raw["images"]):
        size = entry["width"], entry["height"]
        places = windows(*size)
        tiles = [tile_entry(names[entry["file_name"]], window) for window in places]
        try:
            write_tiles(root / entry["file_name"], size, dict(zip(places, tiles, strict=True)), folder)
        except ImageError as error:
            unreadable.append(str(error))
            continue
        images += [tile | {"id": next(ids[0])} for tile in tiles]
        shown = set()
        for annotation in annotations_of[entry["id"]]:
            parts = cut_annotation(annotation, size, places, min_visible)
            for tile, part in zip(images[-len(tiles) :], parts, strict=True):
                if part is not None:
                    shown.add(tile["id"])
                    cut += part.visible < 1 and not part.annotation["iscrowd"]
                    annotations.append(part.annotation | {"id": next(ids[1]), "image_id": tile["id"]})
            if not annotation["iscrowd"] and all(part is None or part.annotation["iscrowd"] for part in parts):
                never.append(f"annotation {annotation['id']} of {entry['file_name']}")
        empty += len(tiles) - len(shown)
    ignored = sum(annotation["iscrowd"] for annotation in annotations)
    found = CutCounts(len(images), empty, len(annotations) - ignored, cut, ignored, never, unreadable)
    return raw | {"images": images, "annotations": annotations}, found


def _in_window(
    annotation: dict[str, Any],
    box: NDArray,
    mask: _Mask | None,
    window: Window,
    size: tuple[int, int],
) -> Part | None:
    left, top, right, bottom = window
    # a box may extend out of its image by rounding
    beyond = np.array([left == 0, top == 0, right == size[0], bottom == size[1]])
    outer = np.where(beyond, [-np.inf, -np.inf, np.inf, np.inf], window)
    inside = np.concatenate([np.maximum(box[:2], outer[:2]), np.minimum(box[2:], outer[2:])])
    if (inside[2:] - inside[:2]).min() <= _MIN_PX:
        return None
    found = annotation | {"bbox": _xywh(inside - [left, top, left, top])}
    if (inside == box).all():
        return Part(found | _moved_segmentation(annotation, window, mask), 1.0)
    if mask is None:
        visible = float((inside[2:] - inside[:2]).prod() / (box[2:] - box[:2]).prod())
        return Part(found | {"area": annotation["area"] * visible}, visible)
    pixels = _pixels_in(mask, window)
    area = int(pixels.sum())
    if not area:
        return None
    run_lengths = _encoded(pixels)
    found |= {"bbox": coco_mask.toBbox(run_lengths).tolist(), "area": area, "segmentation": _as_json(run_lengths)}
    return Part(found, area / int(mask.pixels.sum()))


def _moved_segmentation(annotation: dict[str, Any], window: Window, mask: _Mask | None) -> dict[str, Any]:
    """Return the `segmentation` of an object that a tile shows whole."""
    segmentation = annotation.get("segmentation")
    if mask is None:
        return {}
    if isinstance(segmentation, list):
        shift = window[:2]
        return {"segmentation": [[v - shift[i % 2] for i, v in enumerate(polygon)] for polygon in segmentation]}
    return {"segmentation": _as_json(_encoded(_pixels_in(mask, window)))}


def _mask_of(annotation: dict[str, Any], size: tuple[int, int]) -> _Mask | None:
    """Return the pixels of an annotation's mask, in the memory of its extent; None without a mask."""
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return None
    if isinstance(segmentation, dict):
        x, y, w, h = (int(value) for value in coco_mask.toBbox(to_rle(segmentation, size)))
        pixels = decode_masks([segmentation], size)[0][y : y + h, x : x + w]
        return _Mask(np.ascontiguousarray(pixels), x, y)
    corners = np.concatenate([np.array(polygon, dtype=np.float64) for polygon in segmentation]).reshape(-1, 2)
    # whole pixels, so that the rounding of pycocotools stays the same
    left, top = (int(v) for v in np.floor(corners.min(0)).clip(min=0))
    right, bottom = (int(v) for v in np.minimum(np.ceil(corners.max(0)) + 1, size))
    moved = [[v - (left, top)[i % 2] for i, v in enumerate(polygon)] for polygon in segmentation]
    pixels = decode_masks([moved], (max(right - left, 1), max(bottom - top, 1)))[0]
    return _Mask(pixels, left, top)


def _pixels_in(mask: _Mask, window: Window) -> NDArray[np.uint8]:
    """Return the pixels of a mask in a tile, `(height, width)` of the tile."""
    left, top, right, bottom = window
    part = np.zeros((bottom - top, right - left), dtype=np.uint8)
    height, width = mask.pixels.shape
    x, y = max(left, mask.left), max(top, mask.top)
    x_end, y_end = min(right, mask.left + width), min(bottom, mask.top + height)
    if x < x_end and y < y_end:
        source = mask.pixels[y - mask.top : y_end - mask.top, x - mask.left : x_end - mask.left]
        part[y - top : y_end - top, x - left : x_end - left] = source
    return part


def _encoded(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(pixels))


def _as_json(run_lengths: dict[str, Any]) -> dict[str, Any]:
    return {"size": [*map(int, run_lengths["size"])], "counts": run_lengths["counts"].decode("ascii")}


def _xywh(box: NDArray) -> list[float]:
    left, top, right, bottom = box.tolist()
    return [left, top, right - left, bottom - top]
