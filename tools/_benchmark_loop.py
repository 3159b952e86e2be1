"""`benchmark.py loop` and `health`: the cost of the trainer over a bare step, and of the offset statistics."""

import argparse
import contextlib
import copy
import io
import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from _benchmark_step import bare_step
from torch.nn.utils import get_total_norm

from data import Batch
from data.synthetic import write_shapes
from engine.building import (
    build_model,
    build_optimization,
    build_trainer,
    check_dcn_backend,
    images_in_step,
    read_split,
)
from engine.comparison import time_interleaved
from engine.config import RunConfig, load_config
from engine.devices import set_tf32, to_device
from engine.display import PLAIN, Progress, format_table, log, start_logging
from engine.distributed import StopRequest
from engine.insight import Health, capture_sampling, deformable_layers
from engine.runs import LAST, LOG_FILE, Checkpoints
from engine.training import Intervals, MetricsLogger, Trainer
from models import build_resize

# Batches that the steps use in turn; read in advance, because the loader is not measured.
BATCHES = 4
# Larger images would take minutes to generate; the loader scales these.
LARGEST_SIDE = 320
# Steps with the same work have the same loss, up to the summation order of a GPU.
LOSS_TOLERANCE = 0.01
NEVER = 10**9
# The rate is so small that no detector changes. The bare step has neither a schedule nor gradient clipping.
OVERRIDES = [
    "model.backbone.weights=null",
    "data.download_hint=null",
    "data.num_workers=0",
    "train.lr=1.0e-6",
    "train.epochs=1000000",
    "train.max_steps=null",
    "train.lr_schedule=step",
    "train.warmup_steps=0",
    "train.milestones=[1.0e+9]",
    "train.clip_grad_norm=null",
    "train.grad_accum_steps=1",
    "train.compile=false",
]


def benchmark_loop(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time turns of the trainer's steps and of bare steps, then parts of the trainer."""
    with running(args, device) as (config, trainer, batches):
        model = copy.deepcopy(trainer.updater.model)
        optimizer, _ = build_optimization(config, model, steps_per_epoch=trainer.epoch_steps)
        step = bare_step(model, optimizer, device, config.train.amp)
        bare = lambda batch: step(*to_device(batch.images, batch.targets, device))  # noqa: E731
        check_same_work(trainer, bare, batches[0])
        pair = (lambda batch: trainer.train_step(iter([batch])), bare)
        trainer_s, bare_s, figures = time_pair("turn", *pair, batches, device, rounds=args.rounds, steps=args.steps)
        # the log lines of every `log_every_steps` steps: a median would ignore them
        figures |= time_parts(loop_parts(trainer, batches[0]), device)
    settings = config.train
    figures |= {
        "config": args.config,
        "batch_size": settings.batch_size,
        "steps": args.steps,
        "rounds": args.rounds,
        "trainer_step_s": trainer_s,
        "bare_step_s": bare_s,
        "line_share": figures["line_s"] / settings.log_every_steps / bare_s,
        "checkpoint_share": figures["checkpoint_s"] / settings.checkpoint_every_steps / bare_s,
    }
    figures["overhead_share"] = figures["turn_share"] + figures["line_share"]
    rows = [
        ("bare step, s", f"{bare_s:.4f}", f"median of {args.rounds} turns"),
        ("trainer's step, s", f"{trainer_s:.4f}", "without log lines"),
        ("overhead of a turn", percent(figures["turn_share"]), quartiles(figures, "turn")),
        (
            "log lines",
            percent(figures["line_share"]),
            f"{ms(figures['line_s'])}, every {settings.log_every_steps} steps",
        ),
        ("overhead", percent(figures["overhead_share"]), "both"),
        ("gradient norm", ms(figures["norm_s"]), "within overhead"),
        ("record", ms(figures["record_s"]), "within overhead"),
        (
            "checkpoints",
            percent(figures["checkpoint_share"]),
            f"{ms(figures['checkpoint_s'])}, every {settings.checkpoint_every_steps} steps, not in overhead",
        ),
    ]
    print(f"\n{args.config}\n{format_table(('what', 'value', ''), rows)}")
    return figures


def benchmark_health(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Time recorded steps of the trainer with and without layer statistics, then the statistics alone."""
    with running(args, device) as (config, trainer, batches):
        layers = len(deformable_layers(trainer.updater.model))
        if not layers:
            raise ValueError(f"{args.config} has no deformable stages: set model.backbone.dcn_v2_stages")
        trainer.intervals = Intervals(1, NEVER, NEVER, NEVER)
        health, nothing = trainer.health, Health(None, total_steps=NEVER, warmup_steps=0)

        def step_under(health: Health, batch: Batch) -> None:
            trainer.health = health
            trainer.train_step(iter([batch]))

        pair = (lambda batch: step_under(health, batch), lambda batch: step_under(nothing, batch))
        _, step_s, figures = time_pair("watched", *pair, batches, device, rounds=args.rounds)
        figures |= time_parts(health_parts(trainer, health, batches[0]), device)
    # if the difference is smaller than the noise of the steps, the time of the statistics alone counts
    watched_s = max(figures["watched_share"] * step_s, figures["figures_s"])
    by_config = {"share": config.train, "default_share": Intervals()}
    figures |= {
        "config": args.config,
        "batch_size": config.train.batch_size,
        "rounds": args.rounds,
        "layers": layers,
        "step_s": step_s,
        "watched_s": watched_s,
    }
    for name, intervals in by_config.items():
        added_s = watched_s / intervals.log_every_steps + figures["histograms_s"] / intervals.images_every_steps
        figures[name] = added_s / step_s
    rows = [
        ("step, s", f"{step_s:.4f}", f"median of {args.rounds}, without statistics"),
        ("overhead of a recorded step", percent(figures["watched_share"]), quartiles(figures, "watched")),
        ("statistics", ms(figures["figures_s"]), f"of {layers} layers, part of a recorded step"),
        ("histograms", ms(figures["histograms_s"]), ""),
    ]
    for label, (name, intervals) in zip(("fraction of the run", "with defaults"), by_config.items(), strict=True):
        often = f"statistics every {intervals.log_every_steps} steps, histograms every {intervals.images_every_steps}"
        rows.append((label, percent(figures[name]), often))
    print(f"\n{args.config}\n{format_table(('what', 'value', ''), rows)}")
    return figures


@contextlib.contextmanager
def running(args: argparse.Namespace, device: torch.device) -> Iterator[tuple[RunConfig, Trainer, list[Batch]]]:
    """Build a run as tools/train.py does, and read a few batches of generated images.

    Its bar, lines and log are written, but not seen, and nothing is due.
    """
    with tempfile.TemporaryDirectory(prefix="resnet-dcn-") as name:
        folder = Path(name)
        config = read_config(args, folder)
        check_dcn_backend(config.model, device)
        set_tf32(config.train.tf32)
        draw_data(config, folder)
        splits = [read_split(config.data, split, masks=config.model.spec.has_masks) for split in ("train", "val")]
        torch.manual_seed(config.seed)
        model, _ = build_model(config.model, config.data, len(splits[0].class_names))
        with contextlib.redirect_stderr(io.StringIO()):
            progress = Progress(PLAIN)
            progress.start_epoch(1, 1, NEVER, 0)
        with contextlib.redirect_stdout(io.StringIO()):
            start_logging(folder / LOG_FILE)
            metrics_logger = MetricsLogger(folder)
            trainer = build_trainer(
                config,
                model.to(device),
                *splits,
                device=device,
                stop=StopRequest(),
                progress=progress,
                save=Checkpoints(folder, {"config": config.model_dump(mode="json")}).save,
                metrics_logger=metrics_logger,
            )
            trainer.intervals = Intervals(NEVER, NEVER, NEVER, NEVER)
            try:
                yield config, trainer, [*trainer.loader]
            finally:
                progress.end_epoch()
                metrics_logger.close()
                for handler in [*log.handlers]:
                    log.removeHandler(handler)
                    handler.close()


def read_config(args: argparse.Namespace, folder: Path) -> RunConfig:
    """Read the config for the data set in `folder`."""
    places = [
        f"data.{split}.{key}={folder / place}"
        for split in ("train", "val")
        for key, place in (("images", split), ("annotations", f"annotations/{split}.json"))
    ]
    return load_config(args.config, [*places, f"train.amp={args.amp}", *OVERRIDES])


def draw_data(config: RunConfig, folder: Path) -> None:
    """Generate the images of the steps, in the size of the config, up to a maximum."""
    side = build_resize(config.model.spec, config.data.model_dump()).eval_side
    height = max(64, min(LARGEST_SIDE, side))
    count = BATCHES * images_in_step(config.train, 1)
    write_shapes(folder, train=count, val=1, height=height, width=round(1.2 * height))


def check_same_work(trainer: Trainer, bare: Callable[[Batch], torch.Tensor], batch: Batch) -> None:
    """Raise `RuntimeError` if the trainer's step and the bare step have different losses: they do different work."""
    ours, theirs = trainer.updater([batch]).numbers["loss"], bare(batch).item()
    if not abs(ours - theirs) <= LOSS_TOLERANCE * abs(theirs):
        raise RuntimeError(f"not the same work: the trainer's loss is {ours:.6g}, that of a bare step {theirs:.6g}")


def time_pair(
    name: str,
    first: Callable[[Batch], Any],
    second: Callable[[Batch], Any],
    batches: list[Batch],
    device: torch.device,
    *,
    rounds: int,
    steps: int = 1,
) -> tuple[float, float, dict[str, float]]:
    """Time turns of two kinds of steps on the same batches.

    Returns:
        Median seconds of a step of each kind, and how much more the first takes: the differences of the turns of a
        round over the second's median, as their median `<name>_share` and quartiles `<name>_share_low`, `..._high`.
    """

    def turns(step: Callable[[Batch], Any]) -> Callable[[], None]:
        endless = itertools.cycle(batches)
        return lambda: [step(batch) for batch in itertools.islice(endless, steps)]

    found = time_interleaved(
        {"first": turns(first), "second": turns(second)},
        rounds=rounds,
        device=device,
        turn_s=1e-9,
        track=lambda items: Progress().track(items, "rounds"),
    )
    first_s, second_s = (statistics.median(seconds) / steps for seconds in found.values())
    shares = [(one - other) / steps / second_s for one, other in zip(*found.values(), strict=True)]
    low, middle, high = statistics.quantiles(shares, n=4, method="inclusive") if len(shares) > 1 else 3 * shares
    return first_s, second_s, {f"{name}_share": middle, f"{name}_share_low": low, f"{name}_share_high": high}


def time_parts(parts: dict[str, Callable[[], Any]], device: torch.device) -> dict[str, float]:
    """Return the median seconds of each part."""
    return {
        name: statistics.median(seconds) for name, seconds in time_interleaved(parts, rounds=5, device=device).items()
    }


def loop_parts(trainer: Trainer, batch: Batch) -> dict[str, Callable[[], Any]]:
    """Return calls of the gradient norm and the record (each step), a log line, and a checkpoint."""
    record = trainer.updater([batch])
    gradients = [p.grad for p in trainer.updater.model.parameters() if p.grad is not None]

    def keep(log_every_steps: int) -> None:
        trainer.intervals = Intervals(log_every_steps, NEVER, NEVER, NEVER)
        trainer._record(record, {}, data_s=0.0, step_s=1.0, images=len(batch.images))

    return {
        "norm_s": lambda: get_total_norm(gradients),
        "record_s": lambda: keep(NEVER),
        "line_s": lambda: keep(1),
        "checkpoint_s": lambda: trainer.save(trainer.state_dict(), LAST),
    }


def health_parts(trainer: Trainer, health: Health, batch: Batch) -> dict[str, Callable[[], Any]]:
    """Return calls that log the statistics and the histograms of a pass, with the gradients of the last step."""
    images, targets = to_device(batch.images, batch.targets, trainer.updater.device)
    with torch.no_grad(), capture_sampling(trainer.updater.model) as seen:
        trainer.updater.model(images, targets)

    def log_histograms() -> None:
        for tag, values in health.histograms(seen).items():
            trainer.metrics_logger.log_histogram(1, tag, values)

    return {
        "figures_s": lambda: trainer.metrics_logger.log_scalars(1, health.report(1, seen).scalars),
        "histograms_s": log_histograms,
    }


def percent(share: float) -> str:
    """Format a fraction as a percentage."""
    return f"{100 * share:.2f} %"


def ms(seconds: float) -> str:
    """Format a time in milliseconds."""
    return f"{1000 * seconds:.2f} ms"


def quartiles(figures: dict[str, float], name: str) -> str:
    """Format the quartiles of the rounds."""
    low, high = (percent(figures[f"{name}_share_{end}"]) for end in ("low", "high"))
    return f"half of the rounds: {low} to {high}"
