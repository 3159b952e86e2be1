"""COCO metrics of one run on other images: what AP would have been, had the images been drawn again.

pycocotools matches detections with truth image by image, and only the sums over images depend on which images there
are. So a run is matched once, and its metrics are summed again for any number of times that each image counts.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pycocotools.cocoeval import COCOeval
from scipy.sparse import csr_array

from ..evaluation import COCO_METRICS, class_keys, match_results

Track = Callable[[Iterable], Iterable]
Floats = NDArray[np.float64]

# IoUs and recalls as pycocotools has them, bit by bit
IOUS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
# of all areas, how many of an image's best detections count; of the areas small, medium, large it is the last
DETECTIONS = (1, 10, 100)
# numbers that one step of a computation holds, of 8 bytes
_BLOCK = 2**20


class _Matches(NamedTuple):
    """Detections of one class, in the order of their scores, and truth, as far as both are in one range of areas.

    Attributes:
        images: `(D,)`, place of each detection's image among the image ids.
        ranks: `(D,)`, how many better ones of the class its image has.
        true_positive: `(10, D)`, whether it found a truth, at each IoU.
        counted: `(10, D)`, whether it is right or wrong, and not let pass as one in a crowd or of another area.
        ground_truth: `(G,)`, place of each truth's image among the image ids.
    """

    images: NDArray[np.intp]
    ranks: NDArray[np.intp]
    true_positive: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    ground_truth: NDArray[np.intp]


class MatchedImages:
    """The detections of one run, matched with truth by pycocotools; made by `match_images`.

    Attributes:
        image_ids: in ascending order, which is the order of weights.
        class_names: as in the `per_class` of `coco_metrics`.
    """

    def __init__(self, image_ids: Sequence[int], class_names: Sequence[str], matches: Sequence[Sequence[_Matches]]):
        self.image_ids = tuple(image_ids)
        self.class_names = tuple(class_names)
        self._matches = matches  # by class, then by area: all, small, medium, large

    def metrics(self, weights: ArrayLike | None = None) -> dict[str, float]:
        """The 12 COCO metrics, and "AP <class>" for every class, as fractions; NaN where there is nothing to judge by.

        Args:
            weights: how often each image counts, in the order of `image_ids`; None is once each, which gives what
                `coco_metrics` gives. Whole numbers give what pycocotools gives where the images stand in the file so
                many times; among equal scores, the copies of one detection then stand together.

        Raises:
            ValueError: if there is not one finite weight of at least 0 for each image.
        """
        column = self._column(weights)
        scores = [self._class_scores(index, column) for index in range(len(self.class_names))]
        return {name: float(values[0]) for name, values in _summarize(scores, self.class_names, 1).items()}

    def curves(self, iou: float) -> dict[str, Floats]:
        """Precision at the 101 `RECALLS` of COCO, of each class by name and, under "all", in the mean of them.

        A class without boxes has NaN, and is not in the mean. A class that is itself named "all" is given as
        "class all".

        Args:
            iou: one of 0.50, 0.55 ... 0.95.

        Raises:
            ValueError: if it is another.
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
        """Whether both were judged by the same images, classes and boxes, as far as can be seen."""
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
        """Give the 12 metrics of one class, `(samples,)` each, for weights `(images, samples)`."""
        areas = self._matches[index]
        precision = [_average_precision(area, weights) for area in areas]  # (10, samples) each
        recalls = [_recall(areas[0], weights, most) for most in DETECTIONS]
        recalls += [_recall(area, weights, DETECTIONS[-1]) for area in areas[1:]]
        whole = [values.mean(0) for values in precision]
        of_iou = [precision[0][np.flatnonzero(np.isclose(IOUS, iou))[0]] for iou in (0.5, 0.75)]
        return dict(zip(COCO_METRICS, [whole[0], *of_iou, *whole[1:], *recalls], strict=True))


def match_images(ground_truth: dict[str, Any], results: list[dict[str, Any]], kind: str = "bbox") -> MatchedImages:
    """Match COCO results with truth, once for all of `MatchedImages`.

    Args:
        ground_truth: a COCO instances file, as loaded.
        results: COCO results, see `engine.evaluator.detect`.
        kind: what is judged: "bbox" for boxes, "segm" for masks.

    Raises:
        ValueError: see `coco_metrics`.
    """
    judge = match_results(ground_truth, results, kind)
    image_ids, category_ids = judge.params.imgIds, judge.params.catIds
    areas, images = len(judge.params.areaRng), len(image_ids)
    matches = [
        [_flatten(judge, (index * areas + area) * images, images) for area in range(areas)]
        for index in range(len(category_ids))
    ]
    return MatchedImages([int(i) for i in image_ids], class_keys(ground_truth, category_ids), matches)


def bootstrap(
    runs: Sequence[MatchedImages], *, samples: int = 1000, seed: int = 0, track: Track = iter
) -> list[dict[str, Floats]]:
    """Figures of runs on images drawn again, with replacement and as many; in each round the same for all runs.

    Differences of runs can thus be taken round by round: what is hard about an image is so for both. A bootstrap over
    few images is too sure of itself, by a factor of about `sqrt(1 - 1 / images)`.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993.

    Args:
        runs: judged by the same images, by boxes or masks. A run may be in it twice, judged by each.
        samples: how often images are drawn.
        seed: of the draw.
        track: wraps the iteration over the classes of all runs.

    Returns:
        For each run what `MatchedImages.metrics` gives, `(samples,)` each; NaN in samples without a box to judge by.

    Raises:
        ValueError: if there are fewer than 2 images or no samples, or runs were judged by different images or boxes.
    """
    if samples < 1:
        raise ValueError(f"`samples` must be at least 1, got {samples}")
    for place, run in enumerate(runs[1:], start=2):
        if not runs[0].same_ground_truth(run):
            raise ValueError(
                f"runs must be judged by the same images and boxes, but run 1 has {len(runs[0].image_ids)} images and "
                f"{len(runs[0].class_names)} classes, run {place} has {len(run.image_ids)} and {len(run.class_names)}, "
                "or other ids, names or boxes"
            )
    if not runs:
        return []
    images = len(runs[0].image_ids)
    if images < 2:
        raise ValueError(f"drawing images again needs at least 2, got {images}")
    draws = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=samples)
    weights = np.ascontiguousarray(draws.T, dtype=float)
    scores: list[list[dict[str, Floats]]] = [[] for _ in runs]
    for place, index in track([(p, i) for p, run in enumerate(runs) for i in range(len(run.class_names))]):
        scores[place].append(runs[place]._class_scores(index, weights))
    return [_summarize(own, run.class_names, samples) for own, run in zip(scores, runs, strict=True)]


def _flatten(judge: COCOeval, start: int, images: int) -> _Matches:
    """Put the matches of one class and area, which `COCOeval.evaluate` left image by image, in the order of scores."""
    found = [(place, entry) for place, entry in enumerate(judge.evalImgs[start : start + images]) if entry is not None]
    if not found:
        nothing, none = np.zeros(0, dtype=np.intp), np.zeros((len(IOUS), 0), dtype=bool)
        return _Matches(nothing, nothing, none, none, nothing)
    entries = [entry for _, entry in found]
    places = np.array([place for place, _ in found])
    counts = [len(entry["dtScores"]) for entry in entries]
    # as COCOeval.accumulate sorts: among equal scores the image of the smaller id first
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
    """Walk down the right detections at one IoU: truths found so far, and the best precision from there on.

    Between them nothing happens to either: a wrong detection only lowers the precision. Copies of one detection are
    taken in one step, since among right ones precision rises and its best is reached at the last.

    Returns:
        Twice `(right detections, samples)`, for weights `(images, samples)`.
    """
    steps = np.flatnonzero(matches.true_positive[level])
    counted = matches.counted[level]
    until = np.concatenate([[0], np.cumsum(counted)[steps]])
    images = matches.images[counted][: until[-1]]
    # row s adds up the detections after right one s - 1, up to s itself
    between = csr_array((np.ones(len(images)), images, until), shape=(len(steps), len(weights)))
    seen = np.cumsum(between @ weights, axis=0)
    found = np.cumsum(weights[matches.images[steps]], axis=0)
    envelope = found / (seen + np.spacing(1))  # COCOeval's guard against 0 / 0
    np.maximum.accumulate(envelope[::-1], axis=0, out=envelope[::-1])
    return found, envelope


def _average_precision(matches: _Matches, weights: Floats) -> Floats:
    """AP at each IoU, `(10, samples)`: the mean of the precision at the 101 recalls; NaN where there is no truth."""
    samples = weights.shape[1]
    size = max(1, _BLOCK // max(1, int(matches.true_positive.sum(1).max())))
    if size < samples:
        parts = [np.ascontiguousarray(weights[:, i : i + size]) for i in range(0, samples, size)]
        return np.concatenate([_average_precision(matches, part) for part in parts], axis=1)
    truths = _per_image(matches.ground_truth, len(weights)) @ weights
    values = np.empty((len(IOUS), samples))
    for level in range(len(IOUS)):
        found, envelope = _staircase(matches, level, weights)
        # each right detection answers for the recalls that are reached by it and by none before
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
    """Mean over the classes that have boxes, as in COCO, and the AP of each."""
    means = {
        name: _mean_of_present(np.array([own[name] for own in scores]).reshape(-1, samples)) for name in COCO_METRICS
    }
    return means | {f"AP {name}": own["AP"] for name, own in zip(class_names, scores, strict=True)}


def _mean_of_present(values: Floats) -> Floats:
    """Mean over the first axis without NaN; NaN where there is nothing else."""
    present = ~np.isnan(values)
    count = present.sum(0)
    return np.where(present, values, 0).sum(0) / np.where(count > 0, count, np.nan)
