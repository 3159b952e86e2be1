"""Matches equal those of pycocotools, for random detections with crowd regions, equal scores and equal boxes."""

import random

import numpy as np
import pytest

from data import to_rle
from engine.evaluation import match_results
from engine.evaluation.box_matches import match_boxes


def random_data(seed: int, images: int = 7, classes: int = 2) -> tuple[dict, list[dict]]:
    """Boxes on a coarse grid with coarse scores, so that many are equal; ids have gaps and are not sorted."""
    draw = random.Random(seed)

    def box() -> list[float]:
        return [
            draw.randint(0, 4) * 10.0,
            draw.randint(0, 4) * 10.0,
            draw.randint(3, 5) * 10.0,
            draw.randint(3, 5) * 10.0,
        ]

    image_ids = draw.sample(range(100), images)
    category_ids = draw.sample(range(50), classes)
    truth = {
        "images": [{"id": i, "width": 120, "height": 120} for i in image_ids],
        "categories": [{"id": c, "name": f"class {c}"} for c in category_ids],
        "annotations": [],
    }
    results = []
    for image in image_ids:
        for _ in range(draw.randint(0, 12)):
            entry = {"image_id": image, "category_id": draw.choice(category_ids), "bbox": box()}
            area, crowd = entry["bbox"][2] * entry["bbox"][3], int(draw.random() < 0.3)
            truth["annotations"].append(entry | {"id": len(truth["annotations"]) + 1, "area": area, "iscrowd": crowd})
        results += [
            {
                "image_id": image,
                "category_id": draw.choice(category_ids),
                "bbox": box(),
                "score": draw.randint(1, 9) / 10,
            }
            for _ in range(draw.randint(0, 25))
        ]
    draw.shuffle(results)
    return truth, results


def of_pycocotools(truth: dict, results: list[dict]) -> list[tuple]:
    """Return image, class, score, the object of the match or 0, and whether it is ignored, of every detection."""
    evaluation = match_results(truth, results)
    names = {category["id"]: category["name"] for category in truth["categories"]}
    every = [found for found in evaluation.evalImgs if found and found["aRng"] == evaluation.params.areaRng[0]]
    return sorted(
        (found["image_id"], names[found["category_id"]], score, 0 if ignored else int(match), bool(ignored))
        for found in every
        for score, match, ignored in zip(found["dtScores"], found["dtMatches"][0], found["dtIgnore"][0], strict=True)
    )


@pytest.mark.parametrize("seed", range(12))
def test_matches_are_those_of_pycocotools(seed):
    truth, results = random_data(seed)
    matches = match_boxes(truth, results)
    objects = [entry for entry in truth["annotations"] if not entry["iscrowd"]]
    objects = [*sorted(entry["id"] for entry in objects), 0]  # in the order of the images, which is that of the ids
    found = zip(matches.images, matches.classes, matches.scores, matches.partners, matches.ignored, strict=True)
    assert sorted(
        (matches.image_ids[image], matches.class_names[label], score, objects[partner], bool(ignored))
        for image, label, score, partner, ignored in found
    ) == of_pycocotools(truth, results)


def test_only_the_best_detections_of_a_class_in_an_image_count():
    truth, _ = random_data(0)
    truth["categories"], image = truth["categories"][:2], truth["images"][0]["id"]
    first, second = (category["id"] for category in truth["categories"])
    truth["annotations"] = []
    entry = {"image_id": image, "bbox": [0, 0, 10, 10]}
    results = [entry | {"category_id": first, "score": (k % 97 + 1) / 100} for k in range(150)]
    results.append(entry | {"category_id": second, "score": 0.001})
    matches = match_boxes(truth, results)
    assert len(matches.scores) == 101
    kept = sorted(result["score"] for result in results[:-1])[-100:]
    assert sorted(matches.scores) == [0.001, *kept]
    assert len(match_boxes(truth, results, max_detections=200).scores) == 151


def test_pairs_are_all_boxes_of_an_image_that_overlap():
    """Against a loop over all pairs; crowd regions are not part of the pairs."""
    truth, results = random_data(3)
    matches = match_boxes(truth, results)

    def iou(a, b):
        width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
        height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
        inner = max(width, 0) * max(height, 0)
        return inner / (a[2] * a[3] + b[2] * b[3] - inner)

    expected = sorted(
        (result["image_id"], result["category_id"], result["score"], entry["category_id"], round(overlap, 9))
        for result in results
        for entry in truth["annotations"]
        if entry["image_id"] == result["image_id"] and not entry["iscrowd"]
        if (overlap := iou(result["bbox"], entry["bbox"])) >= 0.1
    )
    ids = sorted(category["id"] for category in truth["categories"])
    assert len(expected) > 50
    assert expected == sorted(
        (
            matches.image_ids[matches.images[detection]],
            ids[matches.classes[detection]],
            matches.scores[detection],
            ids[matches.true_classes[index]],
            round(overlap, 9),
        )
        for (detection, index), overlap in zip(matches.pairs, matches.ious, strict=True)
    )
    assert (matches.images[matches.pairs[:, 0]] == matches.true_images[matches.pairs[:, 1]]).all()


def test_nothing_detected_and_nothing_annotated():
    truth, results = random_data(1)
    without = match_boxes(truth, [])
    assert len(without.scores) == len(without.pairs) == 0
    assert without.objects.sum() == sum(not entry["iscrowd"] for entry in truth["annotations"])
    blank = match_boxes(truth | {"annotations": []}, results)
    assert blank.objects.tolist() == [0, 0]
    assert (blank.partners == -1).all()
    assert not blank.ignored.any()
    assert blank.empty_images.tolist() == [*range(len(truth["images"]))]


def test_a_result_without_a_box_has_the_box_around_its_mask():
    truth = {
        "images": [{"id": 1, "width": 20, "height": 20}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 4, 8, 6], "area": 48, "iscrowd": 0}],
    }
    mask = np.zeros((20, 20), np.uint8)
    mask[4:10, 2:10] = 1
    polygon = [[2, 4, 10, 4, 10, 10, 2, 10]]
    result = {"image_id": 1, "category_id": 1, "segmentation": to_rle(polygon, (20, 20)), "score": 0.5}
    assert match_boxes(truth, [result]).ious.tolist() == [1.0]
