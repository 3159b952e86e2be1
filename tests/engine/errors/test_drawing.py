"""Errors drawn into a part of their image."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.errors.analysis import analyse_errors
from engine.errors.drawing import AT_FAULT, ERROR, RIGHT, THUMBNAIL, draw_error, part_around
from tests.engine.evaluation.scenes import annotation, scene

SIZES = st.tuples(st.integers(1, 3000), st.integers(1, 3000))


@given(SIZES, st.lists(st.tuples(*[st.floats(-50, 3000)] * 4), min_size=1, max_size=3))
def test_the_part_holds_the_boxes(size, corners):
    boxes = np.array([[min(a, c), min(b, d), max(a, c), max(b, d)] for a, b, c, d in corners])
    left, top, right, bottom = part_around(boxes, size)
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    inside = np.clip(boxes, 0, [*size, *size])
    assert (inside[:, :2] >= [left, top]).all()
    assert (inside[:, 2:] <= [right, bottom]).all()
    for side, most in zip((right - left, bottom - top), size, strict=True):
        assert side >= min(96, most)


def test_the_part_has_context_and_one_shape():
    assert part_around(np.array([[500, 400, 600, 460]]), (2000, 1000)) == (450, 355, 650, 505)
    assert part_around(np.array([[0, 0, 60, 120]]), (2000, 1000)) == (0, 0, 320, 240)


def colours(image: torch.Tensor) -> set[tuple[int, ...]]:
    return {*map(tuple, image.flatten(1).T.tolist())}


def test_colours(analysis):
    image = torch.full((3, 80, 100), 90, dtype=torch.uint8)
    found, objects = analysis.errors.detections, analysis.errors.objects
    row_of = {float(score): row for row, score in enumerate(found.score)}

    def drawn(row, each):
        place = found.image[row] if row >= 0 else objects.image[each]
        return draw_error(analysis, image, place, row, each)

    duplicate = drawn(row_of[0.4], 0)
    assert {ERROR, RIGHT} <= colours(duplicate)
    assert min(duplicate.shape[1:]) == THUMBNAIL
    wrong = colours(drawn(row_of[0.9], 1))
    assert ERROR in wrong
    assert (255, 255, 255) in wrong
    assert RIGHT not in wrong
    missed = colours(drawn(-1, 3))
    assert AT_FAULT in missed
    assert ERROR not in missed
    alone = colours(drawn(row_of[0.7], -1))  # in an image without objects
    assert ERROR in alone
    assert (255, 255, 255) not in alone


@pytest.mark.parametrize("kind", ["bbox", "segm"])
def test_masks_are_drawn_where_they_count(kind):
    truth = scene([annotation(1, 10, 1, [20, 20, 40, 40])], 1, [1])
    mask = {"size": [80, 100], "counts": [40 * 80, 20 * 80, 40 * 80]}  # columns 40 to 59
    result = {"image_id": 10, "category_id": 1, "bbox": [40, 0, 20, 80], "score": 0.5, "segmentation": mask}
    analysis = analyse_errors(truth, [result], kind=kind)
    image = torch.full((3, 80, 100), 90, dtype=torch.uint8)
    drawn = draw_error(analysis, image, 0, 0, 0)
    height, width = drawn.shape[1:]
    left = drawn[:, height // 2, round(0.33 * width)].tolist()  # in the object alone
    assert (left != [90, 90, 90]) == (kind == "segm")
    assert drawn[:, height // 2, round(0.95 * width)].tolist() == [90, 90, 90]
