"""Ignored boxes and points, against loops."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.ignored import is_ignored, is_point_ignored

SIDES = st.tuples(st.integers(0, 12), st.integers(0, 12)).map(sorted)
BOXES = st.lists(st.tuples(SIDES, SIDES).map(lambda xy: [xy[0][0], xy[1][0], xy[0][1], xy[1][1]]), max_size=5)


def as_boxes(boxes):
    return torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)


@settings(max_examples=200, deadline=None)
@given(BOXES, BOXES, st.sampled_from([0.25, 0.5, 1.0]))
def test_boxes(boxes, regions, share):
    wanted = []
    for left, top, right, bottom in boxes:
        pixels = {(x, y) for x in range(left, right) for y in range(top, bottom)}
        inside = [sum(a <= x < c and b <= y < d for x, y in pixels) for a, b, c, d in regions]
        wanted.append(any(count >= share * len(pixels) for count in inside if pixels))
    assert is_ignored(as_boxes(boxes), {"ignored": as_boxes(regions)}, share).tolist() == wanted
    assert not is_ignored(as_boxes(boxes), {}, share).any()


@settings(max_examples=200, deadline=None)
@given(BOXES)
def test_points(regions):
    points = [(x, y) for x in range(13) for y in range(13)]
    wanted = [any(a <= x < c and b <= y < d for a, b, c, d in regions) for x, y in points]
    found = is_point_ignored(torch.tensor(points, dtype=torch.float64), {"ignored": as_boxes(regions)})
    assert found.tolist() == wanted
    assert not is_point_ignored(torch.tensor(points), {}).any()
