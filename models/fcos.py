"""FCOS, https://arxiv.org/abs/1904.01355, from torchvision's parts, whose head may be deformable too."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead

from dcn import DeformConv2d

from .boxes import Float32Anchors
from .fpn import map_strides
from .one_stage import in_float32, without_background

HEAD_CONVS = 4
NORM_GROUPS = 32  # of the group norms in torchvision's head


class ImagewiseFCOSHead(FCOSHead):
    """torchvision's head of FCOS with losses that are means over the images of a batch."""

    def compute_loss(
        self,
        targets: list[dict],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Give the mean over the images of what torchvision makes of each alone, under names that begin with "loss_".

        Args:
            targets: `boxes` and `labels` of each image.
            head_outputs: `(B, places, n)` each.
            anchors: `(places, 4)` of each image.
            matched_idxs: `(places,)` of each image: which box a place is to detect, -1 for none.
        """
        head_outputs = in_float32(head_outputs)
        single = [
            super(ImagewiseFCOSHead, self).compute_loss(
                [target], {name: output[i : i + 1] for name, output in head_outputs.items()}, [places], [matched]
            )
            for i, (target, places, matched) in enumerate(zip(targets, anchors, matched_idxs, strict=True))
        ]
        return {f"loss_{name}": torch.stack([losses[name] for losses in single]).mean() for name in single[0]}


class ImagewiseFCOS(FCOS):
    """torchvision's FCOS with losses that are means over the images of a batch.

    torchvision, as the paper, divides the losses of a batch by the places that are to detect something in all of its
    images together, so that an image with many or large objects counts for more, and losses depend on which images
    share a batch. Here those of each image are divided by its own number of such places, as RetinaNet's are. Nothing is
    drawn by chance, and so the losses and gradients of a batch are the means of those of its parts, weighted by their
    numbers of images, as long as the parts are padded to the same size and batch norm is frozen or absent. For one
    image they are torchvision's.
    """

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Detect as torchvision does, but nothing of class 0."""
        return super().postprocess_detections(without_background(in_float32(head_outputs)), anchors, image_shapes)


def fcos(
    backbone: BackboneWithFPN,
    num_classes: int,
    *,
    min_size: int = 800,
    max_size: int = 1333,
    center_sampling_radius: float = 1.5,
    score_threshold: float = 0.2,
    nms_threshold: float = 0.6,
    topk_candidates: int = 1000,
    detections_per_image: int = 100,
    dcn_convs: int = 0,
    modulation: bool = True,
    offset_groups: int = 1,
    mask_scale: float = 2.0,
    dcn_backend: str = "auto",
) -> ImagewiseFCOS:
    """Build FCOS on a pyramid; the defaults are the common COCO recipe, on P3 to P7.

    It follows torchvision's contract, as `faster_rcnn` does: in train mode `model(images, targets)` gives a dict of
    losses, in eval mode `model(images)` a list of dicts with `boxes` (xyxy pixels of the image given), `labels` and
    `scores`. Images are `(3, H, W)` in [0, 1]; labels count from 1, and output 0 of the head stays unused. In training,
    images are taken as they come.

    A map of stride s detects the boxes whose farthest side is 4s to 8s pixels from the place that detects them; the
    finest one has the smaller ones too, the coarsest the larger ones.

    Args:
        backbone: from `resnet_fpn`, of a width that the head's group norms of 32 groups can have: 64, 96, 128, ...
        num_classes: foreground classes.
        min_size: shorter side in pixels to which images are scaled in evaluation.
        max_size: bound on the longer side after that.
        center_sampling_radius: places that are to detect a box lie so many strides from its centre at most, along x and
            along y.
        score_threshold: detections below are dropped. The score is the square root of class score times centre-ness:
            0.2 drops what has a product below 0.04.
        nms_threshold: IoU above which the lower of two detections of a class is dropped.
        topk_candidates: the most detections of a level, before NMS.
        detections_per_image: the most that are kept.
        dcn_convs: how many of the four 3x3 convolutions of each tower are deformable, counted from the last.
        modulation: of these; True for DCNv2, False for DCNv1.
        offset_groups: of these; channel groups with offsets of their own.
        mask_scale: of these; 2 makes the head start as the plain one.
        dcn_backend: of these; a name in `dcn.BACKENDS`, or "auto".

    Raises:
        ValueError: if the width of the pyramid, the number of deformable convolutions or `num_classes` does not fit.
    """
    channels = backbone.out_channels
    # a group of one channel has nothing to compare on a map of one pixel, and PyTorch refuses it
    if channels % NORM_GROUPS or channels == NORM_GROUPS:
        raise ValueError(
            f"the head of fcos has group norms of {NORM_GROUPS} groups, so that the channels of the pyramid "
            f"(model.fpn.channels) must be a multiple of {NORM_GROUPS} and at least {2 * NORM_GROUPS}, got {channels}"
        )
    if num_classes < 1:
        raise ValueError(f"`num_classes` must be at least 1, got {num_classes}")
    if not 0 <= dcn_convs <= HEAD_CONVS:
        raise ValueError(f"`dcn_convs` must be 0 to {HEAD_CONVS}, the convolutions of a tower, got {dcn_convs}")
    head = ImagewiseFCOSHead(channels, 1, num_classes + 1, HEAD_CONVS)
    for tower in (head.classification_head.conv, head.regression_head.conv):
        _deform_last(
            tower,
            dcn_convs,
            modulation=modulation,
            offset_groups=offset_groups,
            mask_scale=mask_scale,
            backend=dcn_backend,
        )
    return ImagewiseFCOS(
        backbone,
        num_classes + 1,
        min_size=min_size,
        max_size=max_size,
        # a square of one stride about each place
        anchor_generator=Float32Anchors(
            tuple((stride,) for stride in map_strides(backbone).values()), ((1.0,),) * len(map_strides(backbone))
        ),
        head=head,
        center_sampling_radius=center_sampling_radius,
        score_thresh=score_threshold,
        nms_thresh=nms_threshold,
        topk_candidates=topk_candidates,
        detections_per_img=detections_per_image,
        _skip_resize=True,  # in training
    )


def _deform_last(tower: nn.Sequential, count: int, **options: object) -> None:
    """Make the last convolutions of a tower deformable."""
    convs = [index for index, layer in enumerate(tower) if isinstance(layer, nn.Conv2d)]
    # New layers draw numbers: apart from the global state, so that what comes after starts as without them.
    with torch.random.fork_rng(devices=[]):
        for index in convs[len(convs) - count :]:
            tower[index] = DeformConv2d.from_conv(tower[index], **options)
