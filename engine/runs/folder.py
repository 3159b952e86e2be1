"""The run folder: its files, and protection against overwriting other runs."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.paths import resolved
from data.shown import escaped
from models.checkpoint import LAST

from ..display import log

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

CONFIG_FILE, LOG_FILE, METRICS_FILE, CHECKED_FILE = "config.yaml", "train.log", "metrics.jsonl", "checked_images.json"
BEST = "best.pt"
RUN_FILES = (CONFIG_FILE, LOG_FILE, METRICS_FILE, CHECKED_FILE, LAST, BEST)


class RunFolderError(ValueError):
    """A run folder that cannot be used."""


def step_file(step: int) -> str:
    """Return the name of an earlier checkpoint, which was `last.pt` before."""
    return f"step_{step:08d}.pt"


def step_files(folder: Path) -> dict[int, Path]:
    """Return the checkpoints named by `step_file`, by step, newest first."""
    found = {}
    for file in folder.glob("step_*.pt"):
        digits = file.stem.removeprefix("step_")
        if digits.isdecimal() and file.name == step_file(int(digits)) and file.is_file():
            found[int(digits)] = file
    return dict(sorted(found.items(), reverse=True))


def choose_run(folder: Path | None, resume: str | None, default: Path | None) -> tuple[Path, list[Path]]:
    """Choose the folder of a run and the checkpoints to resume from; nothing is written.

    Args:
        folder: requested folder; None: the default.
        resume: None for a new run, "auto" to resume if the folder has a checkpoint, or the file of a checkpoint.
        default: folder if `folder` is None. A checkpoint file resumes in its own folder instead.

    Returns:
        The folder, and the checkpoints to try, in order: empty for a new run, the given file, or for "auto" all
        checkpoints of the folder, newest first. `best.pt` is last because it may be much older.

    Raises:
        RunFolderError: if no folder is given, the folder has another run, or the checkpoint does not exist.
    """
    checkpoints = []
    if resume not in (None, "auto"):
        checkpoints = [Path(resume)]
        if not checkpoints[0].is_file():
            raise RunFolderError(f"checkpoint {resume} does not exist (resolved: {resolved(checkpoints[0])})")
        default = checkpoints[0].parent
    folder = folder or default
    if folder is None:
        raise RunFolderError(
            "`run_dir` is required, because the config is not a file that the run folder could be named after"
        )
    if folder.exists() and not folder.is_dir():
        raise RunFolderError(f"run folder {folder} is a file, not a folder")
    for name in RUN_FILES:
        _check_file(folder / name)
    if resume == "auto":
        ordered = [folder / LAST, *step_files(folder).values(), folder / BEST]
        checkpoints = [file for file in ordered if file.is_file()]
    continues = resume == "auto" or (checkpoints and resolved(checkpoints[0]).parent == resolved(folder))
    if folder.is_dir() and any(folder.iterdir()) and not continues:
        raise RunFolderError(
            f"run folder {folder} is not empty, and runs are never overwritten: resume the run with --resume auto, "
            "choose another folder with --run-dir, or remove this folder"
        )
    return folder, checkpoints


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Create a run folder and lock it against other processes. The system releases the lock when the process ends.

    Loader workers do not hold the lock: a run that was killed can start again at once, while its workers still end.

    Note: Windows has no locks on folders, and on NFS the lock holds on one machine only. A warning names a file system
    without locks.

    Raises:
        RunFolderError: if the folder cannot be created or written, or if another process trains in it.
    """
    _make_writable(folder)
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    _locks.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(
                f"another process trains in run folder {folder}: wait until it ends, or choose another with --run-dir"
            ) from None
        except OSError as error:
            log.warning(
                "run folder %s cannot be locked (%s): make sure that no other process trains in it",
                folder,
                error.strerror,
            )
        yield
    finally:
        _locks.discard(handle)
        os.close(handle)


def _leave_locks() -> None:
    """Close the folders that a forked process has inherited: a lock lasts as long as any process holds its handle."""
    while _locks:
        os.close(_locks.pop())


# handles of the folders that this process has locked
_locks: set[int] = set()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_locks)


def _make_writable(folder: Path) -> None:
    """Create a folder and write a temporary file, to fail now rather than at the first checkpoint."""
    if os.path.lexists(folder) and not folder.exists():
        raise RunFolderError(f"run folder {folder} is a link that leads to no folder: remove it, or choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())  # some file systems report a full disk only here
    except (OSError, ValueError) as error:  # a name with a NUL character is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise RunFolderError(
            f"run folder {escaped(str(folder))} cannot be created or written: {reason}. "
            "Fix this, or choose another folder with --run-dir"
        ) from None


def _check_file(path: Path) -> None:
    """Raise `RunFolderError` if there is something else than a file in the place of one of the run's files."""
    if os.path.lexists(path) and not path.is_file():
        kind = "a folder" if path.is_dir() else "a link that leads nowhere" if path.is_symlink() else "a special file"
        raise RunFolderError(f"{path} must be a file of the run, and is {kind}: remove it, or choose another --run-dir")
