"""Score thresholds of single classes: the best of a trained detector's last evaluation, or others by class name."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .shown import shown

BEST = "best"
_BELOW = 1 - 1e-6
ScoreThreshold = float | str | Mapping[str, float]


def thresholds_by_class(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the best threshold of each class: its own, otherwise that of all classes, NaN without both.

    Args:
        metrics: Metrics of an evaluation, with `score_threshold` and `per_class_score_threshold`.
    """
    other = metrics["score_threshold"]
    return {name: other if math.isnan(own) else own for name, own in metrics["per_class_score_threshold"].items()}


def best_thresholds(state: Mapping[str, Any], weights: str, path: Path) -> dict[str, float]:
    """Return the best threshold of each class, which the last evaluation of a training found.

    Args:
        state: Content of the checkpoint.
        weights: Weights that are used, "raw" or "ema", see `choose_weights`.
        path: File of the checkpoint, for error messages.

    Raises:
        ValueError: If the checkpoint has no thresholds for these weights; the message names the tool that finds them.
    """
    if problem := _problem(state, weights):
        option = " --weights raw" if weights == "raw" and state.get("ema") is not None else ""
        raise ValueError(
            f"{path} has no best score thresholds for these weights: {problem}. Evaluate it with "
            f"`python tools/eval.py {path}{option} --json figures.json`, then use the score threshold figures.json"
        )
    return thresholds_by_class(state["metrics"])


def label_thresholds(asked: ScoreThreshold, state: Mapping[str, Any], weights: str, path: Path) -> list[float] | None:
    """Return the threshold of labels 1, 2, ..., or None if all classes have the same.

    Args:
        asked: A score for all classes, "best", or a score by class name.
        state: Content of the checkpoint.
        weights: See `best_thresholds`.
        path: See `best_thresholds`.

    Raises:
        ValueError: If a threshold is missing or not from 0 to 1.
    """
    if isinstance(asked, str):
        if asked != BEST:
            raise ValueError(f"the score threshold must be a number, 'best', or a score by class name, got {asked!r}")
        asked = best_thresholds(state, weights, path)
    if not isinstance(asked, Mapping):
        return None
    names = state["class_names"]
    if missing := [name for name in names if name not in asked]:
        raise ValueError(
            f"a score threshold is needed for each of the {len(names)} classes of {path}; {len(missing)} are missing, "
            f"first {shown(missing[0])}"
        )
    for name in names:
        check_threshold(asked[name])
    return [float(asked[name]) for name in names]


def check_threshold(score: float) -> None:
    """Raise `ValueError` if a score threshold is not from 0 to 1."""
    if not 0 <= score <= 1:
        raise ValueError(f"the score threshold must be from 0 to 1, got {score}")


def lowest_threshold(asked: ScoreThreshold, thresholds: Sequence[float] | None) -> float:
    """Return the score threshold of a detector that returns all detections of `label_thresholds`."""
    # detectors return scores above their threshold, and a best threshold is itself the score of a detection
    return asked if thresholds is None else min(thresholds) * _BELOW


def _problem(state: Mapping[str, Any], weights: str) -> str | None:
    metrics = state.get("metrics")
    if not metrics or not {"score_threshold", "per_class_score_threshold"} <= metrics.keys():
        return "it has no evaluation, or an evaluation of a version that did not look for thresholds"
    if state.get("last_eval_step") != state["step"]:
        return f"they belong to step {state.get('last_eval_step')}, and the weights to step {state['step']}"
    if (state.get("ema") is None) != (weights == "raw"):
        return "the evaluation used the averaged weights"
    if math.isnan(metrics["score_threshold"]):
        return "no detection of the evaluation was correct"
    return None
