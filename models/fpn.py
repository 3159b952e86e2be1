"""Feature pyramid network over a ResNet, https://arxiv.org/abs/1612.03144, from torchvision's parts."""

from collections.abc import Callable, Sequence

from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import ResNet
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from dcn import DeformConv2d

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
    "p6p7_c5": lambda channels, stage_width: _p6p7(stage_width, channels, from_c5=True),
}


def resnet_fpn(
    network: ResNet,
    *,
    levels: Sequence[int] = (2, 3, 4, 5),
    channels: int = 256,
    extra_levels: str = "pool",
) -> BackboneWithFPN:
    """Put an FPN on a ResNet.

    Args:
        network: a ResNet of `models.resnet`; its classifier is dropped, and so are stages above the last level.
        levels: pyramid levels, neighbours in rising order out of 2..5; level l has stride 2**l and comes from C{l}.
        channels: width of the pyramid.
        extra_levels: what comes on top. "pool": the last level, halved once more; "p6p7": two 3x3 convolutions of
            stride 2, P6 from P5 and P7 from P6, as FCOS has them; "p6p7_c5": the same with P6 from C5, as in the paper
            of RetinaNet. The last two follow level 5.

    Returns:
        A module that maps images `(B, 3, H, W)` to an ordered dict of maps `(B, channels, H/2**l, W/2**l)` named
        "p2".."p5", with "pool", or "p6" and "p7", on top, and has `out_channels`. Its ResNet is `body`.

    Raises:
        ValueError: if the levels do not form a pyramid, or leave out a stage that was made deformable, or the extra
            levels do not exist or do not follow the last level.
    """
    check_name("extra levels", extra_levels, list(EXTRA_LEVELS))
    levels = list(levels)
    if not levels or levels != list(range(levels[0], levels[-1] + 1)) or not {*levels} <= {2, 3, 4, 5}:
        raise ValueError(f"`levels` must be neighbours in rising order out of 2, 3, 4, 5, got {levels}")
    if channels < 1:
        raise ValueError(f"`channels` must be at least 1, got {channels}")
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
