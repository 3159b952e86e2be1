"""Feature pyramid network over a ResNet, https://arxiv.org/abs/1612.03144, from torchvision's parts."""

from collections.abc import Sequence

from torch import nn
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.resnet import ResNet
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from dcn import DeformConv2d

from .resnet import stage_channels


def resnet_fpn(network: ResNet, *, levels: Sequence[int] = (2, 3, 4, 5), channels: int = 256) -> BackboneWithFPN:
    """Put an FPN on a ResNet.

    Args:
        network: a ResNet of `models.resnet`; its classifier is dropped, and so are stages above the last level.
        levels: pyramid levels, neighbours in rising order out of 2..5; level l has stride 2**l and comes from C{l}.
        channels: width of the pyramid.

    Returns:
        A module that maps images `(B, 3, H, W)` to an ordered dict of maps `(B, channels, H/2**l, W/2**l)` named
        "p2".."p5", with "pool" on top (the last level halved once more), and has `out_channels`. Its ResNet is `body`.

    Raises:
        ValueError: if the levels do not form a pyramid, or leave out a stage that was made deformable.
    """
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
    widths = stage_channels(network)
    return BackboneWithFPN(
        network,
        return_layers={f"layer{level - 1}": f"p{level}" for level in levels},
        in_channels_list=[widths[level - 1] for level in levels],
        out_channels=channels,
        extra_blocks=LastLevelMaxPool(),
    )


def level_names(pyramid: nn.Module) -> list[str]:
    """Names of the maps that a pyramid of `resnet_fpn` takes from the ResNet, without "pool"."""
    return list(pyramid.body.return_layers.values())
