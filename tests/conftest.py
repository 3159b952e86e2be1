"""Fixtures shared by the tests of several folders."""

import gc
import json
import os
import shutil
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable, Generator, Iterator
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

# Tests and their subprocesses use one thread, regardless of the environment: another summation order changes results.
# On shared cores, waiting threads are also ten times slower. torch reads these variables when it is first imported.
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from torch import Tensor, nn
from torch.nn import functional

# Without a GPU, Triton's kernels run in Python, if Triton knows before its first import, which torchvision does too.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from data.synthetic import write_shapes

# The same examples in every run, and no deadline on a busy machine.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # The first backward pass counts the devices, and with any there no child may have one. torch.export makes some up.
    torch.ones((), requires_grad=True).backward()
# A forked process lacks the threads of this one: to end what still has some, as a session of ONNX Runtime that only the
# garbage collector finds, would crash or wait for ever. So it leaves alone what it inherits.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=gc.freeze)


def pytest_configure(config: pytest.Config) -> None:
    """Set a temporary folder for libraries and subprocesses, which is removed after the tests.

    Killed processes leave folders for sockets (`pymp-*`), and torchrun always leaves one. Files of the tests are in
    pytest's own folder. The name is short because socket paths are limited to about 100 characters.
    """
    if hasattr(config, "workerinput"):  # of pytest-xdist: it has the folder of the process that started it
        return
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
    folder = tempfile.mkdtemp(prefix="t")
    os.environ["TMPDIR"], tempfile.tempdir = folder, None
    # what torch.compile keeps from an earlier run may be for other instructions of the processor
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"
    # after multiprocessing's own folder in it, whose priority is -100
    Finalize(None, shutil.rmtree, args=(folder,), kwargs={"ignore_errors": True}, exitpriority=-200)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escape lone surrogates in captured logs: pytest-xdist sends reports as UTF-8."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections]
    return report


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
  download_hint: python tools/make_shapes.py
  min_size: 64
  max_size: 96
  num_workers: 0
model:
  backbone: {{name: resnet18, norm: gn}}
  fpn: {{levels: [2, 3], out_channels: 32}}
  faster_rcnn:
    anchor_sizes: [16, 32, 64]
    box_head_channels: 32
    rpn_pre_nms_top_n_train: 40
    rpn_post_nms_top_n_train: 40
    rpn_pre_nms_top_n_test: 20
    rpn_post_nms_top_n_test: 20
    rpn_batch_size_per_image: 32
    box_batch_size_per_image: 16
    score_threshold: 0.0       # so that even an untrained model detects something
train:
  epochs: 2
  batch_size: 2
  base_batch_size: null
  lr: 0.005
  warmup_steps: 2
  warmup_factor: 0.5
  milestones: [1.5]
  log_every_steps: 1
device: cpu
"""


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """`make_once(name, make)`: a folder that `make(folder)` has filled, once for all processes of pytest-xdist."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def get(name: str, make: Callable[[Path], object]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with FileLock(root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return get


@pytest.fixture(scope="session")
def shapes(make_once: Callable[..., Path]) -> Path:
    """A synthetic data set of 12 train and 6 val images, 96 x 80 pixels; read it, do not change it."""
    return make_once("shapes", lambda root: write_shapes(root, train=12, val=6, width=96, height=80, deformation=1.0))


@pytest.fixture(scope="session")
def tiny_config(shapes: Path, make_once: Callable[..., Path]) -> Path:
    """A YAML file that trains a very small detector on `shapes`: 6 steps an epoch, some 0.1 s each."""
    text = TINY.format(shapes=shapes)
    return make_once("configs", lambda folder: (folder / "tiny.yaml").write_text(text, encoding="utf-8")) / "tiny.yaml"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock for what is timed here: each look moves it by a millisecond, `time.sleep` at once, a busy machine not."""
    now_s = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds

    def look() -> float:
        sleep(0.001)
        return now_s

    monkeypatch.setattr(time, "sleep", sleep)
    monkeypatch.setattr(time, "perf_counter", look)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a tmpfs, such as `mounted("size=1m")`; skip if mounting is not allowed."""
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
def formula_weights() -> Callable[[nn.Module], nn.Module]:
    """`formula_weights(model)` fills a model with numbers in [-1, 1), which a formula of names and places gives.

    They are scaled as usual initial values are. `torch.nn.init.normal_` rounds otherwise on other processors.
    """

    def hashed(name: str, tensor: Tensor) -> Tensor:
        places = torch.arange(tensor.numel()) + zlib.crc32(name.encode())
        places = places * 2_654_435_761 % 2**32
        places = (places ^ places >> 15) * 2_246_822_519 % 2**32
        return ((places ^ places >> 13).double() / 2**31 - 1).to(tensor.dtype).view_as(tensor)

    def fill(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            for name, tensor in model.state_dict().items():
                if tensor.ndim > 1:
                    spread = 0.1 if ".conv_offset." in name else 2.0
                    tensor.copy_(hashed(name, tensor) * spread / tensor[0].numel() ** 0.5)
                elif tensor.is_floating_point():  # of norms, and biases
                    tensor += 0.1 * hashed(name, tensor)
        return model

    return fill


@pytest.fixture(scope="session")
def widest_gap() -> Callable[..., float]:
    """`widest_gap(scores)`: a threshold in their middle half, or from `low` to `high`, as far as can be from all."""

    def middle(scores: Tensor, low: float | None = None, high: float | None = None) -> float:
        ordered = scores.double().sort().values
        low = ordered[len(ordered) // 4].item() if low is None else low
        high = ordered[-1 - len(ordered) // 4].item() if high is None else high
        assert low < high
        ordered = torch.cat([ordered.new_tensor([low, high]), ordered]).clamp(low, high).sort().values
        place = ordered.diff().argmax()
        return ordered[place : place + 2].mean().item()

    return middle


@pytest.fixture
def float64_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's RPN has float32 labels, which would make that loss one of 7 digits."""
    entropy = functional.binary_cross_entropy_with_logits

    def loss(logits: Tensor, labels: Tensor, **options) -> Tensor:
        return entropy(logits, labels.to(logits.dtype), **options)

    monkeypatch.setattr(functional, "binary_cross_entropy_with_logits", loss)


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
