"""tools/download_coco.py: what it says before it starts, what it leaves, and that a killed one goes on."""

import contextlib
import errno
import hashlib
import http.server
import io
import json
import random
import re
import shutil
import sys
import threading
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from data import download

TOOL = Path(__file__).resolve().parents[2] / "tools/download_coco.py"
COUNTS = {"train": 5, "val": 2}
NAMES = {split: [f"{index:012}.jpg" for index in range(count)] for split, count in COUNTS.items()}
Usage = namedtuple("Usage", "total used free")
# Stands before the tool in a process of its own: COCO's table with the sizes of the small archives.
PATCH = """
import runpy, sys
from data import download
from data.download import Archive
download.COCO_IMAGES = {images!r}
download.coco_annotations = lambda splits: {annotations!r}
sys.argv = [{tool!r}, *{arguments!r}]
sys.path.insert(0, {tools!r})
runpy.run_path({tool!r}, run_name="__main__")
"""


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return out.getvalue()


def picture(split: str, index: int) -> bytes:
    return random.Random(f"{split}{index}").randbytes(400_000)


@pytest.fixture(scope="session")
def content() -> dict[str, bytes]:
    """A COCO of 5 train and 2 val pictures, by path on the server."""
    files = {
        f"zips/{split}2017.zip": zipped(
            {f"{split}2017/{name}": picture(split, index) for index, name in enumerate(NAMES[split])}
        )
        for split in COUNTS
    }
    instances = {
        f"annotations/instances_{split}2017.json": json.dumps(
            {"images": [{"id": index, "file_name": name} for index, name in enumerate(NAMES[split])]}
        ).encode()
        for split in COUNTS
    }
    return files | {"annotations/annotations_trainval2017.zip": zipped(instances | {"annotations/other.json": b"{}"})}


def replace(archive, content, **changes):
    data = content[archive.path]
    fields = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "unpacked": len(data)} | changes
    return archive._replace(**fields)


@pytest.fixture
def small_coco(content, monkeypatch):
    """The table of archives, with the sizes of the small ones."""
    real = download.coco_annotations
    images = {split: replace(archive, content, files=COUNTS[split]) for split, archive in download.COCO_IMAGES.items()}
    monkeypatch.setattr(download, "COCO_IMAGES", images)
    monkeypatch.setattr(download, "coco_annotations", lambda splits: replace(real(splits), content))
    return images


class Server:
    """A web server on this machine.

    Attributes:
        files: content by path.
        ranges: whether it can send from the middle of a file.
        cuts: of the next answers, after how many bytes the connection ends.
        asked: (path, first byte asked for) of each request.
        answer: sends a file for a request.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.ranges, self.cuts, self.asked = files, True, [], []

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        path, wanted = request.path.lstrip("/"), request.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        self.asked.append((path, start))
        if path not in self.files:
            request.send_error(404)
            return
        content = self.files[path][start if self.ranges else 0 :]
        request.send_response(206 if wanted and self.ranges else 200)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content[: self.cuts.pop(0)] if self.cuts else content)


@pytest.fixture
def server(content, small_coco):
    """A server of the small COCO."""
    place = Server(dict(content))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            place.answer(self)

        def log_message(self, *_args: object) -> None:
            pass

    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
    place.address = f"http://127.0.0.1:{listening.server_address[1]}"
    yield place
    listening.shutdown()
    listening.server_close()


def load(run_tool, server, folder, *options):
    return run_tool("download_coco", "--mirror", server.address, *options, cwd=folder)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


WHOLE = sorted(
    [f"{split}2017/{name}" for split in COUNTS for name in NAMES[split]]
    + [f"annotations/instances_{split}2017.json" for split in COUNTS]
)


def test_all_of_it(run_tool, server, tmp_path):
    code, out, err = load(run_tool, server, tmp_path)
    assert (code, err) == (0, "")
    assert files(tmp_path / "datasets/coco") == WHOLE
    assert (tmp_path / "datasets/coco/val2017" / NAMES["val"][1]).read_bytes() == picture("val", 1)
    lines = out.splitlines()
    assert re.fullmatch(r"  archive +GB to download +GB unpacked", lines[0])
    assert [line.split()[0] for line in lines[2:5]] == [
        "annotations_trainval2017.zip",
        "val2017.zip",
        "train2017.zip",
    ]
    assert re.search(r"\n0\.00 GB to download, which takes up to 0\.\d+ GB in datasets/coco; [\d.]+ GB are free", out)
    assert "train: all 5 pictures of datasets/coco/annotations/instances_train2017.json are in" in out
    assert lines[-2:] == [
        "next: python tools/check_dataset.py --config r50_dcn.yaml",
        "then: python tools/train.py --config r50_dcn.yaml",
    ]
    assert len(server.asked) == 3

    code, again, _ = load(run_tool, server, tmp_path)
    assert code == 0
    assert "GB" not in again, "there is nothing to download"
    assert again.splitlines()[-4:] == lines[-4:]
    assert len(server.asked) == 3


def test_a_part_of_it_elsewhere(run_tool, server, tmp_path):
    code, out, err = load(run_tool, server, tmp_path, "--out", "mine", "--splits", "val", "--keep-archives", "--yes")
    assert (code, err) == (0, "")
    kept = ["annotations_trainval2017.zip", "val2017.zip"]
    assert files(tmp_path / "mine") == sorted([name for name in WHOLE if "val" in name] + kept)
    assert out.endswith(
        "next: python tools/check_dataset.py --images mine/val2017 --annotations "
        "mine/annotations/instances_val2017.json\n"
    )
    # the archive that was kept serves the other split too
    code, out, err = load(run_tool, server, tmp_path, "--out", "mine", "--what", "annotations")
    assert (code, err) == (0, "")
    assert len(server.asked) == 2
    assert "mine/annotations/instances_train2017.json" in out
    assert (tmp_path / "mine/annotations/instances_train2017.json").is_file()
    assert not (tmp_path / "mine/train2017").exists()


def test_what_is_there_is_said(run_tool, server, tmp_path):
    root = tmp_path / "datasets/coco"
    load(run_tool, server, tmp_path, "--splits", "val")
    (root / "train2017.zip.part").write_bytes(server.files["zips/train2017.zip"][:100_000])
    code, out, _ = load(run_tool, server, tmp_path)
    assert code == 0
    states = {line.split()[0]: line.split()[-1] for line in out.splitlines()[2:5]}
    assert states["train2017.zip"] == "on"
    assert re.search(r"val2017\.zip +0\.00 +0\.00 +is there\n", out)
    assert server.asked[-1] == ("zips/train2017.zip", 100_000)
    assert files(root) == WHOLE


def test_too_little_room_is_said_before_anything_is_asked_for(run_tool, server, small_coco, tmp_path, monkeypatch):
    asked = []
    small_coco["train"] = small_coco["train"]._replace(unpacked=15_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or Usage(9, 9, 10_000_000))
    code, out, err = load(run_tool, server, tmp_path)
    assert code == 2
    assert re.fullmatch(r"error: datasets/coco: 0\.02 GB are needed on this disk, 0\.01 GB are free\n", err)
    assert "GB to download" in out
    assert asked == [tmp_path.resolve()], "not the disk that would be written"
    assert server.asked == []
    assert not [*tmp_path.iterdir()]


def test_what_is_there_takes_no_more_room(run_tool, server, tmp_path, monkeypatch):
    load(run_tool, server, tmp_path, "--splits", "train")
    # the val pictures: 0.8 MB, and as much again for the zip file; those of train are five
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(9, 9, 2_000_000))
    code, _, err = load(run_tool, server, tmp_path)
    assert (code, err) == (0, "")


@pytest.mark.parametrize(("answer", "starts"), [("y", True), ("YES ", True), ("", False), ("no", False)])
def test_it_asks_where_someone_can_answer(run_tool, server, tmp_path, monkeypatch, answer, starts):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal(f"{answer}\n"))
    code, out, _ = load(run_tool, server, tmp_path, "--splits", "val")
    assert code == 0
    assert "start? [y/N]" in out
    assert out.index("GB are free") < out.index("start?")
    assert bool(server.asked) == starts
    assert ("nothing was downloaded" in out) != starts
    if not starts:
        assert not [*tmp_path.iterdir()]
        code, out, _ = load(run_tool, server, tmp_path, "--splits", "val", "--yes")
        assert "start?" not in out
        assert server.asked


def test_a_mirror_with_other_files(run_tool, server, tmp_path):
    server.files["zips/val2017.zip"] = zipped({"val2017/1.jpg": b"1"})
    code, _, err = load(run_tool, server, tmp_path, "--splits", "val")
    assert code == 2
    assert re.search(rf"error: {server.address}/zips/val2017\.zip has \d+ bytes, not [\d,]+: it is another file\n", err)
    del server.files["zips/val2017.zip"]
    code, _, err = load(run_tool, server, tmp_path, "--splits", "val")
    assert code == 2
    assert "the server says 404 Not Found" in err


def test_what_was_cut_off_goes_on(run_tool, server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(download.fetch, "__defaults__", (waits.append,))
    server.cuts = [100, 200_000]
    code, out, err = load(run_tool, server, tmp_path, "--splits", "val", "--what", "images")
    assert (code, err) == (0, "")
    path = "zips/val2017.zip"
    assert server.asked == [(path, 0), (path, 100), (path, 200_100)]
    assert waits == [1, 1]
    assert (
        f"val2017.zip: the connection was cut at 100 of {len(server.files[path]):,} bytes; trying again in 1 s" in out
    )
    assert files(tmp_path / "datasets/coco") == [f"val2017/{name}" for name in NAMES["val"]]


def test_it_gives_up_and_keeps_what_came(run_tool, server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(download.fetch, "__defaults__", (waits.append,))
    server.cuts = [300, *([0] * 99)]
    options = ("--splits", "val", "--what", "images")
    code, _, err = load(run_tool, server, tmp_path, *options)
    assert code == 2
    whole = len(server.files["zips/val2017.zip"])
    assert f"gave up after 8 attempts. 300 of {whole:,} bytes are kept: the same command goes on from there" in err
    assert waits == [1, 2, 4, 8, 16, 32, 60]
    server.cuts, server.ranges = [], False
    code, out, err = load(run_tool, server, tmp_path, *options)
    assert (code, err) == (0, "")
    assert "the server cannot go on in the middle; starting from the beginning" in out
    assert files(tmp_path / "datasets/coco") == [f"val2017/{name}" for name in NAMES["val"]]


def test_a_damaged_file_is_removed(run_tool, server, tmp_path):
    path = "zips/val2017.zip"
    whole = server.files[path]
    server.files[path] = whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:]
    options = ("--splits", "val", "--what", "images")
    code, _, err = load(run_tool, server, tmp_path, *options)
    assert code == 2
    digest = hashlib.sha256(whole).hexdigest()
    assert re.search(rf"val2017\.zip is damaged and was removed: its SHA-256 is [0-9a-f]+, not {digest}; the same", err)
    assert files(tmp_path / "datasets/coco") == []
    server.files[path] = whole
    assert load(run_tool, server, tmp_path, *options).code == 0


def test_a_full_disk_keeps_what_came(mounted, server, small_coco):
    root = mounted("size=512k")
    with pytest.raises(OSError, match="No space left on device; what came so far is kept") as caught:
        download.fetch(small_coco["val"], root, server.address, lambda *_: contextlib.nullcontext(int))
    assert caught.value.errno == errno.ENOSPC
    assert (root / "val2017.zip.part").stat().st_size > 100_000


OUTSIDE = [
    "../out.jpg",
    "/tmp/out.jpg",
    "val2017/../../out.jpg",
    "val2017/..",
    "val2017\\..\\..\\out.jpg",
    "C:/out.jpg",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_nothing_is_written_outside_the_folder(small_coco, tmp_path, name):
    place, root = tmp_path / "some.zip", tmp_path / "a/root"
    root.mkdir(parents=True)
    wanted = {f"val2017/{picture}": b"1" for picture in NAMES["val"]}
    place.write_bytes(zipped({name: b"out", **wanted}))
    before = {path for path in Path("/tmp").iterdir() if path.name == "out.jpg"}
    download.unpack(small_coco["val"], place, root, lambda items, _: items)
    assert files(tmp_path) == sorted(["some.zip", *(f"a/root/{name}" for name in wanted)])
    assert {path for path in Path("/tmp").iterdir() if path.name == "out.jpg"} == before


def test_half_an_archive_leaves_nothing(small_coco, tmp_path):
    place, root = tmp_path / "some.zip", tmp_path / "root"
    root.mkdir()
    names = [f"val2017/{picture}" for picture in NAMES["val"]]
    place.write_bytes(zipped({names[0]: b"1"}))
    with pytest.raises(ValueError, match=r"some\.zip holds 1 of the 2 files that are expected; nothing was unpacked"):
        download.unpack(small_coco["val"], place, root, lambda items, _: items)
    place.write_bytes(zipped({names[0]: b"1", names[1]: b"content"}).replace(b"content", b"damaged"))
    with pytest.raises(ValueError, match=r"some\.zip cannot be unpacked: Bad CRC-32 for file .*; remove it"):
        download.unpack(small_coco["val"], place, root, lambda items, _: items)
    assert not [*root.iterdir()]


def test_the_table_is_coco_s():
    annotations = download.coco_annotations(["val"])
    assert (annotations.name, annotations.files) == ("annotations_trainval2017.zip", 1)
    sizes = {archive.folder: (archive.size, archive.files) for archive in download.COCO_IMAGES.values()}
    assert sizes == {"train2017": (19_336_861_798, 118_287), "val2017": (815_585_330, 5_000)}


def test_a_picture_that_went_away_later(run_tool, server, tmp_path):
    load(run_tool, server, tmp_path)
    root = tmp_path / "datasets/coco"
    (root / "val2017" / NAMES["val"][0]).rename(root / "val2017/other.jpg")
    code, _, err = load(run_tool, server, tmp_path)
    assert code == 2
    assert f"1 of the 2 pictures of {Path('datasets/coco/annotations/instances_val2017.json')} are not in" in err
    assert NAMES["val"][0] in err
    (root / "val2017/other.jpg").unlink()
    code, _, err = load(run_tool, server, tmp_path)
    assert code == 2
    assert "val2017 holds 1 files where val2017.zip has 2; move it away" in err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--splits", "test"], "invalid choice: 'test'"),
        (["--what", "captions"], "invalid choice: 'captions'"),
        (["--mirror", "file:///etc"], "--mirror must start with http:// or https://, got 'file:///etc'"),
    ],
)
def test_mistakes(run_tool, tmp_path, options, said):
    code, _, err = run_tool("download_coco", *options, cwd=tmp_path)
    assert code == 2
    assert said in err
    assert not [*tmp_path.iterdir()]


def test_the_user_stops_it(run_tool, server, tmp_path, monkeypatch):
    def stopped(*_args, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("data.download.fetch", stopped)
    code, _, err = load(run_tool, server, tmp_path)
    assert (code, err) == (1, "\nstopped by the user; the same command goes on where it was\n")


def wait_for(condition, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_killed_in_the_middle_it_asks_for_the_rest_alone(start_process, run_process, server, small_coco, tmp_path):
    """A process that is killed while the server sends; the next asks for the bytes that did not come, and no others."""
    path = "zips/train2017.zip"
    whole, answer, hold = len(server.files[path]), server.answer, threading.Event()

    def slow(request):
        if request.path.lstrip("/") != path or hold.is_set():
            answer(request)
            return
        server.asked.append((path, 0))
        request.send_response(200)
        request.send_header("Content-Length", str(whole))
        request.end_headers()
        request.wfile.write(server.files[path][:1_500_000])
        request.wfile.flush()
        hold.wait(600)

    server.answer = slow
    script = tmp_path / "tool.py"
    script.write_text(
        PATCH.format(
            images=small_coco,
            annotations=download.coco_annotations(["train", "val"]),
            tool=str(TOOL),
            tools=str(TOOL.parent),
            arguments=["--mirror", server.address],
        ),
    )
    part = tmp_path / "datasets/coco/train2017.zip.part"
    environment = {"PYTHONPATH": str(TOOL.parents[1])}
    process = start_process(script, cwd=tmp_path, **environment)
    try:
        wait_for(lambda: part.is_file() and part.stat().st_size >= 1_000_000)
    finally:
        process.kill()
        process.communicate()
        hold.set()
    there = part.stat().st_size
    assert 1_000_000 <= there < whole
    assert server.files[path].startswith(part.read_bytes())
    assert [name for name in files(tmp_path / "datasets/coco") if "train2017/" in name] == []

    before = len(server.asked)
    code, out, err = run_process(script, cwd=tmp_path, **environment)
    assert (code, err) == (0, "")
    assert server.asked[before:] == [(path, there)]
    assert files(tmp_path / "datasets/coco") == WHOLE
    assert "goes on" in out
