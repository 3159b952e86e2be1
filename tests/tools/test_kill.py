"""kill -9 again and again: in the end a run is the one that was never killed."""

import json
import multiprocessing
import os
import random
import runpy
import signal
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.runs.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
KILLS = 24
STEPS = 180
MOST = 7  # steps of a process that is to be killed, so that the run is not over before the last kill
OPTIONS = [
    "model.backbone.dcn_v2_stages=[2]",
    f"train.max_steps={STEPS}",
    "train.epochs=99",
    "train.checkpoint_every_steps=2",
    "train.eval_every_epochs=3",
    "train.log_every_steps=3",  # no multiple of the former: records are cut
    "train.images_every_steps=20",
    "train.ema_decay=0.9",
    "train.lr_schedule=cosine",
    "data.min_size=[48, 64]",
    "data.augment.color_jitter=0.3",
    "data.num_workers=1",
]


@pytest.fixture
def start(tiny_config, tmp_path, monkeypatch):
    """Start a training in a process of its own, maybe held after some step.

    It is forked, since importing torch would take most of the time, and of a server that has done nothing else: the
    threads that other tests leave in this process, as ONNX Runtime's, are missing in a child, which may wait for them.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torchvision", "tensorboard", "engine.building", "engine.training"])
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    options = ["--config", tiny_config, "--resume", "auto", *OPTIONS]
    started = []

    def run(folder, step=-1) -> BaseProcess:
        arguments = [step, tmp_path / "go", ROOT / "tools/train.py", *options, "--run-dir", folder]
        monkeypatch.setattr(sys, "argv", ["hold.py", *map(str, arguments)])
        hold = str(Path(__file__).with_name("hold.py"))
        started.append(context.Process(target=runpy.run_path, args=(hold,), kwargs={"run_name": "__main__"}))
        started[-1].start()
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.join()


def records(folder: Path) -> list[dict]:
    """All figures but times and memory."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{tag: v for tag, v in line.items() if not tag.startswith(("time/", "memory/"))} for line in lines]


def assert_same(one, other, place: str) -> None:
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            if not str(key).startswith(("data_s", "compute_s", "step_s")):
                assert_same(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{place}[{index}]")
    else:
        assert one == other or (one != one and other != other), place


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot be forked here")
def test_a_run_killed_again_and_again_is_the_one_that_never_was(start, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    process = start(whole)
    process.join(600)
    assert process.exitcode == 0

    chance = random.Random(0)
    reached = []
    for _ in range(KILLS):
        before = reached[-1] if reached else 0
        process = start(killed, before + MOST)
        give_up = time.monotonic() + 600
        # each process gets past the last checkpoint, so that the run comes forward, and dies anywhere after that
        while not (killed / "last.pt").is_file() or load_step(killed) <= before:
            assert process.is_alive(), process.exitcode
            assert time.monotonic() < give_up
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.1))  # a step or two
        assert process.is_alive(), process.exitcode
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        reached.append(load_step(killed))
    assert len({*reached}) == KILLS

    process = start(killed)
    process.join(600)
    assert process.exitcode == 0
    for name in ("last.pt", "best.pt"):
        one, other = load_checkpoint(whole / name), load_checkpoint(killed / name)
        assert_same(one, other, name)
    assert records(killed) == records(whole)
    axes = []
    for folder in (whole, killed):
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
        axes.append({tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]})
    assert axes[0] == axes[1]
    assert axes[0]["train/loss"] == list(range(3, STEPS + 1, 3))


def load_step(folder: Path) -> int:
    """Step of the last checkpoint: by its file, which may be replaced while it is read."""
    return load_checkpoint(folder / "last.pt")["step"]
