"""Choosing and drawing the images on which two detectors differ most."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from data import CocoDetection, eval_transform
from engine.comparison.largest_differences import by_image, choose_images, count_errors, find_largest_differences
from engine.display.drawing import draw_ground_truth
from engine.evaluation.error_types import draw_classified


@given(st.dictionaries(st.integers(0, 40), st.integers(-5, 5)), st.integers(0, 12))
def test_choice(fewer, count):
    chosen = choose_images(fewer, count)
    better = [key for key in chosen if fewer[key] > 0]
    worse = [key for key in chosen if fewer[key] < 0]
    assert chosen == better + worse  # so none without a difference
    assert better == sorted(better, key=lambda key: (-fewer[key], key))
    assert worse == sorted(worse, key=lambda key: (fewer[key], key))
    # none that was left out differs more
    all_better = [key for key in fewer if fewer[key] > 0]
    all_worse = [key for key in fewer if fewer[key] < 0]
    for kept, every in ((better, all_better), (worse, all_worse)):
        left = [abs(fewer[key]) for key in every if key not in kept]
        assert not kept or not left or max(left) <= min(abs(fewer[key]) for key in kept)
    # as many as asked for, and both sides share them as far as they can
    assert len(chosen) == min(count, len(all_better) + len(all_worse))
    assert len(worse) >= min(len(all_worse), count // 2)
    assert len(better) >= min(len(all_better), count - count // 2)


def test_results_by_image(val_split):
    first, *_, last = val_split.arrays.image_ids.tolist()
    category = val_split.category_ids[2]
    results = [
        {"image_id": last, "category_id": category, "bbox": [1.0, 2.0, 10.0, 30.0], "score": 0.25},
        {"image_id": last, "category_id": val_split.category_ids[0], "bbox": [3.0, 1.0, 5.0, 4.0], "score": 0.75},
    ]
    found = by_image(val_split, results)
    assert [*found] == val_split.arrays.image_ids.tolist()
    assert (found[first], found[last]) == ([], results)
    assert by_image(val_split, results, 0.25)[last] == results
    assert by_image(val_split, results, 0.3)[last] == results[1:]


def perfect(split, wrong=()):
    """Every object found by its own box, but in the images of `wrong` as another class."""
    names = split.category_ids
    return [
        {
            "image_id": truth["image_id"],
            "category_id": names[names.index(truth["category_id"]) - 1]
            if truth["image_id"] in wrong
            else truth["category_id"],
            "bbox": truth["bbox"],
            "score": 0.9,
        }
        for truth in split.raw["annotations"]
    ]


def test_largest_differences(val_split):
    ids = val_split.arrays.image_ids.tolist()
    counts = Counter(truth["image_id"] for truth in val_split.raw["annotations"])
    nonsense = {"image_id": ids[1], "category_id": 1, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.8}
    unsure = {"image_id": ids[3], "category_id": 1, "bbox": [0.0, 0.0, 1.0, 1.0], "score": 0.4}
    base = [*perfect(val_split, wrong=ids[4:5]), unsure]
    other = [*perfect(val_split), nonsense, nonsense]
    better, worse = find_largest_differences(val_split, base, other, 6)
    assert (better.image_id, worse.image_id) == (ids[4], ids[1])
    assert better.file_name == val_split.raw["images"][4]["file_name"]
    assert better.base == Counter({"wrong_class": counts[ids[4]], "missed": counts[ids[4]]})
    assert better.other == Counter({"true_positive": counts[ids[4]]})
    assert better.fewer_errors == 2 * counts[ids[4]] == count_errors(better.base)
    assert (worse.fewer_errors, worse.other["false_positive"], worse.base) == (
        -2,
        2,
        Counter({"true_positive": counts[ids[1]]}),
    )
    assert [one.image_id for one in find_largest_differences(val_split, base, other, 1)] == [ids[4]]
    # the other way round all is the other way round
    assert [one.image_id for one in find_largest_differences(val_split, other, base, 6)] == [ids[1], ids[4]]


def test_images(val_split):
    entry = val_split.raw["images"][2]
    (difference,) = find_largest_differences(val_split, perfect(val_split, wrong=[entry["id"]]), perfect(val_split), 4)
    image, target = CocoDetection(val_split, eval_transform())[2]
    right = {"boxes": target["boxes"], "labels": target["labels"], "scores": torch.full((len(target["labels"]),), 0.9)}
    assert torch.equal(difference.images[1], draw_classified(image, target, right, val_split.class_names))
    assert torch.equal(difference.ground_truth, draw_ground_truth(image, target, val_split.class_names))
    assert not torch.equal(difference.images[0], difference.images[1])


def test_masks_are_drawn_of_those_that_have_them(val_split, outlined):
    """One side has masks, 3 pixels beside those of the truth, of every fourth object; the other has boxes alone."""
    masked = [result | {"score": 0.9} for index, result in enumerate(outlined(3)) if index % 4 == 0]
    difference = find_largest_differences(val_split, masked, perfect(val_split), 1)[0]
    index = val_split.arrays.image_ids.tolist().index(difference.image_id)
    image, target = CocoDetection(val_split, eval_transform(), masks=True)[index]
    found = [result for result in masked if result["image_id"] == difference.image_id]
    masks = [coco_mask.decode(result["segmentation"]) for result in found]
    boxes = torch.tensor([result["bbox"] for result in found]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    detections = {
        "boxes": boxes,
        "labels": torch.tensor([1 + val_split.category_ids.index(result["category_id"]) for result in found]),
        "scores": torch.full((len(found),), 0.9),
        "masks": torch.tensor(np.array(masks)),
    }
    assert found
    drawn = draw_classified(image, target, detections, val_split.class_names)
    assert torch.equal(difference.images[0], drawn)
    assert torch.equal(difference.ground_truth, draw_ground_truth(image, target, val_split.class_names))
    plain = {key: value for key, value in target.items() if key != "masks"}
    assert not torch.equal(difference.ground_truth, draw_ground_truth(image, plain, val_split.class_names))
    # what the other found has no mask: its picture is the one without any
    all_found = plain | {"scores": torch.full((len(target["labels"]),), 0.9)}
    assert torch.equal(difference.images[1], draw_classified(image, plain, all_found, val_split.class_names))


def test_no_contrast_between_equals(val_split, made_up):
    assert find_largest_differences(val_split, made_up(0.5), made_up(0.5), 6) == []
    assert count_errors(Counter({"true_positive": 3, "duplicate": 1, "missed": 2})) == pytest.approx(3)
