"""Arithmetic on converted tensors, so that both networks compute the same values from the same images."""

from collections.abc import Sequence

import torch
from torch import Tensor

# This project normalises RGB images by ImageNet mean and standard deviation. All sources use the same mean.
STD = (0.229, 0.224, 0.225)
# Input format of a source: whether the channels are BGR, and whether they are in 0..255 without division by the
# standard deviation. Networks of Caffe and MSRA have the standard deviation in their weights.
INPUT_FORMATS: dict[str, tuple[bool, bool]] = {
    "rgb_std": (False, False),
    "bgr_std": (True, False),
    "bgr": (True, True),
}
EPS = 1e-5  # epsilon of this project's batch norms
ZERO_PROBABILITY_LOGIT = -100.0  # a logit whose sigmoid is 0


def fold_input(weight: Tensor, input_format: str) -> Tensor:
    """Fold the input format into the first convolution, `(N, 3, kh, kw)`, so that it takes normalised RGB.

    Zero padding keeps its meaning: zero is the mean of the images in all formats.

    Raises:
        ValueError: if the convolution does not have three input channels.
    """
    if weight.dim() != 4 or weight.shape[1] != 3:
        raise ValueError(f"the first convolution must have 3 input channels, got a weight of shape {[*weight.shape]}")
    is_bgr, is_raw = INPUT_FORMATS[input_format]
    if is_bgr:
        weight = weight.flip(1)
    if is_raw:
        weight = weight * (255 * weight.new_tensor(STD)).view(1, 3, 1, 1)
    return weight


def fold_eps(running_var: Tensor, eps: float) -> Tensor:
    """Adjust the running variance of a batch norm with another epsilon to this project's epsilon."""
    return running_var + (eps - EPS)


def fold_mask_scale(weight: Tensor, theirs: float, ours: float) -> Tensor:
    """Adjust the weight of a modulated deformable convolution to another mask scale."""
    return weight * (theirs / ours)


def choose_rows(rows: Tensor, order: Sequence[int], *, each: int = 1, groups: int = 1, fill: float = 0.0) -> Tensor:
    """Reorder the output rows of a layer by class.

    Args:
        rows: weights or biases, `(groups * classes * each, ...)`.
        order: source class of each target class, -1 for a missing class.
        each: rows per class.
        groups: number of groups, such as anchors.
        fill: value of the rows of missing classes.
    """
    classes, odd = divmod(len(rows), groups * each)
    if odd or classes <= max(order):
        raise ValueError(
            f"expected {max(order) + 1} classes with {groups} x {each} outputs each, got {len(rows)} outputs"
        )
    grid = rows.unflatten(0, (groups, classes, each))
    missing = torch.tensor([index < 0 for index in order])
    chosen = grid[:, [max(index, 0) for index in order]].clone()
    chosen[:, missing] = fill
    return chosen.flatten(0, 2)


def ratio_major(rows: Tensor, ratios: int, anchors: int) -> Tensor:
    """Reorder outputs of anchors from size-major order to torchvision's ratio-major order."""
    return rows.unflatten(0, (anchors // ratios, ratios, -1)).transpose(0, 1).flatten(0, 2)
