"""What a file does not say outright."""

import json

import pytest
import torch

from engine.converters.inferred_settings import (
    COCO,
    choose_classes,
    infer_eps,
    infer_input_format,
    infer_stride_in_1x1,
    read_classes,
)
from engine.converters.reading import SourceCheckpoint
from engine.converters.recognition import SOURCES

BOTTLENECK = {"layer1.0.conv3.weight": torch.zeros(1), "layer1.0.bn1.running_mean": torch.zeros(1)}
THEIRS = {"res2.0.conv3.weight": torch.zeros(1), "res2.0.conv1.norm.running_mean": torch.zeros(1)}
GROUPS = {"res2.0.conv2.weight": torch.zeros(256, 8, 3, 3)}


@pytest.mark.parametrize(
    ("key", "checkpoint", "input_format", "stride_in_1x1"),
    [
        ("torchvision", SourceCheckpoint(BOTTLENECK), "rgb_std", False),
        ("detectron2", SourceCheckpoint(THEIRS), "bgr", True),
        # of detectron2's zoo: its ResNeXts have the standard deviation and the stride in the 3x3, group norm the latter
        ("detectron2", SourceCheckpoint(THEIRS | GROUPS), "bgr_std", False),
        ("detectron2", SourceCheckpoint(THEIRS | GROUPS | {"pixel_std": torch.ones(3)}), "bgr", False),
        ("detectron2", SourceCheckpoint({"res2.0.conv3.weight": torch.zeros(1)}), "bgr", False),
        ("mmdetection", SourceCheckpoint(BOTTLENECK, "style='pytorch', std=[1.0, 1.0], to_rgb=False"), "bgr", False),
        (
            "detectron2",
            SourceCheckpoint({"res2.0.conv2.weight": torch.zeros(1)}),
            "bgr",
            False,
        ),  # basic blocks have no 1x1
        (
            "detectron2",
            SourceCheckpoint(BOTTLENECK | {"pixel_std": torch.tensor([57.375, 57.12, 58.395])}),
            "bgr_std",
            False,
        ),
        ("detectron2", SourceCheckpoint(BOTTLENECK | {"pixel_std": torch.ones(3, 1, 1)}), "bgr", True),
        (
            "mmdetection",
            SourceCheckpoint(BOTTLENECK, "style='pytorch', bgr_to_rgb=True, std=[58.395, 57.12]"),
            "rgb_std",
            False,
        ),
        ("mmdetection", SourceCheckpoint(BOTTLENECK, "style='caffe', std=[1.0, 1.0, 1.0], to_rgb=False"), "bgr", True),
        (
            "mmdetection",
            SourceCheckpoint(BOTTLENECK, "std=[57.375, 57.12, 58.395],\n bgr_to_rgb = False"),
            "bgr_std",
            False,
        ),
        ("paddledetection", SourceCheckpoint({"res2.res2a.branch2c.conv.weight": torch.zeros(1)}), "rgb_std", False),
    ],
)
def test_input_and_stride(key, checkpoint, input_format, stride_in_1x1):
    assert infer_input_format(checkpoint, SOURCES[key]) == input_format
    assert infer_stride_in_1x1(checkpoint, input_format) == stride_in_1x1


@pytest.mark.parametrize(
    ("key", "classes", "names", "eps"),
    [
        ("torchvision", 90, ["bn1.weight"], 0.0),
        ("torchvision", 90, ["bn1.num_batches_tracked"], 1e-5),
        ("torchvision", 5, ["bn1.weight"], 1e-5),
        ("mmdetection", 90, ["bn1.weight"], 1e-5),
    ],
)
def test_epsilon(key, classes, names, eps):
    assert infer_eps(SourceCheckpoint({name: torch.zeros(1) for name in names}), SOURCES[key], classes) == eps


def test_the_names_of_coco():
    assert (len(COCO), COCO[1], COCO[13], COCO[90], 12 in COCO) == (80, "person", "stop sign", "toothbrush", False)


def test_classes_by_default():
    names, kept = choose_classes(SourceCheckpoint({}), SOURCES["detectron2"], 80, None)
    assert (names, kept) == (COCO, [*range(80)])
    names, kept = choose_classes(SourceCheckpoint({}), SOURCES["torchvision"], 90, None)
    assert (names, kept) == (COCO, [index - 1 for index in COCO])
    mine = SourceCheckpoint({}, class_names=["cat", "dog", "cow"])
    assert choose_classes(mine, SOURCES["mmdetection"], 3, None) == ({1: "cat", 2: "dog", 3: "cow"}, [0, 1, 2])
    assert (
        choose_classes(SourceCheckpoint({}, class_names=[*COCO.values()]), SOURCES["mmdetection"], 80, None)[0] == COCO
    )
    with pytest.raises(ValueError, match="has 3 classes without names: add --classes FILE"):
        choose_classes(SourceCheckpoint({}), SOURCES["mmdetection"], 3, None)


def test_classes_of_a_file(tmp_path):
    text, annotations = tmp_path / "names.txt", tmp_path / "train.json"
    text.write_text("cat\n\n stop sign \n")
    annotations.write_text(json.dumps({"categories": [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]}))
    assert read_classes(text) == {1: "cat", 2: "stop sign"}
    assert [*read_classes(annotations).items()] == [(3, "cat"), (7, "dog")]
    assert choose_classes(SourceCheckpoint({}), SOURCES["detectron2"], 2, annotations)[1] == [0, 1]
    # torchvision's labels may be category ids
    assert choose_classes(SourceCheckpoint({}), SOURCES["torchvision"], 7, annotations)[1] == [2, 6]
    assert choose_classes(SourceCheckpoint({}), SOURCES["torchvision"], 2, annotations)[1] == [0, 1]
    for key, classes in (("detectron2", 7), ("torchvision", 6)):
        with pytest.raises(ValueError, match=rf"the checkpoint has {classes} classes, but .*train\.json has 2"):
            choose_classes(SourceCheckpoint({}), SOURCES[key], classes, annotations)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", "[", "is not valid JSON: .*the file ends too early"),
        ("x.json", '{"images": []}', "the list 'categories' is missing"),
        ("x.json", '{"categories": [{"id": "one", "name": "a"}]}', "must have 'id' of type int, got 'one'"),
        ("x.txt", "\n\n", "must contain classes"),
        ("x.txt", b"\xff\xfe\x00", "must be a COCO annotation JSON or a text file of names"),
    ],
)
def test_class_files_that_are_none(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / name)
    with pytest.raises(ValueError, match="does not exist"):
        read_classes(tmp_path / "missing.txt")
