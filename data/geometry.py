"""Random crops, margins and rotations of an image with its boxes and masks.

A box that a crop or a rotation cuts is kept if enough of it is visible, see `keep_visible`.
"""

from collections.abc import Callable
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from .ignored_boxes import IgnoredBoxes
from .mask_grid import quarter_turn_of_grid

# a transform of (image, target) or of an image alone
Step = Callable[..., Any]
# Images with a shorter side, or with longer sides in relation to it, stay whole: a crop may leave no pixel of them.
_MIN_CROPPED_PX, _MAX_CROPPED_RATIO = 16, 4
# of each side, in a random crop
_CROP_RANGE = (0.5, 1.0)
# of each side, in a random margin
_ZOOM_OUT_RANGE = (1.0, 2.0)
# A smaller side vanishes, see `objects.py`.
_MIN_PX = 0.01


def crop_steps(
    *, iou_crop: float, crop: float, zoom_out: float, scale: float, fill: tuple[float, ...], min_visibility: float
) -> list[Step]:
    """Return the transforms that choose a part of the image or add a margin, before it is resized.

    None of them interpolates: the resizing that follows changes the size of the objects. See `TrainTransform`.
    """
    fills = {tv_tensors.Mask: 0, "others": fill}
    steps = {
        _unless_narrow(v2.RandomApply([v2.RandomIoUCrop()], iou_crop), needs_boxes=True): iou_crop,
        _unless_narrow(v2.RandomApply([_Crop()], crop)): crop,
        _unless_narrow(v2.RandomZoomOut(fills, _ZOOM_OUT_RANGE, zoom_out)): zoom_out,
        _unless_narrow(_Scale(scale, fills)): scale,
    }
    return [part for step, is_on in steps.items() if is_on for part in cutting(step, min_visibility)]


def rotation_steps(*, rotate: float, fill: tuple[float, ...], min_visibility: float) -> list[Step]:
    """Return the transforms that rotate the resized image by a random angle, see `TrainTransform`."""
    return cutting(_Rotation(rotate, fill), min_visibility) if rotate else []


def cutting(step: Step, min_visibility: float) -> list[Step]:
    """Return the transforms of a step that may cut objects, see `keep_visible`."""
    return [v2.SetClampingMode(None), step, keep_visible(min_visibility)]


def keep_visible(min_visibility: float) -> Step:
    """Return a transform that cuts boxes off at the border of the image, and removes objects that are hardly visible.

    The boxes before may extend out of the image. The target gets an entry `visible` `(n,)` float32: the fraction of
    each box that this and earlier transforms of this kind have left.

    Args:
        min_visibility: Minimum of this fraction.
    """

    def keep(image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        boxes = target["boxes"]
        inside, fraction = cut_off(boxes, boxes.canvas_size)
        visible = target.get("visible", 1.0) * fraction
        is_kept = (visible >= min_visibility) & (fraction > 0)
        target = target | {"boxes": tv_tensors.wrap(inside, like=boxes, clamping_mode="soft"), "visible": visible}
        if "ignored" in target:
            regions = clip_boxes_to_image(target["ignored"].as_subclass(torch.Tensor), boxes.canvas_size)
            target["ignored"] = IgnoredBoxes.of(regions, boxes.canvas_size)
        return image, objects_at(target, is_kept)

    return _with_target(keep)


def cut_off(boxes: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut boxes `(n, 4)` off at the border of an image of `size` (height, width).

    Returns:
        The boxes, and the fraction of each `(n,)` that remains; 0 if a side vanishes.
    """
    whole = boxes.as_subclass(torch.Tensor)
    inside = clip_boxes_to_image(whole, size)
    fraction = _areas(inside) / _areas(whole).clamp(min=_MIN_PX**2)
    return inside, fraction.where((inside[:, 2:] - inside[:, :2]).amin(dim=1) > _MIN_PX, 0)


def objects_at(target: dict[str, Any], chosen: torch.Tensor) -> dict[str, Any]:
    """Return a target with some of its objects; `chosen` holds their indices, or whether each is chosen."""
    entries = {key: target[key] for key in ("boxes", "labels", "objects", "visible", "masks") if key in target}
    return target | {
        key: tv_tensors.wrap(value[chosen], like=value) if isinstance(value, tv_tensors.TVTensor) else value[chosen]
        for key, value in entries.items()
    }


def quarter_turn(probability: float) -> Step:
    """Return a transform that rotates an image by 90, 180 or 270 degrees with a probability, without interpolation."""

    def turn(image: Any, target: dict[str, Any] | None = None) -> Any:
        turns = int(torch.randint(1, 4, ())) if torch.rand(()) < probability else 0
        turned = tv_tensors.wrap(torch.rot90(image, turns, (-2, -1)).contiguous(), like=image)
        return turned if target is None else (turned, _turned(target, turns))

    return turn


def _turned(target: dict[str, Any], turns: int) -> dict[str, Any]:
    target = dict(target)
    for _ in range(turns):
        size = target["boxes"].canvas_size
        for key in ("boxes", "ignored"):
            if key in target:
                left, top, right, bottom = target[key].as_subclass(torch.Tensor).unbind(1)
                moved = torch.stack([top, size[1] - right, bottom, size[1] - left], dim=1)
                target[key] = _like(moved, target[key], size[::-1])
        if "rows" in target:
            target |= quarter_turn_of_grid(target)
        elif "masks" in target:
            masks = target["masks"]
            target["masks"] = tv_tensors.wrap(torch.rot90(masks, 1, (-2, -1)).contiguous(), like=masks)
    return target


class _Crop(v2.Transform):
    """Transform that crops an image to a random rectangle."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the rectangle."""
        size = v2.query_size(flat_inputs)
        low, high = _CROP_RANGE
        return _window(size, [round(side * (low + (high - low) * torch.rand(()).item())) for side in size])

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop an image, its boxes or its masks."""
        return self._call_kernel(functional.crop, inpt, **params)


class _Scale(v2.Transform):
    """Transform that scales the objects by a random factor in relation to the image, by a crop or a margin.

    The logarithm of the factor is uniform, so that enlarging is as frequent as reducing.
    """

    def __init__(self, change: float, fills: dict[Any, Any]) -> None:
        super().__init__()
        self.change, self.fills = change, fills

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the factor, and the position of the part or of the image in its margin."""
        height, width = v2.query_size(flat_inputs)
        factor = (1 + self.change) ** (2 * torch.rand(()).item() - 1)
        size = [max(round(side / factor), 1) for side in (height, width)]
        if factor >= 1:
            return _window((height, width), size)
        place = _window(tuple(size), [height, width])
        left, top = place["left"], place["top"]
        return {"padding": [left, top, size[1] - width - left, size[0] - height - top]}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop or pad an image, its boxes or its masks."""
        if "padding" in params:
            fill = self.fills[tv_tensors.Mask] if isinstance(inpt, tv_tensors.Mask) else self.fills["others"]
            return self._call_kernel(functional.pad, inpt, **params, fill=fill)
        return self._call_kernel(functional.crop, inpt, **params)


class _Rotation(v2.Transform):
    """Transform that rotates an image by a random angle.

    torchvision's `RandomRotation` mixes the border of the image with black, which draws a dark line around it.
    """

    def __init__(self, degrees: float, fill: tuple[float, ...]) -> None:
        super().__init__()
        self.degrees, self.fill = degrees, torch.tensor(fill, dtype=torch.float32)[:, None, None]

    def make_params(self, flat_inputs: list[Any]) -> dict[str, float]:
        """Draw the angle, in degrees."""
        return {"angle": self.degrees * (2 * torch.rand(()).item() - 1)}

    def transform(self, inpt: Any, params: dict[str, float]) -> Any:
        """Rotate an image, its boxes or its masks."""
        if not isinstance(inpt, tv_tensors.Image):
            return self._call_kernel(functional.rotate, inpt, **params)
        bilinear = v2.InterpolationMode.BILINEAR
        rotated = functional.rotate(inpt.float() - self.fill, interpolation=bilinear, **params) + self.fill
        return tv_tensors.wrap(rotated if inpt.is_floating_point() else rotated.round().to(inpt.dtype), like=inpt)


def _window(size: tuple[int, ...], inner: list[int]) -> dict[str, int]:
    """Draw the position of a window of `inner` (height, width) in an image of `size` (height, width)."""
    top, left = (int(torch.randint(whole - part + 1, ())) for whole, part in zip(size, inner, strict=True))
    return {"top": top, "left": left, "height": inner[0], "width": inner[1]}


def _unless_narrow(transform: v2.Transform, *, needs_boxes: bool = False) -> Step:
    """Return a transform that leaves small and narrow images as they are, and those without boxes if it needs any."""

    def apply(image: Any, target: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        short, long = sorted(image.shape[-2:])
        is_narrow = short < _MIN_CROPPED_PX or long > short * _MAX_CROPPED_RATIO
        is_empty = needs_boxes and not len(target["boxes"])
        return (image, target) if is_narrow or is_empty else transform(image, target)

    return _with_target(apply)


def _with_target(function: Callable[..., Any]) -> Step:
    """Return a transform that calls a function of image and target, and leaves an image without target as it is."""
    return lambda image, target=None: image if target is None else function(image, target)


def _like(boxes: torch.Tensor, before: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Return boxes of the type of `before`, in an image of `size` (height, width)."""
    if isinstance(before, IgnoredBoxes):
        return IgnoredBoxes.of(boxes, size)
    return tv_tensors.wrap(boxes, like=before, canvas_size=size)


def _areas(boxes: torch.Tensor) -> torch.Tensor:
    width, height = (boxes[:, 2:] - boxes[:, :2]).unbind(1)
    return width * height
