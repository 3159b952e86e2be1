"""Read trained weights, check that they fit, and initialise another detector from them."""

from .compatibility import check_categories, check_same_model, check_same_optimizer, check_same_step, check_same_tensors
from .loading import Trained, load_trained
from .transfer import Source, Transfer, check_initial_weights, load_matching, read_source
