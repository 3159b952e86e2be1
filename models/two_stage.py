"""What all detectors with proposals share: the network that proposes, and losses that are means over images."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from .boxes import Float32Anchors, Float32BoxCoder
from .sampling import ImageSampler

# In the lower 32 bits, which are all that a CPU's generator takes of a seed.
RPN_SALT = 0x52504E
RPN_LOSSES = ("loss_objectness", "loss_rpn_box_reg")
BOX_LOSSES = ("loss_classifier", "loss_box_reg")


class TwoStageDetector(GeneralizedRCNN):
    """torchvision's two-stage detector with losses that are means over the images of a batch.

    A target may hold a "seed", an int below 2**62; the anchors and proposals that its image is trained on are then
    drawn from that seed alone. The losses and gradients of a batch are thus the means of those of its parts, weighted
    by their numbers of images, as long as the parts are padded to the same size and batch norm is frozen or absent.

    Parts of other sizes see other things: an image is padded to the largest of its batch, and torchvision has anchors
    in the padding, which take part in the samples and the proposals, and lets it into convolutions near the border and
    into the statistics of group norm. In a trial with four images of 64 x 128 to 128 x 160 pixels, halves of the batch
    had losses within 1 % of the whole one's and a gradient 10 to 20 % of its norm away, which is as far as another
    draw of the samples takes it; single images had losses within 11 % and a gradient 20 to 40 % away.
    """

    def forward(self, images: list[Tensor], targets: list[dict] | None = None) -> dict[str, Tensor] | list[dict]:
        """Give losses in train mode and detections in eval mode; see `faster_rcnn`."""
        if not self.training:
            return super().forward(images, targets)
        rpn, box = self.rpn.fg_bg_sampler, self.roi_heads.fg_bg_sampler
        rpn.seeds = box.seeds = [target.get("seed") for target in targets or ()]
        losses = super().forward(images, targets)
        for name, loss in losses.items():
            if name in RPN_LOSSES:
                losses[name] = _mean_over_images(loss, rpn, len(images))
            elif name.startswith(BOX_LOSSES):
                losses[name] = _mean_over_images(loss, box, len(images))
        return losses


def _mean_over_images(loss: Tensor, sampler: ImageSampler, images: int) -> Tensor:
    """Divide a loss by the full samples of all images, where torchvision divided it by the places that were drawn."""
    full = sampler.batch_size_per_image * images
    # not drawn / full: a GPU multiplies by the reciprocal, so that this would not be exactly 1 for full samples
    share = 1 - sampler.missing.to(loss.dtype) / full
    return torch.where(sampler.missing < full, loss * share, 0)  # where nothing was drawn, their mean is NaN


def proposal_network(
    channels: int,
    *,
    anchor_sizes: Sequence[int],
    aspect_ratios: Sequence[float],
    proposals_train: int,
    proposals_test: int,
    batch_size: int,
) -> RegionProposalNetwork:
    """Build torchvision's RPN, whose samples are drawn by seed and whose boxes are float32 under autocast too.

    Args:
        channels: of the pyramid.
        anchor_sizes: one size in pixels for each map.
        aspect_ratios: heights over widths of the anchors, on every map.
        proposals_train: proposals kept per map before, and per image after NMS, in training.
        proposals_test: the same in evaluation.
        batch_size: anchors per image that it is trained on.
    """
    anchors = Float32Anchors(tuple((size,) for size in anchor_sizes), (tuple(aspect_ratios),) * len(anchor_sizes))
    kept = {"training": proposals_train, "testing": proposals_test}
    rpn = RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=batch_size,
        positive_fraction=0.5,
        pre_nms_top_n=kept,
        post_nms_top_n=kept,
        nms_thresh=0.7,
    )
    rpn.fg_bg_sampler = ImageSampler(batch_size, 0.5, salt=RPN_SALT)
    rpn.box_coder = Float32BoxCoder(rpn.box_coder.weights)
    return rpn
