"""Networks: ResNet backbones with deformable convolutions, FPN and detectors. Imports only dcn and torchvision."""

from .checkpoint import load_detector
from .class_weights import set_class_weights
from .detector import DeformOptions, DetectorSpec
from .detectors import DETECTORS, build_body, build_detector, build_resize, normalization, with_current_names
from .fpn import FpnOptions, resnet_fpn
from .resize import KINDS, Resize
from .resnet import NORMS, RESNETS, ReplacedConvs, replaced_convs, resnet
from .weights import load_backbone_weights

__all__ = [
    "DETECTORS",
    "KINDS",
    "NORMS",
    "RESNETS",
    "DeformOptions",
    "DetectorSpec",
    "FpnOptions",
    "ReplacedConvs",
    "Resize",
    "build_body",
    "build_detector",
    "build_resize",
    "load_backbone_weights",
    "load_detector",
    "normalization",
    "replaced_convs",
    "resnet",
    "resnet_fpn",
    "set_class_weights",
    "with_current_names",
]
