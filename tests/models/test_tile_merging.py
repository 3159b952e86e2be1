"""Merged detections of tiles, against a plain loop over pairs and against recorded results of SAHI."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from models.tile_merging import Views, merge_views

# tiles of 100 pixels with an overlap of 0.3 in an image of 170 x 170
WINDOWS = [(0, 0, 100, 100), (70, 0, 170, 100), (0, 70, 100, 170), (70, 70, 170, 170)]


def views(found):
    """Views of (box, label, score, tile); a box is cut by the inner borders of its tile that it touches."""
    boxes = np.array([box for box, *_ in found], dtype=np.float32).reshape(-1, 4)
    tiles = np.array([tile for *_, tile in found], dtype=np.int64)
    cut = [is_cut(box, WINDOWS[tile]) for box, *_, tile in found]
    labels = np.array([label for _, label, *_ in found], dtype=np.int64)
    scores = np.array([score for *_, score, _ in found], dtype=np.float32)
    return Views(boxes, labels, scores, tiles, np.array(cut, dtype=bool), np.array(WINDOWS))


def is_cut(box, window):
    return any(a == b and 0 < b < 170 for a, b in zip(box, window, strict=True))


CUT = [([60, 20, 100, 40], 1, 0.9, 0), ([70, 21, 118, 41], 1, 0.8, 1), ([10, 10, 30, 30], 1, 0.7, 0)]
OTHER_CLASS = [([60, 120, 100, 160], 1, 0.65, 2), ([72, 125, 130, 158], 2, 0.64, 3)]
FOUR_TIMES = [
    ([75, 72, 95, 95], 2, 0.95, 0),
    ([76, 71, 96, 94], 2, 0.6, 1),
    ([75, 73, 95, 96], 2, 0.5, 2),
    ([75, 72, 96, 95], 2, 0.4, 3),
]


def test_parts_of_objects_are_merged_as_sahi_does():
    """Recorded from GreedyNMMPostprocess(0.5, "IOS", class_agnostic=False) of sahi 0.12.8."""
    recorded = [
        ([60, 20, 118, 41], 1, 0.9),
        ([10, 10, 30, 30], 1, 0.7),
        ([60, 120, 100, 160], 1, 0.65),
        ([72, 125, 130, 158], 2, 0.64),
    ]
    assert as_tuples(views(CUT + OTHER_CLASS)) == recorded


def test_whole_boxes_do_not_grow():
    """SAHI's result is [75, 71, 96, 96], the union."""
    assert as_tuples(views(FOUR_TIMES)) == [([75, 72, 95, 95], 2, 0.95)]


def as_tuples(found):
    labels = found.labels.tolist()
    return [(each.box.tolist(), labels[each.parts[0]], round(float(each.score), 4)) for each in merge_views(found)]


def test_a_whole_view_replaces_the_box_of_a_part_with_a_better_score():
    found = views([([80, 80, 100, 100], 3, 0.9, 0), ([79, 79, 119, 121], 3, 0.3, 3), ([80, 70, 119, 100], 3, 0.2, 1)])
    (merged,) = merge_views(found)
    assert (merged.box.tolist(), merged.parts) == ([79, 79, 119, 121], [1])
    assert np.isclose(merged.score, 0.9)


def test_an_object_larger_than_the_overlap_is_put_together():
    """The parts share 30 of 90 columns, too few for the overlap over the smaller area."""
    found = views([([10, 20, 100, 60], 1, 0.9, 0), ([70, 22, 160, 61], 1, 0.8, 1)])
    (merged,) = merge_views(found)
    assert merged.box.tolist() == [10, 20, 160, 61]
    neighbours = views([([88, 20, 100, 60], 1, 0.9, 0), ([70, 22, 92, 61], 1, 0.8, 1)])  # two objects side by side
    assert len(merge_views(neighbours)) == 2


def test_detections_of_one_tile_stay():
    found = views([([10, 10, 60, 60], 1, 0.9, 0), ([20, 20, 50, 50], 1, 0.8, 0)])
    assert len(merge_views(found)) == 2


def test_nothing():
    assert merge_views(views([])) == []


@st.composite
def detections(draw):
    found = []
    for _ in range(draw(st.integers(0, 12))):
        tile = draw(st.integers(0, 3))
        left, top = WINDOWS[tile][:2]
        corners = [draw(st.integers(0, 10)) * 10 for _ in range(4)]
        x, y = sorted(corners[:2]), sorted(corners[2:])
        if x[0] == x[1] or y[0] == y[1]:
            continue
        box = [left + x[0], top + y[0], left + x[1], top + y[1]]
        found.append((box, draw(st.integers(1, 2)), draw(st.integers(1, 9)) / 10, tile))
    return found


@settings(max_examples=300, deadline=None)
@given(detections())
def test_merging_is_that_of_a_loop_over_pairs(found):
    merged = merge_views(views(found))
    wanted = merge_in_a_loop(found)
    assert [each.parts for each in merged] == [parts for _, _, parts in wanted]
    assert [each.box.tolist() for each in merged] == [box for box, _, _ in wanted]
    assert np.allclose([each.score for each in merged], [score for _, score, _ in wanted])


def merge_in_a_loop(found):
    left = sorted(range(len(found)), key=lambda i: -found[i][2])
    merged = []
    while left:
        first = left.pop(0)
        parts, queue = [first], [first]
        while queue:
            part = queue.pop(0)
            taken = {found[i][3] for i in parts}
            same = [i for i in left if found[i][3] not in taken and show_the_same(found[part], found[i])]
            left = [i for i in left if i not in same]
            if not cut(found[first]):
                break
            whole = [i for i in same if not cut(found[i]) and 2 * common(found[part], found[i]) >= size(found[part][0])]
            if part == first and whole:
                parts = [whole[0]]
                break
            best = {}
            for i in same:
                if cut(found[i]):
                    best.setdefault(found[i][3], i)
            new = [best[tile] for tile in sorted(best)]
            parts, queue = parts + new, queue + new
        boxes = [found[i][0] for i in parts]
        box = [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]
        merged.append((box, found[first][2], parts))
    return merged


def show_the_same(one, other):
    if one[1] != other[1]:
        return False
    if 2 * common(one, other) >= min(size(one[0]), size(other[0])):
        return True
    if not (cut(one) and cut(other)):
        return False
    area = inside(WINDOWS[one[3]], WINDOWS[other[3]])
    a, b = inside(one[0], area), inside(other[0], area)
    shared = size(inside(a, b))
    return shared > 0 and 2 * shared >= size(a) + size(b) - shared


def cut(one):
    return is_cut(one[0], WINDOWS[one[3]])


def common(one, other):
    return size(inside(one[0], other[0]))


def inside(a, b):
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def size(box):
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])
