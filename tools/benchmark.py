"""Measure the speed of the operator, the training step, the training loop and the offset statistics."""

import argparse
from collections.abc import Callable
from pathlib import Path

import _clone

# isort: split
import torch
from _arguments import Parser, add_device, add_json, current_spellings, make_parser, positive
from _benchmark_loop import benchmark_health, benchmark_loop
from _benchmark_op import DTYPES, benchmark_operator
from _benchmark_step import benchmark_step
from _outputs import check_outputs

from data.files import write_json
from dcn import BACKENDS
from engine.devices import describe, pick_device

EPILOG = """examples:
  python tools/benchmark.py op
  python tools/benchmark.py op --sizes 800x1216 --batch-sizes 1 --backends torch torchvision --json op.json
  python tools/benchmark.py op --device cuda --amp bf16 --batch-sizes 16
  python tools/benchmark.py train
  python tools/benchmark.py train --config r101_dcn.yaml --size 800x1344 --device cuda --amp bf16
  python tools/benchmark.py loop --json loop.json
  python tools/benchmark.py health
Times are medians of interleaved runs. Note: run nothing else on the machine at the same time."""
OP = "Time the operator on the shapes of a ResNet-50, after a check of its results."
OP_EPILOG = """examples:
  python tools/benchmark.py op
  python tools/benchmark.py op --sizes 800x1216 --batch-sizes 1 --backends torch torchvision --json op.json
  python tools/benchmark.py op --device cuda --amp bf16 --batch-sizes 16"""
TRAIN = "Time the training step of a detector, plain and with each backend, on random images and boxes."
TRAIN_EPILOG = """examples:
  python tools/benchmark.py train
  python tools/benchmark.py train --config r101_dcn.yaml --size 800x1344 --device cuda --amp bf16"""
LOOP = """Measure the overhead of the training loop.

The tool compares the trainer's steps with bare forward, backward and optimizer.step() on equal models and the same
batches. Each round has one turn of each kind, in changing order. The overhead is the median difference of the two
turns of a round. Then the tool times parts of the trainer alone, and a checkpoint. It does not measure the wait for
data: the log of a run shows it."""
LOOP_EPILOG = """examples:
  python tools/benchmark.py loop
  python tools/benchmark.py loop --steps 2 --rounds 60 --json loop.json
  python tools/benchmark.py loop --config r50_dcn.yaml --device cuda --amp bf16
With the defaults it takes 2 minutes on two CPU cores. Note: run nothing else on the machine at the same time."""
HEALTH = """Measure the cost of the offset, mask and gradient statistics of a run.

The tool compares recorded steps of the trainer with and without the statistics. Each round has one step of each kind
on the same images, in changing order. The cost is the median difference of the two steps of a round. Then the tool
times the statistics and the histograms alone. If the difference is smaller than the noise, the time of the statistics
alone counts."""
HEALTH_EPILOG = """examples:
  python tools/benchmark.py health
  python tools/benchmark.py health --config r50_dcn.yaml --device cuda --amp bf16
With the defaults it takes a minute on two CPU cores. Note: run nothing else on the machine at the same time."""
COMMANDS = {"op": benchmark_operator, "train": benchmark_step, "loop": benchmark_loop, "health": benchmark_health}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    commands = parser.add_subparsers(dest="command", required=True)
    common = Parser(add_help=False)
    add_device(common, "auto")
    common.add_argument("--amp", choices=DTYPES, default="off", help="mixed precision (default: %(default)s)")
    common.add_argument("--threads", type=positive, metavar="N", help="CPU threads (default: PyTorch's default)")
    add_json(common, "all measurements")
    backends = Parser(add_help=False)
    backends.add_argument(
        "--backends",
        nargs="+",
        metavar="NAME",
        help=f"{', '.join(BACKENDS)} (default: all available ones; train omits reference)",
    )

    def command(name: str, parents: list[argparse.ArgumentParser], about: str, **texts: str) -> Callable:
        raw = argparse.RawDescriptionHelpFormatter
        added = commands.add_parser(name, parents=parents, help=about, formatter_class=raw, allow_abbrev=False, **texts)
        return added.add_argument

    add = command("op", [backends, common], "the operator", description=OP, epilog=OP_EPILOG)
    sizes = ["800x1333", "512x512"]
    add("--sizes", nargs="+", default=sizes, metavar="HxW", help=f"image sizes (default: {' '.join(sizes)})")
    add("--batch-sizes", nargs="+", type=positive, default=[1, 2], metavar="N", help="batch sizes (default: 1 2)")
    add("--rounds", type=positive, default=7, metavar="N", help="timed rounds (default: %(default)s)")

    add = command("train", [backends, common], "the training step", description=TRAIN, epilog=TRAIN_EPILOG)
    add("--config", default="r50_dcn.yaml", metavar="C", help="config with DCN stages (default: %(default)s)")
    add("--size", default="512x512", metavar="HxW", help="image size (default: %(default)s)")
    add("--batch-size", type=positive, default=2, metavar="N", help="images per step (default: %(default)s)")
    add("--rounds", type=positive, default=5, metavar="N", help="timed rounds (default: %(default)s)")

    add = command("loop", [common], "the training loop", description=LOOP, epilog=LOOP_EPILOG)
    add("--config", default="demo_dcn.yaml", metavar="C", help="config of the run (default: %(default)s)")
    add("--steps", type=positive, default=5, metavar="N", help="steps per turn (default: %(default)s)")
    add("--rounds", type=positive, default=20, metavar="N", help="turns of each kind (default: %(default)s)")

    add = command("health", [common], "the offset statistics", description=HEALTH, epilog=HEALTH_EPILOG)
    add("--config", default="demo_dcn.yaml", metavar="C", help="config with DCN stages (default: %(default)s)")
    add("--rounds", type=positive, default=50, metavar="N", help="steps of each kind (default: %(default)s)")
    return parser.parse_args(current_spellings("benchmark"))


def main() -> None:
    """Measure and print."""
    args = parse_arguments()
    config = getattr(args, "config", None)
    check_outputs({"--json": args.json}, {"--config": config and Path(config)})
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    figures = {"machine": describe(device), "amp": args.amp}
    print(f"{figures['machine']}; amp {args.amp}", flush=True)
    figures |= COMMANDS[args.command](args, device)
    if args.json:
        write_json(args.json, figures, indent=1)
        print(f"\nmeasurements: {args.json}")


if __name__ == "__main__":
    _clone.run(main)
