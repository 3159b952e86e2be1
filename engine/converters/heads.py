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
_CELL_ANCHORS = r".*anchor_generator\.cell_anchors\.\d+"
_LINEAR = r"roi_heads\.(?:box_head|box_predictor)\..*\.weight"

ROUNDING = 0.05  # torchvision rounds sides to whole pixels: up to 3 % of the smallest
SHOWN_ANCHORS = 9


def decides_classes(key: str) -> bool:
    """Whether `count_classes` needs the tensor of a key."""
    return bool(re.fullmatch(f"{_CLASSIFIER}|{_SIGMOIDS}|{_ANCHOR_BOXES}", key))


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


def check_anchors(tensors: Mapping[str, Tensor], ours: Sequence[Tensor]) -> None:
    """Compare the anchors in a file with those of the config; older files of detectron2 contain them.

    Args:
        tensors: tensors of the file.
        ours: anchors of a location of each level, `(n, 4)`.

    Raises:
        ValueError: if their number or sizes differ; torchvision's rounding is within the tolerance.
    """
    for name, theirs in tensors.items():
        if not re.fullmatch(_CELL_ANCHORS, name):
            continue
        level = int(name.rpartition(".")[2])
        own = ours[level] if level < len(ours) else torch.empty(0, 4)
        if not _same_sides(theirs, own):
            raise ValueError(
                f"the anchors of the config must have the sizes of those in the checkpoint: {name} has "
                f"{_describe_sides(theirs)}, level {level} of the config has {_describe_sides(own)}; set anchor_sizes "
                "and aspect_ratios of the detector"
            )


def _same_sides(theirs: Tensor, ours: Tensor) -> bool:
    """Whether both have the same number of anchors, and each anchor a counterpart of the same width and height."""
    if theirs.shape != ours.shape:
        return False
    first, second = (anchors[:, 2:] - anchors[:, :2] for anchors in (theirs.double(), ours.double()))
    is_close = ((first[:, None] - second).abs() <= ROUNDING * second).all(2)
    return bool(is_close.any(0).all() and is_close.any(1).all())


def _describe_sides(anchors: Tensor) -> str:
    if anchors.dim() != 2 or anchors.shape[1] != 4:
        return f"a tensor of shape {[*anchors.shape]}"
    sides = (anchors[:, 2:] - anchors[:, :2]).tolist()
    shown = ", ".join(f"{width:.4g} x {height:.4g}" for width, height in sides[:SHOWN_ANCHORS])
    return f"{len(sides)} anchors ({shown}{', ...' if len(sides) > SHOWN_ANCHORS else ''})" if sides else "no anchors"


def transpose_linear(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Transpose the weights of linear layers from PaddlePaddle's (inputs, outputs) to PyTorch's layout."""
    return {key: tensor.T if re.fullmatch(_LINEAR, key) else tensor for key, tensor in tensors.items()}


def _columns(factors: Sequence[float], like: Tensor) -> Tensor:
    return like.new_tensor(factors).view(1, 4, *[1] * (like.dim() - 1))
