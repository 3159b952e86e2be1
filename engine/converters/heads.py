"""Order of classes, anchors and box deltas in heads: from other frameworks to torchvision.

In torchvision, class 0 is the background, and box regression, masks and sigmoid outputs have unused rows for it. In
other frameworks, the background is the last class of a classifier, and other outputs have no row for it.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .arithmetic import ZERO_PROBABILITY_LOGIT, choose_rows, ratio_major
from .source import Source

_CLASSIFIER = r"roi_heads\.box_predictor\.(?:\d\.)?cls_score\.(?:weight|bias)"
_BOXES = r"roi_heads\.box_predictor\.(?:(\d)\.)?bbox_pred\.(?:weight|bias)"
_MASKS = r"roi_heads\.mask_predictor\.mask_fcn_logits\.(?:weight|bias)"
_SIGMOIDS = r"head\.classification_head\.cls_logits\.(weight|bias)"
_ANCHOR_BOXES = r"head\.regression_head\.bbox_reg\.(?:weight|bias)"
_LINEAR = r"roi_heads\.(?:box_head|box_predictor)\..*\.weight"


def count_classes(tensors: Mapping[str, Tensor], source: Source) -> int | None:
    """Return the number of foreground classes, from tensors by our keys; None without a classifier."""
    for key, tensor in tensors.items():
        if re.fullmatch(_CLASSIFIER, key) and key.endswith("bias"):
            return len(tensor) - 1
    bias = tensors.get("head.classification_head.cls_logits.bias")
    boxes = tensors.get("head.regression_head.bbox_reg.bias")
    if bias is None or boxes is None:
        return None
    return len(bias) // max(1, len(boxes) // 4) - source.background_first


def arrange_heads(
    tensors: Mapping[str, Tensor], source: Source, *, classes: int, kept: Sequence[int], ratios: int
) -> dict[str, Tensor]:
    """Reorder the outputs of a detector's heads; other tensors are unchanged.

    Args:
        tensors: tensors by our keys.
        source: source framework.
        classes: number of foreground classes of the source.
        kept: source classes to keep, counted from 0, in the order of the detector.
        ratios: number of aspect ratios of RetinaNet's anchors.
    """
    if source.background_first:
        classifier = foreground = [0, *(index + 1 for index in kept)]
    else:
        classifier, foreground = [classes, *kept], [-1, *kept]
    boxes = tensors.get("head.regression_head.bbox_reg.bias", torch.empty(4))
    anchors = max(1, len(boxes) // 4)
    arranged = dict(tensors)
    for key, tensor in tensors.items():
        if source.size_major and anchors % ratios == 0 and re.fullmatch(f"{_SIGMOIDS}|{_ANCHOR_BOXES}", key):
            tensor = ratio_major(tensor, ratios, anchors)
        if re.fullmatch(_CLASSIFIER, key):
            tensor = choose_rows(tensor, classifier)
        elif match := re.fullmatch(_BOXES, key):
            factors = source.cascade_factors.get(int(match[1] or 0))
            if factors:
                tensor = (tensor.unflatten(0, (-1, 4)) * _columns(factors, tensor)).flatten(0, 1)
            if len(tensor) > 4:
                tensor = choose_rows(tensor, foreground, each=4)
            elif match[1] is None:  # class-agnostic boxes: copied for each class
                tensor = choose_rows(tensor, [0] * len(foreground), each=4)
        elif re.fullmatch(_MASKS, key):
            tensor = choose_rows(tensor, [0] * len(foreground) if len(tensor) == 1 else foreground)
        elif match := re.fullmatch(_SIGMOIDS, key):
            fill = ZERO_PROBABILITY_LOGIT if match[1] == "bias" else 0.0
            tensor = choose_rows(tensor, foreground, groups=anchors, fill=fill)
        arranged[key] = tensor
    return arranged


def transpose_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Transpose the weights of linear layers from PaddlePaddle's (inputs, outputs) to PyTorch's layout."""
    return {key: tensor.T if re.fullmatch(_LINEAR, key) else tensor for key, tensor in tensors.items()}


def _columns(factors: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(factors).view(1, 4, *[1] * (like.dim() - 1))
