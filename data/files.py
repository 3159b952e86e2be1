"""Files written in one piece: whoever reads one meets the old or the new one, never a part."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def in_one_piece(path: Path) -> Iterator[Path]:
    """Give a place beside a file that takes the file's at the end, and after an error goes away; makes the folder.

    Raises:
        OSError: that names the file, where the system does not, as on a full disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file, making its folder where that is missing."""
    with in_one_piece(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write plain values as a JSON file."""
    write_text(path, json.dumps(value))
