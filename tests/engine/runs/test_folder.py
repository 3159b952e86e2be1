"""The folder of a run, and the checkpoint that it resumes from."""

import errno
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from engine.runs.folder import BEST, LAST, RunFolderError, choose_run, lock_run, step_file, step_files


@pytest.fixture
def start_process():
    """Start Python on a piece of code, in the clone."""
    processes = []

    def start(code):
        root = Path(__file__).parents[3]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen([sys.executable, "-c", code], cwd=root, stdin=pipe, stdout=pipe, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty `new/`, and the runs `old/`, `lost/` that lost last.pt, and `young/` that has no checkpoint yet."""
    monkeypatch.chdir(tmp_path)
    for name in ("new", "old", "young", "lost"):
        (tmp_path / name).mkdir()
    steps = (900, 123456789, 20000000)
    for name in (LAST, BEST, *map(step_file, steps), "step_7.pt", "step_x.pt", "step_000000008.pt", "last.pt.partial"):
        (tmp_path / "old" / name).touch()
    (tmp_path / "old" / step_file(2000)).mkdir()
    for name in (BEST, step_file(5)):
        (tmp_path / "lost" / name).touch()
    for name in ("config.yaml", "train.log", "last.pt.partial"):
        (tmp_path / "young" / name).touch()
    (tmp_path / "a_file").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "resume", "expected"),
    [
        (None, None, ("runs/tiny",)),
        ("absent", None, ("absent",)),
        ("new", None, ("new",)),
        (None, "auto", ("runs/tiny",)),
        ("new", "auto", ("new",)),
        ("young", "auto", ("young",)),
        ("old", "auto", ("old", LAST, "step_123456789.pt", "step_20000000.pt", "step_00000900.pt", BEST)),
        ("lost", "auto", ("lost", "step_00000005.pt", BEST)),
    ],
)
def test_choices(place, folder, resume, expected):
    before = sorted(place.rglob("*"))
    found = choose_run(Path(folder) if folder else None, resume, Path("runs/tiny"))
    assert found == (Path(expected[0]), [Path(expected[0], name) for name in expected[1:]])
    assert sorted(place.rglob("*")) == before


@pytest.mark.parametrize(("folder", "chosen"), [(None, "old"), ("old", "old"), ("new", "new"), ("absent", "absent")])
def test_a_checkpoint_that_is_named_is_the_only_one(place, folder, chosen):
    found = choose_run(Path(folder) if folder else None, "old/best.pt", Path("runs/tiny"))
    assert found == (Path(chosen), [Path("old/best.pt")])


def test_step_files_are_known_by_their_names(place):
    assert step_files(place / "old") == {step: place / "old" / step_file(step) for step in (123456789, 20000000, 900)}
    assert list(step_files(place / "old")) == [123456789, 20000000, 900]
    assert step_files(place / "absent") == {}


@pytest.mark.parametrize(
    ("folder", "resume", "said"),
    [
        ("old", None, "run folder old is not empty, and runs are never overwritten: .*--resume auto"),
        ("young", None, "run folder young is not empty"),
        ("young", "old/best.pt", "run folder young is not empty"),
        ("a_file", None, "run folder a_file is a file"),
        ("a_file", "auto", "run folder a_file is a file"),
        (None, "absent.pt", r"checkpoint absent.pt does not exist \(resolved: /.*/absent.pt\)"),
        (None, "old", "checkpoint old does not exist"),
    ],
)
def test_run_folder_errors(place, folder, resume, said):
    with pytest.raises(RunFolderError, match=said):
        choose_run(Path(folder) if folder else None, resume, Path("runs/tiny"))


def test_the_default_folder_is_guarded_too(place):
    with pytest.raises(RunFolderError, match="not empty"):
        choose_run(None, None, place / "old")


@pytest.mark.skipif(sys.platform == "win32", reason="knows no locks on folders")
def test_a_run_folder_has_one_owner_until_its_process_ends(tmp_path, start_process):
    folder = tmp_path / "deep/run"
    code = (
        "from pathlib import Path; from engine.runs.folder import lock_run\n"
        f"with lock_run(Path({str(folder)!r})): print('mine', flush=True), input()"
    )
    owner = start_process(code)
    assert owner.stdout.readline() == "mine\n"
    with pytest.raises(RunFolderError, match=rf"another process trains in run folder {folder}: wait until it ends"):
        lock_run(folder).__enter__()
    owner.kill()
    owner.wait()
    for _ in range(2):
        with lock_run(folder):
            pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_lock_ends_with_its_process_although_a_child_lives_on(tmp_path, start_process):
    """As loader workers do, which end some seconds after a trainer that was killed."""
    code = (
        "import os, sys, time; from pathlib import Path; from engine.runs.folder import lock_run\n"
        f"with lock_run(Path({str(tmp_path)!r})):\n"
        "    child = os.fork()\n"
        "    print(child or '', end='', flush=True)\n"
        "    child or time.sleep(600)\n"
        "    print(flush=True)\n"
        "    input()"
    )
    owner = start_process(code)
    child = int(owner.stdout.readline())
    with pytest.raises(RunFolderError, match="another process trains"):
        lock_run(tmp_path).__enter__()
    owner.kill()
    owner.wait()
    try:
        with lock_run(tmp_path):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="knows no locks on folders")
@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with lock_run(tmp_path):
        pass
    assert f"run folder {tmp_path} cannot be locked ({os.strerror(number)}): make sure that no" in caplog.text


@pytest.mark.parametrize("resume", [None, "auto", "best.pt"])
@pytest.mark.parametrize("name", [LAST, BEST, "config.yaml", "train.log", "metrics.jsonl", "checked_images.json"])
@pytest.mark.parametrize("kind", ["a folder", "a link that leads nowhere", "a special file"])
def test_something_else_in_the_place_of_a_file_of_the_run(place, name, kind, resume):
    path = place / "new" / name
    if kind == "a folder":
        path.mkdir()
    elif kind == "a special file":
        os.mkfifo(path)
    else:
        path.symlink_to(name)
    resume = resume and resume.replace("best", str(place / "old/best"))
    with pytest.raises(RunFolderError, match=f"{path} must be a file of the run, and is {kind}: remove it, or choose"):
        choose_run(place / "new", resume, None)


class TestFoldersThatCannotBeWritten:
    def check(self, folder, reason):
        said = rf"run folder {folder} cannot be created or written: {reason}\. .* --run-dir"
        with pytest.raises(RunFolderError, match=said):
            lock_run(folder).__enter__()

    def test_read_only(self, mounted):
        folder = mounted("size=1m,ro")
        self.check(folder, "Read-only file system")
        self.check(folder / "run", "Read-only file system")

    def test_full(self, mounted):
        folder = mounted("size=64k")
        with lock_run(folder / "run"):
            assert list((folder / "run").iterdir()) == []
        (folder / "others").write_bytes(bytes(shutil.disk_usage(folder).free))
        self.check(folder / "run", "No space left on device")

    @pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
    def test_a_name_that_cannot_be(self, place, name):
        with pytest.raises(RunFolderError, match=r"run folder a\\(x00|ud800)b cannot be created or written: "):
            lock_run(*choose_run(Path(name), "auto", None)[:1]).__enter__()

    @pytest.mark.parametrize("target", ["loop", "absent"])
    def test_a_link_to_no_folder(self, place, target):
        (place / "loop").symlink_to(target)
        with pytest.raises(RunFolderError, match="run folder loop is a link that leads to no folder: remove it"):
            lock_run(Path("loop")).__enter__()

    def test_in_a_file(self, place):
        self.check(place / "a_file/run", "Not a directory")

    @pytest.mark.skipif(sys.platform == "win32", reason="knows other rights")
    def test_forbidden(self, place):
        (place / "new").chmod(0o500)
        user = os.geteuid()
        if user == 0:  # to whom nothing is forbidden
            os.seteuid(65534)
        try:
            self.check(place / "new", "Permission denied")
        finally:
            os.seteuid(user)

    @pytest.mark.parametrize("call", ["mkdir", "open", "fsync"])
    @pytest.mark.parametrize("number", [errno.EACCES, errno.EDQUOT, errno.EIO])
    def test_a_folder_that_cannot_be_written(self, place, monkeypatch, call, number):
        def refuse(*_, **__):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, call, refuse)
        self.check(place / "absent", os.strerror(number))
