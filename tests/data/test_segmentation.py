"""Polygons and both kinds of run lengths give the same masks; values that pycocotools would misread are invalid."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from data import decode_masks, encode_masks, segmentation_problem, to_rle

WIDTH, HEIGHT = 20, 12
SIZE = (WIDTH, HEIGHT)


def rectangle(left, top, right, bottom, width=WIDTH, height=HEIGHT):
    mask = np.zeros((height, width), dtype=np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def polygon(left, top, right, bottom):
    return [left, top, right, top, right, bottom, left, bottom]


def runs_of(mask):
    """Return run lengths along the columns, zeros first, by a loop."""
    runs, value = [0], 0
    for pixel in mask.T.flatten().tolist():
        if pixel != value:
            runs.append(0)
            value = pixel
        runs[-1] += 1
    return runs


def packed(mask):
    return coco_mask.encode(np.asfortranarray(mask))["counts"]


MASK = rectangle(3, 2, 11, 9)
RUNS = {"size": [HEIGHT, WIDTH], "counts": runs_of(MASK)}
PACKED = {"size": [HEIGHT, WIDTH], "counts": packed(MASK).decode()}
ALIKE = {
    "polygon": [polygon(3, 2, 11, 9)],
    "two polygons": [polygon(3, 2, 7, 9), polygon(7, 2, 11, 9)],
    "polygons that overlap": [polygon(3, 2, 8, 9), polygon(5, 2, 11, 9)],
    "runs": RUNS,
    "string": PACKED,
    "bytes": PACKED | {"counts": packed(MASK)},
}


@pytest.mark.parametrize("kind", ALIKE)
def test_all_kinds_give_the_same_mask(kind):
    segmentation = ALIKE[kind]
    assert segmentation_problem(segmentation, SIZE) is None
    masks = decode_masks([segmentation], SIZE)
    assert (masks.dtype, masks.shape) == (np.uint8, (1, HEIGHT, WIDTH))
    assert np.array_equal(masks[0], MASK)
    rle = to_rle(segmentation, SIZE)
    assert rle["size"] == [HEIGHT, WIDTH]
    assert rle["counts"] in (packed(MASK), packed(MASK).decode())


def test_masks_are_in_order_and_contiguous():
    masks = decode_masks([RUNS, [polygon(0, 0, 20, 1)], PACKED], (20.0, 12.0))
    expected = [MASK, rectangle(0, 0, 20, 1), MASK]
    assert np.array_equal(masks, np.stack(expected))
    assert masks.flags.c_contiguous
    nothing = decode_masks([], SIZE)
    assert (nothing.dtype, nothing.shape) == (np.uint8, (0, HEIGHT, WIDTH))


def test_polygons_are_clipped_to_the_image():
    outside = [polygon(-5, -3, 4, 50), polygon(15, 8, 90, 40)]
    assert segmentation_problem(outside, SIZE) is None
    expected = rectangle(0, 0, 4, 12) | rectangle(15, 8, 20, 12)
    assert np.array_equal(decode_masks([outside], SIZE)[0], expected)


PROBLEMS = {
    "missing": (None, "has no segmentation"),
    "no polygon": ([], "has no segmentation"),
    "empty mapping": ({}, "has no segmentation"),
    "two corners": ([[1, 2, 3, 4]], r"has a polygon that .* three corners: \[1, 2, 3, 4\] \(4 numbers\)"),
    "odd count": ([polygon(1, 1, 5, 5), [1, 2, 3, 4, 5, 6, 7]], r"\(7 numbers\)"),
    "flat list": (polygon(1, 1, 5, 5), r"has a polygon that is not a list x, y, x, y, \.\.\. .*: 1$"),
    "points": ([[[1, 1], [5, 1], [5, 5]]], "has a polygon that is not a list"),
    "ragged": ([[[1, 1], [5], 5, 1, 1, 1]], "has a polygon that is not a list"),
    "text": ([["1", 1, 5, 1, 5, 5]], "has a polygon that is not a list"),
    "truth values": ([[True] * 6], "has a polygon that is not a list"),
    "none": ([[None] * 6], "has a polygon that is not a list"),
    "mapping": ([{}], "has a polygon that is not a list"),
    "not a number": ([[1, 1, 5, float("nan"), 5, 5]], "has a polygon with numbers that are not pixels"),
    "infinite": ([[1, 1, 5, float("inf"), 5, 5]], "has a polygon with numbers that are not pixels"),
    "beyond any image": ([[1, 1, 1e5, 1, 5, 5]], "has a polygon with numbers that are not pixels"),
    "too large to be a number": ([[1, 1, 10**400, 1, 5, 5]], "has a polygon that is not a list"),
    "another kind": ("polygon", "neither polygons nor run lengths"),
    "no counts": ({"size": [HEIGHT, WIDTH]}, "neither polygons nor run lengths"),
    "no size": (
        {"counts": RUNS["counts"]},
        r"run lengths of size \[12, 20\] .*, got None",
    ),
    "swapped size": (RUNS | {"size": [WIDTH, HEIGHT]}, r"run lengths of size \[12, 20\] .*, got \[20, 12\]"),
    "size of text": (PACKED | {"size": ["12", "20"]}, "run lengths of size"),
    "too few": (RUNS | {"counts": [200, 39]}, "run lengths of 240 pixels in total, .*, got 239"),
    "too many": (RUNS | {"counts": [200, 41]}, "run lengths of 240 pixels in total, .*, got 241"),
    "negative": (RUNS | {"counts": [200, -1, 41]}, "run lengths from 0 to the 240 pixels"),
    "huge": (RUNS | {"counts": [2**63 - 1, 2**63 - 1, 242]}, "run lengths from 0 to the 240 pixels"),
    "larger than huge": (RUNS | {"counts": [2**70, 1]}, "has invalid run lengths"),
    "fractions": (RUNS | {"counts": [0.5, 239.5]}, "has invalid run lengths"),
    "no runs": (RUNS | {"counts": []}, "has invalid run lengths"),
    "nested": (RUNS | {"counts": [[240]]}, "has invalid run lengths"),
    "empty string": (PACKED | {"counts": ""}, "has invalid run lengths"),
    "string cut short": (PACKED | {"counts": PACKED["counts"][:-1]}, "run lengths"),
    "other characters": (PACKED | {"counts": "ü" + PACKED["counts"]}, "has invalid run lengths"),
    "beyond the alphabet": (PACKED | {"counts": PACKED["counts"] + "p"}, "has invalid run lengths"),
    "below the alphabet": (PACKED | {"counts": "/" + PACKED["counts"]}, "has invalid run lengths"),
    "string for another image": (
        PACKED | {"counts": packed(rectangle(3, 2, 11, 9, 21)).decode()},
        "240 pixels in total, .*, got 252",
    ),
    "endless number": (PACKED | {"counts": "o" * 40 + "0"}, "has invalid run lengths"),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_invalid_segmentations_are_described(name):
    segmentation, message = PROBLEMS[name]
    problem = segmentation_problem(segmentation, SIZE)
    assert problem is not None
    assert re.search(message, problem), problem


def test_the_size_of_the_image_must_be_known():
    for segmentation in ALIKE.values():
        assert "its image has no width and height" in segmentation_problem(segmentation, None)


MASKS = st.tuples(st.integers(1, 9), st.integers(1, 70)).flatmap(
    lambda shape: st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]).map(
        lambda pixels: np.array(pixels, dtype=np.uint8).reshape(shape)
    )
)


@given(MASKS)
def test_every_mask_comes_back_from_both_kinds_of_runs(mask):
    height, width = mask.shape
    for counts in (runs_of(mask), packed(mask).decode()):
        segmentation = {"size": [height, width], "counts": counts}
        assert segmentation_problem(segmentation, (width, height)) is None
        assert np.array_equal(decode_masks([segmentation], (width, height))[0], mask)


def unpacked(text):
    """Return the numbers of a compressed string by the loop of cocoapi's rleFrString; None if it passes the end."""
    runs, place = [], 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more:
            if place == len(text):
                return None
            digit = ord(text[place]) - 48
            value |= (digit & 31) << (5 * shift)
            more = bool(digit & 32)
            place, shift = place + 1, shift + 1
            if not more and digit & 16:
                value |= -1 << (5 * shift)
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


@given(st.text([chr(48 + digit) for digit in range(64)], min_size=1, max_size=12))
def test_strings_that_pass_are_runs_of_the_whole_image(text):
    runs = unpacked(text)
    fits = runs is not None and min(runs) >= 0 and sum(runs) == 240
    assert (segmentation_problem(PACKED | {"counts": text}, SIZE) is None) == fits
    if runs is not None and 0 < sum(runs) < 10_000 and min(runs) >= 0:
        segmentation = {"size": [1, sum(runs)], "counts": text}
        assert segmentation_problem(segmentation, (sum(runs), 1)) is None
        pixels = [index % 2 for index, run in enumerate(runs) for _ in range(run)]
        assert decode_masks([segmentation], (sum(runs), 1))[0, 0].tolist() == pixels


def test_users_get_no_warning_of_pycocotools_about_numpy():
    # in a separate process, because pytest has its own filters
    script = "from data import decode_masks; print(decode_masks([[[0, 0, 3, 0, 3, 2, 0, 2]]], (5, 4)).sum())"
    root = Path(__file__).parents[2]
    command = [sys.executable, "-W", "always::DeprecationWarning:pycocotools.mask", "-c", script]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
    assert (ended.stdout, ended.stderr) == ("6\n", "")


def test_probabilities_of_at_least_half_become_masks():
    probabilities = torch.zeros(2, 1, 7, 11)
    probabilities[0, 0, 2:5, 3:9] = 0.5
    probabilities[0, 0, 2, 3] = 0.49
    probabilities[1, 0, 6, 0] = 1.0
    expected = probabilities[:, 0].numpy() > 0.495
    for masks in (probabilities, probabilities[:, 0], probabilities.bfloat16()):
        rles = encode_masks(masks)
        assert all(type(rle["counts"]) is str and rle["size"] == [7, 11] for rle in rles)
        assert np.array_equal(coco_mask.decode(rles).transpose(2, 0, 1), expected)
    assert encode_masks(torch.zeros(0, 1, 7, 11)) == []
    json.dumps(encode_masks(probabilities))
