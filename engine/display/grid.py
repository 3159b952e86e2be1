"""A grid of samples: one row for each image, its cells of one size."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2.functional import resize

from .drawing import GAP, class_colour, draw_boxes, draw_legend, masks_of


def draw_grid(
    rows: Sequence[Sequence[tuple[Tensor, dict]]], class_names: Sequence[str], heading: Sequence[str], *, side: int
) -> Tensor:
    """Draw samples with their boxes and masks, coloured by class.

    Args:
        rows: samples `(image (channels, H, W), target)` of each row.
        class_names: names of labels 1, 2, ...
        heading: texts above the grid.
        side: maximum height and width of a sample, in pixels.

    Returns:
        `(3, h, w)` uint8.
    """
    columns = max(map(len, rows))
    joined = []
    for row in rows:
        cells = [_cell(image, target, class_names, side) for image, target in row]
        cells += [torch.full((3, side + GAP, side + GAP), 255, dtype=torch.uint8)] * (columns - len(row))
        joined.append(torch.cat(cells, dim=2))
    width = columns * (side + GAP)
    legend = draw_legend(width, [(text, None, False) for text in heading])
    return torch.cat([legend, *joined], dim=1)


def _cell(image: Tensor, target: dict, class_names: Sequence[str], side: int) -> Tensor:
    """Draw a sample in the middle of a white square."""
    labels = target["labels"].tolist()
    names, colours = [], []
    for label in labels:
        names.append(class_names[label - 1])
        colours.append(class_colour(label - 1, len(class_names)))
    short, long = sorted(image.shape[1:])
    boxes, masks = target["boxes"], masks_of(target, range(len(labels)))
    drawn = draw_boxes(image, boxes, names, colours, max(side * short // long, 1), masks=masks)
    if max(drawn.shape[1:]) > side:
        scale = side / max(drawn.shape[1:])
        drawn = resize(drawn, [max(int(length * scale), 1) for length in drawn.shape[1:]], antialias=True)
    rest = [side - length for length in drawn.shape[1:]]
    top, left = rest[0] // 2, rest[1] // 2
    return pad(drawn, [left, GAP + rest[1] - left, top, GAP + rest[0] - top], value=255)
