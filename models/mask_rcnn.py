"""Mask R-CNN, https://arxiv.org/abs/1703.06870: Faster R-CNN with a mask head."""

from dataclasses import dataclass
from typing import Annotated, Any

from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.resnet import ResNet

from .detector import ClassRows, DetectorSpec
from .faster_rcnn import CLASS_ROWS, FASTER_RCNN_SPEC, TINY, FasterRcnnOptions, box_pool, faster_rcnn
from .options import Affects, Channels

MASK_ROI_SIZE = 14
MASK_CONVS = 4


@dataclass(frozen=True)
class MaskRcnnOptions(FasterRcnnOptions):
    """Mask R-CNN: Faster R-CNN with a mask head."""

    mask_head_channels: Annotated[Channels, Affects.NETWORK] = 256
    """Number of channels of the mask head's convolutions."""


def mask_rcnn(body: ResNet, num_classes: int, options: MaskRcnnOptions, **parts: Any) -> GeneralizedRCNN:
    """Build Mask R-CNN on a feature pyramid, see `DetectorSpec.build`.

    The network is `faster_rcnn` with masks. Targets also contain `masks`, `(n, H, W)` uint8. The losses also contain
    `loss_mask`. Detections also contain `masks`, probabilities `(n, 1, H, W)` of the input image's pixels. The loss is
    the mean over images of the mean over each image's positive samples, see `PerImageRoIHeads`.

    Raises:
        ValueError: As `faster_rcnn`.
    """
    detector = faster_rcnn(body, num_classes, options, **parts)
    add_mask_head(detector, num_classes, options)
    return detector


def add_mask_head(detector: GeneralizedRCNN, num_classes: int, options: MaskRcnnOptions) -> None:
    """Add torchvision's mask head to the RoI heads of a detector, see `mask_rcnn`."""
    heads, backbone, channels = detector.roi_heads, detector.backbone, options.mask_head_channels
    heads.mask_roi_pool = box_pool(backbone, MASK_ROI_SIZE, options)
    heads.mask_head = MaskRCNNHeads(backbone.out_channels, [channels] * MASK_CONVS, dilation=1)
    heads.mask_predictor = MaskRCNNPredictor(channels, channels, num_classes + 1)  # the background is class 0


MASK_ROWS = {r"roi_heads\.mask_predictor\.mask_fcn_logits\.(weight|bias)": ClassRows()}
MASK_TINY = {"mask_head_channels": 16}
MASK_RCNN_SPEC = DetectorSpec(
    mask_rcnn,
    MaskRcnnOptions,
    has_masks=True,
    class_rows=CLASS_ROWS | MASK_ROWS,
    export=FASTER_RCNN_SPEC.export,
    tiny=TINY | MASK_TINY,
)
