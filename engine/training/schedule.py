"""Schedules of the learning rate."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

# Factor of the learning rates of a step, counted from 0. It depends on the step alone, so that a resumed run has the
# rates of an uninterrupted one.
Schedule = Callable[[int], float]


def build_schedule(
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
) -> Schedule:
    """Build a schedule: a course of `SCHEDULES`, times a linear rise in front of it.

    Args:
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
    options = {
        "total_steps": total_steps,
        "unit_steps": steps_per_epoch if unit == "epoch" else 1,
        "milestones": milestones,
        "gamma": gamma,
        "min_lr_factor": min_lr_factor,
    }
    own = inspect.signature(SCHEDULES[kind]).parameters
    course = partial(SCHEDULES[kind], **{name: value for name, value in options.items() if name in own})
    return lambda step: warmup(step, warmup_steps, warmup_factor) * course(step)


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


def step_course(step: int, *, unit_steps: int, milestones: Sequence[float], gamma: float) -> float:
    """Fall to `gamma` of what it was after each of `milestones` units of `unit_steps` steps."""
    return gamma ** sum(step >= round(milestone * unit_steps) for milestone in milestones)


def cosine_course(step: int, *, unit_steps: int, total_steps: int, min_lr_factor: float) -> float:
    """Fall from 1 to `min_lr_factor` at the end as half a cosine, every `unit_steps`, https://arxiv.org/abs/1608.03983."""
    done = min((step - step % unit_steps) / total_steps, 1)
    return min_lr_factor + (1 - min_lr_factor) * (1 + math.cos(math.pi * done)) / 2


# Factor of the learning rate of a step, counted from 0; each takes those options of `build_schedule` that it names.
SCHEDULES: dict[str, Callable[..., float]] = {"step": step_course, "cosine": cosine_course}
