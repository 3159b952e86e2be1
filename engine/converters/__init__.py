"""Conversion of checkpoints of other frameworks: detection of the source, renaming and checks."""

from .arithmetic import INPUT_FORMATS
from .conversion import Converted, check_supported, classes_of, convert_backbone, convert_detector
from .heads import check_anchors
from .inferred_settings import (
    choose_classes,
    infer_eps,
    infer_input_format,
    infer_norm,
    infer_stride_in_1x1,
    settings_table,
)
from .plausibility import doubt_about_input
from .reading import SourceCheckpoint, read_source_checkpoint
from .recognition import SOURCES, detect_source
from .source import Source
