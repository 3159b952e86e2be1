"""Draw what a trained detector finds, what its deformable layers learned, and what its units depend on."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import _clone

# isort: split
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor, nn
from torchvision.ops import nms
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from data import CocoAnnotations, CocoDetection, eval_transform, read_image
from data.files import atomic_path
from engine.building import check_dcn_backend, read_split
from engine.devices import pick_device, set_tf32, to_device
from engine.display import Progress, draw_detections, format_table
from engine.evaluation import draw_predictions
from engine.inference import restore_model
from engine.insight import box_centres, dcn_figures, deformable_layers
from engine.weights import Trained, load_trained
from models.checkpoint import choose_weights

EPILOG = """examples:
  python tools/visualize.py runs/demo_dcn                                    # 4 images of its val split
  python tools/visualize.py runs/demo_dcn --against runs/demo --images 12 57
  python tools/visualize.py runs/demo_dcn --images photo.jpg --pixel 120,80
  python tools/visualize.py runs/demo_dcn device=cpu data.val.images=/data/val --count 8
Of each image are drawn:
  detections        against the truth: right, wrong class, duplicate, no object there, missed
  receptive_field   which pixels a unit of the last stage depends on, by its gradient
  sampling_points   where the last deformable layers sample, beside the regular grid
  masks, offsets    of the last deformable layer of each stage
The last three need deformable layers, and masks DCNv2."""
SHORT_SIDE = 480
# IoU from which two detections are about one object.
SAME_OBJECT = 0.5
SOFTWARE = "resnet-dcn tools/visualize.py"

Pixel = tuple[float, float]


class Subject(NamedTuple):
    """An image to draw: `(3, H, W)` uint8, what it is called, and its target where the truth is known."""

    name: str
    image: Tensor
    target: dict[str, Any] | None


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder of a run, whose last.pt is used, or a .pt file")
    parser.add_argument(
        "--against", type=Path, metavar="RUN", help="another run, whose receptive fields are drawn beside"
    )
    parser.add_argument(
        "--images",
        nargs="+",
        default=[],
        metavar="IMAGE",
        help="ids or file names of the run's val split, or any picture files",
    )
    parser.add_argument(
        "--count", type=int, default=4, help="images of the val split where none are named (default: %(default)s)"
    )
    parser.add_argument(
        "--pixel",
        type=read_pixel,
        action="append",
        default=[],
        metavar="X,Y",
        help="pixel of the image to draw sampling points for, repeatable, in place of detections",
    )
    parser.add_argument(
        "--points",
        type=int,
        default=3,
        metavar="N",
        help="detections to draw sampling points and receptive fields for, the best first (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to write (default: <run>/pictures)")
    parser.add_argument(
        "--weights", choices=("raw", "ema"), help="of a run with train.ema_decay (default: ema where there are any)"
    )
    parser.add_argument(
        "--score-threshold", type=float, default=0.5, help="detections below are not drawn (default: %(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values, as in device=cpu")
    args = parser.parse_intermixed_args()
    for option in ("count", "points"):
        if getattr(args, option) < 1:
            parser.error(f"--{option} must be at least 1, got {getattr(args, option)}")
    if not 0 <= args.score_threshold <= 1:
        parser.error(f"--score-threshold must be from 0 to 1, got {args.score_threshold}")
    if args.out and args.out.exists() and not args.out.is_dir():
        parser.error(f"--out must be a folder, and {args.out} is a file")
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
    trained = load_trained(args.run, args.overrides)
    device = pick_device(trained.config.device)
    check_dcn_backend(trained.config.model, device)
    set_tf32(trained.config.train.tf32)
    model = restore_model(trained, weights=args.weights).to(device)
    against = load_other(args.against, trained, args.weights, device) if args.against else None
    subjects = find_subjects(trained, args.images, args.count, progress)
    for subject in subjects:
        check_pixels(args.pixel, subject)
    folder = args.out or trained.path.parent / "pictures"
    names = run_names(args.run, args.against)
    # which the detector keeps to itself, and of which the legend is to say nothing else
    own_threshold = trained.config.model.options.score_threshold
    rows = []
    for subject in progress.track(subjects, "draw"):
        pictures = draw(
            model,
            subject,
            trained.state["class_names"],
            args.pixel,
            points=args.points,
            device=device,
            score_threshold=max(args.score_threshold, own_threshold),
            names=names,
            against=against,
        )
        for kind, picture in pictures.items():
            file = folder / f"{subject.name}_{kind}.png"
            write_picture(file, picture, trained)
            rows.append((subject.name, kind, f"{picture.shape[2]}x{picture.shape[1]}", str(file)))
    print(describe(trained, model, args.weights, device))
    print()
    print(format_table(("image", "picture", "pixels", "file"), rows))


def load_other(path: Path, trained: Trained, weights: str | None, device: torch.device) -> nn.Module:
    """Load the model to compare with, which must know the same classes."""
    other = load_trained(path)
    classes, theirs = trained.state["class_names"], other.state["class_names"]
    if classes != theirs:
        raise ValueError(
            f"--against {path} must know the classes of {trained.path}, {', '.join(classes)}, got {', '.join(theirs)}"
        )
    weights = "raw" if other.state["ema"] is None else weights
    return restore_model(other, weights=weights).to(device)


def run_names(run: Path, against: Path | None) -> tuple[str, str | None]:
    """Name two runs for the titles, by their folders where these differ."""
    if against is None:
        return run_name(run), None
    names = run_name(run), run_name(against)
    return names if names[0] != names[1] else (str(run), str(against))


def run_name(path: Path) -> str:
    """Name a run by its folder."""
    path = path.resolve()
    return path.name if path.is_dir() else f"{path.parent.name}/{path.name}"


def find_subjects(trained: Trained, wanted: Sequence[str], count: int, progress: Progress) -> list[Subject]:
    """Read the images asked for, or the first of the val split that have boxes; the split only if it is needed."""
    place = Path(trained.config.data.val.images)
    loose = [Path(text).is_file() and not Path(text).resolve().is_relative_to(place.resolve()) for text in wanted]
    subjects = []
    if wanted and all(loose):
        subjects = [read_file(Path(text)) for text in wanted]
    else:
        masks = trained.config.model.spec.has_masks
        split = read_split(
            trained.config.data,
            "val",
            lambda items: progress.track(items, "check val images"),
            masks=masks,
            run=trained.path.parent,
        )
        dataset = CocoDetection(split, eval_transform(), masks=masks)
        if wanted:
            for text, is_loose in zip(wanted, loose, strict=True):
                subjects.append(read_file(Path(text)) if is_loose else read_entry(dataset, find_entry(split, text)))
        else:
            indices = split.arrays.counts.nonzero()[0].tolist() or range(len(dataset))
            subjects = [read_entry(dataset, index) for index in indices[:count]]
    names = [subject.name for subject in subjects]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"--images must have names of their own for the files to write, got twice: {', '.join(twice)}")
    return subjects


def find_entry(split: CocoAnnotations, text: str) -> int:
    """Find an image of a split by its id or file name."""
    for index, entry in enumerate(split.raw["images"]):
        if (
            text in (str(entry["id"]), entry["file_name"])
            or Path(text).resolve() == (split.image_dir / entry["file_name"]).resolve()
        ):
            return index
    hint = "; key=value goes before --images" if "=" in text else ""
    raise ValueError(
        f"--images {text} must be an id or a file name of {split.path}, or a picture file, and is none{hint}"
    )


def read_entry(dataset: CocoDetection, index: int) -> Subject:
    """Read an image of a split, with its truth."""
    image, target = dataset[index]
    return Subject(Path(dataset.arrays.file_name(index)).stem, image, target)


def read_file(path: Path) -> Subject:
    """Read a picture of which no truth is known."""
    return Subject(path.stem, pil_to_tensor(read_image(path)), None)


def check_pixels(pixels: Sequence[Pixel], subject: Subject) -> None:
    """Raise `ValueError` for a pixel that is not in an image."""
    height, width = subject.image.shape[1:]
    for x, y in pixels:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(f"--pixel {x},{y} must lie within image {subject.name}, which is {width}x{height} pixels")


def draw(
    model: nn.Module,
    subject: Subject,
    class_names: Sequence[str],
    pixels: Sequence[Pixel],
    *,
    points: int,
    device: torch.device,
    score_threshold: float,
    names: tuple[str, str | None],
    against: nn.Module | None,
) -> dict[str, Tensor]:
    """Draw all pictures of one image, by kind; without `pixels` for the centres of the best `points` detections."""
    image = subject.image
    with torch.inference_mode():
        (found,) = model(to_device([image], [], device)[0])
    found = {key: value.cpu() for key, value in found.items()}
    options = {"score_threshold": score_threshold, "short_side": SHORT_SIDE}
    if subject.target is None:
        detections = draw_detections(image, found, class_names, **options)
    else:
        detections = draw_predictions(model, [(image, subject.target)], class_names, device=device, **options)
    if not pixels:
        # one for each object: of detections upon each other, whatever their class, the best
        best = nms(found["boxes"], found["scores"], SAME_OBJECT)
        pixels = box_centres(found["boxes"][best], points, image)
    pictures = dcn_figures(
        model, image, pixels, device=device, name=names[0], baseline=against, baseline_name=names[1] or ""
    )
    return {"detections": detections} | pictures


def write_picture(file: Path, picture: Tensor, trained: Trained) -> None:
    """Write a PNG that says what drew it, in place of an earlier one only if that says the same."""
    if file.exists():
        try:
            with Image.open(file) as earlier:
                is_ours = earlier.info.get("Software") == SOFTWARE
        except OSError:
            is_ours = False
        if not is_ours:
            raise ValueError(f"{file} must not exist or be of this tool, and is a file of another kind: choose --out")
    file.parent.mkdir(parents=True, exist_ok=True)
    origin = PngImagePlugin.PngInfo()
    origin.add_text("Software", SOFTWARE)
    origin.add_text("Source", f"{trained.path} step {trained.state['step']}")
    with atomic_path(file) as partial:
        to_pil_image(picture).save(partial, format="PNG", pnginfo=origin)


def describe(trained: Trained, model: nn.Module, weights: str | None, device: torch.device) -> str:
    """Say in a line what was drawn with."""
    kind = "averaged weights" if choose_weights(trained.state, weights, trained.path) == "ema" else "weights"
    layers = deformable_layers(model)
    stages = ", ".join(dict.fromkeys(name.partition(".")[0] for name in layers))
    dcn = f"{len(layers)} deformable layers in {stages}" if layers else "no deformable layers"
    return f"{trained.path} ({kind} of step {trained.state['step']}), {device}, {dcn}"


if __name__ == "__main__":
    _clone.run(main)
