"""Networks: ResNet backbones with deformable convolutions, FPN, detectors. Imports dcn and torchvision."""

from .cascade_rcnn import cascade_mask_rcnn, cascade_rcnn
from .faster_rcnn import faster_rcnn
from .fcos import fcos
from .fpn import resnet_fpn
from .mask_rcnn import mask_rcnn
from .resnet import NORMS, RESNETS, ReplacedConvs, replaced_convs, resnet
from .retinanet import retinanet
from .weights import load_backbone_weights

DETECTORS = {
    "faster_rcnn": faster_rcnn,
    "mask_rcnn": mask_rcnn,
    "cascade_rcnn": cascade_rcnn,
    "cascade_mask_rcnn": cascade_mask_rcnn,
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
    "cascade_mask_rcnn",
    "cascade_rcnn",
    "faster_rcnn",
    "fcos",
    "load_backbone_weights",
    "mask_rcnn",
    "replaced_convs",
    "resnet",
    "resnet_fpn",
    "retinanet",
]
