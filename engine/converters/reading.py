"""Files of other frameworks to tensors by name."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .pickles import ALLOWED_IN_TORCH, PickleError, plain, read_pickle

PICKLES = (".pkl", ".pdparams")
TORCH = (".pth", ".pt")
# where the tensors lie in files that hold more than them
_NESTS = ("state_dict", "model", "model_state_dict", "module", "net")
_PADDLE_NAMES = "StructuredToParameterName@@"


class SourceCheckpoint(NamedTuple):
    """What a file holds.

    Attributes:
        tensors: by the names that the other framework gave them.
        config_text: the config that mmdetection writes into its checkpoints, "" for none.
        class_names: those that mmdetection writes there, None for none.
    """

    tensors: dict[str, Tensor]
    config_text: str = ""
    class_names: list[str] | None = None


def read_source_checkpoint(path: Path) -> SourceCheckpoint:
    """Read a checkpoint as data: nothing that it names is imported or called.

    Args:
        path: `.pth` or `.pt` of PyTorch, `.pkl` of detectron2, `.pdparams` of PaddlePaddle.

    Raises:
        ValueError: if there is no such file, it holds no tensors, or more than data.
    """
    if not path.is_file():
        raise ValueError(f"checkpoint {path} does not exist (resolved: {path.resolve()})")
    if path.suffix in PICKLES:
        try:
            content = read_pickle(path)
        except PickleError as error:
            raise ValueError(f"checkpoint {path} was not read: {error}") from None
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
        raise ValueError(f"checkpoint {path} holds no tensors by name; it holds {found}")
    about = content.get("meta") if isinstance(content.get("meta"), dict) else {}
    return SourceCheckpoint(tensors, _config_text(about), _class_names(about))


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([(stand_in, name) for name, stand_in in ALLOWED_IN_TORCH.items()]):
            return plain(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:
        # torch.load raises a dozen types, by what is broken, and then explains how to run what is inside
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = (
            f"it names {named[1]}, and only tensors, arrays and plain values are read"
            if named
            else "it is no checkpoint of PyTorch, a damaged one, or holds more than tensors and plain values"
        )
        raise ValueError(f"checkpoint {path} was not read: {reason}") from error


def _tensors(content: Any) -> dict[str, Tensor]:
    """The tensors of a file, wherever it nests them, without the prefix that PyTorch's DDP gives to all names."""
    if not isinstance(content, dict):
        return {}
    nested = next((content[key] for key in _NESTS if isinstance(content.get(key), dict)), content)
    tensors = {}
    for key, value in nested.items():
        if isinstance(value, list) and len(value) == 2 and isinstance(value[1], np.ndarray):
            value = value[1]  # of PaddlePaddle, beside its name for it
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
