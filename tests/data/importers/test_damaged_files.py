"""Files of each format with random damage: a reader ends with findings or a `DatasetError`, never with a traceback."""

import json
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data import DatasetError

VOC = """<annotation><folder>f</folder><filename>a.jpg</filename>
<source><database>The VOC2007 Database</database></source>
<size><width>40</width><height>30</height></size><object><name>cat</name><difficult>1</difficult><bndbox><xmin>3</xmin>
<ymin>4</ymin><xmax>20</xmax><ymax>25</ymax></bndbox></object></annotation>"""
CVAT = """<annotations><meta><task><labels><label><name>cat</name></label></labels></task></meta>
<image name="a.jpg" width="40" height="30" subset="val">
<box label="cat" xtl="1" ytl="2" xbr="9" ybr="9.5" rotation="5"/>
<polygon label="cat" points="1,2;9,2;9,9" group_id="1"/><mask label="cat" rle="1,2,3" left="1" top="1" width="3"
height="2"/><ellipse label="cat" cx="9" cy="9" rx="3" ry="4"/></image></annotations>"""
LABELME = {
    "shapes": [
        {"label": "cat", "points": [[1, 2], [9, 2], [9, 9]], "shape_type": "polygon", "group_id": 1},
        {"label": "dog", "points": [[1, 2], [9, 9]], "shape_type": "circle"},
    ],
    "imagePath": "a.jpg",
    "imageWidth": 40,
    "imageHeight": 30,
}
BOX = {"x": 10, "y": 20, "width": 25, "height": 50, "rotation": 3, "rectanglelabels": ["cat"]}
REGION = {"id": "r", "type": "rectanglelabels", "value": BOX, "original_width": 40, "original_height": 30}
TASK = {"id": 1, "data": {"image": "/data/upload/1/0123abcd-a.jpg"}, "annotations": [{"id": 2, "result": [REGION]}]}
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 40, "height": 30}],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "segmentation": [[1, 2, 4, 2, 4, 6]]}
    ],
    "categories": [{"id": 1, "name": "cat", "supercategory": "pet"}],
}
FILES = {
    "yolo labels": {"a.txt": "0 0.5 0.5 0.25 0.5\n1 0.1 0.2 0.4 0.2 0.4 0.6\n"},
    "yolo data.yaml": {
        "a.txt": "0 0.5 0.5 0.2 0.2",
        "data.yaml": "path: .\ntrain: .\nval: [.]\nnames: {0: cat}\nnc: 1",
    },
    "darknet": {"obj.data": "train = train.txt\nvalid=train.txt\nnames = obj.names\n", "train.txt": "data/a.jpg"},
    "voc": {"a.xml": VOC},
    "cvat": {"annotations.xml": CVAT},
    "labelme": {"a.json": json.dumps(LABELME)},
    "label studio": {"export.json": json.dumps([TASK])},
    "coco": {"train.json": json.dumps(COCO)},
}
DAMAGE = st.tuples(
    st.sampled_from(["cut", "delete", "insert", "replace", "repeat"]),
    st.floats(0, 1),
    st.sampled_from(
        ["0", "-", "9" * 400, "nan", "null", "[]", "{}", '"', "<", "../", "/", "\\", "\0", "\n", ":", "é", " "]
    ),
)


@pytest.mark.parametrize("kind", FILES)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damages=st.lists(DAMAGE, min_size=1, max_size=3))
def test_no_traceback(make, run_import, kind, damages):
    files = dict(FILES[kind])
    changed = [*files][-1]
    text = files[changed]
    for how, where, piece in damages:
        place = int(where * len(text))
        end = {"delete": place + 5, "replace": place + len(piece)}.get(how, place)
        text = text[:place] if how == "cut" else text[:place] + piece * (how != "delete") + text[end:]
        text += text[place : place + 40] * (how == "repeat")
    source = make(files | {changed: text, "a.jpg": (40, 30)})
    with suppress(DatasetError):
        found = run_import(source)
        assert found or found.found.errors or found.found.left_out
