"""Translations of our operators for PyTorch's ONNX exporter. Imports onnx and onnxscript, which only exports need."""

import onnx
import torch
from onnx import TensorProto
from onnxscript import opset18 as op

from . import suppression  # noqa: F401 - registers the operator


def _suppress(boxes, scores, iou_threshold: float, score_threshold: float):
    """Translate `suppress` to NonMaxSuppression, which returns `(kept, 3)`: set, class and candidate."""
    kept = op.NonMaxSuppression(
        boxes,
        scores,
        op.Constant(value_ints=[torch.iinfo(torch.int64).max]),
        op.Constant(value_floats=[iou_threshold]),
        op.Constant(value_floats=[score_threshold]),
    )
    nothing = op.ConstantOfShape(op.Shape(scores), value=_number(0))
    ones = op.ConstantOfShape(op.Shape(kept, start=0, end=1), value=_number(1))
    return op.Cast(op.ScatterND(nothing, kept, ones), to=TensorProto.BOOL)


def _number(value: int) -> onnx.TensorProto:
    return onnx.helper.make_tensor("value", TensorProto.INT32, [1], [value])


# The exporter has translations of torchvision's operators (deform_conv2d, roi_align).
TRANSLATIONS = {torch.ops.resnet_dcn.suppress.default: _suppress}
