"""`benchmark.py loop`: what the training loop costs beyond the training itself, and what an evaluation costs."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch

from _benchmark_eval import measure_evaluation
from _benchmark_run import measure_run
from _benchmark_turns import measure_overhead
from data.synthetic import write_shapes
from engine.building import check_dcn_backend, images_in_step
from engine.config import RunConfig
from engine.config import load_config
from engine.devices import set_tf32
from engine.display import Progress
from engine.display import format_table

# Images as large as some configs want would take minutes to draw; the loader scales them.
LARGEST_SIDE = 320
# Rates so small that a detector stays as it is, whatever its config: what it learns does not change what a step costs.
RUN = ["model.backbone.weights=null", "train.lr=1.0e-6", "train.epochs=1", "train.max_steps=null", "data.source=null"]
# The bare loop has no schedule and does not clip; a bound that is never met takes as long as one that is.
TURNS = [
    "train.epochs=1000",
    "train.schedule=step",
    "train.warmup_steps=0",
    "train.milestones=[1.0e+9]",
    "train.clip_norm=null",
    "train.accumulate=1",
    "train.compile=false",
    "data.workers=0",
]


def benchmark_loop(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Measure an evaluation, a run, and the trainer's steps against those of a bare loop."""
    steps = args.steps * args.rounds
    if steps < 2:
        raise ValueError(f"--steps x --rounds must be at least 2, since a run's first step does not count, got {steps}")
    with tempfile.TemporaryDirectory(prefix="resnet-dcn-") as name:
        folder = Path(name)
        workers = [] if args.workers is None else [f"data.workers={args.workers}"]
        config, turns = (read_config(args, folder, extra) for extra in (workers, TURNS))
        check_dcn_backend(config.model, device)
        set_tf32(config.train.tf32)
        print(f"evaluation of {args.images} images", flush=True)  # first: it forks, see `extra_memory`
        figures = {"config": args.config, "batch_size": config.train.batch_size, "workers": config.data.workers}
        figures |= {"steps": args.steps, "rounds": args.rounds} | measure_evaluation(args.images)
        draw_data(config, folder, steps)
        print(f"run of {steps} steps", flush=True)
        figures |= measure_run(config, folder / "run", device)
        print(f"{args.rounds} rounds of {args.steps} steps by the trainer and {args.steps} by a bare loop", flush=True)
        figures |= measure_overhead(turns, folder / "turns", device, args)
    figures["line_share"] = figures["line_s"] / config.train.log_every / figures["bare_step_s"]
    figures["overhead_share"] = figures["turn_share"] + figures["line_share"]
    figures["checkpoint_share"] = figures["checkpoint_s"] / config.train.checkpoint_every / figures["step_s"]
    show(figures, config)
    return figures


def read_config(args: argparse.Namespace, folder: Path, extra: list[str]) -> RunConfig:
    """Read the config, for the data set that will lie in `folder`."""
    places = [
        f"data.{split}.{key}={folder / place}"
        for split in ("train", "val")
        for key, place in (("images", split), ("annotations", f"annotations/{split}.json"))
    ]
    return load_config(args.config, [*places, f"train.amp={args.amp}", *RUN, *extra])


def draw_data(config: RunConfig, folder: Path, steps: int) -> None:
    """Draw as many images as `steps` steps have, of the size that the config scales to, but not very large."""
    sizes = config.data.min_size
    height = max(64, min(LARGEST_SIDE, sizes if isinstance(sizes, int) else sizes[-1]))
    write_shapes(
        folder,
        train=steps * images_in_step(config.train, 1),
        val=1,
        height=height,
        width=round(1.2 * height),
        progress=lambda items: Progress().track(items, "draw"),
    )


def show(figures: dict[str, Any], config: RunConfig) -> None:
    """Print the tables."""
    settings = config.train

    def percent(name: str) -> str:
        return f"{100 * figures[name]:.2f} %"

    rows = [
        ("run", "images/s", f"{figures['images_per_s']:.2f}", f"mean, {images_in_step(settings, 1)} images a step"),
        ("", "step, s", f"{figures['step_s']:.4f}", f"median of {figures['counted_steps']}"),
        ("", "wait for data", percent("data_wait_share"), f"data.workers {config.data.workers}"),
        ("", "checkpoint, s", f"{figures['checkpoint_s']:.3f}", "median"),
        ("", "checkpoints", percent("checkpoint_share"), f"one in {settings.checkpoint_every} steps, not in overhead"),
        ("loop", "bare step, s", f"{figures['bare_step_s']:.4f}", f"median of {figures['rounds']} turns"),
        ("", "trainer's step, s", f"{figures['trainer_step_s']:.4f}", "without lines"),
        (
            "",
            "more in a turn",
            percent("turn_share"),
            f"half of the rounds: {percent('turn_share_low')} to {percent('turn_share_high')}",
        ),
        ("", "lines", percent("line_share"), f"{1000 * figures['line_s']:.2f} ms, one in {settings.log_every} steps"),
        ("", "overhead", percent("overhead_share"), "both"),
        ("", "norm of gradient", f"{1000 * figures['norm_s']:.2f} ms", "within overhead"),
        ("", "record", f"{1000 * figures['record_s']:.2f} ms", "within overhead"),
    ]
    peak = figures["eval_peak_gib"]
    rows += [
        ("eval", "s", f"{figures['eval_s']:.1f}", f"{figures['eval_images']} images"),
        ("", "s per 1000 images", f"{figures['eval_s_per_1000_images']:.2f}", ""),
        ("", "peak, GiB", "-" if peak is None else f"{peak:.2f}", "beyond its inputs"),
    ]
    print(f"\n{figures['config']}")
    print(format_table(("", "what", "figure", ""), rows))
