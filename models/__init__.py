"""Networks: ResNet backbones with deformable convolutions, FPN, detectors. Imports dcn and torchvision."""

from .checkpoint import load_detector
from .detector import DeformOptions, DetectorSpec
from .detectors import DETECTORS, build_body, build_detector
from .fpn import FpnOptions, resnet_fpn
from .resnet import NORMS, RESNETS, ReplacedConvs, replaced_convs, resnet
from .weights import load_backbone_weights

__all__ = [
    "DETECTORS",
    "NORMS",
    "RESNETS",
    "DeformOptions",
    "DetectorSpec",
    "FpnOptions",
    "ReplacedConvs",
    "build_body",
    "build_detector",
    "load_backbone_weights",
    "load_detector",
    "replaced_convs",
    "resnet",
    "resnet_fpn",
]
