"""What is done to tensors, so that the same pictures give the same numbers here as there."""

from collections.abc import Sequence

import torch
from torch import Tensor

# Pictures are RGB, (x - mean) / std of ImageNet here. The means of all sources are the same.
STD = (0.229, 0.224, 0.225)
# What the first convolution of others is fed: whether its channels run BGR, and whether they are in 0..255 over 1 (the
# standard deviations of Caffe's and MSRA's networks are in their weights) and not over ImageNet's
INPUT_FORMATS: dict[str, tuple[bool, bool]] = {
    "rgb_std": (False, False),
    "bgr_std": (True, False),
    "bgr": (True, True),
}
EPS = 1e-5  # of this project's batch norms
ZERO_PROBABILITY_LOGIT = -100.0  # a logit whose sigmoid is 0


def fold_input(weight: Tensor, input_format: str) -> Tensor:
    """Make the first convolution, `(N, 3, kh, kw)`, see RGB over ImageNet's deviations as it saw what it was fed.

    Padding stays what it was: zeros, which are the mean of the pictures there and here.

    Raises:
        ValueError: if it sees other than three channels.
    """
    if weight.dim() != 4 or weight.shape[1] != 3:
        raise ValueError(f"the first convolution must see the 3 channels of a picture, its weight is {[*weight.shape]}")
    is_bgr, is_raw = INPUT_FORMATS[input_format]
    if is_bgr:
        weight = weight.flip(1)
    if is_raw:
        weight = weight * (255 * weight.new_tensor(STD)).view(1, 3, 1, 1)
    return weight


def fold_eps(running_var: Tensor, eps: float) -> Tensor:
    """Make a batch norm of another epsilon the same with ours."""
    return running_var + (eps - EPS)


def fold_mask_scale(weight: Tensor, theirs: float, ours: float) -> Tensor:
    """Make the weight of a modulated deformable convolution give the same with masks of another scale."""
    return weight * (theirs / ours)


def choose_rows(rows: Tensor, order: Sequence[int], *, each: int = 1, groups: int = 1, fill: float = 0.0) -> Tensor:
    """Give the outputs of a layer another order.

    Args:
        rows: `(groups * classes * each, ...)`: weights or biases.
        order: for each class of ours the number of theirs, -1 for one that they have not.
        each: outputs of a class.
        groups: anchors.
        fill: what rows get that they have not.
    """
    classes, odd = divmod(len(rows), groups * each)
    if odd or classes <= max(order):
        raise ValueError(
            f"{max(order) + 1} classes of {groups} x {each} outputs were expected, got {len(rows)} outputs"
        )
    grid = rows.unflatten(0, (groups, classes, each))
    missing = torch.tensor([index < 0 for index in order])
    chosen = grid[:, [max(index, 0) for index in order]].clone()
    chosen[:, missing] = fill
    return chosen.flatten(0, 2)


def ratio_major(rows: Tensor, ratios: int, anchors: int) -> Tensor:
    """Bring outputs of anchors that are ordered by size, then ratio, to torchvision's order: by ratio, then size."""
    return rows.unflatten(0, (anchors // ratios, ratios, -1)).transpose(0, 1).flatten(0, 2)
