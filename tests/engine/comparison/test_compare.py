"""Comparing runs from folder to verdict."""

import contextlib
import io
import json
import math
import statistics

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from data import CocoDetection, eval_transform
from engine.building.data import read_split
from engine.comparison.bootstrap import bootstrap, match_images
from engine.comparison.compare import compare_runs
from engine.comparison.detections import load_model
from engine.comparison.differences import conclusion, difference
from engine.comparison.flops import count_flops
from engine.comparison.largest_differences import find_largest_differences
from engine.comparison.loaded_runs import read_run
from engine.config.loading import load_config
from engine.display.progress import Progress
from engine.evaluation.coco_eval import COCO_METRICS, coco_metrics


def test_figures_of_each_run(comparison, val_split, made_up):
    assert [*comparison.groups] == ["plain", "dcn", "slow"]
    assert comparison.base == "plain"
    for name, qualities in {"plain": {0: 0.3, 1: 0.3}, "dcn": {1: 0.95, 2: 0.95}, "slow": {0: 0.3}}.items():
        group = comparison.groups[name]
        assert [run.seed for run in group.runs] == [*qualities]
        for found, (seed, quality) in zip(group.metrics, qualities.items(), strict=True):
            expected = coco_metrics(val_split.raw, made_up(quality, seed))
            classes = {f"AP {name}": ap for name, ap in expected.pop("per_class").items()}
            assert found == pytest.approx(expected | classes, abs=1e-12, nan_ok=True)
    assert comparison.class_names == val_split.class_names


def test_differences_are_paired(comparison, val_split, made_up):
    parts = [(0.3, 0), (0.3, 1), (0.95, 1), (0.95, 2), (0.3, 0)]
    judged = [match_images(val_split.raw, made_up(*part)) for part in parts]
    drawn = bootstrap(judged, samples=150, seed=3)
    for metric in ("AP", "APs", "AR100", "AP star"):
        values = [one.metrics()[metric] for one in judged]
        rounds = [one[metric] for one in drawn]
        expected = difference(values[:2], values[2:4], rounds[:2], rounds[2:4])
        assert comparison.differences["dcn"][metric] == pytest.approx(expected, nan_ok=True)
        expected = difference(values[:2], values[4:], rounds[:2], rounds[4:])
        found = comparison.differences["slow"][metric]
        assert found[:5] == pytest.approx(expected[:5], nan_ok=True)
        assert found[5:] == (None, None)
    assert [*comparison.differences] == [*comparison.conclusions] == ["dcn", "slow"]
    assert comparison.differences["dcn"]["AP"].low > 0
    found = comparison.differences["dcn"]["AP"]
    assert comparison.conclusions["dcn"] == conclusion("plain", "dcn", "AP", found, 2, 2)
    found = comparison.differences["slow"]["AP"]
    assert comparison.conclusions["slow"] == conclusion("plain", "slow", "AP", found, 2, 1)


def test_curves(comparison, val_split, made_up):
    group = comparison.groups["dcn"]
    assert [*group.curves] == [0.5, 0.75]
    for iou in (0.5, 0.75):
        expected = match_images(val_split.raw, made_up(0.95, 2)).curves(iou)
        assert group.curves[iou][1].keys() == expected.keys()
        np.testing.assert_array_equal(group.curves[iou][1]["all"], expected["all"])


def test_costs(comparison, folders, val_split):
    costs = comparison.groups["dcn"].costs
    image = CocoDetection(val_split, eval_transform())[0][0]
    expected = count_flops(load_model(read_run(folders[2])), [image / 255])
    assert (costs.flops, costs.deformable_flops) == (expected.total, expected.deformable)
    assert expected.deformable > 0
    assert comparison.groups["plain"].costs.deformable_flops == 0
    assert costs.parameters == 832_035
    assert (costs.step_s, costs.data_share, costs.training_gib) == pytest.approx((0.3, 0.1, 3.0))
    assert (costs.inference_s, costs.inference_gib) == (None, None)


def test_images_are_of_the_same_seed_where_there_is_one(comparison, folders):
    assert comparison.shown_runs == {"dcn": (folders[1], folders[2]), "slow": (folders[0], folders[4])}
    assert 1 <= len(comparison.largest_differences["dcn"]) <= 4
    assert comparison.largest_differences["slow"] == []  # it detects the very same


def test_seeds_that_have_nothing_in_common(folders):
    found = compare_runs([folders[0], folders[2]], device="cpu", bootstrap_samples=100, num_images=0, timed_images=0)
    assert found.shown_runs == {"dcn_seed1": (folders[0], folders[2])}
    assert found.largest_differences == {}


def test_what_it_was_made_with(comparison, val_split):
    settings = comparison.settings
    assert (settings["bootstrap_samples"], settings["seed"], settings["images"]) == (150, 3, 6)
    assert settings["boxes"] == len(val_split.raw["annotations"])
    assert settings["device"].startswith("cpu (")
    assert f"torch {torch.__version__}" in settings["device"]
    assert settings["annotations_sha256"] == val_split.sha256
    assert settings["detected_now"] == []
    assert comparison.options == {
        "model.backbone.dcn_v2_stages": ["[]", "[2]", "[]"],
        "train.lr": ["0.005", "0.005", "0.001"],
    }


def test_another_seed_of_the_bootstrap(folders, comparison):
    found = compare_runs(folders[:3], device="cpu", bootstrap_samples=150, seed=4, num_images=0, timed_images=0)
    one, two = found.differences["dcn_seed1"]["AP"], comparison.differences["dcn"]["AP"]
    assert (one.images_low, one.images_high) != (two.images_low, two.images_high)


def test_one_group_alone(folders):
    found = compare_runs(folders[:2], device="cpu", num_images=4, timed_images=0)
    assert found.differences == found.conclusions == found.largest_differences == {}
    group = found.groups["plain"]
    assert group.mean("AP") == statistics.fmean(group.values("AP"))


def test_runs_are_compared_by_one_number_of_detections(finish_run, tmp_path):
    two = [finish_run(tmp_path / "a"), finish_run(tmp_path / "b", "eval.max_detections=300", "seed=1")]
    options = {"device": "cpu", "bootstrap_samples": 100, "num_images": 0, "timed_images": 0}
    with pytest.raises(ValueError, match=r"eval\.max_detections must be the same .*; add eval\.max_detections=300"):
        compare_runs(two, **options)
    found = compare_runs(two, overrides=["eval.max_detections=300"], **options)
    assert found.settings["detected_now"] == [], "the checkpoint has the AP of 100 detections"


def test_timing(folders, monkeypatch):
    # real memory is measured in test_costs.py
    monkeypatch.setattr("engine.comparison.compare.inference_memory", lambda models, *_, **__: {"plain": 2**30})
    overrides = ["data.num_workers=0"]
    progress = Progress()
    labels = []
    progress.track = lambda items, label, total=None: labels.append(label) or items
    found = compare_runs(
        folders[:4],
        overrides=overrides,
        device="cpu",
        bootstrap_samples=100,
        num_images=0,
        timed_images=2,
        progress=progress,
    )
    plain, dcn = (found.groups[name].costs for name in ("plain", "dcn"))
    assert 0.001 < plain.inference_s < 1
    assert dcn.inference_s > 0
    assert (plain.inference_gib, dcn.inference_gib) == (1.0, None)
    assert labels == ["check val images", "time inference", "bootstrap"]


def by_hand(split, results, kind):
    """The 12 metrics as pycocotools is used by its authors; without boxes beside them it knows the masks' own areas."""
    alone = [{key: value for key, value in entry.items() if key != "bbox"} for entry in results]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(split.path))
        judge = COCOeval(truth, truth.loadRes(results if kind == "bbox" else alone), kind)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return [math.nan if value == -1 else value for value in judge.stats.tolist()]


MASK_METRICS = [f"mask_{name}" for name in COCO_METRICS[:6]]


def test_masks_differ_where_boxes_do_not(mask_comparison, val_split, outlined):
    found = mask_comparison.differences["shifted"]
    assert all(found[name].value == 0 for name in COCO_METRICS if not math.isnan(found[name].value))
    assert found["AP"].low == found["AP"].high == 0
    good, shifted = (by_hand(val_split, outlined(shift), "segm")[:6] for shift in (0, 3))
    assert good[0] - 0.2 > shifted[0] > 0.05
    values = [found[name].value for name in MASK_METRICS]
    assert values == pytest.approx(np.subtract(shifted, good).tolist(), abs=1e-12, nan_ok=True)
    groups = mask_comparison.groups
    assert [groups["good"].mean(name) for name in MASK_METRICS] == pytest.approx(good, abs=1e-12, nan_ok=True)
    boxes = by_hand(val_split, outlined(3), "bbox")
    assert [groups["shifted"].mean(name) for name in COCO_METRICS] == pytest.approx(boxes, abs=1e-12, nan_ok=True)


@pytest.mark.slow
def test_intervals_of_masks_are_of_the_same_draws(mask_comparison, val_split, outlined):
    draws = np.random.default_rng(3).multinomial(6, [1 / 6] * 6, size=150)
    good, shifted = (match_images(val_split.raw, outlined(shift), "segm") for shift in (0, 3))
    for name in ("AP", "AP75", "APs"):
        rounds = [shifted.metrics(weights)[name] - good.metrics(weights)[name] for weights in draws]
        found = mask_comparison.differences["shifted"][f"mask_{name}"]
        ends = np.nanquantile(rounds, [0.025, 0.975])
        assert [found.low, found.high] == pytest.approx(ends.tolist(), abs=1e-9), name
        assert found.low < found.value < found.high < 0


def test_a_run_without_masks_is_compared_by_boxes(mask_comparison, mask_folders):
    assert not [name for name in mask_comparison.differences["boxes"] if name.startswith("mask")]
    assert mask_comparison.differences["boxes"]["AP"].value < 0
    boxes, good = mask_comparison.groups["boxes"], mask_comparison.groups["good"]
    assert (boxes.has_masks, good.has_masks, mask_comparison.has_masks) == (False, True, True)
    assert math.isnan(boxes.mean("mask_AP"))
    assert not [name for name in boxes.metrics[0] if name.startswith("mask")]
    turned = compare_runs(
        [mask_folders[2], mask_folders[0]], device="cpu", bootstrap_samples=100, num_images=0, timed_images=0
    )
    assert turned.base == "boxes"
    assert turned.differences["good"].keys() == turned.groups["boxes"].metrics[0].keys()
    assert turned.groups["good"].mean("mask_AP") == good.mean("mask_AP") > 0.5
    assert "ask" not in turned.conclusions["good"]


def test_masks_have_a_sentence_of_their_own(mask_comparison):
    found = mask_comparison.differences["shifted"]
    first, second = (
        conclusion("good", "shifted", name, found[key], 1, 1) for name, key in (("AP", "AP"), ("Mask AP", "mask_AP"))
    )
    assert first.startswith("AP of shifted is equal to that of good within 0.1")
    assert second.startswith(f"Mask AP of shifted is {-100 * found['mask_AP'].value:.1f} lower than that of good")
    assert mask_comparison.conclusions["shifted"] == f"{first} {second}"
    assert mask_comparison.conclusions["boxes"].startswith("AP of boxes is ")
    assert "ask" not in mask_comparison.conclusions["boxes"]


def test_images_are_chosen_by_boxes_and_show_masks(mask_comparison, val_split, outlined, made_up):
    assert mask_comparison.largest_differences["shifted"] == []  # the same boxes
    shown = mask_comparison.largest_differences["boxes"]
    expected = find_largest_differences(val_split, outlined(0), made_up(0.5), 2)
    assert [one.image_id for one in shown] == [one.image_id for one in expected]
    for one, two in zip(shown, expected, strict=True):
        pairs = zip((*one.images, one.ground_truth), (*two.images, two.ground_truth), strict=True)
        assert all(torch.equal(drawn, other) for drawn, other in pairs)


def test_all_are_evaluated_by_the_objects_with_a_mask_where_one_is_evaluated_by_masks(
    finish_run, mask_options, outlined, tiny_config, shapes, tmp_path
):
    raw = json.loads((shapes / "annotations/val.json").read_text())
    raw["annotations"][0]["segmentation"] = []
    (tmp_path / "val.json").write_text(json.dumps(raw))
    options = [f"data.val.annotations={tmp_path}/val.json", "data.invalid_annotations=drop"]
    split = read_split(load_config(tiny_config, options).data, "val", masks=True)
    state = {
        "annotations": {"train": "0" * 64, "val": split.sha256},
        "metrics": coco_metrics(split.raw, outlined(0)),
    }
    boxes = [{key: value for key, value in entry.items() if key != "segmentation"} for entry in outlined(0)]
    folders = [
        finish_run(tmp_path / "boxes", *options, results=boxes, state=state),  # its config asks for no masks
        finish_run(tmp_path / "masks", *mask_options, *options, results=outlined(0), state=state),
    ]
    found = compare_runs(folders, device="cpu", bootstrap_samples=100, num_images=0, timed_images=0)
    assert found.settings["boxes"] == len(raw["annotations"]) - 1
    assert found.settings["detected_now"] == []
    assert found.groups["masks"].mean("mask_AP") == pytest.approx(state["metrics"]["mask_AP"])
