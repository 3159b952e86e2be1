"""Compare finished runs: COCO figures side by side, each with its difference to the first run."""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

import _clone

# isort: split
from engine.board import METRICS_FILE
from engine.checkpoint import load_checkpoint
from engine.config_file import flatten
from engine.evaluator import COCO_FIGURES, for_json
from engine.runs import LAST
from engine.tables import format_table, percent

EPILOG = """example:
  python tools/compare.py runs/demo runs/demo_dcn --json comparison.json
The figures are those of each run's last evaluation, on weights of the last step."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders; the others are compared with the first"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    return parser.parse_args()


def main() -> None:
    """Read the runs and show them."""
    args = parse_arguments()
    runs = {str(folder): read_run(folder) for folder in args.runs}
    first = next(iter(runs.values()))
    options = sorted(
        {key for run in runs.values() for key, value in run["config"].items() if value != first["config"].get(key)}
    )
    header = ["", *runs]
    rows = [[key, *(json.dumps(run["config"].get(key)) for run in runs.values())] for key in options]
    rows += [
        [name, *(_shown(run["figures"][name], first["figures"][name]) for run in runs.values())]
        for name in COCO_FIGURES
    ]
    classes = first["figures"]["per_class"]
    rows += [
        [f"AP {name}", *(_shown(run["figures"]["per_class"].get(name), ap) for run in runs.values())]
        for name, ap in classes.items()
    ]
    for label, key, form in (
        ("parameters", "parameters", ",d"),
        ("steps", "steps", ",d"),
        ("step, s", "step_s", ".3f"),
        ("data wait", "data_share", ".1%"),
    ):
        rows.append([label, *(format(run[key], form) for run in runs.values())])
    print(format_table(header, rows))
    print("\nAP and AR are x100; in brackets the difference to the first run.")
    if args.json:
        args.json.write_text(json.dumps({name: for_json(run) for name, run in runs.items()}))


def read_run(folder: Path) -> dict[str, Any]:
    """Read what a finished run left: config, last figures, number of parameters, median times of a step.

    Raises:
        ValueError: if the folder holds no finished run.
    """
    state = load_checkpoint(folder / LAST)
    lines = [json.loads(line) for line in (folder / METRICS_FILE).read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "time/step_s" in line]
    if state["figures"] is None or not steps:
        raise ValueError(f"{folder} was not evaluated yet, or logged no step; finish it by --resume auto")
    step_s, data_s = (median([line[f"time/{name}"] for line in steps]) for name in ("step_s", "data_s"))
    return {
        "config": dict(flatten(state["config"])),
        "figures": state["figures"],
        "parameters": state["parameters"],
        "steps": state["step"],
        "step_s": step_s,
        "data_share": data_s / step_s,
    }


def _shown(value: float | None, base: float) -> str:
    difference = "" if value is None or value != value or value is base else f" ({100 * (value - base):+.1f})"
    return percent(value) + difference


if __name__ == "__main__":
    _clone.run(main)
