"""State dicts: found in the content of a file, without the containers and prefixes around them, and checked."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .pickles import Array
from .shown import shown

# Keys of a state dict in files with more content. The first counts, so trained weights come before averaged ones.
CONTAINERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "module",
    "net",
    "network",
    "params",
    "weights",
    "encoder",
    "backbone",
    "ema_state_dict",
    "state_dict_ema",
    "model_ema",
    "ema_model",
    "params_ema",
    "ema",
    "teacher",
    "student",
)
# Parts of tensor names that wrappers of a network add, in the same order
PREFIXES = (
    "module",
    "_orig_mod",
    "_forward_module",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "state_dict",
    "model",
    "net",
    "network",
    "params",
    "encoder_q",
    "ema",
    "ema_model",
    "model_ema",
    "averaged_model",
    "teacher",
    "student",
    "encoder_k",
)
_ANYWHERE = {name for name in PREFIXES if name.startswith("_")}  # parts that no network has itself
_DEPTH = 6  # of containers in each other
_PADDLE_NAMES = "StructuredToParameterName@@"
_EPS = 1e-5  # of batch norms: a converted variance with another epsilon may be below 0 by as much


class StateDict(NamedTuple):
    """Weights that were found in a file.

    Attributes:
        tensors: Tensors by their names, without the prefixes of wrappers.
        unused: Names of other containers and prefixes in the file, as in "ema".
    """

    tensors: dict[str, Tensor]
    unused: list[str]


def find_state_dict(content: Any, wanted: Collection[str] | None = None) -> StateDict:
    """Find the weights of a network in the content of a file.

    Args:
        content: See `weights_file.read_weights_file`.
        wanted: Names of the network's tensors, which decide among several networks; otherwise the largest is taken.

    Raises:
        ValueError: If two tensors have the same name without the prefixes.
    """
    unused = []
    for _ in range(_DEPTH):
        keys = [key for key in _containers(content) if _holds_tensors(content[key])]
        if not keys:
            break
        unused += keys[1:]
        content = content[keys[0]]
    tensors = {key: _as_tensor(value) for key, value in _tensors(content).items()}
    groups: dict[tuple[str, ...], dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        prefix, rest = _split(name)
        group = groups.setdefault(prefix, {})
        if rest in group:
            raise ValueError(f"{shown(name)} and another tensor have the same name without the prefixes of wrappers")
        group[rest] = tensor
    if not groups:
        return StateDict({}, unused)

    def rank(prefix: tuple[str, ...]) -> tuple[int, list[int]]:
        names = groups[prefix]
        size = len(names) if wanted is None else sum(name in wanted for name in names)
        return -size, [PREFIXES.index(part) for part in prefix]

    best = min(groups, key=rank)
    others = [f"{'.'.join((*key, ''))} ({len(groups[key])} tensors)" for key in groups if key not in (best, ())]
    return StateDict(groups[best], unused + others)


def check_weights(tensors: Mapping[str, Tensor], name: str) -> None:
    """Check that tensors can be the weights and statistics of a network.

    Args:
        tensors: Tensors by their names.
        name: Their source, as in "checkpoint last.pt", for the error.

    Raises:
        ValueError: If a value is not finite in float32, a variance is negative, or a tensor does not consist of real
            numbers in memory; the message names the first such tensor.
    """
    problems = [(key, problem) for key, tensor in tensors.items() if (problem := _problem(key, tensor))]
    if problems:
        key, problem = problems[0]
        more = f" ({len(problems) - 1} more tensors are not valid)" if len(problems) > 1 else ""
        raise ValueError(f"tensor {shown(key)} of {name} {problem}{more}")


def _problem(key: str, tensor: Any) -> str | None:
    """Return why a tensor cannot be part of a network, as the rest of a sentence; None if it can."""
    if not isinstance(tensor, Tensor):
        return f"must be a tensor, got {shown(tensor)}"
    if tensor.is_meta:
        return "has no values (device meta)"
    if tensor.is_quantized or tensor.is_nested or tensor.layout != torch.strided:
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else str(tensor.layout)
        return f"must be a dense tensor, got a tensor that is {kind.removeprefix('torch.')}"
    if key.endswith("num_batches_tracked"):
        ok = not tensor.is_complex() and tensor.numel() == 1 and tensor.item() == tensor.item()
        return None if ok else f"must be one number, got {tensor.dtype} of shape {[*tensor.shape]}"
    if not tensor.is_floating_point():
        return f"must contain floating-point numbers, got {tensor.dtype}"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"declares {tensor.numel()} values, but the file contains fewer"
    values = tensor.float()
    if bad := values.numel() - int(values.isfinite().sum()):
        return f"contains {bad} NaN or infinite values of {values.numel()}"
    if key.endswith("running_var") and (bad := int((values <= -_EPS).sum())):
        return f"contains {bad} negative variances of {values.numel()}"
    return None


def _containers(content: Any) -> list[str]:
    """Return the keys of a dict that may contain a state dict, the best first."""
    if not isinstance(content, Mapping):
        return []
    known = [key for key in CONTAINERS if isinstance(content.get(key), Mapping)]
    others = [key for key, value in content.items() if isinstance(value, Mapping) and _tensors(value)]
    return known or (others if len(others) == 1 else [])


def _holds_tensors(value: Any, depth: int = _DEPTH) -> bool:
    if depth == 0 or not isinstance(value, Mapping):
        return False
    return bool(_tensors(value)) or any(_holds_tensors(value[key], depth - 1) for key in _containers(value))


def _tensors(content: Any) -> dict[str, Any]:
    """Return the entries of a dict that are tensors or arrays of numbers, by name."""
    if not isinstance(content, Mapping):
        return {}
    return {
        key: value
        for key, value in content.items()
        if isinstance(key, str) and key != _PADDLE_NAMES and _is_tensor(value)
    }


def _as_tensor(value: Any) -> Tensor:
    """Convert an array, also in PaddlePaddle's pair (name, array)."""
    value = value[1] if isinstance(value, list | tuple) else value
    if isinstance(value, Tensor):
        return value.detach()
    value = value.numbers() if isinstance(value, Array) else value
    return torch.tensor(value.astype(value.dtype.newbyteorder("=")))


def _is_tensor(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], Array | np.ndarray)
    return isinstance(value, Tensor | Array) or (isinstance(value, np.ndarray) and value.dtype.kind in "fiub")


def _split(name: str) -> tuple[tuple[str, ...], str]:
    """Return the parts at the start of a tensor's name that wrappers have added, and the rest of the name."""
    parts = [part for part in name.split(".") if part not in _ANYWHERE]
    count = next((index for index, part in enumerate(parts[:-1]) if part not in PREFIXES), len(parts) - 1)
    return tuple(part for part in parts[:count] if part != "module"), ".".join(parts[count:])
