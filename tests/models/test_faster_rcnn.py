"""Every detector of the table obeys torchvision's contract; Faster R-CNN takes its options."""

import pytest
import torch
from torch import nn

from dcn import DeformConv2d
from models import DETECTORS, faster_rcnn, resnet, resnet_fpn

SMALL = {"min_size": 64, "max_size": 96}
LOSSES = {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}


def build(detector: str = "faster_rcnn", num_classes: int = 3, **options) -> nn.Module:
    torch.manual_seed(0)
    pyramid = resnet_fpn(resnet("resnet18", dcn_v2_stages=[2, 3, 4], norm="gn"), channels=16)
    return DETECTORS[detector](pyramid, num_classes, **SMALL | options)


def batch() -> tuple[list[torch.Tensor], list[dict]]:
    """Two images of different sizes; one target has the highest class, the other no box."""
    boxes = torch.tensor([[8.0, 10, 40, 50], [30, 20, 70, 60]])
    targets = [
        {"boxes": boxes, "labels": torch.tensor([1, 3]), "image_id": 1},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "image_id": 2},
    ]
    return [torch.rand(3, 64, 80), torch.rand(3, 90, 64)], targets


@pytest.mark.parametrize("detector", DETECTORS)
def test_losses_in_train_mode(detector):
    losses = build(detector).train()(*batch())
    assert losses
    assert detector != "faster_rcnn" or set(losses) == LOSSES
    assert all(loss.dim() == 0 and loss.isfinite() and loss.requires_grad for loss in losses.values())


@pytest.mark.parametrize("detector", DETECTORS)
def test_starts_as_the_plain_detector(detector):
    """Same seed: equal weights and, in float64, equal losses, so that two runs differ by what is learned alone."""
    images, targets = batch()
    losses, states = [], []
    for stages in ([], [2, 3, 4]):
        torch.manual_seed(0)
        pyramid = resnet_fpn(resnet("resnet18", dcn_v2_stages=stages, norm="gn"), channels=16)
        model = DETECTORS[detector](pyramid, 3, **SMALL).double().train()
        states.append(model.state_dict())
        torch.manual_seed(1)  # of the proposals that are sampled
        found = model([image.double() for image in images], [t | {"boxes": t["boxes"].double()} for t in targets])
        losses.append(torch.stack(list(found.values())))
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())
    assert all(not value.any() for key, value in states[1].items() if key not in states[0])
    torch.testing.assert_close(losses[1], losses[0], rtol=1e-9, atol=0)


@pytest.mark.parametrize("detector", DETECTORS)
def test_gradient_reaches_every_parameter(detector):
    model = build(detector).train()
    sum(model(*batch()).values()).backward()
    predictors = [module.conv_offset for module in model.modules() if isinstance(module, DeformConv2d)]
    assert len(predictors) == 6
    for predictor in predictors:
        offset, mask = predictor.weight.grad.split([18, 9])
        assert offset.abs().max() > 0
        assert mask.abs().max() > 0
        assert predictor.bias.grad.abs().max() > 0
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


@pytest.mark.parametrize("detector", DETECTORS)
def test_detections_in_eval_mode(detector):
    images, _ = batch()
    model = build(detector, score_threshold=0.0, detections_per_image=7).eval()
    with torch.no_grad():
        detections = model(images)
    assert len(detections) == 2
    for image, found in zip(images, detections, strict=True):
        assert set(found) == {"boxes", "labels", "scores"}
        assert tuple(found["boxes"].shape) == (7, 4)
        height, width = image.shape[-2:]
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"] <= torch.tensor([width, height] * 2)).all()
        assert found["boxes"].max() > 64, "boxes are pixels of the image given, not of the network's"
        assert found["labels"].dtype == torch.int64
        assert set(found["labels"].tolist()) <= {1, 2, 3}
        assert ((found["scores"] >= 0) & (found["scores"] <= 1)).all()


def test_options_arrive():
    model = build(
        num_classes=5,
        anchor_sizes=[8, 16, 32, 64, 128],
        aspect_ratios=[1.0, 3.0],
        roi_canonical_size=56,
        box_head_channels=48,
        rpn_proposals_train=31,
        rpn_proposals_test=17,
        rpn_batch_size=64,
        box_batch_size=24,
        score_threshold=0.3,
        nms_threshold=0.6,
        detections_per_image=9,
    )
    rpn, heads, transform = model.rpn, model.roi_heads, model.transform
    assert (transform.min_size, transform.max_size) == ((64,), 96)
    assert rpn.anchor_generator.sizes == ((8,), (16,), (32,), (64,), (128,))
    assert rpn.anchor_generator.aspect_ratios == ((1.0, 3.0),) * 5
    assert rpn._pre_nms_top_n == rpn._post_nms_top_n == {"training": 31, "testing": 17}
    assert rpn.fg_bg_sampler.batch_size_per_image == 64
    assert heads.fg_bg_sampler.batch_size_per_image == 24
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.3, 0.6, 9)
    assert heads.box_head.fc7.out_features == 48
    # the background is one output more
    assert heads.box_predictor.cls_score.out_features == 6
    assert heads.box_predictor.bbox_pred.out_features == 24


def test_several_sizes_in_training():
    assert build(min_size=[48, 64]).transform.min_size == [48, 64]


@pytest.mark.parametrize("canonical", [128, 56])
def test_boxes_of_the_canonical_size_are_pooled_from_level_4(canonical):
    model = build(roi_canonical_size=canonical).eval()
    pool = model.roi_heads.box_roi_pool
    sides = [canonical / 2, canonical, canonical * 2]  # a hair above, against rounding
    boxes = [torch.tensor([[0.0, 0, side + 0.1, side + 0.1] for side in sides])]
    with torch.no_grad():
        assert pool(model.backbone(torch.zeros(1, 3, 256, 256)), boxes, [(256, 256)]).shape == (3, 16, 7, 7)
    assert [pool.featmap_names[index] for index in pool.map_levels(boxes)] == ["p3", "p4", "p5"]


@pytest.mark.parametrize("sizes", [[32, 64, 128, 256], [32, 64, 128, 256, 512, 1024], []])
def test_wrong_number_of_anchor_sizes(sizes):
    with pytest.raises(ValueError, match=rf"each of the 5 maps p2, p3, p4, p5, pool, got {len(sizes)}: \["):
        build(anchor_sizes=sizes)


def test_anchor_sizes_count_the_levels_of_the_pyramid():
    pyramid = resnet_fpn(resnet("resnet18"), levels=[3, 4], channels=16)
    with pytest.raises(ValueError, match="each of the 3 maps p3, p4, pool, got 5"):
        faster_rcnn(pyramid, 3)
    assert len(faster_rcnn(pyramid, 3, anchor_sizes=[16, 32, 64]).rpn.anchor_generator.sizes) == 3


@pytest.mark.parametrize("num_classes", [0, -1])
def test_no_classes(num_classes):
    with pytest.raises(ValueError, match=f"`num_classes` must be at least 1, got {num_classes}"):
        build(num_classes=num_classes)
