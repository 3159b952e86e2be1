"""Predictors with the config of a run and overrides."""

import os
from collections.abc import Sequence

from data.paths import expanded
from models.checkpoint import choose_weights
from models.predictor import Predictor, set_score_threshold
from models.score_thresholds import ScoreThreshold, label_thresholds, lowest_threshold

from ..building import check_dcn_backend
from ..config import check_config
from ..devices import pick_device, set_tf32
from ..weights import Trained, load_trained
from .restored import restore_model, with_tta


def load_predictor(
    path: str | os.PathLike,
    *,
    device: str | None = None,
    score_threshold: ScoreThreshold = 0.5,
    weights: str | None = None,
    overrides: Sequence[str] = (),
) -> Predictor:
    """Load a detector that tools/train.py trained, with the whole config of its run.

    Args:
        path: run folder, of which last.pt is used, or a checkpoint.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for a GPU if there is one; None: the device of the config.
        score_threshold: minimum score of detections, "best", or a score by class name, see `Predictor.load`; the
            config's `score_threshold` applies too.
        weights: "raw" or "ema" (for runs with `train.ema_decay`); None: the weights that the run was evaluated with.
        overrides: `key=value` for the config, as in "tta.flip=true".

    Returns:
        The predictor.

    Raises:
        ValueError: if the checkpoint is missing or damaged, or an option does not fit.
    """
    device = [] if device is None else [f"device={device}"]
    return predictor_of(
        load_trained(expanded(path), [*overrides, *device]), score_threshold=score_threshold, weights=weights
    )


def predictor_of(trained: Trained, *, score_threshold: ScoreThreshold = 0.5, weights: str | None = None) -> Predictor:
    """Build a predictor from a loaded checkpoint; see `load_predictor`."""
    state, path = trained.state, trained.path
    thresholds = label_thresholds(score_threshold, state, choose_weights(state, weights, path), path)
    lowest = lowest_threshold(score_threshold, thresholds)
    values = set_score_threshold(trained.config.model_dump(mode="json"), lowest)
    config = check_config(values, str(trained.path))
    device = pick_device(config.device)
    check_dcn_backend(config.model, device)
    set_tf32(config.train.tf32)
    model = with_tta(restore_model(trained._replace(config=config), weights=weights), config)
    return Predictor(
        model,
        state["class_names"],
        device=device,
        amp=config.train.amp,
        pixel_range=config.data.pixel_range,
        score_thresholds=thresholds,
        tile=config.tile.size,
        overlap=config.tile.overlap,
        channels=config.data.channels,
    )
