"""The folder of a run: what lies in it, and how not to overwrite another's."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.checkpoint import LAST

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CONFIG_FILE, LOG_FILE, CHECKED_FILE = "config.yaml", "train.log", "checked_images.json"
BEST = "best.pt"


class RunFolderError(ValueError):
    """A run folder that must not or cannot be used."""


def step_file(step: int) -> str:
    """Name of a checkpoint that was `last.pt` until the next one was written."""
    return f"step_{step:08d}.pt"


def step_files(folder: Path) -> dict[int, Path]:
    """Find the checkpoints named by `step_file`, by their step, newest first."""
    found = {}
    for file in folder.glob("step_*.pt"):
        digits = file.stem.removeprefix("step_")
        if digits.isdecimal() and file.name == step_file(int(digits)) and file.is_file():
            found[int(digits)] = file
    return dict(sorted(found.items(), reverse=True))


def choose_run(folder: Path | None, resume: str | None, default: Path | None) -> tuple[Path, list[Path]]:
    """Choose the folder of a run and the checkpoints to go on from; writes nothing.

    Args:
        folder: the one asked for, None for the default.
        resume: None for a new run, "auto" to go on if the folder holds a checkpoint, or a checkpoint's file.
        default: folder of a run that asks for none, None without one; a checkpoint that is named goes on where it lies.

    Returns:
        The folder, and the checkpoints in the order in which to try them: none for a new run, the one that was named,
        or by "auto" all that lie in the folder, newest first. The best is tried last: it may be much older.

    Raises:
        RunFolderError: if there is no folder to use, it holds another run, or the checkpoint does not exist.
    """
    checkpoints = []
    if resume not in (None, "auto"):
        checkpoints = [Path(resume)]
        if not checkpoints[0].is_file():
            raise RunFolderError(f"checkpoint {resume} does not exist (resolved: {checkpoints[0].resolve()})")
        default = checkpoints[0].parent
    folder = folder or default
    if folder is None:
        raise RunFolderError(
            "`run_dir` must name the folder of the run, since the config is not a file whose name it could have"
        )
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"run folder {folder} is a file")
    if resume == "auto":
        ordered = [folder / LAST, *step_files(folder).values(), folder / BEST]
        checkpoints = [file for file in ordered if file.is_file()]
    continues = resume == "auto" or (checkpoints and checkpoints[0].resolve().parent == folder.resolve())
    if folder.is_dir() and any(folder.iterdir()) and not continues:
        raise RunFolderError(
            f"run folder {folder} is not empty, and runs are never overwritten: go on with it by --resume auto, "
            "choose another by --run-dir, or remove it"
        )
    return folder, checkpoints


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Make a run folder and keep other processes out of it; the system ends that with the process, however it ends.

    Windows knows no locks on folders, and keeps nobody out.

    Raises:
        RunFolderError: if it cannot be made or written to, or another process trains in it.
    """
    _make_writable(folder)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise RunFolderError(
            f"another process trains in run folder {folder}: wait for its end, or choose another by --run-dir"
        ) from None
    try:
        yield
    finally:
        os.close(handle)


def _make_writable(folder: Path) -> None:
    """Make a folder, and write a file that vanishes: better to fail now than at the first checkpoint."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())  # some file systems only find out here that they are full
    except OSError as error:
        raise RunFolderError(
            f"run folder {folder} must be one that can be made and written to: {error.strerror}; "
            "put that right, or choose another by --run-dir"
        ) from None
