"""Regions of training images that are neither objects nor background, such as crowds and objects that are cut off."""

import torch
from torch import Tensor


def is_ignored(boxes: Tensor, target: dict, share: float) -> Tensor:
    """Return which boxes `(n, 4)` have at least a fraction `share` of their area in an ignored region, `(n,)` bool.

    If `share` is the IoU below which boxes are background, a box on an ignored object is not background
    either: the fraction is never below the IoU.

    Args:
        boxes: Anchors or proposals, xyxy pixels.
        target: Target of the image; `ignored` `(k, 4)` has the boxes of the regions. No box is ignored without it. As
            anchors do, regions at the border of the image extend out of it.
        share: Fraction of a box's area, above 0.
    """
    regions = target.get("ignored")
    if regions is None or not len(regions):
        return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    found = [_fraction_inside(boxes, region) >= share for region in regions.to(boxes.dtype)]
    return torch.stack(found).any(0)


def is_point_ignored(points: Tensor, target: dict) -> Tensor:
    """Return whether each point (x, y), `(n, 2)`, is in an ignored region, `(n,)` bool; see `is_ignored`."""
    regions = target.get("ignored")
    if regions is None or not len(regions):
        return torch.zeros(len(points), dtype=torch.bool, device=points.device)
    x, y = points.unbind(1)
    left, top, right, bottom = (side[:, None] for side in regions.to(points.dtype).unbind(1))
    return ((x >= left) & (x < right) & (y >= top) & (y < bottom)).any(0)


def _fraction_inside(boxes: Tensor, region: Tensor) -> Tensor:
    low, high = torch.maximum(boxes[:, :2], region[:2]), torch.minimum(boxes[:, 2:], region[2:])
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    return (high - low).clamp(min=0).prod(1) / areas.clamp(min=torch.finfo(areas.dtype).tiny)
