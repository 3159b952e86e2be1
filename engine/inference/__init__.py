"""Run trained detectors: restored from a checkpoint, on images, with test-time augmentation, in tiles."""

from .predictor import load_predictor, predictor_of
from .restored import describe_mode, restore_model, with_tiles, with_tta
from .thresholds import read_thresholds
