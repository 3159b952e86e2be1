"""What to say of a step that is not finite."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .capture import capture_sampling


class LargestOffset(NamedTuple):
    """The deformable layer that reaches farthest, and how far, in pixels of its map; infinite for NaN too."""

    pixels: float
    layer: str


@torch.no_grad()
def largest_offset(model: nn.Module, images: list[Tensor]) -> LargestOffset | None:
    """Find the deformable layer whose offsets on some images are the largest.

    Args:
        model: a detector; it is left in the mode it was in.
        images: `(3, H, W)` in [0, 1].

    Returns:
        None without deformable layers, or where the detector cannot be run on the images at all.
    """
    was_training = model.training
    model.eval()  # no targets, no statistics, no exchange with other processes
    try:
        with capture_sampling(model) as seen:
            model(images)
    except Exception:
        pass  # nothing has to work with what is not finite; what was seen before it failed counts
    finally:
        model.train(was_training)
    found = {
        name: torch.stack([one.offset.abs().max() for one in sampling.maps]).max().item()
        for name, sampling in seen.items()
    }
    return max((LargestOffset(math.inf if math.isnan(v) else v, name) for name, v in found.items()), default=None)
