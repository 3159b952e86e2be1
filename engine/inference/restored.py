"""Rebuild the detector of a run with its weights."""

from torch import nn

from models.checkpoint import restore_detector
from models.tiling import TiledDetector

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


def with_tiles(model: nn.Module, config: RunConfig) -> nn.Module:
    """Add the detection in tiles of a config to a detector; `train.batch_size` is the number of tiles in a batch."""
    size = config.tile.size
    if size is None:
        return model
    return TiledDetector(model, size, config.tile.overlap, batch_size=config.train.batch_size).eval()


def describe_mode(config: RunConfig) -> str:
    """Describe the test-time augmentation and the tiles of a config, as the end of a line."""
    flip = ", with horizontal flip" if config.tta.flip else ""
    tile = config.tile
    return flip if tile.size is None else f"{flip}, in tiles of {tile.size} pixels with an overlap of {tile.overlap:g}"
