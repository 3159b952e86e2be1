"""Sees what the deformable layers of a network predict while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dcn import DeformConv2d

_BACKBONE = "backbone.body."


class SamplingRecord(NamedTuple):
    """Where and how strongly a deformable layer sampled its input.

    Attributes:
        offset: `(B, 2*G*K, Ho, Wo)` in pixels of the layer's input, per group and point (dy, dx) interleaved; float32
            or float64.
        mask: `(B, G*K, Ho, Wo)`, None for DCNv1.
        input_size: height and width of the layer's input.
        more: of a layer outside the ResNet that runs on several maps: the same on the maps after the first.
    """

    offset: Tensor
    mask: Tensor | None
    input_size: tuple[int, int]
    more: tuple["SamplingRecord", ...] = ()

    @property
    def maps(self) -> tuple["SamplingRecord", ...]:
        """What the layer did on each map, from the first."""
        return self, *self.more


def deformable_layers(model: nn.Module) -> dict[str, DeformConv2d]:
    """The deformable layers of a network in the order of its modules, by names as short as `layer3.0.conv2`."""
    return {
        name.removeprefix(_BACKBONE): module
        for name, module in model.named_modules()
        if isinstance(module, DeformConv2d)
    }


@contextmanager
def capture_sampling(model: nn.Module) -> Iterator[dict[str, SamplingRecord]]:
    """Within this context each deformable layer that runs notes what it predicted, by its name, detached.

    What a layer did in the last pass through the model counts; one outside the ResNet may run on several maps in it. A
    layer that `torch.compile` has taken in is run eagerly meanwhile, since compiled code does not see the hooks.
    """
    seen: dict[str, SamplingRecord] = {}
    in_body = {name.removeprefix(_BACKBONE) for name, _ in model.named_modules() if name.startswith(_BACKBONE)}

    def note(name: str, layer: DeformConv2d, input: Tensor, predicted: Tensor) -> None:
        offset, mask = layer.split_prediction(predicted.detach())
        found = SamplingRecord(offset, mask, tuple(input.shape[-2:]))
        # those of the ResNet have one map, even where they run again to be recomputed
        if name not in in_body and name in seen:
            found = seen[name]._replace(more=(*seen[name].more, found))
        seen[name] = found

    hooks = [
        layer.conv_offset.register_forward_hook(
            lambda _, arguments, predicted, name=name, layer=layer: note(name, layer, arguments[0], predicted)
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
