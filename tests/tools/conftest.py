"""Runs the tools: within this process where that is enough, as real processes where it is not."""

import contextlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
# before a process counts as hanging: far more than it takes, since a busy machine is no fault
PATIENCE_S = 600


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def run_tool():
    """`run_tool("train", *arguments, cwd=...)` runs a tool's file as `__main__` here; a bug's error comes through."""

    def run(tool: str, *arguments, cwd: Path | None = None) -> Result:
        out, err, code = io.StringIO(), io.StringIO(), 0
        file = TOOLS / f"{tool}.py"
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            interrupt = signal.getsignal(signal.SIGINT)
            patch.setattr(sys, "argv", [str(file), *map(str, arguments)])
            patch.syspath_prepend(str(TOOLS))
            if cwd:
                patch.chdir(cwd)
            try:
                runpy.run_path(str(file), run_name="__main__")
            except SystemExit as end:
                code = end.code or 0
            finally:
                signal.signal(signal.SIGINT, interrupt)
        return Result(code, out.getvalue(), err.getvalue())

    return run


@pytest.fixture
def interrupts():
    """Restore the handler of Ctrl-C, which the tools set."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def heed_signals() -> None:
    """Restore the signals that a process can inherit as ignored."""
    for name in ("SIGINT", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


@pytest.fixture(scope="session")
def start_process():
    """`start_process(*arguments, cwd=...)` starts Python without a PYTHONPATH, as in a plain clone."""
    processes = []

    def start(*arguments, cwd: Path, **variables: str) -> subprocess.Popen:
        env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | variables
        command = [sys.executable, *map(str, arguments)]
        # a shell in the background ignores interrupts, and nohup SIGHUP; so would what the tests start
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=heed_signals,
        )
        processes.append(process)
        return process

    yield start
    for process in processes:  # those of tests that failed
        process.kill()


@pytest.fixture(scope="session")
def run_process(start_process):
    """As `start_process`, waiting for the end."""

    def run(*arguments, cwd: Path, **variables: str) -> Result:
        process = start_process(*arguments, cwd=cwd, **variables)
        out, err = process.communicate(timeout=PATIENCE_S)
        return Result(process.returncode, out, err)

    return run


@pytest.fixture(scope="session")
def wait_until():
    """`wait_until(condition, process)`: for what a living process is to do."""

    def wait(condition: Callable[[], bool], process: subprocess.Popen) -> None:
        give_up = time.monotonic() + PATIENCE_S
        while not condition():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < give_up
            time.sleep(0.01)

    return wait


@pytest.fixture
def held(tmp_path):
    """`held(step)`: arguments before those of a training, which waits after that step until there is a file `go`."""
    return lambda step: [Path(__file__).with_name("hold.py"), step, tmp_path / "go"]


@pytest.fixture(scope="session")
def elsewhere(run_process, tiny_config, make_once) -> Path:
    """The working directory of a whole training in a process of its own, into runs/tiny; said.json is its `Result`."""

    def train(folder: Path) -> None:
        result = run_process(TOOLS / "train.py", "--config", tiny_config, "data.num_workers=1", cwd=folder)
        (folder / "said.json").write_text(json.dumps(result))

    return make_once("elsewhere", train)


@pytest.fixture(scope="session")
def first_process(elsewhere) -> Result:
    """What that training said."""
    return Result(*json.loads((elsewhere / "said.json").read_text()))


@pytest.fixture(scope="session")
def plain_run(first_process, elsewhere) -> Path:
    """Folder of a finished run; read it, do not change it."""
    assert first_process.code == 0, first_process.err
    return elsewhere / "runs/tiny"


@pytest.fixture(scope="session")
def dcn_run(run_tool, tiny_config, make_once) -> Path:
    """Folder of a finished run with DCN; read it, do not change it."""

    def train(folder: Path) -> None:
        options = ["--run-dir", folder / "tiny_dcn", "model.backbone.dcn_v2_stages=[2]", "train.epochs=1"]
        result = run_tool("train", "--config", tiny_config, *options)
        assert result.code == 0, result.err

    return make_once("dcn_runs", train) / "tiny_dcn"


@pytest.fixture
def small_files():
    """`small_files(size)`: a context in which no file of this process can grow beyond `size` bytes."""
    import resource  # not on Windows

    @contextlib.contextmanager
    def limit(size: int):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limit


@pytest.fixture(scope="session")
def files_of():
    """What lies in a folder, to see that nothing changed."""
    return lambda folder: {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
