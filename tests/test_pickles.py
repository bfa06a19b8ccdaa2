"""Pickles: what is written is what old readers of arrays read, what is read is never run."""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
import subprocess
import sys
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.data import pickles

GOLDEN = (
    "80049599000000000000005d948c156e756d70792e636f72652e6d756c74696172726179948c0c5f7265636f6e7374727563749493948c"
    "056e756d7079948c076e6461727261799493944b0085944301629487945294284b014b034b02869468048c0564747970659493948c0266"
    "3294898887945294284b038c013c944e4e4e4affffffff4affffffff4b0074946289430c0000003c004000420044004594749462612e"
)
"""pickle.dumps([numpy.arange(6, dtype="<f2").reshape(3, 2)], 4) by numpy 1.26.4 and Python 3.11."""


def arrays(*lengths: int, width: int = 1024) -> list[np.ndarray]:
    random = np.random.default_rng(len(lengths))
    return [random.standard_normal((length, width)).astype("<f2") for length in lengths]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray):
        native = isinstance(other, np.ndarray) and one.dtype == other.dtype.newbyteorder("=")
        return native and np.array_equal(one, other)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return type(one) is type(other) and (one == other or one != one)


VALUES = {
    "one array": arrays(12),
    "of 512 tokens": arrays(512),
    "windows": arrays(1, 300, 40),
    "names": [{"t2w_a": arrays(3)[0], "b": arrays(4)[0]}, {"t2w_a": arrays(200)[0]}],
    "none": [],
}


# --- writing


@pytest.mark.parametrize("name", VALUES)
def test_what_is_written_is_read_by_pickle_and_by_us(name: str) -> None:
    data = pickles.dumps(VALUES[name])
    assert same(pickle.loads(data), VALUES[name]) and same(pickles.loads(data), VALUES[name])
    assert data[:2] == b"\x80\x04" and b"numpy._core" not in data
    assert pickles.dumps(VALUES[name]) == data


def test_frames_are_whole() -> None:
    """Each frame's length reaches up to the next opcode that may stand outside: Python checks it too, when it reads."""
    for value in filter(None, VALUES.values()):
        data = pickles.dumps(value)
        (length,) = struct.unpack_from("<Q", data, 3)
        edges = {at for _, _, at in pickletools.genops(data)} | {len(data)}
        assert data[2:3] == b"\x95" and 11 + length in edges


def test_other_types_become_float16() -> None:
    wide = np.linspace(-2, 2, 12, dtype=np.float64).reshape(3, 4)
    [found] = pickle.loads(pickles.dumps([wide.T]))
    assert found.dtype == "<f2" and found.flags.c_contiguous and np.allclose(found, wide.T, atol=1e-3)
    assert pickles.dumps([wide.astype("<f2")]) == pickles.dumps([wide]) == pickles.dumps([wide.tolist()])


def test_the_same_values_give_the_same_bytes_whoever_made_them() -> None:
    [one] = arrays(3)
    shared = pickles.dumps([{"a": one, "b": one}, {"a": one}])
    apart = pickles.dumps([{"a".upper().lower(): one.copy(), "b": one.copy()}, {b"a".decode(): one.copy()}])
    assert shared == apart


NUMPY_1 = """
import pickle, sys
import numpy
assert numpy.__version__.startswith("1."), numpy.__version__
data = sys.stdin.buffer.read()
value = pickle.loads(data)
array = lambda a: numpy.array(a, "<f2", order="C")
plain = [{sys.intern(k): array(v) for k, v in x.items()} if isinstance(x, dict) else array(x) for x in value]
assert pickle.dumps(plain, 4) == data
"""


@pytest.mark.skipif("HPC_TEST_NUMPY1" not in os.environ, reason="HPC_TEST_NUMPY1: a Python that has numpy 1.x")
@pytest.mark.parametrize("name", VALUES)
def test_numpy_1_reads_it_and_writes_the_same(name: str) -> None:
    python = os.environ["HPC_TEST_NUMPY1"]
    subprocess.run([python, "-c", NUMPY_1], input=pickles.dumps(VALUES[name]), check=True, timeout=180)


def test_the_bytes_are_those_of_numpy_1() -> None:
    expected = bytes.fromhex(GOLDEN)
    assert pickles.dumps([np.arange(6).reshape(3, 2)]) == expected
    assert same(pickles.loads(expected), [np.arange(6, dtype="<f2").reshape(3, 2)])


# --- reading


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(PLAIN, st.integers(0, 5))
def test_plain_values_are_read_as_pickle_reads_them(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    assert same(pickles.loads(data), pickle.loads(data))


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["<f2", ">f4", "<f8", "|i1", "<u2", ">i8", "|b1", "<c8"])
def test_arrays_are_read_as_pickle_reads_them(kind: str, protocol: int) -> None:
    random = np.random.default_rng(3)
    whole = (random.standard_normal((4, 3, 2)) * 9).astype(kind)
    value = {"c": whole, "f": np.asfortranarray(whole), "part": whole[::2, 1], "0": whole[0, 0, 0, None][:0], "n": 7}
    data = pickle.dumps([value, value["c"], (whole.T,)], protocol)
    found = pickles.loads(data)
    assert same(found, pickle.loads(data))
    assert found[0]["c"] is found[1] and found[1].flags.writeable


class Runs:
    """When it is unpickled, a function is called."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


CALLS = {
    "os.system": lambda flag: Runs(os.system, f"touch {flag}"),
    "eval": lambda flag: Runs(eval, f"open({str(flag)!r}, 'w')"),
    "a file": lambda flag: Runs(open, str(flag), "w"),
    "getattr": lambda flag: Runs(getattr, Path(flag), "touch"),
    "a class": lambda flag: Runs(subprocess.Popen, ["touch", str(flag)]),
    "a dict of another kind": lambda flag: OrderedDict(a=1),
    "a path": lambda flag: Path(flag),
    "a function": lambda flag: os.system,
    "a builtin class": lambda flag: set,
    "a set": lambda flag: {1, 2},
    "complex": lambda flag: 1j,
    "objects in an array": lambda flag: np.array([Runs(os.system, f"touch {flag}"), 1], dtype=object),
    "text in an array": lambda flag: np.array(["a", "b"]),
    "records": lambda flag: np.zeros(2, dtype=[("a", "<f4")]),
    "a date": lambda flag: np.array("2020-01-01", dtype="M8[D]"),
    "a scalar": lambda flag: np.float32(1.5),
    "an array of a class of its own": lambda flag: np.ma.array([1, 2]),
}


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_called(name: str, protocol: int, tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    data = pickle.dumps([1, CALLS[name](flag)], protocol)
    with pytest.raises(pickles.Refused, match="byte"):
        pickles.loads(data)
    assert not flag.exists()


def test_who_would_be_called_is_told() -> None:
    with pytest.raises(pickles.Refused, match=r"would call posix\.system: it is not run"):
        pickles.loads(pickle.dumps(Runs(os.system, "true")))
    with pytest.raises(pickles.Refused, match=r"instruction INST"):
        pickles.loads(b"(ios\nsystem\n.")
    with pytest.raises(pickles.Refused, match="an array of 'O8'"):
        pickles.loads(pickle.dumps(np.array([None])))


def op(name: str) -> bytes:
    return next(o.code.encode("latin-1") for o in pickletools.opcodes if o.name == name)


def text(words: str) -> bytes:
    return op("SHORT_BINUNICODE") + bytes([len(words)]) + words.encode()


NDARRAY = text("numpy") + text("ndarray") + op("STACK_GLOBAL")
RECONSTRUCT = text("numpy.core.multiarray") + text("_reconstruct") + op("STACK_GLOBAL")
HOLLOW = RECONSTRUCT + NDARRAY + b"K\x00\x85C\x01b\x87R"
FLOATS = text("numpy") + text("dtype") + op("STACK_GLOBAL") + text("f2") + b"\x85R"
TYPED = FLOATS + b"(K\x03" + text("<") + b"NNNt" + b"b"


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        (NDARRAY, "the name of a function"),
        (HOLLOW, "the name of a function"),
        (FLOATS, "the name of a function"),
        (b"]" + NDARRAY + b"a", "the name of a function"),
        (b"}" + NDARRAY + b"Ns", "a dict with a Name"),
        (b"})Ns", "a dict with a tuple"),
        (HOLLOW + b"K\x01\x85b", "not a pickle, or damaged"),
        (HOLLOW + b"(K\x01K\x02K\x02\x86" + TYPED + b"\x89C\x04abcdtb", "4 bytes for an array of float16"),
        (HOLLOW + b"(K\x01J\xff\xff\xff\xffK\x02\x86" + TYPED + b"\x89C\x04abcdtb", "4 bytes for an array"),
        (HOLLOW + b"(K\x01" + b"J\xff\xff\xff\x7f" * 3 + b"\x87" + TYPED + b"\x89C\x04abcdtb", "4 bytes for an array"),
        (HOLLOW + b"}" + text("__class__") + text("x") + b"sb", "a dict where a tuple should be"),
        (RECONSTRUCT + text("x") + b"\x85R", "other arguments than numpy's"),
        (RECONSTRUCT + b"}" + text("__code__") + b"Nsb", "a dict where a tuple should be"),
        (RECONSTRUCT + b"N}" + text("__code__") + b"Ns\x86b", "a state for a Name"),
        (NDARRAY + b")\x81", "instruction NEWOBJ"),
        (NDARRAY + b")}\x92", "instruction NEWOBJ_EX"),
        (b"K\x01Q", "instruction BINPERSID"),
        (b"P1\n", "instruction PERSID"),
        (b"\x82\x01", "instruction EXT1"),
        (b"\x97", "instruction NEXT_BUFFER"),
        (b"a", "not a pickle, or damaged"),
        (b"(a", "not a pickle, or damaged"),
        (b"e", "not a pickle, or damaged"),
        (b"h\x07", "not a pickle, or damaged"),
        (b"K\x01K\x02", "not a pickle, or damaged"),
        (b"", "not a pickle, or damaged"),
        (b"\xff", "not a pickle, or damaged"),
        (b"]" + op("LONG_BINPUT") + b"\xff\xff\xff\xff" + b"K\x01", "not a pickle, or damaged"),
        (b"\x8e" + struct.pack("<Q", 2**62) + b"abc", "not a pickle, or damaged"),
    ],
)
def test_streams_made_by_hand(stream: bytes, words: str) -> None:
    with pytest.raises(pickles.Refused, match=words):
        pickles.loads(b"\x80\x04" + stream + b".")


def test_cut_short_and_damaged() -> None:
    data = pickles.dumps(arrays(5, 7, width=64))
    for size in (0, 1, 2, 10, 60, 200, len(data) - 1):
        with pytest.raises(pickles.Refused):
            pickles.loads(data[:size])
    random = np.random.default_rng(5)
    for _ in range(300):
        harmed = bytearray(data[:400])
        harmed[random.integers(len(harmed))] = random.integers(256)
        try:
            pickles.loads(bytes(harmed) + data[400:])
        except pickles.Refused:
            pass


def test_depth_and_repetition_cost_little() -> None:
    deep = pickles.loads(b"\x80\x04" + b")" + b"\x85" * 100_000 + b".")
    for _ in range(100_000):
        [deep] = deep
    assert deep == ()
    laughs = b"]q\x00" + b"".join(b"](" + b"h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1])
                                  for i in range(60)) + b"."  # fmt: skip
    with pytest.raises(pickles.Refused):  # sixty lists are left below the last one
        pickles.loads(b"\x80\x04" + laughs)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("what", ["bytes", "text", "encoded"])
def test_memory_is_in_proportion_to_the_file(what: str, order: str) -> None:
    """A file may name the same bytes again and again; of each array a copy would be 200 MiB here."""
    size = 2**19
    shape, typed = b"J" + struct.pack("<i", size // 2) + b"\x85", TYPED.replace(text("<"), text(order))
    data = (b"B" if what == "bytes" else b"X") + struct.pack("<I", size) + bytes(size)
    encode = text("_codecs") + text("encode") + op("STACK_GLOBAL") + b"h\x01" + text("latin1") + b"\x86R"
    content = encode if what == "encoded" else b"h\x01"
    array = HOLLOW + b"(K\x01" + shape + typed + b"\x89" + content + b"tb"
    stream = b"\x80\x04](" + data + b"q\x01" + array * 400 + b"e."
    assert len(stream) < 2**20
    tracemalloc.start()
    try:
        with pytest.raises(pickles.Refused, match="the same bytes again and again"):
            pickles.loads(stream)
        assert tracemalloc.get_traced_memory()[1] < 8 * len(stream)
    finally:
        tracemalloc.stop()
    once = b"\x80\x04](" + data + b"q\x01" + array + b"e."
    assert pickles.loads(once)[1].shape == (size // 2,)


def test_numpy_is_not_asked_to_import(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pickle.dumps(arrays(2), 5)
    monkeypatch.setattr(pickle, "Unpickler", None)
    before = set(sys.modules)
    assert same(pickles.loads(data), arrays(2))
    assert set(sys.modules) == before
