"""Metrics of a run: TensorBoard events, and the same scalars in metrics.jsonl."""

import json
import math
import os
import re
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

from data.files import atomic_file
from data.json_file import JsonError, parse_json, read_json_lines
from data.shown import escaped, shortened

from ..display import counted, log
from ..runs import METRICS_FILE

LONGEST_TAG = 500
# Bins of a histogram; TensorBoard merges them into 30.
BINS = 64
# Tags of version 0.1, as patterns, with the present ones. Each is applied in turn.
RENAMED_TAGS = {
    r"^val_raw/": "val_no_ema/",
    r"^dcn/offset_max_px$": "dcn_offset_max_px/max",
    r"^dcn/(.*)$": r"dcn_\1/mean",
    r"^dcn_outside_share_added/": "dcn_outside_frac_vs_regular/",
    r"^dcn_outside_share/": "dcn_outside_frac/",
    r"^dcn_mask_share_below_0\.1/": "dcn_mask_frac_lt_0.1/",
}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the records of a metrics.jsonl with their present tags, also for runs of version 0.1.

    Damaged lines are skipped with a warning. A killed run often leaves an incomplete last line.
    """
    records, damaged = read_json_lines(path, _is_record, "metrics file")
    if damaged:
        log.warning("%s: skipped %s, first line %d", path, counted(len(damaged), "damaged line"), damaged[0])
    return [{_present_tag(tag): value for tag, value in record.items()} for record in records]


def _is_record(value: Any) -> bool:
    """Return whether a value is a record: a mapping of tags to finite numbers or null, with an integer step."""
    return (
        isinstance(value, dict)
        and type(value.get("step")) is int
        and all(entry is None or (type(entry) in (int, float) and math.isfinite(entry)) for entry in value.values())
    )


def _present_tag(tag: str) -> str:
    for pattern, replacement in RENAMED_TAGS.items():
        tag = re.sub(pattern, replacement, tag)
    return tag


class MetricsLogger:
    """Writes scalars, images, histograms and texts of a run to its folder.

    Every run uses the same tags, so that TensorBoard shows all runs in the same charts:

    - `train/loss`, `train/loss_*`, `train/grad_norm`
    - `lr/<group>`
    - `time/{step_s,data_s,compute_s,images_per_s,eval_s}`, `memory/peak_gib`
    - `val/loss`, `val/loss_*`, without augmentation
    - `val/<COCO metric>`, `val_per_class/<name>`; `val_no_ema/<COCO metric>` of the raw weights in runs with an EMA
    - `val/mask_<COCO metric>`, `val_mask_per_class/<name>` of detectors with masks
    - `dcn_*` of runs with deformable layers, see `Health`

    Args:
        folder: run folder.
        step: step from which the run starts or resumes. Records of later steps are removed.

    Raises:
        OSError: if a file cannot be written; the error names the file. Every method can raise it.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self._metrics = _reopen(folder / METRICS_FILE, step)
        self._events = _Events(folder, step)

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log scalars by tag. Non-finite values become null in metrics.jsonl and are omitted from TensorBoard."""
        finite = {tag: float(value) for tag, value in values.items() if math.isfinite(value)}
        self._events.add([summary.scalar(_plain(tag), value) for tag, value in finite.items()], step)
        with _naming(self._metrics.name):
            self._metrics.write(json.dumps({"step": step, **{tag: finite.get(tag) for tag in values}}).encode() + b"\n")
            self._metrics.flush()

    def log_image(self, step: int, tag: str, image: Tensor) -> None:
        """Log an image `(3, H, W)` uint8."""
        self._events.add([summary.image(_plain(tag), image, dataformats="CHW")], step)

    def log_histogram(self, step: int, tag: str, values: Tensor) -> None:
        """Log a histogram of the finite values in bins of equal width; nothing if no value is finite."""
        numbers = values.detach().to("cpu", torch.float64).numpy()
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size:
            low, high = numbers.min(), numbers.max()
            room = 0.0 if low < high else max(0.5, abs(high) * 1e-6)
            # NumPy's own edges have no width if all values are equal and large
            edges = np.linspace(low - room, high + room, BINS + 1)
            self._events.add([summary.histogram(_plain(tag), numbers, edges)], step)

    def log_text(self, tag: str, text: str) -> None:
        """Log a text, shown in a fixed-width font."""
        lines = escaped(text, keep="\n").splitlines()
        self._events.add([summary.text(tag, "\n".join(f"    {line}" for line in lines))])

    def log_hparams(self, options: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Log the options of a run and its final `val/<COCO metric>` for TensorBoard's hparams table."""
        shown = {
            key: value if isinstance(value, bool | int | float) else escaped(_as_text(value))
            for key, value in options.items()
        }
        finite = {f"val/{name}": value for name, value in metrics.items() if math.isfinite(value)}
        # only the names are used: TensorBoard takes the values from the scalars
        self._events.add(summary.hparams(shown, finite))

    def close(self) -> None:
        """Close the files."""
        try:
            self._events.close()
        finally:
            with _naming(self._metrics.name):
                self._metrics.close()


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _plain(tag: str) -> str:
    """Return a tag or a value that TensorBoard shows; class names are user data."""
    return shortened(escaped(tag), LONGEST_TAG)


class NullLogger:
    """Has the methods of `MetricsLogger` and writes nothing; used by all ranks but rank 0."""

    def _nothing(self, *_: Any) -> None:
        """Log nothing."""

    log_scalars = log_image = log_histogram = log_text = log_hparams = close = _nothing


class _Events:
    """An event file of TensorBoard, written synchronously.

    torch's `SummaryWriter` writes in a thread, which notices a full disk minutes later and prints a traceback.

    Args:
        folder: folder of the new file.
        step: TensorBoard drops records of earlier files after this step.
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
    """Add the name of the file to an `OSError`."""
    try:
        yield
    except OSError as error:
        error.filename = str(file)
        raise


def _reopen(path: Path, step: int) -> BinaryIO:
    """Open metrics.jsonl for appending, without damaged lines and without records after `step`."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    steps = [_step_of(line) for line in lines]
    if None in steps[:-1]:  # a killed run often leaves an incomplete last line
        log.warning("%s: removed %s", path, counted(steps[:-1].count(None), "damaged line"))
    kept = [line for line, its_step in zip(lines, steps, strict=True) if its_step is not None and its_step <= step]
    with atomic_file(path) as file:
        file.write(b"".join(line + b"\n" for line in kept))
    return path.open("ab")


def _step_of(line: bytes) -> int | None:
    """Return the step of a line of metrics.jsonl, or None if the line is damaged."""
    try:
        record = parse_json(line, "")
    except JsonError:
        return None
    return record["step"] if _is_record(record) else None
