"""Fetch COCO 2017, unpack it where the configs look for it, and check it."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import _clone

# isort: split
from data import download
from data.download import Archive
from engine.display import Progress, format_table, log, start_logging

EPILOG = """examples:
  python tools/download_coco.py                        # 20 GB into datasets/coco
  python tools/download_coco.py --splits val           # 1 GB: enough to judge a checkpoint
  python tools/download_coco.py --out /data/coco --yes
A download that was cut off goes on where it was when the same command is given again, and what is there is kept."""
SPLITS = ("train", "val")
WHAT = ("images", "annotations")
OUT = Path("datasets/coco")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder to fill (default: %(default)s)")
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=SPLITS, metavar="SPLIT", help="of train, val (default: both)"
    )
    parser.add_argument(
        "--what", nargs="+", choices=WHAT, default=WHAT, metavar="WHAT", help="of images, annotations (default: both)"
    )
    parser.add_argument("--keep-archives", action="store_true", help="keep the zip files once they are unpacked")
    parser.add_argument(
        "--mirror",
        metavar="URL",
        default=download.COCO_SERVER,
        help="server to ask instead, whose files must be the same (default: %(default)s)",
    )
    parser.add_argument("--yes", action="store_true", help="do not ask before the download starts")
    args = parser.parse_args()
    if not args.mirror.startswith(("http://", "https://")):
        parser.error(f"--mirror must start with http:// or https://, got {args.mirror!r}")
    return args


def main() -> None:
    """Say what it costs, fetch what is missing, check the whole."""
    args = parse_arguments()
    start_logging()
    splits = [split for split in SPLITS if split in args.splits]
    wanted = [download.coco_annotations(splits)] if "annotations" in args.what else []
    if "images" in args.what:
        wanted += [download.COCO_IMAGES[split] for split in reversed(splits)]  # the small first: they show mistakes
    missing = [archive for archive in wanted if not download.is_there(archive, args.out)]
    if missing:
        show_plan(wanted, missing, args.out, args.keep_archives)
        if not (args.yes or agreed()):
            print("nothing was downloaded")
            return
        try:
            load(missing, args)
        except KeyboardInterrupt:
            print("\nstopped by the user; the same command goes on where it was", file=sys.stderr)
            raise SystemExit(1) from None
    check(args.out, splits, args.what)
    show_next(args.out, splits)


def show_plan(wanted: Sequence[Archive], missing: Sequence[Archive], out: Path, keep: bool) -> None:
    """Print what will be downloaded and how much room it takes; raises `ValueError` where there is too little."""
    rows = []
    for archive in wanted:
        rest = download.bytes_missing(archive, out) if archive in missing else 0
        state = "is there" if archive not in missing else "goes on" if 0 < rest < archive.size else ""
        rows.append((archive.name, f"{rest / 1e9:.2f}", f"{archive.unpacked / 1e9:.2f}", state))
    print(format_table(("archive", "GB to download", "GB unpacked", ""), rows))
    above = out.resolve()
    while not above.is_dir():
        above = above.parent
    free, needed = shutil.disk_usage(above).free, download.peak_bytes(missing, out, keep_archives=keep)
    total = sum(download.bytes_missing(archive, out) for archive in missing)
    print(f"\n{total / 1e9:.2f} GB to download, which takes up to {needed / 1e9:.2f} GB in {out}; ", end="")
    print(f"{free / 1e9:.2f} GB are free there", flush=True)
    if free < needed:
        raise ValueError(f"{out}: {needed / 1e9:.2f} GB are needed on this disk, {free / 1e9:.2f} GB are free")


def agreed() -> bool:
    """Ask, where someone can answer."""
    return not sys.stdin.isatty() or input("start? [y/N] ").strip().lower() in ("y", "yes")


def load(missing: Sequence[Archive], args: argparse.Namespace) -> None:
    """Fetch and unpack one archive after the other."""
    progress = Progress()
    args.out.mkdir(parents=True, exist_ok=True)
    for archive in missing:
        place = download.fetch(archive, args.out, args.mirror, progress.count_bytes)
        log.info("%s: downloaded, its SHA-256 is right", archive.name)
        download.unpack(archive, place, args.out, progress.track)
        if not args.keep_archives:
            place.unlink()
        log.info("%s: unpacked", archive.name)


def check(out: Path, splits: Sequence[str], what: Sequence[str]) -> None:
    """Hold the pictures against the annotations, where both are wanted; raises `ValueError` if some are missing."""
    for split in splits if len({*what}) == len(WHAT) else ():
        images, file = out / f"{split}2017", out / f"annotations/instances_{split}2017.json"
        count, lost = download.missing_images(file, images)
        if lost:
            raise ValueError(
                f"{len(lost):,} of the {count:,} pictures of {file} are not in {images}, the first: {lost[0]}; remove "
                "that folder and call this again"
            )
        print(f"{split}: all {count:,} pictures of {file} are in {images}")


def show_next(out: Path, splits: Sequence[str]) -> None:
    """Print the command that comes next."""
    places = {split: (out / f"{split}2017", out / f"annotations/instances_{split}2017.json") for split in splits}
    if len(places) < len(SPLITS):
        ((images, annotations),) = places.values()
        print(f"next: python tools/check_dataset.py --images {images} --annotations {annotations}")
        return
    elsewhere = "".join(
        f" data.{split}.images={images} data.{split}.annotations={annotations}"
        for split, (images, annotations) in places.items()
        if out != OUT
    )
    print(f"next: python tools/check_dataset.py --config r50_dcn.yaml{elsewhere}")
    print(f"then: python tools/train.py --config r50_dcn.yaml{elsewhere}")


if __name__ == "__main__":
    _clone.run(main)
