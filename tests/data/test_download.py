"""Downloads from a server on this machine: cut, resumed, damaged, refused."""

import contextlib
import errno
import hashlib
import logging
import random
import threading

import pytest

from data.archives import Archive, DownloadError
from data.download import fetch

CONTENT = random.Random(0).randbytes(700_001)
ARCHIVE = Archive("zips/a.zip", len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), folder="a", files=1, unpacked=1)


@pytest.fixture
def server(site):
    return site({"zips/a.zip": CONTENT})


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "resnet_dcn")
    return lambda: [record.getMessage() for record in caplog.records]


class Bar:
    """Notes what it is told."""

    def __init__(self):
        self.opened = []
        self.shown = []

    @contextlib.contextmanager
    def __call__(self, label, total, done):
        self.opened.append((label, total, done))
        index = len(self.shown)
        self.shown.append(done)

        def advance(count):
            self.shown[index] += count

        yield advance


def load(server, root, **options):
    waits = []
    bar = Bar()
    place = fetch(ARCHIVE, root, bar, server=server.address, sleep=waits.append, **options)
    assert place == root / "a.zip"
    assert place.read_bytes() == CONTENT
    assert [path.name for path in root.iterdir()] == ["a.zip"]
    assert bar.shown == [len(CONTENT)] * len(bar.shown), "the bar does not end at the whole"
    return bar.opened, waits


def test_in_one_piece(server, tmp_path, warnings):
    opened, waits = load(server, tmp_path)
    assert opened == [("a.zip", 700_001, 0), ("check a.zip", 700_001, 0)]
    assert server.asked == [("zips/a.zip", 0)]
    assert (waits, warnings()) == ([], [])


def test_a_slash_at_the_end_of_the_address(server, tmp_path):
    server.address += "/"
    load(server, tmp_path)


def test_it_goes_on_where_it_was(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:500_000])
    opened, _ = load(server, tmp_path)
    assert opened[0] == ("a.zip", 700_001, 500_000)
    assert server.asked == [("zips/a.zip", 500_000)]
    assert server.sent == [200_001]


def test_a_part_that_is_whole_is_not_asked_for(server, tmp_path):
    (tmp_path / "a.zip.part").write_bytes(CONTENT)
    load(server, tmp_path)
    assert server.asked == []


def test_a_file_that_is_there_is_checked_only(server, tmp_path):
    (tmp_path / "a.zip").write_bytes(CONTENT)
    opened, _ = load(server, tmp_path)
    assert opened == [("check a.zip", 700_001, 0)]
    assert server.asked == []


def test_a_server_that_cannot_go_on(server, tmp_path, warnings):
    server.ranges = False
    (tmp_path / "a.zip.part").write_bytes(b"x" * 500_000)
    load(server, tmp_path)
    assert server.asked == [("zips/a.zip", 500_000)]
    assert server.sent == [700_001]
    assert warnings() == ["a.zip: the server cannot go on in the middle; starting anew"]


@pytest.mark.parametrize("length", [True, False])
def test_a_connection_that_is_cut(server, tmp_path, warnings, length):
    server.length = length
    server.cuts = [300_000, 100_000]
    _, waits = load(server, tmp_path)
    assert server.asked == [("zips/a.zip", start) for start in (0, 300_000, 400_000)]
    assert sum(server.sent) == len(CONTENT)
    assert waits == [1, 1], "each brought something"
    assert warnings()[0] == "a.zip: the connection was cut at 300,000 of 700,001 bytes; trying again in 1 s"


def test_a_server_that_is_busy(server, tmp_path, warnings):
    server.statuses = [503, 429, 500, 502]
    _, waits = load(server, tmp_path)
    assert waits == [1, 2, 4, 8]
    assert warnings()[0] == "a.zip: the server says 503 Service Unavailable; trying again in 1 s"


def test_a_server_that_falls_silent(server, tmp_path, warnings, monkeypatch):
    monkeypatch.setattr("data.download._TIMEOUT_S", 0.3)
    answer, asleep = server.answer, threading.Event()

    def silent(request):
        server.answer = answer
        server.asked.append(("zips/a.zip", 0))
        request.send_response(200)
        request.end_headers()
        request.wfile.write(CONTENT[:300_000])
        request.wfile.flush()
        asleep.wait(10)

    server.answer = silent
    try:
        load(server, tmp_path)
    finally:
        asleep.set()
    assert server.asked[0] == ("zips/a.zip", 0)
    ((_, start),) = server.asked[1:]
    assert 0 < start <= 300_000, "nothing of what came was kept"
    assert warnings() == ["a.zip: the connection broke (timed out); trying again in 1 s"]


def test_it_gives_up_and_keeps_what_came(server, tmp_path):
    server.cuts = [300_000] + [0] * 9
    waits = []
    with pytest.raises(DownloadError) as caught:
        fetch(ARCHIVE, tmp_path, Bar(), server=server.address, sleep=waits.append)
    assert "gave up after 8 attempts. 300,000 of 700,001 bytes are kept: the same command goes on" in str(caught.value)
    assert server.address in str(caught.value)
    assert waits == [1, 2, 4, 8, 16, 32, 60]
    assert (tmp_path / "a.zip.part").read_bytes() == CONTENT[:300_000]
    server.cuts = []
    load(server, tmp_path)
    assert server.asked[-1] == ("zips/a.zip", 300_000)


def test_a_server_without_ranges_that_always_cuts(server, tmp_path):
    server.ranges = False
    server.cuts = [300_000] * 20
    with pytest.raises(DownloadError, match="gave up after 3 attempts"):
        fetch(ARCHIVE, tmp_path, Bar(), server=server.address, sleep=lambda _: None, attempts=3)


def test_no_server(site, tmp_path):
    with pytest.raises(DownloadError, match=r"no connection \(.*refused\); gave up after 2 attempts"):
        fetch(ARCHIVE, tmp_path, Bar(), server="http://127.0.0.1:9", sleep=lambda _: None, attempts=2)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("status", [404, 403])
def test_a_file_that_is_not_there(server, tmp_path, status):
    server.statuses = [status]
    with pytest.raises(DownloadError, match=rf"/zips/a\.zip: the server says {status}"):
        fetch(ARCHIVE, tmp_path, Bar(), server=server.address)
    assert len(server.asked) == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("content", [CONTENT[:-1], CONTENT + b"x"])
def test_a_file_of_another_length(server, tmp_path, content):
    server.files["zips/a.zip"] = content
    with pytest.raises(DownloadError, match=rf"has {len(content):,} bytes, not 700,001: it is another file"):
        fetch(ARCHIVE, tmp_path, Bar(), server=server.address)
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:9])
    with pytest.raises(DownloadError, match=rf"has {len(content):,} bytes, not 700,001: it is another file"):
        fetch(ARCHIVE, tmp_path, Bar(), server=server.address)
    assert (tmp_path / "a.zip.part").read_bytes() == CONTENT[:9]
    assert sum(1 for _ in tmp_path.iterdir()) == 1


def test_a_file_that_ends_before_the_part(server, tmp_path):
    server.files["zips/a.zip"] = CONTENT[:100]
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:200])
    with pytest.raises(DownloadError, match="ends before byte 200 of 700,001"):
        fetch(ARCHIVE, tmp_path, Bar(), server=server.address)


def test_a_file_that_is_longer_without_saying_so(server, tmp_path):
    server.length = False
    server.files["zips/a.zip"] = CONTENT + b"x" * 10_000_000
    with pytest.raises(DownloadError, match=r"also when fetched anew: it has .* bytes, not 700,001"):
        fetch(ARCHIVE, tmp_path, Bar(), server=server.address)
    assert not [*tmp_path.iterdir()]


def test_other_bytes_than_asked_for(server, tmp_path):
    def wrong_place(request):
        request.send_response(206)
        request.send_header("Content-Range", f"bytes 0-99/{len(CONTENT)}")
        request.end_headers()

    server.answer = wrong_place
    (tmp_path / "a.zip.part").write_bytes(CONTENT[:200])
    with pytest.raises(DownloadError, match="asked for the bytes from 200 on, the server gave others"):
        fetch(ARCHIVE, tmp_path, Bar(), server=server.address)


@pytest.mark.parametrize("name", ["a.zip", "a.zip.part"])
def test_a_damaged_file_is_fetched_anew(server, tmp_path, warnings, name):
    damaged = bytearray(CONTENT)
    damaged[1234] ^= 1
    (tmp_path / name).write_bytes(damaged)
    load(server, tmp_path)
    assert server.asked == [("zips/a.zip", 0)]
    (warning,) = warnings()
    assert warning.startswith(f"{tmp_path / name} is damaged and fetched anew: its SHA-256 is ")
    assert warning.endswith(f"not {ARCHIVE.sha256}")


def test_a_server_with_wrong_bytes_is_asked_twice(server, tmp_path):
    server.files["zips/a.zip"] = bytes(len(CONTENT))
    with pytest.raises(DownloadError, match=r"/zips/a\.zip is damaged, also when fetched anew: its SHA-256 is"):
        fetch(ARCHIVE, tmp_path, Bar(), server=server.address)
    assert server.sent == [len(CONTENT)] * 2
    assert not [*tmp_path.iterdir()]


def test_a_full_disk_keeps_what_came(server, tmp_path, mounted):
    disk = mounted("size=400k")
    with pytest.raises(OSError, match=r"No space left on device: [\d,]+ more bytes are to come") as caught:
        fetch(ARCHIVE, disk, Bar(), server=server.address)
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(disk / "a.zip.part")
    assert len(server.asked) == 1, "it tried again"
    kept = (disk / "a.zip.part").read_bytes()
    assert kept
    assert CONTENT.startswith(kept)
