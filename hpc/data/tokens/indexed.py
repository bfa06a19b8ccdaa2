"""Documents of ids in Megatron's IndexedDataset (.bin and .idx), read: one clip a document, for the 4B and 12B models.

    found = Documents(["out/tokens@v1/0/", "out/tokens@v1/1/"])
    found[17]                                   # the ids of a clip, int64 [12,800]

<prefix>.idx: "MMIDIDX", 0, 0; version 1 (uint64); type of the numbers (uint8); sequences, and documents and one more
(uint64 each); the length of each sequence (int32), its place in .bin (int64, bytes), the first sequence of each
document and the end (int64). Megatron-LM d98e8a64: megatron/core/datasets/indexed_dataset.py. Cosmos' trainer takes
files whose whole names are .bin and .idx, so that a prefix is a folder and a slash (NVIDIA/Cosmos 71f19b0: general.py).
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

import msgspec
import numpy as np
import numpy.typing as npt

from hpc.data import storage

MAGIC = b"MMIDIDX\x00\x00"
HEAD = struct.Struct("<9sQBQQ")
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}


class Index(msgspec.Struct):
    """What an .idx says."""

    dtype: np.dtype[np.generic]
    lengths: npt.NDArray[np.int32]
    """[sequences]"""
    places: npt.NDArray[np.int64]
    """[sequences], bytes"""
    documents: npt.NDArray[np.int64]
    """[documents + 1], numbers of sequences"""


def index(data: bytes) -> Index:
    """Raises ValueError for what is no .idx, or cut short."""
    if len(data) < HEAD.size:
        raise ValueError(f"{len(data)} bytes are no index of Megatron's: it is cut short")
    magic, version, code, sequences, documents = HEAD.unpack_from(data)
    if magic != MAGIC or version != 1 or code not in DTYPES:
        raise ValueError("it is no index of Megatron's IndexedDataset, version 1")
    if len(data) < HEAD.size + 12 * sequences + 8 * documents:
        raise ValueError(f"{len(data)} bytes for {sequences} sequences and {documents - 1} documents: it is cut short")
    lengths = np.frombuffer(data, "<i4", sequences, HEAD.size)
    places = np.frombuffer(data, "<i8", sequences, HEAD.size + lengths.nbytes)
    first = np.frombuffer(data, "<i8", documents, HEAD.size + lengths.nbytes + places.nbytes)
    return Index(np.dtype(DTYPES[code]), lengths, places, first)


class Documents:
    """Of several pairs of files, one after the other. Raises FileNotFoundError, and ValueError naming an .idx that
    cannot be read."""

    def __init__(self, prefixes: Sequence[str]) -> None:
        self.prefixes, self.indices = list(prefixes), []
        for prefix in prefixes:
            try:
                self.indices.append(index(storage.read(prefix + ".idx")))
            except ValueError as error:
                raise ValueError(f"{prefix}.idx: {error}") from error
        self._ends = list(accumulate(len(one.documents) - 1 for one in self.indices))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> npt.NDArray[np.int64]:
        """The ids of a document."""
        which = bisect_right(self._ends, number)
        one = self.indices[which]
        place = number - (self._ends[which - 1] if which else 0)
        first, last = int(one.documents[place]), int(one.documents[place + 1])
        begin = int(one.places[first]) if first < last else 0
        end = begin + int(one.lengths[first:last].sum()) * one.dtype.itemsize
        return np.frombuffer(storage.read(self.prefixes[which] + ".bin", begin, end), one.dtype).astype(np.int64)
