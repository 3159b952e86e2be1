"""Parameter groups, optimizers and the learning-rate schedule."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dcn import DeformConv2d

# torch's layers that normalise and have parameters for it
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
    """One parameter group: a row of the table shown at start-up."""

    name: str
    tensors: int
    parameters: int
    lr: float
    weight_decay: float


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda groups, lr, momentum: torch.optim.SGD(groups, lr=lr, momentum=momentum),
    "adamw": lambda groups, lr, momentum: torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999)),
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
) -> Optimizer:
    """Build an optimizer over the trainable parameters, in groups that carry the name of their part of the model.

    The parts are "backbone" (the ResNet), "head" (the rest) and "conv_offset" (what predicts the offsets and masks of
    deformable convolutions, wherever it is). A part has one rate, and a group for each weight decay found in it.

    Args:
        name: one of `OPTIMIZERS`.
        model: a detector with a `backbone.body`.
        lr: learning rate of the head.
        momentum: of SGD; the first beta of AdamW.
        weight_decay: of all parameters but those named below.
        offset_lr_factor: rate of "conv_offset" over `lr` itself, not over the backbone's; 0.1 in the DCNv2 paper.
        backbone_lr_factor: rate of "backbone" over `lr`.
        norm_weight_decay: of the weights and biases of norm layers; None for `weight_decay`.
        bias_weight_decay: of all other biases; None for `weight_decay`.

    Raises:
        ValueError: if the optimizer is unknown.
    """
    check_optimizer(name)
    lrs = {"backbone": lr * backbone_lr_factor, "head": lr, "conv_offset": lr * offset_lr_factor}
    norm_decay = weight_decay if norm_weight_decay is None else norm_weight_decay
    bias_decay = weight_decay if bias_weight_decay is None else bias_weight_decay
    decays = _decays(model, weight_decay, norm_decay, bias_decay)
    groups = [
        {"name": part, "params": chosen, "weight_decay": decay, "lr": lrs[part]}
        for part, parameters in _parts(model).items()
        for decay in dict.fromkeys([weight_decay, norm_decay, bias_decay])
        if (chosen := [parameter for parameter in parameters if decays[id(parameter)] == decay])
    ]
    return OPTIMIZERS[name](groups, lr, momentum)


def check_optimizer(name: str) -> None:
    """Raise `ValueError` that lists the known optimizers unless `name` is one."""
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}, known: {', '.join(OPTIMIZERS)}")


def _parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters of each part."""
    parts: dict[str, list[nn.Parameter]] = {"backbone": [], "head": [], "conv_offset": []}
    offsets = {
        id(parameter)
        for layer in model.modules()
        if isinstance(layer, DeformConv2d)
        for parameter in layer.conv_offset.parameters()
    }
    body = {id(parameter) for parameter in model.backbone.body.parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            part = "conv_offset" if id(parameter) in offsets else "backbone" if id(parameter) in body else "head"
            parts[part].append(parameter)
    return parts


def _decays(model: nn.Module, weight: float, norm: float, bias: float) -> dict[int, float]:
    """Weight decay of each parameter by its id, from what it is to the first layer that has it."""
    decays: dict[int, float] = {}
    for layer in model.modules():
        for name, parameter in layer.named_parameters(recurse=False):
            decay = norm if isinstance(layer, NORM_LAYERS) else bias if name.endswith("bias") else weight
            decays.setdefault(id(parameter), decay)
    return decays


def summarize_groups(optimizer: Optimizer) -> list[GroupSummary]:
    """Describe the groups with the rates they were built with."""
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


def scaled_lr(lr: float, batch: int, reference_batch: int | None) -> float:
    """Scale a learning rate linearly with the images of a step, https://arxiv.org/abs/1706.02677.

    Args:
        lr: the rate for `reference_batch` images.
        batch: images that an update of the weights is made from, over all processes and accumulated batches.
        reference_batch: None for no scaling.
    """
    return lr * batch / reference_batch if reference_batch else lr


def build_schedule(
    optimizer: Optimizer,
    *,
    kind: str,
    total_steps: int,
    steps_per_epoch: int,
    unit: str,
    warmup_steps: int,
    warmup_factor: float,
    milestones: Sequence[float],
    gamma: float,
    min_lr_factor: float,
) -> LambdaLR:
    """Build the schedule: a course of `SCHEDULES`, times a linear rise in front of it.

    The rate depends on the number of the step alone, so that a resumed run has that of one in a piece.

    Args:
        optimizer: with the full rates.
        kind: "step" or "cosine".
        total_steps: steps of the run.
        steps_per_epoch: steps of an epoch.
        unit: "epoch" or "step": what `milestones` are counted in, and how often a cosine falls.
        warmup_steps: steps of the rise.
        warmup_factor: where the rise starts, over the full rate.
        milestones: of "step"; the rate falls after each. Epochs may be fractions; those after the run have no effect.
        gamma: of "step"; by what the rate is multiplied then.
        min_lr_factor: of "cosine"; where it ends, over the full rate.

    Raises:
        ValueError: if the kind or unit is unknown, or the milestones of "step" do not fit.
    """
    check_schedule(kind)
    if unit not in ("epoch", "step"):
        raise ValueError(f"unknown unit of the schedule {unit!r}, known: epoch, step")
    if kind == "step":
        check_milestones(milestones, unit)
    course = partial(
        SCHEDULES[kind],
        total_steps=total_steps,
        unit_steps=steps_per_epoch if unit == "epoch" else 1,
        milestones=milestones,
        gamma=gamma,
        min_lr_factor=min_lr_factor,
    )
    return LambdaLR(optimizer, lambda step: warmup(step, warmup_steps, warmup_factor) * course(step))


def check_schedule(kind: str) -> None:
    """Raise `ValueError` that lists the known schedules unless `kind` is one."""
    if kind not in SCHEDULES:
        raise ValueError(f"unknown schedule {kind!r}, known: {', '.join(SCHEDULES)}")


def check_milestones(milestones: Sequence[float], unit: str) -> None:
    """Raise `ValueError` unless milestones rise and can be counted in `unit`, "epoch" or "step"."""
    if any(later <= earlier for earlier, later in pairwise(milestones)):
        raise ValueError(f"`milestones` must rise, got {list(milestones)}")
    if unit == "step" and any(milestone != round(milestone) for milestone in milestones):
        raise ValueError(f"`milestones` counted in steps must be whole numbers, got {list(milestones)}")


def warmup(step: int, steps: int, factor: float) -> float:
    """Rise linearly from `factor` at step 0 to 1 at step `steps`."""
    return factor + (1 - factor) * step / steps if step < steps else 1.0


def step_course(step: int, *, unit_steps: int, milestones: Sequence[float], gamma: float, **_: object) -> float:
    """Fall to `gamma` of what it was after each of `milestones` units of `unit_steps` steps."""
    return gamma ** sum(step >= round(milestone * unit_steps) for milestone in milestones)


def cosine_course(step: int, *, unit_steps: int, total_steps: int, min_lr_factor: float, **_: object) -> float:
    """Fall from 1 to `min_lr_factor` at the end as half a cosine, every `unit_steps`, https://arxiv.org/abs/1608.03983."""
    done = min((step - step % unit_steps) / total_steps, 1)
    return min_lr_factor + (1 - min_lr_factor) * (1 + math.cos(math.pi * done)) / 2


# factor of the learning rate of a step, counted from 0, by keyword arguments of which each takes its own
SCHEDULES: dict[str, Callable[..., float]] = {"step": step_course, "cosine": cosine_course}


def set_schedule_step(schedule: LambdaLR, step: int) -> None:
    """Put a schedule where it is after `step` steps, at the rates that its optimizer was built with."""
    schedule.last_epoch = step
    for group, base, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(step)


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load what an optimizer has gathered, but not its options: they stay as this optimizer was built.

    Raises:
        ValueError: if its groups had other numbers of tensors.
    """
    then, now = (
        [len(group["params"]) for group in groups] for groups in (state["param_groups"], optimizer.param_groups)
    )
    if then != now:
        raise ValueError(
            f"the saved optimizer has groups of {then} tensors and this one of {now}; what is trained, and which "
            "parameters have a weight decay of their own, must be as they were"
        )
    options = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, built in zip(optimizer.param_groups, options, strict=True):
        group.update(built)


def current_lrs(optimizer: Optimizer) -> dict[str, float]:
    """Learning rate of each part of the model by its name."""
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
