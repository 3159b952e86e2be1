"""Pascal VOC: boxes of several programs, the names of images, and every damaged element."""

import xml.etree.ElementTree as ET
from xml.sax.saxutils import escape

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def voc(*objects: str, name: str = "a.jpg", size: tuple[int, int] = (200, 100), head: str = "") -> str:
    sides = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"<annotation>{head}<filename>{name}</filename>\n{sides}\n" + "\n".join(objects) + "</annotation>"


def thing(name: str, *box: float, more: str = "") -> str:
    sides = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{escape(name)}</name>{more}<bndbox>{sides}</bndbox></object>"


def test_the_layout_of_the_challenges(make, run_import):
    """ImageSets choose the split; pixels count from 1 and include the last one; difficult objects do not count."""
    head = "<folder>VOC2007</folder><source><database>The VOC2007 Database</database></source>"
    files = {
        "Annotations/a.xml": voc(
            thing("potted plant", 1, 1, 200, 100, more="<difficult>0</difficult><truncated>1</truncated>"),
            thing("person", 11, 21, 30, 50, more="<difficult>1</difficult><part><name>head</name></part>"),
            head=head,
        ),
        "Annotations/b.xml": voc(thing("cat", 11, 21, 30, 50), name="b.jpg", size=(60, 60), head=head),
        "Annotations/c.xml": voc(name="c.jpg", head=head),
        "ImageSets/Main/train.txt": "a\n",
        "ImageSets/Main/val.txt": "b  1\n",
        "ImageSets/Main/trainval.txt": "a\nb\nc\n",
        "ImageSets/Main/cat_train.txt": "a -1\n",
    }
    found = run_import(
        make(files | {f"JPEGImages/{name}.jpg": (200, 100) for name in "ac"} | {"JPEGImages/b.jpg": (60, 60)})
    )
    assert not found.found.errors
    assert found.objects("train") == {"a.jpg": [("potted plant", 0, 0, 200, 100), ("person", 10, 20, 20, 30)]}
    assert found.objects("val") == {"b.jpg": [("cat", 10, 20, 20, 30)]}
    assert [annotation["iscrowd"] for annotation in found["train"]["annotations"]] == [0, 1]
    assert {kind: len(places) for kind, places in found.found.left_out.items()} == {
        "parts of objects": 1,
        "label files that no list of ImageSets/Main names": 1,
        "images without labels": 1,
    }


def test_names_of_another_machine(make, run_import):
    """As labelImg writes them: the labeller's folders, another case, a renamed image, a size of 0, edges from 0."""
    path = "<folder>cards</folder><path>C:\\cards\\valid\\A.JPG</path>"
    files = {
        "train/a.xml": voc(thing("ace", 0, 0, 200, 100), name="A.JPG", head="<path>D:\\x\\A.JPG</path>"),
        "valid/a.xml": voc(thing("king", 5.5, 10, 20, 30), name="A.JPG", size=(0, 0), head=path),
        "valid/new.xml": voc(name="old.jpg", size=(30, 30)),
    }
    images = {"train/a.jpg": (200, 100), "valid/a.jpg": (40, 40), "valid/new.png": (30, 30)}
    found = run_import(make(files | images))
    assert not found.found.errors
    assert found.objects("train") == {"train/a.jpg": [("ace", 0, 0, 200, 100)]}
    assert found.objects("val") == {"valid/a.jpg": [("king", 5.5, 10, 14.5, 20)], "valid/new.png": []}
    assert {kind: len(places) for kind, places in found.found.notes.items()} == {
        "image names that differ in upper and lower case": 2,
        "images found by the name of the label file, not by the name in it": 1,
    }


def test_polygons(make, run_import):
    """Roboflow writes the outline next to the box."""
    outline = "<polygon><x1>10</x1><y1>10</y1><x2>50</x2><y2>10</y2><x3>50</x3><y3>40</y3></polygon>"
    found = run_import(make({"a.jpg": (200, 100), "a.xml": voc(thing("cat", 10, 10, 50, 40, more=outline))}))
    (annotation,) = found["train"]["annotations"]
    assert annotation["segmentation"] == [[10, 10, 50, 10, 50, 40]]
    assert (annotation["bbox"], annotation["area"]) == ([10, 10, 40, 30], 600)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (voc("<object><name> </name></object>"), "a.xml, line 3: <object> must have a <name>"),
        (voc(thing("cat", 1, 2, 3, "x")), "a.xml, line 3: <ymax> of <bndbox> must be a number of pixels, got 'x'"),
        (voc("<object><name>cat</name></object>"), "<xmin> of <bndbox> must be a number of pixels, got ''"),
        (voc(thing("cat", 50, 2, 30, 9)), "line 3: must have a width and height above 0"),
        (voc(thing("cat", 50, 2, 300, 9)), "line 3: must be inside of its image of 200x100"),
        (voc(thing("cat", 5, 2, 30, "1e999")), "got '1e999'"),
        (voc(size=(100, 100)), "a.xml: 100x100, and "),
        (voc() + "<", "line 3: "),
        ("", "no element found"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "line 1: defines an entity"),
        ('<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation/>', "line 1: defines an entity"),
        ("<a>" * 99, "more than 50 elements within each other"),
        ('<?xml version="1.0" encoding="nonsense"?><annotation/>', "encoding"),
        (voc(thing("cat", 1, 2, 3, 4, more="<polygon><x1>1</x1><y1>b</y1></polygon>")), "<y1> of <polygon>"),
    ],
)
def test_errors(make, run_import, text, said):
    files = {"a.jpg": (200, 100), "a.xml": text, "b.jpg": (9, 9), "b.xml": voc(name="b.jpg", size=(9, 9))}
    found = run_import(make(files))
    assert said in str(found.found.errors)
    assert sum(map(len, found.found.errors.values())) == 1


def test_names_that_training_does_not_accept(make, run_import):
    """A name of more than 1,000 characters is damage; the result has neither the class nor its objects."""
    text = voc(thing("x" * 2000, 1, 2, 30, 40), thing("cat", 1, 2, 30, 40))
    found = run_import(make({"a.jpg": (200, 100), "a.xml": text}))
    assert "train: categories[1] must have 'name' of at most 1000 characters" in str(found.found.errors)
    assert found.objects() == {"a.jpg": [("cat", 1, 2, 29, 38)]}


def test_images_and_files_that_do_not_fit(make, run_import):
    files = {"a.jpg": (200, 100), "a.xml": voc(), "b.xml": voc(name="a.jpg"), "c.xml": voc(name="c.jpg")}
    source = make(files | {"ImageSets/Main/train.txt": "a\nb\nc\nd"})
    assert run_import(source).found.errors == {
        "images with more than one label file": [f"{source}/a.jpg: a.xml and b.xml"],
        f"labels whose image is not below {source}": ["c.xml: c.xml"],
        "names in ImageSets/Main without a label file": ["train.txt: 'd'"],
    }


VALUES = st.sampled_from(["10", "20.5", "-3", "nan", "", "x", "9e99", "150"])


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_object_is_lost(make, run_import, data):
    """Changed texts, tags and missing elements: every <object> is an annotation or an error that is counted."""
    root = ET.fromstring(voc(*(thing("cat", 10, 20, 30 + i, 60) for i in range(3))))
    for _ in range(data.draw(st.integers(1, 3))):
        element = data.draw(st.sampled_from([*root.find("object").iter()]))
        change = data.draw(st.sampled_from(["text", "tag", "clear"]))
        if change == "text":
            element.text = data.draw(VALUES)
        elif change == "tag" and element.tag != "object":
            element.tag = "other"
        elif change == "clear":
            element.clear()
    found = run_import(make({"a.jpg": (200, 100), "a.xml": ET.tostring(root, "unicode")}))
    errors = sum(map(len, found.found.errors.values()))
    assert len(found["train"]["annotations"]) + errors == len(root.findall("object"))
