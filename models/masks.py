"""Masks of detections: patches on the boxes, pasted into the image a few at a time."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import roi_align

Detections = dict[str, Tensor]

# Pixels of masks that are pasted at the same time.
_PIXELS = 2**24
# Side of patches that are made of pasted masks.
PATCH = 56
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
    found |= parts
    if pasted:
        paste_all(found)


def paste_all(found: Detections) -> Detections:
    """Replace the patches of an image's detections, if there are any, by `masks` of the image's size, in place."""
    if "mask_patches" not in found:
        return found
    size = found["mask_size"].tolist()
    masks = found["mask_patches"].new_zeros(len(found["mask_boxes"]), 1, *size)
    first = 0
    for part in paste_masks(found):
        masks[first : first + len(part)] = part
        first += len(part)
    for key in (*_KEYS, "mask_size"):
        del found[key]
    found["masks"] = masks
    return found


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


def select_detections(found: Detections, indices: Tensor) -> Detections:
    """Return some detections of an image, by a mask or by indices."""
    return {key: values if key == "mask_size" else values[indices] for key, values in found.items()}


def shift_patches(found: Detections, window: tuple[int, int, int, int], size: tuple[int, int]) -> Detections:
    """Move the patches of a tile into an image of (height, width); `window` is the tile (left, top, right, bottom)."""
    left, top, right, _ = window
    boxes = found["mask_boxes"]
    # a flipped mask is flipped in the image, so its box is moved from the other side
    across = torch.where(found["mask_flipped"], size[1] - right, left).to(boxes)
    shift = torch.stack([across, torch.full_like(across, top)] * 2, dim=1)
    return found | {"mask_boxes": boxes + shift, "mask_size": torch.tensor(size)}


def joined_patches(found: list[Detections], parts: list[list[int]], boxes: Tensor) -> Detections:
    """Return the patches of merged detections.

    Args:
        found: Detections of several tiles of an image, moved into the image.
        parts: Indices of the detections, counted over all tiles, that each merged detection consists of.
        boxes: `(n, 4)`, boxes of the merged detections. Several masks are united in a patch on this box, in which a
            pixel has the highest probability of the masks.
    """
    joined = {key: torch.cat([one[key] for one in found]) for key in _KEYS}
    width = found[0]["mask_size"][1]
    merged = {key: values[[own[0] for own in parts]] for key, values in joined.items()}
    for index, own in enumerate(parts):
        if len(own) > 1:
            merged["mask_patches"][index] = _united({key: joined[key][own] for key in _KEYS}, boxes[index], width)
            merged["mask_boxes"][index] = boxes[index]
            merged["mask_flipped"][index] = False
    return merged | {"mask_size": found[0]["mask_size"]}


def _united(found: Detections, box: Tensor, width: Tensor) -> Tensor:
    """Return a patch `(1, h, w)` on a box with the largest value of several patches."""
    patches, boxes = found["mask_patches"], found["mask_boxes"]
    flipped = found["mask_flipped"]
    mirrored = torch.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], dim=1)
    boxes = torch.where(flipped[:, None], mirrored, boxes)
    patches = torch.where(flipped[:, None, None, None], patches.flip(-1), patches)
    height, columns = patches.shape[-2:]
    # centres of the cells of the new patch, as fractions of the old boxes from -1 to 1
    x = box[0] + (box[2] - box[0]) * (torch.arange(columns) + 0.5) / columns
    y = box[1] + (box[3] - box[1]) * (torch.arange(height) + 0.5) / height
    size = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1e-6)
    x = (x - boxes[:, :1]) / size[:, :1] * 2 - 1
    y = (y - boxes[:, 1:2]) / size[:, 1:] * 2 - 1
    grid = torch.stack([x[:, None, :].expand(-1, height, -1), y[:, :, None].expand(-1, -1, columns)], dim=-1)
    return grid_sample(patches, grid.to(patches), align_corners=False).amax(0)


def as_patches(found: Detections) -> Detections:
    """Replace the pasted `masks` of an image's detections by patches of `PATCH` x `PATCH` on their boxes."""
    masks = found["masks"]
    rois = [box[None] for box in found["boxes"].to(masks.dtype)]
    patches = roi_align(masks, rois, PATCH, aligned=True) if rois else masks.new_zeros(0, 1, PATCH, PATCH)
    found = {key: values for key, values in found.items() if key != "masks"} | {"masks": patches}
    set_masks(found, found["boxes"], tuple(masks.shape[-2:]), pasted=False)
    return found


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
