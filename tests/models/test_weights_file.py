"""Files of weights: each format is read, and all others are an error that states the reason."""

import collections
import io
import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from models.pickles import PickleError
from models.state_dict import find_state_dict
from models.weights_file import WeightsFileError, read_weights_file

WEIGHT = torch.arange(6.0).reshape(2, 3)


def write(path, content) -> None:
    path.write_bytes(content)


FORMATS = {
    "torch": lambda path: torch.save({"w": WEIGHT}, path),
    "torch before 1.6": lambda path: torch.save({"w": WEIGHT}, path, _use_new_zipfile_serialization=False),
    "safetensors": lambda path: save_file({"w": WEIGHT}, path),
    "npz": lambda path: write(path, saved_npz(w=WEIGHT.numpy())),
    "compressed npz": lambda path: write(path, saved_npz(np.savez_compressed, w=WEIGHT.numpy())),
    "pickle 2": lambda path: write(path, pickle.dumps({"w": WEIGHT.numpy()}, protocol=2)),
    "pickle 4": lambda path: write(path, pickle.dumps({"w": WEIGHT.numpy()}, protocol=4)),
    "arrays in torch": lambda path: torch.save({"w": WEIGHT.numpy()}, path),
}


def saved_npz(save=np.savez, **arrays) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["x.pth", "x.bin", "x.ckpt", "x.pkl", "x.pdparams", "x.safetensors", "x"])
def test_each_format_is_read_by_its_content(form, name, tmp_path):
    FORMATS[form](tmp_path / name)
    assert torch.equal(find_state_dict(read_weights_file(tmp_path / name)).tensors["w"], WEIGHT)


@pytest.mark.parametrize("form", FORMATS)
def test_a_truncated_file_is_an_error(form, tmp_path):
    FORMATS[form](tmp_path / "x.pth")
    data = (tmp_path / "x.pth").read_bytes()
    for size in (1, 8, len(data) // 2, len(data) - 3):
        (tmp_path / "x.pth").write_bytes(data[:size])
        with pytest.raises(WeightsFileError, match=r"\S"):
            read_weights_file(tmp_path / "x.pth")


@pytest.mark.parametrize("form", ["torch", "npz"])
def test_each_bit_of_an_archive_counts(form, tmp_path):
    FORMATS[form](tmp_path / "x.pth")
    data = (tmp_path / "x.pth").read_bytes()
    start = data.index(WEIGHT.numpy().tobytes())
    for bit in range(8 * WEIGHT.nbytes):
        damaged = bytearray(data)
        damaged[start + bit // 8] ^= 1 << bit % 8
        (tmp_path / "x.pth").write_bytes(damaged)
        with pytest.raises(WeightsFileError, match="it is damaged: the checksum of its record"):
            read_weights_file(tmp_path / "x.pth")


def zipped(**records: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"it is empty \(0 bytes\)"),
        (b"\n<!DOCTYPE html><html>", "it is a web page, not weights"),
        (b'<?xml version="1.0"?><Error>', "it is a web page, not weights"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n", "run git lfs pull"),
        (b'{"error": "not found"}', r"it is text, not weights: it starts with '\{\"error\": "),
        (b"Repository not found", "it is text, not weights: it starts with 'Repository not found'"),
        (b"nothing", "it is text, not weights"),
        (b"\x1f\x8b\x08\x00", "compressed with gzip"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x80\x04\x95garbage", "it is not a pickle, or it is damaged"),
        (b"\xff\xd8\xff\xe0\x00\x10JFIF", "it is not a pickle, or it is damaged"),
        (b"PK\x03\x04 cut short", "it is truncated or damaged"),
        (zipped(**{"a.txt": b"1"}), r"a zip archive without weights of PyTorch or NumPy; it contains \['a\.txt'\]"),
        (zipped(**{"x/data.pkl": b"\0" * 10**8}), "bytes would expand to 100000000 bytes"),
        ((100).to_bytes(8, "little") + b'{"w": ' + b" " * 94, "it is damaged or not a file of safetensors"),
    ],
)
def test_other_files_are_errors_with_the_reason(content, reason, tmp_path):
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(WeightsFileError, match=reason):
        read_weights_file(tmp_path / "x.pth")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    for name, reason in (
        (".", "it must be a regular file, got a folder"),
        ("pipe.pth", "it must be a regular file, got a named pipe"),
        ("loop.pth", "Too many levels of symbolic links"),
        ("a\0b.pth", "null byte"),
        ("missing.pth", rf"it does not exist \(resolved: {re.escape(str(tmp_path))}/missing\.pth\)"),
    ):
        with pytest.raises(WeightsFileError, match=reason):
            read_weights_file(tmp_path / name)
    with pytest.raises(WeightsFileError, match="it must be a regular file, got a device"):
        read_weights_file(tmp_path.__class__("/dev/zero"))


class Call:
    def __reduce__(self):
        return os.system, ("touch was_here",)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (Call(), r"(posix|nt)\.system"),
        (torch.nn.ReLU(), r"torch\.nn\.modules\.activation\.ReLU.*; save model\.state_dict\(\) instead of the model"),
        (pytest.approx(1), r"_pytest\.python_api\.ApproxScalar|_pytest\."),
        (np.array([None, {}]), "an array of 'O8?', which is not a number type"),
    ],
)
@pytest.mark.parametrize("new", [True, False])
def test_code_is_named_and_no_message_advises_to_run_it(value, named, new, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"w": WEIGHT}, "meta": value}, "x.pth", _use_new_zipfile_serialization=new)
    with pytest.raises((WeightsFileError, PickleError), match=f"it contains {named}") as error:
        read_weights_file(tmp_path / "x.pth")
    assert not re.search(r"weights_only|add_safe_globals|\x1b|docs/stable", str(error.value))
    assert [file.name for file in tmp_path.iterdir()] == ["x.pth"]


def test_a_program_of_torchscript_is_named(tmp_path):
    torch.jit.script(torch.nn.ReLU()).save(tmp_path / "x.pt")
    with pytest.raises(WeightsFileError, match="it is a TorchScript program, not a state dict"):
        read_weights_file(tmp_path / "x.pt")


def test_arrays_of_numpy_that_declare_more_than_the_file_contains(tmp_path):
    head = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, head)
    (tmp_path / "x.npz").write_bytes(zipped(**{"w.npy": file.getvalue() + b"12345678"}))
    with pytest.raises(WeightsFileError, match="it is damaged"):
        read_weights_file(tmp_path / "x.npz")


def test_a_missing_library_is_named(tmp_path, monkeypatch):
    save_file({"w": WEIGHT}, tmp_path / "x.safetensors")
    monkeypatch.setitem(__import__("sys").modules, "safetensors.torch", None)
    with pytest.raises(WeightsFileError, match="pip install safetensors"):
        read_weights_file(tmp_path / "x.safetensors")


def test_shared_references_of_pytorch_files_stay_shared(tmp_path):
    value = [WEIGHT]
    for _ in range(60):
        value = [value, value]
    torch.save({"state_dict": collections.OrderedDict(w=WEIGHT), "meta": value}, tmp_path / "x.pth")
    assert [*find_state_dict(read_weights_file(tmp_path / "x.pth")).tensors] == ["w"]
