"""Finished runs, read from their folders and grouped by config."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from data.paths import resolved
from models import DETECTORS
from models.checkpoint_form import RUN
from models.options import Affects

from ..config import RunConfig, check_config, flatten, keys_that_affect
from ..display import log
from ..runs import LAST
from ..training import METRICS_FILE, read_metrics
from ..weights import load_trained

# Tags of which a comparison needs at least one value.
_NEEDED_TAGS = ("time/step_s", "time/data_s")


@dataclass(frozen=True)
class Run:
    """A finished run, without its weights.

    Attributes:
        folder: run folder, as given.
        config: config of the run with the overrides of the command line, such as data paths.
        options: options of the training by dotted key, without sections of other detectors. Options that are newer than
            the run have their defaults.
        metrics: `coco_metrics` of the last weights, from the last evaluation.
        parameters: number of parameters.
        steps: number of optimizer steps.
        images_in_step: images per optimizer step, over all processes.
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
        """Random seed of the run."""
        return self.options["seed"]

    @property
    def step_s(self) -> float:
        """Median seconds of a training step."""
        return median(self.curve("time/step_s")[1])

    @property
    def data_share(self) -> float:
        """Median wait for data, as a fraction of the median step."""
        return median(self.curve("time/data_s")[1]) / self.step_s

    @property
    def peak_gib(self) -> float:
        """Peak memory of training, see `peak_memory_gib`; NaN if it was not measured."""
        return max(self.curve("memory/peak_gib")[1], default=math.nan)

    def curve(self, tag: str) -> tuple[list[int], list[float]]:
        """Return steps and values of a logged scalar; values that are not finite are skipped."""
        points = [(line["step"], line[tag]) for line in self.records if line.get(tag) is not None]
        return [step for step, _ in points], [value for _, value in points]

    def as_json(self) -> dict[str, Any]:
        """Return options and results as plain values."""
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
    """Read a finished run.

    Args:
        folder: run folder.
        overrides: `key=value` overrides of its config, such as `data.val.images=photos`.

    Raises:
        ValueError: if the folder does not contain a finished run.
    """
    if folder.is_file():
        raise ValueError(f"{folder} must be a run folder with {LAST} and {METRICS_FILE}, got a file")
    trained = load_trained(folder / LAST, overrides, needed=RUN)
    path, state = trained.path, trained.state
    file = folder / METRICS_FILE
    if not file.is_file():
        raise ValueError(
            f"{file} does not exist (resolved: {resolved(file)}): a run folder must contain it and {path.name}"
        )
    records = read_metrics(file)
    logged = {tag for line in records for tag, value in line.items() if value is not None}
    if state["metrics"] is None or not logged.issuperset(_NEEDED_TAGS):
        raise ValueError(f"{folder} has no evaluation or no logged step; finish the run with --resume auto")
    if state["last_eval_step"] != state["step"]:
        raise ValueError(
            f"{folder} is at step {state['step']}, but was last evaluated at step {state['last_eval_step']}; "
            "finish the run with --resume auto"
        )
    if not trained.is_finished:
        log.warning(
            "%s ended at step %d, before the end of its schedule; the comparison uses this state (--resume auto "
            "finishes the run)",
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
    """Group runs that differ only in the seed, in the order given, by the common part of their folder names.

    Raises:
        ValueError: if a run is given twice (same folder, or same config and seed), or val splits differ.
    """
    for run in runs[1:]:
        if run.annotations["val"] != runs[0].annotations["val"]:
            raise ValueError(
                f"{runs[0].folder} and {run.folder} were evaluated on different annotation files "
                f"({runs[0].options['data.val.annotations']} and {run.options['data.val.annotations']}, by SHA-256); "
                "compare runs with the same val split"
            )
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(_what_is_learned(run), []).append(run)
    for group in alike.values():
        by_seed: dict[int, Run] = {}
        for run in group:
            if run.seed in by_seed:
                raise ValueError(
                    f"{by_seed[run.seed].folder} and {run.folder} have the same config and seed ({run.seed}), so they "
                    "are the same run twice; use another seed, or remove one of them"
                )
            by_seed[run.seed] = run
    return dict(zip(_names([*alike.values()]), alike.values(), strict=True))


def check_same_limit(runs: Sequence[Run]) -> None:
    """Raise `ValueError` unless evaluation counts as many detections of all runs."""
    limits = {run.config.eval.max_detections: run.folder for run in runs}
    if len(limits) > 1:
        found = ", ".join(f"{limit} in {folder}" for limit, folder in limits.items())
        raise ValueError(
            f"eval.max_detections must be the same for all runs, got {found}; add eval.max_detections={max(limits)}"
        )


def check_same_channels(runs: Sequence[Run]) -> None:
    """Raise `ValueError` unless all runs have images of the same number of channels: they share the val split."""
    channels = {run.config.data.channels: run.folder for run in runs}
    if len(channels) > 1:
        found = ", ".join(f"{count} in {folder}" for count, folder in channels.items())
        raise ValueError(
            f"data.channels must be the same for all runs, which are compared on the same images, got {found}"
        )


def option_differences(groups: dict[str, list[Run]]) -> dict[str, list[str]]:
    """Return the options that differ between groups, except the seed: JSON values of each group by dotted key.

    A run without the option, for example of another detector, has "-".
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
    """Return all options by dotted key, without the sections of other detectors."""
    values = config.model_dump(mode="json")
    for name in DETECTORS:
        if name != config.model.detector:
            values["model"].pop(name, None)
    return dict(flatten(values))


def _what_is_learned(run: Run) -> str:
    """Return a key that is equal for runs of one config: all except the seed; SHA-256 instead of data paths."""
    irrelevant = keys_that_affect(Affects.NOTHING)
    options = {key: value for key, value in run.options.items() if key not in irrelevant}
    return json.dumps([options, run.annotations, run.images_in_step], sort_keys=True)


def _names(groups: list[list[Run]]) -> list[str]:
    """Return a name for each group: short, or with the parent folder if two would be equal."""
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
        stems = {_last_name(resolved(run.folder).parent) for run in group}
    if len(stems) == 1:
        return stems.pop()
    return f"{_last_name(group[0].folder)} and {len(group) - 1} more"


def _without_seed(name: str, seed: int) -> str:
    return re.sub(rf"(^|[\W_]+)(seed|s)?[\W_]*{seed}$", "", name)


def _last_name(folder: Path) -> str:
    return folder.name or resolved(folder).name
