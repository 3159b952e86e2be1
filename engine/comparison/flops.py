"""FLOPs of a network, including deformable layers."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torchvision.ops  # noqa: F401 - loads its operators
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dcn import BACKENDS, DeformConv2d

# Operations per bilinear sample: 4 multiplications and 3 additions, and 1 multiplication by the mask.
INTERPOLATION, MODULATION = 7, 1


class Flops(NamedTuple):
    """Floating-point operations of one forward pass.

    Attributes:
        total: FLOPs of the whole model.
        parts: FLOPs of its children by name, such as `backbone.body`, `backbone.fpn`, `rpn`, `roi_heads`. Children
            without counted operations are skipped. The sum is the total, minus operations outside of the children.
        deformable: FLOPs of the deformable convolutions, including `conv_offset` of layers that predict offsets.
    """

    total: int
    parts: dict[str, int]
    deformable: int


@torch.inference_mode()
def count_flops(model: nn.Module, images: Sequence[Tensor] | Tensor) -> Flops:
    """Count the FLOPs of one inference pass, by running it; the train or eval mode of the model is restored.

    A multiplication and an addition are 2 FLOPs, as in PyTorch's `FlopCounterMode`. Convolutions and matrix products
    are counted; norms, activations, pooling, RoIAlign, NMS and the sigmoid of masks are not.

    FLOPs of a deformable convolution are the same for all backends. Its product counts as for the plain convolution:
    `2 * B * N * (C / groups) * K * Ho * Wo`. Each of the `B * C * K * Ho * Wo` bilinear samples counts 8 (DCNv1: 7).
    Sampling locations and bilinear weights, shared by all channels of an offset group, are not counted.
    Note: the FLOPs of a box head depend on the number of proposals, and so on the image.

    Args:
        model: a detector or any network.
        images: input on the device of the model: a list of `(channels, H, W)`, or a batch.
    """
    operators = _operators()
    was_training = model.training
    model.eval()
    try:
        with _countable(model), FlopCounterMode(display=False, custom_mapping=operators) as counter:
            model(images)
    finally:
        model.train(was_training)
    counts = counter.get_flop_counts()

    def of(name: str) -> int:
        return sum(counts.get(f"{type(model).__name__}.{name}", {}).values())

    names = [
        f"{name}.{inner}" if inner else name
        for name, child in model.named_children()
        for inner in ([part for part, _ in child.named_children()] if name == "backbone" else [""])
    ]
    predictors = [
        f"{name}.conv_offset".lstrip(".") for name, layer in model.named_modules() if isinstance(layer, DeformConv2d)
    ]
    sampled = sum(flops for operator, flops in counts.get("Global", {}).items() if operator in operators)
    return Flops(
        total=counter.get_total_flops(),
        parts={name: flops for name in names if (flops := of(name))},
        deformable=sampled + sum(map(of, predictors)),
    )


@contextmanager
def _countable(model: nn.Module) -> Iterator[None]:
    """Switch layers of the "reference" backend to "auto", because PyTorch would count its plain operations."""
    layers = [layer for layer in model.modules() if isinstance(layer, DeformConv2d) and layer.backend == "reference"]
    for layer in layers:
        layer.backend = "auto"
    try:
        yield
    finally:
        for layer in layers:
            layer.backend = "reference"


def _operators() -> dict:
    """Return the operators of deformable convolution with their formulas."""
    ours = [getattr(torch.ops.resnet_dcn, f"deform_conv2d_{name}") for name in BACKENDS if name != "reference"]
    return dict.fromkeys(ours, _count_ours) | {torch.ops.torchvision.deform_conv2d: _count_torchvision}


def _count_ours(input, offset, weight, bias, mask, *numbers, out_shape, **_) -> int:
    return deform_conv2d_flops(input, weight, out_shape, modulation=mask is not None)


def _count_torchvision(input, weight, offset, mask, bias, *numbers, out_shape, **_) -> int:
    return deform_conv2d_flops(input, weight, out_shape, modulation=numbers[-1])


def deform_conv2d_flops(
    input_shape: Sequence[int], weight_shape: Sequence[int], output_shape: Sequence[int], *, modulation: bool
) -> int:
    """Count the FLOPs of `dcn.deform_conv2d` from its shapes; see `count_flops`.

    Args:
        input_shape: (B, C, H, W).
        weight_shape: (N, C/groups, kh, kw).
        output_shape: (B, N, Ho, Wo).
        modulation: whether there is a mask.
    """
    _, channels, _, _ = input_shape
    _, group_channels, kh, kw = weight_shape
    batch, _, out_h, out_w = output_shape
    product = 2 * math.prod(output_shape) * group_channels * kh * kw
    sampled = batch * channels * kh * kw * out_h * out_w
    return product + sampled * (INTERPOLATION + modulation * MODULATION)
