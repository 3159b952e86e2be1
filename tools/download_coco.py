"""Fetch COCO 2017, unpack it where the configs look for it, and check it."""

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import _clone

# isort: split
from data import download
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
    wanted = {"annotations"} & {*args.what} | ({*args.splits} if "images" in args.what else set())
    missing = {archive: archive.is_in(args.out) for name, archive in download.COCO.items() if name in wanted}
    if not all(missing.values()):
        show_plan(missing, args.out)
        if not (args.yes or agreed()):
            print("nothing was downloaded")
            return
        load([archive for archive, there in missing.items() if not there], args)
    places = {
        split: (args.out / f"{split}2017", args.out / f"annotations/instances_{split}2017.json")
        for split in SPLITS
        if split in args.splits
    }
    if len({*args.what}) == len(WHAT):
        check(places)
    show_next(places, args.out)


def show_plan(archives: Mapping[download.Archive, bool], out: Path) -> None:
    """Print what will be downloaded and how much room it takes; raise `ValueError` where there is too little."""
    rows, total, needed = [], 0, 0
    for archive, there in archives.items():
        rest = 0 if there else archive.bytes_missing(out)
        state = "is there" if there else "goes on" if 0 < rest < archive.size else ""
        rows.append((archive.zip_path(out).name, f"{rest / 1e9:.2f}", f"{archive.unpacked / 1e9:.2f}", state))
        total += rest
        needed += 0 if there else rest + archive.unpacked
    print(format_table(("archive", "GB to download", "GB unpacked", ""), rows))
    free = shutil.disk_usage(next(folder for folder in (out, *out.resolve().parents) if folder.is_dir())).free
    print(f"\n{total / 1e9:.2f} GB to download, which takes up to {needed / 1e9:.2f} GB in {out}; ", end="")
    print(f"{free / 1e9:.2f} GB are free there", flush=True)
    if free < needed:
        raise ValueError(f"{out}: {needed / 1e9:.2f} GB are needed on this disk, {free / 1e9:.2f} GB are free")


def agreed() -> bool:
    """Ask, where someone can answer."""
    return not sys.stdin.isatty() or input("start? [y/N] ").strip().lower() in ("y", "yes")


def load(missing: Sequence[download.Archive], args: argparse.Namespace) -> None:
    """Fetch and unpack one archive after the other; raise `ValueError` where there is no curl to fetch them."""
    urls = [archive.url(args.mirror) for archive in missing if not archive.zip_path(args.out).is_file()]
    if urls and not shutil.which("curl"):
        raise ValueError(
            f"curl is not installed; install it, or put these files into {args.out} and give the same command again: "
            f"{' '.join(urls)}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    for archive in missing:
        place = download.fetch(archive, args.out, args.mirror)
        log.info("%s: downloaded, its SHA-256 is right", place.name)
        download.unpack(archive, place, args.out, Progress().track)
        if not args.keep_archives:
            place.unlink()
        log.info("%s: unpacked", place.name)


def check(places: Mapping[str, tuple[Path, Path]]) -> None:
    """Compare the images with the annotations of each split; raise `ValueError` if some are missing."""
    for split, (images, file) in places.items():
        names = [entry["file_name"] for entry in json.loads(file.read_bytes())["images"]]
        there = {path.name for path in images.iterdir()}
        if lost := [name for name in names if name not in there]:
            raise ValueError(
                f"{len(lost):,} of the {len(names):,} pictures of {file} are not in {images}, the first: {lost[0]}; "
                "remove that folder and call this again"
            )
        print(f"{split}: all {len(names):,} pictures of {file} are in {images}")


def show_next(places: Mapping[str, tuple[Path, Path]], out: Path) -> None:
    """Print the command that comes next."""
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
