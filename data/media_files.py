"""Which pictures and videos a user means: by file, by folder or by a pattern."""

import os
from collections.abc import Iterator, Sequence
from glob import glob, has_magic
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts")


class MediaFileError(ValueError):
    """Something that was meant to be looked at and is not there; the message names it."""


class MediaFile(NamedTuple):
    """A picture or a video.

    Attributes:
        path: where it is.
        name: its path in the folder that all inputs have in common, with "/" between folders; no other has it.
        is_video: whether it is a video, by its suffix.
    """

    path: Path
    name: str
    is_video: bool


def find_media_files(inputs: Sequence[str], *, exclude: Path) -> list[MediaFile]:
    """Find what inputs stand for, each file once, in the order of the inputs and by name within a folder.

    Args:
        inputs: files of any name; folders, of which all files with the suffix of a picture or a video are taken, those
            of their folders too but no hidden ones; and patterns such as "photos/*.jpg" or "photos/**/a*".
        exclude: folder, as of results, whose files are not meant where an input is a folder or a pattern.

    Raises:
        MediaFileError: if an input does not exist, or stands for nothing.
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
    """The folder that an input is about, and its files."""
    path = _absolute(Path(text))
    if path.is_file():
        return path.parent, [path]
    if path.is_dir():
        base, matches, what = path, [path], f"input folder {text} holds no picture or video"
    elif has_magic(text):
        base = _absolute(Path(*takewhile(lambda part: not has_magic(part), Path(text).parts)))
        matches = sorted(_absolute(Path(match)) for match in glob(text, recursive=True))  # noqa: PTH207 - of any root
        what = f"input {text} matches no picture or video"
    else:
        raise MediaFileError(f"input {text} does not exist (resolved: {path})")
    files = [file for match in matches for file in _within(match) if not file.is_relative_to(exclude)]
    if not files:
        raise MediaFileError(f"{what} (resolved: {path}); looked for {', '.join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))}")
    return base, files


def _within(path: Path) -> Iterator[Path]:
    """Yield a file, or the files within a folder, that have a known suffix."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if not hidden and file.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) and file.is_file():
            yield file


def _absolute(path: Path) -> Path:
    # not resolve(): files keep the names by which the user sees them, also through links
    return Path(os.path.abspath(path))  # noqa: PTH100
