"""Graphs over whole batches detect what torchvision's code, which takes image after image, detects.

Both in float64, where another order of sums does not choose other detections.
"""

import pytest
import torch
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image

from engine.export import build_graph, check_exportable, min_image_side, output_names
from engine.export.batches import prepare
from engine.export.suppression import suppress, suppress_as_operator
from models import DETECTORS

CASES = [(name, {}) for name, spec in DETECTORS.items() if spec.export]
CASES += [(name, {"dcn_v2_stages": ()}) for name in ("mask_rcnn", "cascade_mask_rcnn")]
CASES += [("retinanet", {"anchors": "torchvision", "clip_boxes": clipping}) for clipping in ("after_nms", "never")]
CASES += [("faster_rcnn", {"roi_sampling_ratio": 0})]


@pytest.fixture
def make(make_detector):
    """`make(name)`: a detector in float64, and its graph."""

    def build(name, **options):
        model = make_detector(name, **options)
        graph = build_graph(name, model, suppress).double()
        return model.double(), graph

    return build


@pytest.fixture
def images(pictures):
    return [picture.double() for picture in pictures]


@pytest.mark.parametrize(
    ("name", "options"), CASES, ids=lambda value: value if isinstance(value, str) else "-".join(value) or "default"
)
def test_detects_what_the_detector_detects(name, options, make, images):
    model, graph = make(name, **options)
    counts = []
    for picture in images:
        batch = [picture, picture.flip(-1), picture.roll(20, -1)]
        with torch.inference_mode():
            expected, found = model(batch), graph(torch.stack(batch))
        assert tuple(found) == output_names(name)
        assert found["boxes"].shape == (3, 40, 4)
        numbers = [len(theirs["scores"]) for theirs in expected]
        assert found["num_detections"].tolist() == numbers
        for i, theirs in enumerate(expected):
            for key in ("boxes", "labels", "scores"):
                torch.testing.assert_close(found[key][i, : numbers[i]], theirs[key], rtol=1e-9, atol=1e-9)
                assert not found[key][i, numbers[i] :].any()
            if "masks" in theirs:
                own = found["masks"][i, : numbers[i], None]
                assert own.std() > 0.1  # or else pasted ones would say little
                pasted = paste_masks_in_image(own, theirs["boxes"], tuple(picture.shape[1:]))
                torch.testing.assert_close(pasted, theirs["masks"], rtol=0, atol=1e-9)
        counts += numbers
    # so that the threshold and the limit were both met
    assert 0 < min(counts) < 40 == max(counts)


@pytest.mark.parametrize("name", ["mask_rcnn", "cascade_mask_rcnn"])
def test_masks_fill_up_with_zeros(name, make_detector, choose_threshold, pictures):
    model = make_detector(name)
    choose_threshold(model, [pictures[0], pictures[0].flip(-1)], some_at_most=30, some_at_least=10)
    images = torch.stack([pictures[0], pictures[0].flip(-1)])
    with torch.inference_mode():
        found = build_graph(name, model, suppress)(images)
    assert found["masks"].shape == (2, 40, 28, 28)
    counts = found["num_detections"].tolist()
    assert 0 < min(counts) < 40
    for i, count in enumerate(counts):
        assert found["masks"][i, :count].flatten(1).any(1).all()
        assert not found["masks"][i, count:].any()
    model.roi_heads.score_thresh = 1.0  # nothing is found
    with torch.inference_mode():
        found = build_graph(name, model, suppress)(images)
    assert found["masks"].shape == (2, 40, 28, 28)
    assert not any(values.any() for values in found.values())


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
def test_proposes_what_the_detector_proposes(options, make, images):
    """What torchvision drops is there no more, though it has a place of its own."""
    _, graph = make("faster_rcnn")
    model, size = graph.model, tuple(images[0].shape[1:])
    for key, value in options.items():
        setattr(model.rpn, key, value)
    with torch.inference_mode():
        padded = prepare(torch.stack([images[0], images[0].roll(20, -1)]), model.transform)
        maps = model.backbone(padded)
        expected, _ = model.rpn(ImageList(padded, [size, size]), dict(maps))
        found, is_there = graph._propose(padded, [*maps.values()], size)
    assert is_there.sum(1).tolist() == [len(boxes) for boxes in expected]
    for boxes, ours, there in zip(expected, found, is_there, strict=True):
        # without options all 300 places are taken
        assert len(boxes) == 300 if not options else 5 < len(boxes) < 300
        torch.testing.assert_close(ours[there], boxes, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["retinanet", "fcos"])
def test_candidates_of_each_level_are_limited(name, make, images):
    model, graph = make(name)
    for each in (model, graph.model):  # so that there are 7 of either map
        each.topk_candidates, each.score_thresh, each.nms_thresh = 7, 0.01, 1.0
    with torch.inference_mode():
        (expected,), found = model(images[:1]), graph(images[0][None])
    assert found["num_detections"].tolist() == [len(expected["scores"])] == [14]
    torch.testing.assert_close(found["scores"][0, :14], expected["scores"], rtol=0, atol=1e-9)


def test_the_detector_is_left_alone(make_detector):
    model = make_detector("faster_rcnn").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    build_graph("faster_rcnn", model, suppress)
    assert model.training
    assert all(parameter.requires_grad for parameter in model.rpn.parameters())
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_one_operator_in_place_of_many(make, images):
    picture = images[0][None]
    _, graph = make("faster_rcnn")
    with torch.inference_mode():
        expected = graph(picture)
        graph.suppress = suppress_as_operator
        found = graph(picture)
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_least_side(make_detector):
    model = make_detector("faster_rcnn")
    assert min_image_side(model) == 17  # its coarsest map has a stride of 16


def test_a_detector_without_a_graph_raises():
    names = "faster_rcnn, mask_rcnn, cascade_rcnn, cascade_mask_rcnn, retinanet, fcos"
    with pytest.raises(ValueError, match=f"^ssd cannot be exported; these can: {names}$"):
        check_exportable("ssd")
    for name in names.split(", "):
        check_exportable(name)
