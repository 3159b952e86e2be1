"""Faster R-CNN, https://arxiv.org/abs/1506.01497, from torchvision's parts."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import MultiScaleRoIAlign

from .fpn import check_anchor_sizes, level_names
from .precision import give_float32
from .sampling import ImageSampler

ROI_SIZE = 7
# In the lower 32 bits, which are all that a CPU's generator takes of a seed.
RPN_SALT, BOX_SALT = 0x52504E, 0x424F58


class ImagewiseFasterRCNN(FasterRCNN):
    """torchvision's Faster R-CNN with losses that are means over the images of a batch.

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
        samplers = {"loss_objectness": rpn, "loss_rpn_box_reg": rpn, "loss_classifier": box, "loss_box_reg": box}
        return {name: _mean_over_images(loss, samplers[name], len(images)) for name, loss in losses.items()}


def _mean_over_images(loss: Tensor, sampler: ImageSampler, images: int) -> Tensor:
    """Divide a loss by the full samples of all images, where torchvision divided it by the places that were drawn."""
    full = sampler.batch_size_per_image * images
    # not drawn / full: a GPU multiplies by the reciprocal, so that this would not be exactly 1 for full samples
    share = 1 - sampler.missing.to(loss.dtype) / full
    return torch.where(sampler.missing < full, loss * share, 0)  # where nothing was drawn, their mean is NaN


def faster_rcnn(
    backbone: BackboneWithFPN,
    num_classes: int,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    anchor_sizes: Sequence[int] = (32, 64, 128, 256, 512),
    aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
    roi_canonical_size: int = 224,
    box_head_channels: int = 1024,
    rpn_proposals_train: int = 2000,
    rpn_proposals_test: int = 1000,
    rpn_batch_size: int = 256,
    box_batch_size: int = 512,
    score_threshold: float = 0.05,
    nms_threshold: float = 0.5,
    detections_per_image: int = 100,
) -> ImagewiseFasterRCNN:
    """Build Faster R-CNN on a pyramid; the defaults are the common COCO recipe.

    It follows torchvision's contract: in train mode `model(images, targets)` gives a dict of losses, in eval mode
    `model(images)` a list of dicts with `boxes` (xyxy pixels of the image given), `labels` and `scores`. Images are
    `(3, H, W)` in [0, 1]; labels count from 1, since 0 is the background. In training, images are taken as they come,
    and targets may hold a "seed", see `ImagewiseFasterRCNN`.

    Args:
        backbone: from `resnet_fpn`.
        num_classes: foreground classes, without background.
        min_size: shorter side in pixels to which images are scaled in evaluation.
        max_size: bound on the longer side after that.
        anchor_sizes: one size in pixels for each map of the pyramid, those on top included.
        aspect_ratios: heights over widths of the anchors, at every level.
        roi_canonical_size: side in pixels of the boxes that are pooled from level 4 of the pyramid; half the side is
            pooled one level lower (eq. (1) of the FPN paper). Small images want a smaller one.
        box_head_channels: width of the two fully connected layers.
        rpn_proposals_train: proposals kept per level before, and per image after NMS, in training.
        rpn_proposals_test: the same in evaluation.
        rpn_batch_size: anchors per image that the RPN is trained on.
        box_batch_size: proposals per image that the box head is trained on.
        score_threshold: detections below are dropped.
        nms_threshold: IoU above which the lower of two detections of a class is dropped.
        detections_per_image: the most that are kept.

    Raises:
        ValueError: if the number of anchor sizes is not that of the maps, or `num_classes` is below 1.
    """
    check_anchor_sizes(backbone, anchor_sizes)
    if num_classes < 1:
        raise ValueError(f"`num_classes` must be at least 1, got {num_classes}")
    num_outputs = num_classes + 1  # the background is class 0
    model = ImagewiseFasterRCNN(
        backbone,
        min_size=min_size,
        max_size=max_size,
        rpn_anchor_generator=AnchorGenerator(
            tuple((size,) for size in anchor_sizes), (tuple(aspect_ratios),) * len(anchor_sizes)
        ),
        rpn_pre_nms_top_n_train=rpn_proposals_train,
        rpn_post_nms_top_n_train=rpn_proposals_train,
        rpn_pre_nms_top_n_test=rpn_proposals_test,
        rpn_post_nms_top_n_test=rpn_proposals_test,
        rpn_batch_size_per_image=rpn_batch_size,
        box_roi_pool=MultiScaleRoIAlign(
            level_names(backbone), ROI_SIZE, sampling_ratio=2, canonical_scale=roi_canonical_size
        ),
        box_head=TwoMLPHead(backbone.out_channels * ROI_SIZE**2, box_head_channels),
        box_predictor=FastRCNNPredictor(box_head_channels, num_outputs),
        box_batch_size_per_image=box_batch_size,
        box_score_thresh=score_threshold,
        box_nms_thresh=nms_threshold,
        box_detections_per_img=detections_per_image,
        _skip_resize=True,  # in training
    )
    for head in (model.rpn.head, model.roi_heads.box_predictor):
        give_float32(head)
    for part, salt in ((model.rpn, RPN_SALT), (model.roi_heads, BOX_SALT)):
        theirs = part.fg_bg_sampler
        part.fg_bg_sampler = ImageSampler(theirs.batch_size_per_image, theirs.positive_fraction, salt=salt)
    return model
