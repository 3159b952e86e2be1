"""Time of inference, and its memory on a GPU."""

import time

import pytest
import torch
from torch import nn

from engine.comparison.costs import inference_memory, time_inference

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
    assert [note[0] for note in counted] == [0.01] * 3 + [0.03] * 6 + [0.01] * 3
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


def test_memory_is_that_of_a_gpu():
    assert inference_memory({"a": nn.Identity()}, torch.zeros(3, 2, 2), device=CPU, amps={"a": "off"}) == {}


class Hoarder(nn.Module):
    """Takes `count` times the memory of an image."""

    def __init__(self, count):
        super().__init__()
        self.count = count

    def forward(self, images):
        return [images[0].repeat(self.count, 1, 1)]


@pytest.mark.gpu
def test_memory_of_an_image():
    models = {"small": Hoarder(10), "large": Hoarder(30)}
    image = torch.zeros(3, 500, 1000, dtype=torch.uint8)
    found = inference_memory(models, image, device=torch.device("cuda"), amps=dict.fromkeys(models, "off"))
    image_bytes = 4 * 3 * 500 * 1000
    assert found == pytest.approx({"small": 10 * image_bytes, "large": 30 * image_bytes}, rel=0.1)
