"""Reader of checkpoints of other frameworks, as tensors by name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from data.shown import shown
from models.state_dict import find_state_dict
from models.weights_file import read_weights_file, unreadable


class SourceCheckpoint(NamedTuple):
    """Content of a checkpoint.

    Attributes:
        tensors: tensors by the names of the source framework.
        config_text: config that mmdetection writes into its checkpoints, or "".
        class_names: class names that mmdetection writes into its checkpoints, or None.
        unused: other networks in the file, see `models.state_dict.StateDict`.
    """

    tensors: dict[str, Tensor]
    config_text: str = ""
    class_names: list[str] | None = None
    unused: Sequence[str] = ()


def read_source_checkpoint(path: Path) -> SourceCheckpoint:
    """Read a checkpoint as data, without importing or calling anything that it names.

    Args:
        path: file of any format of `models.weights_file`.

    Raises:
        ValueError: if the file does not exist, contains no tensors, or contains more than data.
    """
    try:
        content = read_weights_file(path)
        found = find_state_dict(content)
    except ValueError as error:
        raise ValueError(f"checkpoint {path} {unreadable(error)}") from error
    if not found.tensors:
        raise ValueError(f"checkpoint {path} contains no named tensors, only {shown(content)}")
    about = content.get("meta") if isinstance(content.get("meta"), dict) else {}
    return SourceCheckpoint(found.tensors, _config_text(about), _class_names(about), found.unused)


def _config_text(about: dict[str, Any]) -> str:
    return next((about[key] for key in ("config", "cfg") if isinstance(about.get(key), str)), "")


def _class_names(about: dict[str, Any]) -> list[str] | None:
    data = about.get("dataset_meta") if isinstance(about.get("dataset_meta"), dict) else {}
    for names in (about.get("CLASSES"), data.get("CLASSES"), data.get("classes")):
        if isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names):
            return [*names]
    return None
