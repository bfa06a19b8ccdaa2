"""What a file of weights has in it, names and shapes, without reading one of them: for checks on a login node.

    shapes(Path("model.pt"))            {"net.x_embedder.proj.1.weight": (2048, 72), ...}
    shapes(Path("model.safetensors"))
    stored(Path("nemo/weights"))        of a distributed checkpoint, by its .metadata

Standard library alone. A .pt is a zip with a pickle that says what its tensors are; it is unpickled with stand-ins for
whatever it names: nothing of it is imported or called. Formats: safetensors' README (a length, then JSON); torch 2.13,
torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

import collections
import io
import json
import math
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

Shape = tuple[int, ...]
LARGEST = 1 << 28
"""Bytes of a header: one of 100,000 tensors has a tenth of that."""
POINTER = b"version https://git-lfs"
OLD = b"\x80\x02\x8a\nl\xfc\x9cF"
"""torch.save before zips, up to torch 1.5."""


class Tensor(tuple[int, ...]):
    """A shape, where a tensor would be."""


class Thing:
    """Whatever else is named: takes anything, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args = args

    def __call__(self, *args: Any, **kwargs: Any) -> Thing:
        return self

    def __hash__(self) -> int:
        return id(self)

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)


def _rebuilt(storage: Any, offset: Any, size: Any, *rest: Any) -> Tensor:
    return Tensor(size)


KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor"): _rebuilt,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuilt,
    ("torch._utils", "_rebuild_parameter"): lambda data, *rest: data,
    ("torch._tensor", "_rebuild_from_type_v2"): lambda function, kind, args, state: function(*args),
}


class Reader(pickle.Unpickler):
    """Makes shapes of tensors, and stand-ins of the rest."""

    def find_class(self, module: str, name: str) -> Any:
        return KNOWN.get((module, name)) or type(name, (Thing,), {})

    def persistent_load(self, pid: Any) -> Any:
        return pid


def shapes(path: Path) -> dict[str, Shape]:
    """Raises ValueError, which says what the file is instead, FileNotFoundError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.read(64)
    if not size:
        raise ValueError("it is empty")
    if first.startswith(POINTER):
        raise ValueError("it is a pointer of Git LFS, not the file: git lfs pull")
    if first.lstrip().startswith((b"<", b"{")) and path.suffix != ".safetensors":
        raise ValueError(f"it is text, {first.decode(errors='replace').split(chr(10))[0]!r}: an answer of a server?")
    if path.suffix == ".safetensors":
        return _of_safetensors(path, size)
    if first.startswith(OLD):
        raise ValueError("torch before 1.6 has written it: torch.load it, and torch.save it again")
    try:
        with zipfile.ZipFile(path) as archive:
            name = next((one for one in archive.namelist() if one.endswith("/data.pkl")), None)
            if name is None:
                raise ValueError(f"it is a zip of {', '.join(archive.namelist()[:5])}, and none of torch.save's")
            if archive.getinfo(name).file_size > LARGEST:
                raise ValueError(f"its table of tensors has {archive.getinfo(name).file_size:,} bytes")
            data = archive.read(name)
    except zipfile.BadZipFile:
        raise ValueError(f"it is cut short, or no file of weights ({size:,} bytes, no end of torch.save's)") from None
    found = _unpickled(data)
    if isinstance(found, dict) and isinstance(found.get("model"), dict):
        found = found["model"]
    return _tensors(found)


def stored(folder: Path) -> dict[str, Shape]:
    """Raises ValueError and FileNotFoundError as `shapes`."""
    path = folder / ".metadata"
    if path.stat().st_size > LARGEST:
        raise ValueError(f"{path}: {path.stat().st_size:,} bytes")
    found = getattr(_unpickled(path.read_bytes()), "state_dict_metadata", None)
    if not isinstance(found, dict):
        raise ValueError("its .metadata is none of a distributed checkpoint")
    return {name: tuple(one.size) for name, one in found.items() if isinstance(getattr(one, "size", None), tuple)}


def _of_safetensors(path: Path, size: int) -> dict[str, Shape]:
    with path.open("rb") as file:
        length = struct.unpack("<Q", head)[0] if len(head := file.read(8)) == 8 else 0
        if not 0 < length <= min(LARGEST, size - 8):
            raise ValueError(f"it is cut short, or no safetensors: {size:,} bytes, a header of {length:,}")
        try:
            table = json.loads(file.read(length))
            found = {name: one for name, one in table.items() if name != "__metadata__"}
            ends = max((one["data_offsets"][1] for one in found.values()), default=0)
            made = {name: tuple(one["shape"]) for name, one in found.items()}
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"it is no safetensors: its header cannot be read: {error}") from None
    if 8 + length + ends != size:
        raise ValueError(f"it is cut short: {size:,} bytes, and its header speaks of {8 + length + ends:,}")
    return made


def _unpickled(data: bytes) -> Any:
    try:
        return Reader(io.BytesIO(data)).load()
    except Exception as error:  # of a machine that runs what a file says
        raise ValueError(f"its table of tensors cannot be read: {type(error).__name__}: {error}"[:200]) from None


def _tensors(found: Any) -> dict[str, Shape]:
    named = {name: tuple(one) for name, one in found.items() if isinstance(one, Tensor)} if isinstance(
        found, dict) else {}  # fmt: skip
    if not named:
        held = ", ".join(map(str, list(found)[:8])) if isinstance(found, dict) else type(found).__name__
        raise ValueError(f"it has no named tensors; it holds {held or 'nothing'}")
    return named


def count(found: dict[str, Shape]) -> int:
    """Numbers in all of them."""
    return sum(math.prod(shape) for shape in found.values())
