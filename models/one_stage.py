"""What detectors without proposals share: RetinaNet and FCOS."""

from torch import Tensor
from torch.nn.functional import pad

from .boxes import at_least_float32

Outputs = dict[str, Tensor] | dict[str, list[Tensor]]


def in_float32(head_outputs: Outputs) -> Outputs:
    """Give the outputs of a head, a tensor or a list of levels each, in float32 where they are of half precision."""
    return {
        name: [*map(at_least_float32, output)] if isinstance(output, list) else at_least_float32(output)
        for name, output in head_outputs.items()
    }


def without_background(head_outputs: dict[str, list[Tensor]]) -> dict[str, list[Tensor]]:
    """Rule out that anything is detected as class 0.

    Classes have labels from 1, so that torchvision's heads have an output 0 which learns to say no everywhere. Until it
    has, it would give detections.

    Args:
        head_outputs: of a head in eval mode, level by level, with "cls_logits" `(B, places, 1 + num_classes)`.

    Returns:
        The same with logits of minus infinity, which are a score of 0, for class 0.
    """
    logits = [pad(level[..., 1:], (1, 0), value=float("-inf")) for level in head_outputs["cls_logits"]]
    return head_outputs | {"cls_logits": logits}
