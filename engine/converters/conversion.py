"""A whole conversion: a file's tensors to a backbone's weights, or to those of a detector."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..display import first_lines
from .architecture import describe_backbone, describe_pyramid, missing_in_backbone
from .heads import arrange_heads, count_classes, transpose_linear
from .mapping import Entry, Mapped, fold_backbone, is_modulated, map_tensors
from .source import BODY, Source

SHOWN = 6  # names of a kind in an error


class Converted(NamedTuple):
    """What came out.

    Attributes:
        tensors: by our keys: of the backbone alone without "backbone.body.", or of the whole detector.
        entries: what became of each tensor of the file, and which of ours are new.
        found: the backbone in the words of the config, see `describe_backbone`.
    """

    tensors: dict[str, Tensor]
    entries: list[Entry]
    found: dict[str, Any]


def convert_backbone(
    tensors: Mapping[str, Tensor], source: Source, *, input_format: str, eps: float, mask_scale: float
) -> Converted:
    """Take the backbone out of a checkpoint.

    Args:
        tensors: of the file.
        source: whose they are.
        input_format: what the network was fed, a key of `arithmetic.INPUT_FORMATS`.
        eps: of its batch norms.
        mask_scale: that deformable layers here shall have.

    Raises:
        ValueError: if there is no whole ResNet in it, or one that cannot be converted.
    """
    mapped = _map(tensors, source, whole=False)
    body = {key: tensor for key, tensor in mapped.tensors.items() if key.startswith(BODY)}
    _check_backbone(body, mapped.unknown, source)
    folded = fold_backbone(
        body, input_format=input_format, eps=eps, source_mask_scale=source.mask_scale, mask_scale=mask_scale
    )
    rest = "not of the backbone"
    entries = [
        entry._replace(ours=None, status="dropped", why=rest) if entry.ours and entry.ours not in body else entry
        for entry in mapped.entries
    ]
    entries += [Entry(name, None, "dropped", rest) for name in mapped.unknown]
    entries = [entry._replace(ours=entry.ours and entry.ours.removeprefix(BODY)) for entry in entries]
    weights = {key.removeprefix(BODY): _own(tensor) for key, tensor in folded.items()}
    return Converted(weights, entries, describe_backbone(body))


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
    """Turn a checkpoint into the weights of a detector of the same architecture.

    Args:
        tensors: of the file.
        source: whose they are.
        wanted: state dict of the detector, as initialised.
        input_format: what the network was fed, a key of `arithmetic.INPUT_FORMATS`.
        eps: of its batch norms.
        mask_scale: of the detector's deformable layers.
        kept: foreground classes of the file, counted from 0, that become classes 1, 2, ... of the detector.
        ratios: aspect ratios of the detector's anchors.
        asked: options of the detector that the file's may differ in, as in "backbone.name"; told where it does.

    Raises:
        ValueError: if the file's detector is another one, with all that differs, or cannot be converted.
    """
    mapped = _map(tensors, source, whole=True)
    ours = transpose_linear(mapped.tensors) if source.linear_transposed else mapped.tensors
    _check_masks(ours, source)
    found = describe_backbone(ours)
    classes = count_classes(ours, source)
    if classes is None:
        raise ValueError(
            f"the checkpoint of {source.title} holds no detector's classifier that is known: convert its backbone, by "
            "leaving out --config"
        )
    ours = arrange_heads(ours, source, classes=classes, kept=kept, ratios=ratios)
    ours = fold_backbone(
        ours, input_format=input_format, eps=eps, source_mask_scale=source.mask_scale, mask_scale=mask_scale
    )
    counters = [key for key in wanted if key.endswith("num_batches_tracked") and key not in ours]
    needed = {key: tensor for key, tensor in wanted.items() if key not in counters}
    told = {f"backbone.{key}": value for key, value in found.items()}
    told |= {f"fpn.{key}": value for key, value in describe_pyramid(ours).items()}
    differ = [
        f"  - model.{key}: {asked[key]!r} in the config, {value!r} in the checkpoint"
        for key, value in told.items()
        if key in (asked or {}) and value is not None and asked[key] != value
    ]
    _check_same(mapped, ours, needed, source, differ)
    entries = mapped.entries + [Entry(None, key, "new", "a counter of batch norm") for key in counters]
    state = {key: _own(ours[key]).to(wanted[key].dtype) if key in ours else wanted[key] for key in wanted}
    return Converted(state, entries, found)


def _own(tensor: Tensor) -> Tensor:
    """A copy that shares no memory, which would be written whole."""
    return tensor.detach().clone(memory_format=torch.contiguous_format)


def classes_of(tensors: Mapping[str, Tensor], source: Source) -> int | None:
    """Count the foreground classes of a file's detector; None where there is no classifier that is known."""
    ours = map_tensors(tensors, source).tensors
    return count_classes(transpose_linear(ours) if source.linear_transposed else ours, source)


def _map(tensors: Mapping[str, Tensor], source: Source, *, whole: bool) -> Mapped:
    for pattern, reason, is_of_backbone in source.unsupported:
        name = next((name for name in tensors if re.fullmatch(pattern, name)), None)
        if name is not None and (whole or is_of_backbone):
            hint = "" if is_of_backbone else ". Its backbone can be converted: leave out --config"
            raise ValueError(f"the checkpoint of {source.title} holds {name}: {reason}{hint}")
    return map_tensors(tensors, source)


def _check_backbone(body: Mapping[str, Tensor], unknown: Sequence[str], source: Source) -> None:
    missing = missing_in_backbone(body)
    if missing:
        shown = "".join(f"\n  - {key.removeprefix(BODY)}" for key in missing[:SHOWN])
        others = f"\nnames that are not known: {', '.join(unknown[:SHOWN])}" if unknown else ""
        raise ValueError(
            f"the checkpoint of {source.title} holds no whole ResNet; {len(missing)} tensors are missing, by our names:"
            f"{shown}{others}"
        )
    _check_masks(body, source)


def _check_masks(tensors: Mapping[str, Tensor], source: Source) -> None:
    """Where masks are scaled is not in a file, so that its maker must be known."""
    if source.mask_scale is None and any(
        is_modulated(tensor) for key, tensor in tensors.items() if key.endswith("conv2.conv_offset.weight")
    ):
        raise ValueError(
            f"the names are those of {source.title}, which has no deformable layers, but there are some: say by "
            "--source whose they are"
        )


def _check_same(
    mapped: Mapped,
    ours: Mapping[str, Tensor],
    wanted: Mapping[str, Tensor],
    source: Source,
    differ: Sequence[str],
) -> None:
    """Raise `ValueError` with all that differs: options, and tensors."""
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
    lines = [f"the checkpoint of {source.title} is of another network than the config:", *differ]
    for kind, items in (
        ("the config's tensors are not in the checkpoint", missing),
        ("the checkpoint's tensors have no place in the network", unused),
        ("the tensors have other shapes", shapes),
    ):
        if items:
            lines += [f"  - {len(items)} of {kind}:", *first_lines(items, SHOWN)]
    raise ValueError("\n".join(lines))
