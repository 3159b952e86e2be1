"""Log messages at the start and the end of a run that the tests of the tools do not cover."""

import logging
from collections import Counter
from types import SimpleNamespace

import pytest

from engine.building.report import describe_batch, show_end, show_model
from engine.config.loading import load_config
from engine.display.progress import log
from engine.evaluation.coco_eval import COCO_METRICS


@pytest.mark.parametrize(
    ("overrides", "processes", "said"),
    [
        (
            ["train.batch_size=2"],
            8,
            "effective batch 2 x 1 x 8 = 16, lr 0.02 (batch_size x grad_accum_steps x processes; ",
        ),
        (["train.batch_size=2", "train.grad_accum_steps=4"], 1, "effective batch 2 x 4 x 1 = 8, lr 0.01 ("),
        (["train.base_batch_size=null", "train.lr=0.5"], 2, "effective batch 16 x 1 x 2 = 32, lr 0.5 ("),
    ],
)
def test_the_batch_and_its_rate(overrides, processes, said):
    text = describe_batch(load_config("r50_dcn.yaml", overrides), processes)
    assert text.startswith(said)
    assert text.endswith("lr 0.5 is meant for any batch)" if "train.lr=0.5" in overrides else "0.02 is meant for 16)")


@pytest.mark.parametrize(
    ("overrides", "warned"),
    [
        ([], True),
        (["model.weights=there.pt"], False),
        (["model.backbone.weights=DEFAULT"], False),
        (["model.backbone.norm=gn"], False),
    ],
)
def test_frozen_norms_without_weights_are_warned_of(overrides, warned, caplog):
    """Also for a resumed run, for which no weights are loaded."""
    base = ["model.backbone.weights=null", "model.backbone.norm=frozen_bn"]
    show_model(load_config("r50_dcn.yaml", [*base, *overrides]), None, [])
    assert ("does not normalise" in caplog.text) == warned


@pytest.mark.parametrize("count", [0, 1, 5])
def test_skipped_images_are_reported_at_the_end(tmp_path, caplog, count):
    caplog.set_level(logging.INFO, logger=log.name)
    unreadable = Counter({f"image {n}.png is gone": n + 1 for n in range(count)})
    metrics = dict.fromkeys(COCO_METRICS, 0.25)
    show_end(SimpleNamespace(metrics=metrics, step=9, best_ap=0.5, unreadable=unreadable), tmp_path)
    assert "done: AP 25.0, AP50 25.0, AP75 25.0 after 9 steps (best AP 50.0)" in caplog.text
    assert ("could not be read" in caplog.text) == bool(count)
    metrics["mask_AP"] = 0.125
    show_end(SimpleNamespace(metrics=metrics, step=9, best_ap=0.5, unreadable=Counter()), tmp_path)
    assert "done: AP 25.0, AP50 25.0, AP75 25.0, mask AP 12.5 after 9 steps (best box AP 50.0)" in caplog.text
    if count:
        total = count * (count + 1) // 2
        images = "1 image" if count == 1 else f"{count} images"
        times = "1 time" if total == 1 else f"{total} times"
        assert f"skipped {images} that could not be read, {times} in total: image 0.png" in caplog.text
        assert caplog.text.count("is gone") == min(count, 3)


@pytest.mark.parametrize(
    ("overrides", "stages", "is_random"),
    [
        ([], None, False),
        (["model.backbone.frozen_stages=3"], "[2, 3]", False),
        (["model.backbone.frozen_stages=2", "model.backbone.weights=null"], "[2]", True),
        (["model.backbone.frozen_stages=0", "model.backbone.weights=null"], None, True),
        (["model.backbone.frozen_stages=0", "model.backbone.weights=null", "model.weights=there.pt"], None, False),
        (["model.backbone.frozen_stages=-1", "model.backbone.weights=null"], None, False),
    ],
)
def test_frozen_deformable_stages_cause_warnings(caplog, overrides, stages, is_random):
    show_model(load_config("r50_dcn.yaml", overrides), None, [])
    assert ("are deformable and frozen" in caplog.text) == bool(stages)
    assert f"stages {stages or ''}" in caplog.text or not stages
    assert ("freezes random weights" in caplog.text) == is_random
