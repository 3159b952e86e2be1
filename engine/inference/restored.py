"""A detector as a run left it, rebuilt with its weights."""

from torch import nn

from models.checkpoint import restore_detector

from ..config import RunConfig
from ..weights import Trained
from .flipping import MirrorMerged


def restore_model(trained: Trained, *, weights: str | None = None) -> nn.Module:
    """Build the detector of a checkpoint with its weights, on the CPU and in eval mode; see `restore_detector`."""
    return restore_detector(trained.state, trained.path, config=trained.config.model_dump(mode="json"), weights=weights)


def as_tested(model: nn.Module, config: RunConfig) -> nn.Module:
    """Let a detector look at images as `test` of its config says."""
    if not config.tta.flip:
        return model
    options = config.model.options
    if not hasattr(options, "nms_threshold"):
        raise ValueError(
            f"tta.flip must be false for {config.model.detector}: it merges what is found in an image and its mirror "
            "image by NMS, and this detector has none"
        )
    return MirrorMerged(
        model, nms_threshold=options.nms_threshold, detections_per_image=options.detections_per_image
    ).eval()
