"""Masks of detections: patches on the boxes, pasted into the image a few at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

Detections = dict[str, Tensor]

# Pixels of masks that are pasted at the same time.
_PIXELS = 2**24
_KEYS = ("mask_patches", "mask_boxes", "mask_flipped")


@contextmanager
def unpasted_masks(model: nn.Module) -> Iterator[None]:
    """Make the detectors in a model return patches of masks, see `set_masks`; large images need less memory then."""
    transforms = [module for module in model.modules() if hasattr(module, "pastes_masks")]
    before = [transform.pastes_masks for transform in transforms]
    try:
        for transform in transforms:
            transform.pastes_masks = False
        yield
    finally:
        for transform, value in zip(transforms, before, strict=True):
            transform.pastes_masks = value


def set_masks(found: Detections, boxes: Tensor, size: tuple[int, int], *, pasted: bool) -> None:
    """Replace the patches `masks` of an image's detections, in place.

    Args:
        found: `boxes` inside the image, and `masks` `(n, 1, h, w)`, probabilities in a grid over each box.
        boxes: `(n, 4)`, boxes of the patches, which may extend out of the image.
        size: (height, width) of the image.
        pasted: True sets `masks` to `(n, 1, height, width)`. False replaces `masks` with `mask_patches`, `mask_boxes`,
            `mask_flipped` and `mask_size`, of which `paste_masks` makes masks.
    """
    patches = found.pop("masks")
    parts = {
        "mask_patches": patches,
        "mask_boxes": boxes,
        "mask_flipped": torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device),
        "mask_size": torch.tensor(size),
    }
    if not pasted:
        found |= parts
        return
    masks = patches.new_zeros(len(boxes), 1, *size)
    first = 0
    for part in paste_masks(found | parts):
        masks[first : first + len(part)] = part
        first += len(part)
    found["masks"] = masks


def paste_masks(found: Detections, indices: list[int] | None = None) -> Iterator[Tensor]:
    """Yield the masks `(k, 1, H, W)` of an image's detections, a few at a time; those of boxes without area are empty.

    Args:
        found: detections with the patches of `set_masks`, or with pasted `masks`.
        indices: detections whose masks are wanted; None: all.
    """
    key = "mask_patches" if "mask_patches" in found else "masks"
    wanted = range(len(found[key])) if indices is None else indices
    size = found["mask_size"].tolist() if key == "mask_patches" else found[key].shape[-2:]
    count = max(1, _PIXELS // max(1, size[0] * size[1]))
    for start in range(0, len(wanted), count):
        part = torch.tensor([*wanted[start : start + count]], device=found["boxes"].device)
        yield _paste(found, part, size) if key == "mask_patches" else found["masks"][part]


def join_patches(one: Detections, other: Detections, indices: Tensor) -> Detections:
    """Return the patches of some detections, counted over two detections of the same image."""
    joined = {key: torch.cat([one[key], other[key]])[indices] for key in _KEYS}
    return joined | {"mask_size": one["mask_size"]}


def _paste(found: Detections, indices: Tensor, size: list[int]) -> Tensor:
    boxes, patches = found["mask_boxes"][indices], found["mask_patches"][indices]
    height, width = size
    limits = boxes.new_tensor([width, height, width, height])
    inside = torch.minimum(boxes.clamp(min=0), limits)
    seen = (inside[:, 2:] > inside[:, :2]).all(1)
    masks = patches.new_zeros(len(indices), 1, height, width)
    masks[seen] = paste_masks_in_image(patches[seen], boxes[seen], (height, width)).to(masks)
    flipped = found["mask_flipped"][indices]
    masks[flipped] = masks[flipped].flip(-1)
    return masks
