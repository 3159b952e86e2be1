"""Draw the synthetic COCO-format data set: bent, sheared, turned and scaled shapes."""

import argparse
from pathlib import Path

import _clone

# isort: split
from data.synthetic import write_shapes
from engine.display import Progress

EPILOG = """examples:
  python tools/make_shapes.py                                     # the data set of configs/demo.yaml
  python tools/make_shapes.py --out datasets/straight --deformation 0"""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("datasets/shapes"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument("--train", type=int, default=800, help="training images (default: %(default)s)")
    parser.add_argument("--val", type=int, default=200, help="validation images (default: %(default)s)")
    parser.add_argument("--width", type=int, default=192, help="of an image in pixels (default: %(default)s)")
    parser.add_argument("--height", type=int, default=160, help="of an image in pixels (default: %(default)s)")
    parser.add_argument(
        "--deformation",
        type=float,
        default=0.5,
        help="0: only turned and scaled, 1: strongly bent (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    return parser.parse_args()


def main() -> None:
    """Draw, unless the folder holds something already."""
    args = parse_arguments()
    if args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"{args.out} is not empty; remove it, or choose another folder by --out")
    progress = Progress()
    write_shapes(
        args.out,
        train=args.train,
        val=args.val,
        width=args.width,
        height=args.height,
        deformation=args.deformation,
        seed=args.seed,
        progress=lambda items: progress.track(items, "draw"),
    )
    print(f"{args.train} train and {args.val} val images in {args.out}")


if __name__ == "__main__":
    _clone.run(main)
