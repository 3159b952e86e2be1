"""COCO's zip files: fetched over HTTP, checked, and unpacked; what was cut off goes on where it was."""

import hashlib
import http.client
import json
import logging
import shutil
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath
from typing import NamedTuple

COCO_SERVER = "http://images.cocodataset.org"
ATTEMPTS = 8  # connections in a row that may bring nothing
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
_LOST = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
_PIECE = 1 << 18

# Opens a bar of bytes, (label, whole, already there) -> what takes the number of each further piece.
Bar = Callable[[str, int, int], AbstractContextManager[Callable[[int], object]]]

log = logging.getLogger("resnet_dcn")


class Archive(NamedTuple):
    """A zip file on a server, and what of it belongs where.

    Attributes:
        path: below the server's address.
        size: of the zip file in bytes. sha256: its hex digest.
        files: how many are taken from it. unpacked: bytes of these, about.
        members: the files to take, named as in the zip file; without any, those of the folder named as the zip file.
    """

    path: str
    size: int
    sha256: str
    files: int
    unpacked: int
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the zip file."""
        return PurePosixPath(self.path).name

    @property
    def folder(self) -> str:
        """The folder in the zip file that holds all its images."""
        return PurePosixPath(self.path).stem


# Sizes and digests are those that several public projects give for these files; COCO itself publishes none.
COCO_IMAGES = {
    "train": Archive(
        path="zips/train2017.zip",
        size=19_336_861_798,
        sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        files=118_287,
        unpacked=19_300_000_000,
    ),
    "val": Archive(
        path="zips/val2017.zip",
        size=815_585_330,
        sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        files=5_000,
        unpacked=815_000_000,
    ),
}
_INSTANCES = {"train": 470_000_000, "val": 20_000_000}


def coco_annotations(splits: Sequence[str]) -> Archive:
    """The archive of COCO's annotations, of which the boxes and masks of some splits are wanted."""
    return Archive(
        path="annotations/annotations_trainval2017.zip",
        size=252_907_541,
        sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        files=len(splits),
        unpacked=sum(_INSTANCES[split] for split in splits),
        members=tuple(f"annotations/instances_{split}2017.json" for split in splits),
    )


def is_there(archive: Archive, root: Path) -> bool:
    """Return whether what is wanted of an archive already lies in `root`.

    Raises:
        ValueError: if there is a folder in its place that holds something else.
    """
    if archive.members:
        return all((root / member).is_file() for member in archive.members)
    folder = root / archive.folder
    found = sum(1 for _ in folder.iterdir()) if folder.exists() else 0
    if found not in (0, archive.files):
        raise ValueError(
            f"{folder} holds {found:,} files where {archive.name} has {archive.files:,}; move it away, or choose "
            "another folder by --out"
        )
    return bool(found)


def bytes_missing(archive: Archive, root: Path) -> int:
    """Count the bytes of an archive that are still to be downloaded."""
    return 0 if (root / archive.name).is_file() else max(0, archive.size - _size(_part(archive, root)))


def peak_bytes(archives: Iterable[Archive], root: Path, *, keep_archives: bool) -> int:
    """Count the most bytes that are written at a time, beside what is there, when archives are fetched in turn."""
    written = peak = 0
    for archive in archives:
        written += bytes_missing(archive, root)
        peak = max(peak, written + archive.unpacked)
        written += archive.unpacked - (0 if keep_archives else archive.size)
    return peak


def fetch(archive: Archive, root: Path, server: str, bar: Bar, sleep: Callable[[float], None] = time.sleep) -> Path:
    """Download an archive into `root`, or what is missing of it; return its place once its SHA-256 is right.

    Raises:
        ValueError: if the server has no such file, or another one, or cannot be reached.
        OSError: if the disk is full or cannot be written; what came so far is kept.
    """
    place, part, url = root / archive.name, _part(archive, root), f"{server.rstrip('/')}/{archive.path}"
    if not place.is_file():
        failures = 0
        with bar(archive.name, archive.size, _size(part)) as advance:
            while (before := _size(part)) < archive.size:
                problem = _receive(archive, part, url, advance)
                if _size(part) >= archive.size:
                    break
                failures = 1 if _size(part) > before else failures + 1
                if failures == ATTEMPTS:
                    raise ValueError(
                        f"{url}: {problem}; gave up after {failures} attempts. {_size(part):,} of {archive.size:,} "
                        "bytes are kept: the same command goes on from there"
                    )
                wait = min(2 ** (failures - 1), 60)
                log.warning("%s: %s; trying again in %d s", archive.name, problem, wait)
                sleep(wait)
        part.replace(place)
    digest = hashlib.sha256()
    with place.open("rb") as file, bar(f"check {archive.name}", archive.size, 0) as advance:
        while piece := file.read(_PIECE):
            digest.update(piece)
            advance(len(piece))
    if digest.hexdigest() != archive.sha256:
        place.unlink()
        raise ValueError(
            f"{place} is damaged and was removed: its SHA-256 is {digest.hexdigest()}, not {archive.sha256}; the same "
            "command fetches it again"
        )
    return place


def _receive(archive: Archive, part: Path, url: str, advance: Callable[[int], object]) -> str:
    """Append to `part` what one connection brings; return why that is not all."""
    done = _size(part)
    headers = {"User-Agent": "resnet-dcn"} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60) as response:
            if done and response.status != http.client.PARTIAL_CONTENT:
                log.warning("%s: the server cannot go on in the middle; starting from the beginning", archive.name)
                advance(-done)
                done = 0
            whole = done + int(response.headers.get("Content-Length", archive.size - done))
            if whole != archive.size:
                raise ValueError(f"{url} has {whole:,} bytes, not {archive.size:,}: it is another file")
            with part.open("ab" if done else "wb") as file:
                while piece := response.read(_PIECE):
                    file.write(piece)
                    advance(len(piece))
    except urllib.error.HTTPError as error:
        if error.code not in _TRANSIENT:
            raise ValueError(f"{url}: the server says {error.code} {error.reason}") from None
        return f"the server says {error.code} {error.reason}"
    except _LOST as error:
        return f"no connection ({getattr(error, 'reason', error)})"
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; what came so far is kept", str(part)) from None
    return f"the connection was cut at {_size(part):,} of {archive.size:,} bytes"


def unpack(archive: Archive, place: Path, root: Path, track: Callable[[Iterable, str], Iterable]) -> None:
    """Unpack what is wanted of an archive into `root`; it appears there in one piece, or not at all.

    Nothing is written outside a new folder in `root`, whatever the names in the archive; links are not followed.

    Raises:
        ValueError: if a file is damaged or missing.
        OSError: if the disk is full or cannot be written.
    """
    fresh = root / f".{archive.name}.unpacking"
    shutil.rmtree(fresh, ignore_errors=True)  # of a run that was killed
    try:
        with zipfile.ZipFile(place) as file:
            names = {name for name in file.namelist() if _is_wanted(archive, name)}
            if len(names) != archive.files:
                found = f"{len(names):,} of the {archive.files:,} files"
                raise ValueError(f"{place} holds {found} that are expected; nothing was unpacked")
            for name in track(sorted(names), f"unpack {archive.name}"):
                file.extract(name, fresh)  # which checks its CRC
        for part in archive.members or (archive.folder,):
            (root / part).parent.mkdir(exist_ok=True)
            (fresh / part).replace(root / part)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{place} cannot be unpacked: {error}; remove it, to fetch it again") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def missing_images(annotations: Path, images: Path) -> tuple[int, list[str]]:
    """Count the images that a COCO file lists, and name those that are not in a folder."""
    names = [entry["file_name"] for entry in json.loads(annotations.read_bytes())["images"]]
    there = {path.name for path in images.iterdir()}
    return len(names), [name for name in names if name not in there]


def _is_wanted(archive: Archive, name: str) -> bool:
    if archive.members:
        return name in archive.members
    folder, _, file = name.partition("/")
    return folder == archive.folder and file not in ("", ".", "..") and not {"/", "\\"} & {*file}


def _part(archive: Archive, root: Path) -> Path:
    return root / f"{archive.name}.part"


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0
