"""FCOS, https://arxiv.org/abs/1904.01355, from torchvision's parts, whose head may be deformable too."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.resnet import ResNet

from dcn import DeformConv2d

from .boxes import Float32Anchors
from .detector import DeformOptions, DetectorSpec
from .fpn import FpnOptions, map_strides, resnet_fpn
from .one_stage import in_float32, without_background
from .options import Affects, Bounds, Deforms, Fraction, OldName, PositiveFloat, PositiveInt
from .retinanet import CLASS_ROWS
from .transform import DetectorTransform

HEAD_CONVS = 4
NORM_GROUPS = 32  # of the group norms in torchvision's head


class PerImageFCOSHead(FCOSHead):
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
            super(PerImageFCOSHead, self).compute_loss(
                [target], {name: output[i : i + 1] for name, output in head_outputs.items()}, [places], [matched]
            )
            for i, (target, places, matched) in enumerate(zip(targets, anchors, matched_idxs, strict=True))
        ]
        return {f"loss_{name}": torch.stack([losses[name] for losses in single]).mean() for name in single[0]}


class PerImageFCOS(FCOS):
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


@dataclass(frozen=True)
class FcosOptions:
    """Heads of FCOS; the defaults are the common COCO recipe, on levels 3 to 7."""

    num_dcn_convs: Annotated[
        int, Bounds(ge=0, le=HEAD_CONVS), Affects.NETWORK, Deforms.LAYERS, OldName("dcn_convs")
    ] = 0
    """How many of the four convolutions of each tower of the head are deformable, counted from the last; modulation,
    offset_groups and mask_scale are those of the backbone."""
    center_sampling_radius: Annotated[PositiveFloat, Affects.RESULT] = 1.5
    """Places that learn to detect a box lie so many strides from its centre at most."""
    score_threshold: Annotated[Fraction, Affects.RESULT] = 0.2
    """Detections below are dropped. The score is the root of class score times centre-ness, and so higher than that of
    other detectors: 0.2 drops products below 0.04."""
    nms_threshold: Annotated[Fraction, Affects.RESULT] = 0.6
    """IoU above which the weaker of two detections of a class is dropped; other detectors have 0.5."""
    topk_candidates: Annotated[PositiveInt, Affects.RESULT] = 1000
    """The most detections of a pyramid map, before NMS."""
    detections_per_image: Annotated[PositiveInt, Affects.RESULT] = 100
    """The most detections of an image."""


def fcos(
    body: ResNet,
    num_classes: int,
    options: FcosOptions,
    *,
    fpn: FpnOptions,
    transform: DetectorTransform,
    dcn: DeformOptions,
) -> PerImageFCOS:
    """Build FCOS on a pyramid, see `DetectorSpec.build`.

    A map of stride s detects the boxes whose farthest side is 4s to 8s pixels from the place that detects them; the
    finest one has the smaller ones too, the coarsest the larger ones. Output 0 of the head stays unused, since labels
    count from 1.

    Raises:
        ValueError: if the width of the pyramid or the number of deformable convolutions does not fit.
            The head has group norms of 32 groups, so that the width must be 64, 96, 128, ...
    """
    backbone = resnet_fpn(body, fpn)
    channels = backbone.out_channels
    # a group of one channel has nothing to compare on a map of one pixel, and PyTorch refuses it
    if channels % NORM_GROUPS or channels == NORM_GROUPS:
        raise ValueError(
            f"the head of fcos has group norms of {NORM_GROUPS} groups, so that the channels of the pyramid "
            f"(model.fpn.out_channels) must be a multiple of {NORM_GROUPS} and at least {2 * NORM_GROUPS}, "
            f"got {channels}"
        )
    if not 0 <= options.num_dcn_convs <= HEAD_CONVS:
        raise ValueError(
            f"`num_dcn_convs` must be 0 to {HEAD_CONVS}, the convolutions of a tower, got {options.num_dcn_convs}"
        )
    head = PerImageFCOSHead(channels, 1, num_classes + 1, HEAD_CONVS)
    for tower in (head.classification_head.conv, head.regression_head.conv):
        _deform_last(tower, options.num_dcn_convs, dcn)
    detector = PerImageFCOS(
        backbone,
        num_classes + 1,
        # a square of one stride about each place
        anchor_generator=Float32Anchors(
            tuple((stride,) for stride in map_strides(backbone).values()), ((1.0,),) * len(map_strides(backbone))
        ),
        head=head,
        center_sampling_radius=options.center_sampling_radius,
        score_thresh=options.score_threshold,
        nms_thresh=options.nms_threshold,
        topk_candidates=options.topk_candidates,
        detections_per_img=options.detections_per_image,
    )
    detector.transform = transform
    return detector


def _deform_last(tower: nn.Sequential, count: int, dcn: DeformOptions) -> None:
    """Make the last convolutions of a tower deformable."""
    convs = [index for index, layer in enumerate(tower) if isinstance(layer, nn.Conv2d)]
    # New layers draw numbers: apart from the global state, so that what comes after starts as without them.
    with torch.random.fork_rng(devices=[]):
        for index in convs[len(convs) - count :]:
            tower[index] = DeformConv2d.from_conv(tower[index], **vars(dcn))


FCOS_SPEC = DetectorSpec(
    fcos,
    FcosOptions,
    class_rows=CLASS_ROWS,
    export="engine.export.one_stage:FCOSGraph",
    tiny_fpn={"levels": [2, 3], "out_channels": 2 * NORM_GROUPS},
)
