"""Tensors of another framework under this project's keys, and an account of each."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .arithmetic import fold_eps, fold_input, fold_mask_scale
from .source import BODY, Dropped, Source, TensorRule

FIRST_CONVS = (f"{BODY}conv1.weight", f"{BODY}conv1.0.weight")


class Entry(NamedTuple):
    """What became of a tensor: a line of the report.

    Attributes:
        source: its name there, None for one that is only here.
        ours: its key here, None for one that has no place here.
        status: "mapped", "new" (stays as initialised) or "dropped".
        why: it is not mapped.
    """

    source: str | None
    ours: str | None
    status: str
    why: str = ""


class Mapped(NamedTuple):
    """Tensors by our keys, whose class and anchor order is still theirs.

    Attributes:
        tensors: by key.
        entries: one for each tensor of the file.
        unknown: names that no rule knows.
    """

    tensors: dict[str, Tensor]
    entries: list[Entry]
    unknown: list[str]


def map_tensors(tensors: Mapping[str, Tensor], source: Source) -> Mapped:
    """Bring tensors under our keys.

    Raises:
        ValueError: if two of them claim one place.
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
    return Mapped({key: _join(key, parts, tensors) for key, parts in pieces.items()}, entries, unknown)


def _join(key: str, parts: list[tuple[TensorRule, str]], tensors: Mapping[str, Tensor]) -> Tensor:
    parts = sorted(parts, key=lambda part: part[0].part)
    if len({piece.part for piece, _ in parts}) < len(parts):
        raise ValueError(f"{' and '.join(name for _, name in parts)} both claim the place of {key}")
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
    """Do the arithmetic of a backbone: input, epsilon of its norms, scale of its masks.

    Args:
        tensors: by our keys.
        input_format: what it was fed, a key of `arithmetic.INPUT_FORMATS`.
        eps: of its batch norms.
        source_mask_scale: of its masks, None if it has none.
        mask_scale: that the layers here shall have.
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
    """Whether the weight of a `conv_offset` (None: there is none) predicts masks too: 27 outputs, not 18.

    DCNv1 with groups by threes cannot be told from DCNv2 with groups by twos.
    """
    return offset is not None and len(offset) % (3 * offset[0, 0].numel()) == 0


def _offset_key(key: str) -> str:
    return re.sub(r"weight$", "conv_offset.weight", key)
