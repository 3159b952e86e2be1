"""`replace_convs`: replace the 3x3 convolutions of a ResNet's stages by deformable ones, in place.

Legend: stage s = torchvision's `layer{s}` = C{s+1}, with stride 2**(s+1), s = 1..4.
"""

from collections.abc import Collection, Sequence
from typing import TypeVar

import torch
from torch import nn

from .modules import DeformConv2d

STAGES = (1, 2, 3, 4)
Network = TypeVar("Network", bound=nn.Module)


def replace_convs(
    network: Network,
    stages: Sequence[int] = (2, 3, 4),
    *,
    every: int = 1,
    modulation: bool = True,
    offset_groups: int = 1,
    mask_scale: float = 2.0,
    backend: str = "auto",
) -> Network:
    """Replace the 3x3 convolutions of a ResNet's stages by deformable ones that keep their weights.

    The function replaces `conv2` of each block: the 3x3 convolution of a bottleneck, the second 3x3 convolution of a
    basic block. The stem and the shortcuts are not replaced. With `mask_scale=2` the outputs of the network do not
    change until it is trained. The state-dict keys remain; `layer{s}.{block}.conv2.conv_offset.{weight,bias}` are
    added.

    Args:
        network: A torchvision ResNet, or a network whose stages `layer1`..`layer4` are sequences of blocks with a 3x3
            `conv2`. For a ResNet inside of a detector pass that part, for example `detector.backbone.body`.
        stages: Stages to replace, counted as torchvision's layers: `[2, 3, 4]` = layer2..layer4 = C3..C5, as in the
            paper, https://arxiv.org/abs/1811.11168.
        every: Replace every n-th block of a stage, counted back from the last block, which is always replaced.
        modulation: True for DCNv2, False for DCNv1.
        offset_groups: Number of channel groups with separate offsets.
        mask_scale: `mask = mask_scale * sigmoid(logits)`. With 2 the network starts with the outputs of the plain one.
        backend: A name in `dcn.BACKENDS`, or "auto".

    Returns:
        The same network.

    Raises:
        ValueError: If a stage does not exist or a convolution cannot be replaced. The network is unchanged then.

    Example:
        ```python
        network = dcn.replace_convs(torchvision.models.resnet50(weights="DEFAULT"), [2, 3, 4])
        ```
    """
    check_stages(stages)
    check_every(every)
    blocks = {name: block for stage in stages for name, block in _chosen_blocks(network, stage, every)}
    for name, block in blocks.items():
        _check_conv(f"{name}.conv2", getattr(block, "conv2", None))
    # New layers draw random numbers that are not used. The forked state keeps the initial values of modules that are
    # built later equal to those next to a plain network.
    with torch.random.fork_rng(devices=[]):
        layers = {
            name: DeformConv2d.from_conv(
                block.conv2,
                offset_groups=offset_groups,
                modulation=modulation,
                mask_scale=mask_scale,
                backend=backend,
            ).train(block.conv2.training)
            for name, block in blocks.items()
        }
    for name, layer in layers.items():
        blocks[name].conv2 = layer
    return network


def check_stages(stages: Sequence[int], option: str = "stages") -> None:
    """Raise `ValueError` unless `stages` are distinct stages of a ResNet; the message explains how they are counted."""
    if not isinstance(stages, Collection):
        raise ValueError(f"`{option}` must be a list of stages, as in [2, 3, 4], got {stages!r}")
    wrong = [stage for stage in stages if stage not in STAGES or isinstance(stage, bool)]
    if wrong:
        raise ValueError(
            f"`{option}` must contain only 1, 2, 3 or 4, got {list(stages)}: {wrong[0]} is not a valid stage. Stages "
            "count torchvision's layers: 1..4 = layer1..layer4 = C2..C5. For res3..res5 or [3, 4, 5] in other "
            "frameworks, and for [1, 2, 3] in PaddleDetection 2, write [2, 3, 4]"
        )
    if len(set(stages)) < len(stages):
        raise ValueError(f"`{option}` must contain each stage once, got {list(stages)}")


def check_every(every: int, option: str = "every") -> None:
    """Raise `ValueError` unless `every` is a positive number of blocks."""
    if every < 1:
        raise ValueError(f"`{option}` must be at least 1 (every block of a deformable stage), got {every}")


def _chosen_blocks(network: nn.Module, stage: int, every: int) -> list[tuple[str, nn.Module]]:
    """Return every n-th block of a stage, counted back from the last one, with its name in the network."""
    layer = getattr(network, f"layer{stage}", None)
    if not isinstance(layer, nn.Module):
        raise ValueError(
            f"`network` must be a ResNet with layer1..layer4, got {type(network).__name__} without layer{stage}; for "
            "a ResNet inside of another network pass that part, for example detector.backbone.body"
        )
    blocks = [(f"layer{stage}.{name}", block) for name, block in layer.named_children()]
    if not blocks:
        raise ValueError(f"layer{stage} must be a sequence of blocks, got {type(layer).__name__} without any")
    return blocks[::-1][::every][::-1]


def _check_conv(name: str, conv: nn.Module | None) -> None:
    """Raise `ValueError` unless a module is a plain 3x3 convolution."""
    if isinstance(conv, DeformConv2d):
        raise ValueError(f"{name} is deformable already: replace the convolutions of a stage once")
    # A subclass may compute something different, which the deformable layer would not.
    if type(conv) is not nn.Conv2d or conv.kernel_size != (3, 3):
        got = "nothing" if conv is None else f"{type(conv).__name__}({conv.extra_repr()})"
        raise ValueError(f"{name} must be a 3x3 nn.Conv2d to be made deformable, got {got}")
