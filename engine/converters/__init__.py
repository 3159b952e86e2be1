"""Weights of other frameworks: how they are recognised, renamed and checked."""

from .arithmetic import INPUTS
from .conversion import Converted, classes_of, convert_backbone, convert_detector
from .guesses import choose_classes, guess_eps, guess_input, guess_stride_in_1x1, shown_settings
from .reading import Foreign, read_foreign
from .recognition import SOURCES, recognise
from .source import Source
