"""Files written in one piece: whoever reads one meets the old or the new one, never a part."""

import json
from pathlib import Path
from typing import Any


def write_text(path: Path, text: str) -> None:
    """Write a text file, making its folder where that is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write plain values as a JSON file."""
    write_text(path, json.dumps(value))
