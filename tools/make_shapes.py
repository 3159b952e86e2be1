"""Generate the synthetic data set: bent, sheared, rotated and scaled shapes."""

import argparse
from pathlib import Path

import _clone

# isort: split
from _arguments import add_out, current_spellings, make_parser, not_negative, positive

from data.synthetic import FORMATS, write_shapes
from engine.display import Progress

EPILOG = """examples:
  python tools/make_shapes.py                                     # the data set of configs/demo.yaml
  python tools/make_shapes.py --out datasets/straight --deformation 0
  python tools/make_shapes.py --out datasets/photos --format yolo # with YOLO labels, for tools/import_dataset.py"""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    add_out(parser, Path("datasets/shapes"))
    parser.add_argument(
        "--train-images", type=positive, default=800, metavar="N", help="training images (default: %(default)s)"
    )
    parser.add_argument(
        "--val-images", type=positive, default=200, metavar="N", help="validation images (default: %(default)s)"
    )
    parser.add_argument(
        "--width", type=positive, default=192, metavar="N", help="image width in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--height", type=positive, default=160, metavar="N", help="image height in pixels (default: %(default)s)"
    )
    parser.add_argument(
        "--deformation",
        type=float,
        default=0.5,
        metavar="X",
        help="0: shapes are rotated and scaled only, 1: strongly bent (default: %(default)s)",
    )
    parser.add_argument("--format", choices=FORMATS, default="coco", help="format of the labels (default: %(default)s)")
    parser.add_argument(
        "--seed", type=not_negative, default=0, metavar="N", help="random seed; same seed, same bytes (default: 0)"
    )
    return parser.parse_args(current_spellings("make_shapes"))


def main() -> None:
    """Generate the images, unless the folder is not empty."""
    args = parse_arguments()
    if args.out.exists() and any(args.out.iterdir()):
        raise ValueError(f"{args.out} is not empty: remove it, or choose another folder with --out")
    progress = Progress()
    write_shapes(
        args.out,
        train=args.train_images,
        val=args.val_images,
        width=args.width,
        height=args.height,
        deformation=args.deformation,
        seed=args.seed,
        label_format=args.format,
        progress=lambda items: progress.track(items, "draw"),
    )
    print(f"{args.train_images} train and {args.val_images} val images in {args.out}")


if __name__ == "__main__":
    _clone.run(main)
