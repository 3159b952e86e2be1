"""The run folder and its checkpoints."""

from .checkpoint import CheckpointError, Checkpoints, load_checkpoint, load_newest, save_checkpoint
from .folder import (
    BEST,
    CHECKED_FILE,
    CONFIG_FILE,
    LAST,
    LOG_FILE,
    METRICS_FILE,
    RUN_FILES,
    choose_run,
    lock_run,
    step_files,
)
