"""Samples of several images: every pixel is of the image that it should be of, with the boxes and masks there."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from data import CocoDetection, ImageError, Mixing, TrainTransform, load_annotations, train_loader
from data.mixing import copy_paste, mixup, mosaic

FILL = (1, 2, 3)


def sample(size, boxes, colour, *, masks=True, ignored=()):
    """An image of one colour, whose objects are brighter by 1, 2, ...; masks are the boxes."""
    height, width = size
    image = torch.full((3, height, width), colour, dtype=torch.uint8)
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.arange(len(boxes)) + colour,
        "image_id": colour,
    }
    found = torch.zeros(len(boxes), height, width, dtype=torch.uint8)
    for index, (left, top, right, bottom) in enumerate(boxes):
        image[:, top:bottom, left:right] = colour + 1 + index
        found[index, top:bottom, left:right] = 1
    if ignored:
        target["ignored"] = torch.tensor(ignored, dtype=torch.float32)
    return image, target | ({"masks": found} if masks else {})


def box_of(where: torch.Tensor) -> list[int]:
    rows, columns = where.nonzero().unbind(1)
    return [columns.min().item(), rows.min().item(), columns.max().item() + 1, rows.max().item() + 1]


@pytest.mark.parametrize("masks", [True, False])
def test_a_mosaic_shows_four_images_with_their_objects(masks, monkeypatch):
    """Without a change of size, every pixel of an object is in its box and mask, and boxes are exact."""
    monkeypatch.setattr("data.mixing._SCALE_RANGE", (1.0, 1.0))
    sizes = [(40, 51), (30, 70), (64, 33), (20, 20)]
    boxes = [[[3, 4, 30, 20]], [[0, 0, 9, 9], [20, 10, 69, 30]], [[2, 2, 31, 60]], []]
    colours = [20, 60, 100, 140]
    counts = set()
    for seed in range(30):
        torch.manual_seed(seed)
        parts = [sample(*each, masks=masks) for each in zip(sizes, boxes, colours, strict=True)]
        image, target = mosaic(parts, FILL, 0.0)
        assert (tuple(image.shape), image.dtype, target["image_id"]) == ((3, 40, 51), torch.uint8, 20)
        assert {*image[0].unique().tolist()} <= {1, *(c + n for c in colours for n in range(3))}
        expected = {}
        for colour, own in zip(colours, boxes, strict=True):
            for index in range(len(own)):
                if (where := image[0] == colour + 1 + index).any():
                    expected[colour + index] = where
        assert {*target["labels"].tolist()} == {*expected}
        for index, label in enumerate(target["labels"].tolist()):
            assert target["boxes"][index].tolist() == box_of(expected[label])
            if masks:
                assert torch.equal(target["masks"][index] == 1, expected[label])
        counts.add(len(expected))
    assert len(counts) > 1


def test_the_images_of_a_mosaic_are_scaled_with_their_objects():
    torch.manual_seed(0)
    for _ in range(20):
        image, target = mosaic([sample((60, 80), [[20, 15, 60, 45]], 50 * index + 30) for index in range(4)], FILL, 0.0)
        for label, box, mask in zip(target["labels"].tolist(), target["boxes"], target["masks"], strict=True):
            where = (image[0].int() - label - 1).abs() < 1
            assert box.tolist() == pytest.approx(box_of(where), abs=1.01)
            assert (mask.bool() ^ where).sum() <= 2 * (where.shape[0] + where.shape[1])


def test_pasted_objects_cover_what_is_below():
    below = sample((30, 40), [[0, 0, 10, 10], [20, 5, 38, 25], [12, 12, 14, 14]], 10, ignored=[[1, 2, 3, 4]])
    above = sample((50, 30), [[5, 0, 10, 10], [12, 12, 30, 50], [0, 40, 9, 50]], 100)
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = copy_paste(below, above, 0.4)
        shown = {label: image[0] == label + 1 for label in (10, 11, 12, 100, 101)}
        labels = target["labels"].tolist()
        seen.add(tuple(labels))
        assert 102 not in labels, "it is below the image"
        for label, where in shown.items():
            whole = {10: 100, 11: 360, 12: 4, 100: 50, 101: 18 * 18}[label]
            if label in labels:
                index = labels.index(label)
                assert torch.equal(target["masks"][index] == 1, where)
                assert target["boxes"][index].tolist() == box_of(where)
                assert where.sum() >= 0.4 * whole
            else:
                assert where.sum() < 0.4 * whole
        assert target["ignored"].tolist() == [[1, 2, 3, 4]]
    assert len(seen) == 4, "each of two objects is pasted or not"
    assert below[0].max() == 13, "the image that is read is not changed"


@pytest.mark.parametrize("masks", [True, False])
def test_mixup_is_a_weighted_mean_with_the_objects_of_both(masks):
    one = sample((30, 40), [[0, 0, 10, 10]], 10, masks=masks)
    other = sample(
        (20, 60), [[5, 5, 20, 15], [45, 1, 59, 9], [38, 1, 59, 9]], 100, masks=masks, ignored=[[50, 0, 60, 9]]
    )
    weights = []
    for seed in range(40):
        torch.manual_seed(seed)
        image, target = mixup(one, other, FILL, 0.2)
        whole = torch.tensor(FILL, dtype=torch.float32)[:, None, None].repeat(1, 30, 40)
        whole[:, :20] = other[0][:, :, :40].float()
        mean = (one[0].float() - whole).flatten()
        weight = ((image.float() - whole).flatten() @ mean / (mean @ mean)).item()
        assert (image - (weight * one[0] + (1 - weight) * whole)).abs().max() < 0.9
        weights.append(weight)
        assert target["labels"].tolist() == [10, 100], "a tenth and nothing of the others are visible"
        assert target["boxes"].tolist() == [[0, 0, 10, 10], [5, 5, 20, 15]]
        assert target["ignored"].tolist() == [[40, 0, 40, 9]]
        if masks:
            assert target["masks"].sum(dim=(1, 2)).tolist() == [100, 150]
    assert 0.1 < min(weights) < 0.4
    assert 0.6 < max(weights) < 0.9


@pytest.fixture
def dataset(tmp_path):
    """Nine images of different sizes, one of them damaged, each with two objects with masks."""
    images, annotations = [], []
    for index in range(9):
        width, height = 40 + index, 50 - index
        pixels = np.random.default_rng(index).integers(0, 255, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": width, "height": height})
        for left in (2, 20):
            outline = [left, 3, left + 12, 3, left + 12, 30, left, 25]
            annotations.append(
                {"image_id": index, "category_id": 1, "bbox": [left, 3, 12, 27], "segmentation": [outline]}
            )
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = load_annotations(tmp_path, tmp_path / "a.json", invalid_masks="raise")
    (tmp_path / "4.png").write_bytes(b"damaged")
    transform = TrainTransform(lambda *_: [], FILL, scale=0.3)
    return CocoDetection(found, transform, masks=True, mixing=Mixing(mosaic=0.6, copy_paste=0.6, mixup=0.3, fill=FILL))


def drawn(dataset, **options):
    """Image and target of each seed."""
    options = {"batch_size": 2, "workers": 0, "seed": 3, "on_unreadable_image": "skip"} | options
    found, messages = {}, []
    for batch in train_loader(dataset, **options):
        messages += batch.unreadable
        for image, target in zip(batch.images, batch.targets, strict=True):
            if batch.weight:
                found[target["seed"]] = image, target
    return found, messages


def test_partners_are_the_same_in_every_split_and_in_worker_processes(dataset):
    whole, messages = drawn(dataset)
    assert len(messages) > 1, "the damaged image, and images whose partner it is"
    assert all("4.png" in message for message in messages)
    assert len(whole) + len(messages) == 9
    workers, _ = drawn(dataset, workers=2)
    halves = [drawn(dataset, batch_size=1, processes=2, rank=rank) for rank in (0, 1)]
    split = halves[0][0] | halves[1][0]
    assert sorted(halves[0][1] + halves[1][1]) == sorted(messages)
    for other in (workers, split):
        assert other.keys() == whole.keys()
        for seed, (image, target) in whole.items():
            assert torch.equal(other[seed][0], image)
            for key in ("boxes", "labels", "masks"):
                assert torch.equal(other[seed][1][key], target[key])


def test_a_damaged_partner_stops_if_images_must_be_read(dataset):
    with pytest.raises(ImageError, match=r"4\.png"):
        drawn(dataset, on_unreadable_image="raise")


def test_weak_epochs_have_no_partners(dataset):
    dataset.mixing = Mixing(mosaic=1.0, fill=FILL)
    plain = CocoDetection.__new__(CocoDetection)
    plain.__dict__ |= dataset.__dict__ | {"mixing": None}
    for mixed, expected in ((False, True), (True, False)):
        torch.manual_seed(1)
        image, _ = dataset.read(0, strong=mixed)
        torch.manual_seed(1)
        assert torch.equal(image, plain.read(0, strong=mixed)[0]) == expected
