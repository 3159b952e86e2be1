"""`--split` of tools/import_dataset.py: other splits than those of the source."""

import argparse
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _arguments import not_negative, refuse_unused

from data.near_duplicates import HASH_BITS, near_duplicates
from data.splitting import group_names, links_of, parse_fractions, split_dataset
from engine.display import Progress, counted, format_table

Datasets = dict[str, dict[str, Any]]
OFF = "off"
_MAX_ROWS = 20


def add_split_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a split."""
    parser.add_argument(
        "--split", type=_fractions, metavar="F/F", help="split the images again: train/val (0.8/0.2) or train/val/test"
    )
    parser.add_argument(
        "--group",
        metavar="REGEX",
        help="with --split: keep images together that have the same folder (--group folder), or the same match of a "
        "regular expression in their name (its first group, if it has one)",
    )
    parser.add_argument(
        "--split-seed", type=not_negative, default=0, metavar="N", help="with --split: seed (default: 0)"
    )
    parser.add_argument(
        "--near-duplicates",
        type=_distance,
        default=4,
        metavar="N",
        help=f"with --split: keep images together whose perceptual hashes differ in at most N of {HASH_BITS} bits; "
        f"{OFF}: do not compare images (default: %(default)s)",
    )


def check_split_options(args: argparse.Namespace) -> None:
    """Raise `ValueError` for options without effect, and for an invalid group."""
    if args.split is None:
        refuse_unused(args, "it needs --split", "--group", "--split-seed", "--near-duplicates")
    elif args.group is not None:
        group_names([], args.group)


def split_again(datasets: Datasets, root: Path, args: argparse.Namespace, progress: Progress) -> tuple[Datasets, str]:
    """Pool the splits of the source, and split them again by the options; return the splits and their description."""
    raw = {
        **next(iter(datasets.values())),
        "images": sorted((i for each in datasets.values() for i in each["images"]), key=lambda i: i["file_name"]),
        "annotations": [annotation for each in datasets.values() for annotation in each["annotations"]],
    }
    names = [image["file_name"] for image in raw["images"]]
    links, lines = links_of(names), []
    if args.group is not None:
        links += links_of(group_names(names, args.group))
    if args.near_duplicates is not None:
        pairs, unreadable = near_duplicates(
            [root / name for name in names],
            args.near_duplicates,
            lambda items: progress.track(items, "compare images"),
        )
        links += pairs
        bits = f"{args.near_duplicates} of {HASH_BITS} bits"
        lines.append(f"near-duplicates: {counted(len(pairs), 'pair')} of images differ in at most {bits}")
        lines += [f"    {names[i]} = {names[j]}" for i, j in pairs[:3]] + (["    ..."] if len(pairs) > 3 else [])
        if unreadable:
            lines.append(f"not readable, and therefore not compared: {counted(len(unreadable), 'image')}")
    result, groups = split_dataset(raw, args.split, links, args.split_seed)
    how = "/".join(f"{fraction:g}" for fraction in args.split.values())
    pooled = f", of the splits {' and '.join(datasets)} of the source" if len(datasets) > 1 else ""
    lines.insert(
        0, f"split {how} (seed {args.split_seed}): {counted(len(names), 'image')} in {counted(groups, 'group')}{pooled}"
    )
    return result, "\n".join([*lines, "", describe_classes(result)])


def describe_classes(datasets: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table of the objects of each class in each split, the rarest first, and the classes that one lacks."""
    counts = {
        split: Counter(annotation["category_id"] for annotation in raw["annotations"])
        for split, raw in datasets.items()
    }
    classes = {category["id"]: category["name"] for raw in datasets.values() for category in raw["categories"]}
    order = sorted(classes, key=lambda key: (sum(own[key] for own in counts.values()), classes[key]))
    rows = [(classes[key], *(own[key] for own in counts.values())) for key in order]
    lines = [format_table(("objects of class", *datasets), rows[:_MAX_ROWS])]
    if len(rows) > _MAX_ROWS:
        lines.append(f"  and {counted(len(rows) - _MAX_ROWS, 'class')} with more objects")
    for split, own in counts.items():
        missing = [classes[key] for key in order if not own[key]]
        if missing:
            named = ", ".join(missing[:_MAX_ROWS]) + (", ..." if len(missing) > _MAX_ROWS else "")
            lines.append(f"classes without objects in {split}: {len(missing)}: {named}")
    return "\n".join(lines)


def _fractions(text: str) -> dict[str, float]:
    try:
        return parse_fractions(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _distance(text: str) -> int | None:
    if text == OFF:
        return None
    if not text.isdecimal() or int(text) >= HASH_BITS:
        raise argparse.ArgumentTypeError(f"must be {OFF} or an integer from 0 to {HASH_BITS - 1}, got {text!r}")
    return int(text)
