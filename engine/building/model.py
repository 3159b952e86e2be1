"""From the model section of a config to a detector."""

from collections.abc import Sequence

import torch
from torch import nn

from dcn.functional import choose_backend
from models import DETECTORS, MASK_DETECTORS, load_backbone_weights, resnet, resnet_fpn
from models.resnet import check_name
from models.weights import LoadReport

from ..config import DataConfig, ModelConfig, RunConfig
from ..distributed import World
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
    check_name("detector", model.detector, list(DETECTORS))
    backbone = model.backbone
    network = resnet(
        backbone.name,
        dcn_v2_stages=backbone.dcn_v2_stages,
        dcn_every=backbone.dcn_every,
        modulation=backbone.modulation,
        offset_groups=backbone.offset_groups,
        mask_scale=backbone.mask_scale,
        stride_in_1x1=backbone.stride_in_1x1,
        frozen_stages=backbone.frozen_stages,
        norm=backbone.norm,
        recompute_dcn_stages=backbone.recompute_dcn_stages,
        dcn_backend=model.dcn_backend,
    )
    report = (
        load_backbone_weights(network, backbone.name, backbone.weights) if pretrained and backbone.weights else None
    )
    pyramid = resnet_fpn(network, **model.fpn.model_dump())
    options = getattr(model, model.detector).model_dump()
    if "dcn_convs" in options:  # what is deformable in the head is so in the same way as in the backbone
        options |= {key: getattr(backbone, key) for key in ("modulation", "offset_groups", "mask_scale")}
        options["dcn_backend"] = model.dcn_backend
    min_size = data.min_size if isinstance(data.min_size, int) else data.min_size[-1]
    detector = DETECTORS[model.detector](pyramid, num_classes, min_size=min_size, max_size=data.max_size, **options)
    return detector, report


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


def needs_masks(model: ModelConfig) -> bool:
    """Whether a detector learns from masks and gives them."""
    return model.detector in MASK_DETECTORS


def check_norm(norm: str, device: torch.device, world: World) -> None:
    """Raise `ValueError` where PyTorch's synchronised batch norm cannot run."""
    if norm == "sync_bn" and world.size > 1 and device.type == "cpu":
        raise ValueError(
            "model.backbone.norm sync_bn over several processes needs GPUs; on CPUs use gn, bn or frozen_bn"
        )


def check_dcn_backend(model: ModelConfig, device: torch.device) -> None:
    """Raise `ValueError`, with the reason, if the deformable layers' backend cannot run on a device."""
    head = getattr(model, model.detector, None)  # the name may be wrong, which is told elsewhere
    if model.backbone.dcn_v2_stages or getattr(head, "dcn_convs", 0):
        choose_backend(model.dcn_backend, torch.empty(0, device=device))
