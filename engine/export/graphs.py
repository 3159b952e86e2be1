"""Which detectors can be exported, and what of them."""

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
    """Name what the graph of a detector gives, in this order; see `batches.OUTPUTS` and `batches.MASKS`."""
    return (*OUTPUTS, MASKS) if DETECTORS[detector].has_masks else OUTPUTS


def build_graph(detector: str, model: nn.Module, suppress: Callable[..., Tensor]) -> nn.Module:
    """Make the module that is exported, on a copy of the detector with torchvision's deformable convolution.

    Args:
        detector: its name in `models.DETECTORS`.
        model: the detector, on the CPU.
        suppress: `suppression.suppress` or `suppress_as_operator`.

    Returns:
        A module in eval mode from images `(B, 3, H, W)` in [0, 1] to what `output_names` lists.

    Raises:
        ValueError: if there is no graph for this detector.
    """
    check_exportable(detector)
    model = with_torchvision_operator(model).eval().requires_grad_(False)
    with torch.inference_mode():
        model([torch.zeros(3, _PROBE, _PROBE)])  # RoI pooling finds its scales
    module, _, graph = DETECTORS[detector].export.partition(":")
    return getattr(import_module(module), graph)(model, suppress).eval()


@torch.inference_mode()
def min_image_side(model: nn.Module) -> int:
    """Give the shortest side that images may have in an exported program: the coarsest map has two rows then.

    Shapes of one are special to PyTorch, and are not covered by a program for open sizes.
    """
    coarsest = [*model.backbone(torch.zeros(1, 3, _PROBE, _PROBE)).values()][-1]
    return _PROBE // coarsest.shape[-1] + 1
