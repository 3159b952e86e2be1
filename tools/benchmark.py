"""Measure speed on this machine: of deformable convolution, a training step, the training loop, or of watching it."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import _clone

# isort: split
import torch
from _benchmark_loop import benchmark_health, benchmark_loop
from _benchmark_op import DTYPES, benchmark_operator
from _benchmark_step import benchmark_step

from data.files import write_text
from dcn import BACKENDS
from engine.devices import describe, pick_device

EPILOG = """examples:
  python tools/benchmark.py op
  python tools/benchmark.py op --sizes 800x1216 --batches 1 --backends torch torchvision --json op.json
  python tools/benchmark.py op --device cuda --amp bf16 --batches 16
  python tools/benchmark.py train
  python tools/benchmark.py train --config r101_dcn.yaml --size 800x1344 --device cuda --amp bf16
  python tools/benchmark.py loop --json loop.json
  python tools/benchmark.py health
Times are medians of runs in turns. Let nothing else run meanwhile."""
OP = "Time the operator on the shapes of a ResNet-50, after a check that its results are right."
TRAIN = "Time a detector's training step, plain and with each backend, on random images and boxes."
LOOP = """Measure what the training loop costs beyond the training itself.

The trainer's steps against bare forward, backward and optimizer.step() on equal models and the same batches: rounds of
one turn each, the order changing; the overhead is the median difference of the two turns of a round. Then parts of what
the trainer does by themselves, and a checkpoint. What a run waits for its data stands in its own log."""
LOOP_EPILOG = """examples:
  python tools/benchmark.py loop
  python tools/benchmark.py loop --steps 2 --rounds 60 --json loop.json
  python tools/benchmark.py loop --config r50_dcn.yaml --device cuda --amp bf16
With the defaults it takes 2 minutes on two CPU cores. Let nothing else run meanwhile."""
HEALTH = """Measure what it costs to watch the deformable layers of a run, for the log of offsets, masks and gradients.

The trainer's steps, all of them recorded, with the layers watched and without: rounds of one step each on the same
images, the order changing; the cost is the median difference of the two steps of a round. Then the figures and the
histograms by themselves; where the difference drowns in the noise of the steps, the figures' own time counts."""
HEALTH_EPILOG = """examples:
  python tools/benchmark.py health
  python tools/benchmark.py health --config r50_dcn.yaml --device cuda --amp bf16
With the defaults it takes a minute on two CPU cores. Let nothing else run meanwhile."""
COMMANDS = {"op": benchmark_operator, "train": benchmark_step, "loop": benchmark_loop, "health": benchmark_health}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="auto", help='"auto", "cpu", "cuda", "cuda:1" (default: %(default)s)')
    common.add_argument("--amp", choices=DTYPES, default="off", help="mixed precision (default: %(default)s)")
    common.add_argument("--threads", type=positive, help="threads of the CPU (default: torch's choice)")
    common.add_argument("--json", type=Path, help="write all figures to this file")
    backends = argparse.ArgumentParser(add_help=False)
    backends.add_argument(
        "--backends",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(BACKENDS)} (default: all that can run here; train leaves out reference)",
    )

    def command(name: str, parents: list[argparse.ArgumentParser], about: str, **texts: str) -> Callable:
        raw = argparse.RawDescriptionHelpFormatter
        return commands.add_parser(name, parents=parents, help=about, formatter_class=raw, **texts).add_argument

    add = command("op", [backends, common], "the operator alone", description=OP)
    sizes = ["800x1333", "512x512"]
    add("--sizes", nargs="+", default=sizes, metavar="HxW", help="of the images (default: %(default)s)")
    add("--batches", nargs="+", type=positive, default=[1, 2], metavar="N", help="(default: %(default)s)")
    add("--rounds", type=positive, default=7, help="turns of each candidate (default: %(default)s)")

    add = command("train", [backends, common], "a whole training step", description=TRAIN)
    add("--config", default="r50_dcn.yaml", help="with DCN stages (default: %(default)s)")
    add("--size", default="512x512", metavar="HxW", help="of the images (default: %(default)s)")
    add("--batch", type=positive, default=2, metavar="N", help="(default: %(default)s)")
    add("--rounds", type=positive, default=5, help="turns of each candidate (default: %(default)s)")

    add = command("loop", [common], "the training loop", description=LOOP, epilog=LOOP_EPILOG)
    add("--config", default="demo_dcn.yaml", help="of the run (default: %(default)s)")
    add("--steps", type=positive, default=5, help="of a turn (default: %(default)s)")
    add("--rounds", type=positive, default=20, help="turns of each kind (default: %(default)s)")

    add = command("health", [common], "watching the deformable layers", description=HEALTH, epilog=HEALTH_EPILOG)
    add("--config", default="demo_dcn.yaml", help="with DCN stages (default: %(default)s)")
    add("--rounds", type=positive, default=50, help="steps of each kind (default: %(default)s)")
    return parser.parse_args()


def positive(text: str) -> int:
    """Read a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def main() -> None:
    """Measure and show."""
    args = parse_arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    figures = {"machine": describe(device), "amp": args.amp}
    print(f"{figures['machine']}; amp {args.amp}", flush=True)
    figures |= COMMANDS[args.command](args, device)
    if args.json:
        write_text(args.json, json.dumps(figures, indent=1))
        print(f"\nfigures: {args.json}")


if __name__ == "__main__":
    _clone.run(main)
