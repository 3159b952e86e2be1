"""Checkpoints: intact or an error that names the file, never code, and more than one of them."""

import contextlib
import errno
import hashlib
import multiprocessing
import os
import pickle
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.runs import checkpoint
from engine.runs.checkpoint import (
    CheckpointError,
    Checkpoints,
    CheckpointWriteError,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from engine.runs.folder import BEST, LAST, choose_run

STATE = {
    "tensors": {
        "float": torch.linspace(-1, 1, 23),
        "int": torch.arange(11).reshape(1, 11),
        "bf16": torch.full((3, 2), 1.5, dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
        "same": torch.full((5,), float("nan")),
    },
    "config": {"model": {}, "train": {"lr": 0.1, "max_steps": None, "milestones": [1, 2.5]}, "text": "Größe"},
    "metrics": {"AP": float("nan"), "AP50": float("inf"), "AP75": 0, "per_class": {}},
    "step": 3,
    "nothing": None,
    "flag": True,
}


def described(value):
    """Convert a value so that `==` compares the bits of its tensors, including NaN."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.reshape(-1).view(torch.uint8).tolist()
    if isinstance(value, dict):
        return [(key, described(item)) for key, item in value.items()]
    return f"{type(value).__name__} {value!r}"


@pytest.fixture
def small_disk(mounted):
    """A file system of 1 MiB."""
    return mounted("size=1m")


def test_round_trip(tmp_path):
    save_checkpoint(tmp_path / "last.pt", STATE)
    assert described(load_checkpoint(tmp_path / "last.pt")) == described({"format": 2} | STATE)
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_torch_reads_it_too(tmp_path):
    save_checkpoint(tmp_path / "last.pt", STATE)
    for mmap in (False, True):
        state = torch.load(tmp_path / "last.pt", weights_only=True, mmap=mmap)
        assert described(state) == described({"format": 2} | STATE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> tuple[Path, bytes]:
    """A file for checkpoints, and the bytes of `STATE` in it."""
    path = tmp_path_factory.mktemp("damage") / LAST
    save_checkpoint(path, STATE)
    return path, path.read_bytes()


class TestDamage:
    def check(self, whole, damaged: bytes) -> None:
        """A damaged checkpoint raises, or has its original content: some bytes of an archive have no meaning."""
        path, data = whole
        path.write_bytes(damaged)
        try:
            state = load_checkpoint(path)
        except CheckpointError as error:
            assert damaged != data
            assert re.match(rf"checkpoint {path} cannot be read: \S", str(error))  # noqa: PT017 - or no error
        else:
            assert described(state) == described({"format": 2} | STATE)

    @settings(max_examples=400)
    @given(st.data())
    def test_changed_bytes(self, whole, data):
        damaged = bytearray(whole[1])
        for _ in range(data.draw(st.integers(1, 3))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
        self.check(whole, bytes(damaged))

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol")
    def test_every_byte(self, whole):
        """Also those of headers, to which the checksums do not apply."""
        data = whole[1]
        for place in range(len(data)):
            for bits in (0x01, 0x10, 0xFF):  # 0x10 makes a record a folder
                damaged = bytearray(data)
                damaged[place] ^= bits
                self.check(whole, bytes(damaged))

    def test_every_bit_of_a_tensor_counts(self, whole):
        path, data = whole
        weight = STATE["tensors"]["float"].numpy().tobytes()
        start = data.index(weight)
        for bit in range(8 * len(weight)):
            damaged = bytearray(data)
            damaged[start + bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            with pytest.raises(CheckpointError, match=r"it is damaged: the checksum of its record .* does not match"):
                load_checkpoint(path)

    def test_a_seal_of_earlier_versions_does_not_matter(self, whole):
        """They wrote a SHA-256 after the archive."""
        path, data = whole
        sealed = data + b"resnet-dcn sha256 " + hashlib.sha256(data).hexdigest().encode()
        path.write_bytes(sealed)
        assert described(load_checkpoint(path)) == described({"format": 2} | STATE)
        start = data.index(STATE["tensors"]["float"].numpy().tobytes())
        path.write_bytes(sealed[:start] + b"1" + sealed[start + 1 :])
        with pytest.raises(CheckpointError, match="it is damaged"):
            load_checkpoint(path)

    @settings(max_examples=400)
    @given(st.data())
    def test_cut_short(self, whole, data):
        self.check(whole, whole[1][: data.draw(st.integers(0, len(whole[1])))])

    @settings(max_examples=400)
    @given(st.data())
    def test_cut_out(self, whole, data):
        first, last = sorted(data.draw(st.lists(st.integers(0, len(whole[1])), min_size=2, max_size=2)))
        self.check(whole, whole[1][:first] + whole[1][last:])

    @settings(max_examples=400)
    @given(st.data())
    def test_zeros_from_a_lost_page(self, whole, data):
        first, last = sorted(data.draw(st.lists(st.integers(0, len(whole[1])), min_size=2, max_size=2)))
        self.check(whole, whole[1][:first] + bytes(last - first) + whole[1][last:])

    @settings(max_examples=400)
    @given(st.binary(min_size=1, max_size=200) | st.integers(1, 300), st.booleans())
    def test_added(self, whole, more, in_front):
        more = whole[1][-more:] if isinstance(more, int) else more
        self.check(whole, more + whole[1] if in_front else whole[1] + more)

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda data: data[: len(data) // 2], "cannot be read: file is not a zip file; it is truncated or damaged"),
            (lambda data: data[:-1], "cannot be read: file is not a zip file; it is truncated or damaged"),
            (lambda data: b"", r"cannot be read: it is empty \(0 bytes\)"),
            (lambda data: b"no checkpoint" * 99, "cannot be read: it is text, not weights: it starts with 'no check"),
            (
                lambda data: data[:300] + b"damage" + data[306:],
                "cannot be read: it is damaged: the checksum of its record",
            ),
        ],
        ids=["half", "last byte gone", "empty", "text", "overwritten"],
    )
    def test_error_messages(self, whole, damage, said):
        path, data = whole
        path.write_bytes(damage(data))
        with pytest.raises(CheckpointError, match=f"^checkpoint {path} {said}") as caught:
            load_checkpoint(path)
        assert "\n" not in str(caught.value)
        assert "weights_only" not in str(caught.value)  # no advice to run what is inside


@pytest.mark.parametrize(
    ("content", "holds"),
    [
        ({"b": 1, "a": 2, 3: 4}, r"\['b', 'a', 3\]"),
        (torch.zeros(2), "Tensor"),
        ({"format": torch.zeros(2)}, "format"),
        ({"format": "pt"}, "format"),
    ],
)
def test_files_of_others_are_named(tmp_path, content, holds):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(
        CheckpointError, match=f"not written by this project's trainer; it contains .*{holds}"
    ) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_other_versions_are_named(tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    torch.save({"format": 1, "step": 3}, path)  # as the first version did
    said = f"checkpoint {path} was written by another version of this project: its format must be 2, got {{}};"
    with pytest.raises(CheckpointError, match=said.format(1)):
        load_checkpoint(path)
    monkeypatch.setattr(checkpoint, "FORMAT", 3)
    save_checkpoint(path, STATE)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=said.format(3)):
        load_checkpoint(path)


METRICS = {"AP": 0.2, "AP50": 0.4, "AP75": 0.1}


def test_keys_of_version_0_1_have_their_present_names(tmp_path):
    old = {"format": 2, "step": 4, "judged_step": 4, "stale": 1, "figures": METRICS, "window": {"sums": {}, "count": 2}}
    torch.save(old, tmp_path / LAST)
    assert load_checkpoint(tmp_path / LAST) == {
        "format": 2,
        "step": 4,
        "last_eval_step": 4,
        "evals_without_improvement": 1,
        "metrics": METRICS,
        "running_mean": {"sums": {}, "count": 2},
    }


def test_a_missing_file_is_named_as_written_and_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(Path("runs/last.pt"))
    assert str(caught.value) == f"checkpoint runs/last.pt does not exist (resolved: {tmp_path / 'runs/last.pt'})"


def test_a_file_that_the_system_does_not_give(tmp_path, monkeypatch):
    with pytest.raises(
        CheckpointError, match=f"checkpoint {tmp_path} cannot be read: it must be a regular file, got a folder$"
    ):
        load_checkpoint(tmp_path)
    save_checkpoint(tmp_path / LAST, STATE)
    monkeypatch.setattr("models.weights_file._check_records", fail_as_a_broken_disk)
    with pytest.raises(CheckpointError, match=f"checkpoint {tmp_path / LAST} cannot be read: Input/output error$"):
        load_checkpoint(tmp_path / LAST)


class Trap:
    """Creates a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_is_not_run(tmp_path, writer):
    path, proof = tmp_path / "evil.pt", tmp_path / "was_run"
    writer({"format": 2, "step": Trap(proof)}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)
    assert not proof.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)  # the trap does work
    assert proof.exists()


class TestFailingSave:
    def test_a_full_disk(self, small_disk):
        path = small_disk / LAST
        save_checkpoint(path, {"step": 1, "weight": torch.ones(150_000)})  # 0.6 of 1 MiB
        before = path.read_bytes()
        with pytest.raises(CheckpointWriteError) as caught:
            save_checkpoint(path, {"step": 2, "weight": torch.ones(150_000)})
        assert caught.value.errno == errno.ENOSPC
        assert str(caught.value) == (
            f"checkpoint {path} cannot be written: No space left on device; it needs 0.6 MiB, 0.4 MiB are free. "
            "The earlier checkpoints are intact: fix this, then resume with --resume auto"
        )
        assert path.read_bytes() == before
        assert load_checkpoint(path)["step"] == 1
        assert [file.name for file in small_disk.iterdir()] == [LAST]
        save_checkpoint(path, {"step": 3})
        assert load_checkpoint(path)["step"] == 3

    @pytest.mark.parametrize("missing", [0, 1, 2, 3, 10, 39, 40])
    def test_wherever_the_disk_gets_full(self, small_disk, missing):
        """Also on the last of some 40 pages, which only goes to the disk when the file is flushed."""
        checkpoints = Checkpoints(small_disk, {})
        for step in (1, 2):
            checkpoints.save({"step": step, "weight": torch.ones(40_000)}, LAST)
        before = {file.name: file.read_bytes() for file in small_disk.iterdir()}
        pages = -(-(small_disk / LAST).stat().st_size // 4096)
        (small_disk / "others").write_bytes(bytes(shutil.disk_usage(small_disk).free - 4096 * (pages - missing)))
        with pytest.raises(CheckpointWriteError) if missing else contextlib.nullcontext():
            checkpoints.save({"step": 3, "weight": torch.ones(40_000)}, LAST)
        (small_disk / "others").unlink()
        if missing:
            assert {file.name: file.read_bytes() for file in small_disk.iterdir()} == before
        else:
            assert lying_in(small_disk) == {LAST: 3, "step_00000002.pt": 2}

    def test_a_disk_that_cannot_be_written(self, small_disk):
        save_checkpoint(small_disk / LAST, {"step": 1})
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
        with pytest.raises(CheckpointWriteError, match=r"cannot be written: Read-only file system; it needs 0\.0 MiB"):
            save_checkpoint(small_disk / LAST, {"step": 2})
        assert load_checkpoint(small_disk / LAST)["step"] == 1

    def test_a_folder_that_is_gone(self, tmp_path):
        with pytest.raises(CheckpointWriteError, match=r"No such file or directory; .* unknown MiB are free") as caught:
            save_checkpoint(tmp_path / "gone" / LAST, STATE)
        assert caught.value.errno == errno.ENOENT

    @pytest.mark.parametrize("call", [(os, "fsync"), (Path, "replace")])
    @pytest.mark.parametrize("number", [errno.EIO, errno.EDQUOT])
    def test_errors_at_every_step(self, tmp_path, monkeypatch, call, number):
        save_checkpoint(tmp_path / LAST, {"step": 1})
        before = (tmp_path / LAST).read_bytes()

        def fail(*_):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(*call, fail)
        with pytest.raises(CheckpointWriteError, match=os.strerror(number)) as caught:
            save_checkpoint(tmp_path / LAST, {"step": 2})
        assert caught.value.errno == number
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {LAST: before}

    def test_other_errors_are_not_renamed_and_leave_nothing(self, tmp_path):
        with pytest.raises((AttributeError, pickle.PicklingError)):
            save_checkpoint(tmp_path / LAST, {"step": lambda: 1})
        assert list(tmp_path.iterdir()) == []

    def test_the_reported_size_is_that_of_the_file(self, tmp_path):
        save_checkpoint(tmp_path / LAST, STATE)
        assert checkpoint._size_mib({"format": 2, **STATE}) * 2**20 == (tmp_path / LAST).stat().st_size


def test_the_new_file_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace

    def note_fsync(handle):
        is_folder = os.path.samestat(os.fstat(handle), tmp_path.stat())
        done.append("folder" if is_folder else f"{os.fstat(handle).st_size} bytes")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append(to.name), replace(self, to)))
    save_checkpoint(tmp_path / LAST, {"step": 1})
    assert done == [f"{(tmp_path / LAST).stat().st_size} bytes", LAST, *(["folder"] if os.name == "posix" else [])]


class TestNewest:
    @pytest.fixture
    def files(self, tmp_path):
        files = [tmp_path / name for name in (LAST, "step_00000002.pt", BEST)]
        for step, file in zip((3, 2, 1), files, strict=True):
            save_checkpoint(file, {"step": step})
        return files

    def test_the_first_intact_checkpoint_is_loaded(self, files):
        path, state, problems = load_newest(files)
        assert (path, state["step"], problems) == (files[0], 3, [])

    def test_broken_ones_are_named_and_passed_over(self, files):
        files[0].write_bytes(files[0].read_bytes()[:-100])
        files[1].unlink()
        path, state, problems = load_newest(files)
        assert (path, state["step"]) == (files[2], 1)
        assert [problem.split(" ")[1] for problem in problems] == [str(file) for file in files[:2]]
        assert "truncated" in problems[0]
        assert "does not exist" in problems[1]

    def test_none_is_whole(self, files):
        for file in files:
            file.write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"^no intact checkpoint to resume from.* --run-dir") as caught:
            load_newest(files)
        assert [line.split(" ")[4] for line in str(caught.value).splitlines()[1:]] == [str(file) for file in files]


def fail_as_a_broken_disk(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def lying_in(folder) -> dict[str, int]:
    return {file.name: load_checkpoint(file)["step"] for file in sorted(folder.iterdir())}


@pytest.fixture(params=[True, False], ids=["hard links", "no hard links"])
def links(request, monkeypatch):
    """Whether the file system supports hard links."""
    if not request.param:

        def refuse(*_):
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", refuse)
    return request.param


class TestCheckpoints:
    def test_about_and_state(self, tmp_path):
        Checkpoints(tmp_path, {"config": {"a": 1}, "step": 9}).save({"step": 1, "model": {}}, BEST)
        assert load_checkpoint(tmp_path / BEST) == {"format": 2, "config": {"a": 1}, "step": 1, "model": {}}

    @pytest.mark.parametrize("keep", [1, 2, 3])
    def test_the_newest_are_kept(self, tmp_path, keep, links):
        names = ("step_1.pt", "step_000000001.pt", "step_0000000x.pt", "mystep_00000001.pt")
        others = [tmp_path / name for name in names]
        for file in others:
            save_checkpoint(file, {"step": 999})
        checkpoints = Checkpoints(tmp_path, {}, keep=keep)
        checkpoints.save({"step": 0}, BEST)
        for step in (10, 20, 20, 100_000_000, 100_000_010):  # nine digits, too
            checkpoints.save({"step": step}, LAST)
        kept = {"step_100000000.pt": 100_000_000, "step_00000020.pt": 20, "step_00000010.pt": 10}
        expected = {LAST: 100_000_010, BEST: 0} | dict(list(kept.items())[: keep - 1])
        assert lying_in(tmp_path) == expected | dict.fromkeys([file.name for file in others], 999)

    def test_keep_must_be_positive(self, tmp_path):
        with pytest.raises(ValueError, match="at least 1 checkpoint must be kept, got 0"):
            Checkpoints(tmp_path, {}, keep=0)

    def test_the_same_step_is_replaced(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, {}, keep=3)
        for step, figures in ((1, None), (1, METRICS | {"AP": 0.1}), (2, None), (2, METRICS)):
            checkpoints.save({"step": step, "metrics": figures}, LAST)
        assert lying_in(tmp_path) == {LAST: 2, "step_00000001.pt": 1}
        assert load_checkpoint(tmp_path / LAST)["metrics"] == METRICS
        assert load_checkpoint(tmp_path / "step_00000001.pt")["metrics"] == METRICS | {"AP": 0.1}

    def run(self, folder, keep, newest, *steps):
        checkpoints = Checkpoints(folder, {}, keep=keep, newest=newest)
        for step in steps:
            checkpoints.save({"step": step}, LAST)

    def test_going_on_from_last(self, tmp_path, monkeypatch):
        self.run(tmp_path, 3, None, 1, 2, 3)
        monkeypatch.chdir(tmp_path.parent)  # named in another way
        self.run(tmp_path, 3, (Path(tmp_path.name) / LAST, 3), 4)
        assert lying_in(tmp_path) == {LAST: 4, "step_00000003.pt": 3, "step_00000002.pt": 2}

    def test_a_broken_last_is_not_kept(self, tmp_path):
        self.run(tmp_path, 3, None, 1, 2, 3)
        (tmp_path / LAST).write_bytes(b"broken")
        self.run(tmp_path, 3, (tmp_path / "step_00000002.pt", 2), 4)
        assert lying_in(tmp_path) == {LAST: 4, "step_00000002.pt": 2, "step_00000001.pt": 1}
        self.run(tmp_path, 3, (tmp_path / LAST, 4), 5)
        assert lying_in(tmp_path) == {LAST: 5, "step_00000004.pt": 4, "step_00000002.pt": 2}

    def test_a_course_that_is_given_up_goes_with_the_first_save(self, tmp_path, monkeypatch):
        self.run(tmp_path, 4, None, 10, 20, 30, 40)
        checkpoints = Checkpoints(tmp_path, {}, keep=4, newest=(tmp_path / "step_00000010.pt", 10))
        assert lying_in(tmp_path) == {LAST: 40, **{f"step_{step:08d}.pt": step for step in (10, 20, 30)}}
        checkpoints.save({"step": 10}, BEST)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fail_as_a_broken_disk)
            with pytest.raises(CheckpointWriteError):
                checkpoints.save({"step": 15}, LAST)
        assert set(lying_in(tmp_path).values()) == {10, 20, 30, 40}
        checkpoints.save({"step": 15}, LAST)
        assert lying_in(tmp_path) == {LAST: 15, BEST: 10, "step_00000010.pt": 10}
        for step in (25, 35):
            checkpoints.save({"step": step}, LAST)
        assert lying_in(tmp_path) == {LAST: 35, BEST: 10, **{f"step_{step:08d}.pt": step for step in (10, 15, 25)}}

    def test_a_last_that_was_deleted_does_no_harm(self, tmp_path):
        checkpoints = Checkpoints(tmp_path, {})
        for step in (1, 2):
            checkpoints.save({"step": step}, LAST)
        for file in tmp_path.iterdir():
            file.unlink()
        checkpoints.save({"step": 3}, LAST)
        assert lying_in(tmp_path) == {LAST: 3}

    def test_a_save_that_failed_is_made_up_for(self, tmp_path, monkeypatch, links):
        checkpoints = Checkpoints(tmp_path, {})
        for step in (1, 2):
            checkpoints.save({"step": step}, LAST)
        replace = Path.replace
        monkeypatch.setattr(Path, "replace", fail_as_a_broken_disk)  # after the old one has its second name
        with pytest.raises(CheckpointWriteError):
            checkpoints.save({"step": 3}, LAST)
        newest = load_newest(choose_run(tmp_path, "auto", tmp_path)[1])
        assert (newest[1]["step"], newest[2]) == (2, [])
        monkeypatch.setattr(Path, "replace", replace)
        checkpoints.save({"step": 4}, LAST)
        assert lying_in(tmp_path) == {LAST: 4, "step_00000002.pt": 2}

    @pytest.fixture
    def seen(self, tmp_path, monkeypatch):
        """The checkpoints in the folder after every change of a name."""
        seen = []
        for name in ("link", "rename", "replace", "unlink"):
            original = getattr(os, name)

            def look(*args, original=original):
                try:
                    return original(*args)
                finally:
                    there = {file.name: load_checkpoint(file)["step"] for file in sorted(tmp_path.glob("*.pt"))}
                    if there and [there] != seen[-1:]:
                        seen.append(there)

            monkeypatch.setattr(os, name, look)
        return seen

    def test_every_change_of_a_name_leaves_a_whole_one(self, tmp_path, links, seen):
        self.run(tmp_path, 2, None, 1, 2, 3)
        first, second = {"step_00000001.pt": 1}, {"step_00000002.pt": 2}
        assert seen == [
            {LAST: 1},
            ({LAST: 1} if links else {}) | first,
            {LAST: 2} | first,
            ({LAST: 2} if links else {}) | first | second,
            {LAST: 3} | first | second,
            {LAST: 3} | second,
        ]

    def test_last_is_there_also_where_the_second_name_exists(self, tmp_path, seen):
        self.run(tmp_path, 3, None, 1, 2, 3)
        del seen[:]
        self.run(tmp_path, 3, (tmp_path / "step_00000002.pt", 2), 2, 3)
        assert all(LAST in there for there in seen)
        assert seen[-1] == {LAST: 3, "step_00000002.pt": 2, "step_00000001.pt": 1}

    def test_one_that_is_not_kept_has_no_second_name(self, tmp_path, links, seen):
        self.run(tmp_path, 1, None, 1, 2, 3)
        assert seen == [{LAST: 1}, {LAST: 2}, {LAST: 3}]

    def test_an_old_one_that_cannot_be_removed_stops_nothing(self, tmp_path, monkeypatch):
        checkpoints = Checkpoints(tmp_path, {})
        unlink = Path.unlink

        def fail(self, missing_ok=False):
            if not missing_ok:
                raise OSError(errno.EIO, "Input/output error")
            unlink(self, missing_ok)

        monkeypatch.setattr(Path, "unlink", fail)
        for step in (1, 2, 3):
            checkpoints.save({"step": step}, LAST)
        monkeypatch.undo()
        checkpoints.save({"step": 4}, LAST)
        assert lying_in(tmp_path) == {LAST: 4, "step_00000003.pt": 3}


def save_for_ever(folder, newest, pipe) -> None:
    checkpoints, step = Checkpoints(folder, {}, newest=newest), newest[1] if newest else 0
    while True:
        step += 1
        checkpoints.save({"step": step, "weight": torch.full((30_000,), float(step))}, LAST)
        if step % 3 == 0:
            checkpoints.save({"step": step, "weight": torch.full((30_000,), float(step))}, BEST)
        pipe.send(step)


@pytest.mark.skipif(sys.platform == "win32", reason="knows no fork")
def test_killed_at_any_moment(tmp_path, links):
    """Kill the process at random times: each reported checkpoint exists and is intact."""
    context, chance = multiprocessing.get_context("fork"), random.Random(0)
    newest, told, partials = None, 0, 0
    for _ in range(30):
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=save_for_ever, args=(tmp_path, newest, sender), daemon=True)
        process.start()
        sender.close()
        assert receiver.poll(600)
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        process.join()
        with contextlib.suppress(EOFError):
            while True:
                told = receiver.recv()
        partials += bool([*tmp_path.glob(f"{LAST}.*.partial")])
        path, state, problems = load_newest(choose_run(tmp_path, "auto", tmp_path)[1])
        assert problems == []
        assert state["step"] in (told, told + 1)
        assert torch.equal(state["weight"], torch.full((30_000,), float(state["step"])))
        assert path.name == LAST or not links
        newest = (path, state["step"])
    assert partials > 3  # it was killed within saves
    Checkpoints(tmp_path, {}, newest=newest).save(state, LAST)
    assert not [*tmp_path.glob("*.partial")]
