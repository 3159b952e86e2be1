"""Masks of transformed images without masks of whole images: transforms move the numbers of rows and columns.

Resizing, cropping, padding and flipping choose rows and columns of a mask, without interpolation. They are applied to
the numbers of the rows and columns. Each mask is then decoded and reduced alone: the memory is that of one whole mask.
A rotation by an angle mixes rows and columns. It comes last, and each reduced mask is rotated alone.
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


class Angle(tv_tensors.TVTensor):
    """Angle by which the masks are rotated after their rows and columns are chosen, in degrees, `()` float32."""


def mask_grid(size: Size, count: int) -> dict[str, Tensor]:
    """Return entries for the target of an image of (width, height) with `count` objects, before its transform."""
    width, height = map(int, size)
    return {
        "rows": Rows.up_to(height),
        "columns": Columns.up_to(width),
        "is_transposed": torch.tensor(False),
        "angle": torch.tensor(0.0).as_subclass(Angle),
        "objects": torch.arange(count),
    }


def quarter_turn_of_grid(target: dict[str, Any]) -> dict[str, Tensor]:
    """Return the entries of a target's grid for an image that is rotated by 90 degrees against the clock."""
    return {
        "rows": target["columns"].flip(0).as_subclass(Rows),
        "columns": target["rows"].as_subclass(Columns),
        "is_transposed": ~target["is_transposed"],
    }


def with_masks(target: dict[str, Any], segmentations: Sequence[list | dict[str, Any]], size: Size) -> dict[str, Any]:
    """Return a transformed target with masks `(n, H, W)` uint8 instead of the entries of `mask_grid`.

    The box of an object that is rotated by an angle or cut by a crop is the one around its mask. Such an object without
    a pixel is removed.

    Args:
        target: transformed target.
        segmentations: valid segmentations of all objects before the transform.
        size: (width, height) of the image before the transform.
    """
    grid = {key: target[key] for key in (*mask_grid(size, 0), "visible") if key in target}
    target = {key: value for key, value in target.items() if key not in grid}
    rows, columns = (grid[key].long().numpy() for key in ("rows", "columns"))
    angle = float(grid["angle"])
    masks = torch.zeros(len(grid["objects"]), len(rows), len(columns), dtype=torch.uint8)
    inside = np.ix_(rows >= 0, columns >= 0)
    source = np.ix_(rows[rows >= 0], columns[columns >= 0])
    for mask, index in zip(masks, grid["objects"].tolist(), strict=True):
        whole = decode_masks([segmentations[index]], size)[0]
        mask.numpy()[inside] = (whole.T if grid["is_transposed"] else whole)[source]
        if angle:
            mask.copy_(functional.rotate(tv_tensors.Mask(mask), angle))
    cut = (grid.get("visible", torch.ones(len(masks))) < 1) | (angle != 0)
    kept = ~cut | masks.flatten(1).bool().any(dim=1)
    if not kept.all():
        target |= {key: target[key][kept] for key in ("boxes", "labels")}
        masks = masks[kept]
    return target | {"boxes": boxes_around_masks(target["boxes"], masks, cut[kept]), "masks": masks}


def boxes_around_masks(boxes: Tensor, masks: Tensor, chosen: Tensor) -> Tensor:
    """Return boxes `(n, 4)` of which the chosen ones are those around their masks `(n, H, W)`, which have a pixel."""
    boxes = boxes.clone()
    for index in chosen.nonzero().flatten().tolist():
        rows, columns = (masks[index].bool().any(dim=dim).nonzero() for dim in (1, 0))
        boxes[index] = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return boxes


def per_object(sample: tuple[Any, dict[str, Any]]) -> tuple[Tensor, ...]:
    """Return the tensors of a sample that lose the entries of removed boxes, for `v2.SanitizeBoundingBoxes`."""
    return tuple(sample[1][key] for key in ("labels", "objects", "visible") if key in sample[1])


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


@functional.register_kernel(functional.rotate, Rows)
@functional.register_kernel(functional.rotate, Columns)
def _(lines: Lines, *_: Any, **__: Any) -> Lines:
    return lines


@functional.register_kernel(functional.rotate, Angle)
def _(_: Angle, angle: float, **__: Any) -> Angle:
    return torch.tensor(angle).as_subclass(Angle)


@functional.register_kernel(functional.vertical_flip, Rows)
def _(rows: Rows) -> Rows:
    return rows.flip(0).as_subclass(Rows)
