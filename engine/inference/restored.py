"""Rebuild the detector of a run with its weights."""

from torch import nn

from models.checkpoint import restore_detector

from ..config import RunConfig
from ..weights import Trained
from .tta import HorizontalFlipTta


def restore_model(trained: Trained, *, weights: str | None = None) -> nn.Module:
    """Build the detector of a checkpoint with its weights, on the CPU and in eval mode; see `restore_detector`."""
    return restore_detector(trained.state, trained.path, config=trained.config.model_dump(mode="json"), weights=weights)


def with_tta(model: nn.Module, config: RunConfig) -> nn.Module:
    """Add the test-time augmentation of a config to a detector.

    Raises:
        ValueError: if the config asks for `tta.flip` and the detector has no NMS.
    """
    if not config.tta.flip:
        return model
    options = config.model.options
    if not hasattr(options, "nms_threshold"):
        raise ValueError(
            f"tta.flip must be false for {config.model.detector}: it merges detections by NMS, and this detector has "
            "no NMS"
        )
    return HorizontalFlipTta(
        model, nms_threshold=options.nms_threshold, detections_per_image=options.detections_per_image
    ).eval()
