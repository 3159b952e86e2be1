"""Download COCO 2017, unpack it into the folder that the configs use, and check it."""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import _clone

# isort: split
from _arguments import add_out, current_spellings, make_parser

from data import download
from data.json_file import read_json
from data.paths import resolved
from engine.display import Progress, format_table, log, start_logging

EPILOG = """examples:
  python tools/download_coco.py                        # 20 GB into datasets/coco
  python tools/download_coco.py --splits val           # 1 GB, enough to evaluate a checkpoint
  python tools/download_coco.py --out /data/coco --yes
Run the same command again to resume an interrupted download. Complete files are kept."""
SPLITS = ("train", "val")
PARTS = ("images", "annotations")
OUT = Path("datasets/coco")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, EPILOG)
    add_out(parser, OUT)
    parser.add_argument(
        "--splits", nargs="+", choices=SPLITS, default=SPLITS, metavar="SPLIT", help="train, val (default: both)"
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help="images, annotations (default: both)"
    )
    parser.add_argument("--keep-archives", action="store_true", help="keep the zip files after unpacking")
    parser.add_argument(
        "--mirror",
        metavar="URL",
        default=download.COCO_SERVER,
        help="server with the same files (default: %(default)s)",
    )
    parser.add_argument("--yes", action="store_true", help="start the download without asking")
    args = parser.parse_args(current_spellings("download_coco"))
    if not args.mirror.startswith(("http://", "https://")):
        parser.error(f"--mirror must start with http:// or https://, got {args.mirror!r}")
    return args


def main() -> None:
    """Print the plan, download the missing files, and check everything."""
    args = parse_arguments()
    start_logging()
    wanted = {"annotations"} & {*args.parts} | ({*args.splits} if "images" in args.parts else set())
    missing = {archive: archive.is_in(args.out) for name, archive in download.COCO.items() if name in wanted}
    if not all(missing.values()):
        show_plan(missing, args.out)
        if not (args.yes or agreed()):
            print("nothing was downloaded")
            return
        load([archive for archive, there in missing.items() if not there], args)
    files = {
        split: (args.out / f"{split}2017", args.out / f"annotations/instances_{split}2017.json")
        for split in SPLITS
        if split in args.splits
    }
    if len({*args.parts}) == len(PARTS):
        check(files)
    show_next(files, args.out)


def show_plan(archives: Mapping[download.Archive, bool], out: Path) -> None:
    """Print the files to download and the disk space they need; raise `ValueError` if the space is too small."""
    rows, total, needed = [], 0, 0
    for archive, there in archives.items():
        rest = 0 if there else archive.bytes_missing(out)
        state = "complete" if there else "resumes" if 0 < rest < archive.size else ""
        rows.append((archive.zip_path(out).name, f"{rest / 1e9:.2f}", f"{archive.unpacked / 1e9:.2f}", state))
        total += rest
        needed += 0 if there else rest + archive.unpacked
    print(format_table(("archive", "GB to download", "GB unpacked", ""), rows))
    free = shutil.disk_usage(next(folder for folder in (out, *resolved(out).parents) if folder.is_dir())).free
    print(f"\n{total / 1e9:.2f} GB to download; needs up to {needed / 1e9:.2f} GB in {out}, ", end="")
    print(f"{free / 1e9:.2f} GB are free", flush=True)
    if free < needed:
        raise ValueError(f"{out}: {needed / 1e9:.2f} GB are needed on this disk, {free / 1e9:.2f} GB are free")


def agreed() -> bool:
    """Ask the user, if the input is a terminal."""
    return sys.stdin is None or not sys.stdin.isatty() or input("start? [y/N] ").strip().lower() in ("y", "yes")


def load(missing: Sequence[download.Archive], args: argparse.Namespace) -> None:
    """Download and unpack the archives; raise `ValueError` if curl is not installed."""
    urls = [archive.url(args.mirror) for archive in missing if not archive.zip_path(args.out).is_file()]
    if urls and not shutil.which("curl"):
        raise ValueError(
            f"curl is not installed; install it, or put these files into {args.out} and run the same command again: "
            f"{' '.join(urls)}"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    for archive in missing:
        file = download.fetch(archive, args.out, args.mirror)
        log.info("%s: downloaded, SHA-256 is correct", file.name)
        download.unpack(archive, file, args.out, Progress().track)
        if not args.keep_archives:
            file.unlink()
        log.info("%s: unpacked", file.name)


def check(files: Mapping[str, tuple[Path, Path]]) -> None:
    """Check that all images of the annotations exist; raise `ValueError` if some are missing."""
    for split, (images, file) in files.items():
        raw = read_json(file, "annotation file")
        try:
            names = [Path(entry["file_name"]).name for entry in raw["images"]]
        except (LookupError, TypeError):
            raise ValueError(
                f"{file} is not a COCO annotation file; remove it and run the same command again"
            ) from None
        there = {path.name for path in images.iterdir()}
        if lost := [name for name in names if name not in there]:
            raise ValueError(
                f"{len(lost):,} of the {len(names):,} images of {file} are missing in {images}, first: {lost[0]}; "
                "remove that folder and run the same command again"
            )
        print(f"{split}: all {len(names):,} images of {file} are in {images}")


def show_next(files: Mapping[str, tuple[Path, Path]], out: Path) -> None:
    """Print the next commands."""
    if len(files) < len(SPLITS):
        ((images, annotations),) = files.values()
        print(f"next: python tools/check_dataset.py --images {images} --annotations {annotations}")
        return
    elsewhere = "".join(
        f" data.{split}.images={images} data.{split}.annotations={annotations}"
        for split, (images, annotations) in files.items()
        if out != OUT
    )
    print(f"next: python tools/check_dataset.py --config r50_dcn.yaml{elsewhere}")
    print(f"then: python tools/train.py --config r50_dcn.yaml{elsewhere}")


if __name__ == "__main__":
    _clone.run(main)
