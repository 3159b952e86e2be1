"""Curves and best thresholds against a loop over all scores."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.evaluation.thresholds import score_curve, threshold_metrics

COARSE = st.integers(0, 8).map(lambda number: number / 8)
DETECTIONS = st.lists(st.tuples(COARSE, st.booleans()), max_size=25)


def counted(detections, objects: int, threshold: float) -> tuple[float, float, float]:
    """Return precision, recall and F1 of the detections from a score on, by their definitions."""
    kept = [correct for score, correct in detections if score >= threshold]
    precision = sum(kept) / len(kept) if kept else math.nan
    recall = sum(kept) / objects
    f1 = 2 * precision * recall / (precision + recall) if sum(kept) else 0.0
    return precision, recall, f1


def curve_of(detections, objects):
    scores, correct = zip(*detections, strict=True) if detections else ((), ())
    return score_curve(np.array(scores, dtype=float), np.array(correct, dtype=bool), objects)


@settings(max_examples=50, deadline=None)
@given(DETECTIONS, st.integers(0, 5))
def test_a_curve_at_every_score(detections, missed):
    objects = sum(correct for _, correct in detections) + missed
    curve = curve_of(detections, objects)
    assert curve.scores.tolist() == sorted({score for score, _ in detections}, reverse=True)
    thresholds = np.linspace(-0.1, 1.1, 25)
    found = np.stack(curve.at(thresholds), axis=1)
    if objects:
        expected = [counted(detections, objects, threshold) for threshold in thresholds]
        np.testing.assert_allclose(found, expected, atol=1e-12)
    else:
        assert np.isnan(found[:, 1:]).all()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(DETECTIONS, st.integers(0, 4)), min_size=1, max_size=4))
def test_best_thresholds_against_every_score(classes):
    names = [f"class {index}" for index in range(len(classes))]
    objects = [sum(correct for _, correct in detections) + missed for detections, missed in classes]
    curves = [curve_of(detections, count) for (detections, _), count in zip(classes, objects, strict=True)]
    found = threshold_metrics(dict(zip(names, curves, strict=True)))
    assert found["per_class_objects"] == dict(zip(names, objects, strict=True))
    every = sorted({score for detections, _ in classes for score, _ in detections}, reverse=True)
    for name, (detections, _), count in zip(names, classes, objects, strict=True):
        at = {score: counted(detections, count, score) for score in every} if count else {}
        best = max((f1 for _, _, f1 in at.values()), default=0.0)
        score = found["per_class_score_threshold"][name]
        if best == 0:
            assert math.isnan(score)
            assert math.isnan(found["per_class_F1"][name])
            continue
        # the highest of the scores with the best F1
        own = {score for score, _ in detections}
        assert score == max(score for score in own if at[score][2] >= best - 1e-12)
        shown = [found[f"per_class_{kind}"][name] for kind in ("precision", "recall", "F1")]
        np.testing.assert_allclose(shown, at[score], atol=1e-12)
    with_objects = [index for index, count in enumerate(objects) if count]
    means = {
        score: np.array([counted(classes[index][0], objects[index], score) for index in with_objects])
        for score in every
        if with_objects
    }
    best = max((values[:, 2].mean() for values in means.values()), default=0.0)
    if best == 0:
        assert all(math.isnan(found[name]) for name in ("score_threshold", "precision", "recall", "F1"))
        return
    assert found["score_threshold"] == max(score for score in every if means[score][:, 2].mean() >= best - 1e-12)
    at_best = means[found["score_threshold"]]
    shown = [found[name] for name in ("precision", "recall", "F1")]
    np.testing.assert_allclose(shown, [np.nanmean(at_best[:, 0]), *at_best[:, 1:].mean(0)], atol=1e-12)


def test_of_two_scores_with_the_same_f1_the_higher_one_is_the_threshold():
    # 1 of 1 correct and 1 of 3 found: F1 1/2; at 0.2, 2 of 5 correct and 2 of 3 found: F1 1/2
    detections = [(0.9, True), (0.6, False), (0.5, False), (0.4, False), (0.2, True)]
    found = threshold_metrics({"a": curve_of(detections, 3)})
    assert found["per_class_score_threshold"] == {"a": 0.9}
    assert found["score_threshold"] == 0.9
    assert (found["precision"], found["recall"], found["F1"]) == (1, pytest.approx(1 / 3), 0.5)
