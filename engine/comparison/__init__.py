"""Runs compared: accuracy with its uncertainty, cost, curves and images."""

from .compare import compare_runs
from .measure import extra_memory, time_in_turns
from .report import cost_rows, mean_and_spread, render_report, with_interval
from .result import MASK_FIGURES, Comparison
from .study import Study, render_study
