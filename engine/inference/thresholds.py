"""Score thresholds in the file that tools/eval.py writes with --json."""

import math
from pathlib import Path
from typing import Any

from data.json_file import read_json
from data.shown import shown
from models.score_thresholds import thresholds_by_class

_KEYS = ("score_threshold", "per_class_score_threshold")


def read_thresholds(path: Path) -> dict[str, float]:
    """Read the best score threshold of each class; a class without its own has that of all classes.

    Raises:
        ValueError: if the file is missing, or has no thresholds from 0 to 1.
    """
    content = read_json(path, "file of score thresholds")
    if not isinstance(content, dict) or not {*_KEYS} <= content.keys() or not isinstance(content[_KEYS[1]], dict):
        raise ValueError(
            f"{path} must have {' and '.join(_KEYS)}, as tools/eval.py --json writes them, got {shown(content)}"
        )
    every, by_class = (content[key] for key in _KEYS)
    wrong = {key: value for key, value in {_KEYS[0]: every, **by_class}.items() if not _is_threshold(value)}
    if wrong:
        found = ", ".join(f"{shown(key)}: {shown(value)}" for key, value in [*wrong.items()][:3])
        raise ValueError(f"score thresholds in {path} must be from 0 to 1, or null; {len(wrong)} are not: {found}")
    if every is None:
        raise ValueError(f"{path} has no best score thresholds: no detection of the evaluation was correct")
    nan = {name: math.nan if value is None else value for name, value in by_class.items()}
    return thresholds_by_class({_KEYS[0]: every, _KEYS[1]: nan})


def _is_threshold(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and 0 <= value <= 1)
