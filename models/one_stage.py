"""Functions shared by the one-stage detectors RetinaNet and FCOS."""

from torch import Tensor
from torch.nn.functional import pad

from .boxes import at_least_float32

Outputs = dict[str, Tensor] | dict[str, list[Tensor]]


def in_float32(head_outputs: Outputs) -> Outputs:
    """Return the outputs of a head, each a tensor or a list of levels, with half precision converted to float32."""
    return {
        name: [*map(at_least_float32, output)] if isinstance(output, list) else at_least_float32(output)
        for name, output in head_outputs.items()
    }


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
