"""Streams: no escape codes of files, any encoding, and no error that ends the work."""

import errno
import io
import logging
import os
import sys

import pytest

from engine.display.progress import Progress, log, start_logging
from engine.display.tables import format_table
from engine.display.terminal import LONGEST, Output, Styled, for_people, safe_outputs

HOSTILE = "nut\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\udcff\r\x08"
HARMLESS = r"nut\x1b]0;owned\x07\x1b[2J\x9b31m\u202e\udcff\r\x08"


class Broken(io.TextIOBase):
    """A stream that fails as the system does."""

    def __init__(self, error):
        self._error, self.calls = error, 0

    def write(self, text=""):
        self.calls += 1
        raise self._error

    flush = write


@pytest.fixture(autouse=True)
def handlers(monkeypatch):
    monkeypatch.setattr(log, "handlers", [])


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_name_can_be_printed_in_any_encoding(encoding, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding, errors="strict"))
    with safe_outputs():
        print("漢字 \udcff ä")
        print("漢字 \udcff ä", file=sys.stderr)
    shown = raw.getvalue().decode(encoding)
    assert shown == "漢字 \udcff ä\n".encode(encoding, "backslashreplace").decode(encoding)


def test_control_characters_are_escaped_on_stdout_and_line_breaks_stay(monkeypatch):
    out, err = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with safe_outputs():
        print(HOSTILE, "b\n\tc")
        sys.stdout.write(Styled("\x1b[31mred\x1b[0m"))
        sys.stdout.writelines(["\x07", "\n"])
        sys.stderr.write("\r\x1b[32mbar")
    assert sys.stdout is out
    assert out.getvalue() == f"{HARMLESS} b\n\tc\n\x1b[31mred\x1b[0m\\x07\n"
    assert err.getvalue() == "\r\x1b[32mbar"


@pytest.mark.parametrize("number", [errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF, errno.EFBIG])
@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_an_output_that_goes_away_ends_nothing(number, name, monkeypatch):
    broken = Broken(OSError(number, os.strerror(number)))
    monkeypatch.setattr(sys, name, broken)
    with safe_outputs() as outputs:
        for _ in range(3):
            print("a", file=getattr(sys, name), flush=True)
        start_logging()
        log.warning("still works")
    (output,) = (output for output in outputs if output.error)
    assert output.error.errno == number
    assert (output.lost is None) == (number in (errno.EPIPE, errno.EIO))


@pytest.mark.parametrize("stream", [None, "closed"])
def test_an_output_that_is_closed_from_the_start(stream, monkeypatch):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed if stream else None)
    with safe_outputs():
        print("a", flush=True)
        list(Progress().track([1], "label"))


def test_a_bug_in_a_call_is_no_broken_output(monkeypatch):
    monkeypatch.setattr(sys, "stdout", Broken(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        sys.stdout.write("a")
    with pytest.raises(ValueError, match="a bug"):
        Output(sys.stdout, is_plain=True).write("a")


def test_the_rest_of_a_closed_pipe_goes_nowhere():
    """The descriptor is valid afterwards, so that the interpreter and child processes have no error either."""
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        output = Output(stream, is_plain=True)
        output.write("a")
        output.flush()
        assert output.error.errno == errno.EPIPE
        stream.write("b")


def test_the_log_is_harmless_on_the_terminal_and_in_the_file(tmp_path, capsys):
    start_logging(tmp_path / "train.log")
    log.warning("class %s", HOSTILE)
    log.info("漢字\nsecond line")
    out = capsys.readouterr().out
    assert out == f"class {HARMLESS}\n漢字\nsecond line\n"
    written = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert HARMLESS in written
    assert "\x1b" not in written


def test_colours_are_the_only_escape_codes(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    out = Terminal()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with safe_outputs():
        start_logging()
        log.error("class %s", HOSTILE)
    assert out.getvalue() == f"\x1b[31mclass {HARMLESS}\x1b[0m\n"


def test_a_log_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "train.log").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=r"train\.log"):
        start_logging(tmp_path / "train.log")
    assert (tmp_path / "victim").read_text() == "mine"


def test_a_message_has_an_end():
    message = for_people("x" * 3_000_000 + HOSTILE)
    assert len(message) == LONGEST
    assert message.endswith(HARMLESS)
    assert for_people("first\nsecond") == "first\nsecond"


def test_names_in_a_table_are_harmless_and_have_an_end():
    lines = format_table(["class", HOSTILE], [(HOSTILE, 1), ("a\nb", 2), ("x" * 3_000_000, 3)]).splitlines()
    assert len(lines) == 5
    assert HARMLESS in lines[0]
    assert HARMLESS in lines[2]
    assert r"a\nb" in lines[3]
    assert max(map(len, lines)) < 700


def test_the_label_of_a_bar_is_harmless(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    err = Terminal()
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", err)
    list(Progress().track([1], "\x1b]0;owned\x07.mp4"))
    assert r"\x1b]0;owned\x07.mp4" in err.getvalue()
    assert "\x07" not in err.getvalue()
    assert logging.getLogger("resnet_dcn") is log
