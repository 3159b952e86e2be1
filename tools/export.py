"""Export a trained detector to ONNX or to a torch.export program, and check it beside the detector."""

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
from torch import Tensor, nn
from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype

from data import read_image
from engine.building import read_split
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

EPILOG = """examples:
  python tools/export.py runs/demo_dcn demo_dcn.onnx
  python tools/export.py runs/demo_dcn demo_dcn.pt2 --check photo.jpg other.jpg
  python tools/export.py runs/r50_dcn/best.pt r50_dcn.onnx --opset 22 model.faster_rcnn.score_threshold=0.3
The program takes a batch of images of one size, (B, 3, H, W) in RGB from 0 to 1, for any B, H and W, already resized
(resize in the file's metadata says how); it normalises and pads by itself. It gives boxes (B, D, 4) in pixels
of these images, labels (B, D) from 1, scores (B, D) and num_detections (B,), the best first; a detector of masks also
gives masks (B, D, 28, 28), the probability in 28 x 28 parts of each box. Thresholds and D are those of the config.
docs/tools/export.md shows how to run it, and how to paste the masks into the picture.
Exit code 1 if the program and the detector differ; it then stays beside the asked name, as <name>.partial.<ending>."""
# pictures of the val split to check by, where none are named
PICTURES = 2
# operators to tell of: not every runtime has them
RARE = ("DeformConv", "RoiAlign", "NonMaxSuppression", "deform_conv2d", "roi_align", "nms")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run, whose last.pt is used, or a .pt file")
    parser.add_argument("out", type=Path, help="file to write, .onnx or .pt2")
    parser.add_argument("--opset", type=int, help=f"version of ONNX's operators (default: {MIN_OPSET})")
    parser.add_argument(
        "--check",
        nargs="+",
        type=Path,
        default=[],
        metavar="PICTURE",
        help="picture files to check the program by (default: the first of the run's val split, or else noise)",
    )
    parser.add_argument(
        "--weights", choices=("raw", "ema"), help="of a run with train.ema_decay (default: ema where there are any)"
    )
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values, as in model.faster_rcnn.score_threshold=0.3"
    )
    args = parser.parse_intermixed_args()
    if args.opset and args.out.suffix == ".pt2":
        parser.error("--opset is about ONNX")
    return args


def main() -> None:
    """Export, check, and put the file in its place."""
    args = parse_arguments()
    progress = Progress()
    opset = args.opset or MIN_OPSET
    check_requirements(args.out, opset)
    # the program has operators of its own; the detector runs beside it on the CPU
    trained = load_trained(args.run, ["model.dcn_backend=auto", *args.overrides])
    detector = trained.config.model.detector
    check_exportable(detector)
    pictures = [(path.name, to_float(pil_to_tensor(read_image(path)))) for path in args.check]
    model = restore_model(trained, weights=args.weights)
    check_size(detector, model)
    for name, picture in pictures:
        if not fits(model, picture):
            raise ValueError(
                f"--check {name}: the shorter side must be at least {min_image_side(model)} pixels after resizing, "
                f"for an exported {detector}; got {shorter_side(model, picture)}: give another picture, or change "
                "data.min_size (or data.eval_size) and data.max_size"
            )
    pictures = pictures or find_pictures(trained, model)

    args.out.parent.mkdir(parents=True, exist_ok=True)
    partial = args.out.with_name(f"{args.out.stem}.partial{args.out.suffix}")
    start = time.perf_counter()
    try:
        operators = export_to(partial, detector, model, describe(trained, model, args.weights), opset=opset)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    seconds = time.perf_counter() - start
    print(f"{trained.path} (step {trained.state['step']}): {detector}, exported in {seconds:.0f} s")
    print(f"{partial.stat().st_size / 1e6:.1f} MB, {tell_operators(operators)}")
    run, _ = load_exported(partial)
    rows = check_program(model, run, progress.track(pictures, "check"))
    show(rows)
    if not all(row.difference.is_small for row in rows):
        print(f"\nThe program and the detector differ; it was left as {partial}")
        raise SystemExit(1)
    partial.replace(args.out)
    print(f"\nwritten: {args.out}")


def check_size(detector: str, model: nn.Module) -> None:
    """Raise `ValueError` if images are resized to less than a program can take."""
    side, least = model.transform.min_size[-1], min_image_side(model)
    if side < least:
        raise ValueError(
            f"data.min_size (or data.eval_size) must be at least {least} for an exported {detector}, got {side}"
        )


def shorter_side(model: nn.Module, picture: Tensor) -> int:
    """Give the pixels of a picture's shorter side when the detector has resized it; `max_size` may make it small."""
    return min(model.transform.resize(picture)[0].shape[-2:])


def fits(model: nn.Module, picture: Tensor) -> bool:
    """Say whether a program can take a picture."""
    return shorter_side(model, picture) >= min_image_side(model)


def to_float(image: Tensor) -> Tensor:
    """Bring a picture of bytes to [0, 1]."""
    return to_dtype(image, torch.float32, scale=True)


def find_pictures(trained: Trained, model: nn.Module) -> list[tuple[str, Tensor]]:
    """Read the first pictures of the val split that fit, or make noise where there are none."""
    try:
        split = read_split(trained.config.data, "val", check_images=False)
        files = [split.image_dir / entry["file_name"] for entry in split.raw["images"][:PICTURES]]
        pictures = [(file.name, to_float(pil_to_tensor(read_image(file)))) for file in files]
    except (ValueError, OSError):
        pictures = []
    side = model.transform.min_size[-1]
    random = torch.Generator().manual_seed(0)
    noise = [(f"noise {i}", torch.rand(3, side, side + 64 * i, generator=random)) for i in range(PICTURES)]
    fitting = [(name, picture) for name, picture in pictures if fits(model, picture)]
    return fitting or [(name, picture) for name, picture in noise if fits(model, picture)]


def describe(trained: Trained, model: nn.Module, weights: str | None) -> dict[str, Any]:
    """Gather what a user of the file needs to know, as plain values."""
    transform = model.transform
    return {
        "detector": trained.config.model.detector,
        "class_names": trained.state["class_names"],  # of label 1, 2, ...
        "category_ids": trained.state["category_ids"],
        "min_size": transform.min_size[-1],
        "max_size": transform.max_size,
        "resize": dataclasses.asdict(build_resize(trained.config.model.spec, trained.config.data.model_dump())),
        "least_side": min_image_side(model),
        "normalized_inside": {"mean": transform.image_mean, "std": transform.image_std},
        "weights": choose_weights(trained.state, weights, trained.path),
        "step": trained.state["step"],
    }


def tell_operators(operators: Counter[str]) -> str:
    """Say how many operators there are, and of which not every runtime has."""
    rare = [f"{count} {name}" for name, count in operators.items() if any(part in name.split(".") for part in RARE)]
    return f"{sum(operators.values())} operators of {len(operators)} kinds, among them {', '.join(rare)}"


def show(rows: Sequence[CheckResult]) -> None:
    """Print how far program and detector are apart."""
    has_masks = rows[0].difference.mask is not None
    masks = f" masks {MASK_TOLERANCE}," if has_masks else ""
    print(f"\ntolerance: boxes {BOX_TOLERANCE} pixels, scores {SCORE_TOLERANCE},{masks} 1 detection in 100 alone")
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
        "picture",
        "size",
        "batch",
        "detections",
        "alone",
        "boxes",
        "scores",
        *(["masks"] if has_masks else []),
        "PyTorch, s",
        "program, s",
    )
    print(format_table(header, table))
    if not any(row.difference.detections for row in rows):
        print("Nothing was detected, so that boxes were not compared: name pictures by --check.")


if __name__ == "__main__":
    _clone.run(main)
