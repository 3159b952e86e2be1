"""Orders of classes and anchors, against the meaning of each output."""

import math

import pytest
import torch
import torch.nn.functional as F
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.retinanet import RetinaNetHead

from engine.converters.heads import arrange_heads, check_anchors, count_classes
from engine.converters.recognition import SOURCES
from models.anchors import make_anchors

SIZES, RATIOS, CLASSES = (32, 40, 50), (0.5, 1.0, 2.0), 4


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("key", "order"),
    [
        # width and height of the anchors of a place, in the order of each framework's generator
        ("mmdetection", [(size, ratio) for ratio in RATIOS for size in SIZES]),
        ("detectron2", [(size, ratio) for size in SIZES for ratio in RATIOS]),
        ("paddledetection", [(size, ratio) for size in SIZES for ratio in RATIOS]),
    ],
)
def test_retinanet_says_the_same_of_each_anchor(key, order):
    source, maps = SOURCES[key], draw(1, 8, 3, 5, seed=1)
    weights = {
        "head.classification_head.cls_logits.weight": draw(9 * CLASSES, 8, 3, 3, seed=2),
        "head.classification_head.cls_logits.bias": draw(9 * CLASSES, seed=3),
        "head.regression_head.bbox_reg.weight": draw(36, 8, 3, 3, seed=4),
        "head.regression_head.bbox_reg.bias": draw(36, seed=5),
    }
    assert count_classes(weights, source) == CLASSES
    kept = [2, 0, 3]
    arranged = arrange_heads(weights, source, classes=CLASSES, kept=kept, ratios=3)
    head = RetinaNetHead(8, 9, len(kept) + 1).double()
    head.load_state_dict({key.removeprefix("head."): value for key, value in arranged.items()}, strict=False)
    for tower in (head.classification_head.conv, head.regression_head.conv):
        for index in range(len(tower)):
            tower[index] = torch.nn.Identity()
    with torch.no_grad():
        outputs = head([maps])
    logits = outputs["cls_logits"].view(3, 5, 9, len(kept) + 1)
    codes = outputs["bbox_regression"].view(3, 5, 9, 4)
    ours = AnchorGenerator((SIZES,), (RATIOS,)).cell_anchors[0]  # of torchvision, in whole pixels
    their_logits = F.conv2d(maps, *[*weights.values()][:2], padding=1)[0].unflatten(0, (9, CLASSES))
    their_codes = F.conv2d(maps, *[*weights.values()][2:], padding=1)[0].unflatten(0, (9, 4))
    seen = set()
    for index, (left, top, right, bottom) in enumerate(ours.tolist()):
        distance = [
            abs(right - left - size / math.sqrt(ratio)) + abs(bottom - top - size * math.sqrt(ratio))
            for size, ratio in order
        ]
        theirs = distance.index(min(distance))
        seen.add(theirs)
        torch.testing.assert_close(logits[:, :, index, 1:], their_logits[theirs][kept].permute(1, 2, 0))
        torch.testing.assert_close(codes[:, :, index], their_codes[theirs].permute(1, 2, 0))
    assert len(seen) == 9
    assert (logits[..., 0].sigmoid() < 1e-40).all()


def test_retinanet_of_torchvision_keeps_its_order():
    weights = {
        "head.classification_head.cls_logits.bias": torch.arange(9 * 91.0),
        "head.regression_head.bbox_reg.bias": torch.arange(36.0),
    }
    assert count_classes(weights, SOURCES["torchvision"]) == 90
    arranged = arrange_heads(weights, SOURCES["torchvision"], classes=90, kept=[0, 12], ratios=3)
    grid = arranged["head.classification_head.cls_logits.bias"].view(9, 3)
    assert grid[2].tolist() == [182, 183, 195]  # background and labels 1 and 13 of anchor 2
    assert torch.equal(arranged["head.regression_head.bbox_reg.bias"], weights["head.regression_head.bbox_reg.bias"])


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_boxes_of_mmdetections_cascade(stage):
    """Its codes are in other units at the last stage."""
    stds = [(0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067)][stage]
    ours = [(10, 10, 5, 5), (20, 20, 10, 10), (30, 30, 15, 15)][stage]
    key = f"roi_heads.box_predictor.{stage}.bbox_pred."
    weights = {f"{key}weight": 0.3 * draw(4, 6, seed=1), f"{key}bias": 0.3 * draw(4, seed=2)}
    arranged = arrange_heads(weights, SOURCES["mmdetection"], classes=4, kept=range(4), ratios=3)
    x = draw(7, 6, seed=3)
    proposals = torch.tensor([10.0, 20.0, 50.0, 100.0], dtype=torch.float64).expand(7, 4)
    boxes = BoxCoder(ours).decode_single(F.linear(x, arranged[f"{key}weight"], arranged[f"{key}bias"]), proposals)
    dx, dy, dw, dh = (F.linear(x, weights[f"{key}weight"], weights[f"{key}bias"]) * torch.tensor(stds)).unbind(1)
    centre_x, centre_y, width, height = 30 + 40 * dx, 60 + 80 * dy, 40 * dw.exp(), 80 * dh.exp()
    theirs = torch.stack(
        [centre_x - width / 2, centre_y - height / 2, centre_x + width / 2, centre_y + height / 2], dim=1
    )
    torch.testing.assert_close(boxes, theirs, rtol=1e-6, atol=1e-6)


def test_boxes_and_masks_for_all_classes_alike():
    first, second = "roi_heads.box_predictor.bbox_pred.weight", "roi_heads.mask_predictor.mask_fcn_logits.weight"
    weights = {first: draw(4, 6, seed=1), second: draw(1, 6, 1, 1, seed=2)}
    arranged = arrange_heads(weights, SOURCES["detectron2"], classes=3, kept=[0, 1, 2], ratios=3)
    boxes, masks = arranged.values()
    assert all(torch.equal(boxes[4 * c : 4 * c + 4], weights[first]) for c in range(4))
    assert all(torch.equal(masks[c], weights[second][0]) for c in range(4))


@pytest.mark.parametrize(
    ("key", "outputs", "wanted"),
    [
        ("detectron2", 5, [0, 2, 5]),  # none for the background, then classes 1 and 4 of 0..4
        ("torchvision", 6, [1, 3, 6]),
    ],
)
def test_rows_of_masks(key, outputs, wanted):
    weight = torch.arange(1.0, 1 + outputs).view(-1, 1, 1, 1)
    name = "roi_heads.mask_predictor.mask_fcn_logits.weight"
    (arranged,) = arrange_heads({name: weight}, SOURCES[key], classes=5, kept=[1, 4], ratios=3).values()
    assert arranged.flatten().tolist() == wanted


@pytest.mark.parametrize("rows", [7, 40, 44])
def test_outputs_that_do_not_fit_raise(rows):
    name = "roi_heads.box_predictor.bbox_pred.bias"
    with pytest.raises(ValueError, match=f"expected 12 classes with 1 x 4 outputs each, got {rows} outputs"):
        arrange_heads({name: torch.zeros(rows)}, SOURCES["detectron2"], classes=12, kept=range(12), ratios=3)


def detectron2_anchors(sizes, ratios=RATIOS):
    """Anchors of a location, by size, then by ratio, as a buffer of older files has them."""
    sides = [(size / math.sqrt(ratio), size * math.sqrt(ratio)) for size in sizes for ratio in ratios]
    return torch.tensor([[-w / 2, -h / 2, w / 2, h / 2] for w, h in sides])


@pytest.mark.parametrize("kind", ["exact", "torchvision"])
def test_anchors_in_a_file_match_the_config(kind):
    ours = make_anchors(kind, [SIZES, [64, 80, 101]], RATIOS, [8, 16]).cell_anchors
    name = "proposal_generator.anchor_generator.cell_anchors."
    check_anchors({f"{name}0": detectron2_anchors(SIZES), f"{name}1": detectron2_anchors([64, 80, 101])}, ours)
    check_anchors({"backbone.conv1.weight": torch.zeros(1)}, ours)  # no anchors in the file


@pytest.mark.parametrize(
    ("level", "theirs"),
    [
        (0, detectron2_anchors((32, 40, 56))),
        (0, detectron2_anchors(SIZES, (0.5, 1.0))),
        (0, detectron2_anchors(SIZES, (0.4, 1.0, 2.0))),
        (1, detectron2_anchors(SIZES)),
        (0, torch.zeros(9)),
    ],
    ids=["other size", "fewer ratios", "other ratio", "level that the config does not have", "other shape"],
)
def test_other_anchors_in_a_file_are_an_error(level, theirs):
    ours = make_anchors("exact", [SIZES], RATIOS, [8]).cell_anchors
    with pytest.raises(ValueError, match=rf"cell_anchors.{level} has .+, level {level} of the config has"):
        check_anchors({f"anchor_generator.cell_anchors.{level}": theirs}, ours)
