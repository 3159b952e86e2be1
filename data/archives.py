"""Zip files of pictures and annotations: what COCO's hold, how much room they need, and how they are unpacked."""

import json
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

COCO_SERVER = "http://images.cocodataset.org"
_PIECE = 1 << 20


class DownloadError(ValueError):
    """Something that cannot be fetched or unpacked; the message names it and says what to do."""


@dataclass(frozen=True)
class Archive:
    """A zip file on a server, and what of it belongs where.

    Attributes:
        path: below the server's address, as `zips/val2017.zip`.
        size: of the zip file in bytes.
        sha256: hex digest of the zip file.
        folder: what to take from it: this folder whole, or `members` of it.
        files: how many files `folder` holds when it is whole; of `members`, their number.
        unpacked: bytes of these files, about.
        members: the files to take, if not all; named as in the zip file.
    """

    path: str
    size: int
    sha256: str
    folder: str
    files: int
    unpacked: int
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the zip file."""
        return PurePosixPath(self.path).name


# Sizes and digests are those that several public projects give for these files; COCO itself publishes none.
COCO_IMAGES = {
    "train": Archive(
        path="zips/train2017.zip",
        size=19_336_861_798,
        sha256="69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
        folder="train2017",
        files=118_287,
        unpacked=19_300_000_000,
    ),
    "val": Archive(
        path="zips/val2017.zip",
        size=815_585_330,
        sha256="4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
        folder="val2017",
        files=5_000,
        unpacked=815_000_000,
    ),
}
_COCO_INSTANCES = {"train": 470_000_000, "val": 20_000_000}


def coco_annotations(splits: Sequence[str]) -> Archive:
    """The archive of COCO's annotations, of which the boxes and masks of some splits are wanted."""
    return Archive(
        path="annotations/annotations_trainval2017.zip",
        size=252_907_541,
        sha256="113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
        folder="annotations",
        files=len(splits),
        unpacked=sum(_COCO_INSTANCES[split] for split in splits),
        members=tuple(f"annotations/instances_{split}2017.json" for split in splits),
    )


def part_of(archive: Archive, root: Path) -> Path:
    """What is there of an archive that is not whole."""
    return root / f"{archive.name}.part"


def is_there(archive: Archive, root: Path) -> bool:
    """Whether what is wanted of an archive already lies in `root`.

    Raises:
        DownloadError: if there is a folder in its place that holds something else.
    """
    if archive.members:
        return all((root / member).is_file() for member in archive.members)
    folder = root / archive.folder
    found = sum(1 for _ in folder.iterdir()) if folder.exists() else 0
    if found not in (0, archive.files):
        raise DownloadError(
            f"{folder} holds {found:,} files where {archive.name} has {archive.files:,}; move it away, or choose "
            "another folder by --out"
        )
    return bool(found)


def bytes_missing(archive: Archive, root: Path) -> int:
    """How much of an archive is still to be downloaded, a part from an earlier time counted."""
    if (root / archive.name).is_file():
        return 0
    part = part_of(archive, root)
    return archive.size - min(part.stat().st_size, archive.size) if part.is_file() else archive.size


def peak_bytes(archives: Iterable[Archive], root: Path, *, keep_archives: bool) -> int:
    """The most that is written at a time, beside what is there, when archives are fetched and unpacked in turn."""
    written = peak = 0
    for archive in archives:
        written += bytes_missing(archive, root)
        peak = max(peak, written + archive.unpacked)
        written += archive.unpacked - (0 if keep_archives else archive.size)
    return peak


def unpack(
    archive: Archive,
    place: Path,
    root: Path,
    progress: Callable[[Iterable[zipfile.ZipInfo], str], Iterable[zipfile.ZipInfo]],
) -> None:
    """Unpack what is wanted of an archive into `root`; it appears there in one piece, or not at all.

    Args:
        archive: what to take.
        place: the zip file.
        root: folder on whose disk there is room.
        progress: wraps the members, to show how far it is.

    Raises:
        DownloadError: if a member is damaged, missing, or would lie outside `root`.
        OSError: if the disk is full or cannot be written.
    """
    fresh = root / f".{archive.name}.unpacking"
    shutil.rmtree(fresh, ignore_errors=True)  # of a run that was killed
    try:
        with zipfile.ZipFile(place) as file:
            for member in progress(_wanted(archive, file), f"unpack {archive.name}"):
                target = fresh / member.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with file.open(member) as source, target.open("wb") as out:  # reading to the end checks its CRC
                    shutil.copyfileobj(source, out, _PIECE)
        for part in archive.members or (archive.folder,):
            (root / part).parent.mkdir(exist_ok=True)
            (fresh / part).replace(root / part)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise DownloadError(f"{place} cannot be unpacked: {error}; remove it, to fetch it anew") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def missing_pictures(annotations: Path, images: Path) -> tuple[int, list[str]]:
    """How many pictures a COCO file lists, and the names of those that are not in a folder."""
    names = [entry["file_name"] for entry in json.loads(annotations.read_bytes())["images"]]
    there = {path.name for path in images.iterdir()}
    return len(names), [name for name in names if name not in there]


def _wanted(archive: Archive, file: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The members to unpack; raises `DownloadError` for names that lead out of the folder, links, and lost files."""
    wanted = {}
    for member in file.infolist():
        name = member.filename
        path = PurePosixPath(name)
        leads_out = path.is_absolute() or ".." in path.parts or PureWindowsPath(name).drive or "\\" in name
        if leads_out or stat.S_ISLNK(member.external_attr >> 16):
            raise DownloadError(f"{file.filename}: {name!r} leads out of the folder; nothing was unpacked")
        if member.is_dir() or (path.parent != PurePosixPath(archive.folder)):
            continue
        if name in wanted:
            raise DownloadError(f"{file.filename}: {name!r} stands twice; nothing was unpacked")
        if not archive.members or name in archive.members:
            wanted[name] = member
    if len(wanted) != archive.files:
        raise DownloadError(
            f"{file.filename} holds {len(wanted):,} of the {archive.files:,} files that are expected in "
            f"{archive.folder}/; nothing was unpacked"
        )
    return list(wanted.values())
