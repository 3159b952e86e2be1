"""Architecture of a network, inferred from tensor shapes, as config values."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from .mapping import is_modulated
from .source import BODY

# number of blocks of the four stages, and shape of the first 3x3 convolution of a bottleneck (None: basic blocks)
_NETWORKS: dict[tuple[tuple[int, ...], tuple[int, int] | None], str] = {
    ((2, 2, 2, 2), None): "resnet18",
    ((3, 4, 6, 3), None): "resnet34",
    ((3, 4, 6, 3), (64, 64)): "resnet50",
    ((3, 4, 23, 3), (64, 64)): "resnet101",
    ((3, 8, 36, 3), (64, 64)): "resnet152",
    ((3, 4, 6, 3), (128, 4)): "resnext50_32x4d",
    ((3, 4, 23, 3), (256, 8)): "resnext101_32x8d",
    ((3, 4, 23, 3), (256, 4)): "resnext101_64x4d",
    ((3, 4, 6, 3), (128, 128)): "wide_resnet50_2",
    ((3, 4, 23, 3), (128, 128)): "wide_resnet101_2",
}


def describe_backbone(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the backbone from its tensors.

    Args:
        tensors: tensors by the keys of this project.

    Returns:
        Values of `model.backbone` in the config; `name` can be None (an unknown network).
    """
    blocks: dict[int, set[int]] = {}
    deformable: dict[int, set[int]] = {}
    offsets = []
    for key, tensor in tensors.items():
        if match := re.fullmatch(re.escape(BODY) + r"layer(\d)\.(\d+)\.(.*)", key):
            stage, block = int(match[1]), int(match[2])
            blocks.setdefault(stage, set()).add(block)
            if match[3] == "conv2.conv_offset.weight":
                deformable.setdefault(stage, set()).add(block)
                offsets.append(tensor)
    counts = tuple(len(blocks.get(stage, ())) for stage in (1, 2, 3, 4))
    first = tensors.get(f"{BODY}layer1.0.conv2.weight")
    is_bottleneck = f"{BODY}layer1.0.conv3.weight" in tensors
    name = _NETWORKS.get((counts, tuple(first.shape[:2]) if is_bottleneck and first is not None else None))
    if name and f"{BODY}conv1.0.weight" in tensors:
        name += "_vd"
    found: dict[str, Any] = {"name": name, "dcn_v2_stages": sorted(deformable)}
    if not has_statistics(tensors):
        found["norm"] = "gn"
    if offsets:
        points = offsets[0][0, 0].numel()
        modulated = is_modulated(offsets[0])
        found["modulation"] = modulated
        found["offset_groups"] = len(offsets[0]) // (points * (3 if modulated else 2))
        every = _every(deformable, blocks)
        if every != 1:
            found["dcn_every"] = every
    return found


def describe_pyramid(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Infer the feature pyramid of a detector from its tensors, as values of `model.fpn` in the config."""
    output = tensors.get("backbone.fpn.layer_blocks.0.0.weight")
    if output is None:
        return {}
    top = tensors.get("backbone.fpn.extra_blocks.p6.weight")
    extra = "pool" if top is None else "p6p7" if top.shape[0] == top.shape[1] else "p6p7_from_c5"
    return {"out_channels": len(output), "extra_levels": extra}


def _every(deformable: Mapping[int, set[int]], blocks: Mapping[int, set[int]]) -> int | None:
    """Return n if every n-th block, counted from the last of each stage, is deformable; None without such an n."""
    for step in range(1, max(map(len, blocks.values())) + 1):
        if all(found == {*range(max(blocks[stage]), -1, -step)} for stage, found in deformable.items()):
            return step
    return None


def has_statistics(names: Iterable[str]) -> bool:
    """Whether norms have running statistics; otherwise they are group norms."""
    return any(re.search(r"(running_mean|\._mean)$", name) for name in names)


def missing_in_backbone(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return missing keys of a ResNet: convolutions with their norms, the stem, and all four stages."""
    parts = ["weight", "bias", *(("running_mean", "running_var") if has_statistics(tensors) else ())]
    wanted = {f"{BODY}bn1.weight"}
    wanted |= {f"{BODY}layer{stage}.0.conv1.weight" for stage in (1, 2, 3, 4)}
    for key in tensors:
        if match := re.fullmatch(re.escape(BODY) + r"(.*)\.(?:weight|running_var)", key):
            place = match[1]
            if re.search(r"(^|\.)bn\d$", place):
                wanted |= {f"{BODY}{place}.{name}" for name in parts}
                conv = re.sub(r"bn(\d)$", r"conv\1", place)
                wanted.add(f"{BODY}{conv}.weight" if place != "bn1" else _stem_conv(tensors))
    return sorted(wanted - {*tensors})


def _stem_conv(tensors: Mapping[str, Tensor]) -> str:
    return f"{BODY}conv1.6.weight" if f"{BODY}conv1.0.weight" in tensors else f"{BODY}conv1.weight"
