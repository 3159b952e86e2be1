"""Trained detectors as programs that run without this project: `torch.export` files and ONNX."""

from .batches import OUTPUTS
from .check import BOX_TOLERANCE, SCORE_TOLERANCE, Difference, compare, run_beside
from .graphs import GRAPHS, check_exportable, graph_of, least_side
from .programs import FORMATS, check_requirements, export_to, load_exported

__all__ = [
    "BOX_TOLERANCE",
    "FORMATS",
    "GRAPHS",
    "OUTPUTS",
    "SCORE_TOLERANCE",
    "Difference",
    "check_exportable",
    "check_requirements",
    "compare",
    "export_to",
    "graph_of",
    "least_side",
    "load_exported",
    "run_beside",
]
