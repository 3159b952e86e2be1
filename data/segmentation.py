"""COCO segmentations: polygons, or run lengths as a list or as a compressed string."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

# A polygon needs three corners; pycocotools interprets four numbers as a box.
_MIN_NUMBERS = 6
# As for boxes; pycocotools traverses every outline point by point, also outside of the image.
_MAX_PX = 1e5
# Minimum probability of a pixel that belongs to the object.
MASK_THRESHOLD = 0.5
# pycocotools passes masks to NumPy by the protocol of version 1, which also works in 2; users cannot change this.
warnings.filterwarnings(
    "ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning, "pycocotools.mask"
)

Size = tuple[int, int]


def segmentation_problem(segmentation: Any, size: Size | None) -> str | None:
    """Return the problem of a `segmentation` of a COCO file, or None if it is valid.

    pycocotools accepts invalid values without an error and returns uninitialised memory for them.

    Args:
        segmentation: Polygons `[[x, y, x, y, ...], ...]`, or a mapping with `size` (height, width) and `counts`, a list
            or a string.
        size: (width, height) of the image, None if it is unknown.
    """
    if not segmentation:
        return "has no segmentation"
    if size is None:
        return "has a segmentation, but its image has no width and height"
    width, height = map(int, size)
    if isinstance(segmentation, list):
        return next(filter(None, map(_polygon_problem, segmentation)), None)
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), list | str | bytes):
        return "has a segmentation that is neither polygons nor run lengths"
    if segmentation.get("size") != [height, width]:
        return (
            f"must have run lengths of size {[height, width]} (height, width of its image), "
            f"got {segmentation.get('size')!r:.60}"
        )
    return _runs_problem(segmentation["counts"], height * width)


def extent_of_mask(segmentation: Any, size: Size | None) -> list[float] | None:
    """Return the bounding box (x, y, width, height) of a `segmentation`, or None if it is missing or invalid.

    Args:
        segmentation: See `segmentation_problem`.
        size: (width, height) of the image; None takes the size of run lengths from the mask itself.
    """
    if isinstance(segmentation, list) and segmentation and not any(map(_polygon_problem, segmentation)):
        corners = np.concatenate([np.array(polygon, dtype=np.float64) for polygon in segmentation]).reshape(-1, 2)
        low, high = corners.min(axis=0), corners.max(axis=0)
        return [*low.tolist(), *(high - low).tolist()]
    if isinstance(segmentation, dict):
        size = size or _stated_size(segmentation)
        if size is not None and segmentation_problem(segmentation, size) is None:
            return coco_mask.toBbox(to_rle(segmentation, size)).tolist()
    return None


def _stated_size(segmentation: dict[str, Any]) -> Size | None:
    stated = segmentation.get("size")
    is_size = isinstance(stated, list) and len(stated) == 2 and all(type(v) is int and 0 < v < _MAX_PX for v in stated)
    return (stated[1], stated[0]) if is_size else None


def to_rle(segmentation: list | dict[str, Any], size: Size) -> dict[str, Any]:
    """Return pycocotools' run lengths of a valid segmentation, for an image of (width, height).

    All parts of an object are merged.
    """
    width, height = map(int, size)
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def decode_masks(segmentations: Sequence[list | dict[str, Any]], size: Size) -> NDArray[np.uint8]:
    """Return masks `(n, height, width)` of 0 and 1 from valid segmentations of an image of (width, height)."""
    if not segmentations:
        width, height = map(int, size)
        return np.zeros((0, height, width), dtype=np.uint8)
    masks = coco_mask.decode([to_rle(segmentation, size) for segmentation in segmentations])  # (height, width, n)
    return np.ascontiguousarray(masks.transpose(2, 0, 1))


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Return pycocotools' run lengths of the masks of one image, with `counts` as a string for JSON.

    Args:
        masks: Probabilities, `(n, 1, H, W)` or `(n, H, W)`; pixels of at least `MASK_THRESHOLD` belong to the object.
    """
    # pycocotools counts along columns; with contiguous columns it needs no second copy
    by_column = (masks.flatten(0, -3) >= MASK_THRESHOLD).to(torch.uint8).transpose(1, 2).contiguous()
    packed = coco_mask.encode(by_column.cpu().numpy().transpose(2, 1, 0))
    return [rle | {"counts": rle["counts"].decode("ascii")} for rle in packed]


def _polygon_problem(polygon: Any) -> str | None:
    numbers = _numbers(polygon)
    if numbers is None or len(numbers) < _MIN_NUMBERS or len(numbers) % 2:
        return (
            f"has a polygon that is not a list x, y, x, y, ... of at least three corners: {polygon!r:.60}"
            f"{f' ({len(polygon)} numbers)' if numbers is not None else ''}"
        )
    if not np.abs(numbers).max() < _MAX_PX:  # also for NaN
        return f"has a polygon with numbers that are not pixels: {polygon!r:.60}"
    return None


def _runs_problem(counts: list | str | bytes, pixels: int) -> str | None:
    runs = _numbers(counts) if isinstance(counts, list) else _unpack(counts)
    if runs is None or runs.dtype.kind != "i":
        return f"has invalid run lengths: {counts!r:.60}"
    if len(runs) and not 0 <= runs.min() <= runs.max() <= pixels:
        return f"must have run lengths from 0 to the {pixels} pixels of its image, got {runs.min()} to {runs.max()}"
    if runs.sum() != pixels:
        return f"must have run lengths of {pixels} pixels in total, as its image, got {runs.sum()}"
    return None


def _numbers(values: Any) -> NDArray | None:
    """Return a list of int or float as an array, or None for other values."""
    if not isinstance(values, list) or not values:
        return None
    try:
        array = np.array(values)
    except (ValueError, OverflowError):  # lists of different lengths, or a number too large for an array
        return None
    return array if array.ndim == 1 and array.dtype.kind in "if" else None


def _unpack(counts: str | bytes) -> NDArray[np.int64] | None:
    """Return the run lengths of pycocotools' compressed string, or None if it is truncated or has other characters.

    Each character, minus "0", holds 5 bits of a number, lowest bits first. Bit 32 marks that more characters follow;
    bit 16 of the last one is the sign. From the fourth number on, the number two positions before is added.
    Source: rleFrString in cocoapi's maskApi.c.
    """
    try:
        digits = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, dtype=np.uint8)
    except UnicodeEncodeError:
        return None
    digits = digits.astype(np.int64) - ord("0")
    if not len(digits) or digits.min() < 0 or digits.max() >= 64 or digits[-1] & 32:
        return None
    last = np.flatnonzero(digits & 32 == 0)
    first = np.append(0, last[:-1] + 1)
    lengths = last - first + 1
    if lengths.max() > 7:  # pycocotools writes 32 bits
        return None
    positions = np.arange(len(digits)) - np.repeat(first, lengths)
    numbers = np.add.reduceat((digits & 31) << (5 * positions), first)
    numbers -= np.where(digits[last] & 16, 1 << (5 * lengths), 0)
    numbers[1::2], numbers[2::2] = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    return numbers
