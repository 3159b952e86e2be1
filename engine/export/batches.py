"""What the graphs of all detectors share: whole batches in shapes that do not depend on the numbers.

torchvision takes image after image and drops what it does not need, which no exported program can have with an open
batch size. Here what is dropped stays in its place, with the score `ABSENT`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models.detection.image_list import ImageList

ABSENT = -1.0


# What a graph gives for a batch, in this order; D is `detections_per_image`.
#   boxes           (B, D, 4), xyxy pixels of the images given, the best first, and zeros after the last
#   labels          (B, D) int64, from 1; 0 where there is no detection
#   scores          (B, D)
#   num_detections  (B,) int64, how many there are
OUTPUTS = ("boxes", "labels", "scores", "num_detections")
# What those of detectors with masks give after these.
#   masks           (B, D, 28, 28), the probability of the own class in 28 x 28 parts of each box, rows from above;
#                   zeros after the last. They are not pasted into the image.
MASKS = "masks"


def prepare(images: Tensor, transform: nn.Module) -> Tensor:
    """Normalise images `(B, 3, H, W)` in [0, 1] and pad them below and right, as torchvision's transform does."""
    images = transform.normalize(images)
    height, width = images.shape[-2:]
    return pad(images, (0, -width % transform.size_divisible, 0, -height % transform.size_divisible))


def make_anchors(generator: nn.Module, images: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Make the anchors `(A, 4)` of an image of the batch, which are those of every one."""
    return generator(ImageList(images, [tuple(images.shape[-2:])]), list(maps))[0]


def is_large(boxes: Tensor, least: float) -> Tensor:
    """Say of boxes `(..., 4)` whether both sides have at least so many pixels, as `remove_small_boxes` does."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides >= least).all(-1)


def gather_rows(values: Tensor, order: Tensor) -> Tensor:
    """Take rows `order` `(B, k)` of `values` `(B, n, ...)`, image by image."""
    index = order.reshape(*order.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)


def topk_per_level(scores: Tensor, counts: Sequence[int], most: int) -> tuple[Tensor, Tensor]:
    """Find the best of each level, the same number of each, so that all that follows has a fixed size.

    Args:
        scores: `(B, n)` of all levels, one after the other.
        counts: how many each level has.
        most: to take of each level.

    Returns:
        Scores and their places among the n, `(B, levels * most)`. Where a level has fewer: minus infinity, any place.
    """
    tops, places, start = [], [], 0
    for count in counts:
        level = pad(scores[:, start : start + count], (0, most), value=-torch.inf)
        top, place = level.topk(most, dim=1)
        tops.append(top)
        places.append(place.clamp(max=count - 1) + start)
        start = start + count
    return torch.cat(tops, 1), torch.cat(places, 1)


def split_by_label(scores: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Spread scores `(B, n)` with labels from 0 over the classes, `(B, C, n)`, `ABSENT` where the label is another."""
    each = torch.arange(classes, device=scores.device)[:, None]
    return torch.where(labels[:, None] == each, scores[:, None], ABSENT)


def top_detections(boxes: Tensor, scores: Tensor, labels: Tensor, most: int) -> dict[str, Tensor]:
    """Take the best detections of each image, for what `OUTPUTS` lists.

    Args:
        boxes: `(B, n, 4)`.
        scores: `(B, n)`, `ABSENT` where there is no detection.
        labels: `(B, n)`.
        most: detections to give of each image.
    """
    # so that there are as many to take, whatever the size of the images
    scores, order = pad(scores, (0, most), value=ABSENT).topk(most, dim=1)
    is_there = scores > ABSENT
    boxes, labels = gather_rows(pad(boxes, (0, 0, 0, most)), order), gather_rows(pad(labels, (0, most)), order)
    found = (torch.where(is_there[..., None], boxes, 0), torch.where(is_there, labels, 0), scores.clamp(min=0))
    return dict(zip(OUTPUTS, (*found, is_there.sum(1)), strict=True))
