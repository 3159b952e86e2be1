"""Parameter groups with their learning rates and weight decays, and resuming."""

import re

import pytest
import torch
from torch import nn

from dcn import DeformConv2d
from engine.building.model import build_model
from engine.config.loading import load_config
from engine.training.optimizer import (
    NORM_LAYERS,
    OPTIMIZERS,
    build_optimizer,
    current_lrs,
    load_optimizer_state,
    scaled_lr,
    set_lrs,
    summarize_groups,
)
from models import NORMS


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
    set_lrs(optimizer, 0.5)
    set_lrs(optimizer, 0.25)
    assert current_lrs(optimizer) == pytest.approx({"backbone": 0.025, "head": 0.025, "conv_offset": 0.0025})
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
    """The factor of the offsets does not include the factor of the backbone."""
    optimizer = make(deformable, lr=0.5, backbone_lr_factor=0.2, offset_lr_factor=0.3)
    assert current_lrs(optimizer) == pytest.approx({"backbone": 0.1, "head": 0.5, "conv_offset": 0.15})


DECAYS = {"weight_decay": 0.3, "norm_weight_decay": 0.2, "bias_weight_decay": 0.1}


@pytest.mark.parametrize("norm", NORMS)
def test_each_parameter_has_the_decay_of_what_it_is(tiny_config, norm):
    """The test groups by the names of torchvision's layers, the code by their types."""
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


def test_rates_by_name_come_before_the_detectors_and_those_of_the_parts(tiny_config):
    """The test groups by a chain of conditions in the order of precedence."""
    deformable = tiny_model(tiny_config, "model.backbone.dcn_v2_stages=[1, 2]")
    optimizer = make(
        deformable,
        lr=0.5,
        backbone_lr_factor=0.2,
        lr_factors={r"rpn\..*bias$": 3.0, "rpn": 2.0, r"layer2.*conv_offset": 0.0},
        detector_lr_factors={"box_head": 4.0, "rpn": 7.0, "layer2": 5.0, "found nowhere": 6.0},
    )
    expected = {}
    for name, parameter in deformable.named_parameters():
        if not parameter.requires_grad:
            continue
        if "rpn." in name:
            group, factor = (r"rpn\..*bias$_x3", 3.0) if name.endswith("bias") else ("rpn_x2", 2.0)
        elif "layer2" in name:
            group, factor = ("layer2.*conv_offset_x0", 0.0) if "conv_offset" in name else ("layer2_x5", 5.0)
        elif "box_head" in name:
            group, factor = "box_head_x4", 4.0
        elif "conv_offset" in name:
            group, factor = "conv_offset", 0.1
        else:
            group, factor = ("backbone", 0.2) if name.startswith("backbone.body.") else ("head", 1.0)
        expected[id(parameter)] = (group, pytest.approx(0.5 * factor))
    found = {id(p): (group["name"], group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    assert found == expected
    assert len({name for name, _ in expected.values()}) == 8
    assert [group["name"] for group in optimizer.param_groups][:3] == ["backbone", "head", "conv_offset"]


def test_decays_by_name_come_before_those_of_norms_and_biases(deformable):
    optimizer = make(deformable, weight_decay_factors={"rpn": 0.0, r"bn\d\.bias$": 2.0}, **DECAYS)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in deformable.named_parameters():
        if not parameter.requires_grad:
            continue
        is_norm = ".bn" in name or ".downsample.1." in name
        wanted = 0.2 if is_norm else 0.1 if name.endswith("bias") else 0.3
        if ".bn" in name and name.endswith("bias"):
            wanted = 0.6
        if "rpn" in name:
            wanted = 0.0
        assert decays[id(parameter)] == pytest.approx(wanted), name
    assert {0.0, 0.6} < {group["weight_decay"] for group in optimizer.param_groups}


@pytest.mark.parametrize("option", ["lr_factors", "weight_decay_factors"])
def test_patterns_that_match_nothing(deformable, option):
    message = (
        f"`{option}`: 'sampling_ofsets' matches no parameter of the model; examples of names: 'backbone.body.conv1"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        make(deformable, **{option: {"rpn": 1.0, "sampling_ofsets": 0.1}})
    with pytest.raises(ValueError, match=re.escape(f"`{option}`: '(' is not a valid regular expression: missing )")):
        make(deformable, **{option: {"(": 0.1}})
    make(deformable, **{option: {"backbone.body.conv1": 0.1}})  # which is frozen


def test_going_on_keeps_what_was_gathered_and_the_options_of_now():
    weight = nn.Parameter(torch.zeros(2))
    before = OPTIMIZERS["sgd"]([{"name": "all", "params": [weight], "lr": 1.0, "weight_decay": 0.0}], 1.0, 0.9)
    weight.grad = torch.tensor([1.0, 2.0])
    set_lrs(before, 0.1)
    before.step()
    after = OPTIMIZERS["sgd"]([{"name": "all", "params": [weight], "lr": 0.5, "weight_decay": 0.1}], 0.5, 0.8)
    load_optimizer_state(after, before.state_dict())
    assert after.state[weight]["momentum_buffer"].tolist() == [1.0, 2.0]
    (group,) = after.param_groups
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.5, 0.1, 0.8)
    set_lrs(after, 0.1)
    assert group["lr"] == pytest.approx(0.05)


def test_going_on_with_other_groups(tiny_config):
    model = tiny_model(tiny_config)
    state = make(model).state_dict()
    message = r"has groups of \[30, 22\] tensors, this optimizer of \[10, 20, 11, 11\]: the same parameters"
    with pytest.raises(ValueError, match=message):
        load_optimizer_state(make(model, norm_weight_decay=0.0, bias_weight_decay=0.0), state)


def test_scaled_lr():
    assert scaled_lr(0.02, 4, 16) == pytest.approx(0.005)
    assert scaled_lr(0.02, 32, 16) == pytest.approx(0.04)
    assert scaled_lr(0.02, 4, None) == 0.02
