"""Optimizers and parameter groups."""

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from data.shown import shown
from dcn import DeformConv2d

# normalization layers of PyTorch with parameters
NORM_LAYERS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.RMSNorm,
)


class GroupSummary(NamedTuple):
    """A parameter group: one row of the table shown at start-up."""

    name: str
    tensors: int
    parameters: int
    lr: float
    weight_decay: float


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda groups, lr, momentum: torch.optim.SGD(groups, lr=lr, momentum=momentum),
    "adamw": lambda groups, lr, momentum: torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999)),
}

# names of the tensors that an optimizer keeps for each parameter
SLOTS: dict[type[Optimizer], set[str]] = {
    torch.optim.SGD: {"momentum_buffer"},
    torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"},
}


def build_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    momentum: float,
    weight_decay: float,
    offset_lr_factor: float,
    backbone_lr_factor: float = 1.0,
    norm_weight_decay: float | None = None,
    bias_weight_decay: float | None = None,
    lr_factors: Mapping[str, float] = MappingProxyType({}),
    weight_decay_factors: Mapping[str, float] = MappingProxyType({}),
    detector_lr_factors: Mapping[str, float] = MappingProxyType({}),
    detector_weight_decay_factors: Mapping[str, float] = MappingProxyType({}),
) -> Optimizer:
    """Build an optimizer over the trainable parameters, in named groups of equal learning rate and weight decay.

    The first pattern of `lr_factors`, then of `detector_lr_factors`, that matches the name of a parameter decides its
    group, for example "sampling_offsets_x0.1". Parameters without a match are grouped by the part of the model:

    - "backbone": the ResNet
    - "conv_offset": the layers that predict offsets and masks of deformable convolutions, anywhere in the model
    - "head": all other parameters

    Args:
        name: one of `OPTIMIZERS`.
        model: detector with a `backbone.body`.
        lr: learning rate of the head.
        momentum: momentum of SGD; first beta of AdamW.
        weight_decay: default weight decay.
        offset_lr_factor: factor on `lr` for "conv_offset" (not on the learning rate of the backbone); 0.1 in the DCNv2
            paper.
        backbone_lr_factor: factor on `lr` for "backbone".
        norm_weight_decay: weight decay of norm layers (weights and biases); None: `weight_decay`.
        bias_weight_decay: weight decay of all other biases; None: `weight_decay`.
        lr_factors: the user's factors on `lr`, by regular expression for the names of parameters (`re.search`).
        weight_decay_factors: the user's factors on `weight_decay` in the same form. They take precedence over the
            values for norm layers and biases.
        detector_lr_factors: `lr_factors` of the detector; its patterns may match nothing.
        detector_weight_decay_factors: `weight_decay_factors` of the detector; its patterns may match nothing.

    Returns:
        The optimizer. Each of its parameter groups has a "name".

    Raises:
        ValueError: if the optimizer is unknown, or a pattern of the user is not a valid regular expression or matches
            no parameter.
    """
    check_optimizer(name)
    named = dict(model.named_parameters())
    _check_patterns("lr_factors", lr_factors, [*named])
    _check_patterns("weight_decay_factors", weight_decay_factors, [*named])
    lr_factors = _in_order(lr_factors, detector_lr_factors)
    weight_decay_factors = _in_order(weight_decay_factors, detector_weight_decay_factors)
    factors = {"backbone": backbone_lr_factor, "head": 1.0, "conv_offset": offset_lr_factor}
    factors |= {f"{pattern}_x{factor:g}": factor for pattern, factor in lr_factors.items()}
    norm_decay = weight_decay if norm_weight_decay is None else norm_weight_decay
    bias_decay = weight_decay if bias_weight_decay is None else bias_weight_decay
    parts, decays = _parts(model), _decays(model, weight_decay, norm_decay, bias_decay)
    all_decays = [weight_decay, norm_decay, bias_decay]
    all_decays += [weight_decay * factor for factor in weight_decay_factors.values()]
    groups: dict[tuple[str, float], list[nn.Parameter]] = {key: [] for key in product(factors, all_decays)}
    for key, parameter in named.items():
        if not parameter.requires_grad:
            continue
        part, decay = parts[id(parameter)], decays[id(parameter)]
        if pattern := _first_match(lr_factors, key):
            part = f"{pattern}_x{lr_factors[pattern]:g}"
        if pattern := _first_match(weight_decay_factors, key):
            decay = weight_decay * weight_decay_factors[pattern]
        groups[part, decay].append(parameter)
    settings = [
        {"name": part, "params": parameters, "weight_decay": decay, "lr": lr * factors[part]}
        for (part, decay), parameters in groups.items()
        if parameters
    ]
    return OPTIMIZERS[name](settings, lr, momentum)


def _check_patterns(option: str, factors: Mapping[str, float], names: list[str]) -> None:
    """Raise `ValueError` unless every pattern is a valid regular expression that matches a name."""
    for pattern in factors:
        try:
            is_found = any(re.search(pattern, name) for name in names)
        except re.error as error:
            raise ValueError(f"`{option}`: {pattern!r} is not a valid regular expression: {error}") from None
        if not is_found:
            raise ValueError(
                f"`{option}`: {pattern!r} matches no parameter of the model; examples of names: {names[0]!r}, "
                f"{names[-1]!r}"
            )


def _in_order(first: Mapping[str, float], then: Mapping[str, float]) -> dict[str, float]:
    """Return the patterns of both mappings in order; the first mapping takes precedence."""
    return {**first, **{pattern: factor for pattern, factor in then.items() if pattern not in first}}


def _first_match(patterns: Iterable[str], name: str) -> str | None:
    """Return the first pattern that matches the name of a parameter, or None."""
    return next((pattern for pattern in patterns if re.search(pattern, name)), None)


def check_optimizer(name: str) -> None:
    """Raise a `ValueError` that lists the known optimizers unless `name` is one of them."""
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}, known: {', '.join(OPTIMIZERS)}")


def _parts(model: nn.Module) -> dict[int, str]:
    """Return the part of the model of each parameter, by the id of the parameter."""
    parts = {id(parameter): "head" for parameter in model.parameters()}
    parts |= {id(parameter): "backbone" for parameter in model.backbone.body.parameters()}
    for layer in model.modules():
        if isinstance(layer, DeformConv2d):
            parts |= {id(parameter): "conv_offset" for parameter in layer.conv_offset.parameters()}
    return parts


def _decays(model: nn.Module, weight: float, norm: float, bias: float) -> dict[int, float]:
    """Return the weight decay of each parameter by its id; the first layer that has a shared parameter decides."""
    decays: dict[int, float] = {}
    for layer in model.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            decay = norm if isinstance(layer, NORM_LAYERS) else bias if name.endswith("bias") else weight
            decays.setdefault(id(parameter), decay)
    return decays


def summarize_groups(optimizer: Optimizer) -> list[GroupSummary]:
    """Return a summary of each group, with its initial learning rate."""
    return [
        GroupSummary(
            group["name"],
            len(group["params"]),
            sum(parameter.numel() for parameter in group["params"]),
            group.get("initial_lr", group["lr"]),
            group["weight_decay"],
        )
        for group in optimizer.param_groups
    ]


def scaled_lr(lr: float, batch: int, base_batch_size: int | None) -> float:
    """Return the learning rate scaled linearly with the effective batch size, https://arxiv.org/abs/1706.02677.

    Args:
        lr: learning rate for `base_batch_size` images per step.
        batch: effective batch size: images per update, over all processes and accumulated micro-batches.
        base_batch_size: batch size that `lr` is given for; None: no scaling.
    """
    return lr * batch / base_batch_size if base_batch_size else lr


def set_lrs(optimizer: Optimizer, factor: float) -> None:
    """Set the learning rate of each group to `factor` times its initial learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group.setdefault("initial_lr", group["lr"]) * factor


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load the state of an optimizer but not its options, which stay as this optimizer was built.

    Raises:
        ValueError: if the groups have different numbers of tensors, or a tensor of the state has no parameter, another
            name or another shape. The optimizer is unchanged then.
    """
    then, now = (
        [len(group["params"]) for group in groups] for groups in (state["param_groups"], optimizer.param_groups)
    )
    if then != now:
        raise ValueError(
            f"the saved optimizer has groups of {then} tensors, this optimizer of {now}: the same parameters must be "
            "trained, and with a separate weight decay, as before"
        )
    _check_slots(optimizer, state)
    built = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, built, strict=True):
        group.clear()
        group.update(options)


def _check_slots(optimizer: Optimizer, state: dict[str, Any]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in state["param_groups"] for index in group["params"]]
    if indices != [*range(len(parameters))] or not {*state["state"]} <= {*indices}:
        raise ValueError("the saved optimizer must number its parameters 0, 1, ... in order, and have no other state")
    expected = SLOTS[type(optimizer)]
    for index, slots in state["state"].items():
        if slots and {*slots} != expected:
            names = ", ".join(sorted(expected))
            raise ValueError(f"the saved optimizer must have {names} for parameter {index}, got {shown([*slots])}")
        for name, value in slots.items():
            shape = value.shape if isinstance(value, Tensor) else ()
            if shape not in ((), parameters[index].shape) or (
                name != "step" and shape == () != parameters[index].shape
            ):
                raise ValueError(
                    f"{name} of parameter {index} in the saved optimizer has the shape {[*shape]}, but the parameter "
                    f"{[*parameters[index].shape]}"
                )


def current_lrs(optimizer: Optimizer) -> dict[str, float]:
    """Return the learning rate of each group by its name."""
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
