"""tools/download_coco.py: what it says before it starts, what it leaves, and that a killed one goes on."""

import hashlib
import http.server
import io
import json
import random
import re
import shutil
import threading
import zipfile
from collections import namedtuple
from pathlib import Path

import pytest

from data import download

NAMES = {"train": ["000000000001.jpg", "000000000002.jpg", "000000000003.jpg"], "val": ["000000000004.jpg"]}
INSTANCES = [f"annotations/instances_{split}2017.json" for split in NAMES]
WHOLE = sorted([f"{split}2017/{name}" for split, names in NAMES.items() for name in names] + INSTANCES)
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl")


def zipped(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return out.getvalue()


@pytest.fixture
def server(monkeypatch):
    """A server of a small COCO: `files` by path; `cuts`: bytes after which each next answer ends; `asked`: starts."""
    images = {
        split: {f"{split}2017/{name}": random.Random(name).randbytes(400_000) for name in names}
        for split, names in NAMES.items()
    }
    lists = [json.dumps({"images": [{"file_name": name} for name in names]}).encode() for names in NAMES.values()]
    archives = {
        "annotations": zipped({**dict(zip(INSTANCES, lists, strict=True)), "annotations/other.json": b"{}"}),
        **{split: zipped(files) for split, files in images.items()},
    }
    counts = {"annotations": 2} | {split: len(names) for split, names in NAMES.items()}
    for name, content in archives.items():
        digest = hashlib.sha256(content).hexdigest()
        sizes = {"size": len(content), "sha256": digest, "files": counts[name], "unpacked": len(content)}
        monkeypatch.setitem(download.COCO, name, download.COCO[name]._replace(**sizes))

    class Handler(http.server.BaseHTTPRequestHandler):
        files = {download.COCO[name].path: content for name, content in archives.items()}  # noqa: RUF012
        ranges, cuts, asked = True, [], []

        def do_GET(self) -> None:
            path, wanted = self.path.lstrip("/"), self.headers.get("Range")
            start = int(re.findall(r"\d+", wanted)[0]) if wanted else 0
            self.asked.append((path.rpartition("/")[2], start))
            if path not in self.files:
                self.send_error(404)
                return
            content = self.files[path][start if self.ranges else 0 :]
            self.send_response(206 if wanted and self.ranges else 200)
            self.send_header("Content-Length", str(len(content)))
            if wanted and self.ranges:
                self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{start + len(content)}")
            self.end_headers()
            self.wfile.write(content[: self.cuts.pop(0)] if self.cuts else content)

        def log_message(self, *_args: object) -> None:
            pass

    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True).start()
        Handler.address = f"http://127.0.0.1:{listening.server_address[1]}"
        yield Handler
        listening.shutdown()


def load(run_tool, server, folder, *options):
    return run_tool("download_coco", "--mirror", server.address, *options, cwd=folder)


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@needs_curl
def test_all_of_it_resumes(run_tool, server, tmp_path):
    root = tmp_path / "datasets/coco"
    root.mkdir(parents=True)
    (root / "annotations_trainval2017.zip.part").write_bytes(server.files[download.COCO["annotations"].path][:50])
    server.cuts = [10_000, 100, 200_000]
    code, out, err = load(run_tool, server, tmp_path)
    assert (code, err) == (0, "")
    assert files(root) == WHOLE
    picture = NAMES["val"][0]
    assert (root / "val2017" / picture).read_bytes() == random.Random(picture).randbytes(400_000)
    assert server.asked == [("annotations_trainval2017.zip", 50)] + [("val2017.zip", n) for n in (0, 100, 200_100)] + [
        ("train2017.zip", 0)
    ]
    assert re.search(r"annotations_trainval2017.zip +0\.00 +0\.00 +resumes\n *val2017.zip .*\n *train2017.zip ", out)
    assert re.search(r"\n0\.00 GB to download; needs up to 0\.\d+ GB in datasets/coco, [\d.]+ GB are free", out)
    last = out.splitlines()[-4:]
    assert last[0] == "train: all 3 images of datasets/coco/annotations/instances_train2017.json are in " + (
        "datasets/coco/train2017"
    )
    assert last[3] == "then: python tools/train.py --config r50_dcn.yaml"

    code, again, _ = load(run_tool, server, tmp_path)
    assert (code, again.splitlines()) == (0, last), "there is nothing to download"
    (root / "train2017" / NAMES["train"][1]).rename(root / "train2017/other.jpg")
    code, _, err = load(run_tool, server, tmp_path)
    assert code == 2
    assert f"1 of the 3 images of datasets/coco/{INSTANCES[0]} are missing in datasets/coco/train2017, first" in err
    (root / "train2017/other.jpg").unlink()
    code, _, err = load(run_tool, server, tmp_path)
    assert code == 2
    assert "train2017 must contain the 3 files of train2017.zip, got 2; move the folder" in err


@needs_curl
def test_a_part_of_it_elsewhere(run_tool, server, tmp_path):
    code, out, err = load(run_tool, server, tmp_path, "--out", "mine", "--splits", "val", "--keep-archives", "--yes")
    assert (code, err) == (0, "")
    kept = ["annotations_trainval2017.zip", "val2017.zip"]
    assert files(tmp_path / "mine") == sorted([name for name in WHOLE if "train2017/" not in name] + kept)
    places = f"--images mine/val2017 --annotations mine/{INSTANCES[1]}"
    assert out.endswith(f"next: python tools/check_dataset.py {places}\n")
    assert len(server.asked) == 2


@needs_curl
def test_it_gives_up_and_keeps_what_came(run_tool, server, tmp_path, capfd):
    server.cuts = [300, *([0] * 99)]
    options = ("--splits", "val", "--parts", "images")
    code, _, err = load(run_tool, server, tmp_path, *options)
    whole = server.files["zips/val2017.zip"]
    assert code == 2
    assert "failed after 8 attempts with curl exit code" in err
    assert f"300 of {len(whole):,} bytes are kept; run the same command again to resume" in err
    assert len(server.asked) == 8
    server.cuts, server.ranges = [], False
    code, out, err = load(run_tool, server, tmp_path, *options)
    assert (code, err) == (0, "")
    assert "the server does not support resuming; the download starts again" in out
    assert files(tmp_path / "datasets/coco") == [f"val2017/{NAMES['val'][0]}"]

    shutil.rmtree(tmp_path / "datasets/coco/val2017")
    server.files["zips/val2017.zip"] = whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:]
    code, _, err = load(run_tool, server, tmp_path, *options)
    assert code == 2
    digest = hashlib.sha256(whole).hexdigest()
    assert re.search(rf"val2017\.zip was damaged .* SHA-256 {digest}, got {len(whole):,} bytes with SHA", err)
    assert files(tmp_path / "datasets/coco") == []
    del server.files["zips/val2017.zip"]
    assert load(run_tool, server, tmp_path, *options).code == 2
    assert "The requested URL returned error: 404" in capfd.readouterr().err


@needs_curl
def test_a_full_disk_keeps_what_came(mounted, server):
    root = mounted("size=512k")
    with pytest.raises(OSError, match="No space left on device; the partial download is kept"):
        download.fetch(download.COCO["train"], root, server.address)
    assert (root / "train2017.zip.part").stat().st_size > 100_000


def test_errors_before_the_download(run_tool, server, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    code, _, err = load(run_tool, server, tmp_path, "--splits", "val")
    assert code == 2
    urls = f"{server.address}/annotations/annotations_trainval2017.zip {server.address}/zips/val2017.zip"
    assert f"or put these files into datasets/coco and run the same command again: {urls}\n" in err
    asked = []
    usage = namedtuple("Usage", "total used free")(9, 9, 10_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage)
    monkeypatch.setitem(download.COCO, "train", download.COCO["train"]._replace(unpacked=15_000_000))
    code, _, err = load(run_tool, server, tmp_path, "--out", "a/b")
    assert code == 2
    assert re.fullmatch(r"error: a/b: 0\.02 GB are needed on this disk, 0\.01 GB are free\n", err)
    assert asked == [tmp_path.resolve()], "not the disk that would be written"
    assert run_tool("download_coco", "--mirror", "file:///etc").code == 2
    monkeypatch.setattr("sys.stdin", type("Terminal", (io.StringIO,), {"isatty": lambda _: True})("no\n"))
    code, out, _ = load(run_tool, server, tmp_path, "--splits", "val")
    assert (code, out.splitlines()[-1]) == (0, "start? [y/N] nothing was downloaded")
    assert server.asked == []


@pytest.mark.parametrize("outside", ["../1.jpg", "/tmp/1.jpg", "val2017/../../1.jpg", "val2017/..", "C:/1.jpg"])
def test_unpacking(server, tmp_path, outside):
    """Nothing is written outside the folder, and half an archive leaves nothing."""
    place, root, name = tmp_path / "some.zip", tmp_path / "a/root", f"val2017/{NAMES['val'][0]}"
    root.mkdir(parents=True)
    for content, message in [
        (zipped({outside: b"out"}), r"some\.zip must contain 1 files of the data set, got 0; nothing was unpacked"),
        (
            zipped({name: b"content"}).replace(b"content", b"damaged"),
            r"cannot be unpacked: Bad CRC-32 for file",
        ),
    ]:
        place.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            download.unpack(download.COCO["val"], place, root, lambda items, _: items)
        assert files(tmp_path) == ["some.zip"]
    place.write_bytes(zipped({outside: b"out", name: b"1"}))
    download.unpack(download.COCO["val"], place, root, lambda items, _: items)
    assert files(tmp_path) == [f"a/root/{name}", "some.zip"]
    assert not Path("/tmp/1.jpg").exists()
