"""COCO's zip files: fetched by curl, checked and unpacked; a download that was cut off goes on where it was."""

import hashlib
import logging
import re
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

COCO_SERVER = "http://images.cocodataset.org"
ATTEMPTS = 8  # connections in a row that may bring nothing
_CURL = ("curl", "--fail", "--location", "--connect-timeout", "60", "--speed-limit", "1", "--speed-time", "60")
_NO_RANGES = 33  # curl's exit code where a server cannot send from the middle of a file

log = logging.getLogger("resnet_dcn")


class Archive(NamedTuple):
    """A zip file on a server: its path there, bytes and SHA-256, and what of it is wanted.

    `files` whose names match `pattern` take about `unpacked` bytes and make up `targets`: files, or one folder.
    """

    path: str
    size: int
    sha256: str
    files: int
    unpacked: int
    pattern: str
    targets: tuple[str, ...]

    def url(self, server: str) -> str:
        """Return the address of the zip file."""
        return f"{server.rstrip('/')}/{self.path}"

    def zip_path(self, root: Path) -> Path:
        """Return the place of the zip file."""
        return root / self.path.rpartition("/")[2]

    def partial_path(self, root: Path) -> Path:
        """Return the place of what has come of the zip file."""
        return self.zip_path(root).with_suffix(".zip.part")

    def bytes_missing(self, root: Path) -> int:
        """Count the bytes that are still to be downloaded."""
        return 0 if self.zip_path(root).is_file() else max(0, self.size - _size(self.partial_path(root)))

    def is_in(self, root: Path) -> bool:
        """Return whether all that is wanted lies in `root`; raise `ValueError` if a folder holds something else."""
        places = [root / target for target in self.targets]
        for folder in filter(Path.is_dir, places):
            if (found := sum(1 for _ in folder.iterdir())) != self.files:
                raise ValueError(
                    f"{folder} holds {found:,} files, but {self.zip_path(root).name} has {self.files:,}; move it away, "
                    "or choose another folder by --out"
                )
        return all(place.exists() for place in places)


# Sizes and digests are those that several public projects give for these files; COCO itself publishes none.
# The small ones come first: they show mistakes.
COCO = {
    "annotations": Archive(
        path="annotations/annotations_trainval2017.zip",
        size=252_907_541,
        sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        files=2,
        unpacked=490_000_000,
        pattern=r"annotations/instances_(train|val)2017\.json",
        targets=("annotations/instances_train2017.json", "annotations/instances_val2017.json"),
    ),
    "val": Archive(
        path="zips/val2017.zip",
        size=815_585_330,
        sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        files=5_000,
        unpacked=815_000_000,
        pattern=r"val2017/\d+\.jpg",
        targets=("val2017",),
    ),
    "train": Archive(
        path="zips/train2017.zip",
        size=19_336_861_798,
        sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        files=118_287,
        unpacked=19_300_000_000,
        pattern=r"train2017/\d+\.jpg",
        targets=("train2017",),
    ),
}


def fetch(archive: Archive, root: Path, server: str) -> Path:
    """Download an archive into `root`, or what is missing of it; return its place once its SHA-256 is right.

    Raises:
        ValueError: if the server cannot be reached, or has another file.
        OSError: if the disk is full or cannot be written; what came so far is kept.
    """
    place, part, url = archive.zip_path(root), archive.partial_path(root), archive.url(server)
    if not place.is_file():
        failures = 0
        while (before := _size(part)) < archive.size and (code := _receive(part, url)):
            failures = 1 if _size(part) > before else failures + 1
            if failures == ATTEMPTS:
                raise ValueError(
                    f"{url}: curl ended with {code}; gave up after {failures} attempts. {_size(part):,} of "
                    f"{archive.size:,} bytes are kept: the same command goes on from there"
                )
            wait = min(2 ** (failures - 1), 60)
            log.warning("%s: curl ended with %d; trying again in %d s", place.name, code, wait)
            time.sleep(wait)
        part.replace(place)
    with place.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.sha256:
        found = f"{_size(place):,} bytes with SHA-256 {digest}"
        place.unlink()
        raise ValueError(
            f"{place} is damaged, or another file, and was removed: it must have {archive.size:,} bytes with SHA-256 "
            f"{archive.sha256}, got {found}; the same command fetches it again"
        )
    return place


def _receive(part: Path, url: str) -> int:
    """Append to `part` what one connection brings; return curl's exit code.

    The bytes go through a pipe, so that curl ends with this process, even if that is killed.
    """
    shown = ("--progress-bar",) if sys.stderr.isatty() else ("--silent", "--show-error")
    command = [*_CURL, *shown, "--continue-at", str(_size(part)), url]
    try:
        with part.open("ab") as file, subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
            shutil.copyfileobj(curl.stdout, file)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; what came so far is kept", str(part)) from None
    if curl.returncode == _NO_RANGES:
        log.warning("%s: the server cannot go on in the middle; starting from the beginning", part.name)
        part.unlink()
    return curl.returncode


def unpack(archive: Archive, place: Path, root: Path, track: Callable[[Iterable, str], Iterable]) -> None:
    """Unpack what is wanted of an archive into `root`; it appears there in one piece, or not at all.

    Nothing is written outside a new folder in `root`, whatever the names in the archive; links are not followed.

    Raises:
        ValueError: if a file is damaged or missing.
        OSError: if the disk is full or cannot be written.
    """
    fresh = root / f".{place.name}.unpacking"
    shutil.rmtree(fresh, ignore_errors=True)  # of a run that was killed
    try:
        with zipfile.ZipFile(place) as file:
            names = sorted(name for name in file.namelist() if re.fullmatch(archive.pattern, name))
            if len(names) != archive.files:
                found = f"{len(names):,} of the {archive.files:,} files"
                raise ValueError(f"{place} holds {found} that are expected; nothing was unpacked")
            for name in track(names, f"unpack {place.name}"):
                file.extract(name, fresh)  # which checks its CRC
        for target in archive.targets:
            (root / target).parent.mkdir(exist_ok=True)
            (fresh / target).replace(root / target)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{place} cannot be unpacked: {error}; remove it, to fetch it again") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
