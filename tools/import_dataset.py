"""Convert a data set of another format to COCO JSON, with a config to train on it. The images stay where they are."""

import argparse
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import _clone

# isort: split
from _arguments import add_tiles, current_spellings, fraction, make_parser, refuse_unused
from _import_split import add_split_options, check_split_options, split_again

from data import DatasetError, Problem
from data.coco_file import one_line
from data.importers import (
    FORMATS,
    Findings,
    ImageIndex,
    LabelFolder,
    Labels,
    absolute,
    check_result_folder,
    coco_datasets,
    format_of,
    image_root,
    keep_tiles,
    list_files,
    new_tiles,
    open_source,
    read_labels,
    write_result,
)
from data.tile_cutting import CutCounts, cut_datasets
from engine.config import load_config
from engine.display import Progress, counted, format_table
from models.tiling import OVERLAP, tile_windows

EPILOG = f"""examples:
  python tools/import_dataset.py photos datasets/mine                  # the format is recognised
  python tools/import_dataset.py photos/data.yaml datasets/mine --format yolo --base r18_dcn.yaml
  python tools/import_dataset.py photos datasets/mine --split 0.8/0.2 --group "(.*)_[0-9]+"
  python tools/import_dataset.py labels datasets/mine --images photos --classes cat,dog
  python tools/import_dataset.py aerial datasets/tiles --tile 640 --overlap 0.2    # large images with small objects

Formats: {", ".join(f"{name} ({entry.title})" for name, entry in FORMATS.items())}.
OUT gets annotations/train.json, val.json and test.json, as far as SOURCE has these splits, and a config named after
OUT for tools/train.py. Errors in the labels stop the tool before it writes anything.
Exit codes: 0 done, 2 error in the arguments or the labels."""
# Fraction of an object that a tile must show, unless --min-visible is given.
MIN_VISIBLE = 0.3
# Places of each kind that are printed.
NAMED = 5


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder with the labels, or a label file")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; new, or an earlier result")
    parser.add_argument("--format", choices=FORMATS, help="format of the labels (default: recognised by the files)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of the images, if they are not in SOURCE")
    parser.add_argument(
        "--classes", metavar="A,B,...", help="class names of YOLO labels, in the order of their numbers"
    )
    parser.add_argument(
        "--base", default="custom.yaml", metavar="C", help="config that OUT's config is based on (default: %(default)s)"
    )
    add_tiles(parser, "cut the images into overlapping", str(OVERLAP))
    parser.add_argument(
        "--min-visible",
        type=fraction,
        metavar="X",
        default=MIN_VISIBLE,
        help="fraction of an object that a tile must show; training ignores parts below it (default: %(default)s)",
    )
    parser.add_argument(
        "--skip-invalid", action="store_true", help="leave out labels with errors, and count them, instead of stopping"
    )
    add_split_options(parser)
    args = parser.parse_args(current_spellings("import_dataset"))
    check_split_options(args)
    if args.tile is None:
        refuse_unused(args, "it needs --tile", "--overlap", "--min-visible")
    return args


def main() -> None:
    """Read the labels, print what they contain, and write the COCO files."""
    args = parse_arguments()
    check_result_folder(args.out)
    base = base_of(args.base)
    folder, images = open_folders(args)
    name = args.format or format_of(folder)
    if args.classes and name != "yolo":
        raise ValueError(f"--classes has no effect: labels of the format {name} have class names")
    progress = Progress()
    print(f"{args.source}: {FORMATS[name].title}")
    labels, found = read_labels(folder, name, images, lambda items: progress.track(items, "read labels"))
    root = image_root(labels) if labels.splits else images.root
    datasets = coco_datasets(labels, root, found)
    if args.skip_invalid:
        found.skip_errors()
    raise_errors(found)
    if not datasets:
        raise ValueError("\n".join([f"{args.source} has no labelled image that is usable", *summary(found)]))
    tables = []
    if args.split:
        datasets, text = split_again(datasets, root, args, progress)
        tables.append(text)
    tables.append(describe(datasets, unlabelled_names(labels, root)))
    tile = None
    if args.tile:
        tile = {"size": args.tile, "overlap": OVERLAP if args.overlap is None else args.overlap}
        datasets, root, counts = cut_tiles(args, tile, datasets, root, found, progress)
        tables.append(describe_tiles(counts))
    origin = f"{folder.only or folder.root} ({FORMATS[name].title})"
    config = write_result(args.out, root, datasets, origin, base, tile=tile)
    print("\n" + "\n\n".join(tables))
    if found.left_out or found.notes:
        print("\n" + "\n".join(summary(found)))
    print(f"\nimages: {root}\nannotations: {args.out / 'annotations'}")
    print(next_step(config, datasets))


def cut_tiles(
    args: argparse.Namespace,
    tile: dict[str, Any],
    datasets: dict[str, dict[str, Any]],
    root: Path,
    found: Findings,
    progress: Progress,
) -> tuple[dict[str, dict[str, Any]], Path, dict[str, CutCounts]]:
    """Cut all splits into tiles, and write the tiles; return the data sets, their folder, and the counts."""
    with new_tiles(args.out) as folder:
        tiles, counts = cut_datasets(
            datasets,
            root,
            folder,
            windows=partial(tile_windows, tile=tile["size"], overlap=tile["overlap"]),
            min_visible=args.min_visible,
            progress=lambda images: progress.track(images, "cut tiles"),
        )
        for found_in in counts.values():
            for problem in found_in.unreadable:
                found.error("images that cannot be cut into tiles", problem)
            for place in found_in.never:
                found.note("objects that training ignores, because no tile shows enough of them", place)
        if args.skip_invalid:
            found.skip_errors()
        raise_errors(found)
        return tiles, keep_tiles(args.out, tiles), counts


def describe_tiles(counts: dict[str, CutCounts]) -> str:
    """Return a table of the tiles with a row per split."""
    header = ("split", "tiles", "without objects", "objects in tiles", "of them cut", "ignored regions")
    return format_table(header, [(split, *each[:5]) for split, each in counts.items()])


def open_folders(args: argparse.Namespace) -> tuple[LabelFolder, ImageIndex]:
    """Return the files of the labels and the images."""
    classes = [name.strip() for name in args.classes.split(",")] if args.classes else None
    folder = open_source(args.source, exclude=args.out, images=args.images, classes=classes)
    if args.images is None:
        return folder, ImageIndex(folder.root, folder.files)
    if not args.images.is_dir():
        raise ValueError(f"--images must be an existing folder, got {args.images}")
    root = absolute(args.images)
    return folder, ImageIndex(root, list_files(root, absolute(args.out)))


def base_of(config: str) -> str:
    """Return the `base` of a new config: a bare name of `configs/`, or an absolute path."""
    load_config(config)
    return str(absolute(Path(config))) if Path(config).is_file() else config


def raise_errors(found: Findings) -> None:
    """Raise an error that lists every kind of error with its first places."""
    if not found.errors:
        return
    lines = []
    for kind, places in found.errors.items():
        more = [f"    and {len(places) - NAMED:,} more"] if len(places) > NAMED else []
        lines += [f"{kind}: {len(places):,}", *(f"    {one_line(place)}" for place in places[:NAMED]), *more]
    count = sum(map(len, found.errors.values()))
    hint = "nothing is written; fix them, or leave them out with --skip-invalid"
    raise DatasetError("\n".join([f"{counted(count, 'error')} in the labels: {hint}", *lines]))


def summary(found: Findings) -> list[str]:
    """Return what is left out, and how some labels are read: a line per kind, with its count and first places."""
    titles = {"left out": found.left_out, "note": found.notes}
    return [f"{title}: {Problem(kind, places)}" for title, kinds in titles.items() for kind, places in kinds.items()]


def unlabelled_names(labels: Labels, root: Path) -> set[str]:
    """Return the `file_name` of each image that has no label file."""
    images = (image for images in labels.splits.values() for image in images if not image.has_labels)
    return {image.path.relative_to(root).as_posix() for image in images}


def describe(datasets: dict[str, dict[str, Any]], unlabelled: set[str]) -> str:
    """Return a table with a row per split, from the names of the images without labels."""
    header = ("split", "images", "without labels", "without objects", "boxes", "masks", "crowd regions", "classes")
    rows = []
    for split, raw in datasets.items():
        without = sum(image["file_name"] in unlabelled for image in raw["images"])
        annotations = raw["annotations"]
        with_objects = len({annotation["image_id"] for annotation in annotations})
        crowd = count_of(annotations, "iscrowd")
        rows.append(
            (
                split,
                len(raw["images"]),
                without,
                len(raw["images"]) - with_objects - without,
                len(annotations) - crowd,
                count_of(annotations, "segmentation"),
                crowd,
                len({annotation["category_id"] for annotation in annotations}),
            )
        )
    return format_table(header, rows)


def count_of(annotations: Iterable[dict[str, Any]], key: str) -> int:
    """Count the annotations that have a value."""
    return sum(bool(annotation.get(key)) for annotation in annotations)


def next_step(config: Path | None, datasets: dict[str, Any]) -> str:
    """Return the command to train, or what is missing for it."""
    if config is None:
        missing = "train" if "train" not in datasets else "val"
        return f"no config is written: training needs a train and a val split, and SOURCE has no {missing} split"
    note = "" if "val" in datasets else "\nnote: SOURCE has no val split; the config evaluates the test split"
    return f"config: {config}{note}\n\nnext: python tools/train.py --config {config}"


if __name__ == "__main__":
    _clone.run(main)
