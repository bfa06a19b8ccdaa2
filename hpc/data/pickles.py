"""Pickles of arrays: written as their consumers expect them to the byte, and read without ever running code.

Embeddings of captions travel as pickles of protocol 4, with float16 arrays of [tokens, width]:

[array]                       the file beside a clip of a predict2 data set, which wants exactly one (cosmos-predict2
                              661da47, dataset_video.py)
[array, array, ...]           of a shard, one a window (cosmos_curate 29f1358, webdataset_utils.py)
[{name: array, ...}, ...]     of a shard for predict2.5, one a window (cosmos-predict2.5 50369b8)

`dumps` gives the bytes that numpy 1.x would give, whatever numpy is here: numpy 2 names a module that older ones lack,
so that they could not read its pickles. The same values give the same bytes.

`loads` is a small machine of its own, not Python's: unpickling calls whatever functions a file names. This one knows
numbers, text, bytes, lists, tuples, dicts and plain arrays; all else is an error. It never imports what a file names,
and takes memory in proportion to the file.
"""

from __future__ import annotations

import math
import pickle
import pickletools
import re
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

PROTOCOL = 4
NEW, OLD = b"numpy._core.multiarray", b"numpy.core.multiarray"
FLOAT16 = np.dtype("<f2")

RECONSTRUCT = {"numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"}
FROMBUFFER = {"numpy.core.numeric _frombuffer", "numpy._core.numeric _frombuffer"}
BYTES = {"__builtin__ bytes", "builtins bytes"}  # no bytes at all, up to protocol 2
KNOWN = {*RECONSTRUCT, *FROMBUFFER, *BYTES, "numpy ndarray", "numpy dtype", "_codecs encode"}
PLAIN = re.compile(r"b1|[iu][1248]|f[248]|c8|c16")
"""Types of numbers that an array may have: no objects, no records, no text."""
VALUES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
LITERALS = {
    *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *("BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
KEYS = (str, bytes, int, float, type(None))
"""What a dict's keys may be. Tuples may not: a million of them in one another have a hash that ends the process."""


class Refused(ValueError):
    """A file that is no pickle, is cut short, or holds more than plain data."""


class Name(NamedTuple):
    """What a file calls a function or a class; it stays a name."""

    words: str


class Type:
    """A type of numbers, of which only the code is known so far, e.g. "f2"."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.places: list[int] = []


class Hollow:
    """An array without its content so far."""

    def __init__(self) -> None:
        self.places: list[int] = []
        """In the memo."""


MARK = Name("(")


def dumps(values: Sequence[npt.ArrayLike] | Sequence[Mapping[str, npt.ArrayLike]]) -> bytes:
    """A list of arrays, or of dicts of arrays, as a pickle. Arrays become float16, little endian, in C order."""
    plain: list[Any] = [
        {sys.intern(name): np.array(array, FLOAT16, order="C") for name, array in value.items()}
        if isinstance(value, Mapping)
        else np.array(value, FLOAT16, order="C")
        for value in values
    ]
    return _dumped(plain)


def dumps_array(value: npt.NDArray[Any]) -> bytes:
    """One array alone, as it is: Cosmos-Curate's files of clip embeddings (cosmos_curate 29f1358:
    metadata_writer_stage.py, _write_clip_embedding)."""
    return _dumped(np.ascontiguousarray(value))


def _dumped(plain: Any) -> bytes:
    data = pickle.dumps(plain, PROTOCOL)
    frame = 0  # where the length of the frame stands that the module's name is in
    for opcode, arg, at in pickletools.genops(data):
        if opcode.name == "FRAME":
            frame = at + 1
        elif opcode.name == "SHORT_BINUNICODE" and arg == NEW.decode():  # once: then it is remembered
            (length,) = struct.unpack_from("<Q", data, frame)
            shorter = struct.pack("<Q", length - len(NEW) + len(OLD))
            name = data[at : at + 1] + bytes([len(OLD)]) + OLD
            return data[:frame] + shorter + data[frame + 8 : at] + name + data[at + 2 + len(NEW) :]
    return data


def loads(data: bytes) -> Any:
    """The value in a pickle of any protocol. Raises Refused, a ValueError, which says what was found and where."""
    at = 0
    try:
        machine = Machine(2 * len(data))
        for opcode, arg, place in pickletools.genops(data):
            at = place or 0
            if opcode.name == "STOP":
                [value] = machine.stack
                checked(value)
                return value
            machine.step(opcode.name, arg)
    except Refused as error:
        raise Refused(f"{error} (at byte {at} of {len(data)})") from None
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, UnicodeError) as error:
        raise Refused(f"not a pickle, or damaged, at byte {at} of {len(data)}: {error}") from error
    raise Refused(f"a pickle that is cut short after {len(data)} bytes")


class Machine:
    def __init__(self, room: int) -> None:
        """room: bytes that arrays may have in all. A file has those of each, as bytes or as text of which bytes are
        made; one that names the same ones again and again would not stop growing."""
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.room = room

    def step(self, name: str, arg: Any) -> None:
        stack = self.stack
        if name in LITERALS:
            stack.append(arg)
        elif name in VALUES:
            stack.append(VALUES[name])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            stack.append(MARK)
        elif name in TUPLES:
            stack.append(tuple(self.pop(TUPLES[name])))
        elif name == "TUPLE":
            stack.append(tuple(self.pop()))
        elif name in ("EMPTY_LIST", "LIST"):
            stack.append(self.pop() if name == "LIST" else [])
        elif name in ("APPEND", "APPENDS"):
            values = self.pop(1 if name == "APPEND" else None)
            kind(stack[-1], list).extend(values)
        elif name in ("EMPTY_DICT", "DICT"):
            stack.append(pairs(self.pop()) if name == "DICT" else {})
        elif name in ("SETITEM", "SETITEMS"):
            values = self.pop(2 if name == "SETITEM" else None)
            kind(stack[-1], dict).update(pairs(values))
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            place = len(self.memo) if name == "MEMOIZE" else arg
            self.memo[place] = stack[-1]
            if isinstance(stack[-1], Type | Hollow):
                stack[-1].places.append(place)
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[arg])
        elif name == "GLOBAL":
            stack.append(named(*arg.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            stack.append(named(*self.pop(2)))
        elif name == "REDUCE":
            function, arguments = self.pop(2)
            stack.append(self.made(called(kind(function, Name).words, *kind(arguments, tuple))))
        elif name == "BUILD":
            what, state = self.pop(2)
            stack.append(self.made(built(what, kind(state, tuple))))
            self.memo.update(dict.fromkeys(what.places, stack[-1]))
        else:
            raise Refused(f"a pickle with the instruction {name}, which plain data has no need of")

    def made(self, value: Any) -> Any:
        self.room -= value.nbytes if isinstance(value, np.ndarray) else len(value) if isinstance(value, bytes) else 0
        if self.room < 0:
            raise Refused("a pickle whose arrays are larger than the file: they hold the same bytes again and again")
        return value

    def pop(self, count: int | None = None) -> list[Any]:
        """So many from the top of the stack, or all above the mark."""
        if count is None:
            at = next((i for i in reversed(range(len(self.stack))) if self.stack[i] is MARK), None)
            if at is None:
                raise ValueError("no mark")
            found, self.stack[at:] = self.stack[at + 1 :], []
            return found
        at = len(self.stack) - count
        if at < 0 or any(value is MARK for value in self.stack[at:]):
            raise ValueError("too little on the stack")
        found, self.stack[at:] = self.stack[at:], []
        return found


def kind(value: Any, wanted: type) -> Any:
    if type(value) is not wanted:
        raise ValueError(f"a {type(value).__name__} where a {wanted.__name__} should be")
    return value


def pairs(values: list[Any]) -> dict[Any, Any]:
    keys = values[::2]
    if strange := [type(key).__name__ for key in keys if not isinstance(key, KEYS)]:
        raise Refused(f"a dict with a {strange[0]} for a key; text, bytes and numbers may be keys")
    return dict(zip(keys, values[1::2], strict=True))


def named(module: str, name: str) -> Name:
    words = f"{module} {name}"
    if words not in KNOWN:
        raise Refused(
            f"a pickle that would call {module}.{name}: it is not run. Only lists, dicts, text, numbers and numpy "
            "arrays of numbers are read"
        )
    return Name(words)


def called(function: str, *arguments: Any) -> Any:
    """What a call stands for, of those in KNOWN."""
    if function in RECONSTRUCT and arguments[0] == Name("numpy ndarray"):
        return Hollow()
    if function in FROMBUFFER:
        data, dtype, shape, order = arguments
        return array(data, dtype, shape, order == "F")
    if function == "numpy dtype":
        if not PLAIN.fullmatch(code := kind(arguments[0], str)):
            raise Refused(f"an array of {code!r}; arrays of numbers are read, such as f2 or i8")
        return Type(code)
    if function == "_codecs encode" and arguments[1:] in (("latin1",), ("latin-1",)):  # bytes, up to protocol 2
        return kind(arguments[0], str).encode("latin-1")
    if function in BYTES and not arguments:
        return b""
    raise Refused(f"a pickle that calls {function.replace(' ', '.')} with other arguments than numpy's")


def built(what: Any, state: tuple[Any, ...]) -> Any:
    """A type or an array with the state that its pickle gives it."""
    if type(what) is Type:
        return np.dtype({"<": "<", ">": ">", "|": "|", "=": "="}[state[1]] + what.code)
    if type(what) is Hollow:
        _, shape, dtype, fortran, data = state
        return array(data.encode("latin-1") if isinstance(data, str) else data, dtype, shape, bool(fortran))
    raise ValueError(f"a state for a {type(what).__name__}")


def array(data: bytes | bytearray, dtype: Any, shape: Any, fortran: bool) -> npt.NDArray[Any]:
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, np.dtype):
        raise ValueError("an array without bytes, or of no type")
    sides = [side for side in kind(shape, tuple) if type(side) is int and side >= 0]
    if len(sides) != len(shape) or math.prod(sides) * dtype.itemsize != len(data):
        raise ValueError(f"{len(data)} bytes for an array of {dtype} of shape {shape}")
    found = np.frombuffer(bytearray(data), dtype).astype(dtype.newbyteorder("="), copy=False)
    return found.reshape(sides, order="F" if fortran else "C")


def checked(value: Any) -> None:
    """Nothing in it may be a name, or an array without its content."""
    waiting, seen = [value], set()
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, Name | Type | Hollow):
            raise Refused("a pickle with the name of a function or a class for a value")
        if isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
