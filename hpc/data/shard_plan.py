"""The order of a data set's entries, from columns alone and in bounded memory: sorted through temporary files.

Each entry is a record of fixed size. Records are spread over files by the first byte of the hash of their clip's uuid,
so that whatever is about one clip meets in one file: decisions that drop it, and a second clip of the same name. Each
file is then sorted on its own and appended to one file a bin. 100 M entries take 11 GB of temporary disk twice and some
50 MB of memory; no entry is a Python object for longer than its table is being read.
"""

from __future__ import annotations

import base64
import hashlib
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Records = npt.NDArray[np.void]

BUCKETS = 256
AT_ONCE = 50_000
"""Records that are read at a time of a sorted file."""
RECORD = np.dtype(
    [
        ("hash", "S16"),  # of the uuid: the order, and what decisions are matched by
        ("table", "<u4"),  # which table of entries, in the order of the shards
        ("row", "<u4"),  # and which row of it
        ("bin", "<u2"),
        ("start", "<i4"),  # of an entry that is a window of a clip
        ("offset", "<i8"),  # the other columns are those of shard_members.SCHEMA
        ("size", "<i8"),
        ("video_size", "<i8"),
        ("video_bytes", "<i8"),
        ("rest_offset", "<i8"),
        ("meta_offset", "<i8"),
        ("json_size", "<i8"),
        ("more_size", "<i8"),
    ]
)

JUDGED = np.dtype([("hash", "S16"), ("table", "<u4"), ("row", "<u4")])
"""A decision that drops a clip: the hash of its uuid, and where it is told of: which table of verdicts, which row."""


def hashes(uuids: Iterable[str]) -> npt.NDArray[np.bytes_]:
    return np.array([hashlib.blake2b(uuid.encode(), digest_size=16).digest() for uuid in uuids], "S16")


class Files:
    """Records of one kind, spread over numbered temporary files in a folder."""

    def __init__(self, folder: Path, name: str, dtype: npt.DTypeLike) -> None:
        self.stem, self.dtype = folder / name, np.dtype(dtype)
        self.counts: dict[int, int] = {}

    def append(self, number: int, records: npt.NDArray[np.generic]) -> None:
        if len(records):
            with Path(f"{self.stem}-{number}").open("ab") as file:
                file.write(np.ascontiguousarray(records, self.dtype).tobytes())
            self.counts[number] = self.counts.get(number, 0) + len(records)

    def spread(self, records: npt.NDArray[np.generic], numbers: npt.NDArray[np.integer]) -> None:
        """Each record to the file of its number, in order."""
        if not len(records):
            return
        order = np.argsort(numbers, kind="stable")
        found, starts = np.unique(numbers[order], return_index=True)
        for number, some in zip(found.tolist(), np.split(order, starts[1:]), strict=True):
            self.append(number, records[some])

    def read(self, number: int) -> npt.NDArray[np.generic]:
        """All of one file."""
        return np.concatenate([np.empty(0, self.dtype), *self.pieces(number)])

    def pieces(self, number: int) -> Iterator[npt.NDArray[np.generic]]:
        if number in self.counts:
            with Path(f"{self.stem}-{number}").open("rb") as file:
                while len(some := np.fromfile(file, self.dtype, AT_ONCE)):
                    yield some


def first_byte(found: npt.NDArray[np.bytes_]) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(found).view(np.uint8)[::16]


class Plan:
    """with Plan() as plan: add, drop, ... and then: plan.sort(shuffle), plan.bins(), plan.entries(bin)."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hpc-shard-plan-")
        folder = Path(self._folder.name)
        self.spread = Files(folder, "spread", RECORD)
        self.gone = Files(folder, "gone", JUDGED)
        self.lost = Files(folder, "lost", JUDGED)
        self.lined = Files(folder, "lined", RECORD)
        self.sorted = Files(folder, "sorted", RECORD)
        # what is left out, each in the file numbered 0
        self.copies = Files(folder, "copies", RECORD)
        self.unfit = Files(folder, "unfit", RECORD)
        self.dropped = Files(folder, "dropped", JUDGED)
        self.names: dict[str, int] = {}
        self.tables = self.judges = 0

    def __enter__(self) -> Plan:
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def bin(self, name: str) -> int:
        """The number of a bin."""
        return self.names.setdefault(name, len(self.names))

    def add(self, records: Records) -> None:
        """The entries of one table; tables come in order."""
        self.tables += 1
        self.spread.spread(records, first_byte(records["hash"]))

    def drop(self, found: Records) -> None:
        """JUDGED of one table of verdicts; tables come in order."""
        self.judges += 1
        self.gone.spread(found, first_byte(found["hash"]))

    def leave_out(self, records: Records) -> None:
        """Entries that have no place in the layout."""
        self.unfit.append(0, records)

    def sort(self, shuffle: bool) -> None:
        """Put what stays in order: by hash, or as it came. Of entries of the same clip, bin and window the first stays;
        the others are in `copies`. What is dropped is in `dropped`, with the first decision that drops it."""
        for number in sorted(self.spread.counts):
            records, gone = self.spread.read(number), self.gone.read(number)
            gone = gone[np.unique(gone["hash"], return_index=True)[1]]
            lost = gone[np.isin(gone["hash"], records["hash"])]
            self.lost.spread(lost, lost["table"].astype("u8") * BUCKETS // max(self.judges, 1))
            records = records[~np.isin(records["hash"], gone["hash"])]
            order = np.lexsort([records[name] for name in ("row", "table", "start", "bin", "hash")])
            records = records[order]
            same = np.ones(len(records), bool)
            for name in ("hash", "bin", "start"):
                same[1:] &= records[name][1:] == records[name][:-1]
            same[:1] = False
            self.copies.append(0, records[same])
            records = records[~same]
            if shuffle:
                self.sorted.spread(records, records["bin"])
            else:
                self.lined.spread(records, records["table"].astype("u8") * BUCKETS // max(self.tables, 1))
        for number in sorted(self.lined.counts):
            records = self.lined.read(number)
            records = records[np.lexsort([records["row"], records["table"]])]
            self.sorted.spread(records, records["bin"])
        for number in sorted(self.lost.counts):  # so that a table of verdicts is read for one or two lists of them
            lost = self.lost.read(number)
            self.dropped.append(0, lost[np.lexsort([lost["row"], lost["table"]])])

    def bins(self) -> list[str]:
        """Those that hold something, by name."""
        return [name for name, number in sorted(self.names.items()) if number in self.sorted.counts]

    def entries(self, name: str) -> Iterator[Records]:
        """Of a bin, in order, some at a time."""
        return self.sorted.pieces(self.names[name])


def groups(pieces: Iterable[Records], most_bytes: int, most: int, column: str = "video_bytes") -> Iterator[Records]:
    """Cut entries into groups: one is closed when the next entry would make it larger than `most_bytes`, or when it
    has `most`."""
    held = np.empty(0, RECORD)
    for piece in pieces:
        held = np.concatenate([held, piece])
        while True:
            ends = np.cumsum(held[column])
            # as many as fit, but one at least
            count = min(max(int(np.searchsorted(ends, most_bytes, "right")), 1), most)
            if count >= len(held):
                break
            yield held[:count]
            held = held[count:]
    while len(held):  # nothing comes behind it
        count = min(max(int(np.searchsorted(np.cumsum(held[column]), most_bytes, "right")), 1), most)
        yield held[:count]
        held = held[count:]


def packed(records: Records) -> str:
    """As text, for a row of the plan."""
    return base64.b64encode(zlib.compress(records.tobytes(), 1)).decode()


def unpacked(text: str, dtype: npt.DTypeLike = RECORD) -> Records:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def local(records: Records, tables: Sequence[object]) -> tuple[list[object], Records]:
    """The tables that these entries are of, and the entries with places in that list for table numbers."""
    found, places = np.unique(records["table"], return_inverse=True)
    records = records.copy()
    records["table"] = places
    return [tables[number] for number in found.tolist()], records
