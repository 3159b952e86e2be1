"""Pickles are data: what they name is looked up in a list, and nothing is ever called that is not in it."""

import collections
import contextlib
import io
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from models.pickles import PickleError, load_pickle

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
    with Path("x.pkl").open("rb") as file, pytest.raises(PickleError, match=f"it contains .*{named}"):
        load_pickle(file)
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
        ("models.pickles", "_Unpickler"),
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


def test_shared_references_stay_shared():
    """A walk that does not remember what it has seen would make 2 ** 60 lists."""
    value = [1.5]
    for _ in range(60):
        value = [value, value]
    read = load_pickle(dumped({"model": value}))["model"]
    assert read[0] is read[1]


def test_a_list_in_itself_is_read():
    value = []
    value.append(value)
    read = load_pickle(dumped(value))
    assert read[0] is read


def tuples(depth: int) -> tuple:
    """Return nested shared tuples, whose hash takes 2 ** depth steps."""
    value = (1,)
    for _ in range(depth):
        value = (value, value)
    return value


@pytest.mark.parametrize(
    "ways",
    [
        b"}%s1s.",  # SETITEM
        b"}(%s1u.",  # SETITEMS
        b"(%s1d.",  # DICT
        b"\x8f(%s\x90.",  # ADDITEMS
        b"(%s\x91.",  # FROZENSET
        b"ccollections\nOrderedDict\n(((%s1tttR.",
    ],
)
def test_what_takes_for_ever_to_hash_raises(ways):
    key = pickle.dumps(tuples(60), protocol=2)[2:-1]
    with pytest.raises(PickleError, match=r"a dict with the key|a set"):
        load_pickle(io.BytesIO(b"\x80\x02" + ways.replace(b"1", b"K\x01") % key))


@pytest.mark.parametrize(
    "head",
    [
        b"N" + pickle.LONG_BINPUT + b"\xff\xff\xff\x7f.",  # the unpickler in C makes room for as many references
        pickle.BINBYTES8 + (2**45).to_bytes(8, "little") + b".",
        pickle.LONG4 + b"\xff\xff\xff\x7f.",
        b"\x80\x04\x95" + (2**45).to_bytes(8, "little") + b"N.",
    ],
)
def test_sizes_that_a_pickle_only_declares_take_no_memory(head):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(PickleError):
        load_pickle(io.BytesIO(head))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB


def test_messages_are_short():
    """Nested shared references in a message would be 2 ** 60 long."""
    value = pickle.dumps(tuples(60), protocol=2)[2:-1]
    for path in ("builtins\nbytes", "numpy\ndtype", "numpy.core.multiarray\n_reconstruct"):
        with pytest.raises(PickleError) as error:
            load_pickle(io.BytesIO(b"\x80\x02c" + path.encode() + b"\n(" + value + b"tR."))
        assert len(str(error.value)) < 300


def test_deep_nesting_is_reported():
    with pytest.raises(PickleError, match="nested too deeply"):
        load_pickle(io.BytesIO(b"]" * 100_000 + b"a" * 99_999 + b"."))
