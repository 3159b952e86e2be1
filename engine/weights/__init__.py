"""Trained weights: reading them, whether they fit, and starting another detector from them."""

from .compatibility import check_categories, check_same_model, check_same_optimizer, check_same_step
from .trained import Trained, load_trained
from .transfer import Source, Transfer, check_start, read_source, take_over
