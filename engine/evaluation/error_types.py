"""Drawings of detections with a colour and a symbol by error type."""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from models.masks import unpasted_masks

from ..devices import to_device
from ..display import GAP, SHORT_SIDE, draw_boxes, draw_ground_truth, draw_legend, masks_of
from .matching import DUPLICATE, FALSE_POSITIVE, TRUE_POSITIVE, WRONG_CLASS, classify_detections

MISSED = "missed"
# Colours of Okabe and Ito, distinguishable with colour vision deficiencies, https://jfly.uni-koeln.de/color
ERROR_TYPE_COLOURS: dict[str, tuple[int, int, int]] = {
    TRUE_POSITIVE: (0, 158, 115),
    WRONG_CLASS: (240, 228, 66),
    DUPLICATE: (86, 180, 233),
    FALSE_POSITIVE: (213, 94, 0),
    MISSED: (204, 121, 167),
}
# Symbols before the name, readable without colour. Missed objects have dashed boxes instead.
ERROR_TYPE_SYMBOLS = {TRUE_POSITIVE: "✓", WRONG_CLASS: "≠", DUPLICATE: "2×", FALSE_POSITIVE: "✗", MISSED: ""}


@torch.inference_mode()
def draw_predictions(
    model: nn.Module,
    samples: Sequence[tuple[Tensor, dict]],
    class_names: Sequence[str],
    *,
    device: torch.device,
    score_threshold: float = 0.5,
    short_side: int = SHORT_SIDE,
) -> Tensor:
    """Draw the ground truth of images on the left, classified detections on the right, and a legend.

    Args:
        model: detector; its train or eval mode is restored.
        samples: `(image, target)` pairs, one row each.
        class_names: names of labels 1, 2, ...
        device: device of the model.
        score_threshold: minimum score of the detections to draw.
        short_side: each image is scaled to this shorter side, in pixels.

    Returns:
        `(3, H, W)` uint8.
    """
    was_training = model.training
    model.eval()
    rows = []
    try:
        for image, target in samples:
            with unpasted_masks(model):
                (output,) = model(to_device([image], [], device)[0])
            output = {key: value.cpu() for key, value in output.items()}
            classified = draw_classified(
                image, target, output, class_names, score_threshold=score_threshold, short_side=short_side
            )
            pair = [draw_ground_truth(image, target, class_names, short_side=short_side), classified]
            rows.append(torch.cat([pad(part, [0, GAP, 0, GAP], value=255) for part in pair], dim=2))
    finally:
        model.train(was_training)
    width = max((row.shape[2] for row in rows), default=2 * short_side)
    rows.append(
        draw_error_type_legend(width, f"left: ground truth, right: detections with score >= {score_threshold:g}")
    )
    return torch.cat([pad(row, [0, width - row.shape[2], 0, 0], value=255) for row in rows], dim=1)


def draw_classified(
    image: Tensor,
    target: dict,
    detections: dict,
    class_names: Sequence[str],
    *,
    score_threshold: float = 0.5,
    short_side: int = SHORT_SIDE,
) -> Tensor:
    """Draw detections with a colour and a symbol by error type, and missed objects with dashed boxes.

    Args:
        image: `(channels, H, W)`, see `as_rgb`.
        target: ground truth: `boxes` (xyxy pixels), `labels` and optionally `masks`.
        detections: `boxes`, `labels`, `scores` and optionally `masks`.
        class_names: names of labels 1, 2, ...
        score_threshold: minimum score; detections below are neither matched nor drawn.
        short_side: the image is scaled to this shorter side, in pixels.

    Returns:
        `(3, h, w)` uint8, without a legend.
    """
    shown = detections["scores"] >= score_threshold
    boxes, labels, scores = (detections[key][shown] for key in ("boxes", "labels", "scores"))
    classified = classify_detections(boxes, labels, scores, target["boxes"], target["labels"])
    missed = classified.missed
    # missed objects at the bottom, then detections in order of ascending score
    order = scores.argsort(stable=True).tolist()
    names = [class_names[label - 1] for label in target["labels"][missed].tolist()]
    names += [
        f"{ERROR_TYPE_SYMBOLS[classified.detections[index]]} {class_names[labels[index] - 1]} {scores[index]:.2f}"
        for index in order
    ]
    colours = [ERROR_TYPE_COLOURS[MISSED]] * len(missed)
    colours += [ERROR_TYPE_COLOURS[classified.detections[index]] for index in order]
    all_boxes = torch.cat([torch.as_tensor(target["boxes"])[missed].float(), boxes[order].float()])
    masks = chain(masks_of(target, missed), masks_of(detections, shown.nonzero().flatten()[order].tolist()))
    return draw_boxes(image, all_boxes, names, colours, short_side, dashed=len(missed), masks=masks)


def draw_error_type_legend(width: int, heading: str = "") -> Tensor:
    """Draw the legend of `draw_classified` after a heading, `(3, h, width)`."""
    words = [(heading, None, False)] if heading else []
    return draw_legend(
        width,
        words + [(describe_error_type(name), colour, name == MISSED) for name, colour in ERROR_TYPE_COLOURS.items()],
    )


def describe_error_type(name: str) -> str:
    """Return the symbol and the name of an error type."""
    return " ".join(filter(None, (ERROR_TYPE_SYMBOLS[name], name.replace("_", " "))))
