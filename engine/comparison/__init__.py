"""Comparison of finished runs: accuracy with its uncertainty, cost, curves and images."""

from .compare import compare_runs
from .report import cost_rows, mean_and_spread, render_report, with_interval
from .result import MASK_METRICS, Comparison
from .study import Study, render_study
from .timing import peak_memory, time_interleaved
