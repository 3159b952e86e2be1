"""Functions shared by the one-stage detectors RetinaNet and FCOS."""

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.models.detection._utils import Matcher
from torchvision.ops import sigmoid_focal_loss

from .boxes import at_least_float32

Outputs = dict[str, Tensor] | dict[str, list[Tensor]]


def in_float32(head_outputs: Outputs) -> Outputs:
    """Return the outputs of a head, each a tensor or a list of levels, with half precision converted to float32."""
    return {
        name: [*map(at_least_float32, output)] if isinstance(output, list) else at_least_float32(output)
        for name, output in head_outputs.items()
    }


def weighted_focal_loss(logits: Tensor, target: dict, matched: Tensor, class_weights: Tensor) -> Tensor:
    """Return the focal loss of an image, divided by its number of positive anchors, with weights of classes.

    With weights of 1 it is the loss of torchvision's RetinaNet and FCOS.

    Args:
        logits: `(anchors, 1 + num_classes)`.
        target: "labels" of the boxes.
        matched: Index of the box of each anchor, `(anchors,)`; -1 for the background, -2 for ignored anchors.
        class_weights: `(1 + num_classes,)`, the first for the background.
    """
    positive, used = matched >= 0, matched != Matcher.BETWEEN_THRESHOLDS
    labels = torch.zeros_like(matched)
    labels[positive] = target["labels"][matched[positive]]
    wanted = torch.zeros_like(logits)
    wanted[positive, labels[positive]] = 1
    losses = sigmoid_focal_loss(logits[used], wanted[used], reduction="none").sum(1)
    return (losses * class_weights.to(losses.dtype)[labels[used]]).sum() / positive.sum().clamp(min=1)


def without_background(head_outputs: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Return head outputs without detections of class 0.

    Labels count from 1, so output 0 of torchvision's heads is unused. It is trained to be negative everywhere, but
    would produce detections before that.

    Args:
        head_outputs: Outputs of a head in eval mode, by level, with "cls_logits" `(B, locations, 1 + num_classes)`.

    Returns:
        The same outputs with a logit of minus infinity, which is a score of 0, for class 0.
    """
    logits = [pad(level[..., 1:], (1, 0), value=float("-inf")) for level in head_outputs["cls_logits"]]
    return head_outputs | {"cls_logits": logits}
