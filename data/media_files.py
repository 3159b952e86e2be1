"""`find_media_files`: the images and videos of files, folders and patterns."""

import os
from collections.abc import Sequence
from functools import cache
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from .image_files import image_suffixes
from .regular_files import kind_of_file

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")


class MediaFileError(ValueError):
    """An input does not exist or contains no image or video; the message contains the input."""


class MediaFile(NamedTuple):
    """An image or a video.

    Attributes:
        path: Absolute path.
        name: Path relative to the common folder of all inputs, with "/" between folders; unique among the inputs.
        is_video: Whether it is a video, by its suffix.
    """

    path: Path
    name: str
    is_video: bool


class PassedOver(NamedTuple):
    """A file or folder of an input that is not used.

    Attributes:
        path: Absolute path.
        why: Kind of the file, as in "files with the suffix .txt".
    """

    path: Path
    why: str


def find_media_files(
    inputs: Sequence[str], *, exclude: Path, arrays: bool = False
) -> tuple[list[MediaFile], list[PassedOver]]:
    """Find the files of the inputs, each file once, in the order of the inputs and by name within a folder.

    A file with the suffix of an image or a video is returned although it cannot be opened, such as a link to nothing.

    Args:
        inputs: Files with any name, folders, and patterns such as "photos/*.jpg" or "photos/**/a*". Folders include
            all files with the suffix of an image or a video, also in subfolders, except for hidden files.
        exclude: Folder, for example of results, whose files are skipped if an input is a folder or a pattern.
        arrays: Whether NPY files in folders and patterns are images too.

    Returns:
        The files, and what else is in the folders and patterns, without hidden files.

    Raises:
        MediaFileError: If an input does not exist, is a special file, or contains no image or video.
    """
    bases: list[Path] = []
    found: dict[Path, None] = {}
    passed_over: dict[Path, PassedOver] = {}
    for text in inputs:
        base, files, others = _resolve(text, _absolute(exclude), _suffixes(arrays))
        bases.append(base)
        found |= dict.fromkeys(files)
        passed_over |= {other.path: other for other in others}
    root = os.path.commonpath(bases)
    files = [
        MediaFile(file, Path(os.path.relpath(file, root)).as_posix(), file.suffix.lower() in VIDEO_SUFFIXES)
        for file in found
    ]
    return files, [other for path, other in passed_over.items() if path not in found]


def describe_passed_over(passed_over: Sequence[PassedOver]) -> str:
    """Count what was passed over by its kind, with the first path of each kind."""
    kinds: dict[str, list[Path]] = {}
    for path, why in passed_over:
        kinds.setdefault(why, []).append(path)
    return "; ".join(
        f"{why}: {len(paths)} ({'such as ' if len(paths) > 1 else ''}{paths[0]})" for why, paths in kinds.items()
    )


def _resolve(text: str, exclude: Path, suffixes: frozenset[str]) -> tuple[Path, list[Path], list[PassedOver]]:
    """Return the folder of an input, its files, and what else is in it."""
    path = _absolute(Path(text))
    if path.is_file():
        return path.parent, [path], []
    if path.is_dir():
        base, matches, what = path, [path], f"input folder {text} contains no image or video"
    elif os.path.lexists(path):
        kind = kind_of_file(path.stat().st_mode) if path.exists() else "a link to nothing"
        raise MediaFileError(f"input {text} must be a file, a folder or a pattern, got {kind}")
    elif has_magic(text):
        base = _absolute(Path(*takewhile(lambda part: not has_magic(part), Path(text).parts)))
        matches = sorted(_absolute(Path(match)) for match in glob(text, recursive=True))  # noqa: PTH207 - of any root
        what = f"input {text} matches no image or video"
    else:
        raise MediaFileError(f"input {text} does not exist (resolved: {path})")
    files, others = [], []
    for found in (entry for match in matches for entry in _within(match, suffixes)):
        if not _path_of(found).is_relative_to(exclude):
            (others if isinstance(found, PassedOver) else files).append(found)
    if not files:
        also = f"; passed over: {describe_passed_over(others)}" if others else ""
        known = ", ".join(sorted(suffixes - {*VIDEO_SUFFIXES})) + ", " + ", ".join(VIDEO_SUFFIXES)
        raise MediaFileError(f"{what} (resolved: {path}){also}; supported suffixes: {known}")
    return base, files, others


def _within(path: Path, suffixes: frozenset[str]) -> list[Path | PassedOver]:
    """Return a file, or what is in a folder, in the order of the names."""
    found: list[Path | PassedOver] = []
    if not path.is_dir():
        return [_classify(path, suffixes)]
    errors: list[OSError] = []
    for folder, folders, files in os.walk(path, onerror=errors.append):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [_classify(Path(folder, name), suffixes) for name in files if not name.startswith(".")]
        for inner in (Path(folder, name) for name in folders):
            if inner.is_symlink():
                found.append(PassedOver(inner, "links to folders"))
            elif inner.suffix.lower() in suffixes:
                found.append(PassedOver(inner, "folders with the suffix of a file, whose files are used"))
    found += [PassedOver(Path(error.filename), f"folders with {error.strerror}") for error in errors]
    return sorted(found, key=_path_of)


def _classify(file: Path, suffixes: frozenset[str]) -> Path | PassedOver:
    if file.suffix.lower() in suffixes:
        return file
    return PassedOver(file, f"files with the suffix {file.suffix}" if file.suffix else "files without a suffix")


def _path_of(found: Path | PassedOver) -> Path:
    return found.path if isinstance(found, PassedOver) else found


@cache
def _suffixes(arrays: bool) -> frozenset[str]:
    return frozenset((*image_suffixes(), *VIDEO_SUFFIXES, *([".npy"] if arrays else [])))


def _absolute(path: Path) -> Path:
    # not resolve(): files keep the names that the user sees, also through links
    return Path(os.path.abspath(path))  # noqa: PTH100
