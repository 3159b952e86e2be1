"""Where a detector fails: kinds of errors, what they cost, the worst images, and suspect labels."""

from .analysis import ErrorAnalysis, analyse_errors
from .fiftyone_app import fiftyone_dataset, open_fiftyone, require_fiftyone
from .kinds import KIND_TEXTS
from .page import headline, render_errors
from .suspects import SUSPICIONS
from .suspects_file import suspects_dataset
