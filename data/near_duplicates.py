"""Pairs of images that look the same: copies, re-encoded or resized copies, and shots of a series."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray

from .image_files import ImageError, open_image, upright_rgb
from .read_ahead import read_ahead

HASH_BITS = 64
# Pillow decodes a JPEG file at a fraction of its size if that is enough for the hash, which needs 32 pixels.
_SMALL_PX = 128
# Rows of distances in memory at a time.
_ROWS = 256


def near_duplicates(
    files: Sequence[Path], max_distance: int, progress: Callable[[Iterable], Iterable] = iter
) -> tuple[list[tuple[int, int]], list[int]]:
    """Return the pairs of images whose perceptual hashes (pHash) differ in few bits, and the unreadable images.

    Args:
        files: Image files.
        max_distance: Largest number of different bits of a pair, of 64. Copies of an image at another size or quality
            have up to 4; unrelated images have about 32.
        progress: Function that wraps the iteration over the files.

    Returns:
        Pairs `(i, j)` of indices with i < j, and the indices of images that cannot be read, which have no pair.
    """
    hashes = [*read_ahead(_hash, progress(files))]
    readable = [index for index, found in enumerate(hashes) if found is not None]
    bits = np.array([hashes[index] for index in readable], dtype=bool).reshape(-1, HASH_BITS)
    pairs = [(readable[i], readable[j]) for i, j in close_pairs(bits, max_distance)]
    return pairs, [index for index, found in enumerate(hashes) if found is None]


def close_pairs(bits: NDArray[np.bool_], max_distance: int) -> Iterator[tuple[int, int]]:
    """Yield the pairs of rows `(n, bits)` that differ in at most `max_distance` bits, the first index below the second.

    A product of matrices of -1 and 1 counts equal bits minus different bits, for all rows at once.
    """
    signs = np.where(bits, 1, -1).astype(np.float32)
    for start in range(0, len(signs), _ROWS):
        distances = (bits.shape[1] - signs[start : start + _ROWS] @ signs[start:].T) / 2
        for i, j in np.argwhere(np.triu(distances <= max_distance, 1)).tolist():
            yield start + i, start + j


def _hash(file: Path) -> NDArray[np.bool_] | None:
    """Return the perceptual hash of an image, `(64,)`; None if it cannot be read."""
    try:
        with open_image(file) as image:
            image.draft("RGB", (_SMALL_PX, _SMALL_PX))
            deep = image.mode.startswith(("I", "F"))
            return imagehash.phash(upright_rgb(image, image.getextrema() if deep else None)).hash.ravel()
    except ImageError:
        return None
