"""Whose tensors they are."""

import pytest

from engine.converters.recognition import SOURCES, detect_source
from models import resnet


@pytest.mark.parametrize("key", ["detectron2", "mmdetection", "paddledetection"])
def test_frameworks_are_detected_by_their_names(key, peer):
    assert detect_source(peer.backbone(peer.names[key], dcn=())) is SOURCES[key]


def test_torchvision_is_detected_with_and_without_a_detector():
    names = [*resnet("resnet18").state_dict()]
    assert detect_source(names) is SOURCES["torchvision"]
    assert detect_source([f"backbone.body.{name}" for name in names]) is SOURCES["torchvision"]


def test_the_source_can_be_set():
    assert detect_source(["anything"], "yolact") is SOURCES["yolact"]
    with pytest.raises(ValueError, match="unknown source 'caffe', known: pytorch-deform-conv-v2, developer0hye"):
        detect_source(["anything"], "caffe")


def test_an_unknown_source_lists_the_known_names():
    with pytest.raises(ValueError, match="source framework is unknown") as error:
        detect_source(["transformer.encoder.weight", "vit.patch.bias"])
    message = str(error.value)
    assert all(source.title in message and source.example in message for source in SOURCES.values())
    assert "none of the 2 tensors" in message
    assert "the first names in the checkpoint are 'transformer.encoder.weight', 'vit.patch.bias'" in message


def test_options_of_each_framework():
    """RetinaNet: torchvision and mmdetection clip before NMS, detectron2 after it, PaddleDetection never."""
    options = {key: source.options() for key, source in SOURCES.items()}
    assert options["torchvision"] == {"roi_aligned": False, "anchors": "torchvision", "clip_boxes": "before_nms"}
    assert options["mmdetection"] == {"roi_aligned": True, "anchors": "exact", "clip_boxes": "before_nms"}
    assert options["detectron2"] == {"roi_aligned": True, "anchors": "exact", "clip_boxes": "after_nms"}
    assert options["paddledetection"] == {"roi_aligned": True, "anchors": "exact", "clip_boxes": "never"}


def test_the_third_roi_align_of_paddledetection_is_reported():
    (text,) = (line for line in SOURCES["paddledetection"].remaining("cascade_rcnn") if "RoIAlign" in line)
    assert "roi_aligned=false and roi_sampling_ratio=0" in text
    assert not any("RoIAlign" in line for line in SOURCES["paddledetection"].remaining("retinanet"))
