"""From a checked config to built objects, and to a running training."""

from .build import (
    build_eval_loader,
    build_model,
    build_optimization,
    build_started,
    build_trainer,
    check_dcn_backend,
    images_in_step,
    needs_masks,
    read_split,
)
from .report import show_end, show_start

__all__ = [
    "build_eval_loader",
    "build_model",
    "build_optimization",
    "build_started",
    "build_trainer",
    "check_dcn_backend",
    "images_in_step",
    "needs_masks",
    "read_split",
    "show_end",
    "show_start",
]
