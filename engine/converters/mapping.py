"""Mapping of another framework's tensors to this project's keys, with a report entry for each."""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .arithmetic import fold_eps, fold_input, fold_mask_scale
from .source import BODY, Dropped, Source, TensorRule

FIRST_CONVS = (f"{BODY}conv1.weight", f"{BODY}conv1.0.weight")


class Entry(NamedTuple):
    """Mapping of one tensor, a line of the report.

    Attributes:
        source: name in the source checkpoint, None for a new tensor.
        ours: key in this project, None for a dropped tensor.
        status: "mapped", "new" (keeps its initial value) or "dropped".
        why: reason if it is not mapped.
    """

    source: str | None
    ours: str | None
    status: str
    why: str = ""


class Mapped(NamedTuple):
    """Tensors by our keys, with the class and anchor order of the source.

    Attributes:
        tensors: tensors by key.
        entries: one entry for each mapped or dropped tensor of the file.
        unknown: names that no rule matches.
    """

    tensors: dict[str, Tensor]
    entries: list[Entry]
    unknown: list[str]


def map_tensors(
    tensors: Mapping[str, Tensor], source: Source, *, is_wanted: Callable[[str], bool] = lambda key: True
) -> Mapped:
    """Map tensors to our keys.

    Args:
        tensors: tensors of the file.
        source: source framework.
        is_wanted: whether a key of this project is needed; the tensors of other keys are only listed.

    Raises:
        ValueError: if two tensors map to the same key that is needed.
    """
    layout = source.layout(tensors)
    pieces: dict[str, list[tuple[TensorRule, str]]] = {}
    entries, unknown = [], []
    for name in tensors:
        target = source.target(name, layout)
        if isinstance(target, TensorRule):
            pieces.setdefault(target.key, []).append((target, name))
            entries.append(Entry(name, target.key, "mapped"))
        elif isinstance(target, Dropped):
            entries.append(Entry(name, None, "dropped", target.why))
        else:
            unknown.append(name)
    joined = {key: _join(key, parts, tensors) for key, parts in pieces.items() if is_wanted(key)}
    return Mapped(joined, entries, unknown)


def _join(key: str, parts: list[tuple[TensorRule, str]], tensors: Mapping[str, Tensor]) -> Tensor:
    parts = sorted(parts, key=lambda part: part[0].part)
    if len({piece.part for piece, _ in parts}) < len(parts):
        raise ValueError(f"{' and '.join(name for _, name in parts)} both map to {key}")
    changed = [piece.change(tensors[name]) if piece.change else tensors[name] for piece, name in parts]
    if parts[-1][0].added:
        return sum(changed[1:], changed[0])
    return torch.cat(changed) if len(changed) > 1 else changed[0]


def fold_backbone(
    tensors: Mapping[str, Tensor],
    *,
    input_format: str,
    eps: float,
    source_mask_scale: float | None,
    mask_scale: float,
) -> dict[str, Tensor]:
    """Fold input format, batch norm epsilon and mask scale into the weights of a backbone.

    Args:
        tensors: tensors by our keys.
        input_format: input format of the network, a key of `arithmetic.INPUT_FORMATS`.
        eps: epsilon of its batch norms.
        source_mask_scale: mask scale of the source, None without masks.
        mask_scale: mask scale of the converted layers.
    """
    folded = dict(tensors)
    for key, tensor in tensors.items():
        if key in FIRST_CONVS:
            folded[key] = fold_input(tensor, input_format)
        elif key.startswith(BODY) and key.endswith("running_var"):
            folded[key] = fold_eps(tensor, eps)
        elif key.endswith("conv2.weight") and is_modulated(tensors.get(_offset_key(key))):
            folded[key] = fold_mask_scale(tensor, source_mask_scale or mask_scale, mask_scale)
    return folded


def is_modulated(offset: Tensor | None) -> bool:
    """Whether the weight of a `conv_offset` (None: plain layer) predicts masks too: 27 outputs instead of 18.

    Note: DCNv1 with 3n offset groups has the same shape as DCNv2 with 2n offset groups.
    """
    return offset is not None and len(offset) % (3 * offset[0, 0].numel()) == 0


def _offset_key(key: str) -> str:
    return re.sub(r"weight$", "conv_offset.weight", key)
