"""Devices, available or not, and their description."""

import subprocess

import pytest
import torch

from engine.devices import environment
from engine.devices.environment import describe, git_revision, peak_memory_gib, pick_device
from engine.distributed.processes import DistributedContext


def test_auto_takes_what_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *arguments, **options: None)
    assert pick_device("auto") == torch.device("cuda")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    "name", ["cuda:99", "hpu", "mps" if not torch.backends.mps.is_available() else "xla", "gpu", ""]
)
def test_devices_that_are_not_there(name):
    with pytest.raises(ValueError, match=r"is not available: \w+") as caught:
        pick_device(name)
    assert repr(name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch, "empty", lambda *arguments, **options: None)
    distributed = DistributedContext(rank=5, size=6, local_rank=1, local_size=2)
    assert pick_device("auto", distributed) == pick_device("cuda", distributed) == torch.device("cuda:1")
    assert taken == [torch.device("cuda:1")] * 2
    assert pick_device("cpu", distributed) == torch.device("cpu")
    with pytest.raises(ValueError, match="4 processes on this machine need 4 GPUs, but 2 are available"):
        pick_device("auto", DistributedContext(rank=0, size=4, local_size=4))
    with pytest.raises(ValueError, match="device must be auto, cpu or cuda for 6 processes, got 'cuda:0'"):
        pick_device("cuda:0", distributed)


def test_description_and_memory():
    text = describe(torch.device("cpu"))
    assert text.startswith("cpu (")
    assert f"torch {torch.__version__}, " in text
    assert 0.05 < peak_memory_gib(torch.device("cpu")) < 100


def test_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_revision() == "unknown"
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@t"]
    (tmp_path / "environment.py").write_text("1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], check=True)
    clean = git_revision()
    assert len(clean) >= 7
    assert "dirty" not in clean
    (tmp_path / "environment.py").write_text("2")
    assert git_revision() == f"{clean}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_revision() == "unknown"
