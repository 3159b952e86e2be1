"""The package for other programs: trained detectors with `Predictor.load("last.pt")("street.jpg")`."""

from pathlib import Path

if not Path(__file__).with_name("models").is_dir():  # in a clone, `models` is next to this folder, not inside
    __path__.append(str(Path(__file__).resolve().parents[1]))

from .models import DETECTORS, build_detector, load_detector
from .models.predictor import Predictor

__all__ = ["DETECTORS", "Predictor", "build_detector", "load_detector"]
