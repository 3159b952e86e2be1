"""FCOS, https://arxiv.org/abs/1904.01355, built from torchvision's parts; its head can be deformable."""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.resnet import ResNet

from dcn import DeformConv2d

from .anchors import Float32Anchors
from .detector import DeformOptions, DetectorSpec
from .fpn import FpnOptions, map_strides, resnet_fpn
from .ignored import is_point_ignored
from .one_stage import in_float32, weighted_focal_loss, without_background
from .options import Affects, Bounds, Count, Deforms, Fraction, OldName, PositiveFloat
from .retinanet import CLASS_ROWS
from .transform import DetectorTransform

HEAD_CONVS = 4
NORM_GROUPS = 32  # of the group norms in torchvision's head
SURELY_BACKGROUND = -100.0  # logit of a class whose focal loss is 0 in the background


class PerImageFCOSHead(FCOSHead):
    """torchvision's FCOS head with losses that are means over the images of a batch."""

    def __init__(self, *parts: int) -> None:
        super().__init__(*parts)
        self.register_buffer("class_weights", None, persistent=False)  # see `set_class_weights`

    def compute_loss(
        self,
        targets: list[dict],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Return the mean over images of torchvision's losses of each single image; names start with "loss_".

        Args:
            targets: `boxes` and `labels` of each image, and optionally `ignored` regions.
            head_outputs: Outputs of the head, each `(B, locations, n)`.
            anchors: Anchors of each image, `(locations, 4)`.
            matched_idxs: Index of the box that each location is assigned to, -1 for none, `(locations,)` per image.
        """
        head_outputs = in_float32(head_outputs)
        if any("ignored" in target for target in targets):
            places = zip(anchors, targets, matched_idxs, strict=True)
            ignored = [
                (matched < 0) & is_point_ignored((own[:, :2] + own[:, 2:]) / 2, target)
                for own, target, matched in places
            ]
            logits = head_outputs["cls_logits"].masked_fill(torch.stack(ignored)[..., None], SURELY_BACKGROUND)
            head_outputs = head_outputs | {"cls_logits": logits}
        single = [
            super(PerImageFCOSHead, self).compute_loss(
                [target], {name: output[i : i + 1] for name, output in head_outputs.items()}, [own_anchors], [matched]
            )
            for i, (target, own_anchors, matched) in enumerate(zip(targets, anchors, matched_idxs, strict=True))
        ]
        if self.class_weights is not None:
            images = zip(single, head_outputs["cls_logits"], targets, matched_idxs, strict=True)
            for losses, *image in images:
                losses["classification"] = weighted_focal_loss(*image, self.class_weights)
        return {f"loss_{name}": torch.stack([losses[name] for losses in single]).mean() for name in single[0]}


class PerImageFCOS(FCOS):
    """torchvision's FCOS with losses that are means over the images of a batch.

    torchvision and the paper divide the losses by the number of positive locations in the whole batch. Images with many
    or large objects then have a higher weight, and losses depend on which images share a batch. Here the losses of each
    image are divided by its number of positive locations, as in RetinaNet. For one image they equal torchvision's. See
    docs/concepts/losses-and-batches.md.
    """

    def postprocess_detections(
        self, head_outputs: dict[str, list[Tensor]], anchors: list[list[Tensor]], image_shapes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return torchvision's detections, without class 0."""
        return super().postprocess_detections(without_background(in_float32(head_outputs)), anchors, image_shapes)


@dataclass(frozen=True)
class FcosOptions:
    """FCOS; the defaults are the common COCO recipe on levels 3 to 7."""

    num_dcn_convs: Annotated[
        int, Bounds(ge=0, le=HEAD_CONVS), Affects.NETWORK, Deforms.LAYERS, OldName("dcn_convs")
    ] = 0
    """Number of deformable convolutions in each tower of the head, counted from the last of four. modulation,
    offset_groups and mask_scale are those of the backbone."""
    center_sampling_radius: Annotated[PositiveFloat, Bounds(le=100), Affects.RESULT] = 1.5
    """Maximum distance of a box's positive locations from its centre, in strides."""
    score_threshold: Annotated[Fraction, Affects.RESULT] = 0.2
    """Minimum score of detections. The score is the square root of class score times centerness, and therefore higher
    than the scores of other detectors: 0.2 corresponds to a product of 0.04."""
    nms_threshold: Annotated[Fraction, Affects.RESULT] = 0.6
    """IoU above which NMS removes the detection with the lower score of two detections of a class; other detectors use
    0.5."""
    topk_candidates: Annotated[Count, Affects.RESULT] = 1000
    """Maximum number of detections per pyramid level before NMS."""
    detections_per_image: Annotated[Count, Affects.RESULT] = 100
    """Maximum number of detections per image."""


def fcos(
    body: ResNet,
    num_classes: int,
    options: FcosOptions,
    *,
    fpn: FpnOptions,
    transform: DetectorTransform,
    dcn: DeformOptions,
) -> PerImageFCOS:
    """Build FCOS on a feature pyramid, see `DetectorSpec.build`.

    The level with stride s detects boxes whose farthest side is 4s to 8s pixels from the location. The finest level
    also detects smaller boxes, the coarsest level larger ones. Output 0 of the head is unused, because labels count
    from 1.

    Raises:
        ValueError: If the channels of the pyramid are not 64, 96, 128, ..., because the head has group norms of 32
            groups, or if the number of deformable convolutions is out of range.
    """
    backbone = resnet_fpn(body, fpn)
    channels = backbone.out_channels
    # PyTorch raises an error for groups of one channel on a map of one pixel
    if channels % NORM_GROUPS or channels == NORM_GROUPS:
        raise ValueError(
            f"`model.fpn.out_channels` must be a multiple of {NORM_GROUPS} and at least {2 * NORM_GROUPS}, for the "
            f"group norms in the head of fcos, got {channels}"
        )
    if not 0 <= options.num_dcn_convs <= HEAD_CONVS:
        raise ValueError(
            f"`num_dcn_convs` must be from 0 to {HEAD_CONVS}, the convolutions of a tower, got {options.num_dcn_convs}"
        )
    head = PerImageFCOSHead(channels, 1, num_classes + 1, HEAD_CONVS)
    for tower in (head.classification_head.conv, head.regression_head.conv):
        _deform_last(tower, options.num_dcn_convs, dcn)
    detector = PerImageFCOS(
        backbone,
        num_classes + 1,
        # a square of one stride around each location
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
    """Replace the last convolutions of a tower by deformable ones."""
    convs = [index for index, layer in enumerate(tower) if isinstance(layer, nn.Conv2d)]
    # The forked random state keeps the initial values of later modules independent of these layers.
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
