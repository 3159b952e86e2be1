"""A detector as a run left it, rebuilt with its weights."""

from torch import nn

from ..building import build_model
from ..config import RunConfig
from ..weights import Trained, choose_weights
from .flipping import MirrorMerged


def restore_model(trained: Trained, *, weights: str | None = None) -> nn.Module:
    """Build the detector of a checkpoint with its weights, on the CPU and in eval mode; see `choose_weights`."""
    config, state = trained.config, trained.state
    model, _ = build_model(config.model, config.data, len(state["class_names"]), pretrained=False)
    chosen = choose_weights(state, weights, trained.path)
    model.load_state_dict(state["ema"]["model"] if chosen == "ema" else state["model"])
    return model.eval()


def as_tested(model: nn.Module, config: RunConfig) -> nn.Module:
    """Let a detector look at images as `test` of its config says."""
    if not config.test.flip:
        return model
    options = getattr(config.model, config.model.detector)
    return MirrorMerged(
        model, nms_threshold=options.nms_threshold, detections_per_image=options.detections_per_image
    ).eval()
