"""Parameter groups, optimizers and the learning-rate schedule."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dcn import DeformConv2d


class GroupSummary(NamedTuple):
    """One parameter group: a row of the table shown at start-up."""

    name: str
    tensors: int
    parameters: int
    lr: float


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda groups, lr, momentum: torch.optim.SGD(groups, lr=lr, momentum=momentum),
    "adamw": lambda groups, lr, momentum: torch.optim.AdamW(groups, lr=lr, betas=(momentum, 0.999)),
}


def build_optimizer(
    name: str, model: nn.Module, *, lr: float, momentum: float, weight_decay: float, offset_lr_factor: float
) -> Optimizer:
    """Build an optimizer over the trainable parameters in named groups.

    The groups are "backbone" (the ResNet), "head" (the rest) and "conv_offset" (what predicts the offsets and masks of
    deformable convolutions, wherever it is), which learns at `offset_lr_factor` of the rate, as in the DCNv2 paper.

    Raises:
        ValueError: if the optimizer is unknown.
    """
    check_optimizer(name)
    groups = [
        {
            "name": group,
            "params": parameters,
            "weight_decay": weight_decay,
            "lr": lr * (offset_lr_factor if group == "conv_offset" else 1),
        }
        for group, parameters in _groups(model).items()
        if parameters
    ]
    return OPTIMIZERS[name](groups, lr, momentum)


def check_optimizer(name: str) -> None:
    """Raise `ValueError` that lists the known optimizers unless `name` is one."""
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}, known: {', '.join(OPTIMIZERS)}")


def _groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    groups: dict[str, list[nn.Parameter]] = {"backbone": [], "head": [], "conv_offset": []}
    offsets = {
        id(parameter)
        for layer in model.modules()
        if isinstance(layer, DeformConv2d)
        for parameter in layer.conv_offset.parameters()
    }
    body = {id(parameter) for parameter in model.backbone.body.parameters()}
    for parameter in model.parameters():
        if parameter.requires_grad:
            group = "conv_offset" if id(parameter) in offsets else "backbone" if id(parameter) in body else "head"
            groups[group].append(parameter)
    return groups


def summarize_groups(optimizer: Optimizer) -> list[GroupSummary]:
    """Describe the groups with the rates they were built with."""
    return [
        GroupSummary(g["name"], len(g["params"]), sum(p.numel() for p in g["params"]), g.get("initial_lr", g["lr"]))
        for g in optimizer.param_groups
    ]


def scaled_lr(lr: float, batch_size: int, reference_batch: int | None) -> float:
    """Scale a learning rate linearly with the batch, https://arxiv.org/abs/1706.02677."""
    return lr * batch_size / reference_batch if reference_batch else lr


def build_schedule(
    optimizer: Optimizer,
    *,
    steps_per_epoch: int,
    warmup_steps: int,
    warmup_factor: float,
    milestones: Sequence[float],
    gamma: float,
) -> LambdaLR:
    """Build the schedule: a linear rise from `warmup_factor`, then times `gamma` after each of `milestones` epochs."""
    drops = [round(milestone * steps_per_epoch) for milestone in milestones]
    return LambdaLR(optimizer, lambda step: lr_factor(step, warmup_steps, warmup_factor, drops, gamma))


def lr_factor(step: int, warmup_steps: int, warmup_factor: float, drops: Sequence[int], gamma: float) -> float:
    """Learning rate of step `step` (counted from 0) over the full one."""
    warmup = 1.0
    if step < warmup_steps:
        warmup = warmup_factor + (1 - warmup_factor) * step / warmup_steps
    return warmup * gamma ** sum(step >= drop for drop in drops)


def set_schedule_step(schedule: LambdaLR, step: int) -> None:
    """Put a schedule where it is after `step` steps, at the rates that its optimizer was built with."""
    schedule.last_epoch = step
    for group, base, factor in zip(
        schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(step)


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load what an optimizer has gathered, but not its options: they stay as this optimizer was built."""
    options = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
    optimizer.load_state_dict(state)
    for group, built in zip(optimizer.param_groups, options, strict=True):
        group.update(built)


def current_lrs(optimizer: Optimizer) -> dict[str, float]:
    """Learning rate of each group by its name."""
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
