"""Options that are valid alone and contradict each other."""

import pytest

from engine.config.errors import ConfigError
from engine.config.loading import load_config, with_overrides

PLACE = {"images": "a", "annotations": "b"}
LEAST = {"data": {"train": PLACE, "val": PLACE}}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.min_size=1400"], "data.min_size must be at most data.max_size, which is 1333, got 1400"),
        (["data.max_size=600"], "data.min_size must be at most data.max_size, which is 600, got 800"),
        (["data.min_size=[600, 900]", "data.max_size=800"], "data.min_size must be at most data.max_size"),
        (["data.eval_size=2000"], "data.eval_size must be at most data.max_size, which is 1333, got 2000"),
        (
            ["data.augment.copy_paste=0.5"],
            "data.augment.copy_paste must be 0 for model.detector faster_rcnn, which has no masks, got 0.5",
        ),
        (["data.augment.large_scale_jitter.scale=[2, 1]"], "scale must be a minimum and a maximum, got [2.0, 1.0]"),
        (["data.classes.keep=[a, b, a]"], "data.classes: `keep` names 'a' more than once"),
        (
            ["data.classes.merge={x: [a], y: [a]}"],
            "class 'a' must have one new name, got it in `merge.x` and `merge.y`",
        ),
        (["model.retinanet.negative_iou=0.6"], "negative_iou must be at most model.retinanet.positive_iou"),
    ],
)
def test_both_options_are_named(overrides, said):
    with pytest.raises(ConfigError) as caught:
        load_config(LEAST, overrides)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.min_size=1333"],
        ["data.min_size=2000", "data.resize=stretch"],
        ["data.eval_size=2000", "data.resize=letterbox"],
        ["data.augment.large_scale_jitter.scale=[1, 1]"],
        ["data.augment.copy_paste=0.5", "model.detector=mask_rcnn"],
        ["data.classes.merge={x: [a, x], y: [b]}", "data.classes.rename.c=d", "data.classes.keep=[x, d]"],
    ],
)
def test_options_that_agree(overrides):
    load_config(LEAST, overrides)


def test_the_config_of_a_checkpoint_still_loads():
    assert with_overrides(LEAST | {"data": LEAST["data"] | {"max_size": 600}}, [], "old.pt").data.max_size == 600
