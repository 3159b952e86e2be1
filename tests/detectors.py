"""Detectors for tests, built from a ResNet and options by name."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torchvision.models.resnet import ResNet

from models import build_detector

SIZES = {"min_size": 64, "max_size": 96}
DCN = ("modulation", "offset_groups", "mask_scale")


def assemble(
    name: str,
    body: ResNet,
    num_classes: int = 3,
    *,
    fpn: Mapping[str, Any] | None = None,
    min_size: int = 800,
    max_size: int = 1333,
    resize: str | None = None,
    dcn_backend: str = "auto",
    **options: Any,
) -> nn.Module:
    """Build a detector; options of `DCN` are those of deformable layers in its head."""
    dcn = {key: options.pop(key) for key in DCN if key in options}
    model = {"detector": name, name: options, "fpn": fpn or {}, "backbone": dcn, "dcn_backend": dcn_backend}
    sizes = {"min_size": min_size, "max_size": max_size, "resize": resize}
    return build_detector({"model": model, "data": sizes}, num_classes, body=body)
