"""The training loop: one update, the optimizer, averages of weights, and what is logged."""

from .board import METRICS_FILE, Board, NoBoard
from .ema import Ema
from .optimizer import OPTIMIZERS, build_optimizer, check_optimizer, scaled_lr, set_lrs, summarize_groups
from .schedule import SCHEDULES, Schedule, build_schedule, check_schedule
from .trainer import Cadence, Trainer
from .update import Updater
