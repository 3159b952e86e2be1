"""Figures on resampled images against pycocotools, on files in which images really stand so many times."""

import contextlib
import io
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from engine.comparison.bootstrap import IOUS, RECALLS, bootstrap, match_images
from engine.evaluation.coco_eval import COCO_METRICS, coco_metrics

CATEGORIES = [{"id": 90, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 17, "name": "all"}]
SIDES = (12, 50, 130)  # small, medium, large


def draw_case(seed, *, images=8, tie=False, kinds=(3, 17, 90)):
    """Truth of all sizes with crowds, images without truth or detections; ids are not in order; scores may tie."""
    rng = np.random.default_rng(seed)
    ids = [int(i) for i in rng.permutation(10 * images)[:images] + 1]
    annotations, results = [], []
    scores = itertools.cycle(rng.permutation(997) / 997)
    for image_id in ids:
        for _ in range(int(rng.integers(0, 5))):
            box = [*rng.uniform(0, 60, 2), *(rng.choice(SIDES, 2) * rng.uniform(0.7, 1.3, 2))]
            kind = int(rng.choice(kinds))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": kind,
                    "bbox": [float(v) for v in box],
                    "area": float(box[2] * box[3] * 0.7),
                    "iscrowd": int(rng.random() < 0.15),
                }
            )
            for _ in range(int(rng.integers(0, 4))):
                near = np.array(box) + rng.normal(0, 0.06, 4) * [box[2], box[3], box[2], box[3]]
                score = float(next(scores))
                results.append(
                    {
                        "image_id": image_id,
                        "category_id": kind if rng.random() < 0.8 else kinds[0],
                        "bbox": near.tolist(),
                        "score": round(score, 1) if tie else score,
                    }
                )
    pictures = [{"id": i, "file_name": f"{i}.png", "width": 200, "height": 160} for i in ids]
    return {"images": pictures, "categories": CATEGORIES, "annotations": annotations}, results


def repeated(truth, results, counts, *, adjacent):
    """The same files with each image as often as `counts` says; ids of copies follow the first's, or all others."""
    order = sorted(entry["id"] for entry in truth["images"])
    pictures, annotations, detections = [], [], []
    for place, image_id in enumerate(order):
        for copy in range(int(counts[place])):
            new = place * 100 + copy if adjacent else copy * 1000 + place
            pictures.append({"id": new, "file_name": "", "width": 1, "height": 1})
            annotations += [a | {"image_id": new} for a in truth["annotations"] if a["image_id"] == image_id]
            detections += [d | {"image_id": new} for d in results if d["image_id"] == image_id]
    annotations = [a | {"id": number} for number, a in enumerate(annotations, start=1)]
    return truth | {"images": pictures, "annotations": annotations}, detections


def flat(metrics):
    return {name: metrics[name] for name in COCO_METRICS} | {
        f"AP {name}": value for name, value in metrics["per_class"].items()
    }


def assert_same(actual, expected):
    assert list(actual) == list(expected)
    for name, value in expected.items():
        assert actual[name] == pytest.approx(value, abs=1e-12, nan_ok=True), name


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), images=st.integers(1, 12), tie=st.booleans())
def test_figures_are_those_of_pycocotools(seed, images, tie):
    case = draw_case(seed, images=images, tie=tie)
    judged = match_images(*case)
    assert judged.image_ids == tuple(sorted(entry["id"] for entry in case[0]["images"]))
    assert judged.class_names == ("cat", "all", "dog")
    assert_same(judged.metrics(), flat(coco_metrics(*case)))


def test_the_cases_hold_what_they_promise():
    truth, results = draw_case(0, images=60)
    metrics = coco_metrics(truth, results)
    assert all(0.1 < metrics[name] < 0.9 for name in COCO_METRICS)
    assert {entry["iscrowd"] for entry in truth["annotations"]} == {0, 1}
    pictures = {entry["id"] for entry in truth["images"]}
    assert pictures > {entry["image_id"] for entry in truth["annotations"]} > {e["image_id"] for e in results}


def test_no_more_than_the_best_100_detections_of_an_image_count():
    rng = np.random.default_rng(0)
    truth, _ = draw_case(1, images=3)
    results = []
    for entry in truth["annotations"] * 70:
        near = np.array(entry["bbox"]) * rng.uniform(0.8, 1.2, 4)
        results.append({k: entry[k] for k in ("image_id", "category_id")} | {"bbox": near.tolist()})
        results[-1]["score"] = float(rng.random())
    counts = [sum(r["image_id"] == i["id"] and r["category_id"] == 3 for r in results) for i in truth["images"]]
    assert max(counts) > 100
    metrics = match_images(truth, results).metrics()
    assert metrics["AR1"] < metrics["AR10"] < metrics["AR100"]
    assert_same(metrics, flat(coco_metrics(truth, results)))


def test_more_detections_of_an_image_count_if_asked_for():
    truth, _ = draw_case(1, images=3)
    boxes = [[index % 15 * 12.0, index // 15 * 12.0, 9.0, 9.0] for index in range(150)]
    same = {"image_id": truth["images"][0]["id"], "category_id": 3}
    truth["annotations"] = [
        same | {"id": index, "bbox": box, "area": 81.0, "iscrowd": 0} for index, box in enumerate(boxes, start=1)
    ]
    results = [same | {"bbox": box, "score": index / 150} for index, box in enumerate(boxes)]
    found = [match_images(truth, results, max_detections=most).metrics() for most in (100, 140)]
    assert found[0]["AP"] < 0.7 < found[1]["AP"] < 1
    assert found[0]["AR100"] == found[1]["AR100"]
    for most, metrics in zip((100, 140), found, strict=True):
        assert_same(metrics, flat(coco_metrics(truth, results, max_detections=most)))


def test_without_detections_figures_are_0_and_without_truth_none():
    truth, results = draw_case(2)
    assert_same(match_images(truth, []).metrics(), flat(coco_metrics(truth, [])))
    empty = truth | {"annotations": []}
    assert all(math.isnan(value) for value in match_images(empty, results).metrics().values())
    assert all(math.isnan(value) for value in match_images(empty, []).metrics().values())
    crowds = truth | {"annotations": [a | {"iscrowd": 1} for a in truth["annotations"]]}
    assert all(math.isnan(value) for value in match_images(crowds, results).metrics().values())


def test_classes_of_one_name_are_distinguished():
    truth, results = draw_case(3)
    truth["categories"] = [{"id": 3, "name": "cat"}, {"id": 17, "name": "cat"}, {"id": 90}]
    judged = match_images(truth, results)
    assert judged.class_names == ("cat (3)", "cat (17)", "90")
    assert_same(judged.metrics(), flat(coco_metrics(truth, results)))


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_weights_are_copies_of_images(seed, counts):
    case = draw_case(seed)
    copied = repeated(*case, counts, adjacent=False)  # scores of a class differ, so that the order of images is free
    assert_same(match_images(*case).metrics(counts), flat(coco_metrics(*copied)))


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_copies_of_equal_score_stand_together(seed, counts):
    truth, results = draw_case(seed, tie=True)
    seen, distinct = set(), []
    for entry in results:  # ties are between images only
        key = (entry["image_id"], entry["category_id"], entry["score"])
        distinct += [] if key in seen else [entry]
        seen.add(key)
    copied = repeated(truth, distinct, counts, adjacent=True)
    assert_same(match_images(truth, distinct).metrics(counts), flat(coco_metrics(*copied)))


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), factor=st.sampled_from([0.25, 2, 8]))
def test_only_ratios_of_weights_count(seed, factor):
    judged = match_images(*draw_case(seed, images=5))
    weights = np.random.default_rng(seed).integers(0, 4, 5)
    assert_same(judged.metrics(factor * weights), judged.metrics(weights))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1, 2], r"`weights` must be 3 finite numbers .* got shape \(2,\), from 1.0 to 2.0"),
        ([[1, 2, 3]], r"got shape \(1, 3\)"),
        ([1, -1, 2], "of at least 0.* from -1.0 to 2.0"),
        ([1, math.nan, 2], "nan"),
        ([1, math.inf, 2], "to inf"),
        ([], r"got shape \(0,\)$"),
    ],
)
def test_wrong_weights_raise(weights, said):
    with pytest.raises(ValueError, match=said):
        match_images(*draw_case(0, images=3)).metrics(weights)


def accumulated(truth, results):
    """COCOeval's precision, (IoU, recall, category, area, detections)."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(results), "bbox")
        judge.evaluate()
        judge.accumulate()
    assert np.array_equal(judge.params.iouThrs, IOUS)
    assert np.array_equal(judge.params.recThrs, RECALLS)
    return judge.eval["precision"]


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), level=st.integers(0, 9))
def test_curves_are_those_of_pycocotools(seed, level):
    truth, results = draw_case(seed, images=6, kinds=(3, 17))
    if not results:
        return
    precision = accumulated(truth, results)[level, :, :, 0, -1]
    curves = match_images(truth, results).curves(0.5 + 0.05 * level)
    assert list(curves) == ["all", "cat", "class all", "dog"]
    for curve, expected in zip([*curves.values()][1:], precision.T, strict=True):
        np.testing.assert_allclose(curve, np.where(expected > -1, expected, np.nan), atol=1e-12)
    present = precision[:, precision[0] > -1]
    np.testing.assert_allclose(curves["all"], present.mean(1) if present.size else [math.nan] * 101, atol=1e-12)
    assert np.isnan(curves["dog"]).all()


@pytest.mark.parametrize("iou", [0.52, 0.45, 1.0, 75, math.nan])
def test_a_curve_of_another_iou_raises(iou):
    with pytest.raises(ValueError, match=r"`iou` must be one of 0.50, 0.55.* 0.95, got"):
        match_images(*draw_case(0)).curves(iou)


def worse(results, seed):
    """Other detections on the same images."""
    rng = np.random.default_rng(seed)
    return [d | {"score": float(rng.random())} for d in results if rng.random() < 0.8]


@pytest.mark.parametrize("block", [1, 40, 2**20])
def test_samples_are_figures_on_the_same_drawn_images_for_all_runs(block, monkeypatch):
    monkeypatch.setattr("engine.comparison.bootstrap._BLOCK", block)
    truth, results = draw_case(4, images=9)
    runs = [match_images(truth, r) for r in (results, worse(results, 0), results)]
    tracked = []

    def track(items):
        tracked.extend(items)
        return iter(tracked)

    sampled = bootstrap(runs, samples=30, seed=7, track=track)
    assert len(tracked) == len(runs) * len(CATEGORIES)
    draws = np.random.default_rng(7).multinomial(9, [1 / 9] * 9, size=30)
    for run, metrics in zip(runs, sampled, strict=True):
        expected = [run.metrics(counts) for counts in draws]
        assert list(metrics) == list(expected[0])
        for name, values in metrics.items():
            np.testing.assert_allclose(values, [f[name] for f in expected], atol=1e-12)
    assert all(np.array_equal(sampled[0][name], sampled[2][name], equal_nan=True) for name in sampled[0])
    assert np.abs(sampled[0]["AP"] - sampled[1]["AP"]).max() > 0.01
    assert np.ptp(sampled[0]["AP"]) > 0.05


def test_seeds_draw_other_images_and_default_to_one():
    run = match_images(*draw_case(5, images=9))
    first, again, other = (bootstrap([run], samples=20, **kw)[0]["AP"] for kw in ({}, {"seed": 0}, {"seed": 1}))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert bootstrap([], samples=2) == []
    assert bootstrap([run])[0]["AR10"].shape == (1000,)


def one_box_each(found):
    """Images of one box each, which was found or not."""
    box = {"category_id": 3, "bbox": [10.0, 20.0, 30.0, 50.0]}
    truth = {
        "images": [{"id": i} for i in range(1, len(found) + 1)],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [box | {"id": i, "image_id": i, "area": 1500, "iscrowd": 0} for i in range(1, len(found) + 1)],
    }
    return match_images(truth, [box | {"image_id": i, "score": 0.5} for i, f in enumerate(found, start=1) if f])


def test_the_spread_is_that_of_the_formula():
    found = np.arange(50) % 10 < 3
    recall = bootstrap([one_box_each(found)], samples=4000)[0]["AR100"]
    assert recall.mean() == pytest.approx(0.3, abs=0.005)
    assert recall.std() == pytest.approx(math.sqrt(0.3 * 0.7 / 50), rel=0.05)


def test_samples_without_a_box_have_no_figure():
    truth, results = draw_case(6, images=5)
    annotations = [{**truth["annotations"][0], "iscrowd": 0}]
    sampled = bootstrap([match_images(truth | {"annotations": annotations}, results)], samples=200)[0]
    share = np.isnan(sampled["AP"]).mean()
    assert share == pytest.approx(0.8**5, abs=0.1)
    assert np.array_equal(np.isnan(sampled["AP"]), np.isnan(sampled["AR1"]))


def test_runs_on_different_images_or_boxes_raise():
    truth, results = draw_case(7, images=4)
    run = match_images(truth, results)
    fewer = truth | {"images": truth["images"][1:]}
    known = {entry["id"] for entry in fewer["images"]}
    fewer["annotations"] = [a for a in truth["annotations"] if a["image_id"] in known]
    with pytest.raises(ValueError, match="run 1 has 4 images and 3 classes, run 3 has 3 and 3"):
        bootstrap([run, run, match_images(fewer, [r for r in results if r["image_id"] in known])])
    for change in (
        {"annotations": truth["annotations"][1:]},
        {"categories": [c | {"name": c["name"] + "s"} for c in CATEGORIES]},
    ):
        with pytest.raises(ValueError, match="or other ids, names or boxes"):
            bootstrap([run, match_images(truth | change, results)])


def test_too_few_images_or_samples_raise():
    with pytest.raises(ValueError, match="needs at least 2 images, got 1"):
        bootstrap([match_images(*draw_case(0, images=1))])
    with pytest.raises(ValueError, match="`samples` must be at least 1, got 0"):
        bootstrap([one_box_each([True, False])], samples=0)


def test_an_entry_that_is_no_result_raises():
    truth, results = draw_case(0)
    with pytest.raises(ValueError, match="detection 0: image_id 999 is not in the annotation file"):
        match_images(truth, [results[0] | {"image_id": 999}])


def outlined(truth, results):
    """The same with triangles in their boxes for masks."""

    def triangle(entry):
        x, y, w, h = entry["bbox"]
        (rle,) = coco_mask.frPyObjects([[x, y, x + w, y, x, y + h]], 160, 200)
        return entry | {"segmentation": rle | {"counts": rle["counts"].decode()}}

    return truth | {"annotations": [*map(triangle, truth["annotations"])]}, [*map(triangle, results)]


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(0, 3), min_size=8, max_size=8))
def test_masks_on_copies_of_images(seed, counts):
    case = outlined(*draw_case(seed))
    truth, results = repeated(*case, counts, adjacent=False)
    truth["images"] = [entry | {"width": 200, "height": 160} for entry in truth["images"]]
    metrics = coco_metrics(truth, results, masks=True)
    masks = {name: metrics[f"mask_{name}"] for name in COCO_METRICS} | {"per_class": metrics["mask_per_class"]}
    assert_same(match_images(*case, "segm").metrics(counts), flat(masks))
    assert_same(match_images(*case, "bbox").metrics(counts), flat(metrics))


def test_boxes_and_masks_are_evaluated_on_the_same_draws():
    case = outlined(*draw_case(4))
    judged = [match_images(*case, kind) for kind in ("bbox", "segm")]
    together, apart = bootstrap(judged, samples=20), [bootstrap([one], samples=20)[0] for one in judged]
    for one, other in zip(together, apart, strict=True):
        assert all(np.array_equal(one[name], other[name], equal_nan=True) for name in other)
    assert not np.array_equal(together[0]["AP75"], together[1]["AP75"], equal_nan=True)


def test_masks_that_are_not_there_are_asked_for():
    truth, results = draw_case(0)
    with pytest.raises(ValueError, match="masks cannot be evaluated: the detections have no masks"):
        match_images(outlined(truth, results)[0], results, "segm")
