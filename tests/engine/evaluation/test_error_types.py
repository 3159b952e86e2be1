"""Drawings of ground truth and classified detections at the right pixels, and their legend."""

import pytest
import torch
from torch import nn

from engine.display import drawing
from engine.display.drawing import GAP, GROUND_TRUTH_COLOUR, LINE, SHORT_SIDE, class_colour, draw_sample_grid
from engine.evaluation import error_types
from engine.evaluation.error_types import ERROR_TYPE_COLOURS, draw_classified, draw_error_type_legend, draw_predictions
from tests.engine.pixels import BESIDE, MASKED, count, is_colour, is_drawn, mask_of, sample, tinted

CPU = torch.device("cpu")
NAMES = ["cat", "dog", "hen"]
LEGEND = draw_error_type_legend(2 * (480 + GAP), "left: ground truth, right: detections with score >= 0.5").shape[1]


class Detector(nn.Module):
    def __init__(self, boxes, labels, scores):
        super().__init__()
        self.output = {
            "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "scores": torch.tensor(scores, dtype=torch.float32),
        }

    def forward(self, images):
        assert not self.training
        assert images[0].dtype == torch.float32
        assert images[0].max() <= 1
        return [self.output]


def test_both_panels():
    # 80 high, so everything is drawn 4 times as large
    dataset = [sample(80, 120, [[20.0, 40.0, 60.0, 70.0]], [2])]
    model = Detector([[70.0, 10.0, 110.0, 60.0], [1.0, 1.0, 9.0, 9.0]], [3, 1], [0.9, 0.1]).train()
    drawn = draw_predictions(model, dataset, NAMES, device=CPU)
    assert drawn.dtype == torch.uint8
    assert drawn.shape == (3, SHORT_SIDE + GAP + LEGEND, 2 * (480 + GAP))
    left, right = drawn[:, :SHORT_SIDE, : 480 + GAP], drawn[:, :SHORT_SIDE, 480 + GAP :]
    assert is_drawn(left, (80, 160, 240, 280), GROUND_TRUTH_COLOUR)
    assert is_drawn(right, (280, 40, 440, 240), ERROR_TYPE_COLOURS["false_positive"])
    assert not is_drawn(left, (280, 40, 440, 240), ERROR_TYPE_COLOURS["false_positive"])
    # between the sides the image is untouched, and the detection below the threshold is not drawn
    assert left[:, 250, 160].tolist() == [40, 40, 40]
    assert (right[:, 8:36, 8:36] == 40).all()
    assert count(right, ERROR_TYPE_COLOURS["missed"]) > 100
    assert count(left, ERROR_TYPE_COLOURS["missed"]) == 0
    assert (drawn[:, SHORT_SIDE : SHORT_SIDE + GAP] == 255).all()
    assert (left[:, :, 480:] == 255).all()
    assert model.training
    low = draw_predictions(model, dataset, NAMES, device=CPU, score_threshold=0.1, short_side=160)
    assert count(low[:, :30, 240 + GAP : 270 + GAP], ERROR_TYPE_COLOURS["false_positive"]) > 50


def test_an_image_a_row_and_nothing_found():
    dataset = [sample(80, 120, [[20.0, 40.0, 60.0, 70.0]], [2]), sample(160, 80, [], []), sample(64, 64, [], [])]
    model = Detector([], [], []).eval()
    drawn = draw_predictions(model, dataset[:2], NAMES, device=CPU)
    assert drawn.shape == (3, (320 + GAP) + (640 + GAP) + LEGEND, 2 * (480 + GAP))
    assert is_drawn(drawn, (80, 160, 240, 280), GROUND_TRUTH_COLOUR)
    assert (drawn[:, 320 + GAP : 960 + GAP, :320] == 40).all()
    assert (drawn[:, 320 + GAP : 960 + GAP, 2 * (320 + GAP) :] == 255).all()
    assert not model.training


BOXES = {
    "true_positive": ([10.0, 10.0, 30.0, 30.0], 1, 0.95),
    "duplicate": ([11.0, 11.0, 31.0, 31.0], 1, 0.9),
    "wrong_class": ([50.0, 10.0, 70.0, 30.0], 3, 0.8),
    "false_positive": ([90.0, 50.0, 110.0, 70.0], 2, 0.7),
}


def detections_of(names):
    boxes, labels, scores = zip(*(BOXES[error_type] for error_type in names), strict=True)
    return {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels), "scores": torch.tensor(scores)}


@pytest.mark.parametrize("names", [list(BOXES), list(BOXES)[::-1]])
def test_each_error_type_has_its_colour(names):
    true = [[10.0, 10.0, 30.0, 30.0], [50.0, 10.0, 70.0, 30.0], [10.0, 50.0, 30.0, 70.0]]
    image, target = sample(80, 120, true, [1, 2, 3])
    drawn = draw_classified(image, target, detections_of(names), NAMES)
    assert drawn.shape == (3, 320, 480)
    for error_type, (box, _, _) in BOXES.items():
        left, top, right, bottom = (round(4 * side) for side in box)
        assert is_colour(drawn, (left + right) // 2, bottom, ERROR_TYPE_COLOURS[error_type]), error_type
        assert is_colour(drawn, right, (top + bottom) // 2, ERROR_TYPE_COLOURS[error_type]), error_type
    # missed are the box of another class, beneath the wrong one, and the one that nothing is near
    dashes = [is_colour(drawn, x, 280, ERROR_TYPE_COLOURS["missed"]) for x in range(40, 120)]
    assert 30 < sum(dashes) < 60
    # below the threshold a detection does not count: what it found is missed
    drawn = draw_classified(image, target, detections_of(names), NAMES, score_threshold=0.99)
    assert all(count(drawn, ERROR_TYPE_COLOURS[error_type]) == 0 for error_type in BOXES)
    dashes = [is_colour(drawn, x, 120, ERROR_TYPE_COLOURS["missed"]) for x in range(40, 120)]
    assert 30 < sum(dashes) < 60


def test_error_types_are_distinct_without_colour(monkeypatch):
    """Symbols before the names differ from each other and from the font's missing-letter box."""
    signs = {"true_positive": "✓", "wrong_class": "≠", "duplicate": "2×", "false_positive": "✗"}
    looks = {bytes(drawing._font(16).getmask(sign)) for sign in [*signs.values(), "\U0010ffff"]}
    assert len(looks) == 5
    named = {}
    draw = error_types.draw_boxes

    def draw_named(image, boxes, names, *rest, **more):
        named["all"] = names
        return draw(image, boxes, names, *rest, **more)

    monkeypatch.setattr(error_types, "draw_boxes", draw_named)
    true = [[10.0, 10.0, 30.0, 30.0], [50.0, 10.0, 70.0, 30.0]]
    image, target = sample(80, 120, true, [1, 2])
    draw_classified(image, target, detections_of(BOXES), NAMES)
    assert named["all"] == ["dog", "✗ dog 0.70", "≠ hen 0.80", "2× cat 0.90", "✓ cat 0.95"]


def test_boxes_are_scaled_with_the_image():
    image, target = sample(80, 120, [], [])
    drawn = draw_classified(image, target, detections_of(["false_positive"]), NAMES, short_side=160)
    assert drawn.shape == (3, 160, 240)
    assert is_drawn(drawn, (180, 100, 220, 140), ERROR_TYPE_COLOURS["false_positive"])


def test_legend():
    wide, narrow = draw_error_type_legend(1600), draw_error_type_legend(200)
    assert wide.shape == (3, LINE, 1600)
    assert narrow.shape[1] > LINE
    for drawn in (wide, narrow, draw_error_type_legend(1600, "what this is")):
        assert all(count(drawn, colour) > 20 for colour in ERROR_TYPE_COLOURS.values())
    assert (draw_error_type_legend(1600, "what this is") != wide).any()
    assert len({*ERROR_TYPE_COLOURS.values()}) == 5


def test_masks_have_the_colours_of_error_types():
    true = [[20.0, 40.0, 60.0, 70.0], [90.0, 40.0, 110.0, 70.0]]
    image, target = sample(80, 120, true, [1, 2])
    target["masks"] = torch.stack([mask_of(40, 40, 60, 70), mask_of(90, 40, 110, 70)]).to(torch.uint8)
    detections = {"boxes": torch.tensor(true[:1]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    detections["masks"] = mask_of(20, 40, 40, 70)[None, None]
    drawn = draw_classified(image, target, detections, NAMES)
    assert is_colour(drawn, *MASKED, tinted(ERROR_TYPE_COLOURS["true_positive"]))
    assert is_colour(drawn, *BESIDE, (40, 40, 40)), "truth that was found is not drawn"
    assert is_colour(drawn, 400, 220, tinted(ERROR_TYPE_COLOURS["missed"]))
    del target["masks"]
    drawn = draw_classified(image, target, detections, NAMES)
    assert is_colour(drawn, *MASKED, tinted(ERROR_TYPE_COLOURS["true_positive"]))
    assert is_colour(drawn, 400, 220, (40, 40, 40))


def test_masks_of_ground_truth_in_both_kinds_of_drawings():
    image, target = sample(80, 120, [[20.0, 40.0, 60.0, 70.0]], [2])
    target["masks"] = mask_of(20, 40, 40, 70)[None].to(torch.uint8)
    drawn = draw_sample_grid([(image, target)], NAMES)
    assert is_colour(drawn, *MASKED, tinted(class_colour(1, 3)))
    drawn = draw_predictions(Detector([], [], []), [(image, target)], NAMES, device=CPU)
    assert is_colour(drawn, *MASKED, tinted(GROUND_TRUTH_COLOUR))
    assert is_colour(drawn, 480 + GAP + MASKED[0], MASKED[1], tinted(ERROR_TYPE_COLOURS["missed"]))


def test_masks_of_detections_below_the_threshold_are_not_drawn():
    image, target = sample(80, 120, [], [])
    found = {
        "boxes": torch.tensor([[90.0, 40.0, 110.0, 70.0], [20.0, 40.0, 60.0, 70.0]]),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.2, 0.9]),
        "masks": torch.stack([mask_of(90, 40, 110, 70), mask_of(20, 40, 40, 70)])[:, None],
    }
    drawn = draw_classified(image, target, found, NAMES)
    assert is_colour(drawn, *MASKED, tinted(ERROR_TYPE_COLOURS["false_positive"]))
    assert is_colour(drawn, 400, 220, (40, 40, 40))


def test_the_mode_is_restored_after_an_error():
    model = Detector([], [], []).train()
    with pytest.raises(IndexError):
        draw_predictions(model, [sample(64, 64, [[1.0, 1.0, 9.0, 9.0]], [4])], NAMES, device=CPU)
    assert model.training
