"""Boxes, masks and areas of another convention are recognised from all numbers of a file."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data import DatasetError, inspect_dataset, load_annotations
from data.conventions import convention_problems

WIDTH, HEIGHT = 640, 480


def drawn_boxes(seed, count, least=20, most=200):
    """Return boxes (x, y, width, height) with even places and sizes inside of an image."""
    random = np.random.default_rng(seed)
    sides = random.uniform(least, most, (count, 2))
    return np.hstack([random.uniform(0, np.array([WIDTH, HEIGHT]) - sides), sides]).round(1)


def file_of(boxes, size=(WIDTH, HEIGHT), **fields):
    """Return a completed file; each of `fields` has a value per annotation."""
    annotations = [
        {"id": n, "file_id": n, "image_id": 1, "category_id": 1, "iscrowd": 0, "bbox": list(map(float, box))}
        | {"area": float(box[2] * box[3])}
        | {name: values[n] for name, values in fields.items()}
        for n, box in enumerate(boxes)
    ]
    return {
        "images": [{"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}],
        "categories": [{"id": 1, "name": "nut"}],
        "annotations": annotations,
    }


def problems(raw, masks=False):
    found = convention_problems(raw, masks=masks)
    return [f"{kind}: {p.what}" for kind in ("errors", "warnings") for p in getattr(found, kind)]


SIDES = np.array([WIDTH, HEIGHT] * 2)
OTHER_BOXES = {
    "fractions": (lambda b: b / SIDES, "errors: .* fractions of the image"),
    "fractions of centers": (
        lambda b: np.hstack([b[:, :2] + b[:, 2:] / 2, b[:, 2:]]) / SIDES,
        "errors: .* fractions of the image",
    ),
    "fractions of corners": (
        lambda b: np.hstack([b[:, :2], b[:, :2] + b[:, 2:]]) / SIDES,
        "errors: .* fractions of the image",
    ),
    "corners": (lambda b: np.hstack([b[:, :2], b[:, :2] + b[:, 2:]]), r"warnings: .* corners \(x1, y1, x2, y2\)"),
    "centers": (lambda b: np.hstack([b[:, :2] + b[:, 2:] / 2, b[:, 2:]]), r"warnings: .* \(center x, center y"),
    "percent": (lambda b: 100 * b / SIDES, "warnings: .* upper left .* percent"),
    "corners with y first": (
        lambda b: np.hstack([b[:, :2], b[:, :2] + b[:, 2:]])[:, [1, 0, 3, 2]],
        r"warnings: .* corners \(x1, y1, x2, y2\)",
    ),
    "smaller images": (lambda b: b / 4, "warnings: .* upper left .* smaller images"),
}


@pytest.mark.parametrize("name", OTHER_BOXES)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("count", [12, 100])
def test_other_boxes(name, seed, count):
    change, expected = OTHER_BOXES[name]
    (found,) = [p for p in problems(file_of(change(drawn_boxes(seed, count)))) if "areas" not in p]
    assert re.match(expected, found), found


def test_one_box_of_fractions_is_certain():
    assert "fractions" in problems(file_of([[0.1, 0.4, 0.5, 0.45]]))[0]


@pytest.mark.parametrize("part", [0.6, 0.9])
def test_most_boxes_as_fractions_are_a_warning(part):
    boxes = drawn_boxes(0, 50)
    boxes[: int(50 * part)] /= SIDES
    (found,) = problems(file_of(boxes))
    assert found.startswith("warnings: boxes with all numbers from 0 to 1")


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 60), most=st.integers(21, 300))
def test_true_boxes_have_no_problems(seed, count, most):
    assert problems(file_of(drawn_boxes(seed, count, most=most))) == []


def test_large_objects_in_the_middle_have_no_problems():
    random = np.random.default_rng(0)
    margins = random.uniform(40, 120, (40, 2))
    boxes = np.hstack([margins, [WIDTH, HEIGHT] - margins - random.uniform(40, 120, (40, 2))])
    assert problems(file_of(boxes)) == []


def test_swapped_sides_of_the_images():
    (found,) = problems(file_of(drawn_boxes(0, 60), size=(HEIGHT, WIDTH)))
    assert "swapped" in found


@pytest.mark.parametrize("factor", [1e-4, 1 / (WIDTH * HEIGHT), 2, 100])
def test_areas_of_another_unit(factor):
    boxes = drawn_boxes(0, 20)
    (found,) = problems(file_of(boxes, area=(factor * boxes[:, 2] * boxes[:, 3]).tolist()))
    assert found.startswith("warnings: areas that are larger or much smaller than the box")
    assert problems(file_of(boxes, area=(0.3 * boxes[:, 2] * boxes[:, 3]).tolist())) == []


def outlines(boxes, change=lambda corners: corners):
    corners = [np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h]]) for x, y, w, h in boxes]
    return [[change(corner).reshape(-1).tolist()] for corner in corners]


@pytest.mark.parametrize("masks", [True, False])
def test_polygons_as_fractions(masks):
    boxes = drawn_boxes(0, 20)
    raw = file_of(boxes, segmentation=outlines(boxes, lambda corners: corners / SIDES[:2]))
    (found,) = problems(raw, masks=masks)
    assert found.startswith(f"{'errors' if masks else 'warnings'}: polygons with all numbers from 0 to 1")


@pytest.mark.parametrize(
    "change", [lambda c: c / 4, lambda c: c[:, ::-1], lambda c: 100 * c / SIDES[:2], lambda c: c + 300]
)
def test_polygons_elsewhere(change):
    boxes = drawn_boxes(1, 20)
    (found,) = problems(file_of(boxes, segmentation=outlines(boxes, change)))
    assert found == "warnings: masks of another place or scale than their boxes"
    assert problems(file_of(boxes, segmentation=outlines(boxes)), masks=True) == []


def test_scores_are_of_detections():
    boxes = drawn_boxes(0, 3)
    assert problems(file_of(boxes, score=[0.5, 0.4, 0.1])) == [
        "warnings: annotations with a score, as detections have and ground truth has not"
    ]


def test_training_and_the_check_report_the_same(tmp_path):
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "a.png")
    file = tmp_path / "a.json"
    file.write_text(json.dumps(file_of(OTHER_BOXES["centers"][0](drawn_boxes(0, 30)))))
    found = load_annotations(tmp_path, file, invalid_boxes="clip")
    assert any("center x" in problem.what for problem in found.warnings)
    assert any("center x" in problem.what for problem in inspect_dataset(tmp_path, file).warnings)
    file.write_text(json.dumps(file_of(drawn_boxes(0, 30) / SIDES)))
    with pytest.raises(DatasetError, match=r"fractions of the image .*: 30 of 30 boxes; multiply"):
        load_annotations(tmp_path, file, invalid_boxes="drop")
    assert any("fractions" in problem.what for problem in inspect_dataset(tmp_path, file).errors)
