"""Trained detectors from the checkpoints of `tools/train.py`, read with `weights_only=True`, without running code."""

import os
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import nn

from .detectors import build_detector, with_current_names

FORMAT = 2
# Current checkpoint keys by their name up to 0.1; they are renamed when a file is read.
RENAMED_KEYS = {
    "figures": "metrics",
    "judged_step": "last_eval_step",
    "stale": "evals_without_improvement",
    "window": "running_mean",
}
LAST = "last.pt"  # the newest checkpoint of a run folder
_FOLDER = 0x10  # attribute of a folder's record in a zip archive


class CheckpointError(ValueError):
    """A checkpoint is missing or invalid; the message contains the file name."""


def load_detector(path: str | os.PathLike, *, weights: str | None = None) -> nn.Module:
    """Load a detector that was trained here or converted from another framework.

    Args:
        path: Checkpoint, or run folder, of which last.pt is loaded.
        weights: "raw" or "ema". None loads the EMA weights if the checkpoint has them, which its metrics refer to.

    Returns:
        The detector, on the CPU and in eval mode, see `models.detector`. Its attribute `class_names` lists the names
            of labels 1, 2, ...

    Raises:
        CheckpointError: If the checkpoint is missing, damaged or inconsistent.
        ValueError: If the checkpoint does not contain the requested weights.

    Example:
        ```python
        detector = load_detector("runs/r50_dcn")
        detections = detector([torch.rand(3, 480, 640)])
        ```
    """
    file = Path(path)
    file = file / LAST if file.is_dir() else file
    state = load_checkpoint(file)
    detector = restore_detector(state, file, weights=weights)
    detector.class_names = [*state["class_names"]]
    return detector


def restore_detector(
    state: Mapping[str, Any], path: Path, *, config: Mapping[str, Any] | None = None, weights: str | None = None
) -> nn.Module:
    """Build the detector of a checkpoint and load its weights, on the CPU and in eval mode.

    Args:
        state: Content of the checkpoint.
        path: File of the checkpoint, for error messages.
        config: Plain values of a config, see `build_detector`; None uses the config of the checkpoint.
        weights: See `choose_weights`.

    Raises:
        CheckpointError: If something is missing or inconsistent.
        ValueError: If the checkpoint does not contain the requested weights, or the config is invalid.
    """
    for key, kind in (("config", Mapping), ("class_names", list), ("model", Mapping)):
        if not isinstance(state.get(key), kind):
            raise CheckpointError(
                f"checkpoint {path} must contain {key!r} as a {kind.__name__}, got {type(state.get(key)).__name__}"
            )
    detector = build_detector(state["config"] if config is None else config, len(state["class_names"]))
    tensors = state["ema"]["model"] if choose_weights(state, weights, path) == "ema" else state["model"]
    try:
        detector.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights of checkpoint {path} do not match the detector of its config: {error}"
        ) from None
    return detector.eval()


def choose_weights(state: Mapping[str, Any], asked: str | None, path: Path) -> str:
    """Return which weights of a checkpoint to use, "raw" or "ema"; the default is "ema" if the checkpoint has them.

    Raises:
        ValueError: If the checkpoint does not contain the requested weights.
    """
    if asked not in (None, "raw", "ema"):
        raise ValueError(f"weights must be raw or ema, got {asked!r}")
    if asked == "ema" and state.get("ema") is None:
        raise ValueError(f"{path} does not contain EMA weights, because train.ema_decay was off; use --weights raw")
    return asked or ("raw" if state.get("ema") is None else "ema")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, after comparing all content with its checksums.

    Raises:
        CheckpointError: If it is missing, damaged, from another version of this project, or not a checkpoint of it.
    """
    state = _read(path)
    written = state.get("format") if isinstance(state, dict) else None
    if not isinstance(written, int):
        found = sorted(map(str, state))[:5] if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"checkpoint {path} was not written by this project's trainer; it contains {found}")
    if written != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} was written by another version of this project: its format must be {FORMAT}, got "
            f"{written}; use that version, or train again"
        )
    if isinstance(state.get("config"), Mapping):
        state["config"] = with_current_names(state["config"], is_silent=True)
    return {RENAMED_KEYS.get(key, key): value for key, value in state.items()}


def _read(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            _check_records(file)
            file.seek(0)
            return torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path} does not exist (resolved: {path.absolute()})") from None
    except Exception as error:
        # torch.load raises a dozen exception types; its messages continue with advice on running unsafe files
        reason = getattr(error, "strerror", None) or re.split(r"\.\s|\n", str(error))[0] or type(error).__name__
        is_archive = not isinstance(error, zipfile.BadZipFile)
        hint = "" if is_archive else "; it is truncated or not a checkpoint of this project"
        raise CheckpointError(f"checkpoint {path} cannot be read: {reason}{hint}") from error


def _check_records(file: BinaryIO) -> None:
    """Compare the records of PyTorch's zip archive with their CRC-32; torch.load does not detect damaged numbers.

    Raises:
        ValueError: If a record is damaged.
        BadZipFile: If the file is not a zip archive.
    """
    with zipfile.ZipFile(file) as archive:
        # torch.load does not read a record that is marked as a folder, and returns uninitialised memory
        marked = (record.filename for record in archive.infolist() if record.external_attr & _FOLDER)
        damaged = next(marked, None) or archive.testzip()
    if damaged:
        raise ValueError(f"it is damaged: the checksum of its record {damaged} does not match")
