"""Timings in turns, and memory beyond what was there."""

import sys
import time

import pytest
import torch

from engine import measure
from engine.measure import extra_memory, time_in_pairs, time_in_turns

CPU = torch.device("cpu")


class Clock:
    """Stands for `time` in `engine.measure`, so that no busy machine disturbs the seconds."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock


def test_candidates_take_turns_after_a_round_that_does_not_count(clock):
    calls = []
    candidates = {
        "slow": lambda: (calls.append("slow"), clock.sleep(0.03)),
        "quick": lambda: (calls.append("quick"), clock.sleep(0.01)),
    }
    seconds = time_in_turns(candidates, rounds=3, device=CPU, turn_s=0.025)
    assert calls == ["slow", "slow", "quick", "quick"] + 3 * ["slow", "quick", "quick", "quick"]
    assert seconds == {"slow": pytest.approx(3 * [0.03]), "quick": pytest.approx(9 * [0.01])}


def test_a_turn_has_at_most_twenty_runs(clock):
    assert len(time_in_turns({"one": lambda: clock.sleep(1e-9)}, rounds=2, device=CPU)["one"]) == 40


def test_rounds_are_tracked():
    seen = []

    def track(rounds):
        for number in rounds:
            seen.append(number)
            yield number

    time_in_turns({"one": lambda: None}, rounds=4, device=CPU, track=track)
    assert seen == [0, 1, 2, 3]


def test_pairs_work_on_the_same_and_change_their_order(clock):
    calls, seen = [], []
    works = iter("abcd")

    def prepare():
        clock.sleep(0.05)
        return next(works)

    def track(rounds):
        for number in rounds:
            seen.append(number)
            yield number

    pairs = time_in_pairs(
        prepare,
        lambda work: (calls.append(f"first {work}"), clock.sleep(0.03)),
        lambda work: (calls.append(f"second {work}"), clock.sleep(0.01)),
        rounds=3,
        device=CPU,
        track=track,
    )
    assert calls == ["first a", "second a", "second b", "first b", "first c", "second c", "second d", "first d"]
    assert seen == [0, 1, 2, 3]
    assert pairs == 3 * [pytest.approx((0.03, 0.01))]


def test_the_first_pair_does_not_count(clock):
    waits = iter([0.2, 0.01, 0.02])
    pairs = time_in_pairs(lambda: next(waits), clock.sleep, clock.sleep, rounds=2, device=CPU)
    assert pairs == [pytest.approx((0.01, 0.01)), pytest.approx((0.02, 0.02))]


def test_the_clock_is_that_of_the_machine():
    (seconds,) = time_in_turns({"one": lambda: time.sleep(0.02)}, rounds=1, device=CPU, turn_s=0.001)["one"]
    assert seconds >= 0.02


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("megabytes", [0, 20, 200])
def test_memory_of_the_call_alone_is_counted(megabytes):
    torch.ones(300, 2**20 // 4)  # freed again, and not to be reused unseen
    for _ in range(30):
        torch.ones(25, 2**20 // 4)

    def prepare():
        torch.ones(250, 2**20 // 4)
        before = torch.ones(100, 2**20 // 4)

        def call():
            torch.ones(megabytes, 2**20 // 4)
            return before.sum()

        return call

    # Pages of libraries that the system dropped and reads again are charged too: that only adds, so the least counts.
    measured = min(extra_memory(prepare, CPU) for _ in range(5)) / 2**20
    assert measured == pytest.approx(megabytes, abs=3)


def test_memory_of_a_call_that_dies_is_unknown(capfd):
    def prepare():
        raise RuntimeError("no")

    assert extra_memory(prepare, CPU) is None
    assert "RuntimeError: no" in capfd.readouterr().err


@pytest.mark.gpu
def test_memory_of_tensors_on_a_gpu():
    def prepare():
        before = torch.ones(100, 2**20 // 4, device="cuda")
        return lambda: torch.ones(30, 2**20 // 4, device="cuda") + before.sum()

    assert extra_memory(prepare, torch.device("cuda")) / 2**20 == pytest.approx(60, abs=3)
