"""Reader of checkpoints of other frameworks, as tensors by name."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from data.paths import resolved

from .pickles import ALLOWED_IN_TORCH, PickleError, plain, read_pickle

PICKLES = (".pkl", ".pdparams")
TORCH = (".pth", ".pt")
# keys of the state dict in files with more content
_NESTS = ("state_dict", "model", "model_state_dict", "module", "net")
_PADDLE_NAMES = "StructuredToParameterName@@"


class SourceCheckpoint(NamedTuple):
    """Content of a checkpoint.

    Attributes:
        tensors: tensors by the names of the source framework.
        config_text: config that mmdetection writes into its checkpoints, or "".
        class_names: class names that mmdetection writes into its checkpoints, or None.
    """

    tensors: dict[str, Tensor]
    config_text: str = ""
    class_names: list[str] | None = None


def read_source_checkpoint(path: Path) -> SourceCheckpoint:
    """Read a checkpoint as data, without importing or calling anything that it names.

    Args:
        path: `.pth` or `.pt` of PyTorch, `.pkl` of detectron2, `.pdparams` of PaddlePaddle.

    Raises:
        ValueError: if the file does not exist, contains no tensors, or contains more than data.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist (resolved: {resolved(path)})")
    if path.suffix in PICKLES:
        try:
            content = read_pickle(path)
        except PickleError as error:
            raise ValueError(f"cannot read checkpoint {path}: {error}") from None
    elif path.suffix in TORCH:
        content = _read_torch(path)
    else:
        raise ValueError(
            f"checkpoint {path} must be a {', '.join(TORCH)} file of PyTorch or a {' or '.join(PICKLES)} file of "
            f"detectron2 or PaddlePaddle, got {repr(path.suffix) if path.suffix else 'no suffix'}"
        )
    tensors = _tensors(content)
    if not tensors:
        found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"checkpoint {path} contains no named tensors, only {found}")
    about = content.get("meta") if isinstance(content.get("meta"), dict) else {}
    return SourceCheckpoint(tensors, _config_text(about), _class_names(about))


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in ALLOWED_IN_TORCH.items()]):
            return plain(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        # torch.load raises a dozen types of errors, and its message explains how to run unsafe content
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"it contains {named[1]}, but only tensors, arrays and plain values are allowed"
            if named
            else "it is not a PyTorch checkpoint, is damaged, or contains more than tensors and plain values"
        )
        raise ValueError(f"cannot read checkpoint {path}: {reason}") from error


def _tensors(content: Any) -> dict[str, Tensor]:
    """Return the tensors of a file from any nesting, without the "module." prefix of DDP."""
    if not isinstance(content, dict):
        return {}
    nested = next((content[key] for key in _NESTS if isinstance(content.get(key), dict)), content)
    tensors = {}
    for key, value in nested.items():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], np.ndarray):
            value = value[1]  # PaddlePaddle stores (name, array)
        if isinstance(key, str) and key != _PADDLE_NAMES and isinstance(value, Tensor | np.ndarray):
            tensors[key] = torch.tensor(value) if isinstance(value, np.ndarray) else value
    if tensors and all(key.startswith("module.") for key in tensors):
        tensors = {key.removeprefix("module."): tensor for key, tensor in tensors.items()}
    return tensors


def _config_text(about: dict[str, Any]) -> str:
    return next((about[key] for key in ("config", "cfg") if isinstance(about.get(key), str)), "")


def _class_names(about: dict[str, Any]) -> list[str] | None:
    data = about.get("dataset_meta") if isinstance(about.get("dataset_meta"), dict) else {}
    for names in (about.get("CLASSES"), data.get("CLASSES"), data.get("classes")):
        if isinstance(names, list) and names and all(isinstance(name, str) for name in names):
            return names
    return None
