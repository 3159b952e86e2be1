"""Check a COCO-format data set before training: errors, likely problems and statistics."""

import argparse
import os
import sys
from collections.abc import Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import _clone

# isort: split
from _arguments import (
    add_json,
    add_num_images,
    add_overrides,
    current_spellings,
    is_read,
    make_parser,
    refuse_unused,
)
from _outputs import check_outputs
from torchvision.transforms.v2.functional import to_pil_image

from data import (
    CocoDetection,
    ImageError,
    Inspection,
    Problem,
    ReadOptions,
    compare_splits,
    eval_transform,
    inspect_dataset,
)
from data.coco_file import one_line
from data.files import atomic_file, write_json
from data.paths import resolved
from engine.building import read_options
from engine.config import DataConfig, describe_unused, load_config, unused_overrides
from engine.display import (
    COLOURS,
    PLAIN,
    Progress,
    Styled,
    counted,
    draw_sample_grid,
    format_table,
    only_shown,
    wants_colour,
)

EPILOG = """examples:
  python tools/check_dataset.py --config cards.yaml
  python tools/check_dataset.py --config r50_dcn.yaml --json check.json --contact-sheet ""
  python tools/check_dataset.py --images photos --annotations photos/instances.json --contact-sheet photos.png
Exit codes: 0 no errors, 1 errors that stop training, 2 error in the arguments."""
NAMED = 5
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # of the contact sheet


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    parser.add_argument(
        "--config", metavar="C", help="YAML file, or the name of a file in configs/; the tool checks both splits"
    )
    parser.add_argument("--images", type=Path, metavar="DIR", help="image folder; with --annotations")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="COCO annotation file; with --images")
    parser.add_argument(
        "--contact-sheet",
        metavar="FILE",
        default="check_dataset.png",
        help='image of samples with their boxes, "" for none (default: %(default)s)',
    )
    add_num_images(parser, 12, "samples per split on the contact sheet")
    add_json(parser, "all findings")
    add_overrides(parser, "data.train.images=photos")
    args = parser.parse_intermixed_args(current_spellings("check_dataset"))
    split = (args.images, args.annotations)
    if bool(args.config) == any(split) or any(split) != all(split):
        parser.error("give either --config, or --images and --annotations")
    if not args.config:
        refuse_unused(args, "it needs --config", "key=value")
    if not args.contact_sheet:
        refuse_unused(args, 'it needs a contact sheet, and --contact-sheet is ""', "--num-images")
    if args.contact_sheet and Path(args.contact_sheet).suffix.lower() not in FORMATS:
        parser.error(f"--contact-sheet must end with one of {', '.join(FORMATS)}, got {args.contact_sheet}")
    return args


def main() -> None:
    """Check each split, then both together, and print the findings."""
    args = parse_arguments()
    if args.config:
        config = load_config(args.config, args.overrides)
        if unused := unused_overrides(config, args.overrides, partial(is_read, "check_dataset")):
            print(describe_unused(unused))
        splits = {"train": config.data.train, "val": config.data.val}
        files = {name: (split.images, split.annotations) for name, split in splits.items()}
        common_options = {
            "masks": config.model.spec.has_masks,
            "invalid_annotations": config.data.invalid_annotations,
            "max_detections": config.eval.max_detections,
            "classes": config.data.classes and config.data.classes.changes,
        }
        options = {name: common_options | {"read_options": read_options(config, name)} for name in splits}
    else:
        files = {"data": (args.images, args.annotations)}
        options = {"data": {"read_options": ReadOptions(max_aspect_ratio=DataConfig.model_fields["max_size"].default)}}
    sheet = Path(args.contact_sheet) if args.contact_sheet else None
    inputs = {f"the annotations of {name}": Path(split[1]) for name, split in files.items()}
    inputs |= {"--config": args.config and Path(args.config)}
    check_outputs({"--contact-sheet": sheet, "--json": args.json}, inputs)
    progress = Progress()
    found = {
        name: inspect_dataset(
            *split,
            **options[name],
            progress=lambda items, name=name: progress.track(items, f"check {name} images"),
        )
        for name, split in files.items()
    }
    if args.config and not len(found["train"].usable.arrays.boxes):
        reason = found["train"].usable.why_no_boxes
        found["train"].errors.append(Problem("train split without a box", [f"{files['train'][1]}: {reason}"]))
    common = compare_splits(
        [inspection.usable for inspection in found.values()], lambda items: progress.track(items, "compare images")
    )
    for split, inspection in found.items():
        print(f"\n{split}: {files[split][1]}")
        show(inspection)
    if any(common):
        print()
        show_problems(*common)
    errors = [problem for inspection in found.values() for problem in inspection.errors] + common[0]
    count = sum(len(problem.found) for problem in errors)
    if args.json:
        splits = {split: as_json(inspection) for split, inspection in found.items()}
        everything = splits | {"together": [listed(p) for p in chain(*common)], "errors": count}
        write_json(args.json, everything, indent=1)
    if sheet:
        for name, inspection in found.items():
            check_no_image(sheet, Path(files[name][0]), inspection)
        with only_shown("samples of the contact sheet"):
            draw(found, sheet, args.num_images)
    if args.json:
        print(f"findings: {args.json}")
    print(f"\n{counted(count, 'error')}: training stops on this data set" if count else "\nno errors")
    if count:
        raise SystemExit(1)


def show(inspection: Inspection) -> None:
    """Print the findings of one split."""
    show_problems(inspection.errors, inspection.warnings)
    if inspection.usable.classes_kept:
        print(f"\ndata.classes: {inspection.usable.classes_kept}")
    boxes = sum(row["boxes"] for row in inspection.classes.values())
    images = inspection.boxes_per_image.total()
    print(
        f"\n{counted(images, 'image')}, {counted(boxes, 'box')} to train on ({boxes / max(images, 1):.1f} per image, "
        f"at most {max(inspection.boxes_per_image, default=0)}), {inspection.masks:,} with a mask, "
        f"{counted(inspection.crowd, 'crowd region')}\n"
    )
    rows = [
        (name, row["images"], row["boxes"], percentage(row["boxes"], boxes)) for name, row in inspection.classes.items()
    ]
    print(format_table(("class", "images", "boxes", ""), rows))
    limits = {"small": "area < 32^2", "medium": "area < 96^2", "large": "area >= 96^2"}
    rows = [(name, limits[name], count, percentage(count, boxes)) for name, count in inspection.box_sizes.items()]
    print(f"\n{format_table(('boxes', 'pixels', 'count', ''), rows)}")
    sizes = inspection.image_sizes.most_common(NAMED)
    rows = [("not declared" if size is None else f"{size[0]}x{size[1]}", n, percentage(n, images)) for size, n in sizes]
    if len(inspection.image_sizes) > NAMED:
        rest = images - sum(count for _, count in sizes)
        rows.append((f"{len(inspection.image_sizes) - NAMED} more", rest, percentage(rest, images)))
    print(f"\n{format_table(('image size', 'count', ''), rows)}")
    rows = [
        (kind, count, percentage(count, images), "0 to 255" if values is None else f"{values[0]:g} to {values[1]:g}")
        for kind, (count, values) in inspection.pixels.items()
    ]
    if rows:
        print(f"\n{format_table(('channels x type', 'count', '', 'values'), rows)}")


def show_problems(errors: Sequence[Problem], warnings: Sequence[Problem]) -> None:
    """Print each kind of problem with the first locations."""
    palette = COLOURS if wants_colour(sys.stdout) else PLAIN
    for kind, colour, problems in (("error", palette.error, errors), ("warning", palette.warning, warnings)):
        for problem in problems:
            sys.stdout.write(Styled(f"{colour}{kind}{palette.reset}"))
            print(f": {problem.what}: {len(problem.found):,}{problem.hint}")
            for location in problem.found[:NAMED]:
                print(f"    {one_line(location)}")
            if len(problem.found) > NAMED:
                print(f"    and {len(problem.found) - NAMED:,} more")


def percentage(part: int, whole: int) -> str:
    """Return a bar of up to 20 characters, and the percentage."""
    return f"{'#' * round(20 * part / max(whole, 1)):20} {part / max(whole, 1):>6.1%}"


def check_no_image(sheet: Path, images: Path, inspection: Inspection) -> None:
    """Raise `ValueError` if the contact sheet would overwrite an image of the data set."""
    arrays, name = inspection.usable.arrays, Path(os.path.relpath(resolved(sheet), resolved(images))).as_posix()
    if sheet.exists() and any(arrays.file_name(index) == name for index in range(len(arrays))):
        raise ValueError(f"--contact-sheet {sheet} must not overwrite an image of the data set")


def draw(found: dict[str, Inspection], path: Path, count: int) -> None:
    """Draw samples spread over each split: images with boxes, and masks if every box has one."""
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
        print("\nnote: no sample could be drawn")
        return
    with atomic_file(path) as file:
        to_pil_image(draw_sample_grid(samples, names)).save(file, format=FORMATS[path.suffix.lower()])
    print(f"\ncontact sheet: {path}")


def spread(length: int, count: int) -> list[int]:
    """Return up to `count` indices below `length`, evenly spread."""
    return [length * step // count for step in range(count)] if length > count else list(range(length))


def listed(problem: Problem) -> dict[str, Any]:
    """Convert a problem to JSON."""
    return {"what": problem.what, "count": len(problem.found), "found": problem.found}


def as_json(inspection: Inspection) -> dict[str, Any]:
    """Convert the findings of one split to JSON."""
    return {
        "errors": [listed(problem) for problem in inspection.errors],
        "warnings": [listed(problem) for problem in inspection.warnings],
        "images": inspection.boxes_per_image.total(),
        "classes": inspection.classes,
        "box_sizes": inspection.box_sizes,
        "image_sizes": {"x".join(map(str, size or ("?",))): count for size, count in inspection.image_sizes.items()},
        "pixels": {kind: {"images": n, "values": values} for kind, (n, values) in inspection.pixels.items()},
        "boxes_per_image": dict(sorted(inspection.boxes_per_image.items())),
        "crowd": inspection.crowd,
        "masks": inspection.masks,
    }


if __name__ == "__main__":
    _clone.run(main)
