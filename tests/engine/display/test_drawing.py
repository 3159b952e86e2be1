"""Boxes, masks and names drawn on images, at the right pixels."""

import itertools

import pytest
import torch

from engine.display.drawing import (
    GAP,
    SHORT_SIDE,
    class_colour,
    draw_boxes,
    draw_detections,
    draw_ground_truth,
    draw_legend,
    draw_sample_grid,
)
from tests.engine.pixels import BESIDE, MASKED, count, is_colour, is_drawn, mask_of, sample, tinted

NAMES = ["cat", "dog", "hen"]


def test_names_in_other_letters():
    image, _ = sample(80, 120, [], [])
    found = {"boxes": torch.tensor([[10.0, 30.0, 90.0, 60.0]]), "labels": torch.tensor([1]), "scores": torch.ones(1)}
    drawn = [draw_detections(image, found, [name]) for name in ("ä", "é", "ж", "Ω")]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(drawn, 2))


@pytest.mark.parametrize("name", ["cat", "hjg"])
def test_names_lie_in_the_middle_of_their_tags(name):
    target = {"boxes": torch.tensor([[0.0, 100.0, 300.0, 200.0]]), "labels": torch.tensor([1])}
    drawing = draw_ground_truth(torch.full((3, 320, 480), 127, dtype=torch.uint8), target, [name])
    tag = drawing[0, 82:101, 2:24]  # above the box: white, with the black letters of the name
    assert (tag == 255).any(dim=1).all()
    letters = (tag < 100).any(dim=1).nonzero().flatten()
    assert 2 <= letters[0] <= 6
    assert 2 <= 18 - letters[-1] <= 6


def test_names_keep_apart():
    image, _ = sample(160, 160, [], [])
    found = {
        "boxes": torch.tensor([[40.0, 60.0, 120.0, 100.0]] * 3),
        "labels": torch.tensor([1, 2, 3]),
        "scores": torch.tensor([0.9, 0.8, 0.7]),
    }
    drawing = draw_detections(image, found, NAMES)
    # three names as tall as 18 pixels and as wide as 50 or more
    for label in (1, 2, 3):
        assert count(drawing, class_colour(label - 1, 3)) > 400
    faint = draw_detections(image, found, NAMES, score_threshold=0.75)
    assert count(faint, class_colour(2, 3)) == 0


def test_truth_has_the_colours_of_classes():
    drawing = draw_sample_grid([sample(80, 120, [[20.0, 40.0, 60.0, 70.0]], [2])], NAMES)
    assert is_drawn(drawing, (80, 160, 240, 280), class_colour(1, 3))


@pytest.mark.parametrize("shape", ["(n, 1, H, W)", "(n, H, W)"])
def test_masks_lie_under_the_boxes(shape):
    image, _ = sample(80, 120, [], [])
    masks = 0.9 * mask_of(20, 40, 40, 70)[None]
    found = {"boxes": torch.tensor([[20.0, 40.0, 60.0, 70.0]]), "labels": torch.tensor([2]), "scores": torch.ones(1)}
    plain = draw_detections(image, found, NAMES)
    drawing = draw_detections(image, found | {"masks": masks[:, None] if shape == "(n, 1, H, W)" else masks}, NAMES)
    assert is_drawn(drawing, (80, 160, 240, 280), class_colour(1, 3))
    assert is_colour(drawing, *MASKED, tinted(class_colour(1, 3)))
    assert is_colour(drawing, *BESIDE, (40, 40, 40))
    assert is_colour(plain, *MASKED, (40, 40, 40))
    assert (image == 40).all(), "the image given is left alone"
    faint = draw_detections(image, found | {"masks": masks * 0.5}, NAMES)
    assert torch.equal(faint, plain), "below a half nothing belongs to the object"


def test_masks_of_those_that_are_drawn():
    image, _ = sample(80, 120, [], [])
    masks = torch.stack([mask_of(90, 40, 110, 70), mask_of(20, 40, 40, 70), mask_of(30, 0, 50, 30)])
    found = {
        "boxes": torch.tensor([[90.0, 40.0, 110.0, 70.0], [20.0, 40.0, 60.0, 70.0], [30.0, 0.0, 50.0, 30.0]]),
        "labels": torch.tensor([1, 2, 3]),
        "scores": torch.tensor([0.2, 0.9, 0.8]),
        "masks": masks[:, None],
    }
    drawing = draw_detections(image, found, NAMES)
    assert is_colour(drawing, *MASKED, tinted(class_colour(1, 3)))
    assert is_colour(drawing, 160, 60, tinted(class_colour(2, 3)))
    assert is_colour(drawing, 400, 220, (40, 40, 40)), "the first is below the threshold"


def test_where_masks_overlap_both_are_seen():
    image, _ = sample(80, 120, [], [])
    found = {
        "boxes": torch.tensor([[20.0, 40.0, 60.0, 70.0]] * 2),
        "labels": torch.tensor([1, 2]),
        "scores": torch.tensor([0.9, 0.8]),
        "masks": mask_of(20, 40, 60, 70).expand(2, 1, 80, 120),
    }
    below = tinted(class_colour(1, 3))  # the best is on top
    expected = [tinted(class_colour(0, 3), ground)[part] for part, ground in enumerate(below)]
    assert draw_detections(image, found, NAMES)[:, 220, 120].tolist() == expected
    # the smaller mask is on top, for any score
    found["masks"] = torch.stack([mask_of(20, 40, 60, 70), mask_of(20, 40, 40, 70)])
    below = tinted(class_colour(0, 3))
    expected = [tinted(class_colour(1, 3), ground)[part] for part, ground in enumerate(below)]
    assert draw_detections(image, found, NAMES)[:, 220, 120].tolist() == expected


def test_classes_have_colours_of_their_own():
    assert len({class_colour(index, 80) for index in range(80)}) == 80
    assert class_colour(0, 1) == (255, 64, 64)


def test_an_image_may_keep_its_size():
    found = {
        "boxes": torch.tensor([[20.0, 40.0, 60.0, 70.0]]),
        "labels": torch.tensor([2]),
        "scores": torch.tensor([0.9]),
        "masks": torch.ones(1, 1, 80, 120),
    }
    image, _ = sample(80, 120, [], [])
    drawing = draw_detections(image, found, NAMES, short_side=None)
    assert drawing.shape == (3, 80, 120)
    assert is_drawn(drawing, (20, 40, 60, 70), class_colour(1, 3))
    assert (image == 40).all()
    # the ground of the name, without two rows by the line of the box, is as tall as the name and grows with the image
    heights = {}
    for side in (80, 320, 640, 2560):
        scale = side // 80
        image, _ = sample(80 * scale, 120 * scale, [], [])
        large = found | {"boxes": found["boxes"] * scale, "masks": torch.zeros(1, 1, 80 * scale, 120 * scale)}
        drawing = draw_detections(image, large, NAMES, short_side=None)
        ground = (drawing == torch.tensor(class_colour(1, 3))[:, None, None]).all(0)
        heights[side] = ground[:, 20 * scale + 3 : 60 * scale - 9].any(1)[: 40 * scale - 2].sum().item()
    assert heights == {80: 10, 320: 16, 640: 16, 2560: 64}


@pytest.mark.parametrize("shape", [(3, 1, 900), (3, 900, 1), (3, 3, 4000)])
def test_narrow_images_are_drawn_in_a_bounded_size(shape):
    target = {"boxes": torch.tensor([[0.0, 0, shape[2], shape[1]]]), "labels": torch.tensor([1])}
    samples = 3 * [(torch.zeros(shape, dtype=torch.uint8), target)]
    height, width = draw_sample_grid(samples, ["cat"]).shape[1:]
    assert height <= 3 * (SHORT_SIDE + 2 * GAP)
    assert width <= 3200 + GAP
    assert max(draw_ground_truth(*samples[0], ["cat"]).shape) <= 3200


HOSTILE = "a\nb\x1b[31m\x00\udcff$\\frac$" + "x" * 100_000


@pytest.mark.parametrize("dashed", [0, 1])
@pytest.mark.parametrize("short_side", [40, None])
@pytest.mark.parametrize(
    "box",
    [
        [10.0, 10.0, 10.2, 30.0],
        [10.0, 10.0, 30.0, 10.0],
        [10.0, 10.0, 10.0, 10.0],
        [30.0, 30.0, 10.0, 10.0],
        [79.9, 59.9, 80.0, 60.0],
        [-500.0, -500.0, -400.0, -400.0],
        [-1e30, -1e30, 1e30, 1e30],
        [float("nan")] * 4,
        [float("-inf"), 0.0, float("inf"), 5.0],
        [1e38, 1e38, float("inf"), float("inf")],
    ],
)
def test_any_box_can_be_drawn(box, short_side, dashed):
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    drawn = draw_boxes(image, torch.tensor([box]), [HOSTILE], [(255, 0, 0)], short_side, dashed=dashed, masks=[None])
    assert drawn.dtype == torch.uint8
    assert drawn.shape == ((3, 40, 53) if short_side else image.shape)


def test_a_box_that_is_thinner_than_a_pixel_is_visible():
    image = torch.zeros(3, 600, 800, dtype=torch.uint8)
    for dashed in (0, 1):
        box = torch.tensor([[400.0, 100.0, 401.0, 500.0]])
        drawn = draw_boxes(image, box, [""], [(255, 0, 0)], 60, dashed=dashed, masks=[None])
        assert ((drawn[0] > 200) & (drawn[1] < 50)).sum() > 10


def test_a_legend_of_any_text():
    assert draw_legend(200, [(HOSTILE, (0, 0, 0), True), ("", None, False)]).shape[2] == 200
