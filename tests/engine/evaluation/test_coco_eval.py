"""COCO metrics against pycocotools used as its authors do."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data import load_annotations
from data.files import without_nan
from engine.evaluation.coco_eval import COCO_METRICS, coco_metrics
from engine.evaluation.results import check_results

CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 17, "name": "hen"}]


def truth(*annotations, images=1):
    """A COCO file with annotations given as (image id, category id, bbox) or with a dict of more."""
    listed = []
    for index, (image_id, category_id, bbox, *more) in enumerate(annotations, start=1):
        entry = {"id": index, "image_id": image_id, "category_id": category_id, "bbox": bbox, "iscrowd": 0}
        listed.append(entry | {"area": bbox[2] * bbox[3]} | (more[0] if more else {}))
    images = [{"id": n, "file_name": f"{n}.png", "width": 200, "height": 160} for n in range(1, images + 1)]
    return {"images": images, "categories": CATEGORIES, "annotations": listed}


def found(image_id, category_id, bbox, score=0.9):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


def random_case(seed):
    """Ground truth of all sizes with crowd regions, and detections near it and elsewhere."""
    rng = np.random.default_rng(seed)
    boxes, detections = [], []
    for image_id in range(1, 9):
        for _ in range(int(rng.integers(0, 7))):
            side = rng.choice([12, 50, 130], 2)
            x, y, w, h = (float(v) for v in [*rng.uniform(0, 60, 2), *(side * rng.uniform(0.7, 1.3, 2))])
            category = int(rng.choice([3, 17, 90]))
            boxes.append((image_id, category, [x, y, w, h], {"iscrowd": int(rng.random() < 0.15), "area": w * h * 0.7}))
            for _ in range(int(rng.integers(0, 4))):
                near = [v + float(rng.normal(0, 0.08 * s)) for v, s in zip((x, y, w, h), (w, h, w, h), strict=True)]
                kind = category if rng.random() < 0.8 else 3
                detections.append(found(image_id, kind, near, float(rng.random())))
    return truth(*boxes, images=8), detections


def by_hand(ground_truth, detections, folder, categories=None):
    """Evaluate as in the manual of pycocotools: both from files."""
    (folder / "gt.json").write_text(json.dumps(ground_truth))
    (folder / "dt.json").write_text(json.dumps(detections))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "gt.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(folder / "dt.json")), "bbox")
        if categories:
            evaluation.params.catIds = categories
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_those_of_pycocotools(seed, tmp_path):
    ground_truth, detections = random_case(seed)
    stats = by_hand(ground_truth, detections, tmp_path)
    assert 0.1 < stats[0] < 0.9
    figures = coco_metrics(ground_truth, detections)
    assert [figures[name] for name in COCO_METRICS] == stats
    for category in CATEGORIES:
        alone = by_hand(ground_truth, detections, tmp_path, [category["id"]])[0]
        assert figures["per_class"][category["name"]] == pytest.approx(alone, abs=1e-12)
    assert list(figures["per_class"]) == ["cat", "hen", "dog"]
    again = coco_metrics(ground_truth, detections)  # nothing of the truth was used up
    assert [again[name] for name in COCO_METRICS] == stats


def test_perfect_detections_have_ap_1_and_none_have_ap_0():
    boxes = [(1, 3, [10, 20, 30, 40]), (1, 90, [50, 50, 100, 100]), (2, 17, [0, 0, 20, 20])]
    ground_truth = truth(*boxes, images=2)
    figures = coco_metrics(ground_truth, [found(*box) for box in boxes])
    assert [figures[name] for name in ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")] == pytest.approx([1.0] * 7)
    assert figures["per_class"] == pytest.approx({"cat": 1, "hen": 1, "dog": 1})
    assert all(isinstance(figures[name], float) for name in COCO_METRICS)
    figures = coco_metrics(ground_truth, [])
    assert [figures[name] for name in COCO_METRICS] == [0.0] * 12
    assert figures["per_class"] == {"cat": 0.0, "hen": 0.0, "dog": 0.0}


def test_an_annotation_of_id_0_is_counted(tmp_path):
    raw = truth((1, 3, [10, 20, 30, 40]))
    raw["annotations"][0]["id"] = 0
    (tmp_path / "val.json").write_text(json.dumps(raw))
    assert by_hand(raw, [found(1, 3, [10, 20, 30, 40])], tmp_path)[0] == 0  # the trap of pycocotools
    split = load_annotations(tmp_path, tmp_path / "val.json", check_images="never")
    assert coco_metrics(split.raw, [found(1, 3, [10, 20, 30, 40])])["AP"] == pytest.approx(1)


def test_detections_in_a_crowd_are_no_false_positives():
    boxes = [(1, 3, [10, 10, 20, 20]), (1, 3, [60, 10, 80, 100], {"iscrowd": 1})]
    detections = [found(1, 3, [10, 10, 20, 20], 0.5), found(1, 3, [70, 20, 30, 30], 0.9)]
    assert coco_metrics(truth(*boxes), detections)["AP"] == pytest.approx(1)
    boxes[1][3]["iscrowd"] = 0
    assert coco_metrics(truth(*boxes), detections)["AP"] < 0.6


def test_without_truth_there_is_no_figure():
    figures = coco_metrics(truth(), [found(1, 3, [1, 2, 3, 4])])
    assert all(math.isnan(figures[name]) for name in COCO_METRICS)
    assert all(math.isnan(ap) for ap in figures["per_class"].values())
    written = json.loads(json.dumps(without_nan(figures), allow_nan=False))
    assert written == dict.fromkeys(COCO_METRICS) | {"per_class": {"cat": None, "hen": None, "dog": None}}
    some = coco_metrics(truth((1, 3, [10, 10, 20, 20])), [])
    assert (some["AP"], some["APs"]) == (0, 0)
    assert math.isnan(some["APl"])
    assert math.isnan(some["per_class"]["dog"])


def test_classes_with_the_same_name_are_distinct():
    ground_truth = truth((1, 3, [10, 10, 20, 20]))
    ground_truth["categories"] = [{"id": 3, "name": "cat"}, {"id": 4, "name": "cat"}, {"id": 5}]
    assert list(coco_metrics(ground_truth, [])["per_class"]) == ["cat (3)", "cat (4)", "5"]


GOOD = found(1, 3, [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("results", "said"),
    [
        ({"AP": 1}, "must be a list of detections, got dict"),
        (3, "must be a list of detections, got int"),
        ([GOOD, 1], "detection 1: expected a mapping .* got 1"),
        ([GOOD, GOOD, None], "detection 2: expected a mapping .* got None"),
        ([GOOD | {"image_id": 99}], "detection 0: image_id 99 is not in the annotation file"),
        ([GOOD, GOOD | {"category_id": 1}], "detection 1: category_id 1 is not in the annotation file"),
        ([{"category_id": 3, "bbox": [1, 2, 3, 4], "score": 1}], "detection 0: image_id None"),
        ([GOOD | {"image_id": "1"}], "image_id '1'"),
        ([GOOD | {"image_id": [1]}], r"image_id \[1\]"),
        ([GOOD | {"bbox": [1, 2, 3]}], r"detection 0: expected bbox \[x, y, width, height\].*got bbox \[1, 2, 3\]"),
        ([GOOD | {"bbox": None}], "got bbox None"),
        ([GOOD | {"bbox": [1, 2, 3, math.nan]}], "finite numbers, got bbox .*nan"),
        ([GOOD | {"score": math.inf}], "score inf"),
        ([GOOD | {"score": "high"}], "score 'high'"),
        ([{k: v for k, v in GOOD.items() if k != "score"}], "score None"),
    ],
)
def test_bad_results_name_the_entry(results, said):
    with pytest.raises(ValueError, match=said):
        coco_metrics(truth((1, 3, [10, 10, 20, 20])), results)
    with pytest.raises(ValueError, match=said):
        check_results(truth(), results)
