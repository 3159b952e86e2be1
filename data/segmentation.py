"""Outlines of objects as COCO files have them: polygons, or run lengths as a list or packed into a string."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask
from torch import Tensor

# A polygon needs three corners; pycocotools would take four numbers for a box.
_MIN_NUMBERS = 6
# As of boxes; pycocotools walks along every outline point by point, also outside of the image.
_MAX_PX = 1e5
# Probability from which on a pixel belongs to the object.
MASK_THRESHOLD = 0.5
# pycocotools hands its masks to NumPy in the way of version 1, which works in 2 as well; users can do nothing about it.
warnings.filterwarnings(
    "ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning, "pycocotools.mask"
)

Size = tuple[int, int]


def segmentation_problem(segmentation: Any, size: Size | None) -> str | None:
    """Say what is wrong with a `segmentation` of a COCO file, None if it can be read.

    pycocotools takes what does not fit without a word, and gives chance numbers from its memory.

    Args:
        segmentation: polygons `[[x, y, x, y, ...], ...]`, or a mapping of `size` (height, width) and `counts`, a list
            or a string.
        size: (width, height) of the image, None if it is not known.
    """
    if not segmentation:
        return "has no segmentation"
    if size is None:
        return "has a segmentation, but its image no stated width and height"
    width, height = map(int, size)
    if isinstance(segmentation, list):
        return next(filter(None, map(_polygon_problem, segmentation)), None)
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), list | str | bytes):
        return "has a segmentation that is neither polygons nor run lengths"
    if segmentation.get("size") != [height, width]:
        return (
            f"has run lengths of size {segmentation.get('size')!r:.60}, but its image has (height, width) "
            f"{[height, width]}"
        )
    return _runs_problem(segmentation["counts"], height * width)


def to_rle(segmentation: list | dict[str, Any], size: Size) -> dict[str, Any]:
    """Pack a segmentation without a problem, of an image of (width, height), into pycocotools' run lengths.

    The parts of an object are joined.
    """
    width, height = map(int, size)
    if isinstance(segmentation, list):
        return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    if isinstance(segmentation["counts"], list):
        return coco_mask.frPyObjects(segmentation, height, width)
    return segmentation


def decode_masks(segmentations: Sequence[list | dict[str, Any]], size: Size) -> NDArray[np.uint8]:
    """Masks `(n, height, width)` of 0 and 1, of segmentations without a problem, of an image of (width, height)."""
    if not segmentations:
        width, height = map(int, size)
        return np.zeros((0, height, width), dtype=np.uint8)
    masks = coco_mask.decode([to_rle(segmentation, size) for segmentation in segmentations])  # (height, width, n)
    return np.ascontiguousarray(masks.transpose(2, 0, 1))


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Pack the masks of one image into run lengths of pycocotools, with `counts` as a string that JSON can hold.

    Args:
        masks: `(n, 1, H, W)` or `(n, H, W)` probabilities; a pixel belongs to the object from `MASK_THRESHOLD` on.
    """
    # pycocotools counts along the columns, so a copy that has them in a row is packed without another
    by_column = (masks.flatten(0, -3) >= MASK_THRESHOLD).to(torch.uint8).transpose(1, 2).contiguous()
    packed = coco_mask.encode(by_column.cpu().numpy().transpose(2, 1, 0))
    return [rle | {"counts": rle["counts"].decode("ascii")} for rle in packed]


def _polygon_problem(polygon: Any) -> str | None:
    numbers = _numbers(polygon)
    if numbers is None or len(numbers) < _MIN_NUMBERS or len(numbers) % 2:
        return (
            f"has a polygon that is no list of x, y, x, y, ... of three corners or more: {polygon!r:.60}"
            f"{f' ({len(polygon)} numbers)' if numbers is not None else ''}"
        )
    if not np.abs(numbers).max() < _MAX_PX:  # a NaN too
        return f"has a polygon with numbers that are no pixels: {polygon!r:.60}"
    return None


def _runs_problem(counts: list | str | bytes, pixels: int) -> str | None:
    runs = _numbers(counts) if isinstance(counts, list) else _unpack(counts)
    if runs is None or runs.dtype.kind != "i":
        return f"has run lengths that cannot be read: {counts!r:.60}"
    if len(runs) and not 0 <= runs.min() <= runs.max() <= pixels:
        return f"has run lengths that are not from 0 to the {pixels} pixels of its image"
    if runs.sum() != pixels:
        return f"has run lengths of {runs.sum()} pixels in all, but its image has {pixels}"
    return None


def _numbers(values: Any) -> NDArray | None:
    """A list of int or float as an array, None if it is something else."""
    if not isinstance(values, list) or not values:
        return None
    try:
        array = np.array(values)
    except (ValueError, OverflowError):  # lists of several lengths, or a number that no array holds
        return None
    return array if array.ndim == 1 and array.dtype.kind in "if" else None


def _unpack(counts: str | bytes) -> NDArray[np.int64] | None:
    """Read the packed run lengths of pycocotools, None if the string is cut short or has other characters.

    A number has 5 bits in each character from "0" on, the lowest first; 32 marks that more follow, 16 of the last is
    the sign. From the fourth on a number is added to the one two before it. Source: rleFrString in cocoapi's
    maskApi.c.
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
    places = np.arange(len(digits)) - np.repeat(first, lengths)
    numbers = np.add.reduceat((digits & 31) << (5 * places), first)
    numbers -= np.where(digits[last] & 16, 1 << (5 * lengths), 0)
    numbers[1::2], numbers[2::2] = np.cumsum(numbers[1::2]), np.cumsum(numbers[2::2])
    return numbers
