"""Pickles are data: what they name is looked up in a list, and nothing is ever called that is not in it."""

import collections
import io
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from engine.converters.pickles import PickleError, load_pickle, read_pickle

TRACE = "was_here"


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def dumped(value, protocol=4) -> io.BytesIO:
    return io.BytesIO(pickle.dumps(value, protocol=protocol))


def by_name(module: str, name: str, argument: str) -> bytes:
    """A pickle of protocol 0 that calls a function by its name, whether there is one or not."""
    return f"c{module}\n{name}\n(V{argument}\ntR.".encode()


@pytest.mark.parametrize("protocol", [2, 5])
@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        np.arange(6, dtype=">f4").reshape(2, 3),
        np.array([[1, -2]], dtype=np.int64),
        np.array([True, False]),
        np.array(2.5, dtype=np.float16),
        np.zeros((0, 4), dtype=np.float32),
        np.arange(24, dtype=np.float64).reshape(2, 3, 4)[:, ::2],
    ],
)
def test_arrays_are_read_as_numpy_reads_them(array, protocol):
    stream = dumped({"w": array}, protocol)
    read = load_pickle(stream)["w"]
    stream.seek(0)
    theirs = pickle.load(stream)["w"]  # of our own making
    assert read.dtype == theirs.dtype.newbyteorder("=")
    assert read.shape == array.shape
    assert np.array_equal(read, theirs)


def test_plain_values_are_read():
    value = collections.OrderedDict(
        model={"a": [1, 2.5, None, True, "text"], "b": (3, "four")}, number=np.float64(1.5), __author__="a model zoo"
    )
    assert load_pickle(dumped(value)) == {
        "model": {"a": [1, 2.5, None, True, "text"], "b": [3, "four"]},
        "number": 1.5,
        "__author__": "a model zoo",
    }


def test_arrays_of_python_2_are_read():
    # as Python 2 wrote them, whose strings were bytes: numpy.array([1.5, -2.0], "f4")
    written = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\ntcnumpy\ndtype\n(S'f4'\nI0\n"
        b"I1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'\\x00\\x00\\xc0?\\x00\\x00\\x00\\xc0'\ntb."
    )
    assert np.array_equal(load_pickle(io.BytesIO(written)), pickle.loads(written, encoding="latin1"))
    assert np.array_equal(load_pickle(io.BytesIO(written)), np.array([1.5, -2.0]))


@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (Calls(os.system, f"touch {TRACE}"), "posix.system"),
        (Calls(eval, f"open('{TRACE}', 'w')"), "builtins.eval"),
        (Calls(exec, f"open('{TRACE}', 'w')"), "builtins.exec"),
        (Calls(open, TRACE, "w"), "io.open"),
        (Calls(subprocess.call, ["touch", TRACE]), ".call"),
        (Calls(Path(TRACE).touch), "getattr"),
        (Calls(np.load, TRACE), "numpy.load"),
        (Calls(np.save, TRACE, 1), "numpy.save"),
        (Calls(np.memmap, TRACE, "u1", "w+", 0, (3,)), "numpy.memmap"),
        (Calls(pickle.loads, pickle.dumps(Calls(os.system, f"touch {TRACE}"))), "pickle.loads"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_calls_raise_by_name(attack, named, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    written = pickle.dumps({"model": {"weight": attack}}, protocol=protocol)
    Path("x.pkl").write_bytes(written)
    with pytest.raises(PickleError, match=f"it contains .*{named}"):
        read_pickle(Path("x.pkl"))
    assert [file.name for file in tmp_path.iterdir()] == ["x.pkl"]
    if "touch" in str(attack.call) and named == "posix.system":
        pickle.loads(written)  # the attack is a real one
        assert Path(TRACE).exists()


@pytest.mark.parametrize(
    "name",
    [
        ("os", "system"),
        ("nt", "system"),
        ("__builtin__", "eval"),
        ("builtins", "getattr"),
        ("numpy", "ndarray.tofile"),
        ("numpy.core.multiarray", "fromfile"),
        ("numpy.lib.npyio", "load"),
        ("numpy.testing._private.utils", "runstring"),
        ("collections", "namedtuple"),
        ("_codecs", "decode"),
        ("engine.converters.pickles", "_Unpickler"),
        ("torch._utils", "_rebuild_tensor_v2"),
        ("functools", "partial"),
        ("builtins", "bytearray"),
    ],
)
def test_names_that_are_not_listed_raise(name):
    with pytest.raises(PickleError, match=rf"it contains \S*{name[1]}"):
        load_pickle(io.BytesIO(by_name(*name, "echo")))


def test_what_is_listed_takes_no_other_arguments():
    for path in (
        "builtins\nbytes",
        "builtins\ntuple",
        "numpy\ndtype",
        "numpy.core.multiarray\nscalar",
        "_codecs\nencode",
    ):
        with pytest.raises(PickleError, match=r"^it "):
            load_pickle(io.BytesIO(b"c" + path.encode() + b"\n(VO8\nVutf-7\ntR."))


def test_nothing_is_imported(tmp_path, monkeypatch):
    (tmp_path / "evil_module.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PickleError, match=r"it contains evil_module\.f"):
        load_pickle(io.BytesIO(by_name("evil_module", "f", "x")))
    assert "evil_module" not in sys.modules


@pytest.mark.parametrize(
    "value",
    [
        np.array([{"a": 1}, None], dtype=object),
        np.array(["text"]),
        np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f4")]),
        np.array([1 + 2j]),
        np.dtype(object),
        np.array(["2020-01-01"], dtype="M8[D]"),
    ],
)
def test_arrays_of_anything_but_numbers_raise(value):
    with pytest.raises(PickleError, match=r"not a number type|not numeric"):
        load_pickle(dumped({"w": value}))


def test_arrays_that_lie_about_their_size_raise():
    header = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR"
    dtype = b"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    for shape in (b"(I9\nt", b"(I1000000000\nI1000000000\nt", b"(I-2\nt"):
        with pytest.raises(PickleError, match=r"bytes|not numeric"):
            load_pickle(io.BytesIO(header + b"(I1\n" + shape + dtype + b"I00\nS'abcdefgh'\ntb."))


@pytest.mark.parametrize("data", [b"", b"no pickle", pickle.dumps({"a": np.ones(100)})[:-40], b"\x80\x04."])
def test_damage_is_reported(data):
    with pytest.raises(PickleError, match="not a pickle, or it is damaged"):
        load_pickle(io.BytesIO(data))
