"""Networks: ResNet backbones with deformable convolutions, FPN, detectors. Imports dcn and torchvision."""

from .faster_rcnn import faster_rcnn
from .fpn import resnet_fpn
from .resnet import NORMS, RESNETS, ReplacedConvs, replaced_convs, resnet
from .weights import load_backbone_weights

DETECTORS = {"faster_rcnn": faster_rcnn}
MASK_DETECTORS = ("mask_rcnn", "cascade_mask_rcnn")

__all__ = [
    "DETECTORS",
    "MASK_DETECTORS",
    "NORMS",
    "RESNETS",
    "ReplacedConvs",
    "faster_rcnn",
    "load_backbone_weights",
    "replaced_convs",
    "resnet",
    "resnet_fpn",
]
