"""Bootstrap of COCO metrics over images.

pycocotools matches detections with the ground truth image by image. Only the sums over images depend on the set of
images. So each run is matched once, and its metrics are computed again for any weights of the images.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools.cocoeval import COCOeval
from scipy.sparse import csr_array

from ..evaluation import COCO_METRICS, MAX_DETECTIONS, class_keys, match_results

Track = Callable[[Iterable], Iterable]
Floats = NDArray[np.float64]

# IoU thresholds and recalls, bit-identical to pycocotools
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# maximum detections per image of AR1, AR10 and AR100
DETECTIONS = (1, 10, MAX_DETECTIONS)
# float64 numbers per block of a computation
_BLOCK = 2**20


class _Matches(NamedTuple):
    """Detections of one class in descending order of scores, and ground truth, of one range of areas.

    Attributes:
        images: `(D,)`, index of the image of each detection in the image ids.
        ranks: `(D,)`, number of detections of the class in the same image with a higher score.
        true_positive: `(10, D)`, whether the detection is a true positive at each IoU.
        counted: `(10, D)`, whether the detection is counted; matches with crowds and other areas are ignored.
        ground_truth: `(G,)`, index of the image of each ground-truth object in the image ids.
    """

    images: NDArray[np.intp]
    ranks: NDArray[np.intp]
    true_positive: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    ground_truth: NDArray[np.intp]


class MatchedImages:
    """Detections of one run, matched with the ground truth by pycocotools; made by `match_images`.

    Attributes:
        image_ids: image ids in ascending order, which is the order of weights.
        class_names: class names of `per_class` in `coco_metrics`.
        max_detections: number of detections of a class that are counted in an image.
    """

    def __init__(
        self,
        image_ids: Sequence[int],
        class_names: Sequence[str],
        matches: Sequence[Sequence[_Matches]],
        max_detections: int,
    ) -> None:
        self.image_ids = tuple(image_ids)
        self.max_detections = max_detections
        self.class_names = tuple(class_names)
        self._matches = matches  # by class, then by area: all, small, medium, large

    def metrics(self, weights: ArrayLike | None = None) -> dict[str, float]:
        """Return the 12 COCO metrics and "AP <class>" of every class, as fractions; NaN without ground truth.

        Args:
            weights: weight of each image, in the order of `image_ids`. None: 1 each, equal to `coco_metrics`. Integer
                weights equal pycocotools on a file with that many copies of each image; copies of a detection are
                adjacent among equal scores.

        Raises:
            ValueError: if the weights are not finite, at least 0, and one for each image.
        """
        column = self._column(weights)
        scores = [self._class_scores(index, column) for index in range(len(self.class_names))]
        return {name: float(values[0]) for name, values in _summarize(scores, self.class_names, 1).items()}

    def curves(self, iou: float) -> dict[str, Floats]:
        """Return precision at the 101 `RECALLS` of COCO for each class, and the mean over classes as "all".

        A class without boxes is NaN and is not part of the mean. The key of a class named "all" is "class all".

        Args:
            iou: IoU threshold, one of 0.50, 0.55 ... 0.95.

        Raises:
            ValueError: if `iou` has another value.
        """
        level = int(np.argmin(np.abs(IOUS - iou)))
        if not abs(IOUS[level] - iou) < 1e-6:
            raise ValueError(f"`iou` must be one of {', '.join(f'{value:.2f}' for value in IOUS)}, got {iou}")
        column = self._column(None)
        curves = {}
        for name, areas in zip(self.class_names, self._matches, strict=True):
            found, envelope = _staircase(areas[0], level, column)
            recall = found[:, 0] / max(len(areas[0].ground_truth), 1)
            curve = np.append(envelope[:, 0], 0)[np.searchsorted(recall, RECALLS)]
            curves["class all" if name == "all" else name] = (
                curve if len(areas[0].ground_truth) else np.full(101, np.nan)
            )
        stacked = np.array([*curves.values()]).reshape(-1, len(RECALLS))
        return {"all": _mean_of_present(stacked)} | curves

    def same_ground_truth(self, other: "MatchedImages") -> bool:
        """Whether both have the same images, classes and number of boxes per image."""
        return (self.image_ids, self.class_names) == (other.image_ids, other.class_names) and all(
            np.array_equal(mine.ground_truth, theirs.ground_truth)
            for areas, others in zip(self._matches, other._matches, strict=True)
            for mine, theirs in zip(areas, others, strict=True)
        )

    def _column(self, weights: ArrayLike | None) -> Floats:
        if weights is None:
            return np.ones((len(self.image_ids), 1))
        weights = np.asarray(weights, dtype=float)
        if weights.shape != (len(self.image_ids),) or not np.all(np.isfinite(weights) & (weights >= 0)):
            raise ValueError(
                f"`weights` must be {len(self.image_ids)} finite numbers of at least 0, one for each image, got shape "
                f"{weights.shape}" + (f", from {weights.min()} to {weights.max()}" if weights.size else "")
            )
        return weights[:, None]

    def _class_scores(self, index: int, weights: Floats) -> dict[str, Floats]:
        """Return the 12 metrics of one class, `(samples,)` each, for weights `(images, samples)`."""
        areas = self._matches[index]
        precision = [_average_precision(area, weights) for area in areas]  # (10, samples) each
        recalls = [_recall(areas[0], weights, most) for most in DETECTIONS]
        recalls += [_recall(area, weights, self.max_detections) for area in areas[1:]]
        whole = [values.mean(0) for values in precision]
        of_iou = [precision[0][np.flatnonzero(np.isclose(IOUS, iou))[0]] for iou in (0.5, 0.75)]
        return dict(zip(COCO_METRICS, [whole[0], *of_iou, *whole[1:], *recalls], strict=True))


def match_images(
    ground_truth: dict[str, Any],
    results: list[dict[str, Any]],
    kind: str = "bbox",
    *,
    max_detections: int = MAX_DETECTIONS,
) -> MatchedImages:
    """Match COCO results with the ground truth.

    Args:
        ground_truth: content of a COCO instances file.
        results: COCO results, see `engine.evaluation.detect`.
        kind: "bbox" for boxes, "segm" for masks.
        max_detections: see `coco_metrics`.

    Raises:
        ValueError: see `coco_metrics`.
    """
    judge = match_results(ground_truth, results, kind, max_detections=max_detections)
    image_ids, category_ids = judge.params.imgIds, judge.params.catIds
    areas, images = len(judge.params.areaRng), len(image_ids)
    matches = [
        [_flatten(judge, (index * areas + area) * images, images) for area in range(areas)]
        for index in range(len(category_ids))
    ]
    names = class_keys(ground_truth, category_ids)
    return MatchedImages([int(i) for i in image_ids], names, matches, max_detections)


def bootstrap(
    runs: Sequence[MatchedImages], *, samples: int = 1000, seed: int = 0, track: Track = iter
) -> list[dict[str, Floats]]:
    """Compute metrics on bootstrap samples: the images are resampled with replacement, equally for all runs.

    The differences between runs are paired: an image that is hard for both runs cancels out.
    Note: with few images the intervals are too narrow, by a factor of about `sqrt(1 - 1 / images)`.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993.

    Args:
        runs: runs matched on the same images, by boxes or masks. A run may occur twice, once for each.
        samples: number of bootstrap samples.
        seed: random seed.
        track: wraps the iteration over the classes of all runs.

    Returns:
        `MatchedImages.metrics` of each run, `(samples,)` each; NaN in samples without ground truth.

    Raises:
        ValueError: if there are fewer than 2 images or no samples, or if the runs have different images or boxes.
    """
    if samples < 1:
        raise ValueError(f"`samples` must be at least 1, got {samples}")
    for place, run in enumerate(runs[1:], start=2):
        if not runs[0].same_ground_truth(run):
            raise ValueError(
                f"all runs must have the same images and boxes, but run 1 has {len(runs[0].image_ids)} images and "
                f"{len(runs[0].class_names)} classes, run {place} has {len(run.image_ids)} and {len(run.class_names)}, "
                "or other ids, names or boxes"
            )
    if not runs:
        return []
    images = len(runs[0].image_ids)
    if images < 2:
        raise ValueError(f"the bootstrap needs at least 2 images, got {images}")
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)
    weights = np.ascontiguousarray(draws.T, dtype=float)
    scores: list[list[dict[str, Floats]]] = [[] for _ in runs]
    for place, index in track([(p, i) for p, run in enumerate(runs) for i in range(len(run.class_names))]):
        scores[place].append(runs[place]._class_scores(index, weights))
    return [_summarize(own, run.class_names, samples) for own, run in zip(scores, runs, strict=True)]


def _flatten(judge: COCOeval, start: int, images: int) -> _Matches:
    """Sort the matches of one class and area, which `COCOeval.evaluate` stores per image, by score."""
    found = [(place, entry) for place, entry in enumerate(judge.evalImgs[start : start + images]) if entry is not None]
    if not found:
        nothing, none = np.zeros(0, dtype=np.intp), np.zeros((len(IOUS), 0), dtype=bool)
        return _Matches(nothing, nothing, none, none, nothing)
    entries = [entry for _, entry in found]
    places = np.array([place for place, _ in found])
    counts = [len(entry["dtScores"]) for entry in entries]
    # same order as COCOeval.accumulate: among equal scores, the smaller image id first
    order = np.argsort(-np.concatenate([entry["dtScores"] for entry in entries]), kind="mergesort")
    passed = np.concatenate([entry["dtIgnore"] for entry in entries], axis=1)[:, order].astype(bool)
    matched = np.concatenate([entry["dtMatches"] for entry in entries], axis=1)[:, order] != 0
    truths = [np.count_nonzero(np.asarray(entry["gtIgnore"]) == 0) for entry in entries]
    return _Matches(
        images=np.repeat(places, counts)[order],
        ranks=np.concatenate([np.arange(count) for count in counts])[order],
        true_positive=matched & ~passed,
        counted=~passed,
        ground_truth=np.repeat(places, truths),
    )


def _staircase(matches: _Matches, level: int, weights: Floats) -> tuple[Floats, Floats]:
    """Compute the precision-recall staircase at the true positives of one IoU.

    Only true positives change recall or the precision envelope. Copies of a detection are one step, because precision
    rises among true positives and its maximum is at the last copy.

    Returns:
        Cumulative true positives and the precision envelope, `(true positives, samples)` each, for weights `(images,
        samples)`.
    """
    steps = np.flatnonzero(matches.true_positive[level])
    counted = matches.counted[level]
    until = np.concatenate([[0], np.cumsum(counted)[steps]])
    images = matches.images[counted][: until[-1]]
    # row s sums the detections after true positive s - 1, up to s
    between = csr_array((np.ones(len(images)), images, until), shape=(len(steps), len(weights)))
    seen = np.cumsum(between @ weights, axis=0)
    found = np.cumsum(weights[matches.images[steps]], axis=0)
    envelope = found / (seen + np.spacing(1))  # COCOeval's guard against 0 / 0
    np.maximum.accumulate(envelope[::-1], axis=0, out=envelope[::-1])
    return found, envelope


def _average_precision(matches: _Matches, weights: Floats) -> Floats:
    """Return AP at each IoU, `(10, samples)`: mean precision at the 101 recalls; NaN without ground truth."""
    samples = weights.shape[1]
    size = max(1, _BLOCK // max(1, int(matches.true_positive.sum(1).max())))
    if size < samples:
        parts = [np.ascontiguousarray(weights[:, i : i + size]) for i in range(0, samples, size)]
        return np.concatenate([_average_precision(matches, part) for part in parts], axis=1)
    truths = _per_image(matches.ground_truth, len(weights)) @ weights
    values = np.empty((len(IOUS), samples))
    for level in range(len(IOUS)):
        found, envelope = _staircase(matches, level, weights)
        # each true positive covers the recalls that are reached by it first
        reached = np.searchsorted(RECALLS, found / np.where(truths > 0, truths, 1), side="right")
        answered = np.diff(reached, axis=0, prepend=0)
        values[level] = np.einsum("sr,sr->r", envelope, answered) / len(RECALLS)
    return np.where(truths > 0, values, np.nan)


def _recall(matches: _Matches, weights: Floats, most: int) -> Floats:
    """Return AR `(samples,)` of the best `most` detections of each image, averaged over the IoUs."""
    best = matches.ranks < most
    found = _per_image(matches.images[best], len(weights), matches.true_positive[:, best].sum(0)) @ weights
    truths = _per_image(matches.ground_truth, len(weights)) @ weights
    return found / len(IOUS) / np.where(truths > 0, truths, np.nan)


def _per_image(images: NDArray[np.intp], count: int, values: NDArray | None = None) -> Floats:
    return np.bincount(images, weights=values, minlength=count).astype(float)


def _summarize(scores: list[dict[str, Floats]], class_names: Sequence[str], samples: int) -> dict[str, Floats]:
    """Return the mean over the classes with boxes, as in COCO, and the AP of each class."""
    means = {
        name: _mean_of_present(np.array([own[name] for own in scores]).reshape(-1, samples)) for name in COCO_METRICS
    }
    return means | {f"AP {name}": own["AP"] for name, own in zip(class_names, scores, strict=True)}


def _mean_of_present(values: Floats) -> Floats:
    """Return the mean over the first axis without NaN; NaN if all values are NaN."""
    present = ~np.isnan(values)
    count = present.sum(0)
    return np.where(present, values, 0).sum(0) / np.where(count > 0, count, np.nan)
