"""The training loop: one update, the optimizer, averages of weights, and what is logged."""

from .ema import Ema
from .metrics_logger import METRICS_FILE, MetricsLogger, NullLogger
from .optimizer import OPTIMIZERS, build_optimizer, check_optimizer, scaled_lr, set_lrs, summarize_groups
from .schedule import SCHEDULES, Schedule, build_schedule, check_schedule
from .trainer import Intervals, Trainer
from .update import Updater
