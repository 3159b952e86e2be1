"""Search for the largest batch that fits into memory, by few measured batches."""

from collections.abc import Callable
from typing import NamedTuple

GIB = 2**30
# Fraction of the available memory that a batch may use: fragmentation and larger images of later steps need the rest.
SAFETY = 0.85


class FittingBatch(NamedTuple):
    """Result of the search.

    Attributes:
        size: images of the batch.
        fixed: bytes that do not depend on the batch: weights, gradients, optimizer.
        per_image: bytes for each image.
    """

    size: int
    fixed: int
    per_image: int


def largest_batch(peak: Callable[[int], int | None], available: int, most: int) -> FittingBatch:
    """Find the largest batch whose peak memory is at most `SAFETY` of the available memory.

    Two small batches are measured. Their line predicts the largest batch, which is measured too. Batches that do not
    fit although the line predicts them are halved.

    Args:
        peak: peak bytes of training with a batch of some images, or None if memory was not sufficient.
        available: bytes of memory.
        most: maximum number of images.

    Raises:
        ValueError: if a batch of one image does not fit.
    """
    limit = int(SAFETY * available)
    one = peak(1)
    if one is None or one > limit:
        need = "more" if one is None else f"{one / GIB:.1f} GiB"
        raise ValueError(
            f"train.batch_size auto: one image needs {need}, and {limit / GIB:.1f} of {available / GIB:.1f} GiB may be "
            "used. Use a smaller data.min_size and data.max_size, train.amp=bf16, or a smaller backbone"
        )
    two = peak(2) if most > 1 else None
    if two is None or two > limit:
        return FittingBatch(1, one, 0)
    per_image = max(two - one, 1)
    size = min(most, 2 + (limit - two) // per_image)
    while size > 2:
        measured = peak(size)
        if measured is not None and measured <= limit:
            break
        size //= 2
    return FittingBatch(max(size, 2), max(one - per_image, 0), per_image)
