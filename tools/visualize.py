"""Draw the detections of a trained detector, its sampling points, offsets, masks and receptive fields.

With --augment it draws training images of a config with their augmentation instead.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import _clone

# isort: split
import torch
from _arguments import (
    add_device,
    add_num_images,
    add_out,
    add_overrides,
    add_score_threshold,
    add_weights,
    config_values,
    current_spellings,
    is_override,
    is_read,
    make_parser,
    positive,
    refuse_unused,
)
from PIL import PngImagePlugin
from torch import Tensor, nn
from torchvision.ops import nms
from torchvision.transforms.v2.functional import to_pil_image

from data import CocoAnnotations, CocoDetection, ReadOptions, eval_transform, read_image
from data.files import atomic_file
from data.image_files import ImageError, open_image
from data.paths import resolved
from engine.building import (
    check_dcn_backend,
    draw_augmented,
    max_aspect_ratio,
    read_options,
    read_split,
    with_any_statistics,
)
from engine.config import describe_unused, load_config, unused_overrides
from engine.devices import pick_device, set_tf32, to_device
from engine.display import Progress, draw_detections, format_table
from engine.evaluation import draw_predictions
from engine.inference import restore_model
from engine.insight import box_centres, dcn_figures, deformable_layers
from engine.weights import Trained, load_trained
from models.checkpoint import choose_weights
from models.masks import unpasted_masks

EPILOG = """examples:
  python tools/visualize.py runs/demo_dcn                                    # 4 images of its val split
  python tools/visualize.py runs/demo_dcn --baseline runs/demo --images 12 57
  python tools/visualize.py runs/demo_dcn --images photo.jpg --pixel 120,80
  python tools/visualize.py --augment custom.yaml data.augment=strong        # what training reads
  python tools/visualize.py runs/demo_dcn --device cpu --num-images 8 data.val.images=/data/val

Figures of each image:
- detections: ground truth and detections: true positive, wrong class, duplicate, false positive, missed
- receptive_field: effective receptive field of a location in the last stage, by the gradient
- sampling_points: sampling points of the last deformable layers, next to the regular grid
- masks, offsets: mean mask and mean offset of the last deformable layer of each stage
The last three need deformable layers; masks need DCNv2."""
SHORT_SIDE = 480
# of --augment: draws of each image, and the maximum side of a drawn image
DRAWS, AUGMENTED_SIDE = 5, 300
# Two detections with at least this IoU belong to one object.
SAME_OBJECT = 0.5
SOFTWARE = "resnet-dcn tools/visualize.py"

Pixel = tuple[float, float]


class Subject(NamedTuple):
    """An image to draw: name, `(channels, H, W)`, and its target if the ground truth is known."""

    name: str
    image: Tensor
    target: dict[str, Any] | None


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    parser.add_argument(
        "run", nargs="?", type=Path, metavar="RUN", help="run folder (its last.pt is used) or checkpoint file"
    )
    parser.add_argument(
        "--augment",
        metavar="CONFIG",
        help="draw training images of a config with their augmentation, without a RUN; --num-images sets the rows",
    )
    parser.add_argument(
        "--baseline", type=Path, metavar="RUN", help="another run; its receptive fields are drawn next to this run's"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="ids or file names of the val split, or image files",
    )
    add_num_images(parser, 4, "number of images of the val split, without --images")
    parser.add_argument(
        "--pixel",
        type=read_pixel,
        action="append",
        default=[],
        metavar="X,Y",
        help="pixel to draw sampling points for, instead of detections; repeatable",
    )
    parser.add_argument(
        "--max-detections",
        type=positive,
        default=3,
        metavar="N",
        help="draw sampling points and receptive fields of the N best detections (default: %(default)s)",
    )
    add_score_threshold(parser, 0.5)
    add_device(parser)
    add_weights(parser)
    add_out(parser, "<run>/figures; figures with --augment")
    add_overrides(parser, "data.val.images=/data/val")
    args = parser.parse_intermixed_args(current_spellings("visualize"))
    if args.augment and args.run:
        if not is_override(str(args.run)):
            parser.error(f"--augment draws the images of a config, and no RUN, got {args.run}")
        args.overrides.insert(0, str(args.run))
    if not args.augment and not args.run:
        parser.error("the following arguments are required: RUN, or --augment CONFIG")
    args.overrides = config_values(args)
    if args.augment:
        why = "--augment draws no detections"
        if args.pixel:
            parser.error(f"--pixel has no effect: {why}")
        unused = ("--images", "--baseline", "--max-detections", "--score-threshold", "--weights", "--device")
        refuse_unused(args, why, *unused)
    if args.images:
        refuse_unused(args, "--images names the images", "--num-images")
    if args.pixel:
        refuse_unused(args, "--pixel sets the sampling points", "--max-detections")
    if args.out and args.out.exists() and not args.out.is_dir():
        parser.error(f"--out must be a folder, got the file {args.out}")
    return args


def read_pixel(text: str) -> tuple[int, int]:
    """Read "X,Y"."""
    try:
        x, y = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be X,Y as in 120,80, got {text!r}") from None
    return x, y


def main() -> None:
    """Draw and write."""
    args = parse_arguments()
    progress = Progress()
    if args.augment:
        show_augmented(args.augment, args.overrides, args.num_images, args.out or Path("figures"), progress)
        return
    trained = load_trained(args.run, args.overrides)
    if unused := unused_overrides(trained.config, args.overrides, partial(is_read, "visualize")):
        print(f"{describe_unused(unused)}\n")
    device = pick_device(trained.config.device)
    check_dcn_backend(trained.config.model, device)
    set_tf32(trained.config.train.tf32)
    model = restore_model(trained, weights=args.weights).to(device)
    baseline = load_baseline(args.baseline, trained, args.weights, device) if args.baseline else None
    subjects = find_subjects(trained, args.images, args.num_images, progress)
    for subject in subjects:
        check_pixels(args.pixel, subject)
    folder = args.out or trained.path.parent / "figures"
    names = run_names(args.run, args.baseline)
    # the detector returns no detections below it, so the legend must not state a lower one
    own_threshold = trained.config.model.options.score_threshold
    rows = []
    for subject in progress.track(subjects, "draw"):
        figures = draw(
            model,
            subject,
            trained.state["class_names"],
            args.pixel,
            max_detections=args.max_detections,
            device=device,
            score_threshold=max(args.score_threshold, own_threshold),
            names=names,
            baseline=baseline,
        )
        for kind, figure in figures.items():
            file = folder / f"{subject.name}_{kind}.png"
            write_figure(file, figure, f"{trained.path} step {trained.state['step']}")
            rows.append((subject.name, kind, f"{figure.shape[2]}x{figure.shape[1]}", str(file)))
    print(describe(trained, model, args.weights, device))
    print()
    print(format_table(("image", "figure", "pixels", "file"), rows))


def show_augmented(source: str, overrides: Sequence[str], count: int, folder: Path, progress: Progress) -> None:
    """Draw and write training images of a config with their augmentation."""
    config = with_any_statistics(load_config(source, overrides))
    split = read_split(
        config.data,
        "train",
        lambda items: progress.track(items, "check train images"),
        masks=config.model.spec.has_masks,
        check_images=False,
    )
    figure = draw_augmented(config, split, images=count, draws=DRAWS, side=AUGMENTED_SIDE)
    if figure is None:
        raise ValueError(f"none of the first images of {split.path} can be read")
    file = folder / "augmentation.png"
    write_figure(file, figure, f"{source} augmentation {config.data.augment.description}")
    print(f"augmentation: {config.data.augment.description}\n")
    row = (min(count, len(split.arrays)), DRAWS, f"{figure.shape[2]}x{figure.shape[1]}", str(file))
    print(format_table(("images", "draws", "pixels", "file"), [row]))


def load_baseline(path: Path, trained: Trained, weights: str | None, device: torch.device) -> nn.Module:
    """Load the model to compare with; it must have the same classes."""
    other = load_trained(path)
    classes, theirs = trained.state["class_names"], other.state["class_names"]
    if classes != theirs:
        raise ValueError(
            f"--baseline {path} must have the classes of {trained.path}, {', '.join(classes)}, got {', '.join(theirs)}"
        )
    weights = "raw" if other.state["ema"] is None else weights
    return restore_model(other, weights=weights).to(device)


def run_names(run: Path, baseline: Path | None) -> tuple[str, str | None]:
    """Name two runs for the titles: by their folders, or by their paths if the folders have the same name."""
    if baseline is None:
        return run_name(run), None
    names = run_name(run), run_name(baseline)
    return names if names[0] != names[1] else (str(run), str(baseline))


def run_name(path: Path) -> str:
    """Name a run by its folder."""
    path = resolved(path)
    return path.name if path.is_dir() else f"{path.parent.name}/{path.name}"


def find_subjects(trained: Trained, wanted: Sequence[str], count: int, progress: Progress) -> list[Subject]:
    """Read the wanted images, or the first ones of the val split that have boxes; read the split only if needed."""
    folder = Path(trained.config.data.val.images)
    loose = [Path(text).is_file() and not resolved(text).is_relative_to(resolved(folder)) for text in wanted]
    options = read_options(trained.config, "val")
    subjects = []
    if wanted and all(loose):
        subjects = [read_file(Path(text), options) for text in wanted]
    else:
        masks = trained.config.model.spec.has_masks
        split = read_split(
            trained.config.data,
            "val",
            lambda items: progress.track(items, "check val images"),
            masks=masks,
            max_aspect_ratio=max_aspect_ratio(trained.config, "val"),
            run=trained.path.parent,
        )
        dataset = CocoDetection(split, eval_transform(), masks=masks)
        if wanted:
            for text, is_loose in zip(wanted, loose, strict=True):
                subjects.append(
                    read_file(Path(text), options) if is_loose else read_entry(dataset, find_entry(split, text))
                )
        else:
            indices = split.arrays.counts.nonzero()[0].tolist() or range(len(dataset))
            subjects = [read_entry(dataset, index) for index in indices[:count]]
    names = [subject.name for subject in subjects]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--images must have different names, got twice: {', '.join(twice)}")
    return subjects


def find_entry(split: CocoAnnotations, text: str) -> int:
    """Find an image of a split by its id or file name."""
    for index, entry in enumerate(split.raw["images"]):
        if text in (str(entry["id"]), entry["file_name"]) or resolved(text) == resolved(
            split.image_dir / entry["file_name"]
        ):
            return index
    hint = "; write key=value before --images" if is_override(text) else ""
    raise ValueError(f"--images must be ids or file names of {split.path}, or image files, got {text!r}{hint}")


def read_entry(dataset: CocoDetection, index: int) -> Subject:
    """Read an image of a split, with its ground truth."""
    image, target = dataset[index]
    return Subject(Path(dataset.arrays.file_name(index)).stem, image, target)


def read_file(path: Path, options: ReadOptions) -> Subject:
    """Read an image file without ground truth."""
    return Subject(path.stem, read_image(path, options=options), None)


def check_pixels(pixels: Sequence[Pixel], subject: Subject) -> None:
    """Raise `ValueError` for a pixel outside of the image."""
    height, width = subject.image.shape[1:]
    for x, y in pixels:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"--pixel {x},{y} must be within image {subject.name} of {width}x{height} pixels")


def draw(
    model: nn.Module,
    subject: Subject,
    class_names: Sequence[str],
    pixels: Sequence[Pixel],
    *,
    max_detections: int,
    device: torch.device,
    score_threshold: float,
    names: tuple[str, str | None],
    baseline: nn.Module | None,
) -> dict[str, Tensor]:
    """Draw all figures of one image, by kind; without `pixels`, for the centres of the best detections."""
    image = subject.image
    with torch.inference_mode(), unpasted_masks(model):
        (found,) = model(to_device([image], [], device)[0])
    found = {key: value.cpu() for key, value in found.items()}
    options = {"score_threshold": score_threshold, "short_side": SHORT_SIDE}
    if subject.target is None:
        detections = draw_detections(image, found, class_names, **options)
    else:
        detections = draw_predictions(model, [(image, subject.target)], class_names, device=device, **options)
    if not pixels:
        # one per object: the best of overlapping detections, of any class
        best = nms(found["boxes"], found["scores"], SAME_OBJECT)
        pixels = box_centres(found["boxes"][best], max_detections, image)
    figures = dcn_figures(
        model, image, pixels, device=device, name=names[0], baseline=baseline, baseline_name=names[1] or ""
    )
    return {"detections": detections} | figures


def write_figure(file: Path, figure: Tensor, source: str) -> None:
    """Write a PNG with the name of this tool in it; overwrite only a file of this tool."""
    if file.exists():
        try:
            with open_image(file) as earlier:
                is_ours = earlier.info.get("Software") == SOFTWARE
        except ImageError:
            is_ours = False
        if not is_ours:
            raise ValueError(f"{file} exists and is not a file of this tool: choose another --out")
    origin = PngImagePlugin.PngInfo()
    origin.add_text("Software", SOFTWARE)
    origin.add_text("Source", source)
    with atomic_file(file) as sink:
        to_pil_image(figure).save(sink, format="PNG", pnginfo=origin)


def describe(trained: Trained, model: nn.Module, weights: str | None, device: torch.device) -> str:
    """Describe the model in one line."""
    kind = "averaged weights" if choose_weights(trained.state, weights, trained.path) == "ema" else "weights"
    layers = deformable_layers(model)
    stages = ", ".join(dict.fromkeys(name.partition(".")[0] for name in layers))
    dcn = f"{len(layers)} deformable layers in {stages}" if layers else "no deformable layers"
    return f"{trained.path} ({kind} of step {trained.state['step']}), {device}, {dcn}"


if __name__ == "__main__":
    _clone.run(main)
