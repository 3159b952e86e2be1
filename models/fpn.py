"""Feature pyramid network on a ResNet, https://arxiv.org/abs/1612.03144, built from torchvision's parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import ResNet
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from dcn import DeformConv2d

from .options import Affects, Bounds, Channels, Choices, OldName, OldValue
from .resnet import check_name, stage_channels

P6P7 = ("p6", "p7")
MAX_LEVELS = 6  # P2..P7


def _p6p7(in_channels: int, channels: int, *, from_c5: bool) -> LastLevelP6P7:
    block = LastLevelP6P7(in_channels, channels)
    block.use_P5 = not from_c5  # torchvision compares the numbers of channels, which may be equal
    return block


# extra levels by name; arguments are the channels of the pyramid and of the last stage
EXTRA_LEVELS: dict[str, Callable[[int, int], ExtraFPNBlock]] = {
    "pool": lambda channels, stage_width: LastLevelMaxPool(),
    "p6p7": lambda channels, stage_width: _p6p7(channels, channels, from_c5=False),
    "p6p7_from_c5": lambda channels, stage_width: _p6p7(stage_width, channels, from_c5=True),
}


@dataclass(frozen=True)
class FpnOptions:
    """Feature pyramid."""

    levels: Annotated[list[Annotated[int, Bounds(ge=2, le=5)]], Bounds(min_length=1, max_length=4), Affects.NETWORK] = (
        field(default_factory=lambda: [2, 3, 4, 5])
    )
    """Levels built from the backbone, P2..P5."""
    out_channels: Annotated[Channels, Affects.NETWORK, OldName("channels")] = 256
    """Number of channels of every level."""
    extra_levels: Annotated[str, Choices(EXTRA_LEVELS), Affects.MEANING, OldValue("p6p7_c5", "p6p7_from_c5")] = "pool"
    """Extra levels on top: pool (the last level, downsampled by 2), p6p7 (two convolutions of stride 2, the first on
    P5), or p6p7_from_c5 (the first on C5)."""


def resnet_fpn(network: ResNet, options: FpnOptions) -> BackboneWithFPN:
    """Build an FPN on a ResNet.

    Level l has stride 2**l and comes from C{l}. "p6p7" adds P6 and P7 as in FCOS, "p6p7_from_c5" as in the paper of
    RetinaNet; both follow level 5.

    Args:
        network: A ResNet of `models.resnet`. The classifier and the stages above the last level are removed.
        options: Options of the pyramid; the levels must be consecutive and ascending.

    Returns:
        A module that maps images `(B, 3, H, W)` to an ordered dict of maps `(B, out_channels, H/2**l, W/2**l)` named
            "p2".."p5", followed by "pool", or by "p6" and "p7". It has the attributes `out_channels` and `body`, the
            ResNet.

    Raises:
        ValueError: If the levels are not consecutive or exclude a deformable stage, or if the extra levels are unknown
            or do not follow level 5.
    """
    levels, channels, extra_levels = [*options.levels], options.out_channels, options.extra_levels
    check_name("extra levels", extra_levels, list(EXTRA_LEVELS))
    if not levels or levels != list(range(levels[0], levels[-1] + 1)) or not {*levels} <= {2, 3, 4, 5}:
        raise ValueError(f"`levels` must be consecutive, ascending and from 2 to 5, got {levels}")
    if channels < 1:
        raise ValueError(f"`out_channels` must be at least 1, got {channels}")
    for stage in range(levels[-1], 5):
        if any(isinstance(module, DeformConv2d) for module in getattr(network, f"layer{stage}").modules()):
            raise ValueError(
                f"`levels` must include {stage + 1}, because `dcn_v2_stages` contains stage {stage} (C{stage + 1}), "
                f"got {levels}"
            )
    if extra_levels != "pool" and levels[-1] != 5:
        raise ValueError(
            f"`levels` must end with 5 for `extra_levels` {extra_levels}, which adds P6 and P7, got {levels}; "
            "`extra_levels` pool allows any levels"
        )
    widths = stage_channels(network)
    return BackboneWithFPN(
        network,
        return_layers={f"layer{level - 1}": f"p{level}" for level in levels},
        in_channels_list=[widths[level - 1] for level in levels],
        out_channels=channels,
        extra_blocks=EXTRA_LEVELS[extra_levels](channels, widths[levels[-1] - 1]),
    )


def level_names(pyramid: nn.Module) -> list[str]:
    """Return the names of the levels that a pyramid of `resnet_fpn` builds from the ResNet, without extra levels."""
    return list(pyramid.body.return_layers.values())


def map_strides(pyramid: nn.Module) -> dict[str, int]:
    """Return the strides of all levels of a pyramid of `resnet_fpn` by name, from the finest to the coarsest."""
    names = [*level_names(pyramid), *(["pool"] if isinstance(pyramid.fpn.extra_blocks, LastLevelMaxPool) else P6P7)]
    finest = int(names[0].removeprefix("p"))
    return {name: 2 ** (finest + index) for index, name in enumerate(names)}


def check_anchor_sizes(pyramid: nn.Module, anchor_sizes: Sequence[int]) -> None:
    """Raise `ValueError` unless there is one anchor size for each level of a pyramid of `resnet_fpn`."""
    maps = [*map_strides(pyramid)]
    if len(anchor_sizes) != len(maps):
        raise ValueError(
            f"`anchor_sizes` must have one size for each of the {len(maps)} levels {', '.join(maps)}, "
            f"got {len(anchor_sizes)}: {list(anchor_sizes)}"
        )
