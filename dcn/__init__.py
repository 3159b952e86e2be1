"""Deformable convolution (DCNv1 and DCNv2) in PyTorch, without a compiled extension."""

from .functional import BACKENDS, deform_conv2d
from .modules import DeformConv2d
from .replace import replace_convs

__all__ = ["BACKENDS", "DeformConv2d", "deform_conv2d", "replace_convs"]
