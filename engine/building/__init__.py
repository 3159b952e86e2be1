"""From a checked config to built objects, and to a running training."""

from .data import build_eval_loader, describe_skipped_check, read_split
from .model import build_model, build_started, check_dcn_backend
from .start import RunResult, train
from .training import build_optimization, build_trainer, images_in_step
