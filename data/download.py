"""Download of COCO's zip files by curl, with checksums, unpacking and resumed transfers."""

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

from .files import without_link

COCO_SERVER = "http://images.cocodataset.org"
ATTEMPTS = 8  # consecutive connections that may fail without any data
_CURL = ("curl", "--fail", "--location", "--connect-timeout", "60", "--speed-limit", "1", "--speed-time", "60")
_NO_RANGES = 33  # curl's exit code if the server does not support resuming

log = logging.getLogger("resnet_dcn")


class Archive(NamedTuple):
    """A zip file on a server, and the files to unpack from it.

    Attributes:
        path: Path on the server.
        size: Size in bytes.
        sha256: Hex SHA-256.
        files: Number of files whose names match `pattern`.
        unpacked: Approximate size of these files in bytes.
        pattern: Regular expression of the names to unpack.
        targets: Files, or one folder, that these files form.
    """

    path: str
    size: int
    sha256: str
    files: int
    unpacked: int
    pattern: str
    targets: tuple[str, ...]

    def url(self, server: str) -> str:
        """Return the URL of the zip file."""
        return f"{server.rstrip('/')}/{self.path}"

    def zip_path(self, root: Path) -> Path:
        """Return the local path of the zip file."""
        return root / self.path.rpartition("/")[2]

    def partial_path(self, root: Path) -> Path:
        """Return the local path of an incomplete download."""
        return self.zip_path(root).with_suffix(".zip.part")

    def bytes_missing(self, root: Path) -> int:
        """Return the number of bytes still to download."""
        return 0 if self.zip_path(root).is_file() else max(0, self.size - _size(self.partial_path(root)))

    def is_in(self, root: Path) -> bool:
        """Return whether all targets exist in `root`.

        Raises:
            ValueError: If a target folder has another number of files.
        """
        paths = [root / target for target in self.targets]
        for folder in filter(Path.is_dir, paths):
            if (found := sum(1 for _ in folder.iterdir())) != self.files:
                raise ValueError(
                    f"{folder} must contain the {self.files:,} files of {self.zip_path(root).name}, got {found:,}; "
                    "move the folder, or set another one with --out"
                )
        return all(path.exists() for path in paths)


# COCO does not publish sizes or checksums; several public projects list these values. Small files come first, so that
# errors appear early.
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
    """Download an archive into `root`, or resume its download; return its path after comparing the SHA-256.

    Raises:
        ValueError: If the server cannot be reached, or the file is different.
        OSError: If the disk is full or read-only; the partial download is kept.
    """
    path, part, url = archive.zip_path(root), archive.partial_path(root), archive.url(server)
    if not path.is_file():
        failures = 0
        while (before := _size(part)) < archive.size and (code := _receive(part, url)):
            failures = 1 if _size(part) > before else failures + 1
            if failures == ATTEMPTS:
                raise ValueError(
                    f"{url}: the download failed after {failures} attempts with curl exit code {code}. "
                    f"{_size(part):,} of {archive.size:,} bytes are kept; run the same command again to resume"
                )
            wait = min(2 ** (failures - 1), 60)
            log.warning("%s: curl failed with exit code %d; next attempt in %d s", path.name, code, wait)
            time.sleep(wait)
        part.replace(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != archive.sha256:
        found = f"{_size(path):,} bytes with SHA-256 {digest}"
        path.unlink()
        raise ValueError(
            f"{path} was damaged or a different file and has been removed: it must have {archive.size:,} bytes with "
            f"SHA-256 {archive.sha256}, got {found}; run the same command again to download it"
        )
    return path


def _receive(part: Path, url: str) -> int:
    """Append the data of one connection to `part`; return curl's exit code.

    The data goes through a pipe, so that curl ends with this process, even if this process is killed.
    """
    shown = ("--progress-bar",) if sys.stderr.isatty() else ("--silent", "--show-error")
    command = [*_CURL, *shown, "--continue-at", str(_size(part)), url]
    try:
        with open(part, "ab", opener=without_link) as file, subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
            shutil.copyfileobj(curl.stdout, file)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; the partial download is kept", str(part)) from None
    if curl.returncode == _NO_RANGES:
        log.warning("%s: the server does not support resuming; the download starts again", part.name)
        part.unlink()
    return curl.returncode


def unpack(archive: Archive, path: Path, root: Path, track: Callable[[Iterable, str], Iterable]) -> None:
    """Unpack the targets of an archive into `root`; each target appears there atomically.

    The files are first written to a new folder in `root`, for any names in the archive; links are not followed.

    Args:
        archive: The archive.
        path: Its zip file.
        root: Folder of the targets.
        track: Function of an iterable and a label that shows progress.

    Raises:
        ValueError: If a file is damaged or missing.
        OSError: If the disk is full or read-only.
    """
    fresh = root / f".{path.name}.unpacking"
    shutil.rmtree(fresh, ignore_errors=True)  # left by a run that was killed
    try:
        with zipfile.ZipFile(path) as file:
            names = sorted(name for name in file.namelist() if re.fullmatch(archive.pattern, name))
            if len(names) != archive.files:
                raise ValueError(
                    f"{path} must contain {archive.files:,} files of the data set, got {len(names):,}; nothing was "
                    "unpacked"
                )
            for name in track(names, f"unpack {path.name}"):
                file.extract(name, fresh)  # compares the CRC
        for target in archive.targets:
            (root / target).parent.mkdir(exist_ok=True)
            (fresh / target).replace(root / target)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path} cannot be unpacked: {error}; remove it and run the same command again") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
