"""Feature pyramid network over a ResNet, https://arxiv.org/abs/1612.03144, from torchvision's parts."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import ResNet
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from dcn import DeformConv2d

from .options import Affects, Bounds, Choices, OldName, OldValue, PositiveInt
from .resnet import check_name, stage_channels

P6P7 = ("p6", "p7")


def _p6p7(in_channels: int, channels: int, *, from_c5: bool) -> LastLevelP6P7:
    block = LastLevelP6P7(in_channels, channels)
    block.use_P5 = not from_c5  # torchvision tells by the widths, which may be the same
    return block


# what comes on top of a pyramid, by its width and that of the last stage
EXTRA_LEVELS: dict[str, Callable[[int, int], ExtraFPNBlock]] = {
    "pool": lambda channels, stage_width: LastLevelMaxPool(),
    "p6p7": lambda channels, stage_width: _p6p7(channels, channels, from_c5=False),
    "p6p7_from_c5": lambda channels, stage_width: _p6p7(stage_width, channels, from_c5=True),
}


@dataclass(frozen=True)
class FpnOptions:
    """Feature pyramid."""

    levels: Annotated[list[Annotated[int, Bounds(ge=2, le=5)]], Affects.NETWORK] = field(
        default_factory=lambda: [2, 3, 4, 5]
    )
    """Levels taken from the backbone, P2..P5."""
    out_channels: Annotated[PositiveInt, Affects.NETWORK, OldName("channels")] = 256
    """Width of the pyramid."""
    extra_levels: Annotated[str, Choices(EXTRA_LEVELS), Affects.MEANING, OldValue("p6p7_c5", "p6p7_from_c5")] = "pool"
    """What comes on top of them: pool (the last one, halved once more), p6p7 (two convolutions of stride 2, the first
    from P5), or p6p7_from_c5 (the first from C5)."""


def resnet_fpn(network: ResNet, options: FpnOptions) -> BackboneWithFPN:
    """Put an FPN on a ResNet.

    Level l has stride 2**l and comes from C{l}. "p6p7" adds P6 and P7 as in FCOS, "p6p7_from_c5" as in the paper of
    RetinaNet; both follow level 5.

    Args:
        network: a ResNet of `models.resnet`; its classifier is dropped, and so are stages above the last level.
        options: of the pyramid; its levels are neighbours in rising order.

    Returns:
        A module that maps images `(B, 3, H, W)` to an ordered dict of maps `(B, out_channels, H/2**l, W/2**l)` named
        "p2".."p5", with "pool", or "p6" and "p7", on top, and has `out_channels`. Its ResNet is `body`.

    Raises:
        ValueError: if the levels do not form a pyramid, or leave out a stage that was made deformable, or the extra
            levels do not exist or do not follow the last level.
    """
    levels, channels, extra_levels = [*options.levels], options.out_channels, options.extra_levels
    check_name("extra levels", extra_levels, list(EXTRA_LEVELS))
    if not levels or levels != list(range(levels[0], levels[-1] + 1)) or not {*levels} <= {2, 3, 4, 5}:
        raise ValueError(f"`levels` must be neighbours in rising order out of 2, 3, 4, 5, got {levels}")
    if channels < 1:
        raise ValueError(f"`out_channels` must be at least 1, got {channels}")
    for stage in range(levels[-1], 5):
        if any(isinstance(module, DeformConv2d) for module in getattr(network, f"layer{stage}").modules()):
            raise ValueError(
                f"`levels` {levels} leave out stage {stage} (C{stage + 1}), which `dcn_v2_stages` makes deformable"
            )
    if extra_levels != "pool" and levels[-1] != 5:
        raise ValueError(
            f"`extra_levels` {extra_levels} adds P6 and P7, so that `levels` must end with 5, got {levels}; pool goes "
            "with any"
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
    """Names of the maps that a pyramid of `resnet_fpn` takes from the ResNet, without those on top of them."""
    return list(pyramid.body.return_layers.values())


def map_strides(pyramid: nn.Module) -> dict[str, int]:
    """Strides of all maps of a pyramid of `resnet_fpn`, by their names, from the finest to the coarsest."""
    names = [*level_names(pyramid), *(["pool"] if isinstance(pyramid.fpn.extra_blocks, LastLevelMaxPool) else P6P7)]
    finest = int(names[0].removeprefix("p"))
    return {name: 2 ** (finest + index) for index, name in enumerate(names)}


def check_anchor_sizes(pyramid: nn.Module, anchor_sizes: Sequence[int]) -> None:
    """Raise `ValueError` unless there is an anchor size for each map of a pyramid of `resnet_fpn`."""
    maps = [*map_strides(pyramid)]
    if len(anchor_sizes) != len(maps):
        raise ValueError(
            f"`anchor_sizes` must give one size for each of the {len(maps)} maps {', '.join(maps)}, "
            f"got {len(anchor_sizes)}: {list(anchor_sizes)}"
        )
