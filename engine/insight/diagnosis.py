"""Diagnosis of a step that is not finite."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .capture import capture_sampling


class LargestOffset(NamedTuple):
    """The largest |dy| or |dx| of a model in pixels of the layer's map (infinite for NaN), and its layer."""

    pixels: float
    layer: str


@torch.no_grad()
def largest_offset(model: nn.Module, images: list[Tensor]) -> LargestOffset | None:
    """Find the largest offset of a detector on some images.

    Args:
        model: detector; its train or eval mode is restored.
        images: `(3, H, W)` in [0, 1].

    Returns:
        The offset, or None if the model has no deformable layer or none of them ran.
    """
    was_training = model.training
    model.eval()  # needs no targets, updates no statistics, starts no collective call
    try:
        with capture_sampling(model) as seen:
            model(images)
    except Exception:
        pass  # weights that are not finite may raise anywhere; the layers that ran before are recorded
    finally:
        model.train(was_training)
    found = {
        name: torch.stack([one.offset.abs().max() for one in sampling.maps]).max().item()
        for name, sampling in seen.items()
    }
    return max((LargestOffset(math.inf if math.isnan(v) else v, name) for name, v in found.items()), default=None)
