"""Trained detectors at work: restored from a checkpoint, on pictures, with flips."""

from .predictor import Predictor, predictor_of
from .restored import as_tested, restore_model

__all__ = [
    "Predictor",
    "as_tested",
    "predictor_of",
    "restore_model",
]
