"""Logged metrics, read back from metrics.jsonl and from TensorBoard's event files."""

import contextlib
import errno
import json
import math
import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from engine.display.progress import log
from engine.training.metrics_logger import METRICS_FILE, MetricsLogger, NullLogger, read_metrics

KINDS = ("scalars", "images", "histograms", "tensors")


def metrics(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / METRICS_FILE).read_text().splitlines()]


def events(folder) -> EventAccumulator:
    accumulator = EventAccumulator(str(folder), size_guidance=dict.fromkeys(KINDS, 0))
    return accumulator.Reload()


def steps(folder, tag="train/loss") -> list[int]:
    return [event.step for event in events(folder).Scalars(tag)]


def test_scalars(tmp_path):
    metrics_logger = MetricsLogger(tmp_path)
    metrics_logger.log_scalars(1, {"train/loss": 2.0, "lr/backbone": 0.1})
    metrics_logger.log_scalars(2, {"train/loss": 1.5, "val/APl": math.nan, "val/AP": math.inf})
    # readable during the run
    assert metrics(tmp_path) == [
        {"step": 1, "train/loss": 2.0, "lr/backbone": 0.1},
        {"step": 2, "train/loss": 1.5, "val/APl": None, "val/AP": None},
    ]
    metrics_logger.close()
    read = events(tmp_path)
    assert sorted(read.Tags()["scalars"]) == ["lr/backbone", "train/loss"]
    assert [(event.step, event.value) for event in read.Scalars("train/loss")] == [(1, 2.0), (2, 1.5)]


def test_images_and_texts(tmp_path):
    metrics_logger = MetricsLogger(tmp_path)
    metrics_logger.log_image(3, "val/detections", torch.zeros(3, 8, 6, dtype=torch.uint8))
    metrics_logger.log_text("config", "a: 1\nb: 2")
    metrics_logger.close()
    read = events(tmp_path)
    (image,) = read.Images("val/detections")
    assert (image.step, image.width, image.height) == (3, 6, 8)
    (text,) = read.Tensors("config/text_summary")
    assert text.tensor_proto.string_val[0].decode() == "    a: 1\n    b: 2"


def test_histograms(tmp_path):
    metrics_logger = MetricsLogger(tmp_path)
    numbers = torch.tensor([[-1.0, 0.0, 0.25], [3.0, math.nan, math.inf]], requires_grad=True)
    metrics_logger.log_histogram(3, "dcn_offset_px/layer3.0.conv2", numbers)
    metrics_logger.log_histogram(4, "dcn_offset_px/layer3.0.conv2", torch.zeros(2, 3, 4, dtype=torch.bfloat16))
    metrics_logger.log_histogram(5, "dcn_offset_px/layer3.0.conv2", torch.full((3,), math.nan))
    metrics_logger.log_histogram(6, "dcn_offset_px/layer3.0.conv2", torch.empty(0, 2))
    metrics_logger.log_histogram(
        7, "dcn_offset_px/layer3.0.conv2", torch.tensor([1e6, 1e6 + 1e-9], dtype=torch.float64)
    )
    metrics_logger.close()
    first, second, third = events(tmp_path).Histograms("dcn_offset_px/layer3.0.conv2")
    assert (first.step, second.step, third.step) == (3, 4, 7)
    value = first.histogram_value
    assert (value.min, value.max, value.num, value.sum) == (-1, 3, 4, 2.25)
    found = {limit: count for limit, count in zip(value.bucket_limit, value.bucket, strict=True) if count}
    # bins of 1/16: each value is below the upper limit of its bin; the last bin includes its limit
    assert found == {-1 + 1 / 16: 1, 1 / 16: 1, 0.25 + 1 / 16: 1, 3: 1}
    assert (second.histogram_value.num, second.histogram_value.sum) == (24, 0)
    assert third.histogram_value.num == 2


def test_outcome(tmp_path):
    metrics_logger = MetricsLogger(tmp_path)
    metrics_logger.log_hparams({"train.lr": 0.1, "stages": [2, 3], "weights": None}, {"AP": 0.25, "APl": math.nan})
    metrics_logger.close()
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
    metrics_logger = MetricsLogger(tmp_path)
    for step in (1, 2, 3, 4):
        metrics_logger.log_scalars(step, {"train/loss": 1.0})
    metrics_logger.close()
    if cut:  # as a killed process may leave it
        text = (tmp_path / METRICS_FILE).read_text()
        (tmp_path / METRICS_FILE).write_text(text[: text.index('{"step": 4')] + cut)
    metrics_logger = MetricsLogger(tmp_path, step=2)
    for step in (3, 4, 5):
        metrics_logger.log_scalars(step, {"train/loss": 2.0})
    metrics_logger.close()
    expected = [(1, 1.0), (2, 1.0), (3, 2.0), (4, 2.0), (5, 2.0)]
    assert [(line["step"], line["train/loss"]) for line in metrics(tmp_path)] == expected
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("train/loss")] == expected


def test_a_new_start_repeats_no_step(tmp_path):
    """A run that was killed before its first checkpoint starts from step 0 in the same folder."""
    for value in (1.0, 2.0):
        metrics_logger = MetricsLogger(tmp_path)
        for step in range(1, 3 if value == 2 else 5):
            metrics_logger.log_scalars(step, {"train/loss": value})
        metrics_logger.close()
    assert [(line["step"], line["train/loss"]) for line in metrics(tmp_path)] == [(1, 2.0), (2, 2.0)]
    assert [(event.step, event.value) for event in events(tmp_path).Scalars("train/loss")] == [(1, 2.0), (2, 2.0)]


def test_event_files_of_one_second_are_read_in_order(tmp_path):
    for start in range(15):
        metrics_logger = MetricsLogger(tmp_path, step=start)
        metrics_logger.log_scalars(start + 1, {"train/loss": 1.0})
        metrics_logger.log_scalars(start + 2, {"train/loss": 1.0})
        metrics_logger.close()
    assert steps(tmp_path) == list(range(1, 17))


def test_a_process_that_logs_nothing(tmp_path):
    metrics_logger, silent = MetricsLogger(tmp_path), NullLogger()
    public = {name for name in dir(metrics_logger) if not name.startswith("_")}
    assert {name for name in dir(silent) if not name.startswith("_")} == public
    silent.log_scalars(1, {"train/loss": 2.0})
    silent.log_image(1, "val/detections", torch.zeros(3, 4, 4, dtype=torch.uint8))
    silent.log_histogram(1, "dcn_mask/layer3.0.conv2", torch.zeros(3))
    silent.log_text("config", "a: 1")
    silent.log_hparams({}, {})
    silent.close()
    metrics_logger.close()


DAMAGED = [
    *(b"[1]", b"5", b"null", b"", b'{"loss": 1}', b'{"step": "2"}', b'{"step": 2.5}', b'{"step": 2, "lo'),
    *(b"\xff\x00", b"\0" * 100, b"[" * 100_000, b'{"step": 2, "train/loss": "1"}', b'{"step": true}'),
    *(b'{"step": 2, "a": NaN}', b'{"step": 2, "a": 1e999}', b'{"step": 2, "a": ' + b"9" * 400 + b"}"),
]


@pytest.mark.parametrize("line", DAMAGED)
def test_damaged_metrics_are_removed(tmp_path, caplog, monkeypatch, line):
    monkeypatch.setattr(log, "handlers", [])
    lines = [json.dumps({"step": step, "train/loss": 1.0}).encode() for step in (1, 2, 3, 4)]
    (tmp_path / METRICS_FILE).write_bytes(b"\n".join([*lines[:2], line, line, *lines[2:], b'{"step']))
    metrics_logger = MetricsLogger(tmp_path, step=3)
    metrics_logger.log_scalars(4, {"train/loss": 2.0})
    metrics_logger.close()
    assert [(line["step"], line["train/loss"]) for line in metrics(tmp_path)] == [(1, 1), (2, 1), (3, 1), (4, 2)]
    assert caplog.messages == [f"{tmp_path / METRICS_FILE}: removed 2 damaged lines"]


def test_a_run_that_was_killed_is_no_news(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(log, "handlers", [])
    (tmp_path / METRICS_FILE).write_text('{"step": 1}\n{"step": 2, "los')
    MetricsLogger(tmp_path, step=1).close()
    assert metrics(tmp_path) == [{"step": 1}]
    assert caplog.messages == []


def log_losses(metrics_logger, steps, value=1.0) -> None:
    for step in steps:
        metrics_logger.log_scalars(step, {"train/loss": value})


class TestFullDisk:
    @pytest.fixture
    def folder(self, mounted):
        """A file system of 1 MiB."""
        return mounted("size=1m")

    def fill(self, folder, leave=0):
        (folder / "others").write_bytes(bytes(shutil.disk_usage(folder).free - leave))

    @pytest.mark.parametrize(
        ("call", "file"),
        [
            (
                lambda metrics_logger: metrics_logger.log_image(
                    1, "val/detections", torch.randint(256, (3, 99, 99)).byte()
                ),
                "events.out",
            ),
            (
                lambda metrics_logger: [
                    metrics_logger.log_histogram(1, "dcn_mask/0", torch.rand(99)) for _ in range(99)
                ],
                "events.out",
            ),
            (lambda metrics_logger: metrics_logger.log_text("config", "a: 1\n" * 9000), "events.out"),
            (lambda metrics_logger: metrics_logger.log_hparams({"key": "x" * 9000}, {"AP": 0.5}), "events.out"),
            (lambda metrics_logger: log_losses(metrics_logger, range(1, 200)), ""),
            (lambda metrics_logger: metrics_logger.log_scalars(1, {"x" * 9000: math.nan}), "metrics.jsonl"),
        ],
        ids=["picture", "histogram", "text", "outcome", "scalars", "metrics"],
    )
    def test_the_call_fails_and_names_the_file(self, folder, capfd, call, file):
        metrics_logger = MetricsLogger(folder)
        metrics_logger.log_scalars(0, {"train/loss": 1.0})
        self.fill(folder)
        for _ in range(2):
            with pytest.raises(OSError, match=rf"No space left on device: '{folder}/{file}") as caught:
                call(metrics_logger)
            assert caught.value.errno == errno.ENOSPC
        with contextlib.suppress(OSError):  # where something waits to be written
            metrics_logger.close()
        metrics_logger.close()
        assert capfd.readouterr() == ("", "")

    def test_a_close_that_fails_names_the_files_and_closes_both(self, folder):
        metrics_logger = MetricsLogger(folder)
        self.fill(folder)
        with pytest.raises(OSError, match=METRICS_FILE):
            metrics_logger.log_scalars(1, {"x" * 4000: math.nan})
        with pytest.raises(OSError, match=r"events\.out"):
            metrics_logger.log_text("config", "x" * 6000)
        with pytest.raises(OSError, match=f"No space left on device: '{folder}/metrics.jsonl'") as caught:
            metrics_logger.close()
        assert caught.value.__context__.filename.startswith(f"{folder}/events.out")
        assert metrics_logger._metrics.closed
        assert metrics_logger._events._file.closed

    @pytest.mark.parametrize("room", [0, 1, 2])
    def test_a_run_resumes_when_the_disk_has_room_again(self, folder, room):
        metrics_logger = MetricsLogger(folder)
        log_losses(metrics_logger, range(1, 6))
        self.fill(folder, room * 4096)
        with pytest.raises(OSError, match="No space left"):
            log_losses(metrics_logger, range(6, 1000))
        with contextlib.suppress(OSError):
            metrics_logger.close()
        (folder / "others").unlink()
        metrics_logger = MetricsLogger(folder, step=5)
        log_losses(metrics_logger, range(6, 9), 2.0)
        metrics_logger.close()
        expected = [(step, 1.0 if step < 6 else 2.0) for step in range(1, 9)]
        assert [(line["step"], line["train/loss"]) for line in metrics(folder)] == expected
        assert [(event.step, event.value) for event in events(folder).Scalars("train/loss")] == expected

    @pytest.mark.parametrize("resumed", [True, False])
    def test_a_logger_that_cannot_start(self, folder, resumed):
        before = '{"step": 1}\n' * 300 if resumed else ""
        (folder / METRICS_FILE).write_text(before)
        self.fill(folder)
        file = METRICS_FILE if resumed else "events.out"
        with pytest.raises(OSError, match=f"No space left on device: '{folder}/{file}"):
            MetricsLogger(folder, step=1)
        assert (folder / METRICS_FILE).read_text() == before


def test_tags_of_version_0_1_are_read_under_their_present_names(tmp_path):
    old = {
        "step": 1,
        "train/loss": 2.0,
        "val/AP": 0.5,
        "val_raw/AP": 0.4,
        "dcn/offset_mean_px": 1.0,
        "dcn/offset_max_px": 2.0,
        "dcn/outside_share_added": 0.1,
        "dcn_outside_share/layer2.0.conv2": 0.2,
        "dcn_mask_share_below_0.1/layer2.0.conv2": None,
    }
    new = {
        "step": 1,
        "train/loss": 2.0,
        "val/AP": 0.5,
        "val_no_ema/AP": 0.4,
        "dcn_offset_mean_px/mean": 1.0,
        "dcn_offset_max_px/max": 2.0,
        "dcn_outside_frac_vs_regular/mean": 0.1,
        "dcn_outside_frac/layer2.0.conv2": 0.2,
        "dcn_mask_frac_lt_0.1/layer2.0.conv2": None,
    }
    file = tmp_path / METRICS_FILE
    file.write_text(json.dumps(old) + "\n" + json.dumps(new) + "\n")
    assert read_metrics(file) == [new, new]


@pytest.mark.parametrize("line", DAMAGED)
@pytest.mark.parametrize("ending", [b"\n", b""])
def test_damaged_lines_are_skipped_with_a_warning(tmp_path, caplog, line, ending):
    if not line:
        return
    file = tmp_path / METRICS_FILE
    records = [{"step": 1, "train/loss": 1.0}, {"step": 2, "train/loss": None}]
    whole = [json.dumps(record).encode() for record in records]
    file.write_bytes(b"\n".join([whole[0], line, whole[1], line]) + ending)
    assert read_metrics(file) == records
    assert caplog.messages == [f"{file}: skipped 2 damaged lines, first line 2"]


@pytest.mark.parametrize(
    "values",
    [
        [3e38, -3e38],
        [1e20, 1e20],
        [3e38] * 3,
        [1e20, 1.0000001e20],
        [0.0],
        [1e-45, 0.0],
        [math.nan, 1.0, math.inf],
    ],
)
def test_histograms_of_any_finite_values(values, tmp_path):
    metrics_logger = MetricsLogger(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        metrics_logger.log_histogram(1, f"a/{dtype}", torch.tensor(values).to(dtype))
    metrics_logger.close()
    assert len(events(tmp_path).Tags()["histograms"]) == 2


def test_names_of_files_are_harmless_in_tensorboard(tmp_path):
    name, shown = "nut\x1b[2J\n\x00\udcff" + "x" * 10_000, r"val_per_class/nut\x1b[2J\n\x00\udcff"
    metrics_logger = MetricsLogger(tmp_path)
    metrics_logger.log_scalars(1, {f"val_per_class/{name}": 1.0})
    metrics_logger.log_image(1, f"val_per_class/{name}", torch.zeros(3, 8, 6, dtype=torch.uint8))
    metrics_logger.log_histogram(1, f"val_per_class/{name}", torch.ones(3))
    metrics_logger.log_text("config", f"a: {name}")
    metrics_logger.log_hparams({"name": name, "names": [name]}, {})
    metrics_logger.close()
    tags = events(tmp_path).Tags()
    for kind in ("scalars", "images", "histograms"):
        (tag,) = tags[kind]
        assert tag.startswith(shown)
        assert len(tag) <= 500
    assert metrics(tmp_path)[0][f"val_per_class/{name}"] == 1.0  # whole in the file
