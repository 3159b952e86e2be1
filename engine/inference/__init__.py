"""Run trained detectors: restored from a checkpoint, on images, with test-time augmentation."""

from .predictor import load_predictor, predictor_of
from .restored import restore_model, with_tta
