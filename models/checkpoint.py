"""Trained detectors from the checkpoints of `tools/train.py`, read with `weights_only=True`, without running code."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from .checkpoint_form import DETECTOR, TRAINED, check_form
from .detectors import build_detector, with_current_names
from .shown import shown
from .weights_file import WeightsFileError, read_weights_file, unreadable

FORMAT = 2
# Current checkpoint keys by their name up to 0.1; they are renamed when a file is read.
RENAMED_KEYS = {
    "figures": "metrics",
    "judged_step": "last_eval_step",
    "stale": "evals_without_improvement",
    "window": "running_mean",
}
LAST = "last.pt"  # the newest checkpoint of a run folder


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
    file = Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser() raises for an unknown user
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
    _check_form(state, path, DETECTOR)
    tensors = state["ema"]["model"] if choose_weights(state, weights, path) == "ema" else state["model"]
    try:
        detector = build_detector(state["config"] if config is None else config, len(state["class_names"]))
    except (TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, AssertionError) as error:
        # values of other types, which only the config of the training framework checks
        raise CheckpointError(f"the config in checkpoint {path} does not describe a detector: {error}") from error
    check_tensors(tensors, detector.state_dict(), path)
    detector.load_state_dict(tensors)
    return detector.eval()


def check_tensors(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    """Check that a checkpoint has the tensors of a network.

    Args:
        tensors: State dict of the checkpoint.
        wanted: State dict of the network.
        path: File of the checkpoint.

    Raises:
        CheckpointError: If names or shapes differ; the message counts them and has the first.
    """
    missing, unused = [key for key in wanted if key not in tensors], [key for key in tensors if key not in wanted]
    shapes = [key for key in wanted if key in tensors and tensors[key].shape != wanted[key].shape]
    problems = [
        f"{counted} {what}, first {shown(keys[0])}"
        for what, keys in (("missing", missing), ("unexpected", unused), ("of another shape", shapes))
        if (counted := len(keys))
    ]
    if shapes:
        there, here = ([*values[shapes[0]].shape] for values in (tensors, wanted))
        problems[-1] += f" {there} instead of {here}"
    if problems:
        raise CheckpointError(
            f"the weights of checkpoint {path} do not match the detector of its config; tensors: {', '.join(problems)}"
        )


def _check_form(state: Mapping[str, Any], path: Path, needed: Collection[str]) -> None:
    try:
        check_form(state, f"checkpoint {path}", needed)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


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


def load_checkpoint(path: Path, needed: Collection[str] = ()) -> dict[str, Any]:
    """Read a checkpoint onto the CPU, after comparing all content with its checksums.

    Args:
        path: File of the checkpoint.
        needed: Entries that it must have, see `checkpoint_form`; only weights are needed of a converted detector.

    Raises:
        CheckpointError: If it is missing, damaged, from another version of this project, or not a checkpoint of it; or
            if an entry is missing or invalid.
    """
    try:
        state = read_weights_file(path)
    except WeightsFileError as error:
        raise CheckpointError(f"checkpoint {path} {unreadable(error)}") from error
    written = state.get("format") if isinstance(state, dict) else None
    if type(written) is not int:
        found = shown([*state] if isinstance(state, dict) else state)
        raise CheckpointError(f"checkpoint {path} was not written by this project's trainer; it contains {found}")
    if written != FORMAT:
        raise CheckpointError(
            f"checkpoint {path} was written by another version of this project: its format must be {FORMAT}, got "
            f"{shown(written)}; use that version, or train again"
        )
    state = {RENAMED_KEYS.get(key, key): value for key, value in state.items()}
    if "converted_from" in state:  # without the state of a training
        needed = [key for key in needed if key in TRAINED]
    _check_form(state, path, needed)
    if "config" in state:
        state["config"] = with_current_names(state["config"], is_written=True)
    return state
