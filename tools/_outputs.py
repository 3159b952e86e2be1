"""Checks of the files that a tool writes, before its work starts."""

import os
from collections.abc import Hashable, Mapping
from pathlib import Path

from data.files import is_stream
from data.paths import resolved
from engine.runs import RUN_FILES, step_files

Files = Mapping[str, Path | None]


def check_outputs(outputs: Files, inputs: Files | None = None) -> None:
    """Check that all outputs can be written, and that none of them is another output or an input.

    A file has many names: relative paths, links, hard links, and other cases where the file system ignores case.

    Args:
        outputs: files to write, by the name of their argument; None: not asked for.
        inputs: files that the tool reads, or that it must keep.

    Raises:
        ValueError: with the names of the arguments and the path.
    """
    found: dict[Hashable, tuple[str, Path]] = {}
    reads = {file_key(path): (name, path) for name, path in (inputs or {}).items() if path is not None}
    for name, path in outputs.items():
        if path is None or is_stream(path):  # nothing is lost if two outputs go to /dev/null
            continue
        check_writable(name, path)
        key = file_key(path)
        if key in reads:
            raise ValueError(f"{name} {path} must not overwrite {reads[key][0]} {reads[key][1]}")
        if key in found:
            raise ValueError(f"{name} and {found[key][0]} must be different files, got {path} and {found[key][1]}")
        found[key] = name, path


def check_writable(name: str, path: Path) -> None:
    """Raise `ValueError` unless `path` may be a file in a folder that exists or can be created."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as error:  # a name that is too long, or with a NUL character
        raise ValueError(f"{name} {path} cannot be written: {getattr(error, 'strerror', error)}") from None
    if path.is_dir():
        raise ValueError(f"{name} must be a file, got the folder {path}")
    folder = next(folder for folder in path.absolute().parents if os.path.lexists(folder))
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{name} {path} must be in a writable folder, got {folder}")


def run_files(run: Path) -> dict[str, Path]:
    """Return the files of a run folder that no tool may overwrite, and the checkpoint if `run` is one."""
    folder = run if run.is_dir() else run.parent
    files = [*(folder / name for name in RUN_FILES), *step_files(folder).values(), *([] if run.is_dir() else [run])]
    return {f"the file of the run {file.name}": file for file in files if file.is_file()}


def file_key(path: Path) -> Hashable:
    """Return a value that is the same for all names of a file, also of one that does not exist."""
    try:
        status = path.stat()
        return status.st_dev, status.st_ino
    except (OSError, ValueError):
        pass
    whole = resolved(path)
    folder = next((folder for folder in whole.parents if folder.exists()), whole)
    rest = str(whole.relative_to(folder))
    return file_key(folder), rest.casefold() if _ignores_case(folder) else rest


def _ignores_case(folder: Path) -> bool:
    """Whether a file system ignores the case of names, as on macOS and Windows."""
    other = folder.with_name(folder.name.swapcase())
    try:
        return other.name != folder.name and other.samefile(folder)
    except OSError:
        return False
