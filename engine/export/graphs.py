"""Graphs of the detectors that can be exported."""

from collections.abc import Callable
from importlib import import_module

import torch
from torch import Tensor, nn

from models import DETECTORS

from .batches import MASKS, OUTPUTS
from .layers import with_torchvision_operator

_PROBE = 512


def check_exportable(detector: str) -> None:
    """Raise `ValueError` unless a detector of this name can be exported."""
    if detector not in DETECTORS or not DETECTORS[detector].export:
        known = ", ".join(name for name, spec in DETECTORS.items() if spec.export)
        raise ValueError(f"{detector} cannot be exported; these can: {known}")


def output_names(detector: str) -> tuple[str, ...]:
    """Return the names of the graph's outputs in order; see `batches.OUTPUTS` and `batches.MASKS`."""
    return (*OUTPUTS, MASKS) if DETECTORS[detector].has_masks else OUTPUTS


def build_graph(detector: str, model: nn.Module, suppress: Callable[..., Tensor]) -> nn.Module:
    """Build the module to export, from a copy of the detector with torchvision's deformable convolution.

    Args:
        detector: name of the detector in `models.DETECTORS`.
        model: detector on the CPU.
        suppress: `suppression.suppress` or `suppress_as_operator`.

    Returns:
        A module in eval mode that maps images `(B, channels, H, W)` in [0, 1] to the outputs of `output_names`.

    Raises:
        ValueError: if this detector has no export graph.
    """
    check_exportable(detector)
    model = with_torchvision_operator(model).eval().requires_grad_(False)
    module, _, graph = DETECTORS[detector].export.partition(":")
    return getattr(import_module(module), graph)(model, suppress).eval()


def num_channels(model: nn.Module) -> int:
    """Return the number of channels of a detector's images."""
    return len(model.transform.image_mean)


@torch.inference_mode()
def min_image_side(model: nn.Module) -> int:
    """Return the minimum image side of an exported program: the coarsest feature map then has two rows.

    PyTorch specialises dimensions of size 1, so a program with dynamic sizes does not cover them.
    """
    coarsest = [*model.backbone(torch.zeros(1, num_channels(model), _PROBE, _PROBE)).values()][-1]
    return _PROBE // coarsest.shape[-1] + 1
