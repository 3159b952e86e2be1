"""The training loop: updates, optimizer, learning-rate schedules, EMA of the weights, and metrics."""

from .callback import Callback, load_callback
from .ema import Ema
from .largest_batch import GIB, largest_batch
from .metrics_logger import METRICS_FILE, MetricsLogger, NullLogger, read_metrics
from .optimizer import OPTIMIZERS, build_optimizer, check_optimizer, scaled_lr, set_lrs, summarize_groups
from .schedule import SCHEDULES, Schedule, build_schedule, check_schedule, warmup
from .trainer import Intervals, Trainer
from .update import Updater
