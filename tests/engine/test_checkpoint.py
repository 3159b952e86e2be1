"""Checkpoints: always whole, never code, and refused by name where they do not fit."""

import contextlib
import os
import pickle
from pathlib import Path

import pytest
import torch

from engine.checkpoint import (
    CheckpointError,
    check_categories,
    check_same_model,
    check_same_optimizer,
    load_checkpoint,
    save_checkpoint,
)


def test_round_trip(tmp_path):
    state = {"model": {"w": torch.arange(3.0)}, "step": 3, "figures": {"AP": float("nan")}, "config": {"a": [1, None]}}
    save_checkpoint(tmp_path / "last.pt", state)
    loaded = load_checkpoint(tmp_path / "last.pt")
    assert loaded["model"]["w"].tolist() == [0, 1, 2]
    assert (loaded["step"], loaded["config"]) == (3, {"a": [1, None]})
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]


def test_a_failing_save_leaves_the_old_file_whole(tmp_path, monkeypatch):
    save_checkpoint(tmp_path / "last.pt", {"step": 1})
    before = (tmp_path / "last.pt").read_bytes()

    def full_disk(state, file):
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path / "last.pt", {"step": 2})
    assert (tmp_path / "last.pt").read_bytes() == before
    monkeypatch.undo()
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 1
    save_checkpoint(tmp_path / "last.pt", {"step": 2})
    assert load_checkpoint(tmp_path / "last.pt")["step"] == 2


def test_the_new_file_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), fsync(file)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append(to.name), replace(self, to)))
    save_checkpoint(tmp_path / "last.pt", {"step": 1})
    assert done == ["fsync", "last.pt"]


def whole(path: Path) -> bytes:
    torch.save({"format": 1, "weight": torch.zeros(1000)}, path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: data[:-1], lambda data: b"", lambda data: b"no checkpoint" * 99],
    ids=["half", "last byte gone", "empty", "text"],
)
def test_broken_files_are_named(tmp_path, damage):
    path = tmp_path / "last.pt"
    path.write_bytes(damage(whole(path)))
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "holds"), [({"b": 1, "a": 2}, r"\['a', 'b'\]"), (torch.zeros(2), "Tensor"), ({"format": 99}, "format")]
)
def test_files_of_others_are_named(tmp_path, content, holds):
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=f"not written by this project's trainer; it holds .*{holds}") as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named_as_written_and_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(Path("runs/last.pt"))
    assert str(caught.value) == f"checkpoint runs/last.pt does not exist (resolved: {tmp_path / 'runs/last.pt'})"


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_is_not_run(tmp_path, writer):
    path, proof = tmp_path / "evil.pt", tmp_path / "was_run"
    writer({"format": 1, "step": Trap(proof)}, path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_checkpoint(path)
    assert not proof.exists()
    with contextlib.suppress(RuntimeError):
        torch.load(path, weights_only=False)  # the trap does work
    assert proof.exists()


def test_categories():
    state = {"category_ids": [1, 3], "class_names": ["cat", "dog"]}
    where = (Path("last.pt"), Path("val.json"))
    check_categories(state, ["cat", "dog"], [1, 3], *where)
    with pytest.raises(
        CheckpointError, match=r"2 categories of checkpoint last.pt are not the 2 of val.json"
    ) as caught:
        check_categories(state, ["cat", "cow"], [1, 3], *where)
    assert "(3, 'dog') in the checkpoint and (3, 'cow') in the file" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"\(3, 'dog'\) in the checkpoint and \(2, 'dog'\)"):
        check_categories(state, ["cat", "dog"], [1, 2], *where)
    with pytest.raises(CheckpointError, match=r"the 2 categories .* are not the 3 of"):
        check_categories(state, ["cat", "dog", "hen"], [1, 3, 4], *where)


def test_another_model_is_told_key_by_key():
    saved = {
        "detector": "faster_rcnn",
        "dcn_backend": "auto",
        "backbone": {"name": "resnet18", "weights": "DEFAULT", "dcn_v2_stages": [4]},
    }
    state = {"config": {"model": saved}}
    asked = saved | {"dcn_backend": "reference", "backbone": saved["backbone"] | {"weights": None}}
    asked["faster_rcnn"] = {"score_threshold": 0.5, "nms_threshold": 0.6, "rpn_proposals_test": 50}
    check_same_model(state, {"model": asked}, Path("last.pt"))  # how it is computed, started or judged may differ
    asked["backbone"] = asked["backbone"] | {"name": "resnet50", "dcn_v2_stages": []}
    with pytest.raises(CheckpointError) as caught:
        check_same_model(state, {"model": asked}, Path("last.pt"))
    assert str(caught.value).splitlines() == [
        "last.pt is of another model than the config:",
        "  - model.backbone.name: 'resnet18' in the checkpoint, 'resnet50' in the config",
        "  - model.backbone.dcn_v2_stages: [4] in the checkpoint, [] in the config",
    ]


def test_another_optimizer_is_refused():
    state = {"config": {"train": {"optimizer": "sgd", "lr": 0.1}}}
    check_same_optimizer(state, {"train": {"optimizer": "sgd", "lr": 0.2}}, Path("last.pt"))
    with pytest.raises(CheckpointError, match="'sgd' in the checkpoint, 'adamw' in the config"):
        check_same_optimizer(state, {"train": {"optimizer": "adamw", "lr": 0.1}}, Path("last.pt"))
