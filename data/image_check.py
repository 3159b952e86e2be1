"""Checks of a data set's image files, and stamps to skip repeated checks."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .coco_file import Problem, declared_size
from .image_files import ImageError, MissingImageError
from .images import check_image
from .paths import resolved

CHECK_POLICIES = ("first_time", "always", "never")


def check_stamp(sha256: str, images: Sequence[dict[str, Any]], image_dir: Path) -> dict[str, Any]:
    """Return plain values that change if the images have to be checked again.

    The values are the SHA-256 of the annotation file and the modification time of each image folder in ns. Adding,
    removing and renaming files changes this time; writing into an existing file does not.
    """
    folders = {image_dir / parent for parent in {Path(entry["file_name"]).parent for entry in images}}
    times = {str(resolved(folder)): folder.stat().st_mtime_ns for folder in sorted(folders) if folder.is_dir()}
    return {"annotations": sha256, "folders": times}


def image_problems(
    images: Sequence[dict[str, Any]],
    image_dir: Path,
    download_hint: str | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Iterator[Problem]:
    """Yield the problems of missing and unusable image files; arguments as of `load_annotations`."""
    missing, broken = [], []
    for entry in progress(images):
        file = image_dir / entry["file_name"]
        try:
            check_image(file, declared_size(entry))
        except MissingImageError:
            missing.append(entry["file_name"])
        except ImageError as error:
            broken.append(str(error))
    if missing:
        hint = f"; to get it: {download_hint}" if download_hint else ""
        yield Problem(f"images missing in {image_dir}", missing, f" of {len(images)}{hint}")
    if broken:
        yield Problem("invalid images", broken)
