"""Train a detector from a YAML config."""

import argparse
from pathlib import Path

import _clone

# isort: split
from engine.building import train
from engine.distributed import PreemptedError

EPILOG = """examples:
  python tools/train.py --config demo_dcn.yaml
  python tools/train.py --config r50_dcn.yaml train.batch_size=4 model.backbone.dcn_v2_stages=[3,4]
  python tools/train.py --config r50_dcn.yaml --run-dir runs/mine --resume auto
  torchrun --nproc-per-node=8 tools/train.py --config r50_dcn.yaml train.batch_size=2
A bare config name is looked up in configs/. Every key is explained in docs/reference/config.md.
SIGTERM or SIGUSR1 stops after the step under way, with a checkpoint and exit code 3; --resume auto goes on."""
PREEMPTED = 3


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="YAML file, or the name of one in configs/")
    parser.add_argument("--run-dir", type=Path, help="folder of the run (default: runs/<config name>)")
    parser.add_argument(
        "--resume",
        metavar="auto|FILE",
        help="go on: auto from the newest whole checkpoint in the run folder, if there is one, or from a checkpoint",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, as in train.epochs=1")
    return parser.parse_intermixed_args()


def main() -> None:
    """Train, with the exit code that says how it ended."""
    args = parse_arguments()
    try:
        train(args.config, args.overrides, run_dir=args.run_dir, resume=args.resume)
    except PreemptedError:
        raise SystemExit(PREEMPTED) from None


if __name__ == "__main__":
    _clone.run(main)
