"""Learning-rate schedules."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

# Learning-rate factor at a step, counted from 0. It depends only on the step, so a resumed run has the same rates.
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
    """Build the learning-rate factor of a run: linear warm-up times one of `SCHEDULES`.

    Args:
        kind: "step" or "cosine".
        total_steps: steps of the run.
        steps_per_epoch: steps of an epoch.
        unit: "epoch" or "step": the unit of `milestones`, and how often "cosine" changes the factor.
        warmup_steps: steps of the warm-up.
        warmup_factor: factor at the start of the warm-up.
        milestones: for "step": when the factor is multiplied by `gamma`. Epochs may be fractions. Milestones after the
            end of the run have no effect.
        gamma: for "step": multiplier at each milestone.
        min_lr_factor: for "cosine": factor at the end of the run.

    Returns:
        The learning-rate factor as a function of the step.

    Raises:
        ValueError: if the kind or unit is unknown, or if `milestones` are not valid.
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
    decay = partial(SCHEDULES[kind], **{name: value for name, value in options.items() if name in own})
    return lambda step: warmup(step, warmup_steps, warmup_factor) * decay(step)


def check_schedule(kind: str) -> None:
    """Raise a `ValueError` that lists the known schedules unless `kind` is one of them."""
    if kind not in SCHEDULES:
        raise ValueError(f"unknown schedule {kind!r}, known: {', '.join(SCHEDULES)}")


def check_milestones(milestones: Sequence[float], unit: str) -> None:
    """Raise `ValueError` unless milestones increase strictly and, if `unit` is "step", are whole numbers."""
    if any(later <= earlier for earlier, later in pairwise(milestones)):
        raise ValueError(f"`milestones` must increase, got {list(milestones)}")
    if unit == "step" and any(milestone != round(milestone) for milestone in milestones):
        raise ValueError(f"`milestones` counted in steps must be whole numbers, got {list(milestones)}")


def warmup(step: int, steps: int, factor: float) -> float:
    """Return the warm-up factor: linear from `factor` at step 0 to 1 at step `steps`."""
    return factor + (1 - factor) * step / steps if step < steps else 1.0


def step_decay(step: int, *, unit_steps: int, milestones: Sequence[float], gamma: float) -> float:
    """Return `gamma ** n` after n milestones, which count units of `unit_steps` steps."""
    return gamma ** sum(step >= round(milestone * unit_steps) for milestone in milestones)


def cosine_decay(step: int, *, unit_steps: int, total_steps: int, min_lr_factor: float) -> float:
    """Return a half cosine from 1 to `min_lr_factor`, constant for `unit_steps`, https://arxiv.org/abs/1608.03983."""
    done = min((step - step % unit_steps) / total_steps, 1)
    return min_lr_factor + (1 - min_lr_factor) * (1 + math.cos(math.pi * done)) / 2


# Learning-rate factor at a step, counted from 0. `build_schedule` passes each function only the options that it names.
SCHEDULES: dict[str, Callable[..., float]] = {"step": step_decay, "cosine": cosine_decay}
