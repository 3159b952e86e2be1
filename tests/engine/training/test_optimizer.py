"""Parameter groups, the schedule against numbers worked out by hand, and going on."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from dcn import DeformConv2d
from engine.building.model import build_model
from engine.config.loading import load_config
from engine.training.optimizer import (
    NORM_LAYERS,
    OPTIMIZERS,
    SCHEDULES,
    build_optimizer,
    build_schedule,
    current_lrs,
    load_optimizer_state,
    scaled_lr,
    set_schedule_step,
    summarize_groups,
)
from models import NORMS


def tiny_model(tiny_config, *overrides) -> nn.Module:
    config = load_config(tiny_config, overrides)
    return build_model(config.model, config.data, 5)[0]


def make(model, name="sgd", **options):
    defaults = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "offset_lr_factor": 0.1}
    return build_optimizer(name, model, **(defaults | options))


def schedule_of(optimizer, **options):
    defaults = {"kind": "step", "total_steps": 20, "steps_per_epoch": 4, "unit": "epoch", "warmup_steps": 0}
    defaults |= {"warmup_factor": 0.5, "milestones": [], "gamma": 0.1, "min_lr_factor": 0.0}
    return build_schedule(optimizer, **(defaults | options))


def one_weight(lr: float = 2.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([{"name": "all", "params": [nn.Parameter(torch.zeros(1))], "lr": lr}])


def rates(optimizer, schedule, steps: int) -> list[float]:
    """Rates of the next `steps` steps, as a loop of training meets them."""
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


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
    schedule_of(optimizer, warmup_steps=4)
    rows = summarize_groups(optimizer)
    assert [row.name for row in rows] == ["backbone", "head", "conv_offset"]
    # 27 channels out of 128 in, 3x3, and the bias, in each of two layers
    assert rows[2][1:3] == (4, 2 * 27 * (128 * 9 + 1))
    assert [row.lr for row in rows] == pytest.approx([0.1, 0.1, 0.01])  # not those of the warm-up
    assert [row.weight_decay for row in rows] == [1e-4] * 3
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in deformable.parameters() if p.requires_grad)


def test_an_unknown_optimizer(deformable):
    with pytest.raises(ValueError, match="unknown optimizer 'sdg', known: sgd, adamw"):
        make(deformable, "sdg")


def test_rate_of_the_backbone(deformable):
    """The factor of the offsets is not over that of the backbone, in which they are."""
    optimizer = make(deformable, lr=0.5, backbone_lr_factor=0.2, offset_lr_factor=0.3)
    assert current_lrs(optimizer) == pytest.approx({"backbone": 0.1, "head": 0.5, "conv_offset": 0.15})


DECAYS = {"weight_decay": 0.3, "norm_weight_decay": 0.2, "bias_weight_decay": 0.1}


@pytest.mark.parametrize("norm", NORMS)
def test_each_parameter_has_the_decay_of_what_it_is(tiny_config, norm):
    """Sorted here by the names that torchvision gives its layers, there by their types."""
    model = tiny_model(tiny_config, f"model.backbone.norm={norm}", "model.backbone.dcn_v2_stages=[2]")
    optimizer = make(model, backbone_lr_factor=0.5, **DECAYS)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    seen = set()
    for name, parameter in model.named_parameters():
        is_norm = ".bn" in name or ".downsample.1." in name
        kind = "norm" if is_norm else name.rsplit(".")[-1]
        assert decays[id(parameter)] == {"norm": 0.2, "bias": 0.1, "weight": 0.3}[kind], name
        seen.add(kind)
    assert seen == {"weight", "bias"} | ({"norm"} if norm != "frozen_bn" else set())

    listed = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    assert set(listed) == {id(p) for p in model.parameters() if p.requires_grad}
    rows = summarize_groups(optimizer)
    assert [(row.name, row.weight_decay) for row in rows] == [
        *[("backbone", decay) for decay in ([0.3] if norm == "frozen_bn" else [0.3, 0.2])],
        *[("head", decay) for decay in (0.3, 0.1)],
        *[("conv_offset", decay) for decay in (0.3, 0.1)],
    ]
    assert current_lrs(optimizer) == pytest.approx({"backbone": 0.05, "head": 0.1, "conv_offset": 0.01})


@pytest.mark.parametrize("decay", [None, 1e-4])
def test_without_decays_of_their_own_the_groups_are_the_parts(deformable, decay):
    optimizer = make(deformable, norm_weight_decay=decay, bias_weight_decay=decay)
    assert [group["name"] for group in optimizer.param_groups] == ["backbone", "head", "conv_offset"]
    named = {id(p): key for key, p in deformable.named_parameters() if p.requires_grad}
    listed = [[named[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    offsets = [key for key in named.values() if ".conv_offset." in key]
    body = [key for key in named.values() if key.startswith("backbone.body.") and key not in offsets]
    assert listed == [body, [key for key in named.values() if not key.startswith("backbone.body.")], offsets]


def small_model(**parts: nn.Module) -> nn.Module:
    model = nn.Module()
    model.backbone = nn.Module()
    model.backbone.body = nn.Conv2d(2, 2, 1)
    for name, part in parts.items():
        setattr(model, name, part)
    return model


def test_every_norm_of_torch_is_known():
    kinds = {
        kind
        for name, kind in vars(nn).items()
        if "Norm" in name and "Lazy" not in name and name not in ("LocalResponseNorm", "CrossMapLRN2d")
    }
    assert set(NORM_LAYERS) == kinds
    for kind in kinds:
        affine = {"affine": True} if "Instance" in kind.__name__ else {}
        norm = kind(*((2, 4) if kind is nn.GroupNorm else (4,)), **affine)
        groups = make(small_model(norm=norm), **DECAYS).param_groups
        own = {id(p) for p in norm.parameters()}
        assert own
        assert [own & {id(p) for p in group["params"]} for group in groups if group["weight_decay"] == 0.2] == [own]


def test_a_shared_parameter_is_listed_once():
    one, other = nn.Linear(3, 3), nn.Linear(3, 3)
    other.weight, other.bias = one.weight, one.bias
    optimizer = make(small_model(one=one, other=other), **DECAYS)
    assert [(row.name, row.tensors, row.parameters, row.weight_decay) for row in summarize_groups(optimizer)] == [
        ("backbone", 1, 4, 0.3),
        ("backbone", 1, 2, 0.1),
        ("head", 1, 9, 0.3),
        ("head", 1, 3, 0.1),
    ]


def test_step_schedule_with_numbers_worked_out_by_hand():
    options = {"warmup_steps": 2, "milestones": [1.5, 2]}
    optimizer = one_weight()
    seen = rates(optimizer, schedule_of(optimizer, **options), 10)
    assert seen == pytest.approx([1.0, 1.5, 2, 2, 2, 2, 0.2, 0.2, 0.02, 0.02])


def test_a_drop_within_the_warmup():
    optimizer = one_weight(1.0)
    schedule = schedule_of(optimizer, unit="step", warmup_steps=4, warmup_factor=0.2, milestones=[2], gamma=0.5)
    assert rates(optimizer, schedule, 5) == pytest.approx([0.2, 0.4, 0.3, 0.4, 0.5])


@pytest.mark.parametrize(
    ("unit", "milestones", "drops"),
    [("step", [3, 7, 40], [3, 7, 40]), ("epoch", [0.75, 1.75, 10], [3, 7, 40]), ("epoch", [], [])],
)
def test_step_schedule_is_that_of_torch(unit, milestones, drops):
    ours, theirs = one_weight(), one_weight()
    schedule = schedule_of(ours, unit=unit, milestones=milestones, gamma=0.3)
    expected = rates(theirs, MultiStepLR(theirs, drops, gamma=0.3), 21)
    assert rates(ours, schedule, 21) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("least", [0.0, 0.05])
def test_cosine_schedule_is_that_of_torch(least):
    ours, theirs = one_weight(), one_weight()
    schedule = schedule_of(ours, kind="cosine", unit="step", total_steps=20, min_lr_factor=least)
    expected = rates(theirs, CosineAnnealingLR(theirs, 20, eta_min=2.0 * least), 21)
    assert rates(ours, schedule, 21) == pytest.approx(expected, abs=1e-12)
    assert expected[-1] == pytest.approx(2.0 * least, abs=1e-12)


def test_cosine_schedule_that_falls_once_an_epoch():
    ours, theirs = one_weight(), one_weight()
    schedule = schedule_of(ours, kind="cosine", total_steps=20, min_lr_factor=0.1)
    expected = rates(theirs, CosineAnnealingLR(theirs, 5, eta_min=0.2), 6)
    seen = rates(ours, schedule, 21)
    assert seen == pytest.approx([rate for rate in expected for _ in range(4)][:21], rel=1e-12)


def test_cosine_schedule_stays_down_after_its_end():
    optimizer = one_weight()
    schedule = schedule_of(optimizer, kind="cosine", unit="step", total_steps=5, min_lr_factor=0.25)
    assert rates(optimizer, schedule, 9)[5:] == pytest.approx([0.5] * 4)


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_warmup_in_front_of_every_schedule(kind, unit):
    options = {"kind": kind, "unit": unit, "milestones": [3], "min_lr_factor": 0.1}
    warm, cold = one_weight(), one_weight()
    seen = rates(warm, schedule_of(warm, warmup_steps=5, warmup_factor=0.2, **options), 20)
    full = rates(cold, schedule_of(cold, **options), 20)
    rise = [0.2, 0.36, 0.52, 0.68, 0.84] + [1.0] * 15
    assert seen == pytest.approx([a * b for a, b in zip(rise, full, strict=True)], rel=1e-12)


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("step", [0, 1, 6, 19])
def test_a_schedule_goes_on_exactly_where_it_was(kind, unit, step):
    options = {"kind": kind, "unit": unit, "milestones": [2, 4], "warmup_steps": 3, "min_lr_factor": 0.1}
    whole, later = one_weight(), one_weight()
    expected = rates(whole, schedule_of(whole, **options), 21)
    schedule = schedule_of(later, **options)
    set_schedule_step(schedule, step)
    assert rates(later, schedule, 21 - step) == expected[step:]


def test_a_schedule_goes_on_at_the_rates_of_now():
    later = one_weight(3.0)
    schedule = schedule_of(later, warmup_steps=2, milestones=[1.5, 2])
    set_schedule_step(schedule, 5)
    assert rates(later, schedule, 4) == pytest.approx([3, 0.3, 0.3, 0.03])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cosin"}, "unknown schedule 'cosin', known: step, cosine"),
        ({"unit": "epochs"}, "unknown unit of the schedule 'epochs', known: epoch, step"),
        ({"milestones": [2, 1.5]}, r"`milestones` must rise, got \[2, 1.5\]"),
        ({"milestones": [1, 2, 2]}, r"`milestones` must rise, got \[1, 2, 2\]"),
        ({"milestones": [2, 2.5], "unit": "step"}, r"counted in steps must be whole numbers, got \[2, 2.5\]"),
    ],
)
def test_bad_schedules(options, message):
    with pytest.raises(ValueError, match=message):
        schedule_of(one_weight(), **options)


def test_milestones_are_for_the_step_schedule_alone():
    schedule_of(one_weight(), kind="cosine", milestones=[2.5, 1], unit="step")


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


def test_going_on_with_other_groups(tiny_config):
    model = tiny_model(tiny_config)
    state = make(model).state_dict()
    message = r"has groups of \[30, 22\] tensors and this one of \[10, 20, 11, 11\]; what is trained, and which"
    with pytest.raises(ValueError, match=message):
        load_optimizer_state(make(model, norm_weight_decay=0.0, bias_weight_decay=0.0), state)


def test_scaled_lr():
    assert scaled_lr(0.02, 4, 16) == pytest.approx(0.005)
    assert scaled_lr(0.02, 32, 16) == pytest.approx(0.04)
    assert scaled_lr(0.02, 4, None) == 0.02
