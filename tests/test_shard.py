from __future__ import annotations

import functools
import json
import random
import subprocess
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import s3
import webdataset

from hpc.curate import clip, shard
from hpc.curate.settings import Shard
from hpc.data import layers, storage
from hpc.data.units import Bytes
from hpc.data.work import Made, Stopped, Work

Upstream = dict[str, list[tuple[str, dict[str, str]]]]


@pytest.fixture(params=["local", "moto", "rclone"])
def base(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    if request.param == "local":
        yield str(tmp_path / "run")
        return
    (tmp_path / "rclone").mkdir()
    with s3.moto() if request.param == "moto" else s3.rclone(tmp_path / "rclone") as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield "s3://bucket/a run"


def publish_clips(base: str, tmp_path: Path, shards: list[list[dict[str, Any]]]) -> Upstream:
    """What curate.clips leaves behind: rows of {"uuid", "members", and maybe "verdict", "source", "etag"}."""
    published = []
    for number, rows in enumerate(shards):
        stem, table = tmp_path / f"{number:06}", []
        with layers.TarWriter(f"{stem}.tar") as tar:
            for row in rows:
                row = {"source": f"in{number}.mp4", "etag": "e", "verdict": "keep", **row}
                entry = tar.add(row["uuid"], row.pop("members")) if "members" in row else None
                table.append({**row, "offset": entry and entry.offset, "size": entry and entry.size, "extra": 1.0})
        columns = dict.fromkeys(["uuid", "source", "etag", "verdict"], layers.pa.string())
        columns |= dict.fromkeys(["offset", "size"], layers.pa.int64()) | {"extra": layers.pa.float64()}
        columns["cameras"] = clip.SCHEMA.field("cameras").type
        layers.write_table(f"{stem}.parquet", table, {}, layers.pa.schema(columns))
        files = {}
        for suffix in (".tar", ".parquet"):
            files[suffix] = storage.join(base, f"clips/{number:06}{suffix}")
            storage.put(files[suffix], Path(f"{stem}{suffix}"))
        published.append((f"{number:06}", files))
    return {"clips": published}


def some_clips(shards: int, each: int, seed: int = 0) -> tuple[list[list[dict[str, Any]]], dict[str, dict[str, bytes]]]:
    chance = random.Random(seed)
    rows = [
        [
            {
                "uuid": str(uuid.UUID(int=chance.getrandbits(128))),
                "members": {".mp4": chance.randbytes(chance.randrange(3000)), ".json": b"{}", ".webp": b"w" * 99},
            }
            for _ in range(each)
        ]
        for _ in range(shards)
    ]
    return rows, {row["uuid"]: row["members"] for part in rows for row in part}


def work(tmp_path: Path, name: str, rows: list[Any], check: Callable[[], None] = lambda: None) -> Work:
    scratch = tmp_path / f"scratch-{name}"
    scratch.mkdir(parents=True)
    return Work(name, [], rows, {}, scratch, "f", check, lambda fraction, words: None)


def make(tmp_path: Path, plan: list[list[Any]], settings: Shard = Shard()) -> tuple[dict[str, Any], list[Made]]:
    """Run the array; what webdataset reads, in order."""
    process = shard.start(settings)
    made = [process(work(tmp_path, f"{i:06}", rows)) for i, rows in enumerate(plan)]
    found: dict[str, Any] = {}
    for one in made:
        samples = webdataset.WebDataset(str(one.objects[0]), shardshuffle=False)
        read = {s["__key__"]: {f".{k}": v for k, v in s.items() if not k.startswith("__")} for s in samples}
        with one.objects[0].open("rb") as file:
            assert dict(layers.read_tar(file)) == read
        assert len(read) == one.counts["clips"]
        assert one.objects[0].stat().st_size == one.counts["bytes_out"]
        assert not read.keys() & found.keys()
        found |= read
    return found, made


def keys(plan: list[list[Any]]) -> list[str]:
    """The clips of a plan, in order, by looking into the source tars."""
    found = []
    for uri, offset, size in (row for rows in plan for row in rows if not isinstance(row, dict)):
        with storage.open(uri) as file:
            inside = [key for key, entry in layers.index(file) if offset <= entry.offset < offset + size]
        found += inside
    return found


def test_every_clip_arrives_once_and_whole(base: str, tmp_path: Path) -> None:
    rows, clips = some_clips(4, 30)
    upstream = publish_clips(base, tmp_path, rows)
    settings = Shard(tar=Bytes(64 * 1024))
    plan = list(shard.freeze(settings, upstream, set()))
    assert plan == list(shard.freeze(settings, upstream, set())) == json.loads(msgspec.json.encode(plan))
    found, made = make(tmp_path, plan, settings)
    assert found == clips
    assert len(plan) > 4
    sizes = [one.counts["bytes_out"] for one in made]
    assert all(size <= settings.tar for size in sizes)
    assert all(size > settings.tar - 6000 for size in sizes[:-1]), "tars are filled"


def test_the_order_is_a_hash_or_that_of_the_inputs(tmp_path: Path) -> None:
    rows, clips = some_clips(3, 20)
    upstream = publish_clips(str(tmp_path / "run"), tmp_path, rows)
    plain = list(shard.freeze(Shard(shuffle=False, max_clips=25), upstream, set()))
    assert keys(plain) == list(clips)
    assert [len(r) for r in plain] == [2, 2, 1], "neighbours are one range"
    shuffled = keys(list(shard.freeze(Shard(max_clips=25), upstream, set())))
    assert shuffled != list(clips) and sorted(shuffled) == sorted(clips)
    # The order belongs to the clips: neither other shards nor the clips around them change it.
    fewer = publish_clips(str(tmp_path / "other"), tmp_path, [rows[2][::-1], rows[0]])
    left = {row["uuid"] for part in (rows[2], rows[0]) for row in part}
    assert keys(list(shard.freeze(Shard(), fewer, set()))) == [key for key in shuffled if key in left]


def test_what_is_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, _ = some_clips(2, 6)
    first, second = rows
    first[0] |= {"verdict": "too-short"}
    del first[1]["members"]
    first[1] |= {"verdict": "static"}  # dropped before it was encoded: no bytes
    first[2] |= {"source": "old.mp4", "etag": "1"}
    first[3] |= {"source": "old.mp4", "etag": "2"}
    second[1] |= {"cameras": [{"source": "left.mp4", "etag": "1"}]}
    second[0] = first[4] | {"members": {".mp4": b"second"}}
    upstream = publish_clips(str(tmp_path / "run"), tmp_path, rows)
    gone = {("old.mp4", "1"), ("in0.mp4", "2"), ("left.mp4", "1")}
    for shuffle in (True, False):
        plan = list(shard.freeze(Shard(shuffle=shuffle), upstream, gone))
        assert sorted(keys(plan)) == sorted(row["uuid"] for row in first[3:] + second[2:])
        (told, *ranges), *more = plan
        assert not any(uri.endswith("000001.tar") and offset == 0 for uri, offset, _ in ranges), "the first one stays"
        (made,) = make(tmp_path / f"{shuffle}", plan)[1]
        assert not more and list(told) == ["left_out"]
        expected = {"clips": len(keys(plan)), "dropped": 1, "dropped_duplicate": 1}
        assert made.counts.items() >= expected.items()
        [(uri, path)] = made.tree.items()
        assert uri.endswith("left-out/000000.parquet")
        [row] = layers.read_table(path).to_pylist()
        assert (row["uuid"], row["why"], row["path"]) == (second[0]["uuid"], "duplicate", None)
    assert "left out 1 clips whose uuid is there already" in caplog.text


def test_nothing_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows, clips = some_clips(1, 5)
    upstream = publish_clips(str(tmp_path / "run"), tmp_path, rows)
    layers.write_table(tmp_path / "d.parquet", [{"uuid": uuid, "verdict": "duplicate"} for uuid in clips], {})
    upstream["dedup"] = [("000000", {".parquet": str(tmp_path / "d.parquet")})]
    assert list(shard.freeze(Shard(), upstream, set())) == []
    assert "no clip stays: 5 are dropped by verdicts, 0 have no place" in caplog.text


def test_what_is_left_out_is_told_tar_by_tar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some with each tar, all others with the last one; each clip once, with the first stage that drops it."""
    monkeypatch.setattr("hpc.data.shard_plan.AT_ONCE", 4)
    rows, clips = some_clips(4, 25)
    upstream = publish_clips(str(tmp_path / "run"), tmp_path, rows)
    drops = {"dull": list(clips)[::3], "dedup": [*list(clips)[::2], "nobody"]}
    for stage, uuids in drops.items():
        upstream[stage] = []
        for number in range(3):
            path = tmp_path / f"{stage}{number}.parquet"
            table = [{"uuid": uuid, "verdict": stage, "reasons": [f"{number}"]} for uuid in uuids[number::3]]
            layers.write_table(path, table, {})
            upstream[stage].append((f"{number:06}", {".parquet": str(path)}))
    plan = list(shard.freeze(Shard(max_clips=10), upstream, set()))
    found, made = make(tmp_path, plan)
    assert len(plan) == 4 and set(found) == set(clips) - set(drops["dull"]) - set(drops["dedup"])
    told = [layers.read_table(*one.tree.values()).to_pylist() for one in made]
    assert [len(some) for some in told[:3]] == [4, 4, 4] and sum(map(len, told)) == len(clips) - len(found)
    expected = {uuid: stage for stage in ("dedup", "dull") for uuid in drops[stage] if uuid in clips}
    assert {row["uuid"]: row["why"] for some in told for row in some} == expected
    assert all(row["detail"][:-1] == f"{row['why']}: " for some in told for row in some)


def test_nothing_to_do(tmp_path: Path) -> None:
    assert list(shard.freeze(Shard(), {"clips": []}, set())) == []
    upstream = publish_clips(str(tmp_path / "run"), tmp_path, [[], [{"uuid": "a", "verdict": "no"}]])
    assert list(shard.freeze(Shard(), upstream, set())) == []


def test_a_clip_larger_than_a_tar_has_its_own(tmp_path: Path) -> None:
    rows = [[{"uuid": f"{i}", "members": {".mp4": bytes(9000 if i == 1 else 10)}} for i in range(4)]]
    upstream = publish_clips(str(tmp_path / "run"), tmp_path, rows)
    plan = list(shard.freeze(Shard(shuffle=False, tar=Bytes(8000)), upstream, set()))
    assert [keys([one]) for one in plan] == [["0"], ["1"], ["2", "3"]]
    assert len(make(tmp_path, plan)[0]) == 4


def test_upstream_that_has_no_clips_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"needs a stage that makes \.tar and \.parquet"):
        list(shard.freeze(Shard(), {"captions": [("000000", {".parquet": "x"})]}, set()))
    upstream = publish_clips(str(tmp_path / "run"), tmp_path, [[{"uuid": "a"}]])
    with pytest.raises(ValueError, match=r"000000\.parquet: 1 kept clips have no offset"):
        list(shard.freeze(Shard(), upstream, set()))


def test_a_torn_source_is_not_copied(base: str, tmp_path: Path) -> None:
    rows, _ = some_clips(1, 10)
    upstream = publish_clips(base, tmp_path, rows)
    uri = upstream["clips"][0][1][".tar"]
    plan = list(shard.freeze(Shard(), upstream, set()))
    whole = storage.read(uri)
    middle = sorted(offset for _, offset, _ in plan[0])[5]
    torn = {
        "cut": whole[: len(whole) // 2],
        "shifted": whole[512:],
        "a hole": whole[:middle] + bytes(512) + whole[middle + 512 :],
        "garbage": whole[:middle] + random.Random(0).randbytes(512) + whole[middle + 512 :],
    }
    for name, data in torn.items():
        storage.put(uri, data)
        with pytest.raises(layers.TornTar, match=r"000000\.tar: bytes"):
            shard.process(work(tmp_path, name, plan[0]))
    storage.put(uri, whole)
    assert len(make(tmp_path, plan)[0]) == 10
    storage.delete(uri)
    with pytest.raises(FileNotFoundError):
        shard.process(work(tmp_path, "gone", plan[0]))


def test_a_source_that_changes_meanwhile_is_not_copied(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "map_ahead", functools.partial(layers.map_ahead, threads=1))
    rows, _ = some_clips(1, 10)
    upstream = publish_clips(base, tmp_path, rows)
    uri = upstream["clips"][0][1][".tar"]
    plan = list(shard.freeze(Shard(), upstream, set()))
    whole, checks = storage.read(uri), []

    def check() -> None:
        checks.append(1)
        if len(checks) == 3:
            storage.put(uri, whole[:-1] + b"\1")

    with pytest.raises(storage.Changed, match=r"000000\.tar: it changed"):
        shard.process(work(tmp_path, "x", plan[0], check))


def test_the_worker_can_stop_it(tmp_path: Path) -> None:
    rows, _ = some_clips(1, 10)
    upstream = publish_clips(str(tmp_path / "run"), tmp_path, rows)

    def check() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        shard.process(work(tmp_path, "x", next(shard.freeze(Shard(), upstream, set())), check))


def test_planning_many_clips_needs_little_memory(tmp_path: Path) -> None:
    """200,000 clips in 20 shards; a million is five times as much."""
    code = """
        import hashlib, resource, sys, time
        import pyarrow as pa
        from hpc.curate import shard
        from hpc.curate.settings import Shard
        from hpc.data import layers
        folder, upstream = sys.argv[1], []
        for s in range(20):
            uuids = [hashlib.md5(b"%d/%d" % (s, i)).hexdigest() for i in range(10_000)]
            table = pa.table({"uuid": uuids, "source": [f"in{s}.mp4"] * 10_000, "etag": ["e"] * 10_000,
                "verdict": ["keep"] * 10_000, "offset": [i * 10240 for i in range(10_000)], "size": [10240] * 10_000})
            layers.pq.write_table(table, f"{folder}/{s}.parquet")
            upstream.append((f"{s}", {".tar": f"{folder}/{s}.tar", ".parquet": f"{folder}/{s}.parquet"}))
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        clips = sum(len(rows) for rows in shard.freeze(Shard(), {"clips": upstream}, set()))
        print(clips, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    clips, kib, seconds = done.stdout.split()
    assert int(clips) > 199_000
    assert int(kib) < 150 * 1024 and float(seconds) < 10, done.stdout
