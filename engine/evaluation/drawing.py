"""Pictures of boxes and masks: what is there, and what a detector makes of it."""

import colorsys
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import matplotlib as mpl
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image

from ..devices import to_device
from .evaluator import MASK_THRESHOLD
from .matching import BACKGROUND, DUPLICATE, RIGHT, WRONG_CLASS, judge_detections

SHORT_SIDE = 320
GAP = 6
FONT_SIZE = 16
LINE = 26  # height of a line of the legend

MISSED = "missed"
# Colours of Okabe and Ito, which people with any kind of colour vision tell apart, https://jfly.uni-koeln.de/color
VERDICT_COLOURS: dict[str, tuple[int, int, int]] = {
    RIGHT: (0, 158, 115),
    WRONG_CLASS: (240, 228, 66),
    DUPLICATE: (86, 180, 233),
    BACKGROUND: (213, 94, 0),
    MISSED: (204, 121, 167),
}
# Before the name in a picture, for those who see it in grey; what is missed is dashed.
VERDICT_SIGNS = {RIGHT: "✓", WRONG_CLASS: "≠", DUPLICATE: "2×", BACKGROUND: "✗", MISSED: ""}
_MEANINGS = {BACKGROUND: "no object there"}
TRUTH_COLOUR = (255, 255, 255)
_DASH, _SPACE = 7, 5
MASK_ALPHA = 0.45

Colour = tuple[int, int, int]


@torch.inference_mode()
def draw_detections(
    model: nn.Module,
    samples: Sequence[tuple[Tensor, dict]],
    class_names: Sequence[str],
    *,
    device: torch.device,
    score_threshold: float = 0.5,
    short_side: int = SHORT_SIDE,
) -> Tensor:
    """Draw images with the truth to the left and judged detections to the right, one image a row, and a legend.

    Args:
        model: detector; left in the mode it was in.
        samples: `(uint8 image, target)` pairs.
        class_names: name of label 1, 2, ...
        device: where the model is.
        score_threshold: detections below are not drawn.
        short_side: to which the shorter side of each image is scaled, in pixels.

    Returns:
        `(3, H, W)` uint8.
    """
    was_training = model.training
    model.eval()
    rows = []
    try:
        for image, target in samples:
            (output,) = model(to_device([image], [], device)[0])
            output = {key: value.cpu() for key, value in output.items()}
            judged = draw_verdicts(
                image, target, output, class_names, score_threshold=score_threshold, short_side=short_side
            )
            pair = [draw_objects(image, target, class_names, short_side=short_side), judged]
            rows.append(torch.cat([pad(part, [0, GAP, 0, GAP], value=255) for part in pair], dim=2))
    finally:
        model.train(was_training)
    width = max((row.shape[2] for row in rows), default=2 * short_side)
    rows.append(draw_legend(width, f"left: truth, right: detections of a score from {score_threshold:g} on"))
    return torch.cat([pad(row, [0, width - row.shape[2], 0, 0], value=255) for row in rows], dim=1)


def draw_objects(image: Tensor, target: dict, class_names: Sequence[str], *, short_side: int = SHORT_SIDE) -> Tensor:
    """Draw the truth about an image, in white; see `draw_verdicts`."""
    names = [class_names[label - 1] for label in target["labels"].tolist()]
    masks = _chosen_masks(target, range(len(names)))
    return _draw(image, target["boxes"], names, [TRUTH_COLOUR] * len(names), short_side, masks=masks)


def draw_verdicts(
    image: Tensor,
    target: dict,
    detections: dict,
    class_names: Sequence[str],
    *,
    score_threshold: float = 0.5,
    short_side: int = SHORT_SIDE,
) -> Tensor:
    """Draw what a detector found in an image, with colour and sign by verdict, and dashed what it missed.

    Args:
        image: `(3, H, W)` uint8.
        target: its true `boxes` (xyxy pixels) and `labels`, and maybe `masks`.
        detections: `boxes`, `labels` and `scores`, and maybe `masks`.
        class_names: name of label 1, 2, ...
        score_threshold: detections below are not drawn, and do not count.
        short_side: to which the shorter side of the image is scaled, in pixels.

    Returns:
        `(3, h, w)` uint8, without a legend.
    """
    seen = detections["scores"] >= score_threshold
    boxes, labels, scores = (detections[key][seen] for key in ("boxes", "labels", "scores"))
    verdicts = judge_detections(boxes, labels, scores, target["boxes"], target["labels"])
    missed = verdicts.missed
    # what is missed goes below, then the least certain; the best is on top
    order = scores.argsort(stable=True).tolist()
    names = [class_names[label - 1] for label in target["labels"][missed].tolist()]
    names += [
        f"{VERDICT_SIGNS[verdicts.detections[index]]} {class_names[labels[index] - 1]} {scores[index]:.2f}"
        for index in order
    ]
    colours = [VERDICT_COLOURS[MISSED]] * len(missed)
    colours += [VERDICT_COLOURS[verdicts.detections[index]] for index in order]
    all_boxes = torch.cat([torch.as_tensor(target["boxes"])[missed].float(), boxes[order].float()])
    masks = _chosen_masks(target, missed) + _chosen_masks(detections, seen.nonzero().flatten()[order].tolist())
    return _draw(image, all_boxes, names, colours, short_side, dashed=len(missed), masks=masks)


def draw_found(
    image: Tensor,
    detections: dict,
    class_names: Sequence[str],
    *,
    score_threshold: float = 0.5,
    short_side: int | None = SHORT_SIDE,
) -> Tensor:
    """Draw what a detector found in an image of which no truth is known, coloured by class; see `draw_verdicts`.

    Of `detections`, `masks` `(n, 1, H, W)` may be missing. With `short_side=None` the image keeps its size, and lines
    and names are as large as suits it.
    """
    seen = (detections["scores"] >= score_threshold).nonzero().flatten()
    order = seen[detections["scores"][seen].argsort(stable=True)].tolist()
    labels, scores = detections["labels"].tolist(), detections["scores"].tolist()
    names = [f"{class_names[labels[index] - 1]} {scores[index]:.2f}" for index in order]
    colours = [class_colour(labels[index] - 1, len(class_names)) for index in order]
    masks = _chosen_masks(detections, order)
    return _draw(image, detections["boxes"][order], names, colours, short_side, masks=masks)


def draw_legend(width: int, heading: str = "") -> Tensor:
    """Explain what `draw_verdicts` draws, with words before it, in lines of `width` pixels, `(3, h, width)`."""
    font = _font(FONT_SIZE)
    items = [(heading, None)] if heading else []
    items += [(explain_verdict(name), colour) for name, colour in VERDICT_COLOURS.items()]
    lines: list[list[tuple[float, str, Colour | None]]] = [[]]
    x = float(GAP)
    for name, colour in items:
        needed = font.getlength(name) + (0 if colour is None else LINE)
        if lines[-1] and x + needed > width:
            lines.append([])
            x = float(GAP)
        lines[-1].append((x, name, colour))
        x += needed + 3 * GAP
    picture = Image.new("RGB", (width, LINE * len(lines)), "white")
    pen = ImageDraw.Draw(picture)
    for row, line in enumerate(lines):
        middle = row * LINE + LINE // 2
        for x, name, colour in line:
            if colour is not None:
                _outline(pen, (x, middle - 8, x + 16, middle + 8), colour, dashed=colour == VERDICT_COLOURS[MISSED])
            pen.text((x if colour is None else x + LINE, middle), name, "black", font, anchor="lm")
    return pil_to_tensor(picture)


def explain_verdict(name: str) -> str:
    """Say what a verdict's sign, or its dashes, mean."""
    return " ".join(filter(None, (VERDICT_SIGNS[name], _MEANINGS.get(name, name))))


def draw_truth(samples: Sequence[tuple[Tensor, dict]], class_names: Sequence[str], *, width: int = 1600) -> Tensor:
    """Draw samples `(uint8 image, target)` with their boxes and masks, in rows of about `width` pixels, `(3, H, W)`."""
    rows: list[list[Tensor]] = [[]]
    for image, target in samples:
        labels = target["labels"].tolist()
        colours = [class_colour(label - 1, len(class_names)) for label in labels]
        masks = _chosen_masks(target, range(len(labels)))
        picture = _draw(image, target["boxes"], [class_names[label - 1] for label in labels], colours, masks=masks)
        size = [SHORT_SIDE, round(picture.shape[2] * SHORT_SIDE / picture.shape[1])]
        if rows[-1] and sum(cell.shape[2] for cell in rows[-1]) + size[1] > width:
            rows.append([])
        rows[-1].append(pad(resize(picture, size, antialias=True), [0, GAP, 0, GAP], value=255))
    joined = [torch.cat(row, dim=2) for row in rows]
    whole = max(row.shape[2] for row in joined)
    return torch.cat([pad(row, [0, whole - row.shape[2], 0, 0], value=255) for row in joined], dim=1)


def _draw(
    image: Tensor,
    boxes: Tensor,
    names: Sequence[str],
    colours: Sequence[Colour],
    short_side: int | None = SHORT_SIDE,
    *,
    dashed: int = 0,
    masks: Sequence[Tensor | None],
) -> Tensor:
    """Draw boxes with their names over their masks, the first `dashed` of them with dashed lines."""
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


def _chosen_masks(source: dict, indices: Iterable[int]) -> list[Tensor | None]:
    """The masks `(H, W)` of some objects of a target or of detections, None for each where there are none."""
    masks = source.get("masks")
    return [None if masks is None else masks[index].reshape(masks.shape[-2:]) for index in indices]


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


def class_colour(index: int, num_classes: int) -> tuple[int, int, int]:
    """A bright colour for each class, spread over the hues."""
    red, green, blue = colorsys.hsv_to_rgb(index / max(num_classes, 1), 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
