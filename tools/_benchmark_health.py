"""`benchmark.py health`: what it costs to watch the deformable layers of a run."""

import argparse
import contextlib
import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from _benchmark_loop import TURNS, draw_data, read_config
from _benchmark_run import Watch, assemble, logging_into
from _benchmark_turns import NEVER, compare, endless, run_trainer
from data import Batch
from engine.building import check_dcn_backend
from engine.config import RunConfig
from engine.insight import Health
from engine.insight import deformable_layers, watched
from engine.comparison import time_in_pairs, time_in_turns
from engine.devices import set_tf32, to_device
from engine.display import PLAIN, Progress
from engine.display import format_table
from engine.training import Cadence, Trainer

# Of the data drawn: a few are enough, as every round takes the next.
DRAWN_STEPS = 4


def benchmark_health(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure the trainer's steps with the deformable layers watched against those without, all of them recorded."""
    with tempfile.TemporaryDirectory(prefix="resnet-dcn-") as name:
        folder = Path(name)
        config = read_config(args, folder, TURNS)
        if not config.model.backbone.dcn_v2_stages:
            raise ValueError(f"{args.config} has no DCN stages to watch, choose one with model.backbone.dcn_v2_stages")
        check_dcn_backend(config.model, device)
        set_tf32(config.train.tf32)
        draw_data(config, folder, DRAWN_STEPS)
        print(f"{args.rounds} rounds of a step with the deformable layers watched and one without", flush=True)
        figures = measure_health(config, folder / "run", device, args.rounds)
    settings, default = config.train, Cadence()
    figures |= {
        "config": args.config,
        "batch_size": settings.batch_size,
        "rounds": args.rounds,
        "share": share(figures, settings.log_every, settings.picture_every),
        "default_share": share(figures, default.log_every, default.picture_every),
    }
    show(figures, config)
    return figures


def measure_health(config: RunConfig, folder: Path, device: torch.device, rounds: int) -> dict[str, float]:
    """Time a step with and without; then by themselves the figures, and the histograms, which come less often."""
    with contextlib.redirect_stderr(io.StringIO()):  # a bar is shown, but not seen
        progress = Progress(PLAIN)
        progress.start_epoch(1, 1, 2 * (rounds + 1), 0)
    with logging_into(folder):
        trainer = assemble(config, folder, device, Watch(progress), [])
        trainer.cadence = Cadence(log_every=1, checkpoint_every=NEVER, eval_every=NEVER, picture_every=NEVER)
        health, nothing = trainer.health, Health(None, total_steps=NEVER, warmup_steps=0)
        batches = endless(trainer.loader)
        pairs = time_in_pairs(
            lambda: [next(batches)],
            lambda turn: step_under(trainer, health, turn),
            lambda turn: step_under(trainer, nothing, turn),
            rounds=rounds,
            device=device,
            track=lambda items: Progress().track(items, "rounds"),
        )
        parts = time_in_turns(make_parts(trainer, health, next(batches)), rounds=5, device=device)
        progress.end_epoch()
        trainer.board.close()
    found = compare(pairs, 1)
    part_s = {name: statistics.median(seconds) for name, seconds in parts.items()}
    return part_s | {
        "layers": len(deformable_layers(trainer.updater.model)),
        "step_s": found["bare_step_s"],
        "watched_share": found["turn_share"],
        "watched_share_low": found["turn_share_low"],
        "watched_share_high": found["turn_share_high"],
        "watched_s": max(found["turn_share"] * found["bare_step_s"], part_s["figures_s"]),
    }


def step_under(trainer: Trainer, health: Health, turn: list[Batch]) -> None:
    """Do a step that is watched as `health` does."""
    trainer.health = health
    run_trainer(trainer, turn)


def make_parts(trainer: Trainer, health: Health, batch: Batch) -> dict[str, Callable[[], None]]:
    """Give calls that log the figures and the histograms of a pass, beside the gradients of the last step."""
    images, targets = to_device(batch.images, batch.targets, trainer.updater.device)
    with torch.no_grad(), watched(trainer.updater.model) as seen:
        trainer.updater.model(images, targets)

    def log_histograms() -> None:
        for tag, values in health.histograms(seen).items():
            trainer.board.histogram(1, tag, values)

    return {
        "figures_s": lambda: trainer.board.scalars(1, health.report(1, seen).scalars),
        "histograms_s": log_histograms,
    }


def share(figures: dict[str, float], log_every: int, picture_every: int) -> float:
    """What all of it adds to the steps of a run."""
    return (figures["watched_s"] / log_every + figures["histograms_s"] / picture_every) / figures["step_s"]


def show(figures: dict[str, Any], config: RunConfig) -> None:
    """Print the table."""
    settings, default = config.train, Cadence()

    def percent(name: str) -> str:
        return f"{100 * figures[name]:.2f} %"

    rows = [
        ("step, s", f"{figures['step_s']:.4f}", f"median of {figures['rounds']}, not watched"),
        (
            "watched step, more",
            percent("watched_share"),
            f"half of the rounds: {percent('watched_share_low')} to {percent('watched_share_high')}",
        ),
        ("figures", f"{1000 * figures['figures_s']:.1f} ms", f"of {figures['layers']} layers, within a watched step"),
        ("histograms", f"{1000 * figures['histograms_s']:.1f} ms", ""),
        ("share of the run", percent("share"), describe_cadence(settings.log_every, settings.picture_every)),
        ("by default", percent("default_share"), describe_cadence(default.log_every, default.picture_every)),
    ]
    print(f"\n{figures['config']}")
    print(format_table(("what", "figure", ""), rows))


def describe_cadence(log_every: int, picture_every: int) -> str:
    """Say how often each is due."""
    return f"a record in {log_every} steps, histograms in {picture_every}"
