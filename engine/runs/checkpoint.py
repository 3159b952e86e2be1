"""Checkpoints: plain dicts of state, written atomically; `models/checkpoint.py` reads them."""

import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import torch

from data.files import atomic_path
from models.checkpoint import FORMAT, CheckpointError, load_checkpoint

from .folder import LAST, step_file, step_files


class CheckpointWriteError(OSError):
    """A checkpoint that the system did not take; `errno` is the system's."""

    def __str__(self) -> str:
        return self.strerror


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint so that `path` always holds a whole one: the old or the new.

    Raises:
        CheckpointWriteError: if the system refuses; nothing is left of the new one then.
    """
    _save(path, state)


def load_newest(candidates: Sequence[Path]) -> tuple[Path, dict[str, Any], list[str]]:
    """Read the first checkpoint that is whole.

    Args:
        candidates: files in the order in which to try them, see `choose_run`.

    Returns:
        The file, its state, and what is wrong with each file before it.

    Raises:
        CheckpointError: if none is whole, with what is wrong with each.
    """
    problems = []
    for path in candidates:
        try:
            return path, load_checkpoint(path), problems
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError(
        "\n".join(
            [
                "there is no whole checkpoint to go on from; name another by --resume FILE, or train anew in another "
                "folder by --run-dir:",
                *(f"  - {problem}" for problem in problems),
            ]
        )
    )


class Checkpoints:
    """The checkpoints of one run: the newest under `last.pt`, those before it under `step_<step>.pt`, and the best.

    A disk damages what lies on it, and a run can go wrong long before it shows: hence more than one. While one is
    written there are `keep` + 1 of them, and the best.

    Args:
        folder: run folder.
        about: what every checkpoint tells beside the state.
        keep: how many of the newest to keep, `last.pt` among them.
        newest: file and step of the checkpoint that the run goes on from, None for a new run. A `last.pt` that is
            another file was broken or given up, and is not kept. What was kept of later steps belongs to a course that
            is given up, as do the lines after that step in metrics.jsonl: it is removed as soon as the new `last.pt` is
            in place.
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], *, keep: int = 2, newest: tuple[Path, int] | None = None
    ) -> None:
        if keep < 1:
            raise ValueError(f"at least 1 checkpoint must be kept, got {keep}")
        self._folder, self._about, self._keep = folder, about, keep
        path, step = newest or (None, 0)
        self._last_step = step if path and path.resolve() == (folder / LAST).resolve() else None  # of a whole last.pt
        self._base: float = step

    def save(self, state: dict[str, Any], name: str) -> None:
        """Write `about` and a state as `LAST` or `BEST`; that of the same step is replaced.

        Raises:
            CheckpointWriteError: if the system refuses; the earlier ones are intact then.
        """
        state, path = self._about | state, self._folder / name
        if name != LAST:
            _save(path, state)
            return
        is_next = self._keep > 1 and self._last_step not in (None, state["step"])
        _save(path, state, former=self._folder / step_file(self._last_step) if is_next else None)
        self._last_step = state["step"]
        self._remove_old()

    def _remove_old(self) -> None:
        files = step_files(self._folder)
        kept = [step for step in files if step <= self._base][: self._keep - 1]
        for step, file in files.items():
            if step not in kept:
                with suppress(OSError):  # it is tried again after the next save
                    file.unlink()
        self._base = math.inf  # from here on, all are of this run's course


def _save(path: Path, state: dict[str, Any], former: Path | None = None) -> None:
    """Write a checkpoint atomically; what had its name before becomes `former`, if given."""
    state = {"format": FORMAT, **state}
    try:
        with atomic_path(path) as partial:
            with partial.open("wb") as file:
                _write(file, state)
            if former is not None and path.exists():
                _give_second_name(path, former)
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointWriteError(
            error.errno,
            f"checkpoint {path} cannot be written: {error.strerror or error}; it needs {_size_mib(state):.1f} MiB, "
            f"{_free_mib(path.parent)} MiB are free. The earlier checkpoints are intact: put that right, and go on "
            "by --resume auto",
        ) from error


def _write(file: BinaryIO, state: dict[str, Any]) -> None:
    """Write a state, down to the disk."""
    sink = _Sink(file)
    torch.save(state, sink)
    if sink.error is not None:
        raise sink.error
    file.flush()
    os.fsync(file.fileno())


class _Sink:
    """What torch.save writes into: passes it on, and counts its bytes.

    An error of the file is kept for the caller, because torch would hide it behind one of its own.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size, self.error = 0, None

    def write(self, data: memoryview) -> None:
        self.size += len(data)
        try:
            if self.error is None:
                self._file.write(data)
        except OSError as error:
            self.error = error

    def flush(self) -> None:
        """Nothing is held back here."""


def _give_second_name(path: Path, second: Path) -> None:
    """Let a file have a second name, and where the file system knows no such thing, only that."""
    second.unlink(missing_ok=True)  # of a save that failed, or of a course that was given up
    try:
        second.hardlink_to(path)
    except OSError:
        path.rename(second)


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder down to the disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _size_mib(state: dict[str, Any]) -> float:
    with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - no path of the file system
        sink = _Sink(nowhere)
        torch.save(state, sink)
    return sink.size / 2**20


def _free_mib(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.1f}"
    except OSError:  # the folder is gone
        return "unknown"
