"""`find_media_files`: the images and videos of files, folders and patterns."""

import os
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
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


def find_media_files(inputs: Sequence[str], *, exclude: Path) -> list[MediaFile]:
    """Return the files of the inputs, each file once, in the order of the inputs and by name within a folder.

    Args:
        inputs: Files with any name, folders, and patterns such as "photos/*.jpg" or "photos/**/a*". Folders include
            all files with the suffix of an image or a video, also in subfolders, except for hidden files.
        exclude: Folder, for example of results, whose files are skipped if an input is a folder or a pattern.

    Raises:
        MediaFileError: If an input does not exist, or contains no image or video.
    """
    bases, found = [], {}
    for text in inputs:
        base, files = _resolve(text, _absolute(exclude))
        bases.append(base)
        found |= dict.fromkeys(files)
    root = os.path.commonpath(bases)
    return [
        MediaFile(file, Path(os.path.relpath(file, root)).as_posix(), file.suffix.lower() in VIDEO_SUFFIXES)
        for file in found
    ]


def _resolve(text: str, exclude: Path) -> tuple[Path, list[Path]]:
    """Return the folder of an input and its files."""
    path = _absolute(Path(text))
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        base, matches, what = path, [path], f"input folder {text} contains no image or video"
    elif has_magic(text):
        base = _absolute(Path(*takewhile(lambda part: not has_magic(part), Path(text).parts)))
        matches = sorted(_absolute(Path(match)) for match in glob(text, recursive=True))  # noqa: PTH207 - of any root
        what = f"input {text} matches no image or video"
    else:
        raise MediaFileError(f"input {text} does not exist (resolved: {path})")
    files = [file for match in matches for file in _within(match) if not file.is_relative_to(exclude)]
    if not files:
        known = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
        raise MediaFileError(f"{what} (resolved: {path}); supported suffixes: {known}")
    return base, files


def _within(path: Path) -> Iterator[Path]:
    """Yield a file, or the files in a folder, if they have a supported suffix."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and file.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) and file.is_file():
            yield file


def _absolute(path: Path) -> Path:
    # not resolve(): files keep the names that the user sees, also through links
    return Path(os.path.abspath(path))  # noqa: PTH100
