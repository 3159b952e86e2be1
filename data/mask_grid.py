"""Masks of transformed images without masks of whole images: transforms move the numbers of rows and columns.

Resizing, cropping, padding and flipping choose rows and columns of a mask, without interpolation. They are applied to
the numbers of the rows and columns. Each mask is then decoded and reduced alone: the memory is that of one whole mask.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from .segmentation import Size, decode_masks


class Lines(tv_tensors.TVTensor):
    """Numbers of source rows or columns, `(n,)` float32; -1 outside of the image."""

    @classmethod
    def up_to(cls, count: int) -> "Lines":
        """Return the lines of an image as it is."""
        return torch.arange(count, dtype=torch.float32).as_subclass(cls)


class Rows(Lines):
    """Numbers of the source rows of a transformed image."""


class Columns(Lines):
    """Numbers of the source columns of a transformed image."""


def mask_grid(size: Size, count: int) -> dict[str, Tensor]:
    """Return entries for the target of an image of (width, height) with `count` objects, before its transform."""
    width, height = map(int, size)
    return {"rows": Rows.up_to(height), "columns": Columns.up_to(width), "objects": torch.arange(count)}


def masks_on_grid(target: dict[str, Any], segmentations: Sequence[list | dict[str, Any]], size: Size) -> Tensor:
    """Remove the entries of `mask_grid` from a transformed target, and return its masks `(n, H, W)` uint8.

    Args:
        target: transformed target.
        segmentations: valid segmentations of all objects before the transform.
        size: (width, height) of the image before the transform.
    """
    objects, rows, columns = (target.pop(key) for key in ("objects", "rows", "columns"))
    rows, columns = (lines.long().numpy() for lines in (rows, columns))
    masks = np.zeros((len(objects), len(rows), len(columns)), dtype=np.uint8)
    inside = np.ix_(rows >= 0, columns >= 0)
    source = np.ix_(rows[rows >= 0], columns[columns >= 0])
    for mask, index in zip(masks, objects.tolist(), strict=True):
        mask[inside] = decode_masks([segmentations[index]], size)[0][source]
    return torch.from_numpy(masks)


def per_object(sample: tuple[Any, dict[str, Any]]) -> tuple[Tensor, ...]:
    """Return the tensors of a sample that lose the entries of removed boxes, for `v2.SanitizeBoundingBoxes`."""
    return tuple(sample[1][key] for key in ("labels", "objects") if key in sample[1])


def _nearest(lines: Tensor, count: int) -> Tensor:
    return interpolate(lines.as_subclass(Tensor)[None, None, :, None], size=(count, 1), mode="nearest")[0, 0, :, 0]


def _padded(lines: Tensor, before: int, after: int) -> Tensor:
    return torch.nn.functional.pad(lines.as_subclass(Tensor), (before, after), value=-1)


def _sides(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    """Return left, top, right and bottom of a padding of one, two or four numbers."""
    numbers = [padding] if isinstance(padding, int) else [*padding]
    left, top, right, bottom = {1: numbers * 4, 2: numbers * 2}.get(len(numbers), numbers)
    return left, top, right, bottom


@functional.register_kernel(functional.resize, Rows)
def _(rows: Rows, size: list[int], **_: Any) -> Rows:
    return _nearest(rows, size[0]).as_subclass(Rows)


@functional.register_kernel(functional.resize, Columns)
def _(columns: Columns, size: list[int], **_: Any) -> Columns:
    return _nearest(columns, size[1]).as_subclass(Columns)


@functional.register_kernel(functional.crop, Rows)
def _(rows: Rows, top: int, left: int, height: int, width: int) -> Rows:
    return rows[top : top + height].as_subclass(Rows)


@functional.register_kernel(functional.crop, Columns)
def _(columns: Columns, top: int, left: int, height: int, width: int) -> Columns:
    return columns[left : left + width].as_subclass(Columns)


@functional.register_kernel(functional.pad, Rows)
def _(rows: Rows, padding: int | list[int], **_: Any) -> Rows:
    _, top, _, bottom = _sides(padding)
    return _padded(rows, top, bottom).as_subclass(Rows)


@functional.register_kernel(functional.pad, Columns)
def _(columns: Columns, padding: int | list[int], **_: Any) -> Columns:
    left, _, right, _ = _sides(padding)
    return _padded(columns, left, right).as_subclass(Columns)


@functional.register_kernel(functional.horizontal_flip, Columns)
def _(columns: Columns) -> Columns:
    return columns.flip(0).as_subclass(Columns)
