"""Training samples of several images: mosaic, copy-paste and mixup, after the transform of each image."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import functional

from .geometry import cut_off
from .mask_grid import boxes_around_masks

Sample = tuple[Tensor, dict[str, Any]]
# of each side, where the images of a mosaic meet
_CENTRE_RANGE = (0.3, 0.7)
# of each image in a mosaic
_SCALE_RANGE = (0.5, 1.0)
# Both parameters of the beta distribution of mixup's weight; most weights are from 0.3 to 0.7.
_MIXUP_BETA = 8.0


@dataclass(frozen=True)
class Mixing:
    """Combination of an image with others of the data set, each with a probability.

    Attributes:
        mosaic: Four images that meet at a random point, each at 50 to 100 % of its size,
            https://arxiv.org/abs/2004.10934.
        copy_paste: About half of the objects of another image are pasted over the image; needs masks,
            https://arxiv.org/abs/2012.07177.
        mixup: A weighted mean with another image, with the objects of both, https://arxiv.org/abs/1902.04103.
        min_visibility: Minimum fraction of a box, or of a mask under pasted objects, that remains visible.
        fill: Value of each channel from 0 (black) to 255 (white), where no image is.
    """

    mosaic: float = 0.0
    copy_paste: float = 0.0
    mixup: float = 0.0
    min_visibility: float = 0.0
    fill: tuple[float, ...] = (0, 0, 0)

    def __call__(self, sample: Sample, partner: Callable[[], Sample]) -> Sample:
        """Return a sample, or its combination with others.

        Args:
            sample: Image `(C, H, W)` and its target with plain tensors; the result has the same size.
            partner: Returns a random sample of the data set.
        """

        def other() -> Sample:
            image, target = partner()
            return functional.to_dtype(image, sample[0].dtype, scale=True), target

        if _is_drawn(self.mosaic):
            sample = mosaic([sample, other(), other(), other()], self.fill, self.min_visibility)
        if _is_drawn(self.copy_paste):
            sample = copy_paste(sample, other(), self.min_visibility)
        if _is_drawn(self.mixup):
            sample = mixup(sample, other(), self.fill, self.min_visibility)
        return sample


def mosaic(samples: list[Sample], fill: tuple[float, ...], min_visibility: float) -> Sample:
    """Return a sample of the size of the first one, whose quarters show parts of four samples."""
    image, target = samples[0]
    height, width = image.shape[1:]
    y, x = (round(side * _uniform(*_CENTRE_RANGE)) for side in (height, width))
    canvas, placed = _filled(image, fill), []
    for index, (part, objects) in enumerate(samples):
        is_low, is_right = divmod(index, 2)
        scale = _uniform(*_SCALE_RANGE)
        size = [max(round(side * scale), 1) for side in part.shape[1:]]
        window = (x * is_right, y * is_low, width if is_right else x, height if is_low else y)
        # the corner of the image that is next to the point
        offset = (x - size[1] * (1 - is_right), y - size[0] * (1 - is_low))
        _paste(canvas, functional.resize(part, size, antialias=True), offset, window)
        placed.append(_moved(_resized(objects, part.shape[1:], size), offset, window, (height, width), min_visibility))
    return canvas, _joined(target, placed)


def copy_paste(sample: Sample, other: Sample, min_visibility: float) -> Sample:
    """Return a sample with about half of the objects of another sample, which has masks too, pasted over it.

    Objects under them lose the covered pixels of their masks, and are removed if too little remains.
    """
    (image, target), (theirs, objects) = sample, other
    height, width = image.shape[1:]
    window = (0, 0, width, height)
    chosen = torch.rand(len(objects["labels"])) < 0.5
    objects = {key: objects[key][chosen] for key in ("boxes", "labels", "masks")}
    pasted = _moved(objects, (0, 0), window, (height, width), min_visibility)
    is_covered = pasted["masks"].bool().any(dim=0)
    image = image.clone()
    source = image.clone()
    _paste(source, theirs, (0, 0), window)
    image[:, is_covered] = source[:, is_covered]
    before = target["masks"].flatten(1).sum(dim=1, dtype=torch.int64)
    masks = target["masks"] * ~is_covered
    left = masks.flatten(1).sum(dim=1, dtype=torch.int64)
    is_kept = (left == before) | ((left > 0) & (left >= min_visibility * before))
    own = {key: target[key][is_kept] for key in ("boxes", "labels")} | {"masks": masks[is_kept]}
    own["boxes"] = boxes_around_masks(own["boxes"], own["masks"], (left < before)[is_kept])
    ignored = {"ignored": target["ignored"]} if "ignored" in target else {}
    return image, _joined(target, [own | ignored, pasted])


def mixup(sample: Sample, other: Sample, fill: tuple[float, ...], min_visibility: float) -> Sample:
    """Return the weighted mean of two samples with the objects of both; the size is the one of the first."""
    (image, target), (theirs, objects) = sample, other
    height, width = image.shape[1:]
    window = (0, 0, width, height)
    weight = torch.distributions.Beta(_MIXUP_BETA, _MIXUP_BETA).sample().item()
    canvas = _filled(image, fill)
    _paste(canvas, theirs, (0, 0), window)
    mixed = weight * image.float() + (1 - weight) * canvas.float()
    moved = _moved(objects, (0, 0), window, (height, width), min_visibility)
    return (mixed if image.is_floating_point() else mixed.round()).to(image.dtype), _joined(target, [target, moved])


def _is_drawn(probability: float) -> bool:
    return probability > 0 and torch.rand(()).item() < probability


def _uniform(low: float, high: float) -> float:
    return low + (high - low) * torch.rand(()).item()


def _filled(image: Tensor, fill: tuple[float, ...]) -> Tensor:
    """Return an image of one colour, of the size and type of another image."""
    values = [value / 255 if image.is_floating_point() else round(value) for value in fill]
    return torch.tensor(values, dtype=image.dtype)[:, None, None].expand_as(image).clone()


def _overlap(
    size: tuple[int, int], offset: tuple[int, int], window: tuple[int, int, int, int]
) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Return the part of a canvas and of an image of (height, width) that overlap in a window of the canvas.

    Args:
        size: Size of the image.
        offset: (x, y) of its corner in the canvas.
        window: xyxy pixels of the canvas.
    """
    (left, top), (height, width) = offset, size
    x0, y0 = max(window[0], left), max(window[1], top)
    x1, y1 = max(min(window[2], left + width), x0), max(min(window[3], top + height), y0)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _paste(canvas: Tensor, image: Tensor, offset: tuple[int, int], window: tuple[int, int, int, int]) -> None:
    """Copy the part of an image in a window into a canvas, in place; arguments as of `_overlap`."""
    there, here = _overlap(tuple(image.shape[-2:]), offset, window)
    canvas[(..., *there)] = image[(..., *here)]


def _resized(target: dict[str, Any], size: tuple[int, int], new: list[int]) -> dict[str, Any]:
    """Return the objects of an image of `size` (height, width) that is resized to `new`."""
    factors = torch.tensor([new[1] / size[1], new[0] / size[0]] * 2)
    found = {key: target[key] * factors for key in ("boxes", "ignored") if key in target}
    if "masks" in target:
        found["masks"] = functional.resize(target["masks"], new, functional.InterpolationMode.NEAREST)
    return target | found


def _moved(
    target: dict[str, Any],
    offset: tuple[int, int],
    window: tuple[int, int, int, int],
    size: tuple[int, int],
    min_visibility: float,
) -> dict[str, Any]:
    """Return the objects of an image that are visible in a window of a canvas of `size` (height, width)."""
    x, y, corner = window[0], window[1], torch.tensor([window[:2] * 2])
    shift = torch.tensor([offset * 2]) - corner
    inner = (window[3] - y, window[2] - x)
    boxes = target["boxes"] + shift
    inside, fraction = cut_off(boxes, inner)
    is_kept = (fraction >= min_visibility) & (fraction > 0)
    found = {"boxes": (inside + corner)[is_kept], "labels": target["labels"][is_kept]}
    if "masks" in target:
        masks = torch.zeros(int(is_kept.sum()), *size, dtype=torch.uint8)
        _paste(masks, target["masks"][is_kept], offset, window)
        is_seen = masks.flatten(1).bool().any(dim=1)
        cut = (fraction < 1)[is_kept][is_seen]
        found = {key: value[is_seen] for key, value in (found | {"masks": masks}).items()}
        found["boxes"] = boxes_around_masks(found["boxes"], found["masks"], cut)
    if "ignored" in target:
        found["ignored"] = clip_boxes_to_image(target["ignored"] + shift, inner) + corner
    return found


def _joined(target: dict[str, Any], parts: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a target with the objects of all parts in place of the objects in it."""
    keys = [key for key in ("boxes", "labels", "masks", "ignored") if any(key in part for part in parts)]
    return target | {key: torch.cat([part[key] for part in parts if key in part]) for key in keys}
