"""CVAT for images: all kinds of shapes, turned ones against a formula, subsets, and every damaged element."""

import cmath
import math
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

META = (
    "<version>1.1</version><meta><task><labels><label><name>dog</name><type>any</type></label>"
    "<label><name>cat</name></label><label><name>body</name><type>skeleton</type></label>"
    "<label><name>1</name><parent>body</parent></label></labels></task></meta>"
)


def image(*shapes: str, name: str = "a.jpg", size: tuple[int, int] = (200, 100), more: str = "") -> str:
    head = f'<image id="0" name="{name}" width="{size[0]}" height="{size[1]}" {more}>'
    return "\n".join([head, *shapes, "</image>"])


def cvat(*images: str) -> str:
    return "\n".join(['<?xml version="1.0" encoding="utf-8"?>', f"<annotations>{META}", *images, "</annotations>"])


def box(*sides: float, label: str = "cat", more: str = "") -> str:
    numbers = "xtl='{}' ytl='{}' xbr='{}' ybr='{}'".format(*sides)
    return f"<box label='{label}' {numbers} {more}/>"


def test_shapes_and_subsets(make, run_import):
    polygon = '<polygon label="dog" points="10.00,10.00;50.00,10.00;50.00,40.00" group_id="{}"/>'
    shapes = [
        box(10, 20.5, 40, 60, more='occluded="1" z_order="0"'),
        polygon.format(0),
        polygon.format(3),
        '<polygon label="dog" points="90,10;99,10;99,80" group_id="3"/>',
        '<polyline label="dog" points="1,1;2,2"/>',
        '<tag label="dog"/>',
        '<skeleton label="body"><points label="1" points="1,1"/></skeleton>',
    ]
    files = {
        "annotations.xml": cvat(
            image(*shapes, more='subset="Train"'),
            image(name="sub/b.jpg", size=(60, 50), more='subset="Validation"'),
            image(name="a.jpg", size=(20, 30), more='subset="Validation"'),
            image(box(1, 2, 3, 4), name="c.jpg", size=(60, 50)),
        ),
        "images/Train/a.jpg": (200, 100),
        "images/Validation/sub/b.jpg": (60, 50),
        "images/Validation/a.jpg": (20, 30),
        "images/c.jpg": (60, 50),
        "images/d.jpg": (60, 50),
    }
    found = run_import(make(files))
    assert not found.found.errors
    objects = found.objects("train")
    assert objects["Train/a.jpg"] == [("cat", 10, 20.5, 30, 39.5), ("dog", 10, 10, 40, 30), ("dog", 10, 10, 89, 70)]
    assert objects["c.jpg"] == [("cat", 1, 2, 2, 2)]
    assert found.objects("val") == {"Validation/sub/b.jpg": [], "Validation/a.jpg": []}
    assert found["train"]["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert {kind: len(places) for kind, places in found.found.left_out.items()} == {
        "elements <polyline>": 1,
        "elements <tag>": 1,
        "elements <skeleton>": 1,
        "images without labels": 1,
    }


@pytest.mark.parametrize("degrees", [0.0, 30.0, 90.0, 211.5])
def test_turned_shapes(make, run_import, degrees):
    """Clockwise around the center, against complex numbers: the y axis points down."""
    turn = cmath.exp(1j * math.radians(degrees))
    text = cvat(
        image(
            box(70, 40, 130, 60, more=f'rotation="{degrees}"'),
            f'<ellipse label="dog" cx="100" cy="50" rx="40" ry="10" rotation="{degrees}"/>',
        )
    )
    turned_box, ellipse = run_import(make({"annotations.xml": text, "a.jpg": (200, 100)}))["train"]["annotations"]
    corners = [100 + 50j + (x + 1j * y) * turn for x, y in ((-30, -10), (30, -10), (30, 10), (-30, 10))]
    xs, ys = [corner.real for corner in corners], [corner.imag for corner in corners]
    expected = [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
    assert turned_box["bbox"] == pytest.approx(expected, abs=0.01)
    assert turned_box["area"] == pytest.approx(60 * 20, rel=0.002)
    half_x, half_y = math.hypot(40 * turn.real, 10 * turn.imag), math.hypot(40 * turn.imag, 10 * turn.real)
    expected = [100 - half_x, 50 - half_y, 2 * half_x, 2 * half_y]
    assert ellipse["bbox"] == pytest.approx(expected, abs=0.1)
    assert ellipse["area"] == pytest.approx(math.pi * 400, rel=0.002)


def test_masks(make, run_import):
    """Run lengths along the rows of a box, against a loop."""
    pixels = np.zeros((100, 200), dtype=np.uint8)
    pixels[31:34, 50:57] = np.random.default_rng(0).integers(0, 2, (3, 7))
    runs, value = [0], 0
    for pixel in pixels[31:34, 50:57].flatten():
        if pixel != value:
            runs, value = [*runs, 0], pixel
        runs[-1] += 1
    rle = ", ".join(map(str, runs))
    text = cvat(image(f'<mask label="cat" rle="{rle}" left="50" top="31" width="7" height="3"/>'))
    (mask,) = run_import(make({"annotations.xml": text, "a.jpg": (200, 100)}))["train"]["annotations"]
    assert np.array_equal(coco_mask.decode(mask["segmentation"]), pixels)
    assert mask["area"] == pixels.sum()
    rows, columns = np.nonzero(pixels)
    x, y = columns.min(), rows.min()
    assert mask["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (box(1, 2, 3, "x"), "annotations.xml, line 4: ybr of <box> must be a number, got 'x'"),
        (box(1, 2, 3, 4, label=" "), "line 4: <box> must have a label that is not empty"),
        (box(1, 2, 300, 40), "line 4: must be inside of its image of 200x100"),
        ('<polygon label="cat" points="1,2;3"/>', "points of <polygon> must be numbers x,y;x,y;..., got '1,2;3'"),
        ('<polygon label="cat" points="1,2;3,4"/>', "at least three corners"),
        ('<mask label="cat" rle="3,2" left="0" top="0" width="3" height="2"/>', "must have runs of 6 pixels"),
        ('<mask label="cat" rle="3,3" left="198" top="0" width="3" height="2"/>', "at [198, 0, 3, 2]"),
        ('<mask label="cat" rle="2.5,3.5" left="0" top="0" width="3" height="2"/>', "got '2.5,3.5'"),
        ("</image><track id='0' label='cat'/><image name='a.jpg'>", "export the task as CVAT for images 1.1"),
        ("</image><image name='a.jpg'>", "images that a file has twice"),
        ("</image><image name='none.jpg'>", "annotations.xml, line 4: none.jpg"),
        ("</image><image name='b.jpg' width='1' height='1'>", "line 4: b.jpg: 1x1, and "),
    ],
)
def test_errors(make, run_import, shape, said):
    found = run_import(make({"annotations.xml": cvat(image(shape)), "a.jpg": (200, 100), "b.jpg": (20, 10)}))
    assert said in str(found.found.errors)
    assert len(found.found.errors) == 1 + ("<track" in shape)


WORDS = st.sampled_from(["10", "20.5", "-3", "nan", "", "x", "9e99", "150", "1,2;3,4;5,9", "0,3,3", "cat"])
KEYS = st.sampled_from(["label", "xtl", "ytl", "xbr", "ybr", "points", "rotation", "rle", "left", "width", "group_id"])
TAGS = st.sampled_from(["box", "polygon", "mask", "ellipse", "polyline"])
GOOD = {"label": "cat", "xtl": "1", "ytl": "2", "xbr": "30", "ybr": "40", "points": "1,2;9,2;9,9"}


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TAGS, st.dictionaries(KEYS, WORDS, max_size=4)), max_size=5))
def test_no_shape_is_lost(make, run_import, changes):
    shapes = [ET.tostring(ET.Element(tag, GOOD | change), "unicode") for tag, change in changes]
    found = run_import(make({"annotations.xml": cvat(image(*shapes)), "a.jpg": (200, 100)}))
    counted = sum(map(len, (found.found.errors | found.found.left_out).values()))
    joined = sum(len(places) for kind, places in found.found.notes.items() if "joined" in kind)
    assert len(found["train"]["annotations"]) + counted + joined == len(shapes)
