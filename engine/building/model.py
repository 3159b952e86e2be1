"""From the model section of a config to a detector."""

from collections.abc import Sequence

import torch
from torch import nn

from dcn.functional import choose_backend
from models import build_body, build_detector, load_backbone_weights
from models.weights import LoadReport

from ..config import DataConfig, ModelConfig, RunConfig
from ..distributed import DistributedContext
from ..weights import Source, Transfer, take_over


def build_model(
    model: ModelConfig, data: DataConfig, num_classes: int, *, pretrained: bool = True
) -> tuple[nn.Module, LoadReport | None]:
    """Build the detector of a config.

    Args:
        model: its architecture.
        data: gives the size that images are scaled to in evaluation.
        num_classes: foreground classes.
        pretrained: whether to load the backbone's weights; False where a checkpoint will be loaded.

    Returns:
        The detector in train mode, and what became of the pretrained weights, None without any.

    Raises:
        ValueError: if parts do not fit each other or the weights cannot be had.
    """
    backbone, values = model.backbone, {"model": model.model_dump(), "data": data.model_dump()}
    body = build_body(values)
    report = load_backbone_weights(body, backbone.name, backbone.weights) if pretrained and backbone.weights else None
    return build_detector(values, num_classes, body=body), report


def build_started(
    config: RunConfig, class_names: Sequence[str], source: Source | None, *, pretrained: bool = True
) -> tuple[nn.Module, LoadReport | Transfer | None]:
    """Build the detector of a config with what it starts from.

    Args:
        config: of the run.
        class_names: of its data.
        source: weights of a whole detector, which stand in for the backbone's; None: there are none.
        pretrained: whether to load the backbone's weights where there is no source.

    Returns:
        The detector in train mode, and what became of the weights, None without any.

    Raises:
        ValueError: if parts do not fit each other, or weights cannot be had or do not fit.
    """
    model, report = build_model(config.model, config.data, len(class_names), pretrained=pretrained and source is None)
    return model, report if source is None else take_over(model, source, class_names, config.model_dump(mode="json"))


def check_norm(norm: str, device: torch.device, distributed: DistributedContext) -> None:
    """Raise `ValueError` where PyTorch's synchronised batch norm cannot run."""
    if norm == "sync_bn" and distributed.size > 1 and device.type == "cpu":
        raise ValueError(
            "model.backbone.norm sync_bn over several processes needs GPUs; on CPUs use gn, bn or frozen_bn"
        )


def check_dcn_backend(model: ModelConfig, device: torch.device) -> None:
    """Raise `ValueError`, with the reason, if the deformable layers' backend cannot run on a device."""
    if model.is_deformable:
        choose_backend(model.dcn_backend, torch.empty(0, device=device))
