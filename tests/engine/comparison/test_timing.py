"""Timings in turns, and memory beyond what was there."""

import sys
import time

import pytest
import torch

from engine.comparison.timing import peak_memory, time_interleaved

CPU = torch.device("cpu")


def test_candidates_take_turns_after_a_round_that_does_not_count(clock):
    calls = []
    candidates = {
        "slow": lambda: (calls.append("slow"), time.sleep(0.03)),
        "quick": lambda: (calls.append("quick"), time.sleep(0.01)),
    }
    seconds = time_interleaved(candidates, rounds=3, device=CPU, turn_s=0.025)
    there, back = ["slow", "quick", "quick", "quick"], ["quick", "quick", "quick", "slow"]
    assert calls == ["slow", "slow", "quick", "quick", *there, *back, *there]
    assert seconds["slow"] == pytest.approx(3 * [0.031])
    assert seconds["quick"] == pytest.approx(9 * [0.011])


def test_a_turn_has_at_most_twenty_runs():
    assert len(time_interleaved({"one": lambda: None}, rounds=2, device=CPU)["one"]) == 40


def test_rounds_are_tracked():
    seen = []

    def track(rounds):
        for number in rounds:
            seen.append(number)
            yield number

    time_interleaved({"one": lambda: None}, rounds=4, device=CPU, track=track)
    assert seen == [0, 1, 2, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("megabytes", [0, 20, 200])
def test_memory_of_the_call_alone_is_counted(megabytes):
    torch.ones(300, 2**20 // 4)  # freed again, and not to be reused unseen
    for _ in range(30):
        torch.ones(25, 2**20 // 4)

    def prepare():
        torch.ones(250, 2**20 // 4)
        before = torch.ones(100, 2**20 // 4)
        before.sum()  # its code is some 3 MiB, which the first call loads

        def call():
            torch.ones(megabytes, 2**20 // 4)
            return before.sum()

        return call

    # Pages of libraries that the system dropped and reads again are charged too: that only adds, so the least counts.
    measured = min(peak_memory(prepare, CPU) for _ in range(5)) / 2**20
    assert measured == pytest.approx(megabytes, abs=3)


def test_memory_of_a_call_that_dies_is_unknown(capfd):
    def prepare():
        raise RuntimeError("no")

    assert peak_memory(prepare, CPU) is None
    assert "RuntimeError: no" in capfd.readouterr().err


@pytest.mark.gpu
def test_memory_of_tensors_on_a_gpu():
    def prepare():
        before = torch.ones(100, 2**20 // 4, device="cuda")
        return lambda: torch.ones(30, 2**20 // 4, device="cuda") + before.sum()

    assert peak_memory(prepare, torch.device("cuda")) / 2**20 == pytest.approx(60, abs=3)
