"""What tests of several folders share."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings

# Without a GPU, Triton's kernels run in Python, if Triton knows before its first import.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from data.synthetic import write_shapes

# The same examples in every run, and no deadline on a busy machine.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

# One thread, also in the processes that tests start: on shared cores, threads that wait for each other are ten times
# slower than none.
os.environ.setdefault("OMP_NUM_THREADS", "1")
torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot do."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


TINY = """
data:
  train: {{images: {shapes}/train, annotations: {shapes}/annotations/train.json}}
  val: {{images: {shapes}/val, annotations: {shapes}/annotations/val.json}}
  source: python tools/make_shapes.py
  min_size: 64
  max_size: 96
  workers: 0
model:
  backbone: {{name: resnet18, norm: gn}}
  fpn: {{levels: [2, 3], channels: 32}}
  faster_rcnn:
    anchor_sizes: [16, 32, 64]
    box_head_channels: 32
    rpn_proposals_train: 40
    rpn_proposals_test: 20
    rpn_batch_size: 32
    box_batch_size: 16
    score_threshold: 0.0       # so that even an untrained model detects something
train:
  epochs: 2
  batch_size: 2
  reference_batch: null
  lr: 0.005
  warmup_steps: 2
  warmup_factor: 0.5
  milestones: [1.5]
  log_every: 1
device: cpu
"""


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic data set of 12 train and 6 val images, 96 x 80 pixels; read it, do not change it."""
    root = tmp_path_factory.mktemp("shapes")
    write_shapes(root, train=12, val=6, width=96, height=80, deformation=1.0)
    return root


@pytest.fixture(scope="session")
def tiny_config(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A YAML file that trains a very small detector on `shapes`: 6 steps an epoch, some 0.1 s each."""
    file = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    file.write_text(TINY.format(shapes=shapes), encoding="utf-8")
    return file


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """`mounted("size=1m")`: a folder with a file system of its own in memory; skips where none may be mounted."""
    folder = tmp_path / "disk"

    def mount(options: str) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "small", str(folder)]
        if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
            folder.rmdir()
            pytest.skip("needs the right to mount a file system")
        return folder

    yield mount
    if folder.exists():
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="session")
def golden() -> Callable[..., Any]:
    """`golden(name, key, value)`: what tests/golden/<name>.json holds under `key`; UPDATE_GOLDEN=1 records `value`."""

    def look_up(name: str, key: str, value: Any = None) -> Any:
        file = Path(__file__).parent / "golden" / f"{name}.json"
        recorded = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        if os.environ.get("UPDATE_GOLDEN") and value is not None:
            recorded[key] = value
            file.parent.mkdir(exist_ok=True)
            file.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        assert key in recorded, f"{file} holds no {key!r}; record it with UPDATE_GOLDEN=1"
        return recorded[key]

    return look_up
