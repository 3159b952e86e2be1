"""A part of an image with an error, the objects around it, and the detections concerned."""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data import decode_masks

from ..display import draw_boxes
from ..evaluation import ERROR_KINDS
from .analysis import ErrorAnalysis

# Colours of Okabe and Ito, distinguishable with colour vision deficiencies, https://jfly.uni-koeln.de/color
LABELLED, AT_FAULT, ERROR, RIGHT = (255, 255, 255), (204, 121, 167), (213, 94, 0), (0, 158, 115)
LEGEND = {
    "labelled object": LABELLED,
    "missed object or suspect label": AT_FAULT,
    "detection": ERROR,
    "correct detection of the same object": RIGHT,
}
DASHED = (LABELLED, AT_FAULT)
THUMBNAIL = 240  # shorter side in pixels
_CONTEXT = 2.0  # sides of the part of the image, relative to the boxes
_LEAST_PX = 96
_RATIO = 4 / 3  # of width to height, so that the images of the page have one shape


class _Drawn(NamedTuple):
    """An object or a detection: its entry in a COCO file, name and colour, and whether the error concerns it."""

    entry: dict[str, Any]
    name: str
    colour: tuple[int, int, int]
    is_concerned: bool


def draw_error(analysis: ErrorAnalysis, image: Tensor, place: int, row: int, each: int) -> Tensor:
    """Draw an error or a suspect label into the part of the image around it.

    Args:
        analysis: result of `analyse_errors`.
        image: `(channels, H, W)`, see `as_rgb`.
        place: index of the image in the annotation file.
        row: index of the detection in `ErrorDetections`, -1 for none.
        each: index of the object in `TrueObjects`, -1 for none.

    Returns:
        `(3, h, w)` uint8.
    """
    found, objects, names = analysis.errors.detections, analysis.errors.objects, analysis.class_names
    drawn = [
        _Drawn(
            analysis.true_object(other),
            names[objects.label[other]],
            AT_FAULT if row < 0 and other == each else LABELLED,
            other == each,
        )
        for other in np.flatnonzero(objects.image == place)
    ]
    rows = [] if row < 0 else [row]
    if row >= 0 and found.kind[row] == ERROR_KINDS["duplicate"]:
        rows.insert(0, int(objects.matched[each]))
    for other in rows:
        name = f"{names[found.label[other]]} {found.score[other]:.2f}"
        drawn.append(_Drawn(analysis.detection(other), name, ERROR if other == row else RIGHT, True))
    boxes = torch.tensor([one.entry["bbox"] for one in drawn], dtype=torch.float64)
    boxes[:, 2:] += boxes[:, :2]
    size = image.shape[2], image.shape[1]
    concerned = torch.tensor([one.is_concerned for one in drawn])
    left, top, right, bottom = part = part_around(boxes[concerned].numpy(), size)
    first, last = torch.tensor([left, top]), torch.tensor([right, bottom])
    visible = ((boxes[:, 2:] > first) & (boxes[:, :2] < last)).all(dim=1) | concerned
    shown = [one for one, is_visible in zip(drawn, visible.tolist(), strict=True) if is_visible]
    return draw_boxes(
        image[:, top:bottom, left:right],
        boxes[visible] - torch.cat([first, first]),
        [one.name for one in shown],
        [one.colour for one in shown],
        THUMBNAIL,
        dashed=sum(one.colour in DASHED for one in shown),
        masks=[_mask(one, size, part) if analysis.kind == "segm" else None for one in shown],
    )


def part_around(boxes: NDArray[np.float64], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return the part (left, top, right, bottom) of an image that shows boxes and their surroundings.

    Args:
        boxes: `(n, 4)` xyxy pixels, at least one.
        size: width and height of the image.
    """
    boxes = np.clip(np.nan_to_num(boxes), 0, [*size, *size])
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    width, height = np.maximum(_CONTEXT * (high - low), _LEAST_PX)
    sides = np.ceil(np.minimum([max(width, height * _RATIO), max(height, width / _RATIO)], size))
    corner = np.clip(np.round((low + high - sides) / 2), 0, size - sides)
    left, top, right, bottom = np.concatenate([corner, corner + sides]).astype(int).tolist()
    return left, top, right, bottom


def _mask(one: _Drawn, size: tuple[int, int], part: tuple[int, int, int, int]) -> Tensor | None:
    """Return the mask of an object or detection that the error concerns, in a part of the image."""
    if not one.is_concerned:
        return None
    left, top, right, bottom = part
    (whole,) = decode_masks([one.entry["segmentation"]], size)
    return torch.from_numpy(np.ascontiguousarray(whole[top:bottom, left:right]))
