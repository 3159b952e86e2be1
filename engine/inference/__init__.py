"""Trained detectors at work: restored from a checkpoint, on pictures, with flips."""

from .predictor import load_predictor, predictor_of
from .restored import as_tested, restore_model
