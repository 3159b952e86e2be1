"""Train a detector from a YAML config."""

import argparse
from pathlib import Path

import _clone

# isort: split
from _arguments import add_device, add_overrides, config_values, current_spellings, make_parser

from engine.building import train
from engine.distributed import PreemptedError

EPILOG = """examples:
  python tools/train.py --config demo_dcn.yaml
  python tools/train.py --config r50_dcn.yaml train.batch_size=4 model.backbone.dcn_v2_stages=[3,4]
  python tools/train.py --config r50_dcn.yaml --run-dir runs/mine --resume auto
  torchrun --nproc-per-node=8 tools/train.py --config r50_dcn.yaml train.batch_size=2

The tool looks up a bare config name in configs/. docs/reference/config.md explains every key.
Exit codes: 0 done, 2 error in the arguments, config or data, 3 stopped by SIGTERM, SIGUSR1 or SIGHUP after the
current step with a checkpoint (--resume auto continues), 1 any other error."""
PREEMPTED = 3


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    parser.add_argument("--config", required=True, metavar="C", help="YAML file, or the name of a file in configs/")
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="run folder (default: runs/<config name>)")
    parser.add_argument(
        "--resume",
        metavar="auto|FILE",
        help="continue from a checkpoint; auto: the newest intact one of the run folder, or a new run if there is none",
    )
    add_device(parser)
    add_overrides(parser, "train.epochs=1")
    return parser.parse_intermixed_args(current_spellings("train"))


def main() -> None:
    """Train, with an exit code that shows how the run ended."""
    args = parse_arguments()
    try:
        train(args.config, config_values(args), run_dir=args.run_dir, resume=args.resume)
    except PreemptedError:
        raise SystemExit(PREEMPTED) from None


if __name__ == "__main__":
    _clone.run(main, distributed=True)
