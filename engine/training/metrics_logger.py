"""What is logged of a run: TensorBoard events, and the same scalars in metrics.jsonl."""

import json
import math
import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch import Tensor
from torch.utils.tensorboard import summary

from data.files import atomic_path

from ..display import log

METRICS_FILE = "metrics.jsonl"
# Of a histogram; TensorBoard shows 30.
BINS = 64


class MetricsLogger:
    """Writes scalars, pictures and texts of a run into its folder.

    Tags are the same in every run, so that TensorBoard lays runs over each other: `train/loss`, `train/loss_*`,
    `train/grad_norm`, `lr/<group>`, `time/{step_s,data_s,compute_s,images_per_s}`, `memory/peak_gib`,
    `val/<COCO figure>`, `val_per_class/<name>`, and of masks `val/mask_<COCO figure>`, `val_mask_per_class/<name>`.
    What only runs with deformable layers have begins with `dcn`, see `Health`.

    Args:
        folder: run folder.
        step: step that the run starts or goes on from; what was logged after it is removed.

    Raises:
        OSError: if a file cannot be written, naming it; also by every method, for what that method logs.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._metrics = _reopen(folder / METRICS_FILE, step)
        self._events = _Events(folder, step)

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars by tag; one that is not finite becomes null in metrics.jsonl and is left out of TensorBoard."""
        finite = {tag: float(value) for tag, value in values.items() if math.isfinite(value)}
        self._events.add([summary.scalar(tag, value) for tag, value in finite.items()], step)
        with _naming(self._metrics.name):
            self._metrics.write(json.dumps({"step": step, **{tag: finite.get(tag) for tag in values}}).encode() + b"\n")
            self._metrics.flush()

    def log_image(self, step: int, tag: str, image: Tensor) -> None:
        """Log a picture, `(3, H, W)` uint8."""
        self._events.add([summary.image(tag, image, dataformats="CHW")], step)

    def log_histogram(self, step: int, tag: str, values: Tensor) -> None:
        """Log how numbers are spread, those that are finite, in bins of equal width; nothing if there are none."""
        numbers = values.detach().to("cpu", torch.float32).numpy()
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size:
            self._events.add([summary.histogram(tag, numbers, BINS)], step)

    def log_text(self, tag: str, text: str) -> None:
        """Log a text, shown in a fixed-width face."""
        self._events.add([summary.text(tag, "\n".join(f"    {line}" for line in text.splitlines()))])

    def log_hparams(self, options: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Log the options of a run for TensorBoard's hparams table, beside the final `val/<COCO figure>`."""
        shown = {
            key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
            for key, value in options.items()
        }
        finite = {f"val/{name}": value for name, value in figures.items() if math.isfinite(value)}
        # this names the metrics; TensorBoard takes their values from the scalars
        self._events.add(summary.hparams(shown, finite))

    def close(self) -> None:
        """Close the files."""
        try:
            self._events.close()
        finally:
            with _naming(self._metrics.name):
                self._metrics.close()


class NullLogger:
    """Takes what a `MetricsLogger` takes, for the processes of a run whose first one logs."""

    def _nothing(self, *_: Any) -> None:
        """Log nothing."""

    log_scalars = log_image = log_histogram = log_text = log_hparams = close = _nothing


class _Events:
    """An event file of TensorBoard, written at once.

    torch's `SummaryWriter` leaves that to a thread, which meets a full disk minutes later and prints a traceback.

    Args:
        folder: where the file is made.
        step: step after which TensorBoard drops what lies in earlier files.
    """

    def __init__(self, folder: Path, step: int) -> None:
        # TensorBoard reads the files of a folder in the order of their names
        name = f"events.out.tfevents.{time.time():017.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = (folder / name).open("xb")
        self._records = RecordWriter(self._file)
        start = SessionLog(status=SessionLog.START)
        self._write([Event(file_version="brain.Event:2"), Event(step=step + 1, session_log=start)])

    def add(self, summaries: Iterable[Summary], step: int = 0) -> None:
        self._write([Event(step=step, summary=each) for each in summaries])

    def _write(self, events: list[Event]) -> None:
        with _naming(self._file.name):
            for event in events:
                event.wall_time = time.time()
                self._records.write(event.SerializeToString())
            self._file.flush()

    def close(self) -> None:
        with _naming(self._file.name):
            self._file.close()


@contextmanager
def _naming(file: str | Path) -> Iterator[None]:
    """Add the name of a file to what the system says of it."""
    try:
        yield
    except OSError as error:
        error.filename = str(file)
        raise


def _reopen(path: Path, step: int) -> BinaryIO:
    """Open metrics.jsonl for appending, without what is damaged, or what a run that was cut off wrote after `step`."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    steps = [_step_of(line) for line in lines]
    if None in steps[:-1]:  # the last line of a run that was killed is no news
        log.warning("%s has %d damaged lines, which are left out", path, steps[:-1].count(None))
    kept = [line for line, its_step in zip(lines, steps, strict=True) if its_step is not None and its_step <= step]
    with atomic_path(path) as partial:
        partial.write_bytes(b"".join(line + b"\n" for line in kept))
    return path.open("ab")


def _step_of(line: bytes) -> int | None:
    """The step of a line of metrics.jsonl, None if that is damaged."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return step if isinstance(step, int) else None
