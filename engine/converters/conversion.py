"""Conversion of a checkpoint to the weights of a backbone or of a detector."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from models import RESNETS, resnet
from models.state_dict import check_weights

from ..display import first_lines
from .architecture import describe_backbone, describe_pyramid, missing_in_backbone
from .heads import arrange_heads, count_classes, decides_classes, transpose_linear
from .mapping import Entry, Mapped, fold_backbone, is_modulated, map_tensors
from .source import BODY, Source

SHOWN = 6  # maximum number of names per kind in an error


class Converted(NamedTuple):
    """Result of a conversion.

    Attributes:
        tensors: tensors by the keys of this project; keys of a backbone are without "backbone.body.".
        entries: mapping of each tensor of the file, and new tensors.
        found: backbone as config values, see `describe_backbone`.
    """

    tensors: dict[str, Tensor]
    entries: list[Entry]
    found: dict[str, Any]


def convert_backbone(
    tensors: Mapping[str, Tensor], source: Source, *, input_format: str, eps: float, mask_scale: float
) -> Converted:
    """Convert the backbone of a checkpoint.

    Args:
        tensors: tensors of the file.
        source: source framework.
        input_format: input format of the network, a key of `arithmetic.INPUT_FORMATS`.
        eps: epsilon of its batch norms.
        mask_scale: mask scale of the converted deformable layers.

    Raises:
        ValueError: if the checkpoint does not contain a complete ResNet, or a ResNet that is not supported.
    """
    check_supported(tensors, source, whole=False)
    mapped = map_tensors(tensors, source, is_wanted=lambda key: key.startswith(BODY))
    body = mapped.tensors
    _check_backbone(body, mapped.unknown, source)
    found = describe_backbone(body)
    _check_network(body, mapped, found)
    folded = fold_backbone(
        body, input_format=input_format, eps=eps, source_mask_scale=source.mask_scale, mask_scale=mask_scale
    )
    rest = "not part of the backbone"
    entries = [
        entry._replace(ours=None, status="dropped", why=rest) if entry.ours and entry.ours not in body else entry
        for entry in mapped.entries
    ]
    entries += [Entry(name, None, "dropped", rest) for name in mapped.unknown]
    entries = [entry._replace(ours=entry.ours and entry.ours.removeprefix(BODY)) for entry in entries]
    _check_values(folded, mapped, source)
    weights = {key.removeprefix(BODY): _own(tensor) for key, tensor in folded.items()}
    return Converted(weights, entries, found)


def convert_detector(
    tensors: Mapping[str, Tensor],
    source: Source,
    wanted: Mapping[str, Tensor],
    *,
    input_format: str,
    eps: float,
    mask_scale: float,
    kept: Sequence[int],
    ratios: int = 3,
    asked: Mapping[str, Any] | None = None,
) -> Converted:
    """Convert a checkpoint to the weights of a detector with the same architecture.

    Args:
        tensors: tensors of the file.
        source: source framework.
        wanted: state dict of the initialised detector.
        input_format: input format of the network, a key of `arithmetic.INPUT_FORMATS`.
        eps: epsilon of its batch norms.
        mask_scale: mask scale of the detector's deformable layers.
        kept: foreground classes of the file, counted from 0, that become classes 1, 2, ... of the detector.
        ratios: number of aspect ratios of the detector's anchors.
        asked: config values of the detector, such as "backbone.name", to compare with the checkpoint in errors.

    Raises:
        ValueError: if the architecture differs, with all differences, or if the detector is not supported.
    """
    check_supported(tensors, source, whole=True)
    mapped = map_tensors(tensors, source)
    ours = transpose_linear(mapped.tensors) if source.linear_transposed else mapped.tensors
    _check_masks(ours, source)
    found = describe_backbone(ours)
    classes = count_classes(ours, source)
    if classes is None:
        raise ValueError(
            f"the {source.title} checkpoint does not contain a known classifier of a detector: convert its backbone, "
            "without --config"
        )
    ours = arrange_heads(ours, source, classes=classes, kept=kept, ratios=ratios)
    ours = fold_backbone(
        ours, input_format=input_format, eps=eps, source_mask_scale=source.mask_scale, mask_scale=mask_scale
    )
    counters = [key for key in wanted if key.endswith("num_batches_tracked") and key not in ours]
    needed = {key: tensor for key, tensor in wanted.items() if key not in counters}
    found_options = {f"backbone.{key}": value for key, value in found.items()}
    found_options |= {f"fpn.{key}": value for key, value in describe_pyramid(ours).items()}
    differ = [
        f"  - model.{key}: {asked[key]!r} in the config, {value!r} in the checkpoint"
        for key, value in found_options.items()
        if key in (asked or {}) and value is not None and asked[key] != value
    ]
    _check_same(mapped, ours, needed, source, differ)
    _check_values(ours, mapped, source)
    entries = mapped.entries + [Entry(None, key, "new", "batch norm counter") for key in counters]
    state = {key: _own(ours[key]).to(wanted[key].dtype) if key in ours else wanted[key] for key in wanted}
    return Converted(state, entries, found)


def _own(tensor: Tensor) -> Tensor:
    """Return a copy with separate memory, because torch.save writes the whole storage of a view."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def classes_of(tensors: Mapping[str, Tensor], source: Source) -> int | None:
    """Return the number of foreground classes of a file's detector; None without a known classifier."""
    ours = map_tensors(tensors, source, is_wanted=decides_classes).tensors
    return count_classes(transpose_linear(ours) if source.linear_transposed else ours, source)


def check_supported(tensors: Mapping[str, Tensor], source: Source, *, whole: bool) -> None:
    """Check that a checkpoint can be converted, from the names of its tensors.

    Args:
        tensors: tensors of the file.
        source: source framework.
        whole: whether the whole detector is converted, not only the backbone.

    Raises:
        ValueError: if it contains a part that is not supported, with the reason.
    """
    for pattern, reason, is_of_backbone in source.unsupported:
        name = next((name for name in tensors if re.fullmatch(pattern, name)), None)
        if name is not None and (whole or is_of_backbone):
            hint = "" if is_of_backbone else ". The backbone alone can be converted, without --config"
            raise ValueError(f"the {source.title} checkpoint contains {name}: {reason}{hint}")


def _check_backbone(body: Mapping[str, Tensor], unknown: Sequence[str], source: Source) -> None:
    missing = missing_in_backbone(body)
    if missing:
        shown = "".join(f"\n  - {key.removeprefix(BODY)}" for key in missing[:SHOWN])
        others = f"\nunknown names: {', '.join(unknown[:SHOWN])}" if unknown else ""
        raise ValueError(
            f"the {source.title} checkpoint does not contain a complete ResNet; missing tensors ({len(missing)}):"
            f"{shown}{others}"
        )
    _check_masks(body, source)


def _check_network(body: Mapping[str, Tensor], mapped: Mapped, found: Mapping[str, Any]) -> None:
    """Check that a backbone has the tensors of the network that its names describe."""
    if found["name"] is None or found.get("dcn_every", 1) is None:
        raise ValueError(
            "the backbone is not a ResNet of this project, or has deformable layers in blocks that dcn_every cannot "
            f"describe; the networks are {', '.join(RESNETS)}"
        )
    with torch.device("meta"):
        wanted = resnet(**found).state_dict()
    wanted = {f"{BODY}{key}": tensor for key, tensor in wanted.items() if not key.startswith("fc.")}
    names = {entry.ours: entry.source for entry in mapped.entries if entry.ours}
    problems = [f"{key} is missing" for key in wanted if key not in body and not key.endswith("num_batches_tracked")]
    problems += [f"{names[key]} is not part of the network" for key in body if key not in wanted]
    problems += [
        f"{names[key]} has the shape {[*tensor.shape]} instead of {[*wanted[key].shape]}"
        for key, tensor in body.items()
        if key in wanted and tensor.shape != wanted[key].shape
    ]
    if problems:
        lines = (f"  - {problem}" for problem in first_lines(problems, SHOWN))
        raise ValueError("\n".join([f"the tensors of the backbone differ from {found['name']}:", *lines]))


def _check_values(tensors: Mapping[str, Tensor], mapped: Mapped, source: Source) -> None:
    """Check converted tensors under their names in the file; see `check_weights`."""
    names = {entry.ours: entry.source for entry in mapped.entries if entry.ours}
    check_weights({names.get(key, key): tensor for key, tensor in tensors.items()}, f"the {source.title} checkpoint")


def _check_masks(tensors: Mapping[str, Tensor], source: Source) -> None:
    """Check that the source is known if there are masks, because a file does not contain their scale."""
    if source.mask_scale is None and any(
        is_modulated(tensor) for key, tensor in tensors.items() if key.endswith("conv2.conv_offset.weight")
    ):
        raise ValueError(
            f"the tensors have the names of {source.title}, which has no deformable layers, but the checkpoint has "
            "some: set --source to the framework that wrote them"
        )


def _check_same(
    mapped: Mapped,
    ours: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    source: Source,
    differ: Sequence[str],
) -> None:
    """Raise `ValueError` with all differences in options and tensors."""
    names = {entry.ours: entry.source for entry in mapped.entries if entry.ours}
    missing = [key for key in wanted if key not in ours]
    unused = [*mapped.unknown, *(names[key] for key in ours if key not in wanted)]
    shapes = [
        f"{names[key]} {[*ours[key].shape]} would be {key} {[*wanted[key].shape]}"
        for key in ours
        if key in wanted and ours[key].shape != wanted[key].shape
    ]
    if not (missing or unused or shapes):
        return
    lines = [f"the architecture of the {source.title} checkpoint differs from the config:", *differ]
    for kind, items in (
        ("tensors of the config that are missing in the checkpoint", missing),
        ("tensors of the checkpoint that are not in the network", unused),
        ("tensors with another shape", shapes),
    ):
        if items:
            lines += [f"  - {kind} ({len(items)}):", *first_lines(items, SHOWN)]
    raise ValueError("\n".join(lines))
