"""Shards on disk: tars of clips, and the parquet tables (layers) of columns beside them.

A tar holds, for each key (a clip's uuid), its members side by side: <key>.mp4, <key>.json, ... It is a plain POSIX tar
that webdataset reads. Headers carry no time, owner or mode of their own, so the same clips give the same bytes, and the
byte range of a key can be cut out of one tar and pasted into another: `copy_ranges` makes new tars that way.
A table is a parquet file whose metadata entry "hpc" holds one JSON object. No function here knows about S3: they take
paths and seekable binary files (`hpc.data.storage.open`).
"""

from __future__ import annotations

import json
import re
import tarfile
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

Out = TypeVar("Out")

BLOCK = 512
END_OF_ARCHIVE = bytes(2 * BLOCK)
LARGEST_MEMBER = 8**11 - 1  # what the twelve octal digits of a header can say without an extension: 8 GiB - 1
PIECE = 8 * 1024**2  # one read of copy_ranges
READERS = 8  # reads in flight: enough to hide the latency of an object store; copy_ranges holds 64 MiB with it


class Entry(msgspec.Struct, frozen=True):
    """Where one key lies in a tar, in bytes from its start."""

    offset: int
    size: int
    """Of the whole range: headers, payloads and padding; a multiple of 512."""
    members: dict[str, tuple[int, int]]
    """Suffix -> (offset, size) of the payload alone."""


class TornTar(Exception):
    """A tar that is cut short, overwritten, or not written by TarWriter."""

    def __init__(self, what: str, last: int = 0, end: int = 0) -> None:
        super().__init__(what, last, end)
        self.what = what
        self.last, self.end = last, end
        """Where the last good member begins and ends, in bytes."""

    def __str__(self) -> str:
        return self.what


class TarWriter:
    """with TarWriter(path) as tar: entry = tar.add(uuid, {".mp4": video, ".json": text})

    Leaving the block by an exception removes the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.size = 0
        self._keys: set[str] = set()
        self._file = self.path.open("wb")

    def __enter__(self) -> TarWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._file.write(END_OF_ARCHIVE)
        if kind is not None:
            self.path.unlink(missing_ok=True)

    def add(self, key: str, members: dict[str, bytes]) -> Entry:
        """Write the members of one key, in the order given.

        key: unique in this tar; no dots (webdataset splits names at the first one). members: suffix -> payload;
        suffixes are lower case and begin with a dot, e.g. ".mp4". Raises ValueError for a name that webdataset would
        lose or change.
        """
        if key in self._keys:
            raise ValueError(f"{self.path}: the key {key!r} is in this tar already; keys must be unique")
        if not members:
            raise ValueError(f"{self.path}: {key!r} has no members; give at least one, e.g. {{'.mp4': bytes}}")
        offset, places, blocks = self.size, {}, []
        for suffix, payload in members.items():
            blocks += [_header(key, suffix, len(payload)), payload, bytes(-len(payload) % BLOCK)]
            places[suffix] = (offset + sum(map(len, blocks[:-2])), len(payload))
        for block in blocks:
            self._file.write(block)
            self.size += len(block)
        self._keys.add(key)
        return Entry(offset, self.size - offset, places)


def entry(key: str, suffix: str, payload: bytes) -> bytes:
    """One member as it stands in a tar: header, payload and padding. Raises ValueError like `TarWriter.add`."""
    return b"".join((_header(key, suffix, len(payload)), payload, bytes(-len(payload) % BLOCK)))


def _header(key: str, suffix: str, size: int) -> bytes:
    if not re.fullmatch(r"(?!__)[^./\x00-\x1f][^.\x00-\x1f]*(?<!/)", key):
        raise ValueError(f"{key!r} cannot be a key in a tar: no dots, no control characters, no '/' or '__' in front")
    if not re.fullmatch(r"\.[^/A-Z\x00-\x1f]+", suffix):
        raise ValueError(f"{suffix!r} cannot be a suffix in a tar: write a dot and lower-case letters, e.g. '.mp4'")
    if size > LARGEST_MEMBER:
        raise ValueError(f"{key}{suffix} has {size} bytes; a member may have {LARGEST_MEMBER}")
    info = tarfile.TarInfo(key + suffix)  # mtime 0, uid 0, gid 0, mode 0644, no names: all defaults
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "strict")


def index(file: BinaryIO) -> Iterator[tuple[str, Entry]]:
    """Walk the headers of a tar: (key, Entry) in order, without reading payloads.

    Raises TornTar for a tar that does not consist of whole keys from its first byte to the end-of-archive block.
    """
    file.seek(0)
    key, start, last, end = "", 0, 0, 0
    members: dict[str, tuple[int, int]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:", encoding="utf-8") as tar:
            for info in iter(tar.next, None):
                name, dot, suffix = info.name.partition(".")
                if not dot or not info.isreg():
                    raise TornTar(f"{info.name!r} at byte {end} is not a file named <key>.<suffix>", last, end)
                if members and name != key:
                    yield key, Entry(start, end - start, members)
                    start, members = end, {}
                if dot + suffix in members:
                    raise TornTar(f"{info.name!r} at byte {end} is there twice", last, end)
                key = name
                members[dot + suffix] = (info.offset_data, info.size)
                last = info.offset
                end = info.offset_data + info.size + -info.size % BLOCK
                tar.members.clear()  # type: ignore[attr-defined]  # it would keep every header
            file.seek(end)
            if file.read(BLOCK) != bytes(BLOCK):  # tarfile takes the first bad header for the end
                raise TornTar(f"no valid header and no end of archive at byte {end}", last, end)
            if members:
                yield key, Entry(start, end - start, members)
    except tarfile.TarError as error:
        raise TornTar(f"{error} at byte {end}", last, end) from error


def read_tar(file: BinaryIO) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, {suffix: payload}) of each key in order. `file` is seekable. Raises TornTar like `index`."""
    for key, entry in index(file):
        members = {}
        for suffix, (offset, size) in entry.members.items():
            file.seek(offset)
            members[suffix] = file.read(size)
            if len(members[suffix]) != size:
                raise TornTar(f"{key}{suffix} is cut short: {len(members[suffix])} of {size} bytes")
        yield key, members


def map_ahead(function: Callable[[Any], Out], items: Iterable[Any], threads: int = READERS) -> Iterator[Out]:
    """map() by so many threads, in order; no more results than threads are waiting at any time."""
    waiting: deque[Future[Out]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) == threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def copy_ranges(
    path: str | Path,
    ranges: Sequence[Sequence[Any]],
    read: Callable[[str, int, int], bytes],
    tick: Callable[[int], None] = lambda written: None,
) -> int:
    """Write a new tar from byte ranges of other tars; returns how many keys it holds.

    ranges: (source, offset, size) in the order of the new tar, each of whole keys as `TarWriter.add` returned them; one
    with a fourth value goes on with further members of the key before it. read(source, start, end): the bytes
    [start, end) of a source; called from several threads, source by source in the order of offsets. tick(bytes written
    so far) is called between reads and may raise. Raises TornTar, naming the source, when a range is cut short or does
    not begin and end with a key.
    """
    starts = [0]
    for _, _, size, *_ in ranges:
        starts.append(starts[-1] + size)
    pieces = (
        (source, at, min(at + PIECE, offset + size), start + at - offset)
        for (source, offset, size, *_), start in sorted(zip(ranges, starts, strict=False))
        for at in range(offset, offset + size, PIECE)
    )
    written = 0
    with Path(path).open("w+b") as file:
        for (source, begin, end, to), data in map_ahead(lambda piece: (piece, read(*piece[:3])), pieces):
            tick(written)
            if len(data) != end - begin:
                raise TornTar(f"{source}: bytes {begin} to {end} are cut short: {len(data)} of {end - begin} bytes")
            file.seek(to)
            file.write(data)
            written += len(data)
        file.seek(starts[-1])
        file.write(END_OF_ARCHIVE)
        return _verify_ranges(file, ranges, starts)


def _verify_ranges(file: BinaryIO, ranges: Sequence[Sequence[Any]], starts: list[int]) -> int:
    """Walk the headers of the new tar: each range must begin where a key begins, unless it goes on with one."""
    keys, end = 0, 0
    expected = deque(start for start, place in zip(starts, [*ranges, ()], strict=True) if len(place) < 4)
    try:
        for _, entry in index(file):
            keys, end = keys + 1, entry.offset + entry.size
            if expected[0] == entry.offset:
                expected.popleft()
            if end > expected[0]:
                raise TornTar(f"the key at byte {entry.offset} goes on past {expected[0]}", entry.offset, entry.offset)
        if end != starts[-1]:
            raise TornTar(f"the keys end at byte {end}, not {starts[-1]}", end, end)
    except TornTar as error:
        # A member that ends with its range is fine, and the next range is not; any other member went astray itself.
        at = error.end if error.end in starts[:-1] else error.last
        source, offset, size = ranges[bisect_right(starts, at) - 1]
        raise TornTar(f"{source}: bytes {offset} to {offset + size} are not whole keys of a tar ({error})") from error
    return keys


def write_table(
    path: str | Path, rows: list[dict[str, Any]], meta: dict[str, Any], schema: pa.Schema | None = None
) -> None:
    """Write rows (column -> value) as parquet. The same rows give the same bytes.

    meta: JSON values, kept under the metadata key "hpc". Give the schema where it must not depend on the rows: without
    one, a table of no rows has no columns. Raises ValueError for a row with a column that the schema lacks.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))  # pyarrow looks at the first row only
    if schema is not None and (unknown := set(names) - set(schema.names)):
        raise ValueError(f"{path}: the columns {sorted(unknown)} are not in the schema; it has {schema.names}")
    if schema is None:
        table = pa.table({name: [row.get(name) for row in rows] for name in names})
    else:
        table = pa.Table.from_pylist(rows, schema=schema)
    write_arrow(path, table, meta)


def write_arrow(path: str | Path, table: pa.Table, meta: dict[str, Any]) -> None:
    """Write a table as `write_table` does rows."""
    text = json.dumps(meta, sort_keys=True, ensure_ascii=False)
    pq.write_table(table.replace_schema_metadata({"hpc": text}), path, compression="zstd")


def read_table(source: str | Path | BinaryIO, columns: list[str] | None = None) -> pa.Table:
    """Read a table: all columns, or those named, in that order. Raises ValueError for a column that is not there."""
    with pq.ParquetFile(source) as file:
        if columns is not None and (missing := set(columns) - set(file.schema_arrow.names)):
            raise ValueError(f"{source}: no columns {sorted(missing)}; it has {file.schema_arrow.names}")
        table = file.read(columns)
        return table if columns is None else table.select(columns)


def columns(source: str | Path | BinaryIO) -> list[str]:
    """The names of a table's columns."""
    with pq.ParquetFile(source) as file:
        return list(file.schema_arrow.names)


def read_meta(source: str | Path | BinaryIO) -> dict[str, Any]:
    """The meta that `write_table` was given."""
    with pq.ParquetFile(source) as file:
        text = (file.schema_arrow.metadata or {}).get(b"hpc")
    if text is None:
        raise ValueError(f"{source}: a parquet file without the metadata key 'hpc'; it was not written by hpc")
    return json.loads(text)
