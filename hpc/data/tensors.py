"""Files with one tensor (.pt), as torch.save writes them: looked into and read in part, without torch and without ever
running code; written from parts, in bounded memory.

    file = storage.open("tokenized-frames.pt")
    where = header(file)              # dtype, shape, and where the numbers lie
    two = read(file, where, 0, 2)     # its rows 0 and 1

Such a file is a zip with nothing compressed: a pickle, <name>/data.pkl, that says what the tensor is, and its storage,
<name>/data/0 (torch 2.13: torch/serialization.py). The pickle is read by a machine that knows tensors and no more.
"""

from __future__ import annotations

import collections
import io
import math
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

KINDS = {
    "BoolStorage": "bool", "ByteStorage": "uint8", "CharStorage": "int8", "ShortStorage": "int16",
    "IntStorage": "int32", "LongStorage": "int64", "HalfStorage": "float16", "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32", "DoubleStorage": "float64",
}  # fmt: skip
"""What a file calls the type of its numbers."""
LARGEST_PICKLE = 1024**2  # bytes; that of one tensor has a few hundred


class Header(NamedTuple):
    """Of a tensor in a file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Of its first number, in bytes from the start of the file."""
    contiguous: bool
    """Do its numbers lie one after the other? A view of another tensor may be saved otherwise."""

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


class Storage(NamedTuple):
    dtype: str
    key: str
    numbers: int


class Tensor(NamedTuple):
    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Reader(pickle._Unpickler):  # in Python: C's takes memory for any place that a file names
    """Of the pickle in such a file. It calls nothing but `tensor` and `OrderedDict`, whatever the file names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return tensor
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch" and name in KINDS:
            return KINDS[name]
        raise ValueError(f"it holds {module}.{name}; a single tensor of plain numbers is expected")

    def persistent_load(self, what: Any) -> Storage:
        _, dtype, key, _, numbers = what
        return Storage(dtype, key, numbers)


def tensor(storage: Storage, offset: int, shape: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return Tensor(storage, offset, tuple(shape), tuple(stride))


def header(file: BinaryIO) -> Header:
    """Raises ValueError for a file that is cut short, of torch before 1.6, or that holds more than a tensor."""
    try:
        with zipfile.ZipFile(file) as members:
            infos = {info.filename.partition("/")[2]: info for info in members.infolist()}
            if infos["data.pkl"].file_size > LARGEST_PICKLE:
                raise ValueError("it holds more than one tensor")
            found = Reader(io.BytesIO(members.read(infos["data.pkl"]))).load()
            if not isinstance(found, Tensor):
                raise ValueError(f"it holds a {type(found).__name__}; a single tensor is expected")
            if "byteorder" in infos and members.read(infos["byteorder"]) != b"little":
                raise ValueError("its numbers were written by a big-endian machine")
            member = infos[f"data/{found.storage.key}"]
    except zipfile.BadZipFile as error:
        raise ValueError(f"it is no .pt file of torch 1.6 or later, or cut short, or damaged ({error})") from error
    except (pickle.UnpicklingError, LookupError, TypeError, AttributeError, EOFError, NotImplementedError) as error:
        raise ValueError(f"it is a damaged .pt file: {type(error).__name__}: {error}") from error
    size = width(found.storage.dtype)
    file.seek(member.header_offset)
    name, more = struct.unpack("<HH", file.read(30)[26:])
    last = sum((n - 1) * step for n, step in zip(found.shape, found.stride, strict=True))
    numbers = 0 if 0 in found.shape else found.offset + last + 1
    negative = min((found.offset, *found.shape, *found.stride)) < 0
    if negative or numbers * size > member.file_size or member.compress_type:
        raise ValueError(f"it has {member.file_size} bytes for a tensor {found.storage.dtype}{list(found.shape)}")
    inner = [math.prod(found.shape[i + 1 :]) for i in range(len(found.shape))]
    plain = all(n == 1 or step == want for n, step, want in zip(found.shape, found.stride, inner, strict=True))
    start = member.header_offset + 30 + name + more + found.offset * size
    return Header(found.storage.dtype, found.shape, start, plain or 0 in found.shape)


def width(dtype: str) -> int:
    """Bytes of a number."""
    return 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize


def read(file: BinaryIO, where: Header, first: int = 0, last: int | None = None) -> Array:
    """Rows `first` up to `last` of a tensor, numbers along its first dimension; bfloat16 comes as float32.

    Raises ValueError for one whose numbers do not lie one after the other, or rows that it does not have.
    """
    begin, end = span(where, first, last)
    file.seek(begin)
    return numbers(where, file.read(end - begin))


def span(where: Header, first: int = 0, last: int | None = None) -> tuple[int, int]:
    """Where rows lie: bytes [begin, end) of the file. Raises ValueError like `read`."""
    if not where.contiguous:
        raise ValueError(f"{where} is a view of another tensor: save a copy of it (tensor.contiguous())")
    rows = where.shape[0] if where.shape else 1
    last = rows if last is None else last
    if not 0 <= first <= last <= rows:
        raise ValueError(f"rows {first} to {last} of {where}")
    row = math.prod(where.shape[1:]) * width(where.dtype)
    return where.offset + first * row, where.offset + last * row


def numbers(where: Header, data: bytes) -> Array:
    """What the bytes of some rows stand for, [rows, ...]."""
    if where.dtype == "bfloat16":  # the upper half of a float32
        found = (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        found = np.frombuffer(data, np.dtype(where.dtype).newbyteorder("<"))
    if not where.shape:
        return found.reshape(())
    row = math.prod(where.shape[1:])
    return found.reshape(len(found) // row if row else 0, *where.shape[1:])


def loads(data: bytes) -> Array:
    """The tensor in the bytes of a file. Raises ValueError like `header` and `read`."""
    file = io.BytesIO(data)
    return read(file, header(file))


def dumps(array: Array) -> bytes:
    """A file that `torch.load(weights_only=True)` reads; the same numbers give the same bytes."""
    import torch  # 1 s, which reading does without

    file = io.BytesIO()
    torch.save(torch.from_numpy(np.array(array, order="C")), file)
    return file.getvalue()


def write(path: Path, parts: Iterable[Array], dtype: str, row: Sequence[int]) -> int:
    """One tensor from its parts, one after the other along the first dimension: how many rows it has.

    row: the shape of each. The numbers go through a file beside `path`, so that memory holds one part.
    Raises ValueError for a part of other rows, or whose numbers `dtype` cannot hold.
    """
    import torch

    rows, row = 0, tuple(row)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".tmp-") as raw:
        for part in parts:
            if part.shape[1:] != row or not np.can_cast(part.dtype, dtype, "safe"):
                raise ValueError(f"{path.name}: {part.dtype}{list(part.shape)} after {rows} rows; {dtype} of "
                                 f"{[..., *row]} is expected")  # fmt: skip
            raw.write(np.ascontiguousarray(part, dtype).data)
            rows += len(part)
        raw.flush()
        size = rows * math.prod(row)
        kind = getattr(torch, dtype)
        whole = torch.from_file(raw.name, size=size, dtype=kind) if size else torch.empty(0, dtype=kind)
        torch.save(whole.view(rows, *row), path)
    return rows
