"""Pictures of detections beside the truth."""

import colorsys
from collections.abc import Sequence

import torch
from PIL import ImageDraw, ImageFont
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.transforms.v2.functional import pil_to_tensor, resize, to_pil_image

from .precision import to_device

SHORT_SIDE = 320
GAP = 6
FONT_SIZE = 16


@torch.inference_mode()
def draw_detections(
    model: nn.Module,
    samples: Sequence[tuple[Tensor, dict]],
    class_names: Sequence[str],
    *,
    device: torch.device,
    score_threshold: float = 0.5,
) -> Tensor:
    """Draw images with the truth to the left and detections to the right, one image a row.

    Args:
        model: detector; left in the mode it was in.
        samples: one `(uint8 image, target)` or more.
        class_names: name of label 1, 2, ...
        device: where the model is.
        score_threshold: detections below are not drawn.

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
            seen = output["scores"] >= score_threshold
            names = [
                f"{class_names[label - 1]} {score:.2f}"
                for label, score in zip(output["labels"][seen].tolist(), output["scores"][seen].tolist(), strict=True)
            ]
            truth = [class_names[label - 1] for label in target["labels"].tolist()]
            pair = [
                _draw(image, target["boxes"], target["labels"], truth, len(class_names)),
                _draw(image, output["boxes"][seen], output["labels"][seen], names, len(class_names)),
            ]
            rows.append(torch.cat([pad(part, [0, GAP, 0, GAP], value=255) for part in pair], dim=2))
    finally:
        model.train(was_training)
    width = max(row.shape[2] for row in rows)
    return torch.cat([pad(row, [0, width - row.shape[2], 0, 0], value=255) for row in rows], dim=1)


def draw_truth(samples: Sequence[tuple[Tensor, dict]], class_names: Sequence[str], *, width: int = 1600) -> Tensor:
    """Draw samples `(uint8 image, target)` with their boxes, in rows of about `width` pixels, to `(3, H, W)` uint8."""
    rows: list[list[Tensor]] = [[]]
    for image, target in samples:
        names = [class_names[label - 1] for label in target["labels"].tolist()]
        picture = _draw(image, target["boxes"], target["labels"], names, len(class_names))
        size = [SHORT_SIDE, round(picture.shape[2] * SHORT_SIDE / picture.shape[1])]
        if rows[-1] and sum(cell.shape[2] for cell in rows[-1]) + size[1] > width:
            rows.append([])
        rows[-1].append(pad(resize(picture, size, antialias=True), [0, GAP, 0, GAP], value=255))
    joined = [torch.cat(row, dim=2) for row in rows]
    whole = max(row.shape[2] for row in joined)
    return torch.cat([pad(row, [0, whole - row.shape[2], 0, 0], value=255) for row in joined], dim=1)


def _draw(image: Tensor, boxes: Tensor, labels: Tensor, names: list[str], num_classes: int) -> Tensor:
    # enlarged first, so that names can be read on small images
    scale = SHORT_SIDE / min(image.shape[1:])
    picture = to_pil_image(resize(image, [round(side * scale) for side in image.shape[1:]], antialias=True))
    pen = ImageDraw.Draw(picture)
    font = ImageFont.load_default(FONT_SIZE)  # torchvision's draw_bounding_boxes has no font that can be read here
    for box, label, name in zip((boxes * scale).tolist(), labels.tolist(), names, strict=True):
        colour = class_colour(label - 1, num_classes)
        pen.rectangle(box, outline=colour, width=2)
        corner = (min(box[0] + 2, picture.width - pen.textlength(name, font)), max(box[1], FONT_SIZE))
        pen.rectangle(pen.textbbox(corner, name, font, anchor="lb"), fill=colour)
        pen.text(corner, name, "black", font, anchor="lb")
    return pil_to_tensor(picture)


def class_colour(index: int, num_classes: int) -> tuple[int, int, int]:
    """A bright colour for each class, spread over the hues."""
    red, green, blue = colorsys.hsv_to_rgb(index / max(num_classes, 1), 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)
