"""Which folder a run gets, and which checkpoint it goes on from."""

import subprocess
import sys
from pathlib import Path

import pytest

from engine.runs import RunFolderError, choose_run, own_run


@pytest.fixture
def start_process():
    """Start Python on a piece of code, in the clone."""
    processes = []

    def start(code):
        root = Path(__file__).parents[2]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen([sys.executable, "-c", code], cwd=root, stdin=pipe, stdout=pipe, text=True))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an empty `new/`, a run `old/` with last.pt, and a run `young/` that has no checkpoint yet."""
    monkeypatch.chdir(tmp_path)
    for name in ("new", "old", "young"):
        (tmp_path / name).mkdir()
    (tmp_path / "old/last.pt").touch()
    (tmp_path / "old/best.pt").touch()
    (tmp_path / "young/config.yaml").touch()
    (tmp_path / "a_file").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "resume", "expected"),
    [
        (None, None, ("runs/tiny", None)),
        ("absent", None, ("absent", None)),
        ("new", None, ("new", None)),
        (None, "auto", ("runs/tiny", None)),
        ("new", "auto", ("new", None)),
        ("young", "auto", ("young", None)),
        ("old", "auto", ("old", "old/last.pt")),
        (None, "old/best.pt", ("old", "old/best.pt")),
        ("old", "old/best.pt", ("old", "old/best.pt")),
        ("new", "old/best.pt", ("new", "old/best.pt")),
        ("absent", "old/best.pt", ("absent", "old/best.pt")),
    ],
)
def test_choices(place, folder, resume, expected):
    found = choose_run(Path(folder) if folder else None, resume, Path("runs/tiny"))
    assert found == (Path(expected[0]), Path(expected[1]) if expected[1] else None)
    assert sorted(path.name for path in place.iterdir()) == ["a_file", "new", "old", "young"]


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
def test_refusals(place, folder, resume, said):
    with pytest.raises(RunFolderError, match=said):
        choose_run(Path(folder) if folder else None, resume, Path("runs/tiny"))


def test_the_default_folder_is_guarded_too(place):
    with pytest.raises(RunFolderError, match="not empty"):
        choose_run(None, None, place / "old")


@pytest.mark.skipif(sys.platform == "win32", reason="knows no locks on folders")
def test_a_run_folder_has_one_owner_until_its_process_ends(tmp_path, start_process):
    folder = tmp_path / "deep/run"
    code = (
        "from pathlib import Path; from engine.runs import own_run\n"
        f"with own_run(Path({str(folder)!r})): print('mine', flush=True), input()"
    )
    owner = start_process(code)
    assert owner.stdout.readline() == "mine\n"
    with pytest.raises(RunFolderError, match=rf"another process trains in run folder {folder}: wait for its end"):
        own_run(folder).__enter__()
    owner.kill()
    owner.wait()
    for _ in range(2):
        with own_run(folder):
            pass
