"""A schedule that is longer than the run, and other options that then have no effect."""

import pytest

from engine.building.schedule_effects import options_beyond_run, schedule_warnings
from engine.config.loading import load_config
from engine.training.schedule import build_schedule
from tests.engine.config.test_unused import CONFIGS

INTERVALS = ("log_every_steps", "checkpoint_every_steps", "images_every_steps")
QUIET = ["train.warmup_steps=2", "train.milestones=[1.5]"]


@pytest.fixture
def load(tiny_config):
    """`load(override, ...)`: the tiny config with overrides."""
    return lambda *overrides: load_config(tiny_config, [*QUIET, *overrides])


@pytest.mark.parametrize(
    ("warmup", "steps", "percent"),
    [(500, 8, "1.5"), (500, 500, "99.8"), (500, 499, "99.6"), (7, 8, None), (0, 1, None)],
)
def test_a_warm_up_that_does_not_end(load, warmup, steps, percent):
    config = load(f"train.warmup_steps={warmup}", "train.warmup_factor=0.001")
    found = schedule_warnings(config, steps=steps, epoch_steps=4, images=99, processes=1)
    if percent is None:
        assert found == []
    else:
        (message,) = found
        assert (
            f"the warm-up of {warmup} steps (train.warmup_steps) is not shorter than the run of {steps} steps"
            in message
        )
        assert f"reaches {percent} %" in message


@pytest.mark.parametrize(("images", "processes", "is_warned"), [(12, 1, False), (12, 2, True), (11, 1, True)])
def test_steps_of_more_images_than_there_are(load, images, processes, is_warned):
    config = load("train.batch_size=4", "train.grad_accum_steps=3")
    found = schedule_warnings(config, steps=9, epoch_steps=1, images=images, processes=processes)
    assert [message.split(" (")[0] for message in found] == [f"a step has {12 * processes} images"] * is_warned


@pytest.mark.parametrize(
    ("overrides", "found"),
    [
        ([], {}),
        # 2 epochs of 6 steps
        (["train.milestones=[1,2]"], {"train.milestones": "12 steps in 2 epochs, and 2 (epoch) come after its end"}),
        (["train.milestones=[8,11]"], {"train.milestones": "and 8, 11 (epoch) come"}),
        (["train.milestones=[11,12]", "train.lr_schedule_unit=step"], {"train.milestones": "and 12 (step) come"}),
        (["train.gamma=1"], {"train.milestones": "train.gamma is 1"}),
        (["train.milestones=[]"], {}),
        (["train.lr_schedule=cosine"], {}),
        (["train.lr_schedule=cosine", "train.max_steps=6"], {"train.lr_schedule": "set lr_schedule_unit=step"}),
        (["train.lr_schedule=cosine", "train.max_steps=6", "train.lr_schedule_unit=step"], {}),
        (["train.warmup_factor=1"], {"train.warmup_steps": "train.warmup_factor is 1"}),
        (["train.ema_decay=0.9"], {"train.ema_decay": "the first 80 steps use a smaller decay"}),
        (["train.ema_decay=0.5"], {}),
        (["train.early_stopping_patience=1"], {"train.early_stopping_patience": "2 evaluations, and the first one"}),
        (["train.early_stopping_patience=1", "train.epochs=3", "train.milestones=[1]"], {}),
        (["train.max_steps=12"], {}),
        (["train.max_steps=13"], {"train.max_steps": "ends the run earlier, after 12 steps"}),
        (["data.weak_last_epochs=1", "data.augment.color_jitter=0.1"], {}),
        (
            ["data.weak_last_epochs=2", "data.augment.color_jitter=0.1"],
            {"data.augment.color_jitter": "weak_last_epochs 2 covers all"},
        ),
        (
            ["data.weak_last_epochs=1", "data.augment.color_jitter=0.1", "train.max_steps=6", "train.milestones=[]"],
            {"data.weak_last_epochs": "6 steps in 1 epoch, and the first 1 of train.epochs are not weak"},
        ),
        (["train.eval_every_epochs=2"], {}),
        (["train.eval_every_epochs=3"], {"train.eval_every_epochs": "it is 3, and the run has 12 steps in 2 epochs"}),
        (["train.checkpoint_every_steps=12", "train.images_every_steps=1000"], {}),
        *[([f"train.{name}=13"], {f"train.{name}": "12 steps"}) for name in INTERVALS],
    ],
)
def test_options_beyond_the_run(load, overrides, found):
    config = load(*overrides)
    steps = min(config.train.epochs * 6, config.train.max_steps or 999)
    why = options_beyond_run(config, steps=steps, epoch_steps=6)
    assert why.keys() == found.keys()
    for key, reason in found.items():
        assert reason in why[key]


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("milestone", [1, 2, 3, 11, 12, 13])
def test_a_milestone_is_named_if_and_only_if_it_changes_nothing(load, unit, milestone):
    config = load(f"train.milestones=[{milestone}]", f"train.lr_schedule_unit={unit}")
    keys = ("warmup_steps", "warmup_factor", "milestones", "gamma", "min_lr_factor")
    options = {key: getattr(config.train, key) for key in keys} | {"unit": unit}
    schedule = build_schedule(kind="step", total_steps=12, steps_per_epoch=6, **options)
    is_named = "train.milestones" in options_beyond_run(config, steps=12, epoch_steps=6)
    assert is_named == (schedule(11) == 1)


@pytest.mark.parametrize("name", CONFIGS)
def test_no_config_warns_on_coco(name):
    """Of 117,266 images, with the batch of each config."""
    config = load_config(name)
    if "coco" not in config.data.train.images:
        pytest.skip("for another data set")
    epoch_steps = 117_266 // (config.train.batch_size * config.train.grad_accum_steps)
    steps = min(config.train.epochs * epoch_steps, config.train.max_steps or 10**9)
    assert options_beyond_run(config, steps=steps, epoch_steps=epoch_steps) == {}
    assert schedule_warnings(config, steps=steps, epoch_steps=epoch_steps, images=117_266, processes=1) == []
