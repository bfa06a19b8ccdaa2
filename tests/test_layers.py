from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hpc.data import layers
from hpc.data.layers import TarWriter, TornTar, copy_ranges, index, read_meta, read_table, read_tar, write_table

CLIPS = {
    "0b0f3c1e-0001": {".mp4": b"v" * 1000, ".json": b'{"a": 1}', ".webp": b""},
    "-dash and space": {".mp4": b"w" * 512},
    "é" * 80: {".mp4": b"x" * 513, ".json": b"{}"},  # longer than a plain header's name: a pax header before it
}


def write(path: Path, clips: dict[str, dict[str, bytes]]) -> dict[str, layers.Entry]:
    with TarWriter(path) as tar:
        return {key: tar.add(key, members) for key, members in clips.items()}


def read(path: Path) -> dict[str, dict[str, bytes]]:
    with path.open("rb") as file:
        return dict(read_tar(file))


def from_memory(**sources: bytes):
    return lambda source, start, end: sources[source][start:end]


def test_a_tar_reads_back(tmp_path: Path) -> None:
    entries = write(tmp_path / "a.tar", CLIPS)
    assert read(tmp_path / "a.tar") == CLIPS
    data = (tmp_path / "a.tar").read_bytes()
    for key, entry in entries.items():
        for suffix, (offset, size) in entry.members.items():
            assert data[offset : offset + size] == CLIPS[key][suffix]
    assert dict(index(io.BytesIO(data))) == entries
    assert sum(entry.size for entry in entries.values()) + len(layers.END_OF_ARCHIVE) == len(data)


def test_other_readers_agree(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", CLIPS)
    expected = [(key, members) for key, members in CLIPS.items()]
    samples = webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False)
    found = [(s["__key__"], {f".{k}": v for k, v in s.items() if not k.startswith("__")}) for s in samples]
    assert found == expected
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert [(m.name, m.mtime, m.uid, m.gid, m.uname, m.mode) for m in tar] == [
            (key + suffix, 0, 0, 0, "", 0o644) for key, members in CLIPS.items() for suffix in members
        ]
    gnu = subprocess.run(["tar", "-tf", tmp_path / "a.tar"], capture_output=True, text=True, check=True)
    assert len(gnu.stdout.splitlines()) == 6 and not gnu.stderr


def test_the_same_clips_give_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", CLIPS)
    os.utime(tmp_path / "a.tar", (1, 1))
    write(tmp_path / "b.tar", CLIPS)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.text(min_size=1, max_size=120), st.binary(max_size=1100), min_size=1, max_size=4))
def test_any_key_is_read_alike_or_refused(tmp_path_factory: pytest.TempPathFactory, clips: dict[str, bytes]) -> None:
    path = tmp_path_factory.mktemp("any") / "a.tar"
    taken = {}
    with TarWriter(path) as tar:
        for key, payload in clips.items():
            try:
                tar.add(key, {".bin": payload})
                taken[key] = payload
            except ValueError:
                pass
    if taken:
        samples = webdataset.WebDataset(str(path), shardshuffle=False)
        assert [(s["__key__"], s["bin"]) for s in samples] == list(taken.items())
    assert read(path) == {key: {".bin": payload} for key, payload in taken.items()}


@pytest.mark.parametrize("key", ["", "a.b", "/a", "a/", "..", "__a", "a\nb", "a\0b"])
def test_keys_that_webdataset_would_lose_are_refused(tmp_path: Path, key: str) -> None:
    with TarWriter(tmp_path / "a.tar") as tar:
        with pytest.raises(ValueError, match="cannot be a key"):
            tar.add(key, {".mp4": b""})
        tar.add("good", {".mp4": b"1"})
    assert read(tmp_path / "a.tar") == {"good": {".mp4": b"1"}}


def test_other_misuse_is_refused(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "a.tar") as tar:
        for suffix in ("mp4", ".MP4", ".", ".a/b"):
            with pytest.raises(ValueError, match="cannot be a suffix"):
                tar.add("a", {suffix: b""})
        with pytest.raises(ValueError, match="no members"):
            tar.add("a", {})
        tar.add("a", {".mp4": b""})
        with pytest.raises(ValueError, match="unique"):
            tar.add("a", {".mp4": b""})


def test_a_failed_tar_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), TarWriter(tmp_path / "a.tar") as tar:
        tar.add("a", {".mp4": b""})
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_an_empty_tar(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", {})
    assert read(tmp_path / "a.tar") == {}
    assert copy_ranges(tmp_path / "b.tar", [], from_memory()) == 0
    assert read(tmp_path / "b.tar") == {}


def test_a_tar_cut_anywhere_is_torn(tmp_path: Path) -> None:
    write(tmp_path / "a.tar", CLIPS)
    data = (tmp_path / "a.tar").read_bytes()
    for length in [*range(0, len(data) - len(layers.END_OF_ARCHIVE), 128)]:
        with pytest.raises(TornTar):
            list(read_tar(io.BytesIO(data[:length])))
    for offset in (0, 1536):  # headers
        broken = bytearray(data)
        broken[offset : offset + 100] = random.Random(0).randbytes(100)
        with pytest.raises(TornTar):
            list(read_tar(io.BytesIO(broken)))


def test_ranges_make_a_new_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "PIECE", 700)  # so that clips are copied in several pieces
    entries = write(tmp_path / "a.tar", CLIPS)
    more = {f"m{i}": {".mp4": os.urandom(i * 301)} for i in range(30)}
    others = write(tmp_path / "b.tar", more)
    ranges = [("a", e.offset, e.size) for e in entries.values()] + [("b", e.offset, e.size) for e in others.values()]
    random.Random(0).shuffle(ranges)
    sources = from_memory(a=(tmp_path / "a.tar").read_bytes(), b=(tmp_path / "b.tar").read_bytes())
    ticks: list[int] = []
    assert copy_ranges(tmp_path / "c.tar", ranges, sources, ticks.append) == 33
    assert ticks == sorted(ticks) and len(ticks) > 33
    by_place = {("a", e.offset): k for k, e in entries.items()} | {("b", e.offset): k for k, e in others.items()}
    expected = [by_place[source, offset] for source, offset, _ in ranges]
    found = read(tmp_path / "c.tar")
    assert list(found) == expected
    assert found == {key: (CLIPS | more)[key] for key in expected}
    # The same tar as one that was written clip by clip.
    write(tmp_path / "d.tar", found)
    assert (tmp_path / "c.tar").read_bytes() == (tmp_path / "d.tar").read_bytes()


def test_wrong_ranges_are_torn_and_named(tmp_path: Path) -> None:
    first, second, third = write(tmp_path / "a.tar", CLIPS).values()
    other = write(tmp_path / "b.tar", {"other": {".mp4": b"o" * 999, ".json": b"{}"}})["other"]
    data, others = (tmp_path / "a.tar").read_bytes(), (tmp_path / "b.tar").read_bytes()
    zeroed = data[: first.offset] + bytes(first.size) + data[first.size :]
    wrong = {
        "past the end": ("a", 0, len(data) + 512),
        "header only": ("a", first.offset, 512),
        "inside a payload": ("a", first.offset + 512, first.size - 512),
        "without the last block": ("a", second.offset, second.size - 512),
        "into the next key": ("a", second.offset, second.size + 512),
        "pax header cut off": ("a", third.offset + 512, third.size - 512),
        "with the end of archive": ("a", third.offset, third.size + 512),
        "a hole": ("zeroed", first.offset, first.size),
    }
    for what, bad in wrong.items():
        for ranges in ([bad], [bad, ("b", 0, other.size)], [("b", 0, other.size), bad]):
            with pytest.raises(TornTar, match=rf"{bad[0]}: bytes {bad[1]} to"):
                copy_ranges(tmp_path / "c.tar", ranges, from_memory(a=data, zeroed=zeroed, b=others))
                pytest.fail(what)


def test_a_tick_may_stop_the_copy(tmp_path: Path) -> None:
    entry, *_ = write(tmp_path / "a.tar", CLIPS).values()
    data = (tmp_path / "a.tar").read_bytes()

    def stop(written: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        copy_ranges(tmp_path / "c.tar", [("a", 0, entry.size)] * 100, from_memory(a=data), stop)


def test_map_ahead_is_lazy_and_in_order() -> None:
    taken = []

    def numbers():
        for i in range(1000):
            taken.append(i)
            yield i

    results = layers.map_ahead(lambda i: i * i, numbers())
    assert [next(results) for _ in range(10)] == [i * i for i in range(10)]
    assert len(taken) < 30
    results.close()
    assert list(layers.map_ahead(str, [])) == []
    with pytest.raises(ZeroDivisionError):
        list(layers.map_ahead(lambda i: 1 // i, [1, 0, 1]))


ROWS = [{"uuid": "a", "offset": 0, "scores": [0.5, 1.0]}, {"uuid": "b", "offset": None, "scores": []}]
SCHEMA = pa.schema([("uuid", pa.string()), ("offset", pa.int64()), ("scores", pa.list_(pa.float32()))])


def test_a_table_reads_back(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, ROWS, {"fingerprint": "é", "n": [1, {"x": None}]}, SCHEMA)
    assert read_table(path).to_pylist() == ROWS
    assert read_table(path).schema.equals(SCHEMA)
    assert read_meta(path) == {"fingerprint": "é", "n": [1, {"x": None}]}
    with path.open("rb") as file:
        assert read_table(file, ["offset", "uuid"]).to_pylist() == [{k: r[k] for k in ("offset", "uuid")} for r in ROWS]
        assert read_meta(file)["fingerprint"] == "é"
    write_table(tmp_path / "b.parquet", ROWS, {"n": [1, {"x": None}], "fingerprint": "é"}, SCHEMA)
    assert path.read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_empty_tables(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, [], {"why": "no clips"}, SCHEMA)
    assert read_table(path, ["uuid"]).to_pylist() == [] and read_table(path).schema.equals(SCHEMA)
    assert read_meta(path) == {"why": "no clips"}
    write_table(path, [], {})
    assert len(read_table(path)) == 0 and read_meta(path) == {}


def test_columns_do_not_vanish(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_table(path, [{"a": 1}, {"b": "x"}], {})
    assert read_table(path).to_pylist() == [{"a": 1, "b": None}, {"a": None, "b": "x"}]
    with pytest.raises(ValueError, match=r"no columns \['c'\]; it has \['a', 'b'\]"):
        read_table(path, ["a", "c"])
    with pytest.raises(ValueError, match=r"\['typo'\] are not in the schema"):
        write_table(path, [{"uuid": "a"}, {"typo": 1}], {}, SCHEMA)
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ValueError, match="not written by hpc"):
        read_meta(path)
