"""The folder of a run: what lies in it, and how not to overwrite another's."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CONFIG_FILE, LOG_FILE = "config.yaml", "train.log"
LAST, BEST = "last.pt", "best.pt"


class RunFolderError(ValueError):
    """A run folder that must not or cannot be used."""


def choose_run(folder: Path | None, resume: str | None, default: Path) -> tuple[Path, Path | None]:
    """Choose the folder of a run and the checkpoint to go on from; writes nothing.

    Args:
        folder: the one asked for, None for the default.
        resume: None for a new run, "auto" to go on if the folder holds a checkpoint, or a checkpoint's file.
        default: folder of a run that asks for none; a checkpoint that is named goes on where it lies.

    Returns:
        The folder, and the checkpoint or None.

    Raises:
        RunFolderError: if the folder holds another run, or the checkpoint does not exist.
    """
    checkpoint = None
    if resume not in (None, "auto"):
        checkpoint = Path(resume)
        if not checkpoint.is_file():
            raise RunFolderError(f"checkpoint {checkpoint} does not exist (resolved: {checkpoint.resolve()})")
        default = checkpoint.parent
    folder = folder or default
    if resume == "auto" and (folder / LAST).is_file():
        checkpoint = folder / LAST
    continues = resume == "auto" or (checkpoint is not None and checkpoint.resolve().parent == folder.resolve())
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"run folder {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not continues:
        raise RunFolderError(
            f"run folder {folder} is not empty, and runs are never overwritten: go on with it by --resume auto, "
            "choose another by --run-dir, or remove it"
        )
    return folder, checkpoint


@contextmanager
def own_run(folder: Path) -> Iterator[None]:
    """Make a run folder and keep other processes out of it; the system ends that with the process, however it ends.

    Windows knows no locks on folders, and keeps nobody out.

    Raises:
        RunFolderError: if another process trains in it.
    """
    folder.mkdir(parents=True, exist_ok=True)
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
