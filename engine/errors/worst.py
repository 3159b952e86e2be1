"""The worst errors of each kind, and the first suspect labels, for the page."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from data import ImageError

from ..evaluation import ERROR_KINDS, MISSED_OBJECT
from ..pages import embedded_jpeg
from .analysis import ErrorAnalysis
from .drawing import draw_error

ReadImage = Callable[[int], Tensor]

# At most 100 KiB for a thumbnail of 240 x 320 pixels, usually 15 KiB
JPEG_QUALITY = 80


class ShownError(NamedTuple):
    """An error, or a suspect label, on the page.

    Attributes:
        file_name: file name of the image.
        image: address of a JPEG, or None if the images are not there or the file cannot be read.
        predicted: class of the detection, None without a detection.
        score: score of the detection.
        truth: class of the object, None without an object.
        iou: IoU of both; for an object without a detection the highest IoU of any detection.
        more: number of further errors of this kind in the same image.
    """

    file_name: str
    image: str | None
    predicted: str | None
    score: float | None
    truth: str | None
    iou: float
    more: int


def worst_errors(analysis: ErrorAnalysis, kind: str, count: int, read: ReadImage | None) -> list[ShownError]:
    """Return the worst errors of a kind, one for each image.

    The worst detections have the highest scores, because they cost most AP. The worst missed objects are the largest.

    Args:
        analysis: result of `analyse_errors`.
        kind: one of `ERROR_KINDS`.
        count: maximum number of images.
        read: returns the image `(channels, H, W)` of an index in the annotation file; None: no images.
    """
    rows, errors = analysis.rows_of(kind), analysis.errors
    if ERROR_KINDS[kind] == MISSED_OBJECT:
        boxes = [analysis.true_object(row)["bbox"] for row in rows]
        rows = rows[np.argsort([-box[2] * box[3] for box in boxes], kind="stable")]
        pairs = [(-1, int(row)) for row in rows]
        images = errors.objects.image[rows]
    else:
        rows = rows[np.argsort(-errors.detections.score[rows], kind="stable")]
        # an object with a tiny overlap does not belong to a detection of the background
        truth = np.full(len(rows), -1) if kind == "background" else errors.detections.truth[rows]
        pairs = [*zip(rows.tolist(), truth.tolist(), strict=True)]
        images = errors.detections.image[rows]
    return _shown(analysis, pairs, images.tolist(), count, read)


def shown_suspects(analysis: ErrorAnalysis, suspicion: str, count: int, read: ReadImage | None) -> list[ShownError]:
    """Return the first suspect labels, one for each image; arguments as of `worst_errors`."""
    errors = analysis.errors
    pairs = [(one.detection, one.object) for one in analysis.suspects[suspicion]]
    images = [int(errors.objects.image[o] if o >= 0 else errors.detections.image[d]) for d, o in pairs]
    return _shown(analysis, pairs, images, count, read)


def _shown(
    analysis: ErrorAnalysis,
    pairs: Sequence[tuple[int, int]],
    images: Sequence[int],
    count: int,
    read: ReadImage | None,
) -> list[ShownError]:
    """Return the first error of each of the first `count` images; pairs are indices of a detection and an object."""
    first: dict[int, tuple[int, int]] = {}
    for image, pair in zip(images, pairs, strict=True):
        first.setdefault(image, pair)
    totals = Counter(images)
    return [_describe(analysis, image, *first[image], totals[image] - 1, read) for image in [*first][:count]]


def _describe(
    analysis: ErrorAnalysis, image: int, row: int, each: int, more: int, read: ReadImage | None
) -> ShownError:
    found, objects, names = analysis.errors.detections, analysis.errors.objects, analysis.class_names
    return ShownError(
        file_name=analysis.ground_truth["images"][image]["file_name"],
        image=read and _drawn(analysis, read, image, row, each),
        predicted=None if row < 0 else names[found.label[row]],
        score=None if row < 0 else float(found.score[row]),
        truth=None if each < 0 else names[objects.label[each]],
        iou=float(objects.best_iou[each] if row < 0 else found.iou[row]),
        more=more,
    )


def _drawn(analysis: ErrorAnalysis, read: ReadImage, image: int, row: int, each: int) -> str | None:
    try:
        return embedded_jpeg(draw_error(analysis, read(image), image, row, each), JPEG_QUALITY)
    except ImageError:
        return None
