"""RetinaNet compared with torchvision and formulas; see also test_detectors.py."""

import math

import pytest
import torch
from torchvision.models.detection import retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2
from torchvision.ops import box_iou

from models import resnet
from models.anchors import ExactAnchors
from tests.detectors import assemble

BOXES = torch.tensor([[10.0, 20, 75, 90], [60, 30, 130, 70]])
LABELS = torch.tensor([2, 3])


def ours(extra_levels: str, norm: str = "bn", **options) -> torch.nn.Module:
    fpn = {"levels": [3, 4, 5], "extra_levels": extra_levels}
    return assemble("retinanet", resnet("resnet50", norm=norm), fpn=fpn, min_size=96, max_size=160, **options)


@pytest.fixture(scope="module")
def theirs():
    """Return torchvision's detector with a head that has detections, but none of class 0, as after training."""
    torch.manual_seed(0)
    model = retinanet_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=96, max_size=160, detections_per_img=100
    )
    head = model.head.classification_head
    torch.nn.init.normal_(head.cls_logits.weight, std=0.1)
    with torch.no_grad():
        head.cls_logits.bias.view(9, 4)[:] = torch.tensor([-30.0, -2, -2, -2])
    return model


def test_torchvisions_state_gives_its_detections_and_losses(theirs):
    model = ours("p6p7", anchors="torchvision")
    model.load_state_dict(theirs.state_dict())
    image = torch.rand(3, 120, 150)
    with torch.no_grad():
        (found,), (expected,) = model.eval()([image]), theirs.eval()([image])
    assert len(expected["boxes"]) > 20
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)

    # our detector does not resize training images, so both get an image that needs neither resizing nor padding
    image, target = torch.rand(3, 96, 160), {"boxes": BOXES, "labels": LABELS}
    losses, expected = model.train()([image], [target]), theirs.train()([image], [target])
    assert {f"loss_{name}": loss.item() for name, loss in expected.items()} == {k: v.item() for k, v in losses.items()}


def test_p6_from_c5_has_the_shapes_of_torchvisions_second_builder():
    theirs = retinanet_resnet50_fpn_v2(weights=None, weights_backbone=None, num_classes=4).backbone.state_dict()
    own = ours("p6p7_from_c5").backbone.state_dict()
    assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in theirs.items()}


@pytest.mark.parametrize("beta", [0.0, 0.1, 2.0])
@pytest.mark.parametrize("anchors", ["exact", "torchvision"])
def test_losses_by_hand(make, beta, anchors):
    """The paper's focal loss, and L1 (0) or smooth L1 loss, divided by the positive anchors of each image."""
    model = make.tiny("retinanet", aspect_ratios=[0.5, 1.0], smooth_l1_beta=beta, anchors=anchors)
    images, targets = make.four_images()
    outputs = {}
    model.head.register_forward_hook(lambda module, inputs, output: outputs.update(output))
    losses = model(images, targets)
    prepared, _ = model.transform(images)
    anchors = model.anchor_generator(prepared, [*model.backbone(prepared.tensors).values()])
    classification, regression = [], []
    for index, target in enumerate(targets):
        boxes, labels = target["boxes"], target["labels"]
        if len(boxes):
            iou, nearest = box_iou(anchors[index], boxes).max(1)
            best = (box_iou(anchors[index], boxes) == box_iou(anchors[index], boxes).max(0).values).any(1)
            positive = (iou >= 0.5) | best
            used = positive | (iou < 0.4)
        else:
            positive, nearest = torch.zeros(len(anchors[index]), dtype=torch.bool), None
            used = ~positive
        wanted = torch.zeros(len(positive), 4, dtype=torch.float64)
        for place in positive.nonzero().flatten().tolist():
            wanted[place, labels[nearest[place]]] = 1
        p = outputs["cls_logits"][index].sigmoid()
        focal = -(wanted * 0.25 * (1 - p) ** 2 * p.log() + (1 - wanted) * 0.75 * p**2 * (1 - p).log())
        count = max(1, int(positive.sum()))
        classification.append(focal[used].sum() / count)
        total = 0
        for place in positive.nonzero().flatten().tolist():
            (x1, y1, x2, y2), (u1, v1, u2, v2) = anchors[index][place].tolist(), boxes[nearest[place]].tolist()
            width, height = x2 - x1, y2 - y1
            code = [(u1 + u2 - x1 - x2) / 2 / width, (v1 + v2 - y1 - y2) / 2 / height]
            code += [math.log((u2 - u1) / width), math.log((v2 - v1) / height)]
            errors = (outputs["bbox_regression"][index, place] - torch.tensor(code, dtype=torch.float64)).abs().tolist()
            total += sum(0.5 * e**2 / beta if beta and e < beta else e - 0.5 * beta for e in errors)
        regression.append(total / count)
    assert losses["loss_classification"].item() == pytest.approx(sum(classification).item() / 4, rel=1e-6)
    assert losses["loss_bbox_regression"].item() == pytest.approx(sum(regression) / 4, rel=1e-6)


def test_class_0_is_never_detected(make):
    model = make.build("retinanet", score_threshold=0.0).eval()
    with torch.no_grad():
        model.head.classification_head.cls_logits.bias.view(9, 4)[:, 0] = 20
        for found in model(make.two_images()[0]):
            assert len(found["labels"]) == 100
            assert found["labels"].min() == 1
            assert found["scores"].max() < 0.5


@pytest.mark.parametrize("clip_boxes", ["before_nms", "after_nms", "never"])
def test_boxes_are_clipped_when_the_option_says(make, clip_boxes):
    """Three boxes of a class at the left border, by hand: two overlap only inside the image, one is outside of it."""
    model = make.build("retinanet", clip_boxes=clip_boxes, score_threshold=0.1, nms_threshold=0.5).eval()
    boxes = torch.tensor([[-60.0, 10, 20, 50], [0, 10, 20, 50], [-40, 60, -10, 90], [70, 10, 130, 40]])
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6])
    logits = torch.full((1, 4, 4), -20.0)
    logits[0, :, 2] = scores.logit()
    outputs = {"cls_logits": [logits], "bbox_regression": [torch.zeros(1, 4, 4)]}
    (found,) = model.postprocess_detections(outputs, [[boxes]], [(80, 100)])
    expected = {
        # clipped, the second box equals the first one, and the third has no width; torchvision keeps it
        "before_nms": [[0, 10, 20, 50], [0, 60, 0, 80], [70, 10, 100, 40]],
        # detectron2: no overlap before clipping; the box without a width is removed
        "after_nms": [[0, 10, 20, 50], [0, 10, 20, 50], [70, 10, 100, 40]],
        "never": boxes.tolist(),  # PaddleDetection
    }
    torch.testing.assert_close(found["boxes"], torch.tensor(expected[clip_boxes], dtype=torch.float32))
    assert found["labels"].tolist() == [2] * len(expected[clip_boxes])


def test_unknown_clipping(make):
    with pytest.raises(ValueError, match="unknown clip_boxes 'twice', known: before_nms, after_nms, never"):
        make.build("retinanet", clip_boxes="twice")


def test_options_arrive(make):
    model = make.build(
        "retinanet",
        num_classes=5,
        anchor_sizes=[8, 16, 32, 64, 128],
        scales_per_octave=2,
        aspect_ratios=[0.5, 1.0, 3.0],
        anchors="torchvision",
        positive_iou=0.6,
        negative_iou=0.3,
        score_threshold=0.3,
        nms_threshold=0.7,
        topk_candidates=33,
        detections_per_image=9,
    )
    # 2 ** 0.5 times the size, in whole pixels
    assert model.anchor_generator.sizes == ((8, 11), (16, 22), (32, 45), (64, 90), (128, 181))
    assert model.anchor_generator.aspect_ratios == ((0.5, 1.0, 3.0),) * 5
    assert (model.proposal_matcher.high_threshold, model.proposal_matcher.low_threshold) == (0.6, 0.3)
    assert (model.score_thresh, model.nms_thresh, model.topk_candidates, model.detections_per_img) == (0.3, 0.7, 33, 9)
    # output 0 is unused
    assert model.head.classification_head.cls_logits.out_channels == 2 * 3 * 6
    assert model.head.regression_head.bbox_reg.out_channels == 2 * 3 * 4


def test_defaults_are_those_of_torchvision_but_for_the_anchors_and_detections(theirs):
    assert type(ours("p6p7").anchor_generator) is ExactAnchors
    model = ours("p6p7", anchors="torchvision")
    assert model.anchor_generator.sizes == theirs.anchor_generator.sizes
    assert model.anchor_generator.aspect_ratios == theirs.anchor_generator.aspect_ratios
    for name in ("score_thresh", "nms_thresh", "topk_candidates"):
        assert getattr(model, name) == getattr(theirs, name)
    assert vars(model.proposal_matcher) == vars(theirs.proposal_matcher)
    assert model.detections_per_img == 100


def test_anchor_sizes_match_the_levels_of_the_pyramid():
    fpn = {"levels": [3, 4, 5], "out_channels": 16}
    with pytest.raises(ValueError, match="each of the 4 levels p3, p4, p5, pool, got 5"):
        assemble("retinanet", resnet("resnet18"), fpn=fpn)
    fpn["extra_levels"] = "p6p7"
    with pytest.raises(ValueError, match=r"each of the 5 levels p3, p4, p5, p6, p7, got 3: \[8, 16, 32\]"):
        assemble("retinanet", resnet("resnet18"), fpn=fpn, anchor_sizes=[8, 16, 32])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales_per_octave": 0}, "`scales_per_octave` must be at least 1, got 0"),
        (
            {"positive_iou": 0.3, "negative_iou": 0.31},
            "`negative_iou` must be at most `positive_iou` = 0.3, got 0.31",
        ),
    ],
)
def test_invalid_numbers(make, options, message):
    with pytest.raises(ValueError, match=message):
        make.build("retinanet", **options)
    assert make.build("retinanet", positive_iou=0.4, negative_iou=0.4)
