"""Networks: ResNet backbones with deformable convolutions, FPN, detectors. Imports dcn and torchvision."""

from .faster_rcnn import faster_rcnn
from .fcos import fcos
from .fpn import resnet_fpn
from .resnet import NORMS, RESNETS, ReplacedConvs, replaced_convs, resnet
from .retinanet import retinanet
from .weights import load_backbone_weights

DETECTORS = {
    "faster_rcnn": faster_rcnn,
    "retinanet": retinanet,
    "fcos": fcos,
}
# Those that learn and find masks.
MASK_DETECTORS = ("mask_rcnn", "cascade_mask_rcnn")

__all__ = [
    "DETECTORS",
    "MASK_DETECTORS",
    "NORMS",
    "RESNETS",
    "ReplacedConvs",
    "faster_rcnn",
    "fcos",
    "load_backbone_weights",
    "replaced_convs",
    "resnet",
    "resnet_fpn",
    "retinanet",
]
