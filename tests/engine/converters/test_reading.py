"""Files of other frameworks to tensors, and never to code."""

import collections
import os
import pickle
import re
import sys
import types

import numpy as np
import pytest
import torch

from engine.converters.reading import read_source_checkpoint

WEIGHT = torch.arange(6.0).reshape(2, 3)


@pytest.mark.parametrize(
    "content",
    [
        {"conv.weight": WEIGHT},
        collections.OrderedDict({"conv.weight": WEIGHT}),
        {"state_dict": {"conv.weight": WEIGHT}, "meta": {"epoch": 12}},
        {"model": {"conv.weight": WEIGHT}, "optimizer": {"state": {0: {"momentum_buffer": WEIGHT}}}, "iteration": 9},
        {"module.conv.weight": WEIGHT},
        {"state_dict": {"conv.weight": torch.nn.Parameter(WEIGHT), "note": "text"}},
    ],
)
def test_tensors_of_pytorch(content, tmp_path):
    torch.save(content, tmp_path / "x.pth")
    tensors = read_source_checkpoint(tmp_path / "x.pth").tensors
    assert [*tensors] == ["conv.weight"]
    assert torch.equal(tensors["conv.weight"], WEIGHT)


def test_the_old_form_of_pytorch(tmp_path):
    torch.save({"conv.weight": WEIGHT}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_source_checkpoint(tmp_path / "x.pt").tensors["conv.weight"], WEIGHT)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        (".pkl", {"model": {"conv.weight": WEIGHT.numpy()}, "__author__": "a zoo", "matching_heuristics": True}),
        (".pdparams", {"conv.weight": WEIGHT.numpy(), "StructuredToParameterName@@": {"conv.weight": "conv2d_0.w_0"}}),
    ],
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_of_numpy(suffix, content, protocol, tmp_path):
    file = tmp_path / f"x{suffix}"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    tensors = read_source_checkpoint(file).tensors
    assert [*tensors] == ["conv.weight"]
    assert torch.equal(tensors["conv.weight"], WEIGHT)


@pytest.fixture
def history(monkeypatch):
    """mmengine's class of losses, as far as pickles see it; gone when the file is read."""
    package = types.ModuleType("mmengine.logging.history_buffer")

    class HistoryBuffer:
        def __init__(self):
            self._log_history, self._max_length = np.array([1.5, 2.5]), 1000
            self.methods = {"min": getattr}

        def mean(self):
            return 2

    HistoryBuffer.__module__, HistoryBuffer.__qualname__ = package.__name__, "HistoryBuffer"
    HistoryBuffer.mean.__module__, HistoryBuffer.mean.__qualname__ = package.__name__, "HistoryBuffer.mean"
    package.HistoryBuffer = HistoryBuffer
    monkeypatch.setitem(sys.modules, "mmengine", types.ModuleType("mmengine"))
    monkeypatch.setitem(sys.modules, "mmengine.logging", types.ModuleType("mmengine.logging"))
    monkeypatch.setitem(sys.modules, package.__name__, package)
    buffer = HistoryBuffer()
    buffer.methods = {"mean": HistoryBuffer.mean}  # pickled as getattr(HistoryBuffer, "mean")
    return buffer


def test_a_checkpoint_of_training_with_mmdetection(history, tmp_path, monkeypatch):
    meta = {"cfg": "model = dict(style='caffe')", "dataset_meta": {"classes": ("cat", "dog")}, "seed": np.int64(3)}
    hub = {"log_scalars": {"train/loss": history}, "runtime_info": {"epoch": 3, "losses": np.ones(3)}}
    torch.save({"meta": meta, "state_dict": {"conv.weight": WEIGHT}, "message_hub": hub}, tmp_path / "x.pth")
    for name in ("mmengine", "mmengine.logging", "mmengine.logging.history_buffer"):
        monkeypatch.delitem(sys.modules, name)
    checkpoint = read_source_checkpoint(tmp_path / "x.pth")
    assert torch.equal(checkpoint.tensors["conv.weight"], WEIGHT)
    assert checkpoint.config_text == "model = dict(style='caffe')"
    assert checkpoint.class_names == ["cat", "dog"]
    assert "mmengine" not in sys.modules


def test_the_meta_of_mmdetection_2(tmp_path):
    meta = {"config": "data = dict(to_rgb=False)", "CLASSES": ["cat", "dog"], "PALETTE": None}
    torch.save({"meta": meta, "state_dict": {"conv.weight": WEIGHT}}, tmp_path / "x.pth")
    checkpoint = read_source_checkpoint(tmp_path / "x.pth")
    assert (checkpoint.config_text, checkpoint.class_names) == ("data = dict(to_rgb=False)", ["cat", "dog"])


class Named:
    """As PaddlePaddle pickles a tensor: a tuple of its name and its numbers."""

    def __reduce__(self):
        return tuple, (("conv2d_0.w_0", WEIGHT.numpy()),)


@pytest.mark.parametrize("protocol", [2, 4])
def test_tensors_of_paddlepaddle_with_their_names(protocol, tmp_path):
    file = tmp_path / "x.pdparams"
    file.write_bytes(pickle.dumps({"conv.weight": Named()}, protocol=protocol))
    assert torch.equal(read_source_checkpoint(file).tensors["conv.weight"], WEIGHT)


class Evil:
    def __reduce__(self):
        return os.system, ("touch was_here",)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pkl", ".pdparams"])
def test_code_raises_by_name(suffix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / f"x{suffix}"
    if suffix in (".pth", ".pt"):
        torch.save({"state_dict": {"conv.weight": WEIGHT}, "meta": Evil()}, file)
    else:
        file.write_bytes(pickle.dumps({"model": {"conv.weight": WEIGHT.numpy()}, "meta": Evil()}))
    with pytest.raises(ValueError, match=r"it contains (posix|os)\.system, but only") as error:
        read_source_checkpoint(file)
    assert str(file) in str(error.value)
    assert "add_safe_globals" not in str(error.value)
    assert [*tmp_path.iterdir()] == [file]


def test_other_classes_raise_in_pytorch_files(tmp_path):
    torch.save({"state_dict": {"conv.weight": WEIGHT}, "meta": pytest.approx(1)}, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"it contains _pytest\."):
        read_source_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.pkl", pickle.dumps({"model": {"a": 1}}), r"contains no named tensors, only \{'model': \{'a': 1\}\}"),
        ("x.pdparams", pickle.dumps([1, 2]), r"contains no named tensors, only \[1, 2\]"),
        ("x", b"", r"cannot be read: it is empty \(0 bytes\)"),
    ],
)
def test_files_that_are_none(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_source_checkpoint(tmp_path / name)


def test_a_file_that_is_missing(tmp_path):
    with pytest.raises(ValueError, match=re.escape(f"resolved: {tmp_path / 'x.pth'}")):
        read_source_checkpoint(tmp_path / "x.pth")
