"""Merging of the detections of overlapping tiles: an object in several tiles becomes one detection."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

# Two detections show the same object if they share this fraction of the smaller one, as in SAHI.
SAME_OBJECT = 0.5


class Views(NamedTuple):
    """Detections of an image, each found in one of its tiles.

    Attributes:
        boxes: `(n, 4)`, xyxy pixels of the image.
        labels: `(n,)`.
        scores: `(n,)`.
        tiles: `(n,)`, number of the tile.
        is_cut: `(n,)` bool, whether the box ends at a border of its tile inside of the image.
        windows: `(tiles, 4)`, xyxy pixels of each tile.
    """

    boxes: NDArray
    labels: NDArray
    scores: NDArray
    tiles: NDArray
    is_cut: NDArray
    windows: NDArray


class Merged(NamedTuple):
    """A detection of the image: its box and score, and the indices of the views that together show the object."""

    box: NDArray
    score: float
    parts: list[int]


def merge_views(views: Views) -> list[Merged]:
    """Merge detections of a class in different tiles that show the same object.

    Detections are visited in order of descending score, as in NMS. The first one keeps its score, and removes the
    detections of other tiles that share at least `SAME_OBJECT` of the smaller area with it. Its box is

    1. its own, if no border of its tile cuts it;
    2. else the box of the best removed detection that is not cut and contains at least `SAME_OBJECT` of it;
    3. else the union with the removed detections that are cut too, the best of each tile. They remove detections in the
       same way, so that an object may extend over many tiles. Here two detections also show the same object if their
       boxes have an IoU of `SAME_OBJECT` in the area that both tiles contain: large objects have small shared parts.

    This is greedy non-maximum merging with SAHI's overlap, https://arxiv.org/abs/2202.06934, with two differences. SAHI
    always takes the union, which also enlarges whole boxes. It also compares detections of the same tile, which the NMS
    of the detector has done.

    Returns:
        The detections of the image, the best first.
    """
    order = np.argsort(-views.scores, kind="stable")
    boxes, labels = views.boxes[order].astype(np.float64), views.labels[order]
    tiles, is_cut = views.tiles[order], views.is_cut[order]
    merged: list[tuple[int, Merged]] = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        windows = views.windows[tiles[own]].astype(np.float64)
        for first, parts in _merge_class(boxes[own], tiles[own], is_cut[own], windows):
            box = np.concatenate([boxes[own[parts], :2].min(0), boxes[own[parts], 2:].max(0)])
            score = float(views.scores[order[own[first]]])
            merged.append((own[first], Merged(box, score, order[own[parts]].tolist())))
    return [found for _, found in sorted(merged, key=lambda pair: pair[0])]


def _merge_class(boxes: NDArray, tiles: NDArray, is_cut: NDArray, windows: NDArray) -> list[tuple[int, list[int]]]:
    """Merge the detections of a class, in descending order of scores; return the first and the parts of each."""
    is_free = np.ones(len(boxes), dtype=bool)
    found = []
    for first in range(len(boxes)):
        if not is_free[first]:
            continue
        is_free[first] = False
        parts = [first]
        for part in parts:  # grows
            others = np.flatnonzero(is_free & ~np.isin(tiles, tiles[parts]))
            shared = _area(_intersection(boxes[part], boxes[others]))
            is_same = shared >= SAME_OBJECT * np.minimum(_area(boxes[part]), _area(boxes[others]))
            if is_cut[part]:
                is_same |= is_cut[others] & _agree(boxes[part], boxes[others], windows[part], windows[others])
            others, shared = others[is_same], shared[is_same]
            is_free[others] = False
            if not is_cut[first]:
                break
            is_whole = ~is_cut[others] & (shared >= SAME_OBJECT * _area(boxes[part]))
            if part == first and is_whole.any():
                parts = [int(others[is_whole][0])]
                break
            cut = others[is_cut[others]]
            _, best = np.unique(tiles[cut], return_index=True)
            parts += cut[best].tolist()
        found.append((first, parts))
    return found


def _agree(box: NDArray, boxes: NDArray, window: NDArray, windows: NDArray) -> NDArray:
    """Return whether boxes have an IoU of `SAME_OBJECT` with a box in the area that their tiles share."""
    common = _intersection(window, windows)
    one, others = _intersection(box, common), _intersection(boxes, common)
    shared = _area(_intersection(one, others))
    united = _area(one) + _area(others) - shared
    return (shared > 0) & (shared >= SAME_OBJECT * united)


def _area(boxes: NDArray) -> NDArray:
    return (boxes[..., 2:] - boxes[..., :2]).clip(min=0).prod(axis=-1)


def _intersection(one: NDArray, others: NDArray) -> NDArray:
    """Return the common boxes of each pair; a box without a common area has an area of 0."""
    return np.concatenate(
        [np.maximum(one[..., :2], others[..., :2]), np.minimum(one[..., 2:], others[..., 2:])], axis=-1
    )
