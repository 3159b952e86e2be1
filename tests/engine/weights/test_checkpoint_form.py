"""Checkpoints whose entries were changed: errors of this project only, for every tool and for resuming."""

import copy
import re
from pathlib import Path

import pytest
import torch

from engine.config.loading import check_config, load_config
from engine.evaluation.coco_eval import COCO_METRICS
from engine.runs.checkpoint import save_checkpoint
from engine.weights.compatibility import (
    check_categories,
    check_same_model,
    check_same_optimizer,
    check_same_step,
    check_same_tensors,
)
from engine.weights.loading import load_trained
from models.checkpoint import CheckpointError, load_checkpoint, restore_detector
from models.checkpoint_form import FORMS, RESUMED, check_form

OPTIONS = ["train.max_steps=1", "train.ema_decay=0.5", "train.optimizer=adamw"]
NAMES, IDS = ["a", "b", "c", "d", "e"], [1, 2, 3, 4, 5]


def doubled(depth: int) -> list:
    value = [1]
    for _ in range(depth):
        value = [value, value]
    return value


LOOP: dict = {}
LOOP["x"] = LOOP
CHANGES = {
    "missing": "missing",
    "None": None,
    "text": "a",
    "negative": -1,
    "huge": 10**400,
    "fraction": 0.5,
    "true": True,
    "list": [],
    "nested lists": [doubled(60)],
    "mapping": {},
    "mapping in itself": LOOP,
    "other mapping": {"x": [1, {"y": doubled(60)}]},
    "tensor": torch.ones(2, 3),
    "not finite": torch.full((2, 3), float("nan")),
}
MAPPINGS = ("ema", "optimizer", "running_mean", "metrics", "config")
SECTIONS = [("config", name) for name in ("model", "train", "data")] + [("config", "model", "backbone")]
DEEPER = [
    ("optimizer", "state", 0),
    ("optimizer", "state", 0, "exp_avg"),
    ("optimizer", "param_groups", 0),
    ("optimizer", "param_groups", 0, "params"),
    ("class_names", 0),
    ("category_ids", 0),
    ("model", "backbone.body.conv1.weight"),
    ("ema", "model", "backbone.body.conv1.weight"),
]


@pytest.fixture(scope="module")
def whole(request, tmp_path_factory, tiny_config, assembler_of_module):
    """A trainer after a step, and the whole content of its checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    figures = dict.fromkeys(COCO_METRICS, 0.5) | {"per_class": dict.fromkeys(NAMES, 0.5)}
    trainer = assembler_of_module(tiny_config, folder, OPTIONS, evaluate=lambda model: figures)
    trainer.fit()
    trainer.metrics_logger.close()
    about = {
        "format": 2,
        "config": load_config(tiny_config, OPTIONS).model_dump(mode="json"),
        "class_names": NAMES,
        "category_ids": IDS,
        "images_in_step": 2,
        "parameters": 3,
        "annotations": {"train": "x", "val": "y"},
        "revision": None,
    }
    return trainer, about | trainer.state_dict()


def places(state):
    """Return the keys of all entries to change."""
    sections = [(name,) for name in MAPPINGS] + SECTIONS
    inner = []
    for section in sections:
        value = state
        for key in section:
            value = value[key]
        inner += [(*section, key) for key in value]
    return [(key,) for key in state] + inner + DEEPER


def changed(state, place, value):
    """Return a copy of a state with one other entry; tensors are shared."""
    *parents, last = place
    top = copy.copy(state)
    section = top
    for key in parents:
        section[key] = copy.copy(section[key])
        section = section[key]
    if isinstance(value, str) and value == "missing":
        section.pop(last)
    else:
        section[last] = value
    return top


def resume(trainer, state, config, path=Path("last.pt")):
    """What a resumed run does with the content of a checkpoint."""
    check_form(state, f"checkpoint {path}", RESUMED)
    state["config"] = check_config(state["config"], str(path)).model_dump(mode="json")
    check_categories(state, NAMES, IDS, path, Path("train.json"))
    check_same_model(state, config, path)
    check_same_optimizer(state, config, path)
    check_same_step(state, 2, path)
    check_same_tensors(state, trainer.updater.model.state_dict(), path)
    trainer.load_state_dict(state)


def problem(call):
    """Return the error of this project that a call raises, "" for none; other errors are raised."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("change", CHANGES)
def test_resuming_from_changed_entries(change, whole):
    trainer, state = whole
    config = copy.deepcopy(state["config"])
    for place in places(state):
        said = problem(lambda place=place: resume(trainer, changed(state, place, CHANGES[change]), config))
        assert len(said) < 2000, place


def test_resuming_from_the_unchanged_state(whole):
    trainer, state = whole
    resume(trainer, dict(state), copy.deepcopy(state["config"]))


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_detectors_from_changed_entries(change, whole):
    """Without the config's checks, as the installed package reads a checkpoint."""
    _, state = whole
    model = state["config"]["model"]
    inner = [("config", key) for key in state["config"]] + [("config", "model", key) for key in model]
    inner += [("config", "model", name, key) for name in ("backbone", "fpn", "faster_rcnn") for key in model[name]]
    inner += [("config", "data", key) for key in ("min_size", "max_size", "resize", "eval_size")]
    for place in [(key,) for key in state] + inner + DEEPER[-4:]:
        said = problem(lambda place=place: restore_detector(changed(state, place, CHANGES[change]), Path("last.pt")))
        assert len(said) < 2000, place


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("step",), "a", "step in checkpoint .* must be a whole number from 0 to .*, got 'a'"),
        (("step",), -1, r"step in checkpoint .* must be a whole number .*, got -1"),
        (("epoch",), True, "epoch in checkpoint .* must be a whole number .*, got True"),
        (("class_names",), ["a", 2], r"class_names\.1 in checkpoint .* must be text, got 2"),
        (("category_ids",), [1, 1, 2, 3, 4], "must contain a different category id for each class"),
        (("category_ids",), "missing", r"must contain 'category_ids', a list .*; it contains \['format', "),
        (("config",), [1], "config in checkpoint .* must be a mapping of at most 100000 plain values"),
        (("config",), {"a": doubled(60)}, "config in checkpoint .* must be a mapping of at most 100000 plain values"),
        (("ema",), {"updates": 3}, "ema in checkpoint .* must be a mapping with model or None"),
        (("model",), {"w": 3}, "tensor 'w' of 'model' in checkpoint .* must be a tensor, got 3"),
        (("format",), 9, "another version of this project: its format must be 2, got 9"),
    ],
)
def test_the_message_has_the_key_the_condition_and_the_value(place, value, message, whole, tmp_path):
    _, state = whole
    small = {"conv1.weight": torch.ones(1)}
    state = dict(state, model=small, ema=None, optimizer=None)
    torch.save(changed(state, place, value), tmp_path / "last.pt")
    with pytest.raises(CheckpointError, match=message):
        load_trained(tmp_path)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("optimizer",), None, "contains no state of an optimizer"),
        (("ema",), "without updates", "must contain 'updates' in 'ema'"),
        (
            ("optimizer", "state", 0),
            {"momentum_buffer": torch.ones(1)},
            "must have exp_avg, exp_avg_sq, step for param",
        ),
        (
            ("optimizer", "state", 0, "exp_avg"),
            torch.ones(2, 3),
            r"exp_avg of parameter 0 .* has the shape \[2, 3\], but",
        ),
        (("optimizer", "param_groups", 0, "params"), [], "the saved optimizer has groups of"),
        (
            ("model", "new"),
            torch.ones(2),
            r"do not match the detector of its config; tensors: 1 unexpected, first 'new'",
        ),
        (("last_eval_step",), None, None),
        (("batch",), 10**6, None),  # the data had more images
    ],
)
def test_state_that_does_not_fit_the_training_is_named(place, value, message, whole):
    trainer, state = whole
    value = {"model": state["ema"]["model"]} if value == "without updates" else value
    said = problem(lambda: resume(trainer, changed(state, place, value), copy.deepcopy(state["config"])))
    assert re.search(message, said) if message else said == "", said
    assert trainer.batch <= trainer.epoch_steps


@pytest.mark.parametrize("kind", ["model", "ema"])
def test_weights_that_are_not_finite_are_named(kind, tmp_path):
    bad = torch.ones(3)
    bad[1] = float("inf")
    state = {"model": {"w": torch.ones(3)}, "ema": None}
    state |= {"model": {"w": bad}} if kind == "model" else {"ema": {"model": {"w": bad}}}
    save_checkpoint(tmp_path / "last.pt", state)
    match = f"tensor 'w' of '{kind}' in checkpoint .*last.pt contains 1 NaN or infinite values of 3"
    with pytest.raises(CheckpointError, match=match):
        load_checkpoint(tmp_path / "last.pt")


def test_every_entry_of_a_checkpoint_has_a_form(whole):
    _, state = whole
    assert {*state} - {*FORMS} == {"format", "revision"}
    assert {*RESUMED} <= {*FORMS}
