"""Trained detectors from the checkpoints that `tools/train.py` writes, which are read as data and never as code."""

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
# Keys of a checkpoint that had another name up to 0.1, by the old name; they are renamed when a file is read.
RENAMED_KEYS = {
    "figures": "metrics",
    "judged_step": "last_eval_step",
    "stale": "evals_without_improvement",
    "window": "running_mean",
}
LAST = "last.pt"  # the newest in the folder of a run
_FOLDER = 0x10  # among the attributes of a record in a zip archive


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file."""


def load_detector(path: str | os.PathLike, *, weights: str | None = None) -> nn.Module:
    """Load a detector that was trained, or converted from another framework's weights.

    Args:
        path: a checkpoint, or the folder of a run, whose last.pt is used.
        weights: "raw" or "ema", of a run with averaged weights; None: those that the run was judged by.

    Returns:
        The detector on the CPU and in eval mode, see `models.detector`. Its `class_names` are those of labels 1, 2, ...

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged, or something in it does not fit.
        ValueError: if it has no weights of that kind.
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
    """Build the detector of a checkpoint with its weights, on the CPU and in eval mode.

    Args:
        state: what the checkpoint holds.
        path: its file, for errors.
        config: plain values to build by, see `build_detector`; None: those of the checkpoint.
        weights: see `choose_weights`.

    Raises:
        CheckpointError: if something is missing or does not fit.
        ValueError: if there are no weights of that kind, or the config does not fit.
    """
    for key, kind in (("config", Mapping), ("class_names", list), ("model", Mapping)):
        if not isinstance(state.get(key), kind):
            raise CheckpointError(f"checkpoint {path} must hold {key!r}, and has {type(state.get(key)).__name__} there")
    detector = build_detector(state["config"] if config is None else config, len(state["class_names"]))
    tensors = state["ema"]["model"] if choose_weights(state, weights, path) == "ema" else state["model"]
    try:
        detector.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(
            f"the weights of checkpoint {path} do not fit the detector of its config: {error}"
        ) from None
    return detector.eval()


def choose_weights(state: Mapping[str, Any], asked: str | None, path: Path) -> str:
    """Choose between the "raw" weights of a checkpoint and their average "ema"; by default the ones it was judged by.

    Raises:
        ValueError: if there are no such weights.
    """
    if asked not in (None, "raw", "ema"):
        raise ValueError(f"weights must be raw or ema, got {asked!r}")
    if asked == "ema" and state.get("ema") is None:
        raise ValueError(f"{path} holds no averaged weights, since its run was without train.ema_decay: --weights raw")
    return asked or ("raw" if state.get("ema") is None else "ema")


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, after comparing all content with its checksums.

    Raises:
        CheckpointError: if it is missing, damaged, of another version of this project, or none of its checkpoints.
    """
    state = _read(path)
    written = state.get("format") if isinstance(state, dict) else None
    if not isinstance(written, int):
        found = sorted(map(str, state))[:5] if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"checkpoint {path} was not written by this project's trainer; it holds {found}")
    if written != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} was written by another version of this project: its format must be {FORMAT}, and is "
            f"{written}; use it with that version, or train anew"
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
        raise CheckpointError(f"checkpoint {path} does not exist (resolved: {path.resolve()})") from None
    except Exception as error:
        # torch.load raises a dozen types, by what is broken, and soon explains how to run what is inside
        reason = getattr(error, "strerror", None) or re.split(r"\.\s|\n", str(error))[0] or type(error).__name__
        is_archive = not isinstance(error, zipfile.BadZipFile)
        hint = "" if is_archive else "; it is cut short, or none of this project's checkpoints"
        raise CheckpointError(f"checkpoint {path} cannot be read: {reason}{hint}") from error


def _check_records(file: BinaryIO) -> None:
    """Compare the records of PyTorch's zip archive with their CRC-32: torch.load returns the numbers of a damaged one.

    Raises:
        ValueError: if a record is damaged.
        BadZipFile: if the file is no archive.
    """
    with zipfile.ZipFile(file) as archive:
        # torch.load does not read a record that is marked as a folder, and returns whatever was in memory
        marked = (record.filename for record in archive.infolist() if record.external_attr & _FOLDER)
        damaged = next(marked, None) or archive.testzip()
    if damaged:
        raise ValueError(f"it is damaged: its record {damaged} does not have the checksum that was written with it")
