"""Fetches zip files over HTTP; a download that was cut off goes on where it was."""

import hashlib
import http.client
import logging
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from .archives import COCO_SERVER, Archive, DownloadError, part_of

# Opens a bar of bytes, (label, whole, already there) -> what is told of each further piece.
Bar = Callable[[str, int, int], AbstractContextManager[Callable[[int], object]]]

log = logging.getLogger("resnet_dcn")

_PIECE = 1 << 18
_TIMEOUT_S = 60
_LONGEST_WAIT_S = 60
_TRANSIENT = {408, 425, 429, 500, 502, 503, 504}


class _LostConnectionError(Exception):
    """A connection that broke or never came about; the next one may work."""


def fetch(
    archive: Archive,
    root: Path,
    bar: Bar,
    *,
    server: str = COCO_SERVER,
    attempts: int = 8,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Download an archive into `root`, or go on with it; returns its place once its SHA-256 is right.

    A damaged one is fetched anew, once.

    Args:
        archive: what to fetch.
        root: an existing folder.
        bar: shows the bytes.
        server: address that `archive.path` is below.
        attempts: connections in a row that may bring nothing before it gives up; the wait between them doubles.
        sleep: waits so many seconds.

    Raises:
        DownloadError: if the server has no such file, or another one, or cannot be reached.
        OSError: if the disk is full or cannot be written; what came so far is kept.
    """
    place, part = root / archive.name, part_of(archive, root)
    url = f"{server.rstrip('/')}/{archive.path}"
    for last in (False, True):
        if not place.is_file():
            _complete(archive, part, url, bar, attempts, sleep)
        found = place if place.is_file() else part
        problem = _damage(archive, found, bar)
        if not problem:
            break
        found.unlink()
        if last:
            raise DownloadError(f"{url} is damaged, also when fetched anew: {problem}")
        log.warning("%s is damaged and fetched anew: %s", found, problem)
    found.replace(place)
    return place


def _size(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


def _complete(archive: Archive, part: Path, url: str, bar: Bar, attempts: int, sleep: Callable[[float], None]) -> None:
    """Download what is missing of `part`, over as many connections as it takes."""
    if _size(part) > archive.size:
        part.unlink()
    failures = 0
    with bar(archive.name, archive.size, _size(part)) as advance:
        while (before := _size(part)) < archive.size:
            try:
                _receive(archive, part, url, advance)
            except _LostConnectionError as error:
                failures = 1 if _size(part) > before else failures + 1
                if failures >= attempts:
                    raise DownloadError(
                        f"{url}: {error}; gave up after {failures} attempts. {_size(part):,} of {archive.size:,} bytes "
                        "are kept: the same command goes on from there"
                    ) from None
                wait = min(2 ** (failures - 1), _LONGEST_WAIT_S)
                log.warning("%s: %s; trying again in %d s", archive.name, error, wait)
                sleep(wait)


def _receive(archive: Archive, part: Path, url: str, advance: Callable[[int], object]) -> None:
    """Append to `part` what one connection gives."""
    done = _size(part)
    with _open(url, done, archive) as response:
        goes_on = response.status == http.client.PARTIAL_CONTENT
        _check_length(response, done if goes_on else 0, archive, url)
        if done and not goes_on:
            log.warning("%s: the server cannot go on in the middle; starting anew", archive.name)
            advance(-done)
            done = 0
        try:
            with part.open("ab" if done else "wb") as file:
                for piece in _pieces(response):
                    file.write(piece)
                    done += len(piece)
                    advance(len(piece))
                    if done > archive.size:
                        return  # another file, without its length; its SHA-256 will not fit
        except OSError as error:
            reason = f"{error.strerror}: {archive.size - _size(part):,} more bytes are to come; what is there is kept"
            raise OSError(error.errno, reason, str(part)) from None
    if done < archive.size:
        raise _LostConnectionError(f"the connection was cut at {done:,} of {archive.size:,} bytes")


def _open(url: str, done: int, archive: Archive) -> http.client.HTTPResponse:
    headers = {"User-Agent": "resnet-dcn"} | ({"Range": f"bytes={done}-"} if done else {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in _TRANSIENT:
            raise _LostConnectionError(f"the server says {error.code} {error.reason}") from None
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise DownloadError(f"{url} ends before byte {done:,} of {archive.size:,}: it is another file") from None
        raise DownloadError(f"{url}: the server says {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _LostConnectionError(f"no connection ({getattr(error, 'reason', error)})") from None


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """Yield what comes; errors are those of the connection, never of the disk."""
    while True:
        try:
            piece = response.read(_PIECE)
        except (OSError, http.client.HTTPException) as error:
            raise _LostConnectionError(f"the connection broke ({error})") from None
        if not piece:
            return
        yield piece


def _check_length(response: http.client.HTTPResponse, start: int, archive: Archive, url: str) -> None:
    """Refuse a file of another length before a byte of it is written."""
    whole = response.headers.get("Content-Length")
    if response.status == http.client.PARTIAL_CONTENT:
        places = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if not places or int(places[1]) != start:
            raise DownloadError(f"{url}: asked for the bytes from {start:,} on, the server gave others")
        whole = places[2]
    if whole and whole.isdigit() and int(whole) != archive.size:
        raise DownloadError(f"{url} has {int(whole):,} bytes, not {archive.size:,}: it is another file")


def _damage(archive: Archive, file: Path, bar: Bar) -> str:
    """What is wrong with a downloaded file, or nothing."""
    if _size(file) != archive.size:
        return f"it has {_size(file):,} bytes, not {archive.size:,}"
    digest = hashlib.sha256()
    with file.open("rb") as opened, bar(f"check {archive.name}", archive.size, 0) as advance:
        while piece := opened.read(_PIECE):
            digest.update(piece)
            advance(len(piece))
    found = digest.hexdigest()
    return "" if found == archive.sha256 else f"its SHA-256 is {found}, not {archive.sha256}"
