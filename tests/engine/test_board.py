"""What is logged, read back from metrics.jsonl and from TensorBoard's event files."""

import json
import math

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from engine.board import METRICS_FILE, Board


@pytest.fixture(autouse=True)
def counted_anew(monkeypatch):
    """Event files of one second are read in the order of a process-wide counter, as text: 10 before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def events(folder) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return accumulator.Reload()


def steps(folder, tag="train/loss") -> list[int]:
    return [event.step for event in events(folder).Scalars(tag)]


def test_scalars(tmp_path):
    board = Board(tmp_path)
    board.scalars(1, {"train/loss": 2.0, "lr/backbone": 0.1})
    board.scalars(2, {"train/loss": 1.5, "val/APl": math.nan, "val/AP": math.inf})
    # readable while the run goes on
    assert metrics(tmp_path) == [
        {"step": 1, "train/loss": 2.0, "lr/backbone": 0.1},
        {"step": 2, "train/loss": 1.5, "val/APl": None, "val/AP": None},
    ]
    board.close()
    read = events(tmp_path)
    assert sorted(read.Tags()["scalars"]) == ["lr/backbone", "train/loss"]
    assert [(event.step, event.value) for event in read.Scalars("train/loss")] == [(1, 2.0), (2, 1.5)]


def test_pictures_and_texts(tmp_path):
    board = Board(tmp_path)
    board.picture(3, "val/detections", torch.zeros(3, 8, 6, dtype=torch.uint8))
    board.text("config", "a: 1\nb: 2")
    board.close()
    read = events(tmp_path)
    (image,) = read.Images("val/detections")
    assert (image.step, image.width, image.height) == (3, 6, 8)
    (text,) = read.Tensors("config/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "    a: 1\n    b: 2"


def test_outcome(tmp_path):
    board = Board(tmp_path)
    board.outcome({"train.lr": 0.1, "stages": [2, 3], "weights": None}, {"AP": 0.25, "APl": math.nan})
    board.close()
    read = events(tmp_path)
    metrics = read.SummaryMetadata("_hparams_/experiment").plugin_data.content
    assert b"val/AP" in metrics
    assert b"val/APl" not in metrics
    content = read.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"train.lr" in content
    assert b"[2, 3]" in content
    assert b"null" in content


@pytest.mark.parametrize("cut", ["", '{"step": 4, "tra'])
def test_going_on_repeats_no_step(tmp_path, cut):
    board = Board(tmp_path)
    for step in (1, 2, 3, 4):
        board.scalars(step, {"train/loss": 1.0})
    board.close()
    if cut:  # as a killed process may leave it
        text = (tmp_path / METRICS_FILE).read_text()
        (tmp_path / METRICS_FILE).write_text(text[: text.index('{"step": 4')] + cut)
    board = Board(tmp_path, step=2)
    for step in (3, 4, 5):
        board.scalars(step, {"train/loss": 2.0})
    board.close()
    expected = [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    assert [(line["step"], line["train/loss"]) for line in metrics(tmp_path)] == expected
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("train/loss")] == expected


def test_starting_anew_repeats_no_step(tmp_path):
    """A run that was killed before its first checkpoint starts from step 0 in the same folder."""
    for value in (1.0, 2.0):
        board = Board(tmp_path)
        for step in range(1, 3 if value == 2 else 5):
            board.scalars(step, {"train/loss": value})
        board.close()
    assert [(line["step"], line["train/loss"]) for line in metrics(tmp_path)] == [(1, 2.0), (2, 2.0)]
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("train/loss")] == [(1, 2.0), (2, 2.0)]
