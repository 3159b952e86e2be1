"""torchvision's ResNets and their vd variants with the 3x3 convolutions of chosen stages made deformable.

Legend: stage s = torchvision's `layer{s}` = C{s+1}, with stride 2**(s+1), s = 1..4.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Annotated, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision.models import get_model
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d

from dcn import DeformConv2d, replace_convs
from dcn.replace import STAGES, check_every, check_stages

from .options import OldName

VD = "_vd"
_TORCHVISION = (
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
)
RESNETS = (*_TORCHVISION, *(name + VD for name in _TORCHVISION))
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen_bn": FrozenBatchNorm2d,
    "bn": nn.BatchNorm2d,
    "sync_bn": nn.SyncBatchNorm,
    "gn": partial(nn.GroupNorm, 32),
}
ActivationCheckpointing = Annotated[bool, OldName("recompute_dcn_stages")]
BATCH_NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class ReplacedConvs(NamedTuple):
    """Deformable convolutions of one stage, or of a head, which has no stride of its own: a row shown at start-up."""

    layer: str
    level: str
    stride: int | None
    count: int
    parameters_added: int


def resnet(
    name: str = "resnet50",
    *,
    dcn_v2_stages: Sequence[int] = (),
    dcn_every: int = 1,
    modulation: bool = True,
    offset_groups: int = 1,
    mask_scale: float = 2.0,
    stride_in_1x1: bool = False,
    frozen_stages: int = -1,
    norm: str = "frozen_bn",
    dcn_backend: str = "auto",
    activation_checkpointing: ActivationCheckpointing = False,
) -> ResNet:
    """Build a ResNet whose chosen stages have deformable 3x3 convolutions, see `dcn.replace_convs`.

    The state-dict keys stay torchvision's, plus `layer{s}.{block}.conv2.conv_offset.{weight,bias}`.

    A name with "_vd" is a ResNet-D, https://arxiv.org/abs/1812.01187, as PaddleDetection has it. Three 3x3 convolutions
    of 32, 32 and 64 channels stand in place of the stem's 7x7, the first with stride 2, each with a norm and ReLU. The
    first shortcut of stages 2..4 averages 2x2 pixels before a 1x1 convolution of stride 1. In stage 1 nothing is
    averaged, but that of a basic block has a 1x1 convolution too, which torchvision's has not. Stem and shortcuts have
    the keys of timm's "resnet50d": `conv1.{0,3,6}` are the convolutions of the stem, `conv1.{1,4}` and `bn1` its norms;
    `layer{s}.0.downsample.1` is the convolution of a shortcut and `.2` its norm.

    Args:
        name: one of `RESNETS`.
        dcn_v2_stages: stages to make deformable, counted as torchvision's layers: `[2, 3, 4]` = layer2..layer4 =
            C3..C5, the choice of the paper. Where there are none, the options about them change nothing.
        dcn_every: which blocks of such a stage are: every so many, counted back from the last, which always is.
        modulation: True for DCNv2, False for DCNv1.
        offset_groups: channel groups with offsets of their own.
        mask_scale: `mask = mask_scale * sigmoid(logits)`; 2 makes the network start as the plain one.
        stride_in_1x1: whether bottlenecks have their stride in the first 1x1 convolution, as the first ResNets had,
            https://arxiv.org/abs/1512.03385, and weights that stem from Caffe and MSRA (detectron2) expect, instead of
            in the 3x3.
        frozen_stages: -1 trains everything, 0 freezes the stem, s freezes the stem and stages 1..s.
        norm: one of `NORMS`. In frozen stages it is "frozen_bn" in place of "bn" and "sync_bn". The statistics of
            "sync_bn" are those of all processes; where there are several, PyTorch has it for GPUs only.
        dcn_backend: a name in `dcn.BACKENDS`, or "auto".
        activation_checkpointing: whether the blocks of the deformable stages keep only their input and are computed
            again in the backward pass: less memory for more time, and the same gradients.

    Raises:
        ValueError: if a name is unknown, a stage does not exist, or an option does not fit the network.
    """
    check_name("backbone", name, RESNETS)
    check_name("norm", norm, NORMS)
    check_stages(dcn_v2_stages, "dcn_v2_stages")
    check_every(dcn_every, "dcn_every")
    if frozen_stages not in (-1, 0, *STAGES):
        raise ValueError(f"`frozen_stages` must be -1 (none), 0 (stem) or 1..4 (stem and stages), got {frozen_stages}")
    network = get_model(name.removesuffix(VD), weights=None, norm_layer=NORMS[norm])
    if name.endswith(VD):
        _make_vd(network, NORMS[norm])
    if stride_in_1x1:
        _move_strides(network, name)
    # The weights are drawn by now, so the zeros of `conv_offset` are not overwritten by torchvision's initialisation.
    replace_convs(
        network,
        dcn_v2_stages,
        every=dcn_every,
        offset_groups=offset_groups,
        modulation=modulation,
        mask_scale=mask_scale,
        backend=dcn_backend,
    )
    if frozen_stages >= 0:
        for part in ["conv1", "bn1", *(f"layer{stage}" for stage in STAGES[:frozen_stages])]:
            setattr(network, part, _freeze(getattr(network, part)))
    if activation_checkpointing:
        for stage in dcn_v2_stages:
            setattr(network, f"layer{stage}", _RecomputedStage(*getattr(network, f"layer{stage}")))
    return network


def stage_channels(network: ResNet) -> dict[int, int]:
    """Channels that each stage gives out, by stage."""
    return {stage: network.fc.in_features // 2 ** (4 - stage) for stage in STAGES}


def replaced_convs(network: nn.Module) -> list[ReplacedConvs]:
    """Count what is deformable in a network that holds a ResNet, stage by stage, and last in its head."""
    convs: dict[str, list[DeformConv2d]] = {f"layer{stage}": [] for stage in STAGES} | {"head": []}
    for name, module in network.named_modules():
        if isinstance(module, DeformConv2d):
            convs[next((part for part in name.split(".") if part in convs), "head")].append(module)
    levels = {f"layer{stage}": (f"C{stage + 1}", 2 ** (stage + 1)) for stage in STAGES} | {"head": ("all", None)}
    return [
        ReplacedConvs(
            layer, *levels[layer], len(found), sum(p.numel() for c in found for p in c.conv_offset.parameters())
        )
        for layer, found in convs.items()
        if found
    ]


def check_name(kind: str, name: str, known: Collection[str]) -> None:
    """Raise `ValueError` that lists the known names unless `name` is one."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}, known: {', '.join(known)}")


def _make_vd(network: ResNet, norm: Callable[[int], nn.Module]) -> None:
    """Give a plain ResNet the stem and the shortcuts of a ResNet-D, with weights drawn as torchvision draws."""
    stem = []
    for inputs, outputs, stride in ((3, 32, 2), (32, 32, 1)):
        stem += [_drawn_conv(inputs, outputs, 3, stride), norm(outputs), nn.ReLU(inplace=True)]
    network.conv1 = nn.Sequential(*stem, _drawn_conv(32, 64, 3))
    for stage in STAGES:
        block = getattr(network, f"layer{stage}")[0]
        inputs = block.conv1.in_channels
        outputs = inputs if block.downsample is None else block.downsample[0].out_channels
        pool = nn.Identity() if stage == 1 else nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)
        block.downsample = nn.Sequential(pool, _drawn_conv(inputs, outputs, 1), norm(outputs))


def _drawn_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _move_strides(network: ResNet, name: str) -> None:
    """Move the strides of bottlenecks from their 3x3 to their first 1x1 convolution."""
    blocks = [block for stage in STAGES for block in getattr(network, f"layer{stage}")]
    if not all(isinstance(block, Bottleneck) for block in blocks):
        raise ValueError(f"`stride_in_1x1` needs bottlenecks, which {name} has not: take a resnet50 or deeper")
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _freeze(module: nn.Module) -> nn.Module:
    """Stop the training of a module, statistics of its batch norms included."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    if isinstance(module, BATCH_NORMS):
        frozen = FrozenBatchNorm2d(module.num_features, module.eps)
        frozen.load_state_dict(module.state_dict())
        return frozen
    for name, child in module.named_children():
        setattr(module, name, _freeze(child))
    return module


class _RecomputedStage(nn.Sequential):
    """A stage whose blocks are computed again in the backward pass, https://arxiv.org/abs/1604.06174."""

    def forward(self, x: Tensor) -> Tensor:
        """Pass `x` through the blocks; outside of training as any sequence does."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        for block in self:
            if torch.compiler.is_compiling():  # the compiler keeps count of buffers itself, and knows no `context_fn`
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = _recomputed(block, x)
        return x


@torch.compiler.disable  # of a block that cannot be compiled in one piece, this is what is left
def _recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """Compute a block now and again in the backward pass; there is nothing random in it."""
    return checkpoint(
        block,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _copied_statistics(block)),
    )


@contextmanager
def _copied_statistics(block: nn.Module) -> Iterator[None]:
    """Let batch norms update copies of their statistics, which have counted this batch already."""
    norms = [module for module in block.modules() if isinstance(module, BATCH_NORMS)]
    buffers = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in buffers:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in buffers:
            setattr(norm, name, buffer)
