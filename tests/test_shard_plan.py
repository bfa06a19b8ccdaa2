"""The order of a data set, through temporary files: the same as sorting all of it in memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from hpc.data import shard_plan
from hpc.data.shard_plan import JUDGED, RECORD, Plan, groups, hashes, local, packed, unpacked


def records(uuids: list[str], table: int, **columns: list[int]) -> np.ndarray:
    found = np.zeros(len(uuids), RECORD)
    found["hash"], found["table"], found["row"] = hashes(uuids), table, range(len(uuids))
    for name, values in columns.items():
        found[name] = values
    return found


def judged(uuids: list[str], table: int) -> np.ndarray:
    found = np.zeros(len(uuids), JUDGED)
    found["hash"], found["table"], found["row"] = hashes(uuids), table, range(len(uuids))
    return found


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("at_once", [3, 50_000])
def test_the_order_is_that_of_sorting_in_memory(shuffle: bool, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_plan, "AT_ONCE", at_once)
    chance = random.Random(0)
    entries = [(f"{chance.randrange(400)}", table, row) for table in range(20) for row in range(30)]
    place = lambda uuid: f"bin {int(uuid) % 3}"  # a clip's bin belongs to it
    gone = {f"{i}" for i in range(0, 400, 7)}
    with Plan() as plan:
        for name in sorted(gone):
            plan.drop(judged([name, "not there"], int(name)))
        for table in range(20):
            uuids = [uuid for uuid, at, _ in entries if at == table]
            plan.add(records(uuids, table, bin=[plan.bin(place(uuid)) for uuid in uuids]))
        plan.sort(shuffle)
        assert plan.bins() == ["bin 0", "bin 1", "bin 2"]
        made = {name: [(int(one["table"]), int(one["row"])) for some in plan.entries(name) for one in some]
                for name in plan.bins()}  # fmt: skip
        copies = sorted((int(one["table"]), int(one["row"])) for one in plan.copies.read(0))
        dropped = [(int(one["table"]), int(one["row"])) for one in plan.dropped.read(0)]
    first: dict[str, tuple[int, int]] = {}
    again = []
    for uuid, table, row in entries:
        if uuid not in gone and uuid in first:
            again.append((table, row))
        elif uuid not in gone:
            first[uuid] = (table, row)
    order = sorted(first, key=lambda uuid: hashes([uuid])[0] if shuffle else first[uuid])
    assert made == {f"bin {i}": [first[uuid] for uuid in order if int(uuid) % 3 == i] for i in range(3)}
    assert copies == again
    assert dropped == sorted((int(uuid), 0) for uuid in gone & {uuid for uuid, _, _ in entries})


def test_the_first_decision_about_a_clip_is_told() -> None:
    with Plan() as plan:
        for table, names in enumerate(["cd", "db", ""]):
            plan.drop(judged([*names, "nobody"], table))
        plan.add(records(["a", "b", "c", "d", "d"], 0, bin=[plan.bin("")] * 5))
        plan.sort(True)
        assert [(int(one["table"]), int(one["row"])) for one in plan.dropped.read(0)] == [(0, 0), (0, 1), (1, 1)]
        assert [int(one["row"]) for some in plan.entries("") for one in some] == [0]


def test_windows_of_a_clip_are_entries_of_their_own() -> None:
    with Plan() as plan:
        plan.bin("")
        plan.add(records(["a", "a", "b", "a"], 0, start=[0, 256, 0, 0]))
        plan.sort(False)
        assert [int(one["row"]) for some in plan.entries("") for one in some] == [0, 1, 2]
        assert [int(one["row"]) for one in plan.copies.read(0)] == [3]


@pytest.mark.parametrize("seed", range(20))
def test_groups_are_full(seed: int) -> None:
    """As Cosmos-Curate groups them: one is closed when the next clip would be too much; one clip at least."""
    chance = random.Random(seed)
    sizes = [chance.choice([1, 5, 30, 120]) for _ in range(chance.randrange(60))]
    found = records([f"{i}" for i in range(len(sizes))], 0, video_bytes=sizes)
    most, limit = chance.choice([4, 1000]), 100
    expected: list[list[int]] = []
    for row, size in enumerate(sizes):
        if not expected or sum(sizes[i] for i in expected[-1]) + size > limit or len(expected[-1]) == most:
            expected.append([])
        expected[-1].append(row)
    for step in (1, 7, 1000):
        pieces = (found[i : i + step] for i in range(0, len(found), step))
        assert [one["row"].tolist() for one in groups(pieces, limit, most)] == expected


def test_entries_travel_as_text() -> None:
    found = records(["a", "b", "c"], 7, offset=[1, 2**40, 3])
    found["table"][1] = 3
    near, mine = local(found, list("abcdefgh"))
    assert near == ["d", "h"] and mine["table"].tolist() == [1, 0, 1]
    text = json.loads(json.dumps(packed(mine)))
    assert np.array_equal(unpacked(text), mine)


def test_planning_a_tree_needs_little_memory(tmp_path: Path) -> None:
    """200,000 entries of 20 shards in three bins, a tenth of them dropped; a million take 8 MiB more."""
    code = """
        import hashlib, json, resource, sys, time
        import pyarrow as pa
        from hpc.curate import shard_members, shard_tree
        from hpc.curate.settings import ShardTree
        from hpc.data import layers
        folder, members, drops, n = sys.argv[1], [], [], 10_000
        for s in range(20):
            uuids = [hashlib.md5(b"%d/%d" % (s, i)).hexdigest() for i in range(n)]
            table = {"key": uuids, "uuid": uuids, "source": ["in.mp4"] * n, "etag": ["e"] * n, "detail": ["x"] * n,
                "why": [None if i % 50 else "too-short" for i in range(n)],
                "bin": [f"resolution_720/aspect_ratio_16_9/duration_{i % 3}" for i in range(n)]}
            table |= {name: [None if "frame" in name or name == "cameras" else 1_000_000] * n
                      for name in shard_members.SCHEMA.names if name not in table}
            meta = {"hpc": json.dumps({"made_of": {"clips": {".tar": f"c{s}.tar", ".parquet": ""}}})}
            path = f"{folder}/m{s}.parquet"
            layers.pq.write_table(pa.table(table, shard_members.SCHEMA).replace_schema_metadata(meta), path)
            members.append((f"{s:06}", {".tar": f"m{s}.tar", ".parquet": path}))
            path = f"{folder}/d{s}.parquet"
            layers.write_table(path, [{"uuid": uuid, "verdict": "duplicate"} for uuid in uuids[3::10]], {})
            drops.append((f"{s:06}", {".parquet": path}))
        clips = [("0", {".tar": "", ".parquet": drops[0][1][".parquet"]})]
        upstream = {"clips": clips, "members": members, "dedup": drops}
        before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
        plan = list(shard_tree.freeze(ShardTree(), upstream, set()))
        print(len(plan), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, time.process_time() - start)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tars, kib, seconds = done.stdout.split()
    assert int(tars) == 3 * 112 + 2, "of 524 clips each, and lists of what fits nowhere and of duplicates"
    assert int(kib) < 100 * 1024 and float(seconds) < 10, done.stdout
