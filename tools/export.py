"""Export a trained detector to ONNX or to a torch.export program, and compare both."""

import argparse
import dataclasses
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import _clone

# isort: split
import torch
from _arguments import add_overrides, add_run, add_weights, current_spellings, is_read, make_parser, refuse_unused
from _outputs import check_outputs, run_files
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_dtype

from data import read_image
from engine.building import read_options, read_split
from engine.config import describe_unused, unused_overrides
from engine.display import Progress, format_table
from engine.export import (
    BOX_TOLERANCE,
    MASK_TOLERANCE,
    MIN_OPSET,
    SCORE_TOLERANCE,
    CheckResult,
    check_exportable,
    check_program,
    check_requirements,
    export_to,
    load_exported,
    min_image_side,
)
from engine.inference import restore_model
from engine.weights import Trained, load_trained
from models import build_resize
from models.checkpoint import choose_weights
from models.score_thresholds import BEST, label_thresholds

EPILOG = """examples:
  python tools/export.py runs/demo_dcn demo_dcn.onnx
  python tools/export.py runs/demo_dcn demo_dcn.pt2 --check photo.jpg other.jpg
  python tools/export.py runs/r50_dcn/best.pt r50_dcn.onnx --opset 22 model.faster_rcnn.score_threshold=0.3

Input of the program: a batch of images of one size, (B, channels, H, W), from 0 (black) to 1 (white), for any B, H and
W; 3 channels are RGB. The images must be resized as the metadata `resize` describes. The program normalises and pads
them.
Output: boxes (B, D, 4) in pixels of the input, labels (B, D) from 1, scores (B, D), num_detections (B,), best first.
Detectors with masks also return masks (B, D, 28, 28): probabilities in a grid over each box. The config sets the
thresholds and D. docs/tools/export.md shows how to run the program, and how to paste masks into the image.
Exit codes: 0 done, 1 program and detector differ (the file is then <name>.partial.<ending>), 2 error in the
arguments."""
# images of the val split to check with, without --check
CHECK_IMAGES = 2
# operators to report: not every runtime has them
RARE = ("DeformConv", "RoiAlign", "NonMaxSuppression", "deform_conv2d", "roi_align", "nms")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    add_run(parser)
    parser.add_argument("out", type=Path, metavar="OUT", help="output file, .onnx or .pt2")
    parser.add_argument("--opset", type=int, metavar="N", help=f"ONNX opset version (default: {MIN_OPSET})")
    parser.add_argument(
        "--check",
        nargs="+",
        type=Path,
        default=[],
        metavar="IMAGE",
        help="images to compare program and detector on (default: the first of the val split, otherwise noise)",
    )
    add_weights(parser)
    add_overrides(parser, "model.faster_rcnn.score_threshold=0.3")
    args = parser.parse_intermixed_args(current_spellings("export"))
    if args.out.suffix == ".pt2":
        refuse_unused(args, "it needs an .onnx file", "--opset")
    return args


def main() -> None:
    """Export, check, and rename the file to its final name."""
    args = parse_arguments()
    progress = Progress()
    opset = args.opset or MIN_OPSET
    check_requirements(args.out, opset)
    partial = args.out.with_name(f"{args.out.stem}.partial{args.out.suffix}")
    images = {f"--check {path}": path for path in args.check}
    check_outputs({"OUT": args.out, "the unchecked OUT": partial}, run_files(args.run) | images)
    # the program has standard operators; the detector runs on the CPU for comparison
    trained = load_trained(args.run, ["model.dcn_backend=auto", *args.overrides])
    if unused := unused_overrides(trained.config, args.overrides, lambda key: is_read("export", key)):
        print(f"{describe_unused(unused)}\n")
    detector = trained.config.model.detector
    check_exportable(detector)
    options = read_options(trained.config, "val")
    images = [(path.name, to_float(read_image(path, options=options))) for path in args.check]
    model = restore_model(trained, weights=args.weights)
    check_size(detector, model)
    for name, image in images:
        if not fits(model, image):
            raise ValueError(
                f"--check {name}: the shorter side must be at least {min_image_side(model)} pixels after resizing "
                f"for an exported {detector}, got {shorter_side(model, image)}: use another image, or change "
                "data.min_size (or data.eval_size) and data.max_size"
            )
    images = images or find_images(trained, model)

    start = time.perf_counter()
    metadata = describe(trained, model, args.weights)
    try:
        operators = export_to(partial, detector, model, metadata, opset=opset)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    seconds = time.perf_counter() - start
    print(f"{trained.path} (step {trained.state['step']}): {detector}, exported in {seconds:.0f} s")
    print(f"{partial.stat().st_size / 1e6:.1f} MB, {describe_operators(operators)}")
    if metadata["score_thresholds"] is None:
        print("Note: the metadata has no score thresholds, because the checkpoint has none for these weights.")
    run, _ = load_exported(partial)
    rows = check_program(model, run, progress.track(images, "check"))
    show(rows)
    if not all(row.difference.is_small for row in rows):
        print(f"\nThe program and the detector differ. The program was left in {partial}.")
        raise SystemExit(1)
    partial.replace(args.out)
    print(f"\nprogram: {args.out}")


def check_size(detector: str, model: nn.Module) -> None:
    """Raise `ValueError` if images are resized to less than the minimum size of a program."""
    side, least = model.transform.min_size[-1], min_image_side(model)
    if side < least:
        raise ValueError(
            f"data.min_size (or data.eval_size) must be at least {least} for an exported {detector}, got {side}"
        )


def shorter_side(model: nn.Module, image: Tensor) -> int:
    """Return the shorter side of a resized image in pixels; `max_size` may make it small."""
    return min(model.transform.resize(image)[0].shape[-2:])


def fits(model: nn.Module, image: Tensor) -> bool:
    """Whether an image is large enough for a program."""
    return shorter_side(model, image) >= min_image_side(model)


def to_float(image: Tensor) -> Tensor:
    """Convert an image to float32 in [0, 1]."""
    return to_dtype(image, torch.float32, scale=True)


def find_images(trained: Trained, model: nn.Module) -> list[tuple[str, Tensor]]:
    """Read the first images of the val split that are large enough; return noise if there are none."""
    try:
        options = read_options(trained.config, "val")
        split = read_split(trained.config.data, "val", check_images=False)
        files = [split.image_dir / entry["file_name"] for entry in split.raw["images"][:CHECK_IMAGES]]
        images = [(file.name, to_float(read_image(file, options=options))) for file in files]
    except (ValueError, OSError):
        images = []
    side, channels = model.transform.min_size[-1], trained.config.data.channels
    random = torch.Generator().manual_seed(0)
    noise = [(f"noise {i}", torch.rand(channels, side, side + 64 * i, generator=random)) for i in range(CHECK_IMAGES)]
    fitting = [(name, image) for name, image in images if fits(model, image)]
    return fitting or [(name, image) for name, image in noise if fits(model, image)]


def describe(trained: Trained, model: nn.Module, weights: str | None) -> dict[str, Any]:
    """Return the metadata of the file as plain values."""
    transform = model.transform
    weights = choose_weights(trained.state, weights, trained.path)
    try:
        thresholds = label_thresholds(BEST, trained.state, weights, trained.path)
    except ValueError:
        thresholds = None
    return {
        "detector": trained.config.model.detector,
        "class_names": trained.state["class_names"],  # of label 1, 2, ...
        "category_ids": trained.state["category_ids"],
        "score_thresholds": thresholds,  # best score of label 1, 2, ...
        "min_size": transform.min_size[-1],
        "max_size": transform.max_size,
        "resize": dataclasses.asdict(build_resize(trained.config.model.spec, trained.config.data.model_dump())),
        "least_side": min_image_side(model),
        "channels": trained.config.data.channels,
        "pixel_range": trained.config.data.pixel_range,
        "normalized_inside": {"mean": transform.image_mean, "std": transform.image_std},
        "weights": weights,
        "step": trained.state["step"],
    }


def describe_operators(operators: Counter[str]) -> str:
    """Count the operators, and those that not every runtime has."""
    rare = [f"{count} {name}" for name, count in operators.items() if any(part in name.split(".") for part in RARE)]
    return f"{sum(operators.values())} operators of {len(operators)} kinds, among them {', '.join(rare)}"


def show(rows: Sequence[CheckResult]) -> None:
    """Print the differences between program and detector."""
    has_masks = rows[0].difference.mask is not None
    masks = f" masks {MASK_TOLERANCE}," if has_masks else ""
    print(f"\ntolerance: boxes {BOX_TOLERANCE} pixels, scores {SCORE_TOLERANCE},{masks} 1 unmatched detection in 100")
    table = [
        (
            row.name,
            f"{row.size[0]}x{row.size[1]}",
            row.images,
            row.difference.detections,
            row.difference.unmatched,
            f"{row.difference.box:.1e}",
            f"{row.difference.score:.1e}",
            *([f"{row.difference.mask:.1e}"] if has_masks else []),
            f"{row.detector_s:.2f}",
            f"{row.program_s:.2f}",
        )
        for row in rows
    ]
    header = (
        "image",
        "size",
        "batch",
        "detections",
        "unmatched",
        "boxes",
        "scores",
        *(["masks"] if has_masks else []),
        "PyTorch, s",
        "program, s",
    )
    print(format_table(header, table))
    if not any(row.difference.detections for row in rows):
        print("Note: nothing was detected, so no boxes were compared. Choose images with --check.")


if __name__ == "__main__":
    _clone.run(main)
