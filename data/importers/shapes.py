"""Turned boxes, circles and ellipses as polygons within their image, and objects of several parts."""

import numpy as np
from numpy.typing import NDArray

from ..synthetic import clip_outline
from .findings import Findings
from .records import LabelledObject

# Corners of a circle: its polygon has 99.9 % of its area.
_CORNERS = 72

Points = NDArray[np.float64]


def corners(x: float, y: float, width: float, height: float) -> Points:
    """Return the corners `(4, 2)` of a box, in order around it."""
    return np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]], dtype=np.float64)


def ellipse(x: float, y: float, radius_x: float, radius_y: float) -> Points:
    """Return points `(P, 2)` on an ellipse around (x, y)."""
    angles = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    return np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)


def turned(points: Points, degrees: float, pivot: tuple[float, float]) -> Points:
    """Return points that are turned clockwise, as seen in the image, around a pivot."""
    angle = np.deg2rad(degrees)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return (points - pivot) @ rotation + pivot


def within(points: Points, size: tuple[int, int]) -> list[float]:
    """Return the part of a polygon within its image of (width, height), as x, y, x, y, ...

    A turned box or an ellipse can reach out of the image although its author drew within it.
    """
    if not np.isfinite(points).all():
        return points.flatten().tolist()  # the check of all objects reports it
    return clip_outline(points, size).flatten().tolist()


def join_groups(objects: list[tuple[str | None, LabelledObject]], found: Findings) -> list[LabelledObject]:
    """Join the polygons of a class and a group, which are parts of one object, such as a car behind a pole.

    Args:
        objects: Group, None for an object of one part, and the object.
        found: Receives a note for each part that is joined to another one.
    """
    joined: dict[object, LabelledObject] = {}
    for index, (group, item) in enumerate(objects):
        key = index if group is None or not isinstance(item.segmentation, list) else (item.name, group)
        if key in joined:
            found.note("parts of an object that have the same group, joined", item.place)
            first = joined[key]
            item = first._replace(bbox=None, segmentation=[*first.segmentation, *item.segmentation])
        joined[key] = item
    return [*joined.values()]
