"""Graphs over whole batches detect what torchvision's code, which takes image after image, detects."""

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from engine.export import GRAPHS, OUTPUTS, check_exportable, graph_of, least_side
from engine.export.batches import prepare
from engine.export.suppression import suppress, suppress_as_operator


@pytest.mark.parametrize("name", GRAPHS)
def test_detects_what_the_detector_detects(name, make_detector, pictures):
    model = make_detector(name)
    graph = graph_of(name, model, suppress)
    counts = []
    for picture in pictures:
        batch = [picture, picture.flip(-1), picture.roll(20, -1)]
        with torch.inference_mode():
            expected, found = model(batch), graph(torch.stack(batch))
        assert tuple(found) == OUTPUTS
        assert found["boxes"].shape == (3, 40, 4)
        numbers = [len(theirs["scores"]) for theirs in expected]
        assert found["num_detections"].tolist() == numbers
        for i, theirs in enumerate(expected):
            for key in ("boxes", "labels", "scores"):
                torch.testing.assert_close(
                    found[key][i, : numbers[i]], theirs[key], rtol=1e-5, atol=1e-3 if key == "boxes" else 1e-5
                )
                assert not found[key][i, numbers[i] :].any()
        counts += numbers
    # so that the threshold and the limit were both met
    assert 0 < min(counts) < 40 == max(counts)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"score_thresh": 0.515},
        {"min_size": 15.0},
        {"nms_thresh": 0.3},
        {"_pre_nms_top_n": {"training": 0, "testing": 50}},
        {"_post_nms_top_n": {"training": 0, "testing": 20}},
    ],
    ids=str,
)
def test_proposes_what_the_detector_proposes(options, make_detector, pictures):
    """What torchvision drops is there no more, though it has a place of its own."""
    graph = graph_of("faster_rcnn", make_detector("faster_rcnn"), suppress)
    model, size = graph.model, tuple(pictures[0].shape[1:])
    for key, value in options.items():
        setattr(model.rpn, key, value)
    images = torch.stack([pictures[0], pictures[0].roll(20, -1)])
    with torch.inference_mode():
        padded = prepare(images, model.transform)
        maps = model.backbone(padded)
        expected, _ = model.rpn(ImageList(padded, [size, size]), dict(maps))
        found, is_there = graph._propose(padded, [*maps.values()], size)
    assert is_there.sum(1).tolist() == [len(boxes) for boxes in expected]
    for boxes, ours, there in zip(expected, found, is_there, strict=True):
        # without options all 300 places are taken
        assert len(boxes) == 300 if not options else 5 < len(boxes) < 300
        torch.testing.assert_close(ours[there], boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_candidates_of_each_level_are_limited(name, make_detector, pictures):
    model = make_detector(name)
    model.topk_candidates, model.score_thresh, model.nms_thresh = 7, 0.01, 1.0  # so that there are 7 of either map
    with torch.inference_mode():
        (expected,), found = model(pictures[:1]), graph_of(name, model, suppress)(pictures[0][None])
    assert found["num_detections"].tolist() == [len(expected["scores"])] == [14]
    torch.testing.assert_close(found["scores"][0, :14], expected["scores"], rtol=0, atol=1e-5)


def test_the_detector_is_left_alone(make_detector):
    model = make_detector("faster_rcnn").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    graph_of("faster_rcnn", model, suppress)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.rpn.parameters())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_one_operator_in_place_of_many(make_detector, pictures):
    picture = pictures[0][None]
    graph = graph_of("faster_rcnn", make_detector("faster_rcnn"), suppress)
    with torch.inference_mode():
        expected = graph(picture)
        graph.suppress = suppress_as_operator
        found = graph(picture)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_least_side(make_detector):
    model = make_detector("faster_rcnn")
    assert least_side(model) == 17  # its coarsest map has a stride of 16


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        ("ssd", "^ssd cannot be exported; these can: faster_rcnn, cascade_rcnn, retinanet, fcos$"),
        ("mask_rcnn", "^mask_rcnn cannot be exported, as exported programs give boxes and no masks; these can: faster"),
        ("cascade_mask_rcnn", "boxes and no masks"),
    ],
)
def test_a_detector_without_a_graph_is_refused(detector, message):
    with pytest.raises(ValueError, match=message):
        check_exportable(detector)
