"""Look at a data set in COCO format before training on it: everything that would hurt, and what is in it."""

import argparse
import json
import sys
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import _clone

# isort: split
from torchvision.transforms.v2.functional import to_pil_image

from data import CocoDetection, ImageError, Inspection, Problem, compare_splits, eval_transform, inspect_dataset
from data.files import atomic_path, write_text
from engine.config import load_config
from engine.display import COLOURS, PLAIN, Progress, counted, draw_sample_grid, format_table, wants_colour

EPILOG = """examples:
  python tools/check_dataset.py --config cards.yaml
  python tools/check_dataset.py --config r50_dcn.yaml --json check.json --sheet ""
  python tools/check_dataset.py --images photos --annotations photos/instances.json --sheet photos.png
Exit codes: 0 nothing that training refuses, 1 errors were found, 2 a mistake in what was asked for."""
NAMED = 5
KINDS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # of the sheet


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="YAML file, or the name of one in configs/; both of its splits are checked")
    parser.add_argument("--images", type=Path, help="folder of the pictures, without a config")
    parser.add_argument("--annotations", type=Path, help="COCO annotation file, without a config")
    parser.add_argument(
        "--sheet",
        default="check_dataset.png",
        help='where to draw samples with their boxes, "" for nowhere (default: %(default)s)',
    )
    parser.add_argument("--samples", type=int, default=12, help="pictures of each split to draw (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write everything found to this file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values, as in data.train.images=photos"
    )
    args = parser.parse_intermixed_args()
    place = (args.images, args.annotations)
    if bool(args.config) == any(place) or any(place) != all(place):
        parser.error("give either --config, or --images and --annotations")
    if args.sheet and Path(args.sheet).suffix.lower() not in KINDS:
        parser.error(f"--sheet must end with one of {', '.join(KINDS)}, got {args.sheet}")
    if args.samples < 1:
        parser.error(f"--samples must be at least 1, got {args.samples}")
    return args


def main() -> None:
    """Check each split, then both together, and show."""
    args = parse_arguments()
    if args.config:
        config = load_config(args.config, args.overrides)
        splits = {"train": config.data.train, "val": config.data.val}
        masks = config.model.spec.has_masks
        places = {name: (split.images, split.annotations) for name, split in splits.items()}
    else:
        places = {"data": (args.images, args.annotations)}
        masks = False
    progress = Progress()
    found = {
        name: inspect_dataset(
            *place, masks=masks, progress=lambda items, name=name: progress.track(items, f"check {name} images")
        )
        for name, place in places.items()
    }
    if args.config and not len(found["train"].usable.arrays.boxes):
        found["train"].errors.append(Problem("splits to learn from that have no box", [places["train"][1]]))
    common = compare_splits(
        [inspection.usable for inspection in found.values()], lambda items: progress.track(items, "compare images")
    )
    for split, inspection in found.items():
        print(f"\n{split}: {places[split][1]}")
        show(inspection)
    if any(common):
        print()
        show_problems(*common)
    if args.sheet:
        draw(found, Path(args.sheet), args.samples)
    refused = [problem for inspection in found.values() for problem in inspection.errors] + common[0]
    errors = sum(len(problem.found) for problem in refused)
    if args.json:
        figures = {split: as_json(inspection) for split, inspection in found.items()}
        everything = figures | {"together": [listed(p) for p in chain(*common)], "errors": errors}
        write_text(args.json, json.dumps(everything, indent=1))
        print(f"everything found: {args.json}")
    print(f"\n{counted(errors, 'error')}: training refuses this data set" if errors else "\nno errors")
    if errors:
        raise SystemExit(1)


def show(inspection: Inspection) -> None:
    """Print what was found in one split."""
    show_problems(inspection.errors, inspection.warnings)
    boxes = sum(row["boxes"] for row in inspection.classes.values())
    images = inspection.boxes_per_image.total()
    print(
        f"\n{counted(images, 'image')}, {counted(boxes, 'box')} to learn from ({boxes / max(images, 1):.1f} an image, "
        f"at most {max(inspection.boxes_per_image, default=0)}), {inspection.masks:,} of them with a mask, "
        f"{counted(inspection.crowd, 'crowd region')}\n"
    )
    rows = [(name, row["images"], row["boxes"], share(row["boxes"], boxes)) for name, row in inspection.classes.items()]
    print(format_table(("class", "images", "boxes", ""), rows))
    limits = {"small": "area < 32^2", "medium": "area < 96^2", "large": "from 96^2 on"}
    rows = [(name, limits[name], count, share(count, boxes)) for name, count in inspection.box_sizes.items()]
    print(f"\n{format_table(('boxes', 'pixels', 'count', ''), rows)}")
    sizes = inspection.image_sizes.most_common(NAMED)
    rows = [("not stated" if size is None else f"{size[0]}x{size[1]}", n, share(n, images)) for size, n in sizes]
    if len(inspection.image_sizes) > NAMED:
        rest = images - sum(count for _, count in sizes)
        rows.append((f"{len(inspection.image_sizes) - NAMED} more", rest, share(rest, images)))
    print(f"\n{format_table(('image size', 'count', ''), rows)}")


def show_problems(errors: Sequence[Problem], warnings: Sequence[Problem]) -> None:
    """Print each kind of mistake with its first places."""
    palette = COLOURS if wants_colour(sys.stdout) else PLAIN
    for kind, colour, problems in (("error", palette.error, errors), ("warning", palette.warning, warnings)):
        for problem in problems:
            print(f"{colour}{kind}{palette.reset}: {problem.what}: {len(problem.found):,}{problem.hint}")
            for place in problem.found[:NAMED]:
                print(f"    {place}")
            if len(problem.found) > NAMED:
                print(f"    and {len(problem.found) - NAMED:,} more")


def share(part: int, whole: int) -> str:
    """A bar of up to 20 characters, and the percentage."""
    return f"{'#' * round(20 * part / max(whole, 1)):20} {part / max(whole, 1):>6.1%}"


def draw(found: dict[str, Inspection], path: Path, count: int) -> None:
    """Draw samples spread over each split, those with boxes first, and with masks where every box has one."""
    samples = []
    names: list[str] = []
    for inspection in found.values():
        dataset = CocoDetection(
            inspection.usable, eval_transform(), keep_images_without_boxes=False, masks=inspection.has_masks
        )
        for index in spread(len(dataset), count):
            try:
                samples.append(dataset[index])
            except ImageError:
                continue
        names = max(names, inspection.usable.class_names, key=len)
    if not samples:
        print("\nno picture could be drawn")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        to_pil_image(draw_sample_grid(samples, names)).save(partial, format=KINDS[path.suffix.lower()])
    print(f"\nsamples with their boxes: {path}")


def spread(length: int, count: int) -> list[int]:
    """Up to `count` numbers below `length`, far from each other."""
    return [length * step // count for step in range(count)] if length > count else list(range(length))


def listed(problem: Problem) -> dict[str, Any]:
    """A problem as JSON."""
    return {"what": problem.what, "count": len(problem.found), "found": problem.found}


def as_json(inspection: Inspection) -> dict[str, Any]:
    """What was found in one split, as JSON."""
    return {
        "errors": [listed(problem) for problem in inspection.errors],
        "warnings": [listed(problem) for problem in inspection.warnings],
        "images": inspection.boxes_per_image.total(),
        "classes": inspection.classes,
        "box_sizes": inspection.box_sizes,
        "image_sizes": {"x".join(map(str, size or ("?",))): count for size, count in inspection.image_sizes.items()},
        "boxes_per_image": dict(sorted(inspection.boxes_per_image.items())),
        "crowd": inspection.crowd,
        "masks": inspection.masks,
    }


if __name__ == "__main__":
    _clone.run(main)
