"""COCO metrics against pycocotools used as its authors do."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params

from data import load_annotations
from data.files import without_nan
from engine.evaluation.coco_eval import COCO_METRICS, coco_metrics

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
    figures = coco_metrics(ground_truth, detections, backend="pycocotools")
    assert [figures[name] for name in COCO_METRICS] == stats
    for category in CATEGORIES:
        alone = by_hand(ground_truth, detections, tmp_path, [category["id"]])[0]
        assert figures["per_class"][category["name"]] == pytest.approx(alone, abs=1e-12)
    assert list(figures["per_class"]) == ["cat", "hen", "dog"]
    again = coco_metrics(ground_truth, detections, backend="pycocotools")  # nothing of the truth was used up
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


def test_a_category_without_a_name_has_its_id_as_name():
    ground_truth = truth((1, 3, [10, 10, 20, 20]))
    ground_truth["categories"] = [{"id": 3, "name": None}, {"id": 4, "name": None}]
    assert list(coco_metrics(ground_truth, [])["per_class"]) == ["3", "4"]


def many_objects(count, scores=0.9):
    """Ground truth of `count` objects of a class in an image, and the same detections."""
    boxes = [[index % 20 * 9.0 + 2, index // 20 * 9.0 + 2, 7.0, 7.0] for index in range(count)]
    ground_truth = truth(*((1, 3, box) for box in boxes), (1, 90, [10, 10, 100, 100]))
    return ground_truth, [found(1, 3, box, scores) for box in boxes]


def test_more_detections_count_if_asked_for():
    ground_truth, detections = many_objects(150)
    assert coco_metrics(ground_truth, detections)["per_class"]["cat"] == pytest.approx(0.66, abs=0.02)
    figures = coco_metrics(ground_truth, detections, max_detections=300)
    assert figures["per_class"]["cat"] == pytest.approx(1)
    assert figures["max_detections"] == 300
    assert (figures["AR100"], figures["AR300"]) == pytest.approx((1 / 3, 0.5))
    with pytest.raises(ValueError, match="`max_detections` must be at least 100, got 99"):
        coco_metrics(ground_truth, detections, max_detections=99)


@pytest.mark.parametrize("seed", range(2))
def test_more_detections_count_as_in_pycocotools(seed, monkeypatch, tmp_path):
    rng = np.random.default_rng(seed)
    ground_truth, detections = many_objects(160)
    for entry in detections:
        entry |= {"bbox": [v + float(rng.normal(0, 0.4)) for v in entry["bbox"]], "score": float(rng.random())}
    monkeypatch.setattr(Params, "__init__", with_200_detections(Params.__init__))
    # pycocotools prints AP only for 100 detections, its first figure; all others follow the parameter
    expected = by_hand(ground_truth, detections, tmp_path)
    monkeypatch.undo()
    figures = coco_metrics(ground_truth, detections, max_detections=200)
    names = ["AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR200", "ARs", "ARm", "ARl"]
    assert [figures[name] for name in names] == pytest.approx(nan_for_none(expected[1:]), nan_ok=True, rel=1e-12)
    assert 0.1 < figures["AP"] < figures["AP50"]


def with_200_detections(original):
    def init(self, *args, **options):
        original(self, *args, **options)
        self.maxDets = [1, 10, 200]

    return init


def nan_for_none(values):
    return [math.nan if value == -1 else value for value in values]
