"""Work whose result is only shown."""

import logging

import pytest

from engine.display import guard
from engine.display.guard import only_shown
from engine.display.progress import log


@pytest.fixture(autouse=True)
def forget(monkeypatch):
    monkeypatch.setattr(guard, "_warned", set())


@pytest.mark.parametrize("error", [ValueError("x1 < x0"), RuntimeError("out of memory"), IndexError(), KeyError("a")])
def test_an_error_is_a_warning_and_appears_once(error, caplog):
    with caplog.at_level(logging.WARNING, log.name):
        for what in ("figures", "figures", "histograms"):
            with only_shown(what):
                raise error
    assert [message.partition(" ")[0] for message in caplog.messages] == ["figures", "histograms"]
    assert type(error).__name__ in caplog.messages[0]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(), OSError(28, "No space left on device")])
def test_the_end_of_the_process_and_a_full_disk_come_through(error):
    with pytest.raises(type(error)), only_shown("figures"):
        raise error
