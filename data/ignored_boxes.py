"""Boxes of regions that training ignores, moved with their image by the transforms."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import clip_boxes_to_image, remove_small_boxes
from torchvision.transforms.v2 import functional

# A smaller side can vanish in float32.
_MIN_PX = 0.01
# Farther than any anchor extends out of an image.
_OUTSIDE_PX = 1e5


class IgnoredBoxes(tv_tensors.TVTensor):
    """Boxes `(k, 4)` float32, xyxy pixels. They are not `BoundingBoxes`, so that transforms never choose by them.

    Attributes:
        canvas_size: (height, width) of the image.
    """

    canvas_size: tuple[int, int]

    @classmethod
    def of(cls, boxes: Tensor, canvas_size: tuple[int, int]) -> "IgnoredBoxes":
        """Return boxes in an image of (height, width)."""
        found = boxes.as_subclass(cls)
        found.canvas_size = canvas_size
        return found


def with_ignored_inside(image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
    """Remove ignored boxes outside of the image of a transformed sample, and clip the others to it.

    Boxes that reach a border of the image are extended beyond it, because detectors compare them with anchors, some of
    which extend out of the image.
    """
    height, width = functional.get_size(image)
    boxes = clip_boxes_to_image(target["ignored"].as_subclass(Tensor), (height, width))
    boxes = boxes[remove_small_boxes(boxes, _MIN_PX)]
    low, high = boxes[:, :2], boxes[:, 2:]
    low = low.where(low > 0, -_OUTSIDE_PX)
    high = high.where(high < high.new_tensor([width, height]), high + _OUTSIDE_PX)
    return image, target | {"ignored": torch.cat([low, high], dim=1)}


def _move(function: Callable[..., Any], ignored: IgnoredBoxes, *arguments: Any, **options: Any) -> IgnoredBoxes:
    """Move boxes as the transform `function` of torchvision moves bounding boxes."""
    boxes = tv_tensors.BoundingBoxes(ignored, format="XYXY", canvas_size=ignored.canvas_size, clamping_mode=None)
    moved = function(boxes, *arguments, **options)
    return IgnoredBoxes.of(moved.as_subclass(torch.Tensor), moved.canvas_size)


for _function in (
    functional.resize,
    functional.crop,
    functional.pad,
    functional.horizontal_flip,
    functional.vertical_flip,
    functional.rotate,
):
    functional.register_kernel(_function, IgnoredBoxes)(partial(_move, _function))
