"""Functions shared by the export graphs: they process whole batches, and all shapes are independent of the data.

torchvision loops over the images and removes rejected boxes. An exported program with a dynamic batch size cannot do
that. Here, rejected boxes keep their row and get the score `ABSENT`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.models.detection.image_list import ImageList

ABSENT = -1.0


# Outputs of a graph, in this order. D is `detections_per_image`, and padding is zero.
#   boxes           (B, D, 4), xyxy pixels of the input images, highest score first.
#   labels          (B, D) int64, from 1.
#   scores          (B, D).
#   num_detections  (B,) int64, number of detections.
OUTPUTS = ("boxes", "labels", "scores", "num_detections")
# Additional output of detectors with masks.
#   masks           (B, D, 28, 28), probability of the predicted class in a grid over each box, padded with zeros.
#                   Masks are not pasted into the image.
MASKS = "masks"


def prepare(images: Tensor, transform: nn.Module) -> Tensor:
    """Normalise images `(B, channels, H, W)` in [0, 1] and pad them at the bottom and right, as torchvision does."""
    images = transform.normalize(images)
    height, width = images.shape[-2:]
    return pad(images, (0, -width % transform.size_divisible, 0, -height % transform.size_divisible))


def make_anchors(generator: nn.Module, images: Tensor, maps: Sequence[Tensor]) -> Tensor:
    """Return the anchors `(A, 4)`, equal for all images of the batch."""
    return generator(ImageList(images, [tuple(images.shape[-2:])]), list(maps))[0]


def is_large(boxes: Tensor, least: float) -> Tensor:
    """Whether both sides of boxes `(..., 4)` have at least `least` pixels, as in `remove_small_boxes`."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return (sides >= least).all(-1)


def gather_rows(values: Tensor, order: Tensor) -> Tensor:
    """Gather rows `order` `(B, k)` of `values` `(B, n, ...)` for each image."""
    index = order.reshape(*order.shape, *[1] * (values.dim() - 2)).expand(-1, -1, *values.shape[2:])
    return values.gather(1, index)


def topk_per_level(scores: Tensor, counts: Sequence[int], most: int) -> tuple[Tensor, Tensor]:
    """Return the `most` highest scores of each level, so that the following shapes are fixed.

    Args:
        scores: `(B, n)` of all levels, concatenated.
        counts: number of scores of each level.
        most: number of scores to keep per level.

    Returns:
        Scores and their indices among the n, `(B, levels * most)`. Missing scores are minus infinity, with any index.
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
    """Expand scores `(B, n)` with labels from 0 to `(B, C, n)`, with `ABSENT` for all other classes."""
    each = torch.arange(classes, device=scores.device)[:, None]
    return torch.where(labels[:, None] == each, scores[:, None], ABSENT)


def top_detections(boxes: Tensor, scores: Tensor, labels: Tensor, most: int) -> dict[str, Tensor]:
    """Return the detections with the highest scores of each image, as `OUTPUTS`.

    Args:
        boxes: `(B, n, 4)`.
        scores: `(B, n)`, `ABSENT` for rejected boxes.
        labels: `(B, n)`.
        most: maximum number of detections per image.
    """
    # padded, so that there are `most` rows for any image size
    scores, order = pad(scores, (0, most), value=ABSENT).topk(most, dim=1)
    is_there = scores > ABSENT
    boxes, labels = gather_rows(pad(boxes, (0, 0, 0, most)), order), gather_rows(pad(labels, (0, most)), order)
    found = (torch.where(is_there[..., None], boxes, 0), torch.where(is_there, labels, 0), scores.clamp(min=0))
    return dict(zip(OUTPUTS, (*found, is_there.sum(1)), strict=True))
