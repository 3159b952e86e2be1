"""Predictors with the config of their run, of which any option may be changed."""

import os
from collections.abc import Sequence
from pathlib import Path

from models.predictor import Predictor, set_score_threshold

from ..building import check_dcn_backend
from ..config import check_config
from ..devices import pick_device, set_tf32
from ..weights import Trained, load_trained
from .restored import as_tested, restore_model


def load_predictor(
    path: str | os.PathLike,
    *,
    device: str | None = None,
    score_threshold: float = 0.5,
    weights: str | None = None,
    overrides: Sequence[str] = (),
) -> Predictor:
    """Load a detector that tools/train.py trained, as the whole config of its run says.

    Args:
        path: a run's folder, whose last.pt is used, or a checkpoint.
        device: "cpu", "cuda", "cuda:1", "mps", or "auto" for a GPU if there is one; None: the device of the config.
        score_threshold: detections below are left out, as are those below the config's `score_threshold`.
        weights: "raw" or "ema", of a run with averaged weights; None: those that the run was evaluated by.
        overrides: `key=value` for the run's config, as in "tta.flip=true".

    Raises:
        ValueError: if there is no checkpoint, or it is damaged, or something does not fit.
    """
    device = [] if device is None else [f"device={device}"]
    return predictor_of(
        load_trained(Path(path), [*overrides, *device]), score_threshold=score_threshold, weights=weights
    )


def predictor_of(trained: Trained, *, score_threshold: float = 0.5, weights: str | None = None) -> Predictor:
    """Make a predictor of a checkpoint that was read; see `load_predictor`."""
    values = set_score_threshold(trained.config.model_dump(mode="json"), score_threshold)
    config = check_config(values, str(trained.path))
    device = pick_device(config.device)
    check_dcn_backend(config.model, device)
    set_tf32(config.train.tf32)
    model = as_tested(restore_model(trained._replace(config=config), weights=weights), config)
    return Predictor(model, trained.state["class_names"], device=device, amp=config.train.amp)
