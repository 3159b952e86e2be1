"""What finished runs left, and which of them are seeds of one config."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from models import DETECTORS
from models.options import Affects

from ..config import RunConfig, check_config, flatten, keys_that_affect
from ..display import log
from ..runs import LAST
from ..training import METRICS_FILE, read_metrics
from ..weights import load_trained


@dataclass(frozen=True)
class Run:
    """A finished run, without its weights.

    Attributes:
        folder: as it was named.
        config: of the run, with what the command line put over it, as paths of the data.
        options: of the run as it was trained, by dotted key, without those of detectors that it is not; those that came
            after it have their defaults.
        metrics: of `coco_metrics` for its last weights, as its last evaluation found them.
        parameters: of the model.
        steps: updates done. images_in_step: of one update, over all processes.
        annotations: SHA-256 of the annotation file of "train" and "val".
        records: lines of metrics.jsonl.
    """

    folder: Path
    config: RunConfig
    options: dict[str, Any]
    metrics: dict[str, Any]
    parameters: int
    steps: int
    images_in_step: int
    annotations: dict[str, str]
    records: list[dict[str, Any]]

    @property
    def seed(self) -> int:
        """Of everything random in the run."""
        return self.options["seed"]

    @property
    def step_s(self) -> float:
        """Median seconds of a training step."""
        return median(self.curve("time/step_s")[1])

    @property
    def data_share(self) -> float:
        """Median wait for data over the median step."""
        return median(self.curve("time/data_s")[1]) / self.step_s

    @property
    def peak_gib(self) -> float:
        """Most memory that training took, see `peak_memory_gib`."""
        return max(self.curve("memory/peak_gib")[1])

    def curve(self, tag: str) -> tuple[list[int], list[float]]:
        """Steps and values at which a scalar was logged; where it was not finite it is left out."""
        points = [(line["step"], line[tag]) for line in self.records if line.get(tag) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def as_json(self) -> dict[str, Any]:
        """What it is and what came of it, in plain values."""
        return {
            "config": self.options,
            "figures": self.metrics,
            "parameters": self.parameters,
            "steps": self.steps,
            "step_s": self.step_s,
            "data_share": self.data_share,
            "peak_gib": self.peak_gib,
        }


def read_run(folder: Path, overrides: Sequence[str] = ()) -> Run:
    """Read what a finished run left.

    Args:
        folder: of the run.
        overrides: `key=value` laid over its config for what is done with it now, as in `data.val.images=photos`.

    Raises:
        ValueError: if the folder holds no finished run.
    """
    if folder.is_file():
        raise ValueError(f"{folder} must be the folder of a run, with its {LAST} and {METRICS_FILE}, and is a file")
    trained = load_trained(folder / LAST, overrides)
    path, state = trained.path, trained.state
    file = folder / METRICS_FILE
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist (resolved: {file.resolve()}): a run folder must hold it and {path.name}"
        )
    records = read_metrics(file)
    if state["metrics"] is None or not any("time/step_s" in line for line in records):
        raise ValueError(f"{folder} was not evaluated yet, or logged no step; finish it by --resume auto")
    if state["last_eval_step"] != state["step"]:
        raise ValueError(
            f"{folder} is at step {state['step']}, but was last evaluated at step {state['last_eval_step']}; "
            "finish it by --resume auto"
        )
    if not trained.is_finished:
        log.warning(
            "%s ended at step %d, before the end that its config asks for, and is compared as it is; --resume auto "
            "finishes it",
            folder,
            state["step"],
        )
    return Run(
        folder=folder,
        config=trained.config,
        options=_used_options(check_config(state["config"], str(path))),
        metrics=state["metrics"],
        parameters=state["parameters"],
        steps=state["step"],
        images_in_step=state["images_in_step"],
        annotations=state["annotations"],
        records=records,
    )


def group_runs(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Put seeds of one config together, in the order of the first of each; by the name that their folders share.

    Raises:
        ValueError: if a run stands twice, by folder or by config and seed, or not all were judged on one val split.
    """
    for run in runs[1:]:
        if run.annotations["val"] != runs[0].annotations["val"]:
            raise ValueError(
                f"{runs[0].folder} and {run.folder} were judged on different annotation files "
                f"({runs[0].options['data.val.annotations']} and {run.options['data.val.annotations']}, by their "
                "SHA-256); only runs of one val split can be compared"
            )
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(_what_is_learned(run), []).append(run)
    for group in alike.values():
        by_seed: dict[int, Run] = {}
        for run in group:
            if run.seed in by_seed:
                raise ValueError(
                    f"{by_seed[run.seed].folder} and {run.folder} have one config and one seed ({run.seed}): that is "
                    "the same run twice; give other seeds, or leave one out"
                )
            by_seed[run.seed] = run
    return dict(zip(_names([*alike.values()]), alike.values(), strict=True))


def option_differences(groups: dict[str, list[Run]]) -> dict[str, list[str]]:
    """The options that are not the same in all runs but for the seed, as JSON, by dotted key and in each group.

    A run that has no such option, as one of another detector, has a "-".
    """
    runs = [run for group in groups.values() for run in group]
    found = {}
    for key in sorted({key for run in runs for key in run.options} - {"seed"}):
        cells = [
            dict.fromkeys(json.dumps(run.options[key]) if key in run.options else "-" for run in group)
            for group in groups.values()
        ]
        if len({value for cell in cells for value in cell}) > 1:
            found[key] = [", ".join(cell) for cell in cells]
    return found


def _used_options(config: RunConfig) -> dict[str, Any]:
    """All options by dotted key, but for the sections of other detectors, which change nothing in this one."""
    values = config.model_dump(mode="json")
    for name in DETECTORS:
        if name != config.model.detector:
            values["model"].pop(name, None)
    return dict(flatten(values))


def _what_is_learned(run: Run) -> str:
    """What runs of one config have in common: all but the seed, and places, for which the files' SHA-256 count."""
    irrelevant = keys_that_affect(Affects.NOTHING)
    options = {key: value for key, value in run.options.items() if key not in irrelevant}
    return json.dumps([options, run.annotations, run.images_in_step], sort_keys=True)


def _names(groups: list[list[Run]]) -> list[str]:
    """A name for each group: short, or where two would be the same, with the folder before it."""
    short = [_name(group) for group in groups]
    whole = [f"{group[0].folder.parent / name}" for group, name in zip(groups, short, strict=True)]
    names: list[str] = []
    for name, longer in zip(short, whole, strict=True):
        chosen = name if short.count(name) == 1 else longer
        while chosen in names:
            chosen += "'"
        names.append(chosen)
    return names


def _name(group: list[Run]) -> str:
    if len(group) == 1:
        return _last_name(group[0].folder)
    stems = {_without_seed(_last_name(run.folder), run.seed) for run in group}
    if stems == {""}:  # runs/plain/seed0 and runs/plain/seed1
        stems = {_last_name(run.folder.resolve().parent) for run in group}
    if len(stems) == 1:
        return stems.pop()
    return f"{_last_name(group[0].folder)} and {len(group) - 1} more"


def _without_seed(name: str, seed: int) -> str:
    return re.sub(rf"(^|[\W_]+)(seed|s)?[\W_]*{seed}$", "", name)


def _last_name(folder: Path) -> str:
    return folder.name or folder.resolve().name
