"""Learning-rate schedules against numbers by hand and those of PyTorch."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, MultiStepLR

from engine.training.schedule import SCHEDULES, Schedule, build_schedule


def schedule_of(**options) -> Schedule:
    defaults = {"kind": "step", "total_steps": 20, "steps_per_epoch": 4, "unit": "epoch", "warmup_steps": 0}
    defaults |= {"warmup_factor": 0.5, "milestones": [], "gamma": 0.1, "min_lr_factor": 0.0}
    return build_schedule(**(defaults | options))


def factors(schedule: Schedule, steps: int) -> list[float]:
    return [schedule(step) for step in range(steps)]


def one_weight() -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)


def factors_of_torch(optimizer, schedule, steps: int) -> list[float]:
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_step_schedule_with_numbers_worked_out_by_hand():
    seen = factors(schedule_of(warmup_steps=2, milestones=[1.5, 2]), 10)
    assert seen == pytest.approx([0.5, 0.75, 1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


def test_a_drop_within_the_warmup():
    schedule = schedule_of(unit="step", warmup_steps=4, warmup_factor=0.2, milestones=[2], gamma=0.5)
    assert factors(schedule, 5) == pytest.approx([0.2, 0.4, 0.3, 0.4, 0.5])


@pytest.mark.parametrize(
    ("unit", "milestones", "drops"),
    [("step", [3, 7, 40], [3, 7, 40]), ("epoch", [0.75, 1.75, 10], [3, 7, 40]), ("epoch", [], [])],
)
def test_step_schedule_is_that_of_torch(unit, milestones, drops):
    theirs = one_weight()
    expected = factors_of_torch(theirs, MultiStepLR(theirs, drops, gamma=0.3), 21)
    assert factors(schedule_of(unit=unit, milestones=milestones, gamma=0.3), 21) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("least", [0.0, 0.05])
def test_cosine_schedule_is_that_of_torch(least):
    theirs = one_weight()
    expected = factors_of_torch(theirs, CosineAnnealingLR(theirs, 20, eta_min=least), 21)
    schedule = schedule_of(kind="cosine", unit="step", total_steps=20, min_lr_factor=least)
    assert factors(schedule, 21) == pytest.approx(expected, abs=1e-12)
    assert expected[-1] == pytest.approx(least, abs=1e-12)


def test_cosine_schedule_that_falls_once_an_epoch():
    theirs = one_weight()
    expected = factors_of_torch(theirs, CosineAnnealingLR(theirs, 5, eta_min=0.1), 6)
    seen = factors(schedule_of(kind="cosine", total_steps=20, min_lr_factor=0.1), 21)
    assert seen == pytest.approx([rate for rate in expected for _ in range(4)][:21], rel=1e-12)


def test_cosine_schedule_stays_down_after_its_end():
    schedule = schedule_of(kind="cosine", unit="step", total_steps=5, min_lr_factor=0.25)
    assert factors(schedule, 9)[5:] == pytest.approx([0.25] * 4)


@pytest.mark.parametrize("unit", ["epoch", "step"])
@pytest.mark.parametrize("kind", SCHEDULES)
def test_warmup_in_front_of_every_schedule(kind, unit):
    options = {"kind": kind, "unit": unit, "milestones": [3], "min_lr_factor": 0.1}
    seen = factors(schedule_of(warmup_steps=5, warmup_factor=0.2, **options), 20)
    full = factors(schedule_of(**options), 20)
    rise = [0.2, 0.36, 0.52, 0.68, 0.84] + [1.0] * 15
    assert seen == pytest.approx([a * b for a, b in zip(rise, full, strict=True)], rel=1e-12)
    assert len({*full}) > 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cosin"}, "unknown schedule 'cosin', known: step, cosine"),
        ({"unit": "epochs"}, "unknown unit of the schedule 'epochs', known: epoch, step"),
        ({"milestones": [2, 1.5]}, r"`milestones` must increase, got \[2, 1.5\]"),
        ({"milestones": [1, 2, 2]}, r"`milestones` must increase, got \[1, 2, 2\]"),
        ({"milestones": [2, 2.5], "unit": "step"}, r"counted in steps must be whole numbers, got \[2, 2.5\]"),
    ],
)
def test_bad_schedules(options, message):
    with pytest.raises(ValueError, match=message):
        schedule_of(**options)


def test_milestones_are_for_the_step_schedule_alone():
    schedule_of(kind="cosine", milestones=[2.5, 1], unit="step")
