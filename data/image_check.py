"""Checks of a data set's image files, and stamps to skip repeated checks."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar

from .coco_file import Problem, declared_size
from .image_files import ImageError, MissingImageError
from .images import ImageFacts, ReadOptions, check_image, inspect_image
from .paths import resolved
from .read_ahead import read_ahead

CHECK_POLICIES = ("first_time", "always", "never")

T = TypeVar("T")
Check = Callable[[Path, tuple[int, int] | None, ReadOptions], T]


def check_stamp(sha256: str, images: Sequence[dict[str, Any]], image_dir: Path, options: ReadOptions) -> dict[str, Any]:
    """Return plain values that change if the images have to be checked again.

    The values are the SHA-256 of the annotation file, the modification time of each image folder in ns, and the options
    of reading. Adding, removing and renaming files changes this time; writing into an existing file does not.
    """
    folders = {image_dir / parent for parent in {Path(entry["file_name"]).parent for entry in images}}
    times = {str(resolved(folder)): folder.stat().st_mtime_ns for folder in sorted(folders) if folder.is_dir()}
    plain = [[*value] if isinstance(value, tuple) else value for value in astuple(options)]
    return {"annotations": sha256, "folders": times, "options": plain}


def image_problems(
    images: Sequence[dict[str, Any]],
    image_dir: Path,
    options: ReadOptions,
    download_hint: str | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Iterator[Problem]:
    """Yield the problems of image files that `check_image` finds; arguments as of `load_annotations`."""
    yield from _check(check_image, images, image_dir, options, progress, download_hint)[1]


def inspect_images(
    images: Sequence[dict[str, Any]],
    image_dir: Path,
    options: ReadOptions,
    progress: Callable[[Iterable], Iterable] = iter,
) -> tuple[list[Problem], list[Problem], dict[str, ImageFacts]]:
    """Decode all images; return the problems that stop training, likely errors, and the facts by file name."""
    facts, errors = _check(inspect_image, images, image_dir, options, progress)
    return errors, doubtful_pixels(facts, options), facts


def _check(
    check: Check[T],
    images: Sequence[dict[str, Any]],
    image_dir: Path,
    options: ReadOptions,
    progress: Callable[[Iterable], Iterable],
    download_hint: str | None = None,
) -> tuple[dict[str, T], list[Problem]]:
    """Check all images in threads; return the result of each valid image by file name, and the problems."""

    def attempt(entry: dict[str, Any]) -> tuple[str, T | ImageError]:
        name = entry["file_name"]
        try:
            return name, check(image_dir / name, declared_size(entry), options)
        except ImageError as error:
            return name, error

    results = [*read_ahead(attempt, progress(images))]
    missing = [name for name, result in results if isinstance(result, MissingImageError)]
    broken = [
        str(result)
        for _, result in results
        if isinstance(result, ImageError) and not isinstance(result, MissingImageError)
    ]
    problems = []
    if missing:
        hint = f"; to get it: {download_hint}" if download_hint else ""
        problems.append(Problem(f"images missing in {image_dir}", missing, f" of {len(images)}{hint}"))
    if broken:
        problems.append(Problem("invalid images", broken))
    return {name: result for name, result in results if not isinstance(result, ImageError)}, problems


def doubtful_pixels(facts: Mapping[str, ImageFacts], options: ReadOptions) -> list[Problem]:
    """Return likely errors in the pixels of valid images, from the facts by file name."""
    return [problem for problem in _doubts(facts, options) if problem.found]


def count_pixels(facts: Collection[ImageFacts]) -> dict[str, tuple[int, tuple[float, float] | None]]:
    """Count images by channels and type, with the least and largest value of types with more than 8 bits."""
    counts = Counter(found.kind for found in facts)
    values: dict[str, list[tuple[float, float]]] = {}
    for found in facts:
        if found.values:
            values.setdefault(found.kind, []).append(found.values)
    ranges = {kind: (min(low for low, _ in seen), max(high for _, high in seen)) for kind, seen in values.items()}
    return {kind: (count, ranges.get(kind)) for kind, count in counts.most_common()}


def _doubts(facts: Mapping[str, ImageFacts], options: ReadOptions) -> Iterator[Problem]:
    deep = {name: found.values for name, found in facts.items() if found.values}
    largest = max((high for _, high in deep.values()), default=0.0)
    if options.pixel_range:
        low, high = options.pixel_range
        yield Problem(
            f"images with pixels outside of data.pixel_range [{low:g}, {high:g}], which are clipped",
            [f"{name}: {least:g} to {most:g}" for name, (least, most) in deep.items() if least < low or most > high],
        )
    elif 1 < largest < 2**15:
        bits = math.ceil(math.log2(largest + 1))
        yield Problem(
            f"16-bit images that are dark, with values up to {largest:g}: set data.pixel_range to the values of black "
            f"and white, such as [0, {2**bits - 1}] for {bits} bits",
            [*deep],
        )
    yield Problem(
        "images with 16 bits per colour that are dark, since they do not use the upper bits: convert them to 8 bits",
        [name for name, found in facts.items() if found.is_dark_16_bit_colour],
    )
    yield Problem(
        "images with transparent pixels, whose colours are used as if they were visible",
        [name for name, found in facts.items() if found.is_transparent],
    )
    yield Problem(
        "images with several frames or pages, of which only the first is used",
        [name for name, found in facts.items() if found.has_more_frames],
    )
