"""Time and memory of inference."""

import time

import pytest
import torch
from torch import nn

from engine.comparison.costs import inference_memory, time_inference
from engine.runs.checkpoint import load_checkpoint, save_checkpoint
from engine.runs.folder import LAST

CPU = torch.device("cpu")


class Sleeper(nn.Module):
    """Takes its time for each image, and notes what it was given."""

    def __init__(self, seconds, notes):
        super().__init__()
        self.seconds, self.notes = seconds, notes

    def forward(self, images):
        self.notes.append(
            (self.seconds, images[0], torch.is_autocast_enabled("cpu"), torch.is_inference_mode_enabled())
        )
        time.sleep(self.seconds)
        return [{} for _ in images]


def test_time_of_an_image(clock):
    notes = []
    models = {"fast": Sleeper(0.01, notes), "slow": Sleeper(0.03, notes)}
    images = [torch.full((3, 4, 5), value, dtype=torch.uint8) for value in (51, 102, 255)]
    seconds = time_inference(models, images, device=CPU, amps={"fast": "off", "slow": "bf16"}, rounds=2)
    assert [len(values) for values in seconds.values()] == [2, 2]
    assert seconds["fast"] == pytest.approx(2 * [0.01 + 0.001 / 3])  # a look at the clock after all three
    assert seconds["slow"] == pytest.approx(2 * [0.03 + 0.001 / 3])
    # one image at a time, all of them, in turns
    counted = notes[-12:]
    assert [note[0] for note in counted] == [0.01] * 3 + [0.03] * 3 + [0.01] * 3 + [0.03] * 3
    assert [note[1].shape for note in counted] == [(3, 4, 5)] * 12
    assert [note[1].max().item() for note in counted[:3]] == pytest.approx([0.2, 0.4, 1.0])
    assert {(note[0], note[2]) for note in counted} == {(0.01, False), (0.03, True)}
    assert all(note[3] for note in counted)


def test_rounds_are_shown():
    seen = []
    track = lambda items: seen.extend(items) or seen  # noqa: E731
    time_inference(
        {"a": Sleeper(0, [])},
        [torch.zeros(3, 2, 2, dtype=torch.uint8)],
        device=CPU,
        amps={"a": "off"},
        rounds=4,
        track=track,
    )
    assert seen == [0, 1, 2, 3]


def test_memory_of_an_image(finish_run, tmp_path):
    folders = {"small": finish_run(tmp_path / "a"), "large": finish_run(tmp_path / "b"), "gone": tmp_path / "gone"}
    state = load_checkpoint(folders["large"] / LAST)
    state["config"]["data"] |= {"min_size": 256, "max_size": 400}
    save_checkpoint(folders["large"] / LAST, state)
    found = inference_memory(folders, torch.zeros(3, 60, 80, dtype=torch.uint8), device=CPU)
    assert [*found] == ["small", "large", "gone"]
    assert 100_000 < found["small"] < found["large"] / 4 < 100_000_000
    assert found["gone"] is None
