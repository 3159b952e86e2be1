"""Checkpoints: plain dicts of state with atomic writes. `models/checkpoint.py` reads them."""

import math
import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from data.files import atomic_file, remove_partials
from data.paths import resolved
from models.checkpoint import FORMAT, CheckpointError, load_checkpoint

from .folder import BEST, LAST, step_file, step_files


class CheckpointWriteError(OSError):
    """A checkpoint that could not be written; `errno` is the error code of the system."""

    def __str__(self) -> str:
        return self.strerror


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint atomically: `path` is always a complete checkpoint, the old one or the new one.

    Raises:
        CheckpointWriteError: if the file cannot be written. The partial file is removed.
    """
    _save(path, state)


def load_newest(candidates: Sequence[Path], needed: Collection[str] = ()) -> tuple[Path, dict[str, Any], list[str]]:
    """Read the first intact checkpoint.

    Args:
        candidates: files to try, in order, see `choose_run`.
        needed: see `load_checkpoint`.

    Returns:
        The file, its state, and the errors of the files before it.

    Raises:
        CheckpointError: if no checkpoint is intact, with the error of each file.
    """
    problems = []
    for path in candidates:
        try:
            return path, load_checkpoint(path, needed), problems
        except CheckpointError as error:
            problems.append(str(error))
    raise CheckpointError(
        "\n".join(
            [
                "no intact checkpoint to resume from. Choose another one with --resume FILE, or start a new run in "
                "another folder with --run-dir:",
                *(f"  - {problem}" for problem in problems),
            ]
        )
    )


class Checkpoints:
    """The checkpoints of one run: the newest as `last.pt`, earlier ones as `step_<step>.pt`, and the best.

    Earlier checkpoints help if a file is damaged, or if training diverged before it became visible. During a write
    there are `keep` + 1 of them, and the best.

    Args:
        folder: run folder.
        about: entries that every checkpoint has in addition to the state.
        keep: number of newest checkpoints to keep, including `last.pt`.
        newest: file and step of the checkpoint that the run resumes from; None for a new run. If that file is not
            `last.pt`, the present `last.pt` is not kept. Checkpoints of later steps are deleted once the first new
            checkpoint has been written.
    """

    def __init__(
        self, folder: Path, about: dict[str, Any], *, keep: int = 2, newest: tuple[Path, int] | None = None
    ) -> None:
        if keep < 1:
            raise ValueError(f"at least 1 checkpoint must be kept, got {keep}")
        self._folder, self._about, self._keep = folder, about, keep
        path, step = newest or (None, 0)
        # step of an intact last.pt
        self._last_step = step if path and resolved(path) == resolved(folder / LAST) else None
        self._base: float = step
        self._is_first_save = True

    def save(self, state: dict[str, Any], name: str) -> None:
        """Write `about` and a state as `LAST` or `BEST`; a checkpoint of the same step is replaced.

        Raises:
            CheckpointWriteError: if the file cannot be written. The earlier checkpoints stay intact.
        """
        state, path = self._about | state, self._folder / name
        if self._is_first_save:
            self._is_first_save = False
            for written in (LAST, BEST):
                remove_partials(self._folder / written)
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
                with suppress(OSError):  # tried again after the next save
                    file.unlink()
        self._base = math.inf  # from here on, all checkpoints are from this process


def _save(path: Path, state: dict[str, Any], former: Path | None = None) -> None:
    """Write a checkpoint atomically; the previous file becomes `former`, if given."""
    state = {"format": FORMAT, **state}
    try:
        with atomic_file(path, in_new_folder=False) as file:
            torch.save(state, file)
            file.sync()
            if former is not None and path.exists():
                _give_second_name(path, former)
        _sync_folder(path.parent)
    except OSError as error:
        raise CheckpointWriteError(
            error.errno,
            f"checkpoint {path} cannot be written: {error.strerror or error}; it needs {_size_mib(state):.1f} MiB, "
            f"{_free_mib(path.parent)} MiB are free. The earlier checkpoints are intact: fix this, then resume "
            "with --resume auto",
        ) from error


class _Counter:
    """File object for torch.save that counts bytes."""

    size = 0

    def write(self, data: memoryview) -> None:
        self.size += len(data)

    def flush(self) -> None:
        """Do nothing: nothing is written."""


def _give_second_name(path: Path, second: Path) -> None:
    """Add a second name to a file, or rename it if the file system has no hard links."""
    second.unlink(missing_ok=True)  # left by a failed save or by steps after the resumed one
    try:
        second.hardlink_to(path)
    except OSError:
        path.rename(second)


def _sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to the disk, if the system supports it."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _size_mib(state: dict[str, Any]) -> float:
    counter = _Counter()
    torch.save(state, counter)
    return counter.size / 2**20


def _free_mib(folder: Path) -> str:
    try:
        return f"{shutil.disk_usage(folder).free / 2**20:.1f}"
    except OSError:  # the folder is gone
        return "unknown"
