"""torchvision's ResNets and their vd variants with deformable 3x3 convolutions in selected stages.

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
    """Deformable convolutions of one stage or of a head: one row of the table at the start of training.

    Attributes:
        layer: "layer1".."layer4", or "head".
        level: Pyramid level, "C2".."C5"; "all" for a head.
        stride: Stride of the stage; None for a head.
        count: Number of deformable convolutions.
        parameters_added: Number of parameters that predict offsets and masks.
    """

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
    in_channels: int = 3,
) -> ResNet:
    """Build a ResNet with deformable 3x3 convolutions in selected stages, see `dcn.replace_convs`.

    The state-dict keys are torchvision's; `layer{s}.{block}.conv2.conv_offset.{weight,bias}` are added.

    A name with "_vd" is a ResNet-D, https://arxiv.org/abs/1812.01187, in the form of PaddleDetection. Its stem has
    three 3x3 convolutions with 32, 32 and 64 channels instead of a 7x7 convolution, the first with stride 2, each
    followed by a norm and a ReLU. In stages 2 to 4 the first shortcut averages 2x2 pixels before a 1x1 convolution of
    stride 1. In stage 1 the first shortcut has only the 1x1 convolution, also in basic blocks, where torchvision has no
    convolution. The keys are those of timm's "resnet50d": `conv1.{0,3,6}` are the convolutions of the stem,
    `conv1.{1,4}` and `bn1` its norms, `layer{s}.0.downsample.1` is the convolution of a shortcut and `.2` its norm.

    Args:
        name: One of `RESNETS`.
        dcn_v2_stages: Stages with deformable convolutions, counted as torchvision's layers: `[2, 3, 4]` =
            layer2..layer4 = C3..C5, as in the paper. If empty, the other DCN options are unused.
        dcn_every: Replace every n-th block of a stage, counted back from the last block, which is always replaced.
        modulation: True for DCNv2, False for DCNv1.
        offset_groups: Number of channel groups with separate offsets.
        mask_scale: `mask = mask_scale * sigmoid(logits)`. With 2 the network starts with the outputs of the plain one.
        stride_in_1x1: Whether bottlenecks have their stride in the first 1x1 convolution instead of the 3x3. The
            original ResNets, https://arxiv.org/abs/1512.03385, and weights from Caffe and MSRA (detectron2) do.
        frozen_stages: -1 trains everything, 0 freezes the stem, s freezes the stem and stages 1..s.
        norm: One of `NORMS`. Frozen stages use "frozen_bn" instead of "bn" and "sync_bn". "sync_bn" computes statistics
            over all processes; with several processes PyTorch supports it only on GPUs.
        dcn_backend: A name in `dcn.BACKENDS`, or "auto".
        activation_checkpointing: Whether the blocks of deformable stages keep only their input and are computed again
            in the backward pass. This needs less memory and more time; the gradients are the same.
        in_channels: Number of channels of the images.

    Returns:
        The network, of torchvision's class, with random weights.

    Raises:
        ValueError: If a name is unknown, a stage does not exist, or an option is not valid for the network.

    Example:
        ```python
        body = resnet("resnet50", dcn_v2_stages=[2, 3, 4], norm="frozen_bn")
        ```
    """
    check_name("backbone", name, RESNETS)
    check_name("norm", norm, NORMS)
    check_stages(dcn_v2_stages, "dcn_v2_stages")
    check_every(dcn_every, "dcn_every")
    if frozen_stages not in (-1, 0, *STAGES):
        raise ValueError(f"`frozen_stages` must be -1 (none), 0 (stem) or 1..4 (stem and stages), got {frozen_stages}")
    if in_channels < 1:
        raise ValueError(f"`in_channels` must be at least 1, got {in_channels}")
    network = get_model(name.removesuffix(VD), weights=None, norm_layer=NORMS[norm])
    if name.endswith(VD):
        _make_vd(network, NORMS[norm], in_channels)
    elif in_channels != network.conv1.in_channels:
        network.conv1 = _drawn_conv(in_channels, network.conv1.out_channels, 7, 2)
    if stride_in_1x1:
        _move_strides(network, name)
    # torchvision has initialised the weights by now, so the zeros of `conv_offset` are not overwritten.
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
            setattr(network, f"layer{stage}", _CheckpointedStage(*getattr(network, f"layer{stage}")))
    return network


def stage_channels(network: ResNet) -> dict[int, int]:
    """Return the number of output channels by stage."""
    return {stage: network.fc.in_features // 2 ** (4 - stage) for stage in STAGES}


def replaced_convs(network: nn.Module) -> list[ReplacedConvs]:
    """Return the deformable convolutions of a network with a ResNet, by stage; the last row is its head."""
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
    """Raise `ValueError` with the known names unless `name` is one of them."""
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}, known: {', '.join(known)}")


def _make_vd(network: ResNet, norm: Callable[[int], nn.Module], in_channels: int) -> None:
    """Replace the stem and the shortcuts of a ResNet by ResNet-D's, with torchvision's initialisation."""
    stem = []
    for inputs, outputs, stride in ((in_channels, 32, 2), (32, 32, 1)):
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
        raise ValueError(f"`stride_in_1x1` needs bottleneck blocks, got {name}; use resnet50 or a deeper network")
    for block in blocks:
        block.conv1.stride, block.conv2.stride = block.conv2.stride, block.conv1.stride


def _freeze(module: nn.Module) -> nn.Module:
    """Freeze the parameters of a module and the statistics of its batch norms."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    if isinstance(module, BATCH_NORMS):
        frozen = FrozenBatchNorm2d(module.num_features, module.eps)
        frozen.load_state_dict(module.state_dict())
        return frozen
    for name, child in module.named_children():
        setattr(module, name, _freeze(child))
    return module


class _CheckpointedStage(nn.Sequential):
    """A stage with activation checkpointing of its blocks, https://arxiv.org/abs/1604.06174."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the blocks; outside of training as `nn.Sequential`."""
        if not (self.training and torch.is_grad_enabled()):
            return super().forward(x)
        for block in self:
            if torch.compiler.is_compiling():  # the compiler handles buffers and does not support `context_fn`
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = _checkpointed(block, x)
        return x


@torch.compiler.disable  # reached only by blocks that cannot be compiled without graph breaks
def _checkpointed(block: nn.Module, x: Tensor) -> Tensor:
    """Compute a block now and again in the backward pass; the blocks have no random operations."""
    return checkpoint(
        block,
        x,
        use_reentrant=False,
        preserve_rng_state=False,
        context_fn=lambda: (nullcontext(), _copied_statistics(block)),
    )


@contextmanager
def _copied_statistics(block: nn.Module) -> Iterator[None]:
    """Make batch norms update copies of their statistics, because the first pass has already counted the batch."""
    norms = [module for module in block.modules() if isinstance(module, BATCH_NORMS)]
    buffers = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in buffers:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in buffers:
            setattr(norm, name, buffer)
