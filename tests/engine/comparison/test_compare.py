"""Comparing runs from folder to verdict."""

import statistics

import numpy as np
import pytest
import torch

from data import CocoDetection, eval_transform
from engine.comparison.compare import compare_runs
from engine.comparison.detections import load_model
from engine.comparison.differences import difference, verdict
from engine.comparison.flops import count_flops
from engine.comparison.resampling import bootstrap, judge_images
from engine.comparison.runs import read_run
from engine.evaluator import coco_figures
from engine.progress import Progress


def test_figures_of_each_run(comparison, val_split, made_up):
    assert [*comparison.groups] == ["plain", "dcn", "slow"]
    assert comparison.base == "plain"
    for name, qualities in {"plain": {0: 0.3, 1: 0.3}, "dcn": {1: 0.95, 2: 0.95}, "slow": {0: 0.3}}.items():
        group = comparison.groups[name]
        assert [run.seed for run in group.runs] == [*qualities]
        for found, (seed, quality) in zip(group.figures, qualities.items(), strict=True):
            expected = coco_figures(val_split.raw, made_up(quality, seed))
            classes = {f"AP {name}": ap for name, ap in expected.pop("per_class").items()}
            assert found == pytest.approx(expected | classes, abs=1e-12, nan_ok=True)
    assert comparison.class_names == val_split.class_names


def test_differences_are_paired(comparison, val_split, made_up):
    parts = [(0.3, 0), (0.3, 1), (0.95, 1), (0.95, 2), (0.3, 0)]
    judged = [judge_images(val_split.raw, made_up(*part)) for part in parts]
    drawn = bootstrap(judged, rounds=150, seed=3)
    for figure in ("AP", "APs", "AR100", "AP star"):
        values = [one.figures()[figure] for one in judged]
        rounds = [one[figure] for one in drawn]
        expected = difference(values[:2], values[2:4], rounds[:2], rounds[2:4])
        assert comparison.differences["dcn"][figure] == pytest.approx(expected, nan_ok=True)
        expected = difference(values[:2], values[4:], rounds[:2], rounds[4:])
        found = comparison.differences["slow"][figure]
        assert found[:5] == pytest.approx(expected[:5], nan_ok=True)
        assert found[5:] == (None, None)
    assert [*comparison.differences] == [*comparison.verdicts] == ["dcn", "slow"]
    assert comparison.differences["dcn"]["AP"].low > 0
    found = comparison.differences["dcn"]["AP"]
    assert comparison.verdicts["dcn"] == verdict("plain", "dcn", "AP", found, 2, 2)
    found = comparison.differences["slow"]["AP"]
    assert comparison.verdicts["slow"] == verdict("plain", "slow", "AP", found, 2, 1)


def test_curves(comparison, val_split, made_up):
    group = comparison.groups["dcn"]
    assert [*group.curves] == [0.5, 0.75]
    for iou in (0.5, 0.75):
        expected = judge_images(val_split.raw, made_up(0.95, 2)).curves(iou)
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


def test_pictures_are_of_the_same_seed_where_there_is_one(comparison, folders):
    assert comparison.contrasted == {"dcn": (folders[1], folders[2]), "slow": (folders[0], folders[4])}
    assert 1 <= len(comparison.contrasts["dcn"]) <= 4
    assert comparison.contrasts["slow"] == []  # it detects the very same


def test_seeds_that_have_nothing_in_common(folders):
    found = compare_runs([folders[0], folders[2]], device="cpu", rounds=100, pictures=0, timed_images=0)
    assert found.contrasted == {"dcn_seed1": (folders[0], folders[2])}
    assert found.contrasts == {}


def test_what_it_was_made_with(comparison, val_split):
    settings = comparison.settings
    assert (settings["rounds"], settings["seed"], settings["images"]) == (150, 3, 6)
    assert settings["boxes"] == sum(len(boxes) for boxes in val_split.boxes.values())
    assert settings["device"].startswith("cpu (")
    assert f"torch {torch.__version__}" in settings["device"]
    assert settings["annotations_sha256"] == val_split.sha256
    assert settings["detected_anew"] == []
    assert comparison.options == {
        "model.backbone.dcn_v2_stages": ["[]", "[2]", "[]"],
        "train.lr": ["0.005", "0.005", "0.001"],
    }


def test_another_seed_of_the_bootstrap(folders, comparison):
    found = compare_runs(folders[:3], device="cpu", rounds=150, seed=4, pictures=0, timed_images=0)
    one, two = found.differences["dcn_seed1"]["AP"], comparison.differences["dcn"]["AP"]
    assert (one.images_low, one.images_high) != (two.images_low, two.images_high)


def test_one_group_alone(folders):
    found = compare_runs(folders[:2], device="cpu", pictures=4, timed_images=0)
    assert found.differences == found.verdicts == found.contrasts == {}
    group = found.groups["plain"]
    assert group.mean("AP") == statistics.fmean(group.values("AP"))


def test_timing(folders, monkeypatch):
    # real memory is measured in test_costs.py
    asked = {}
    monkeypatch.setattr(
        "engine.comparison.compare.inference_memory",
        lambda runs, image, **rest: asked.update(runs=runs, image=image.shape, **rest) or {"plain": 2**30, "dcn": None},
    )
    overrides = ["data.workers=0"]
    progress = Progress()
    labels = []
    progress.track = lambda items, label, total=None: labels.append(label) or items
    found = compare_runs(
        folders[:4], overrides=overrides, device="cpu", rounds=100, pictures=0, timed_images=2, progress=progress
    )
    assert asked == {
        "runs": {"plain": folders[0], "dcn": folders[2]},
        "image": (3, 80, 96),
        "device": torch.device("cpu"),
        "overrides": overrides,
    }
    plain, dcn = (found.groups[name].costs for name in ("plain", "dcn"))
    assert 0.001 < plain.inference_s < 1
    assert dcn.inference_s > 0
    assert (plain.inference_gib, dcn.inference_gib) == (1.0, None)
    assert labels == ["check val images", "time inference", "draw images again"]
