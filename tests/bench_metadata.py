"""What the parts cost that look at the metadata of all clips: seconds, memory, and how both grow with their number.

    python tests/bench_metadata.py [--clips 100000 1000000] [--folder FOLDER]

The tables are made: shards of 10,000 clips with the columns that the stages write, a tenth of them duplicates, a
captioned window each. Every part runs in a process of its own; memory is its peak resident set, of which `imports` is
there before it begins. Duplicates have a bench of their own (bench_dedup.py), planning of inputs too (bench.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import multiprocessing
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHARD = 10_000
Upstream = dict[str, list[tuple[str, dict[str, str]]]]


def filled(schema: pa.Schema, columns: dict[str, Any], rows: int, meta: dict[str, Any] | None = None) -> pa.Table:
    """A table of these columns; all others of the schema are null."""
    arrays = [pa.array(columns[f.name], f.type) if f.name in columns else pa.nulls(rows, f.type) for f in schema]
    return pa.table(arrays, schema=schema.with_metadata({"hpc": json.dumps(meta or {})}))


def write(folder: Path, clips: int) -> Upstream:
    from hpc.curate import caption_check, clip, shard_members

    rng = np.random.default_rng(0)
    made: Upstream = {"clips": [], "members": [], "dedup": [], "caption": [], "check": []}
    words = [(name, pa.string()) for name in ("uuid", "caption", "status")]
    captions = pa.schema([*words, ("window", pa.int32())])
    verdicts = pa.schema([("uuid", pa.string()), ("verdict", pa.string())])

    def put(stage: str, shard: int, table: pa.Table, *more: str) -> None:
        path = folder / stage / f"{shard:06}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)
        made[stage].append((path.stem, {".parquet": str(path)} | {s: str(path.with_suffix(s)) for s in more}))

    n = SHARD
    for shard in range(clips // n):
        uuids = [hashlib.md5(b"%d/%d" % (shard, i)).hexdigest() for i in range(n)]
        size = np.full(n, 1_000_000)
        source = {"source": [f"in{shard}.mp4"] * n, "etag": ["e"] * n}
        place = {"offset": np.arange(n) * 1_000_000, "size": size}
        kept = {"uuid": uuids, "verdict": ["keep"] * n, "motion_pixels_mean": rng.gamma(2, 1, n), **source, **place}
        put("clips", shard, filled(clip.SCHEMA, kept, n), ".tar")
        bins = [f"resolution_720/aspect_ratio_16_9/duration_{i % 3}" for i in range(n)]
        entries = {"key": uuids, "uuid": uuids, "bin": bins, **source, **place}
        entries |= {name: size for name in shard_members.SCHEMA.names if name.endswith(("_size", "_bytes", "_offset"))}
        meta = {"made_of": {"clips": {".tar": f"{folder}/clips/{shard:06}.tar"}}}
        put("members", shard, filled(shard_members.SCHEMA, entries, n, meta), ".tar")
        put("dedup", shard, filled(verdicts, {"uuid": uuids[3::10], "verdict": ["duplicate"] * (n // 10)}, n // 10))
        windows = {"uuid": uuids, "window": np.zeros(n, np.int32)}
        put("caption", shard, filled(captions, windows | {"caption": ["a car"] * n, "status": ["success"] * n}, n))
        checks = windows | {"hash": rng.integers(1, 2**63, n, np.uint64), "words": rng.poisson(90, n),
                            "language": ["en"] * n, "flags": [[] for _ in range(n)]}  # fmt: skip
        put("check", shard, filled(caption_check.SCHEMA, checks, n))
    return made


def plain(upstream: Upstream, folder: Path) -> str:
    from hpc.curate import shard
    from hpc.curate.settings import Shard

    return f"{sum(1 for _ in shard.freeze(Shard(), {k: upstream[k] for k in ('clips', 'dedup')}, set()))} tars"


def tree(upstream: Upstream, folder: Path) -> str:
    from hpc.curate import shard_tree
    from hpc.curate.settings import ShardTree

    needed = {k: upstream[k] for k in ("clips", "members", "dedup")}
    return f"{sum(1 for _ in shard_tree.freeze(ShardTree(), needed, set()))} shards"


def named(upstream: Upstream, folder: Path) -> str:
    """The planning, and then all lists of what is left out."""
    from hpc.curate import shard_tree
    from hpc.curate.settings import ShardTree
    from hpc.data.work import Work

    needed, process = {k: upstream[k] for k in ("clips", "members", "dedup")}, shard_tree.start(ShardTree())
    rows = 0
    for plan in shard_tree.freeze(ShardTree(), needed, set()):
        if "left_out" in plan[0]:
            rows += process(Work("0", [], plan, {}, folder, "f", lambda: None, lambda *_: None)).counts["dropped"]
    return f"{rows:,} clips"


def captions(upstream: Upstream, folder: Path) -> str:
    from hpc.curate import caption_qa
    from hpc.curate.settings.caption_qa import CaptionFind
    from hpc.data.work import Work

    [rows] = caption_qa.freeze(CaptionFind(), {k: upstream[k] for k in ("caption", "check")}, set())
    done = caption_qa.process(CaptionFind(), Work("0", [], rows, {}, folder, "f", lambda: None, lambda *_: None))
    return f"{done.counts['windows']:,} windows"


def report(upstream: Upstream, folder: Path) -> str:
    from hpc.curate import clips
    from hpc.curate.settings import Clips
    from hpc.curate.settings.filters import Filters, Motion

    openers = {shard: lambda suffix, o=objects: open(o[suffix], "rb") for shard, objects in upstream["clips"]}  # noqa: PTH123
    found = clips.scores(Clips(filter=Filters(motion=Motion())), openers)
    assert found
    return f"a sample of {found.sampled.clips:,} clips"


PARTS: dict[str, Callable[[Upstream, Path], str]] = {
    "plan of plain tars": plain,
    "plan of a tree": tree,
    "a tree's plan, and the names of what it leaves out": named,
    "captions looked over": captions,
    "report's histograms": report,
}


def peak() -> float:
    """MiB, of this process since it began: getrusage would tell of its parent's as well."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measured(name: str, upstream: Upstream, folder: Path, out: Any) -> None:
    import hpc.curate.shard_tree  # noqa: F401

    before = peak()
    begun = time.process_time()
    words = PARTS[name](upstream, folder)
    out.put((time.process_time() - begun, before, peak(), words))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    print("| part | clips | CPU seconds | peak MiB | imports | |\n|---|---|---|---|---|---|", flush=True)
    for clips in args.clips:
        with tempfile.TemporaryDirectory(dir=args.folder) as name:
            folder = Path(name)
            upstream = write(folder, clips)
            for part in PARTS:
                out = spawn.Queue()
                scratch = Path(tempfile.mkdtemp(dir=folder))
                process = spawn.Process(target=measured, args=(part, upstream, scratch, out))
                process.start()
                seconds, before, most, words = out.get()
                process.join()
                print(f"| {part} | {clips:,} | {seconds:.1f} | {most:.0f} | {before:.0f} | {words} |", flush=True)


if __name__ == "__main__":
    main()
