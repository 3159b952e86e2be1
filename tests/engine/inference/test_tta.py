"""Merged detections of an image and the flipped image: with known detections, and with real detectors."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torchvision.ops import nms

from engine.building.model import build_model
from engine.config.loading import load_config
from engine.inference.restored import with_tta
from engine.inference.tta import HorizontalFlipTta, flip_detections

HEIGHT, WIDTH = 40, 100


def found(boxes, labels, scores, **more):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
        **more,
    }


class Bright(nn.Module):
    """Finds the box around what is bright within columns `start` to `end`: label 1, its brightness the score."""

    def __init__(self, start=0, end=WIDTH):
        super().__init__()
        self.start, self.end = start, end

    def forward(self, images):
        assert not self.training
        return [self.look(image[:, :, self.start : self.end]) for image in images]

    def look(self, part):
        rows, columns = (part[0] > 0.2).nonzero(as_tuple=True)
        if not len(rows):
            return found([], [], [], masks=torch.zeros(0, 1, HEIGHT, WIDTH))
        left, right = columns.min() + self.start, columns.max() + self.start + 1
        mask = torch.zeros(1, 1, HEIGHT, WIDTH)
        mask[..., self.start : self.end] = part[0]
        box = [left, rows.min(), right, rows.max() + 1]
        return found([box], [1], [part.max()], masks=mask)


def image_with(*boxes):
    image = torch.zeros(3, HEIGHT, WIDTH)
    for left, top, right, bottom, brightness in boxes:
        image[:, top:bottom, left:right] = brightness
    return image


def merged(model, **options):
    return HorizontalFlipTta(model, **({"nms_threshold": 0.5, "detections_per_image": 100} | options)).eval()


def test_boxes_and_masks_are_flipped_at_the_width():
    masks = torch.rand(2, 1, 7, 20)
    before = found([[1, 2, 5, 6], [0.25, 0, 20, 7]], [3, 1], [0.5, 0.25], masks=masks)
    after = flip_detections(before, 20)
    assert after["boxes"].tolist() == [[15, 2, 19, 6], [0, 0, 19.75, 7]]
    assert torch.equal(after["masks"][1, 0, 4, 3], masks[1, 0, 4, 16])
    assert (after["labels"].tolist(), after["scores"].tolist()) == ([3, 1], [0.5, 0.25])
    assert before["boxes"].tolist() == [[1, 2, 5, 6], [0.25, 0, 20, 7]]
    again = flip_detections(after, 20)
    assert all(torch.equal(again[key], before[key]) for key in before)
    assert flip_detections(found([], [], []), 20)["boxes"].shape == (0, 4)


def test_a_symmetric_detector_finds_the_same_once():
    images = [image_with((10, 5, 31, 20, 0.75)), image_with((60, 8, 99, 33, 0.5)), image_with()]
    alone = Bright().eval()(images)
    both = merged(Bright())(images)
    assert [len(one["boxes"]) for one in both] == [1, 1, 0]
    for one, other in zip(both, alone, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_one_who_sees_the_left_half_finds_both_sides():
    image = image_with((10, 5, 31, 20, 0.5), (60, 8, 99, 33, 0.75))
    half = Bright(end=WIDTH // 2)
    assert half.eval()([image])[0]["boxes"].tolist() == [[10, 5, 31, 20]]
    (both,) = merged(half)([image])
    assert both["boxes"].tolist() == [[60, 8, 99, 33], [10, 5, 31, 20]]  # the best first
    assert both["scores"].tolist() == [0.75, 0.5]
    for mask, box in zip(both["masks"], both["boxes"].int().tolist(), strict=True):
        rows, columns = mask[0].nonzero(as_tuple=True)
        assert [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] == box


class Scripted(nn.Module):
    """Returns one result, then another."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = [*answers]

    def forward(self, images):
        return [self.answers.pop(0) for _ in images]


def test_of_what_overlaps_the_best_of_a_class_stays():
    # in the flipped image at 100 - x: the first again, shifted by a pixel, with a better score
    one = found([[10, 0, 30, 20], [50, 0, 70, 20]], [1, 2], [0.5, 0.9])
    mirrored = found([[69, 0, 89, 20], [30, 0, 50, 20]], [1, 1], [0.6, 0.8])
    (both,) = merged(Scripted(one, mirrored))([torch.zeros(3, 20, 100)])
    assert both["boxes"].tolist() == [[50, 0, 70, 20], [50, 0, 70, 20], [11, 0, 31, 20]]
    assert both["labels"].tolist() == [2, 1, 1]  # another class at the same place stays
    (few,) = merged(Scripted(one, mirrored), detections_per_image=2)([torch.zeros(3, 20, 100)])
    assert few["scores"].tolist() == pytest.approx([0.9, 0.8])
    # IoU of 20 columns shifted by one: 19/21
    (lax,) = merged(Scripted(one, mirrored), nms_threshold=19 / 21 + 0.01)([torch.zeros(3, 20, 100)])
    assert lax["scores"].tolist() == pytest.approx([0.9, 0.8, 0.6, 0.5])


def test_it_does_not_train():
    model = HorizontalFlipTta(Bright(), nms_threshold=0.5, detections_per_image=1)
    with pytest.raises(RuntimeError, match="call eval"):
        model([image_with()])


@pytest.fixture
def detector(tiny_config):
    config = load_config(
        tiny_config,
        [
            "tta.flip=true",
            "model.faster_rcnn.nms_threshold=0.3",
            "model.faster_rcnn.detections_per_image=7",
            "model.backbone.dcn_v2_stages=[2]",
        ],
    )
    torch.manual_seed(0)
    model, _ = build_model(config.model, config.data, 2)
    return model.eval(), config


@torch.inference_mode()
def test_a_real_detector_is_merged_by_its_config(detector):
    model, config = detector
    model.double()  # where rounding suppresses no other boxes
    image = torch.rand(3, 70, 90, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tested = with_tta(model, config)
    assert (tested.nms_threshold, tested.detections_per_image) == (0.3, 7)
    (both,) = tested([image])
    assert len(both["boxes"]) == 7
    # the same by a loop over classes
    one, other = model([image])[0], model([image.flip(2)])[0]
    boxes = torch.cat([one["boxes"], 90 - other["boxes"][:, [2, 1, 0, 3]] * torch.tensor([1, 0, 1, 0])])
    boxes[len(one["boxes"]) :, [1, 3]] = other["boxes"][:, [1, 3]]
    labels, scores = torch.cat([one["labels"], other["labels"]]), torch.cat([one["scores"], other["scores"]])
    kept = []
    for label in labels.unique():
        of_class = (labels == label).nonzero().flatten()
        kept += of_class[nms(boxes[of_class], scores[of_class], 0.3)].tolist()
    best = sorted(kept, key=lambda index: -scores[index])[:7]
    assert torch.equal(both["scores"], scores[best])
    assert torch.equal(both["labels"], labels[best])
    assert torch.allclose(both["boxes"], boxes[best], atol=1e-9)
    assert any(index >= len(one["boxes"]) for index in best)
    assert any(index < len(one["boxes"]) for index in best)


def test_without_the_key_nothing_changes(detector, tiny_config):
    model, _ = detector
    assert with_tta(model, load_config(tiny_config)) is model


def test_mixed_precision(detector):
    model, config = detector
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        (both,) = with_tta(model, config)([torch.rand(3, 70, 90)])
    assert len(both["boxes"])


def test_a_detector_without_nms_is_not_merged():
    options = SimpleNamespace(score_threshold=0.0, detections_per_image=7)
    config = SimpleNamespace(tta=SimpleNamespace(flip=True), model=SimpleNamespace(detector="points", options=options))
    with pytest.raises(ValueError, match=r"tta\.flip must be false for points: it merges .* by NMS"):
        with_tta(Bright(), config)
