"""The region proposal network of the two-stage detectors, with losses that are means over images.

The RPN and the RoI heads compute means over images; torchvision's `GeneralizedRCNN` only collects the losses. A target
may contain a "seed", an int below 2**62. The training anchors and proposals of its image are then drawn from this seed
alone.

The losses and gradients of a batch are means over its parts, weighted by their numbers of images. This holds if the
parts are padded to the same size and batch norm is frozen or absent. docs/concepts/losses-and-batches.md describes the
effect of different padding.
"""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, smooth_l1_loss
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from .boxes import Float32BoxCoder
from .ignored import is_ignored
from .sampling import ImageSampler

# In the lower 32 bits, because a CPU generator uses only these of a seed.
RPN_SEED_OFFSET = 0x52504E
POSITIVE_FRACTION = 0.5
# IoU with a box from which anchors are positive, and below which they are negative.
POSITIVE_IOU, NEGATIVE_IOU = 0.7, 0.3


class PerImageRPN(RegionProposalNetwork):
    """torchvision's RPN, with samples drawn by seed and losses that are means over images.

    Boxes are float32, also under autocast.

    Args:
        channels: Number of channels of the pyramid.
        anchors: Anchor generator, with the same number of anchors per location on every level.
        pre_nms_top_n: Maximum number of proposals per level before NMS, in "training" and "testing".
        post_nms_top_n: Maximum number of proposals per image after NMS, in "training" and "testing".
        batch_size: Number of sampled anchors per image in training.
        smooth_l1_beta: Error below which the box loss is quadratic; 0 is plain L1.
    """

    def __init__(
        self,
        channels: int,
        *,
        anchors: AnchorGenerator,
        pre_nms_top_n: dict[str, int],
        post_nms_top_n: dict[str, int],
        batch_size: int,
        smooth_l1_beta: float,
    ) -> None:
        super().__init__(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=POSITIVE_IOU,
            bg_iou_thresh=NEGATIVE_IOU,
            batch_size_per_image=batch_size,
            positive_fraction=POSITIVE_FRACTION,
            pre_nms_top_n=pre_nms_top_n,
            post_nms_top_n=post_nms_top_n,
            nms_thresh=0.7,
        )
        self.box_coder = Float32BoxCoder(self.box_coder.weights)
        self.sampler = ImageSampler(batch_size, POSITIVE_FRACTION, seed_offset=RPN_SEED_OFFSET)
        self.smooth_l1_beta = smooth_l1_beta

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return labels and matched boxes of each image's anchors; anchors that are not drawn are ignored (-1).

        Negative anchors in ignored regions are not drawn.
        """
        labels, matched_boxes = super().assign_targets_to_anchors(anchors, targets)
        labels = [
            own.masked_fill((own == 0) & is_ignored(boxes, target, NEGATIVE_IOU), -1)
            for own, boxes, target in zip(labels, anchors, targets, strict=True)
        ]
        drawn = self.sampler(labels, targets)
        return [own.where(mask, -1) for own, mask in zip(labels, drawn, strict=True)], matched_boxes

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the objectness and box losses, means over the images."""
        every, encoded = torch.cat(labels), torch.cat(regression_targets)
        positive, negative = torch.where(every >= 1)[0], torch.where(every == 0)[0]
        drawn = torch.cat([positive, negative])  # in `assign_targets_to_anchors`, which has the targets
        box_loss = smooth_l1_loss(
            pred_bbox_deltas[positive], encoded[positive], reduction="sum", beta=self.smooth_l1_beta
        )
        logits = objectness.flatten()[drawn]
        losses = binary_cross_entropy_with_logits(logits, every[drawn].to(logits.dtype)), box_loss / len(drawn)
        return tuple(self.sampler.mean_over_images(loss, labels) for loss in losses)
