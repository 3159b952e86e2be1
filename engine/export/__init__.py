"""Export of trained detectors to ONNX and `torch.export` files, which run without this project."""

from .batches import OUTPUTS
from .check import (
    BOX_TOLERANCE,
    MASK_TOLERANCE,
    SCORE_TOLERANCE,
    CheckResult,
    DetectionDifference,
    check_program,
    compare_detections,
)
from .graphs import build_graph, check_exportable, min_image_side, output_names
from .programs import FORMATS, MIN_OPSET, check_requirements, export_to, load_exported
