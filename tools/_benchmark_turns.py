"""The trainer's own steps against those of a bare loop, for `benchmark.py loop`."""

import argparse
import contextlib
import copy
import io
import itertools
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from _benchmark_run import Watch, assemble, logging_into
from data import Batch
from engine.building import build_optimization
from engine.config import RunConfig
from engine.comparison import time_in_pairs, time_in_turns
from engine.devices import autocast, to_device
from engine.display import PLAIN, Progress
from engine.training import Cadence, Trainer

# Loops that do the same work have the same losses, up to the order in which a GPU adds numbers up.
LOSS_TOLERANCE = 0.01
NEVER = 10**9


def measure_overhead(config: RunConfig, folder: Path, device: torch.device, args: argparse.Namespace) -> dict[str, Any]:
    """Time turns of the trainer's own steps and of a bare loop's, then parts of what the trainer does beside.

    The lines that it writes every `log_every` steps are timed by themselves: a median would leave them out.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # a bar is shown, but not seen
        progress = Progress(PLAIN)
        progress.start_epoch(1, 1, args.steps * (args.rounds + 1), 0)
    watch = Watch(progress)
    with logging_into(folder):
        trainer = assemble(config, folder, device, watch, [])
        trainer.cadence = Cadence(NEVER, NEVER, NEVER, NEVER)
        model = copy.deepcopy(trainer.updater.model)
        optimizer, _ = build_optimization(config.train, model, steps_per_epoch=trainer.epoch_steps)
        bare = bare_loop(model, optimizer, device, config.train.amp)
        batches = endless(trainer.loader)
        losses: list[Tensor] = []
        pairs = time_in_pairs(
            lambda: [*itertools.islice(batches, args.steps)],
            lambda turn: run_trainer(trainer, turn),
            lambda turn: losses.extend(bare(turn)),
            rounds=args.rounds,
            device=device,
            track=lambda rounds: Progress().track(rounds, "rounds"),
        )
        trainer.progress = progress  # what follows is no step of a turn
        parts = time_parts(trainer, next(batches), device)
        progress.end_epoch()
        trainer.board.close()
    difference = loss_difference([step.loss for step in watch.steps], torch.stack(losses).tolist())
    return compare(pairs, args.steps) | parts | {"loss_difference": difference}


def endless(loader: DataLoader) -> Iterator[Batch]:
    """Yield a loader's batches, epoch after epoch."""
    for epoch in itertools.count():
        loader.batch_sampler.set_position(epoch)
        yield from loader


def run_trainer(trainer: Trainer, turn: list[Batch]) -> None:
    """Do a step on each batch as `Trainer.fit` does."""
    batches = iter(turn)
    for _ in turn:
        trainer.train_step(batches)


def bare_loop(
    model: nn.Module, optimizer: Optimizer, device: torch.device, amp: str
) -> Callable[[list[Batch]], list[Tensor]]:
    """Give a loop that does a step on each batch and nothing else; it gives the losses."""
    scaler = torch.amp.GradScaler(device.type, enabled=amp == "fp16")

    def run(turn: list[Batch]) -> list[Tensor]:
        losses = []
        for batch in turn:
            images, targets = to_device(batch.images, batch.targets, device)
            with autocast(device, amp):
                loss = sum(model(images, targets).values())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return losses

    return run


def loss_difference(trainer: list[float], bare: list[float]) -> float:
    """Largest difference of the loops' losses, over the bare loop's; ends where their times cannot be compared."""
    differences = [abs(ours - theirs) / abs(theirs) for ours, theirs in zip(trainer, bare, strict=True)]
    for step, difference in enumerate(differences):
        if not difference <= LOSS_TOLERANCE:
            print(
                f"NOT THE SAME WORK: in step {step + 1} the trainer's loss is {trainer[step]:.6g}, the bare loop's "
                f"{bare[step]:.6g}; no overhead is shown"
            )
            raise SystemExit(1)
    return max(differences)


def compare(pairs: list[tuple[float, float]], steps: int) -> dict[str, float]:
    """Median times of a step, and the difference of a round's turns over the bare one: median and quartiles."""
    trainer_s, bare_s = (statistics.median(turns) / steps for turns in zip(*pairs, strict=True))
    shares = [(ours - theirs) / steps / bare_s for ours, theirs in pairs]
    low, middle, high = statistics.quantiles(shares, n=4, method="inclusive") if len(shares) > 1 else 3 * shares
    return {
        "trainer_step_s": trainer_s,
        "bare_step_s": bare_s,
        "turn_share": middle,
        "turn_share_low": low,
        "turn_share_high": high,
    }


def time_parts(trainer: Trainer, batch: Batch, device: torch.device) -> dict[str, float]:
    """Seconds of the gradient's norm and the record, both in every step, and of a line in log, board and terminal."""
    record = trainer.updater([batch])

    def keep() -> None:
        trainer._record(record, {}, data_s=0.0, step_s=1.0, images=len(batch.images))

    def write_line() -> None:
        trainer.cadence = Cadence(log_every=1)
        keep()
        trainer.cadence = Cadence(log_every=NEVER)

    gradients = [p.grad for p in trainer.updater.model.parameters() if p.grad is not None]
    seconds = time_in_turns(
        {
            "norm_s": lambda: get_total_norm(gradients),
            "record_s": keep,
            "line_s": write_line,
        },
        rounds=5,
        device=device,
    )
    return {name: statistics.median(values) for name, values in seconds.items()}
