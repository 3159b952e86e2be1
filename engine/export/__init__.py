"""Trained detectors as programs that run without this project: `torch.export` files and ONNX."""

from .batches import OUTPUTS
from .check import BOX_TOLERANCE, MASK_TOLERANCE, SCORE_TOLERANCE, Difference, Row, compare, run_beside
from .graphs import check_exportable, graph_of, least_side, outputs_of
from .programs import FORMATS, OLDEST_OPSET, check_requirements, export_to, load_exported
