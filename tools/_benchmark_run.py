"""A run as tools/train.py does it, and how long its steps take, for `benchmark.py loop`."""

import contextlib
import io
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from engine.training import Board
from engine.building import build_model, build_trainer, images_in_step, needs_masks, read_split
from engine.runs import Checkpoints
from engine.config import RunConfig
from engine.evaluation import COCO_FIGURES
from engine.distributed import StopRequest
from engine.display import Progress, log, start_logging
from engine.runs import LOG_FILE
from engine.training import Trainer

# A run's first steps wait until its workers have started: this share of them does not count.
WARM_UP = 0.1


class Step(NamedTuple):
    """What a `Watch` keeps of a step: when it ended, how long it waited for data (seconds), and its loss."""

    end_s: float
    data_s: float
    loss: float


class Watch:
    """Stands before a `Progress` and keeps what is shown of each step."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.steps: list[Step] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._progress, name)

    def step(self, record: dict[str, float]) -> None:
        """Show a step, then keep it."""
        self._progress.step(record)
        self.steps.append(Step(time.perf_counter(), record["data_s"], record["loss"]))


def measure_run(config: RunConfig, folder: Path, device: torch.device) -> dict[str, float]:
    """Train for one epoch and give what its steps took by the clock, with all that lies between them."""
    watch, checkpoint_s = Watch(Progress()), []
    with logging_into(folder):
        trainer = assemble(config, folder, device, watch, checkpoint_s)
        trainer.fit()
        trainer.board.close()
    left_out = max(1, math.ceil(WARM_UP * len(watch.steps)))
    counted = watch.steps[left_out - 1 :]
    durations_s = [step.end_s - before.end_s for before, step in itertools.pairwise(counted)]
    return {
        "counted_steps": len(durations_s),
        "counted_s": sum(durations_s),
        "images_per_s": images_in_step(config.train, 1) * len(durations_s) / sum(durations_s),
        "step_s": statistics.median(durations_s),
        "data_wait_share": sum(step.data_s for step in counted[1:]) / sum(durations_s),
        "checkpoint_s": statistics.median(checkpoint_s),
    }


def assemble(config: RunConfig, folder: Path, device: torch.device, watch: Watch, checkpoint_s: list[float]) -> Trainer:
    """Put a run together as tools/train.py does, in a new folder, without evaluations and pictures."""
    train, val = (read_split(config.data, split, masks=needs_masks(config.model)) for split in ("train", "val"))
    torch.manual_seed(config.seed)
    model, _ = build_model(config.model, config.data, len(train.class_names))
    checkpoints = Checkpoints(folder, {"config": config.model_dump(mode="json")}, keep=config.train.keep_last)

    def save(state: dict[str, Any], name: str) -> None:
        start = time.perf_counter()
        checkpoints.save(state, name)
        checkpoint_s.append(time.perf_counter() - start)

    trainer = build_trainer(
        config,
        model.to(device),
        train,
        val,
        device=device,
        evaluate=lambda model: dict.fromkeys(COCO_FIGURES, 0.0) | {"per_class": {}},
        draw=lambda model: {"val/detections": torch.zeros(3, 1, 1, dtype=torch.uint8)},
        progress=watch,
        stop=StopRequest(),
        save=save,
        board=Board(folder),
    )
    trainer.early_stop = None  # the figures above never rise
    return trainer


@contextlib.contextmanager
def logging_into(folder: Path) -> Iterator[None]:
    """Make a run folder and log into it; the terminal gets nothing of the lines, which are written all the same."""
    folder.mkdir()
    with contextlib.redirect_stdout(io.StringIO()):
        start_logging(folder / LOG_FILE)
        try:
            yield
        finally:
            for handler in [*log.handlers]:
                log.removeHandler(handler)
                handler.close()
