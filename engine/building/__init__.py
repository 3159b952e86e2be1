"""Build models, loaders and trainers from a checked config, and train."""

from .augmented import draw_augmented
from .batch_size import AUTO, with_batch_size
from .channels import saved_statistics, with_any_statistics, with_statistics
from .classes import describe_changes
from .data import (
    build_eval_loader,
    describe_limits,
    describe_skipped_check,
    max_aspect_ratio,
    read_options,
    read_split,
    warn_of_annotations,
)
from .model import build_initialized_model, build_model, check_dcn_backend
from .start import RunResult, train
from .training import build_optimization, build_trainer, images_in_step
