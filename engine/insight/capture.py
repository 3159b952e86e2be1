"""Captures the offsets and masks of deformable layers during a forward pass."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcn import DeformConv2d

_BACKBONE = "backbone.body."


class SamplingRecord(NamedTuple):
    """Offsets and mask of a deformable layer in a forward pass.

    Attributes:
        offset: `(B, 2*G*K, Ho, Wo)` in pixels of the layer's input, float32 or float64. (dy, dx) of each group and
            kernel point are interleaved.
        mask: `(B, G*K, Ho, Wo)`; None for DCNv1.
        input_size: height and width of the layer's input.
        more: records of the second and further feature maps, if a layer outside the ResNet runs on several.
    """

    offset: Tensor
    mask: Tensor | None
    input_size: tuple[int, int]
    more: tuple["SamplingRecord", ...] = ()

    @property
    def maps(self) -> tuple["SamplingRecord", ...]:
        """The record of each feature map, in the order in which they ran."""
        return self, *self.more


def deformable_layers(model: nn.Module) -> dict[str, DeformConv2d]:
    """Return the deformable layers of a network in module order, by short names such as `layer3.0.conv2`."""
    return {
        name.removeprefix(_BACKBONE): module
        for name, module in model.named_modules()
        if isinstance(module, DeformConv2d)
    }


@contextmanager
def capture_sampling(model: nn.Module) -> Iterator[dict[str, SamplingRecord]]:
    """Context in which forward passes fill the yielded dict: layer name -> detached `SamplingRecord`.

    The dict holds the last forward pass. A layer outside the ResNet may run on several feature maps in one pass.
    Modules compiled by `torch.compile` run eagerly in this context, because compiled code does not call the hooks.
    """
    seen: dict[str, SamplingRecord] = {}
    in_body = {name.removeprefix(_BACKBONE) for name, _ in model.named_modules() if name.startswith(_BACKBONE)}

    def record(name: str, layer: DeformConv2d, input: Tensor, predicted: Tensor) -> None:
        offset, mask = layer.split_prediction(predicted.detach())
        found = SamplingRecord(offset, mask, tuple(input.shape[-2:]))
        # layers of the ResNet have one map; activation checkpointing runs them twice
        if name not in in_body and name in seen:
            found = seen[name]._replace(more=(*seen[name].more, found))
        seen[name] = found

    hooks = [
        layer.conv_offset.register_forward_hook(
            lambda _, arguments, predicted, name=name, layer=layer: record(name, layer, arguments[0], predicted)
        )
        for name, layer in deformable_layers(model).items()
    ]
    hooks.append(model.register_forward_pre_hook(lambda *_: seen.clear()))
    try:
        with torch.compiler.set_stance("force_eager"):
            yield seen
    finally:
        for hook in hooks:
            hook.remove()
