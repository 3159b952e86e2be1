"""Parameter groups, the schedule against numbers worked out by hand, and going on."""

import pytest
import torch
from torch import nn

from dcn import DeformConv2d
from engine.build import build_model
from engine.config_file import load_config
from engine.optimizer import (
    OPTIMIZERS,
    build_optimizer,
    build_schedule,
    current_lrs,
    load_optimizer_state,
    lr_factor,
    scaled_lr,
    set_schedule_step,
    summarize_groups,
)


def tiny_model(tiny_config, *overrides) -> nn.Module:
    config = load_config(tiny_config, overrides)
    return build_model(config.model, config.data, 5)[0]


def make(model, name="sgd", **options):
    defaults = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "offset_lr_factor": 0.1}
    return build_optimizer(name, model, **(defaults | options))


@pytest.fixture
def deformable(tiny_config):
    return tiny_model(tiny_config, "model.backbone.dcn_v2_stages=[2]", "model.backbone.frozen_stages=1")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_groups(deformable, name):
    optimizer = make(deformable, name)
    groups = {group["name"]: {id(p) for p in group["params"]} for group in optimizer.param_groups}
    assert list(groups) == ["backbone", "head", "conv_offset"]

    layers = [module for module in deformable.modules() if isinstance(module, DeformConv2d)]
    assert len(layers) == 2
    assert groups["conv_offset"] == {id(p) for layer in layers for p in layer.conv_offset.parameters()}
    assert {id(layer.weight) for layer in layers} <= groups["backbone"]
    named = dict(deformable.named_parameters())
    body = {id(p) for key, p in named.items() if key.startswith("backbone.body.") and p.requires_grad}
    assert groups["backbone"] == body - groups["conv_offset"]

    # every trainable parameter once, and no other
    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in named.values() if p.requires_grad}
    frozen = [key for key, p in named.items() if not p.requires_grad]
    assert frozen
    assert all(key.startswith(("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1")) for key in frozen)


def test_rates_and_options(deformable):
    optimizer = make(deformable, lr=0.3, momentum=0.8, weight_decay=0.05)
    assert current_lrs(optimizer) == pytest.approx({"backbone": 0.3, "head": 0.3, "conv_offset": 0.03})
    assert all((group["momentum"], group["weight_decay"]) == (0.8, 0.05) for group in optimizer.param_groups)
    optimizer = make(deformable, "adamw", momentum=0.8, offset_lr_factor=0.0)
    assert current_lrs(optimizer)["conv_offset"] == 0.0
    assert all(group["betas"] == (0.8, 0.999) for group in optimizer.param_groups)


def test_a_plain_network_has_no_group_of_offsets(tiny_config):
    assert [group["name"] for group in make(tiny_model(tiny_config)).param_groups] == ["backbone", "head"]


def test_summary(deformable):
    optimizer = make(deformable)
    build_schedule(optimizer, steps_per_epoch=5, warmup_steps=4, warmup_factor=0.5, milestones=[], gamma=0.1)
    rows = summarize_groups(optimizer)
    assert [row.name for row in rows] == ["backbone", "head", "conv_offset"]
    # 27 channels out of 128 in, 3x3, and the bias, in each of two layers
    assert rows[2][1:3] == (4, 2 * 27 * (128 * 9 + 1))
    assert [row.lr for row in rows] == pytest.approx([0.1, 0.1, 0.01])  # not those of the warm-up
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in deformable.parameters() if p.requires_grad)


def test_an_unknown_optimizer(deformable):
    with pytest.raises(ValueError, match="unknown optimizer 'sdg', known: sgd, adamw"):
        make(deformable, "sdg")


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.2), (1, 0.4), (2, 0.6), (3, 0.8), (4, 1.0), (9, 1.0), (10, 0.1), (14, 0.1), (15, 0.01), (99, 0.01)],
)
def test_lr_factor(step, factor):
    assert lr_factor(step, 4, 0.2, [10, 15], 0.1) == pytest.approx(factor, rel=1e-12)


def test_lr_factor_without_warmup_and_with_a_drop_inside_it():
    assert lr_factor(0, 0, 0.001, [], 0.1) == 1.0
    assert lr_factor(2, 4, 0.2, [2], 0.5) == pytest.approx(0.3)


def test_schedule():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"name": "all", "params": [weight], "lr": 2.0}])
    options = {"steps_per_epoch": 4, "warmup_steps": 2, "warmup_factor": 0.5, "milestones": [1.5, 2], "gamma": 0.1}
    schedule = build_schedule(optimizer, **options)
    seen = []
    for _ in range(10):
        seen.append(current_lrs(optimizer)["all"])
        optimizer.step()
        schedule.step()
    assert seen == pytest.approx([1.0, 1.5, 2, 2, 2, 2, 0.2, 0.2, 0.02, 0.02])

    later = torch.optim.SGD([{"name": "all", "params": [weight], "lr": 3.0}])
    schedule = build_schedule(later, **options)
    set_schedule_step(schedule, 5)
    seen = []
    for _ in range(4):
        seen.append(current_lrs(later)["all"])
        later.step()
        schedule.step()
    assert seen == pytest.approx([3, 0.3, 0.3, 0.03])


def test_going_on_keeps_what_was_gathered_and_the_options_of_now():
    weight = nn.Parameter(torch.zeros(2))
    before = OPTIMIZERS["sgd"]([{"name": "all", "params": [weight], "lr": 1.0, "weight_decay": 0.0}], 1.0, 0.9)
    weight.grad = torch.tensor([1.0, 2.0])
    before.step()
    after = OPTIMIZERS["sgd"]([{"name": "all", "params": [weight], "lr": 0.5, "weight_decay": 0.1}], 0.5, 0.8)
    load_optimizer_state(after, before.state_dict())
    assert after.state[weight]["momentum_buffer"].tolist() == [1.0, 2.0]
    (group,) = after.param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.5, 0.1, 0.8)


def test_scaled_lr():
    assert scaled_lr(0.02, 4, 16) == pytest.approx(0.005)
    assert scaled_lr(0.02, 32, 16) == pytest.approx(0.04)
    assert scaled_lr(0.02, 4, None) == 0.02
