"""Images with boxes, masks and names drawn on them."""

import colorsys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import pad
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image

from data import MASK_THRESHOLD, decode_masks, encode_masks
from data.shown import escaped, shortened
from models.masks import paste_masks

from .rgb import as_rgb

SHORT_SIDE = 320
MAX_RATIO = 10  # of the longer side to `SHORT_SIDE`; narrower images are drawn smaller
GAP = 6
FONT_SIZE = 16
LONGEST_NAME = 80  # characters
LINE = 26  # height of a line of the legend, in pixels
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
    masks: Iterable[Tensor | None],
) -> Tensor:
    """Draw boxes, their names and masks over an image; later boxes are on top.

    Args:
        image: `(channels, H, W)`, see `as_rgb`.
        boxes: `(n, 4)` xyxy pixels.
        names: names of the boxes.
        colours: RGB colours of the boxes.
        short_side: the image is scaled to this shorter side in pixels, or to a smaller one if the longer side would be
            more than `MAX_RATIO` times as long. None keeps the size and scales lines and names with it.
        dashed: number of boxes, from the first, with dashed lines.
        masks: `(H, W)` of each box, or None; an iterator needs the memory of one mask.

    Returns:
        `(3, h, w)` uint8.
    """
    image = as_rgb(image)
    # scaled before drawing, so that names are readable on small images
    scale = min(short_side / min(image.shape[1:]), MAX_RATIO * short_side / max(image.shape[1:])) if short_side else 1.0
    font_size, line = (FONT_SIZE, 2) if short_side else _sizes(min(image.shape[1:]))
    size = [max(round(side * scale), 1) for side in image.shape[1:]]
    names = [plain_name(name) for name in names]
    enlarged = resize(image, size, antialias=True) if short_side else image.clone()
    # run lengths, because masks of a large image need much memory
    surfaces = [
        (int(surface.sum()), encode_masks(surface[None])[0], colour)
        for mask, colour in zip(masks, colours, strict=True)
        if mask is not None
        for surface in [_scaled(mask, size)]
    ]
    for _, surface, colour in sorted(surfaces, key=lambda item: -item[0]):  # small masks on top of large ones
        _tint(enlarged, torch.from_numpy(decode_masks([surface], size[::-1])[0]).bool(), colour)
    canvas = to_pil_image(enlarged)
    # not torchvision's draw_bounding_boxes, which has no dashed boxes and places names over each other
    pen = ImageDraw.Draw(canvas)
    font = _font(font_size)
    scaled = _visible(boxes * scale, canvas.size)
    for index, (box, colour) in enumerate(zip(scaled, colours, strict=True)):
        _outline(pen, box, colour, dashed=index < dashed, line=line)
    tags = _place_tags(scaled, [pen.textlength(name, font) for name in names], canvas.size, font_size + 2)
    for tag, name, colour in zip(tags, names, colours, strict=True):
        pen.rectangle(tag, fill=colour)
        pen.text((tag[0] + 1, (tag[1] + tag[3]) / 2), name, "black", font, anchor="lm")
    return pil_to_tensor(canvas)


def draw_ground_truth(
    image: Tensor, target: dict, class_names: Sequence[str], *, short_side: int = SHORT_SIDE
) -> Tensor:
    """Draw the ground truth of an image in white; `short_side` as in `draw_boxes`."""
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
    """Draw the detections in an image without ground truth, coloured by class.

    Args:
        image: `(channels, H, W)`, see `as_rgb`.
        detections: `boxes`, `labels`, `scores` and optionally `masks` `(n, 1, H, W)`.
        class_names: names of labels 1, 2, ...
        score_threshold: minimum score of the detections to draw.
        short_side: see `draw_boxes`.

    Returns:
        `(3, h, w)` uint8.
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
    """Draw samples `(image, target)` with boxes and masks in rows of about `width` pixels; return `(3, H, W)`."""
    rows: list[list[Tensor]] = [[]]
    for image, target in samples:
        labels = target["labels"].tolist()
        colours = [class_colour(label - 1, len(class_names)) for label in labels]
        masks = masks_of(target, range(len(labels)))
        drawn = draw_boxes(image, target["boxes"], [class_names[label - 1] for label in labels], colours, masks=masks)
        if drawn.shape[1] > SHORT_SIDE:  # a tall image
            size = [SHORT_SIDE, max(round(drawn.shape[2] * SHORT_SIDE / drawn.shape[1]), 1)]
            drawn = resize(drawn, size, antialias=True)
        if rows[-1] and sum(cell.shape[2] for cell in rows[-1]) + drawn.shape[2] > width:
            rows.append([])
        rows[-1].append(pad(drawn, [0, GAP, 0, GAP + SHORT_SIDE - drawn.shape[1]], value=255))
    joined = [torch.cat(row, dim=2) for row in rows]
    whole = max(row.shape[2] for row in joined)
    return torch.cat([pad(row, [0, whole - row.shape[2], 0, 0], value=255) for row in joined], dim=1)


def draw_legend(width: int, items: Iterable[tuple[str, Colour | None, bool]]) -> Tensor:
    """Draw a legend `(3, h, width)` of `(text, colour or None, dashed)`; a box of the colour precedes the text."""
    font = _font(FONT_SIZE)
    lines: list[list[tuple[float, str, Colour | None, bool]]] = [[]]
    x = float(GAP)
    for words, colour, dashed in items:
        text = plain_name(words)
        needed = font.getlength(text) + (0 if colour is None else LINE)
        if lines[-1] and x + needed > width:
            lines.append([])
            x = float(GAP)
        lines[-1].append((x, text, colour, dashed))
        x += needed + 3 * GAP
    canvas = Image.new("RGB", (width, LINE * len(lines)), "white")
    pen = ImageDraw.Draw(canvas)
    for row, line in enumerate(lines):
        middle = row * LINE + LINE // 2
        for x, text, colour, dashed in line:
            if colour is not None:
                _outline(pen, (x, middle - 8, x + 16, middle + 8), colour, dashed=dashed)
            pen.text((x if colour is None else x + LINE, middle), text, "black", font, anchor="lm")
    return pil_to_tensor(canvas)


def masks_of(source: dict, indices: Iterable[int]) -> Iterator[Tensor | None]:
    """Yield the masks `(H, W)` of some objects of a target or of detections, or None for each without masks."""
    if "masks" not in source and "mask_patches" not in source:
        yield from (None for _ in indices)
        return
    for masks in paste_masks(source, [*indices]):
        yield from masks.flatten(0, -3)


def class_colour(index: int, num_classes: int) -> tuple[int, int, int]:
    """Return a bright RGB colour for a class; the hues of the classes are evenly spaced."""
    red, green, blue = colorsys.hsv_to_rgb(index / max(num_classes, 1), 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def plain_name(name: str) -> str:
    """Return a name of user data as short text of one line, which fonts can draw."""
    return shortened(escaped(name), LONGEST_NAME)


@cache
def _font(height: int) -> ImageFont.FreeTypeFont:
    """Return a font with lines of `height` pixels. Unlike Pillow's default font it has letters beyond English."""
    return ImageFont.truetype(Path(mpl.get_data_path(), "fonts/ttf/DejaVuSans.ttf"), round(height * 7 / 8))


def _sizes(short_side: int) -> tuple[int, int]:
    """Return the height of names and the width of lines, in pixels, for an image that keeps its size."""
    if short_side < SHORT_SIDE:
        return max(round(FONT_SIZE * short_side / SHORT_SIDE), 10), 2
    return max(FONT_SIZE, round(short_side / 40)), max(2, round(short_side / SHORT_SIDE))


def _scaled(mask: Tensor, size: list[int]) -> Tensor:
    """Return which pixels of an image of `size` (height, width) belong to a mask."""
    same = [*mask.shape] == size
    return (mask if same else resize(mask[None].float(), size, antialias=True)[0]) >= MASK_THRESHOLD


def _tint(image: Tensor, mask: Tensor, colour: Colour) -> None:
    """Blend a colour over a part of an image, in place."""
    # not torchvision's draw_segmentation_masks, which paints overlaps of masks black
    mixed = (1 - MASK_ALPHA) * image[:, mask] + MASK_ALPHA * torch.tensor(colour)[:, None]
    image[:, mask] = mixed.round().to(image.dtype)


def _visible(boxes: Tensor, size: tuple[int, int]) -> list[list[float]]:
    """Return boxes of at least a pixel, cut off just outside an image of (width, height).

    Boxes of a network that diverged may be anywhere or not finite, and boxes of a large image may become very thin.
    """
    width, height = size
    margin = FONT_SIZE
    boxes = boxes.float().nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6).reshape(-1, 4)
    first, last = torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])
    far = torch.tensor([width + margin, height + margin])
    first = torch.minimum(first.clamp(min=-margin), far - 1)
    last = torch.maximum(torch.minimum(last, far), first + 1)
    return torch.cat([first, last], dim=1).tolist()


def _place_tags(
    boxes: list[list[float]], lengths: list[float], size: tuple[int, int], height: int
) -> list[list[float]]:
    """Place the name of each box above or below it, if possible without overlap; later boxes have priority."""
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
    """Draw a rectangle with a thin dark border that is visible on any image; `line` is its width if not dashed."""
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
