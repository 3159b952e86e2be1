"""Output of a run: a coloured bar on a terminal, plain lines elsewhere, and the log file."""

import logging
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO

from colorama import Fore, Style, just_fix_windows_console
from tqdm import tqdm

from data.files import without_link
from data.shown import escaped

from .tables import counted
from .terminal import Styled, for_people

log = logging.getLogger("resnet_dcn")
log.addHandler(logging.NullHandler())  # ranks other than 0 never start logging


@dataclass(frozen=True)
class Palette:
    """Escape codes by meaning."""

    loss: str
    rate: str
    speed: str
    warning: str
    error: str
    strong: str
    reset: str


COLOURS = Palette(
    loss=Fore.RED,
    rate=Fore.MAGENTA,
    speed=Fore.CYAN,
    warning=Fore.YELLOW,
    error=Fore.RED,
    strong=Style.BRIGHT,
    reset=Style.RESET_ALL,
)
PLAIN = Palette("", "", "", "", "", "", "")


def wants_colour(stream: Any) -> bool:
    """Return whether a stream is a terminal and NO_COLOR is not set, https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR")


def _has_bar(stream: Any) -> bool:
    """Return whether a stream is a terminal that can show a bar; in scripts and containers its width may be 0."""
    try:
        return wants_colour(stream) and os.get_terminal_size(stream.fileno()).columns > 0
    except OSError:  # unknown width
        return True


class _ConsoleHandler(logging.Handler):
    """Prints records to stdout above the bar.

    Records marked `on_bar` are printed only without a bar. Records marked `file_only` are not printed.
    """

    def __init__(self, has_bar: bool) -> None:
        super().__init__()
        self.has_bar = has_bar
        self.palette = COLOURS if wants_colour(sys.stdout) else PLAIN

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "file_only", False) or (self.has_bar and getattr(record, "on_bar", False)):
            return
        style = ""
        if record.levelno >= logging.WARNING:
            style = self.palette.error if record.levelno >= logging.ERROR else self.palette.warning
        message = for_people(self.format(record))
        tqdm.write(Styled(f"{style}{message}{self.palette.reset}") if style else message, file=sys.stdout)
        sys.stdout.flush()


class _LogFile(logging.FileHandler):
    """Appends records to a file and raises if that fails; handlers of `logging` only print the error.

    A link to another file is an error, because the records would go there.
    """

    def _open(self) -> TextIO:
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=without_link)

    def format(self, record: logging.LogRecord) -> str:
        return for_people(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - name of logging
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)  # an error in the call, for example values that do not fit the format
            return
        error.filename = self.baseFilename  # the system does not name the file
        raise error


def start_logging(file: Path | None = None) -> None:
    """Send `log` to the terminal and, with timestamps, append it to `file`.

    If the file cannot be written, for example on a full disk, calls of `log` raise an `OSError` that names it.
    """
    just_fix_windows_console()
    log.setLevel(logging.INFO)
    log.handlers.clear()
    log.addHandler(_ConsoleHandler(has_bar=_has_bar(sys.stderr)))
    if file is not None:
        handler = _LogFile(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)


class Progress:
    """Shows the progress of training and of other long work.

    Args:
        palette: colours of the bar. None: `COLOURS` on a colour terminal, and no bar elsewhere.
        silent: show no bar; for ranks other than 0.
    """

    def __init__(self, palette: Palette | None = None, *, silent: bool = False) -> None:
        self.palette = None if silent else palette or (COLOURS if _has_bar(sys.stderr) else None)
        self._bar: tqdm | None = None

    def track(self, items: Iterable, label: str, total: int | None = None, *, unit: str = "it") -> Iterator:
        """Yield `items` and show a bar with a label, which is removed at the end."""
        label = escaped(label)
        options = {"leave": False, "dynamic_ncols": True, "colour": "green", "disable": self.palette is None}
        return iter(tqdm(items, desc=label, total=total, unit=unit, **options))

    def start_epoch(self, epoch: int, epochs: int, steps: int, done: int) -> None:
        """Open the bar of epoch `epoch` (from 1) with `steps` steps, of which `done` are completed."""
        if self.palette is not None:
            self._bar = tqdm(
                total=steps,
                initial=done,
                desc=f"{self.palette.strong}epoch {epoch}/{epochs}{self.palette.reset}",
                bar_format="{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt}{postfix}",
                colour="green",
                dynamic_ncols=True,
            )

    def step(self, record: Mapping[str, float]) -> None:
        """Show one step of `Trainer` on the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(describe_step(record, self.palette or PLAIN, parts_last=True), refresh=False)
            self._bar.update()

    def line(self, record: Mapping[str, float], epoch: int, epochs: int) -> None:
        """Log the mean of some steps as a line; on a terminal with a bar only to the log file."""
        log.info(
            "epoch %d/%d step %d: %s",
            epoch,
            epochs,
            record["step"],
            describe_step(record, PLAIN),
            extra={"on_bar": True},
        )

    def end_epoch(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def describe_step(record: Mapping[str, float], palette: Palette, *, parts_last: bool = False) -> str:
    """Format a step: loss and its parts, learning rate, images/s, time waiting for data, time left, memory.

    Args:
        record: numbers of the step, see `Trainer`. `skipped`, if present, counts images that could not be read.
        palette: colours.
        parts_last: put the parts of the loss at the end, where a narrow terminal cuts the bar.
    """
    parts = " ".join(
        f"{name.removeprefix('loss_')} {value:.3f}" for name, value in record.items() if name.startswith("loss_")
    )
    waited = 100 * record["data_s"] / record["step_s"]
    left = timedelta(seconds=round(record["eta_s"]))
    count = record.get("skipped")
    memory = "" if math.isnan(record["peak_gib"]) else f" {record['peak_gib']:.1f} GiB"
    skipped = f" {palette.warning}{counted(int(count), 'image')} skipped{palette.reset}" if count else ""
    return (
        f"{palette.loss}loss {record['loss']:.3f}{palette.reset}{'' if parts_last else f' ({parts})'} "
        f"{palette.rate}lr {record['lr']:.2g}{palette.reset} "
        f"{palette.speed}{record['images_per_s']:.1f} img/s{palette.reset} "
        f"data wait {waited:.0f}% eta {left}{memory}{skipped}"
        f"{f' ({parts})' if parts_last else ''}"
    )
