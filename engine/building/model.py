"""Build a detector from the model section of a config."""

from collections.abc import Sequence

import torch
from torch import nn

from dcn.functional import choose_backend
from models import build_body, build_detector, load_backbone_weights
from models.weights import LoadReport

from ..config import DataConfig, ModelConfig, RunConfig
from ..distributed import DistributedContext
from ..weights import Source, Transfer, load_matching


def build_model(
    model: ModelConfig, data: DataConfig, num_classes: int, *, pretrained: bool = True
) -> tuple[nn.Module, LoadReport | None]:
    """Build the detector of a config.

    Args:
        model: its architecture.
        data: options of the data set, for the image size in evaluation.
        num_classes: foreground classes.
        pretrained: whether to load the backbone's weights; False where a checkpoint will be loaded.

    Returns:
        The detector in train mode, and a report on the pretrained weights, None if none were loaded.

    Raises:
        ValueError: if parts do not fit together, or weights are missing.
    """
    backbone, values = model.backbone, {"model": model.model_dump(), "data": data.model_dump()}
    body = build_body(values)
    report = load_backbone_weights(body, backbone.name, backbone.weights) if pretrained and backbone.weights else None
    return build_detector(values, num_classes, body=body), report


def build_initialized_model(
    config: RunConfig, class_names: Sequence[str], source: Source | None, *, pretrained: bool = True
) -> tuple[nn.Module, LoadReport | Transfer | None]:
    """Build the detector of a config with its initial weights.

    Args:
        config: of the run.
        class_names: of its data.
        source: weights of a whole detector, loaded instead of the backbone's weights; None: only the backbone's.
        pretrained: whether to load the backbone's weights if `source` is None.

    Returns:
        The detector in train mode, and a report on the loaded weights, None if none were loaded.

    Raises:
        ValueError: if parts do not fit together, or weights are missing or do not fit.
    """
    model, report = build_model(config.model, config.data, len(class_names), pretrained=pretrained and source is None)
    if source is not None:
        report = load_matching(model, source, class_names, config.model_dump(mode="json"))
    return model, report


def check_norm(norm: str, device: torch.device, distributed: DistributedContext) -> None:
    """Raise `ValueError` if PyTorch's synchronised batch norm cannot run on a device."""
    if norm == "sync_bn" and distributed.size > 1 and device.type == "cpu":
        raise ValueError(
            "model.backbone.norm sync_bn over several processes needs GPUs; on CPUs use gn, bn or frozen_bn"
        )


def check_dcn_backend(model: ModelConfig, device: torch.device) -> None:
    """Raise `ValueError`, with the reason, if the deformable layers' backend cannot run on a device."""
    if model.is_deformable:
        choose_backend(model.dcn_backend, torch.empty(0, device=device))
