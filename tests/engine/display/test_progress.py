"""Output of a run: a coloured bar on a terminal, plain lines elsewhere."""

import errno
import io
import logging
import os
import pty
import re
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from engine.display import progress
from engine.display.progress import COLOURS, PLAIN, Progress, describe_step, log, start_logging, wants_colour

RECORD = {
    "step": 7,
    "loss": 1.23456,
    "loss_classifier": 1.0,
    "loss_rpn_box_reg": 0.23456,
    "grad_norm": 9.0,
    "lr": 0.00025,
    "images_per_s": 12.34,
    "data_s": 0.05,
    "step_s": 0.2,
    "eta_s": 3725.4,
    "peak_gib": 1.25,
}
SHOWN = "loss 1.235 (classifier 1.000 rpn_box_reg 0.235) lr 0.00025 12.3 img/s data wait 25% eta 1:02:05 1.2 GiB"
ESCAPE = re.compile("\x1b\\[[0-9;]*[A-Za-z]")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Remove NO_COLOR from the environment and restore the handlers of the log."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(log, "handlers", [])


@pytest.fixture
def streams(monkeypatch):
    def replace(kind):
        out, err = kind(), kind()
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        return out, err

    return replace


def test_skipped_images_are_counted():
    assert describe_step(RECORD | {"skipped": 0}, PLAIN) == SHOWN
    assert describe_step(RECORD | {"skipped": 12}, PLAIN) == f"{SHOWN} 12 images skipped"
    assert describe_step(RECORD | {"skipped": 1}, PLAIN) == f"{SHOWN} 1 image skipped"


def test_describe_step():
    assert describe_step(RECORD, PLAIN) == SHOWN
    coloured = describe_step(RECORD, COLOURS)
    assert f"{COLOURS.loss}loss 1.235{COLOURS.reset}" in coloured
    assert f"{COLOURS.rate}lr 0.00025{COLOURS.reset}" in coloured
    assert f"{COLOURS.speed}12.3 img/s{COLOURS.reset}" in coloured
    assert ESCAPE.sub("", coloured) == SHOWN
    assert all(vars(COLOURS).values())
    assert not any(vars(PLAIN).values())


def test_colour_is_for_terminals_without_no_color(monkeypatch):
    assert wants_colour(Terminal())
    assert not wants_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "")
    assert wants_colour(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not wants_colour(Terminal())


def train(file=None):
    """An epoch of two steps as the trainer shows it."""
    start_logging(file)
    shown = Progress()
    log.info("hello")
    log.warning("careful")
    assert list(shown.track([1, 2], "check")) == [1, 2]
    shown.start_epoch(3, 12, steps=2, done=1)
    shown.step(RECORD)
    shown.line(RECORD, 3, 12)
    shown.end_epoch()
    shown.end_epoch()  # an epoch that failed is ended too


@pytest.mark.parametrize(("columns", "has_bar"), [(0, False), (80, True)])
def test_a_terminal_without_a_width_gets_lines(columns, has_bar, monkeypatch, capsys):
    _, side = pty.openpty()
    termios.tcsetwinsize(side, (24, columns))
    with os.fdopen(side, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        start_logging()
        shown = Progress()
        shown.line(RECORD, 1, 2)
        assert (shown.palette is not None) == has_bar
    assert (SHOWN in capsys.readouterr().out) != has_bar


def test_a_terminal_gets_a_coloured_bar(streams, monkeypatch, tmp_path):
    out, err = streams(Terminal)
    monkeypatch.setenv("COLUMNS", "200")
    train(tmp_path / "train.log")
    bar = err.getvalue()
    assert f"{COLOURS.strong}epoch 3/12{COLOURS.reset}" in bar
    # a narrow terminal cuts what comes last
    ordered = "loss 1.235 lr 0.00025 12.3 img/s data wait 25% eta 1:02:05 1.2 GiB (classifier 1.000 rpn_box_reg 0.235)"
    assert ordered in ESCAPE.sub("", bar)
    assert f"{COLOURS.speed}12.3 img/s{COLOURS.reset}" in bar
    assert "100%" in bar
    assert "2/2" in bar
    assert " 50%" in bar  # a resumed epoch starts where it was
    assert "check" in bar
    said = out.getvalue().replace("\r", "")
    assert f"{COLOURS.warning}careful{COLOURS.reset}" in said
    assert "hello" in said
    assert "step 7" not in said  # the bar shows it
    assert "step 7" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize("kind", [io.StringIO, Terminal])
def test_elsewhere_there_are_plain_lines(streams, monkeypatch, kind, tmp_path):
    if kind is Terminal:
        monkeypatch.setenv("NO_COLOR", "1")
    out, err = streams(kind)
    train(tmp_path / "train.log")
    assert out.getvalue() == f"hello\ncareful\nepoch 3/12 step 7: {SHOWN}\n"
    assert err.getvalue() == ""
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "INFO hello",
        "WARNING careful",
        f"INFO epoch 3/12 step 7: {SHOWN}",
    ]
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d", line) for line in lines)


def test_errors_are_red_and_the_log_file_is_continued(streams, tmp_path):
    out, _ = streams(Terminal)
    for word in ("one", "two"):
        start_logging(tmp_path / "train.log")
        log.error(word)
    assert out.getvalue().replace("\r", "").count(COLOURS.error) == 2
    text = (tmp_path / "train.log").read_text()
    assert "ERROR one" in text
    assert "ERROR two" in text
    assert "\x1b" not in text
    assert len([handler for handler in log.handlers if isinstance(handler, logging.FileHandler)]) == 1
    assert progress.log is logging.getLogger("resnet_dcn")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_an_error_that_names_the_log_file(tmp_path):
    file = tmp_path / "train.log"
    file.symlink_to("/dev/full")
    code = f"""
from pathlib import Path
from engine.display.progress import log, start_logging
start_logging(Path({str(file)!r}))
for word in ("one", "two"):  # not only once
    try:
        log.info(word)
    except OSError as error:
        print(error.errno, error)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    said = f"{errno.ENOSPC} [Errno {errno.ENOSPC}] No space left on device: '{file}'"
    assert done.stdout.splitlines() == ["one", said, "two", said]
    assert done.stderr == ""
    assert done.returncode == 0


def test_a_fault_in_a_call_of_the_log_is_shown_as_ever(streams, tmp_path):
    _, err = streams(io.StringIO)
    start_logging(tmp_path / "train.log")
    log.handlers[-1].handle(logging.LogRecord("resnet_dcn", logging.INFO, "x.py", 1, "%d", ("text",), None))
    assert "--- Logging error ---" in err.getvalue()
