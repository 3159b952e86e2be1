"""Detections drawn with what became of each: colour and sign by error_type."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..devices import to_device
from ..display import GAP, SHORT_SIDE, draw_boxes, draw_ground_truth, draw_legend, masks_of
from .matching import DUPLICATE, FALSE_POSITIVE, TRUE_POSITIVE, WRONG_CLASS, classify_detections

MISSED = "missed"
# Colours of Okabe and Ito, which people with any kind of colour vision tell apart, https://jfly.uni-koeln.de/color
ERROR_TYPE_COLOURS: dict[str, tuple[int, int, int]] = {
    TRUE_POSITIVE: (0, 158, 115),
    WRONG_CLASS: (240, 228, 66),
    DUPLICATE: (86, 180, 233),
    FALSE_POSITIVE: (213, 94, 0),
    MISSED: (204, 121, 167),
}
# Before the name in a picture, for those who see it in grey; what is missed is dashed.
ERROR_TYPE_SYMBOLS = {TRUE_POSITIVE: "✓", WRONG_CLASS: "≠", DUPLICATE: "2×", FALSE_POSITIVE: "✗", MISSED: ""}
_MEANINGS = {FALSE_POSITIVE: "no object there"}


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
            judged = draw_classified(
                image, target, output, class_names, score_threshold=score_threshold, short_side=short_side
            )
            pair = [draw_ground_truth(image, target, class_names, short_side=short_side), judged]
            rows.append(torch.cat([pad(part, [0, GAP, 0, GAP], value=255) for part in pair], dim=2))
    finally:
        model.train(was_training)
    width = max((row.shape[2] for row in rows), default=2 * short_side)
    rows.append(draw_error_type_legend(width, f"left: truth, right: detections of a score from {score_threshold:g} on"))
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
    """Draw what a detector found in an image, with colour and sign by error_type, and dashed what it missed.

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
    error_types = classify_detections(boxes, labels, scores, target["boxes"], target["labels"])
    missed = error_types.missed
    # what is missed goes below, then the least certain; the best is on top
    order = scores.argsort(stable=True).tolist()
    names = [class_names[label - 1] for label in target["labels"][missed].tolist()]
    names += [
        f"{ERROR_TYPE_SYMBOLS[error_types.detections[index]]} {class_names[labels[index] - 1]} {scores[index]:.2f}"
        for index in order
    ]
    colours = [ERROR_TYPE_COLOURS[MISSED]] * len(missed)
    colours += [ERROR_TYPE_COLOURS[error_types.detections[index]] for index in order]
    all_boxes = torch.cat([torch.as_tensor(target["boxes"])[missed].float(), boxes[order].float()])
    masks = masks_of(target, missed) + masks_of(detections, seen.nonzero().flatten()[order].tolist())
    return draw_boxes(image, all_boxes, names, colours, short_side, dashed=len(missed), masks=masks)


def draw_error_type_legend(width: int, heading: str = "") -> Tensor:
    """Explain what `draw_classified` draws, with words before it, in lines of `width` pixels, `(3, h, width)`."""
    words = [(heading, None, False)] if heading else []
    return draw_legend(
        width,
        words + [(describe_error_type(name), colour, name == MISSED) for name, colour in ERROR_TYPE_COLOURS.items()],
    )


def describe_error_type(name: str) -> str:
    """Say what a error_type's sign, or its dashes, mean."""
    return " ".join(filter(None, (ERROR_TYPE_SYMBOLS[name], _MEANINGS.get(name, name.replace("_", " ")))))
