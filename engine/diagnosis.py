"""What to say of a step that is not finite."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcn import DeformConv2d


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
    found: list[LargestOffset] = []
    was_training = model.training
    model.eval()  # no targets, no statistics, no exchange with other processes
    try:
        with _watched(model, found):
            model(images)
    except Exception:
        pass  # nothing has to work with what is not finite; what was seen before it failed counts
    finally:
        model.train(was_training)
    return max(found, default=None)


@contextmanager
def _watched(model: nn.Module, found: list[LargestOffset]) -> Iterator[None]:
    """Note the largest offset of each deformable layer that runs within this context."""

    def note(layer: DeformConv2d, name: str, predicted: Tensor) -> None:
        largest = predicted[:, : layer.offset_channels].abs().max().item()
        found.append(LargestOffset(math.inf if math.isnan(largest) else largest, name))

    hooks = [
        layer.conv_offset.register_forward_hook(
            lambda module, arguments, predicted, layer=layer, name=name: note(layer, name, predicted)
        )
        for name, layer in model.named_modules()
        if isinstance(layer, DeformConv2d)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
