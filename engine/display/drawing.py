"""Images with boxes, masks and names drawn on them."""

import colorsys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image

from data import MASK_THRESHOLD

SHORT_SIDE = 320
GAP = 6
FONT_SIZE = 16
LINE = 26  # height of a line of the legend
GROUND_TRUTH_COLOUR = (255, 255, 255)
MASK_ALPHA = 0.45
_DASH, _SPACE = 7, 5

Colour = tuple[int, int, int]


def draw_boxes(
    image: Tensor,
    boxes: Tensor,
    names: Sequence[str],
    colours: Sequence[Colour],
    short_side: int | None = SHORT_SIDE,
    *,
    dashed: int = 0,
    masks: Sequence[Tensor | None],
) -> Tensor:
    """Draw boxes with their names over their masks; of those that overlap, the last is on top.

    Args:
        image: `(3, H, W)` uint8.
        boxes: `(n, 4)` xyxy pixels.
        names: of the boxes.
        colours: of the boxes, RGB.
        short_side: to which the shorter side of the image is scaled, in pixels; None keeps the size, with lines and
            names in proportion.
        dashed: so many of the first boxes have dashed lines.
        masks: `(H, W)` of each box, or None.

    Returns:
        `(3, h, w)` uint8.
    """
    # enlarged first, so that names can be read on small images
    scale = short_side / min(image.shape[1:]) if short_side else 1.0
    font_size, line = (FONT_SIZE, 2) if short_side else _sizes(min(image.shape[1:]))
    size = [round(side * scale) for side in image.shape[1:]]
    enlarged = resize(image, size, antialias=True) if short_side else image.clone()
    surfaces = [
        (resize(mask[None].float(), size, antialias=True)[0] >= MASK_THRESHOLD, colour)
        for mask, colour in zip(masks, colours, strict=True)
        if mask is not None
    ]
    for surface, colour in sorted(surfaces, key=lambda item: -int(item[0].sum())):  # the small lie on the large
        _tint(enlarged, surface, colour)
    picture = to_pil_image(enlarged)
    pen = ImageDraw.Draw(picture)
    font = _font(font_size)  # torchvision's draw_bounding_boxes has no font that can be read here
    scaled = (boxes * scale).tolist()
    for index, (box, colour) in enumerate(zip(scaled, colours, strict=True)):
        _outline(pen, box, colour, dashed=index < dashed, line=line)
    tags = _place_tags(scaled, [pen.textlength(name, font) for name in names], picture.size, font_size + 2)
    for tag, name, colour in zip(tags, names, colours, strict=True):
        pen.rectangle(tag, fill=colour)
        pen.text((tag[0] + 1, (tag[1] + tag[3]) / 2), name, "black", font, anchor="lm")
    return pil_to_tensor(picture)


def draw_ground_truth(
    image: Tensor, target: dict, class_names: Sequence[str], *, short_side: int = SHORT_SIDE
) -> Tensor:
    """Draw the truth about an image, in white; `short_side` as in `draw_boxes`."""
    names = [class_names[label - 1] for label in target["labels"].tolist()]
    masks = masks_of(target, range(len(names)))
    return draw_boxes(image, target["boxes"], names, [GROUND_TRUTH_COLOUR] * len(names), short_side, masks=masks)


def draw_detections(
    image: Tensor,
    detections: dict,
    class_names: Sequence[str],
    *,
    score_threshold: float = 0.5,
    short_side: int | None = SHORT_SIDE,
) -> Tensor:
    """Draw what a detector found in an image of which no truth is known, coloured by class.

    Of `detections`, `masks` `(n, 1, H, W)` may be missing. With `short_side=None` the image keeps its size, and lines
    and names are as large as suits it.
    """
    seen = (detections["scores"] >= score_threshold).nonzero().flatten()
    order = seen[detections["scores"][seen].argsort(stable=True)].tolist()
    labels, scores = detections["labels"].tolist(), detections["scores"].tolist()
    names = [f"{class_names[labels[index] - 1]} {scores[index]:.2f}" for index in order]
    colours = [class_colour(labels[index] - 1, len(class_names)) for index in order]
    masks = masks_of(detections, order)
    return draw_boxes(image, detections["boxes"][order], names, colours, short_side, masks=masks)


def draw_sample_grid(
    samples: Sequence[tuple[Tensor, dict]], class_names: Sequence[str], *, width: int = 1600
) -> Tensor:
    """Draw samples `(uint8 image, target)` with their boxes and masks, in rows of about `width` pixels, `(3, H, W)`."""
    rows: list[list[Tensor]] = [[]]
    for image, target in samples:
        labels = target["labels"].tolist()
        colours = [class_colour(label - 1, len(class_names)) for label in labels]
        masks = masks_of(target, range(len(labels)))
        picture = draw_boxes(image, target["boxes"], [class_names[label - 1] for label in labels], colours, masks=masks)
        size = [SHORT_SIDE, round(picture.shape[2] * SHORT_SIDE / picture.shape[1])]
        if rows[-1] and sum(cell.shape[2] for cell in rows[-1]) + size[1] > width:
            rows.append([])
        rows[-1].append(pad(resize(picture, size, antialias=True), [0, GAP, 0, GAP], value=255))
    joined = [torch.cat(row, dim=2) for row in rows]
    whole = max(row.shape[2] for row in joined)
    return torch.cat([pad(row, [0, whole - row.shape[2], 0, 0], value=255) for row in joined], dim=1)


def draw_legend(width: int, items: Iterable[tuple[str, Colour | None, bool]]) -> Tensor:
    """Draw texts in lines of `width` pixels, each behind a box of its colour if it has one, `(3, h, width)`."""
    font = _font(FONT_SIZE)
    lines: list[list[tuple[float, str, Colour | None, bool]]] = [[]]
    x = float(GAP)
    for text, colour, dashed in items:
        needed = font.getlength(text) + (0 if colour is None else LINE)
        if lines[-1] and x + needed > width:
            lines.append([])
            x = float(GAP)
        lines[-1].append((x, text, colour, dashed))
        x += needed + 3 * GAP
    picture = Image.new("RGB", (width, LINE * len(lines)), "white")
    pen = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        middle = row * LINE + LINE // 2
        for x, text, colour, dashed in line:
            if colour is not None:
                _outline(pen, (x, middle - 8, x + 16, middle + 8), colour, dashed=dashed)
            pen.text((x if colour is None else x + LINE, middle), text, "black", font, anchor="lm")
    return pil_to_tensor(picture)


def masks_of(source: dict, indices: Iterable[int]) -> list[Tensor | None]:
    """Return the masks `(H, W)` of some objects of a target or of detections, None for each where there are none."""
    masks = source.get("masks")
    return [None if masks is None else masks[index].reshape(masks.shape[-2:]) for index in indices]


def class_colour(index: int, num_classes: int) -> tuple[int, int, int]:
    """Return a bright colour for each class, spread over the hues."""
    red, green, blue = colorsys.hsv_to_rgb(index / max(num_classes, 1), 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


@cache
def _font(height: int) -> ImageFont.FreeTypeFont:
    """A font whose lines are so many pixels high, which unlike that of Pillow knows more letters than English has."""
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), round(height * 7 / 8))


def _sizes(short_side: int) -> tuple[int, int]:
    """Height of names and width of lines for an image that keeps its size, in pixels.

    Small images have small names, which hide less; large ones, which are looked at from afar, large names.
    """
    if short_side < SHORT_SIDE:
        return max(round(FONT_SIZE * short_side / SHORT_SIDE), 10), 2
    return max(FONT_SIZE, round(short_side / 40)), max(2, round(short_side / SHORT_SIDE))


def _tint(image: Tensor, mask: Tensor, colour: Colour) -> None:
    """Lay a colour over a part of an image, in place, so that what lies under it is still seen."""
    # torchvision's draw_segmentation_masks paints black where masks overlap
    mixed = (1 - MASK_ALPHA) * image[:, mask] + MASK_ALPHA * torch.tensor(colour)[:, None]
    image[:, mask] = mixed.round().to(image.dtype)


def _place_tags(
    boxes: list[list[float]], lengths: list[float], size: tuple[int, int], height: int
) -> list[list[float]]:
    """Find a place for the name of each box, above or below it, that is free where possible; the last choose first."""
    placed: list[list[float]] = []
    for (left, top, right, bottom), length in zip(reversed(boxes), reversed(lengths), strict=True):
        width = length + 2
        corners = [(left + 2, top - height), (left + 2, bottom), (right - width, top - height), (right - width, bottom)]
        corners += [(left + 2, top + 2), (left + 2, bottom - height)]
        inside = [(max(min(x, size[0] - width), 0), max(min(y, size[1] - height), 0)) for x, y in corners]
        tags = [[x, y, x + width, y + height] for x, y in inside]
        placed.append(next((tag for tag in tags if not any(_overlap(tag, other) for other in placed)), tags[0]))
    return placed[::-1]


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _outline(
    pen: ImageDraw.ImageDraw, box: Sequence[float], colour: Colour, *, dashed: bool = False, line: int = 2
) -> None:
    """Draw a rectangle with a thin dark rim, so that it is seen on any ground; `line` is its width if not dashed."""
    left, top, right, bottom = box
    if not dashed:
        pen.rectangle((left - 1, top - 1, right + 1, bottom + 1), outline="black", width=line + 2)
        pen.rectangle((left, top, right, bottom), outline=colour, width=line)
        return
    for start in range(0, max(int(right - left), 1), _DASH + _SPACE):
        end = min(left + start + _DASH, right)
        for y in (top, bottom - 1):
            pen.rectangle((left + start - 1, y - 1, end, y + 2), fill="black")
            pen.rectangle((left + start, y, end - 1, y + 1), fill=colour)
    for start in range(0, max(int(bottom - top), 1), _DASH + _SPACE):
        end = min(top + start + _DASH, bottom)
        for x in (left, right - 1):
            pen.rectangle((x - 1, top + start - 1, x + 2, end), fill="black")
            pen.rectangle((x, top + start, x + 1, end - 1), fill=colour)
