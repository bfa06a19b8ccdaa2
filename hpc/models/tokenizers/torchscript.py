"""The tensors of a TorchScript archive (.jit), by name, without running anything that is in it.

torch.jit.load compiles the archive's code, may run what it defines as __setstate__, wants the device that it was traced
on to make sense, and is deprecated. But the archive is a zip: `data.pkl` is a pickle of the tree of modules, whose
tensors name a file each below `data/`. This reads that pickle with an unpickler that knows tensors and containers and
makes every class of the archive an empty one.

Weights of a frozen archive (torch.jit.freeze) are constants without a name, and are not found.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Node:
    """A module of the archive: a name for each thing that it has."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    if math.prod(size) > storage.numel():
        raise pickle.UnpicklingError(f"a tensor of {size} on {storage.numel()} numbers")
    return storage.as_strided(size, stride, offset).clone()


class Unpickler(pickle._Unpickler):  # in Python: C's takes memory for any place that a file names
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("__torch__"):
            return Node
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch.jit._pickle":  # lists of ints, tensors, ...: the items; and types, which tell nothing
            return lambda items, *_: items
        known = {("torch._utils", "_rebuild_tensor_v2"): tensor, ("collections", "OrderedDict"): OrderedDict}
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not expected in a TorchScript archive of weights")
        return known[module, name]

    def persistent_load(self, key: tuple[Any, ...]) -> Tensor:
        """("storage", torch.bfloat16, "12", "cuda:0", number of elements)."""
        _, dtype, name, _, count = key
        if not count:
            return torch.empty(0, dtype=dtype)
        return torch.frombuffer(bytearray(self.archive.read(f"{self.root}data/{name}")), dtype=dtype, count=count)


def tensors(node: Node, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(node).items():
        if isinstance(value, Tensor):
            yield prefix + name, value
        elif isinstance(value, Node):
            yield from tensors(value, f"{prefix}{name}.")


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """{"encoder.conv_in.0.conv3d.weight": tensor, ...}, on the CPU. Raises RuntimeError for what is no such archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            order = [archive.read(name) for name in archive.namelist() if name.endswith("/byteorder")]
            if len(pickles) != 1 or order not in ([], [b"little"]):
                raise RuntimeError(f"{path}: not a TorchScript archive: it has no data.pkl in little endian")
            return dict(tensors(Unpickler(archive, pickles[0].removesuffix("data.pkl")).load()))
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, LookupError, TypeError, AttributeError) as error:
        raise RuntimeError(f"{path}: cannot be read as a TorchScript archive: {error}") from error
