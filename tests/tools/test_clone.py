"""tools/_clone.py: what ends with a message, what with a traceback, and a torchvision that does not fit."""

import importlib.util
import json
import os
import shutil
import signal
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from data import CocoDetection, eval_transform, load_annotations, train_loader
from engine.config.loading import ConfigError
from engine.training.update import NonFiniteError

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def clone(monkeypatch, interrupts):
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("clone_under_test", TOOLS / "_clone.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def raises(error: BaseException):
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("`lr` must be positive, got 0"), 2, "error: `lr` must be positive, got 0\n"),
        (ConfigError("bad.yaml: ..."), 2, "error: bad.yaml: ...\n"),
        (FileNotFoundError(2, "No such file or directory", "a.txt"), 2, "error: [Errno 2] No such file"),
        (PermissionError(13, "Permission denied", "a.txt"), 2, "error: [Errno 13] Permission denied: 'a.txt'\n"),
        (NonFiniteError("step 3 is not finite"), 1, "error: step 3 is not finite\n"),
    ],
)
def test_errors_that_end_with_a_message(clone, capsys, error, code, said):
    with pytest.raises(SystemExit) as end:
        clone.run(raises(error))
    assert end.value.code == code
    assert capsys.readouterr().err.startswith(said)


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("train.py", "\nstopped by the user; resume with --resume auto\n"),
        ("eval.py", "\nstopped by the user\n"),
        ("train.py/eval.py", "\nstopped by the user\n"),
    ],
)
def test_only_training_prints_how_to_resume(clone, capsys, monkeypatch, script, said):
    monkeypatch.setattr(sys, "argv", [f"/some/where/{script}", "--config", "train"])
    with pytest.raises(SystemExit) as end:
        clone.run(raises(KeyboardInterrupt()))
    assert end.value.code == 1
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(("rank", "said"), [("0", "error: "), ("1", "process 1: error: "), ("", "error: ")])
def test_only_training_and_evaluation_run_in_several_processes(clone, capsys, monkeypatch, rank, said):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", "2")
    called = []
    with pytest.raises(SystemExit) as end:
        clone.run(lambda: called.append(1))
    assert (end.value.code, called) == (2, [])
    assert capsys.readouterr().err.startswith(said)
    clone.run(lambda: called.append(1), distributed=True)
    assert called == [1]


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyError("bug"), TypeError("bug"), AssertionError("bug")])
def test_bugs_come_through(clone, error):
    with pytest.raises(type(error), match="bug"):
        clone.run(raises(error))


def test_a_value_error_of_a_library_is_a_bug(clone):
    with pytest.raises(json.JSONDecodeError):
        clone.run(lambda: json.loads("{"))
    with pytest.raises(ValueError, match="optimizer got an empty parameter list"):
        clone.run(lambda: torch.optim.SGD([], lr=1.0))


def test_an_error_met_in_a_loader_worker_is_reported_without_its_traceback(clone, capsys, shapes, tmp_path):
    folder = shutil.copytree(shapes / "train", tmp_path / "train")
    split = load_annotations(folder, shapes / "annotations/train.json")
    dataset = CocoDetection(split, eval_transform())
    gone = folder / split.arrays.file_name(0)
    gone.unlink()  # after the check
    loader = train_loader(dataset, batch_size=2, workers=1, seed=0)
    with pytest.raises(SystemExit) as end:
        clone.run(lambda: list(loader))
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: image {gone} does not exist\n"


def test_a_bug_in_its_own_process_keeps_its_traceback(run_process, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(TOOLS)!r}); import _clone\ndef main(): raise RuntimeError('a bug')\n"
    result = run_process("-c", code + "_clone.run(main)", cwd=tmp_path)
    assert result.code == 1
    assert result.err.startswith("Traceback")
    assert result.err.endswith("RuntimeError: a bug\n")


@pytest.mark.slow
def test_a_torchvision_of_another_torch_is_explained(run_process, tmp_path):
    stub = tmp_path / "torchvision"
    stub.mkdir()
    (stub / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    result = run_process(TOOLS / "make_shapes.py", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (result.code, result.out) == (2, "")
    assert "Traceback" not in result.err
    first, *rest = result.err.splitlines()
    assert first.startswith(f"torch {version('torch')} and torchvision {version('torchvision')} ")
    assert first.endswith("do not match: operator torchvision::nms does not exist.")
    text = " ".join(rest)
    assert "pip install --force-reinstall torch torchvision" in text
    assert "--index-url https://download.pytorch.org/whl/cpu" in text
    assert not (tmp_path / "datasets").exists()


def test_a_cpu_torchvision_beside_a_gpu_is_explained(clone, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.torchvision, "_cuda_version", lambda: -1)
    with pytest.raises(SystemExit) as end:
        clone.check_torchvision()
    assert end.value.code == 2
    assert "this torchvision was built for the CPU only" in capsys.readouterr().err
    monkeypatch.setattr(torch.ops.torchvision, "_cuda_version", lambda: 13000)
    clone.check_torchvision()


def test_a_missing_package_is_reported_with_what_to_install(clone, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    with pytest.raises(SystemExit) as end:
        clone.check_torchvision()
    assert end.value.code == 2
    assert f"pip install -r {TOOLS.parent / 'requirements.txt'}" in capsys.readouterr().err


STUB = """
import time
print("importing", flush=True)
try:
    time.sleep(600)
except BaseException:
    pass  # as an import does that takes every exception for a missing package
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends other signals")
@pytest.mark.parametrize("tool", sorted(file.name for file in TOOLS.glob("[!_]*.py")))
def test_an_interrupt_during_imports_ends_a_tool_with_one_line(start_process, tmp_path, tool):
    (tmp_path / "torch.py").write_text(STUB)
    process = start_process(TOOLS / tool, "--help", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "\nstopped by the user\n")
    assert process.returncode == 1


EXIT = """
import sys; sys.path.insert(0, {tools!r}); import _clone
import atexit, os, signal
def interrupt(): os.kill(os.getpid(), signal.SIGINT)
def main():
    atexit.register(interrupt)
    if {twice}: interrupt()
_clone.run(main)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends other signals")
@pytest.mark.parametrize("twice", [False, True])
def test_an_interrupt_at_the_end_leaves_no_traceback(run_process, tmp_path, twice):
    result = run_process("-c", EXIT.format(tools=str(TOOLS), twice=twice), cwd=tmp_path)
    assert (result.code, result.err) == (1, "\nstopped by the user\n" * (1 + twice))


@pytest.mark.skipif(sys.platform == "win32", reason="sends other signals")
def test_a_tool_that_runs_in_the_background_ignores_interrupts(clone, interrupts):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    clone.run(lambda: os.kill(os.getpid(), signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
