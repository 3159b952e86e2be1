"""The 3x3 convolutions of a ResNet's stages made deformable, in place.

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
    """Make the 3x3 convolutions of a ResNet's stages deformable, with the weights that they have.

    Replaced is `conv2` of a stage's blocks: the 3x3 of a bottleneck, the second 3x3 of a basic block; never the stem
    and never a shortcut. With `mask_scale=2` the network computes the same as before until it is trained. Its
    state-dict keys stay, and `layer{s}.{block}.conv2.conv_offset.{weight,bias}` are new.

    Args:
        network: a ResNet of torchvision, or another one whose stages `layer1`..`layer4` are sequences of blocks with a
            3x3 `conv2`; for one inside a detector, give that part: `detector.backbone.body`.
        stages: stages to make deformable, counted as torchvision's layers: `[2, 3, 4]` = layer2..layer4 = C3..C5, the
            choice of the paper, https://arxiv.org/abs/1811.11168.
        every: which blocks of such a stage are replaced: every so many, counted back from the last, which always is.
        modulation: True for DCNv2, False for DCNv1.
        offset_groups: channel groups with offsets of their own.
        mask_scale: `mask = mask_scale * sigmoid(logits)`; 2 makes the network start as the plain one.
        backend: a name in `dcn.BACKENDS`, or "auto".

    Returns:
        The network itself.

    Raises:
        ValueError: if a stage does not exist, or a convolution cannot be replaced; nothing has been then.
    """
    check_stages(stages)
    check_every(every)
    blocks = {name: block for stage in stages for name, block in _chosen_blocks(network, stage, every)}
    for name, block in blocks.items():
        _check_conv(f"{name}.conv2", getattr(block, "conv2", None))
    # New layers draw random numbers that are not used: apart from the global state, so that what is built next starts
    # as it does beside a plain network.
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
    """Raise `ValueError` unless `stages` are different stages of a ResNet, and say how others count them."""
    if not isinstance(stages, Collection):
        raise ValueError(f"`{option}` must be a list of stages, as in [2, 3, 4], got {stages!r}")
    wrong = [stage for stage in stages if stage not in STAGES or isinstance(stage, bool)]
    if wrong:
        raise ValueError(
            f"`{option}` must be stages out of 1, 2, 3, 4, got {list(stages)}: {wrong[0]} is none. Stages count "
            "torchvision's layers: 1..4 = layer1..layer4 = C2..C5. Where other frameworks say res3..res5 or [3, 4, 5], "
            "and PaddleDetection 2 says [1, 2, 3], write [2, 3, 4]"
        )
    if len(set(stages)) < len(stages):
        raise ValueError(f"`{option}` must name each stage once, got {list(stages)}")


def check_every(every: int, option: str = "every") -> None:
    """Raise `ValueError` unless `every` counts blocks."""
    if every < 1:
        raise ValueError(f"`{option}` must be at least 1 (every block of a deformable stage), got {every}")


def _chosen_blocks(network: nn.Module, stage: int, every: int) -> list[tuple[str, nn.Module]]:
    """Every so many blocks of a stage, counted back from the last, under their names in the network."""
    layer = getattr(network, f"layer{stage}", None)
    if not isinstance(layer, nn.Module):
        raise ValueError(
            f"`network` must be a ResNet with layer1..layer4, got {type(network).__name__} without layer{stage}; for "
            "a ResNet inside another network give that part, as in detector.backbone.body"
        )
    blocks = [(f"layer{stage}.{name}", block) for name, block in layer.named_children()]
    if not blocks:
        raise ValueError(f"layer{stage} must be a sequence of blocks, got {type(layer).__name__} without any")
    return blocks[::-1][::every][::-1]


def _check_conv(name: str, conv: nn.Module | None) -> None:
    """Raise `ValueError` unless a module is a plain 3x3 convolution."""
    if isinstance(conv, DeformConv2d):
        raise ValueError(f"{name} is deformable already: replace the convolutions of a stage once")
    # A subclass computes something else, which its deformable twin would not.
    if type(conv) is not nn.Conv2d or conv.kernel_size != (3, 3):
        got = "nothing" if conv is None else f"{type(conv).__name__}({conv.extra_repr()})"
        raise ValueError(f"{name} must be a 3x3 nn.Conv2d to be made deformable, got {got}")
