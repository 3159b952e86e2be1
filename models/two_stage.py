"""What all detectors with proposals share: the network that proposes, and losses that are means over images.

The losses are computed as such where they are, by the RPN and the heads; torchvision's `GeneralizedRCNN` only gathers
them. A target may hold a "seed", an int below 2**62; the anchors and proposals that its image is trained on are then
drawn from that seed alone. The losses and gradients of a batch are thus the means of those of its parts, weighted by
their numbers of images, as long as the parts are padded to the same size and batch norm is frozen or absent.

Parts of other sizes see other things: an image is padded to the largest of its batch, and torchvision has anchors in
the padding, which take part in the samples and the proposals, and lets it into convolutions near the border and into
the statistics of group norm. In a trial with four images of 64 x 128 to 128 x 160 pixels, halves of the batch had
losses within 1 % of the whole one's and a gradient 10 to 20 % of its norm away, which is as far as another draw of the
samples takes it; single images had losses within 11 % and a gradient 20 to 40 % away.
"""

from collections.abc import Sequence

from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from .boxes import Float32Anchors, Float32BoxCoder
from .sampling import ImageSampler, all_labelled

# In the lower 32 bits, which are all that a CPU's generator takes of a seed.
RPN_SEED_OFFSET = 0x52504E
POSITIVE_FRACTION = 0.5


class PerImageRPN(RegionProposalNetwork):
    """torchvision's RPN, whose samples are drawn by seed and whose losses are means over images.

    Boxes are float32 under autocast too.

    Args:
        channels: of the pyramid.
        anchor_sizes: one size in pixels for each map.
        aspect_ratios: heights over widths of the anchors, on every map.
        pre_nms_top_n: maximum number of proposals per map before NMS, in "training" and "testing".
        post_nms_top_n: maximum number of proposals per image after NMS, in "training" and "testing".
        batch_size: anchors per image that it is trained on.
    """

    def __init__(
        self,
        channels: int,
        *,
        anchor_sizes: Sequence[int],
        aspect_ratios: Sequence[float],
        pre_nms_top_n: dict[str, int],
        post_nms_top_n: dict[str, int],
        batch_size: int,
    ) -> None:
        anchors = Float32Anchors(tuple((size,) for size in anchor_sizes), (tuple(aspect_ratios),) * len(anchor_sizes))
        super().__init__(
            anchors,
            RPNHead(channels, anchors.num_anchors_per_location()[0]),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=batch_size,
            positive_fraction=POSITIVE_FRACTION,
            pre_nms_top_n=pre_nms_top_n,
            post_nms_top_n=post_nms_top_n,
            nms_thresh=0.7,
        )
        self.box_coder = Float32BoxCoder(self.box_coder.weights)
        self.sampler = ImageSampler(batch_size, POSITIVE_FRACTION, seed_offset=RPN_SEED_OFFSET)
        self.fg_bg_sampler = all_labelled  # the samples are drawn where the targets are at hand

    def assign_targets_to_anchors(
        self, anchors: list[Tensor], targets: list[dict]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label the anchors of each image that are drawn; all others are ignored."""
        labels, matched_boxes = super().assign_targets_to_anchors(anchors, targets)
        drawn = self.sampler(labels, targets)
        return [own.where(mask, -1) for own, mask in zip(labels, drawn, strict=True)], matched_boxes

    def compute_loss(
        self, objectness: Tensor, pred_bbox_deltas: Tensor, labels: list[Tensor], regression_targets: list[Tensor]
    ) -> tuple[Tensor, ...]:
        """Return the losses of objectness and of boxes, means over the images."""
        losses = super().compute_loss(objectness, pred_bbox_deltas, labels, regression_targets)
        return tuple(self.sampler.mean_over_images(loss, labels) for loss in losses)
