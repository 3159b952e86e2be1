"""Atomic writes."""

import errno
import json
import os
import stat
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data.files import atomic_file, remove_partials, without_link, write_json, write_text

try:
    import resource
except ImportError:  # Windows
    resource = None


def test_a_file_is_replaced_as_a_whole(tmp_path):
    file = tmp_path / "new" / "a.json"
    write_json(file, {"ä": [1, None]})
    assert json.loads(file.read_text(encoding="utf-8")) == {"ä": [1, None]}
    held = file.open("rb")  # an open reader keeps the old file
    write_text(file, "é" * 10)
    assert file.read_text(encoding="utf-8") == "é" * 10
    assert json.loads(held.read()) == {"ä": [1, None]}
    held.close()
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


def test_a_value_that_is_not_json_keeps_the_file(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, 1)
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert file.read_text() == "1"


def test_a_full_disk_is_named_and_keeps_the_file(mounted):
    file = mounted("size=64k") / "a.json"
    write_text(file, "earlier")
    with pytest.raises(OSError, match=f"No space left on device: '{file}'"):
        write_text(file, "x" * 100_000)
    assert file.read_text() == "earlier"
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


def test_an_error_leaves_no_temporary_file(tmp_path):
    def write():
        with atomic_file(tmp_path / "a.png"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert [*tmp_path.iterdir()] == []


def save_image(format_):
    def save(file):
        Image.effect_noise((300, 300), 50).save(file, format_)

    return save


def save_video(file):
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width = stream.height = 64
        for seed in range(40):
            array = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(array, format="rgb24")))
        container.mux(stream.encode())


def save_program(file):
    program = torch.export.export(nn.Linear(100, 100), (torch.zeros(1, 100),))
    torch.export.save(program, file)


WRITERS = {
    "bytes": lambda file: file.write(bytes(100_000)),
    "png": save_image("PNG"),
    "jpeg": save_image("JPEG"),
    "webp": save_image("WEBP"),
    "tensors": lambda file: torch.save({"a": torch.ones(10_000)}, file),
    "program": save_program,
    "video": save_video,
}


@pytest.fixture
def limited():
    """`limited(size)`: files of this process cannot grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("write", WRITERS.values(), ids=[*WRITERS])
def test_any_library_writes_into_it(write, tmp_path):
    with atomic_file(tmp_path / "a") as file:
        write(file)
    assert (tmp_path / "a").stat().st_size > 5000
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(resource is None, reason="needs limits of the system")
@pytest.mark.parametrize("write", WRITERS.values(), ids=[*WRITERS])
def test_a_file_that_cannot_grow_is_named_for_any_library(write, tmp_path, limited):
    file = tmp_path / "a"
    file.write_text("earlier")
    limited(5000)

    def save():
        with atomic_file(file) as sink:
            write(sink)

    with pytest.raises(OSError, match=f"File too large: '{file}'") as caught:
        save()
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(file))
    assert file.read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.skipif(resource is None, reason="needs limits of the system")
def test_a_disk_that_is_full_for_a_moment(tmp_path, limited):
    """One write fails and the later ones succeed: the file is still not written."""

    def write():
        with atomic_file(tmp_path / "a") as file:
            limited(1000)
            file.write(bytes(50_000))
            limited(resource.getrlimit(resource.RLIMIT_FSIZE)[1])
            file.write(bytes(50_000))
            with pytest.raises(OSError, match="File too large"):
                file.sync()

    with pytest.raises(OSError, match="File too large"):
        write()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("folder", "Is a directory"),
        ("file/a.json", "File exists|Not a directory"),
        ("file/b/a.json", "File exists|Not a directory"),
        ("x" * 300, "File name too long"),
        ("loop", None),
        ("x" * 255, None),
        ("漢" * 85, None),
        (os.fsdecode(b"\xff\xfe.json"), None),
    ],
)
def test_what_is_in_the_way_of_a_file_is_named(path, reason, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    before = {*tmp_path.iterdir()}
    if reason is None:
        write_text(tmp_path / path, "new")
        assert (tmp_path / path).read_text() == "new"
        return
    with pytest.raises(OSError, match=reason) as caught:
        write_text(tmp_path / path, "new")
    assert str(tmp_path) in str(caught.value)
    assert ".partial" not in str(caught.value)
    assert {*tmp_path.iterdir()} == before


@pytest.mark.parametrize("writer", ["bytes", "png", "tensors", "video"])
def test_a_planted_link_is_never_followed(writer, tmp_path):
    victim, file = tmp_path / "victim", tmp_path / "out" / "a"
    victim.write_text("mine")
    file.parent.mkdir()
    for name in ("a", "a.partial", ".a.partial"):
        (file.parent / name).symlink_to(victim)
    with atomic_file(file) as sink:
        WRITERS[writer](sink)
    assert victim.read_text() == "mine"
    assert file.is_file()
    assert not file.is_symlink()


def test_the_temporary_name_is_not_one_that_can_be_foreseen(tmp_path):
    names = []
    for _ in range(2):
        with atomic_file(tmp_path / "a"):
            names += [path.name for path in tmp_path.glob("*.partial")]
    assert len({*names}) == 2


def test_the_mode_of_a_new_file_follows_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "a", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_devices_and_pipes_are_written_and_stay(tmp_path):
    write_text(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_text(Path("/dev/full"), "x")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="No such device or address"):
        write_text(tmp_path / "pipe", "nobody reads")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_text(tmp_path / "pipe", "read")
    assert os.read(reader, 100) == b"read"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()


def test_names_that_are_not_utf_8_survive_in_json(tmp_path):
    name = os.fsdecode(b"\xff.png")
    write_json(tmp_path / "a.json", {"file_name": name})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"file_name": name}
    write_text(tmp_path / "a.txt", f"{name} ä")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == r"\udcff.png ä"


def test_what_killed_processes_left_can_be_removed(tmp_path):
    kept = ["a.pt", "b.pt.00112233.partial", "a.pt.partial", "a.pt.mine.partial"]
    for name in (*kept, "a.pt.0a1b2c3d.partial"):
        (tmp_path / name).touch()
    remove_partials(tmp_path / "a.pt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


def test_a_link_is_not_appended_to(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "link").symlink_to("victim")
    with pytest.raises(OSError, match="link"):
        open(tmp_path / "link", "ab", opener=without_link)  # noqa: SIM115
    with open(tmp_path / "new", "ab", opener=without_link) as file:
        file.write(b"new")
    assert [(tmp_path / name).read_text() for name in ("victim", "new")] == ["mine", "new"]
