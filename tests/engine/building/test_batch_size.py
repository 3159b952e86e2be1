"""`train.batch_size: auto`."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from engine.building import batch_size
from engine.building.batch_size import choose_batch_size, largest_image, with_batch_size
from engine.building.data import read_split
from engine.building.start import train
from engine.config.loading import load_config
from engine.distributed import SINGLE_PROCESS
from engine.runs.checkpoint import load_checkpoint

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("options", "size"),
    [
        (["data.min_size=[64, 48]", "data.max_size=96"], (64, 96)),
        (["data.min_size=64", "data.max_size=4000"], (64, 128)),
        (["data.min_size=64", "data.resize=stretch"], (64, 64)),
        (["data.augment.large_scale_jitter={size: 80, scale: [0.1, 2.0]}"], (80, 80)),
    ],
)
def test_the_largest_image(tiny_config, options, size):
    sizes = np.array([[200, 100], [100, 130], [0, 0], [30, 30]], dtype=float)
    annotations = SimpleNamespace(arrays=SimpleNamespace(sizes=sizes))
    assert largest_image(load_config(tiny_config, options), annotations) == size


@pytest.mark.parametrize(("accumulated", "most"), [(1, 3), (2, 1)])
def test_the_number_is_measured_and_told(tiny_config, monkeypatch, accumulated, most):
    config = load_config(tiny_config, ["train.batch_size=auto", f"train.grad_accum_steps={accumulated}"])
    split = read_split(config.data, "train")
    asked = []
    monkeypatch.setattr(batch_size, "_peak", lambda config, values, size: asked.append(values) or size * 2**20)
    monkeypatch.setattr(batch_size, "available_memory", lambda device: 2**40)
    size, note = choose_batch_size(config, split, None, device=CPU, distributed=SINGLE_PROCESS)
    assert size == most == len(split.arrays) // (4 * accumulated)
    assert note.startswith(f"batch size {most}: the maximum for {len(split.arrays)} training images (measured 0.0 GiB")
    assert asked[0]["boxes"] == split.arrays.counts.max()
    assert with_batch_size(config, size).train.batch_size == size
    state = {"config": {"train": {"batch_size": 7}}}
    assert choose_batch_size(config, split, state, device=CPU, distributed=SINGLE_PROCESS)[0] == 7


@pytest.mark.slow
def test_a_run_measures_once_and_keeps_the_number(tiny_config, tmp_path, monkeypatch):
    options = ["train.batch_size=auto", "train.max_steps=1"]
    train(str(tiny_config), options, run_dir=tmp_path / "run")
    assert load_checkpoint(tmp_path / "run/last.pt")["config"]["train"]["batch_size"] == 3
    assert load_config(tmp_path / "run/config.yaml").train.batch_size == 3
    monkeypatch.setattr(batch_size, "_peak", lambda *_: pytest.fail("measured again"))
    train(str(tiny_config), [*options[:1], "train.max_steps=2"], run_dir=tmp_path / "run", resume="auto")
    assert load_checkpoint(tmp_path / "run/last.pt")["config"]["train"]["batch_size"] == 3
