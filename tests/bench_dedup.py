"""What the dedup costs: seconds and memory of each part, and its steps beside the matrix product that they consist of.

    python tests/bench_dedup.py [--rows 1000000] [--dim 256] [--folder FOLDER] [--steps]

The rows are made: a mixture of as many directions as there are clusters, one row in ten a near copy of another. Seconds
are of this process, with all of its reads and writes; memory is its peak resident set within a part. Steps and matrix
products take turns, on the CPU or, where there is one, the GPU; each figure is the best of several.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from dedups import EMBEDDING, Upstream, run

from hpc.curate.dedup import sphere
from hpc.curate.settings import Dedup

SHARD = 50_000  # rows
TURNS = 5


def directions(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    return rng.normal(size=(count, dim)).astype(np.float32)


def rows_of(rng: np.random.Generator, points: np.ndarray, count: int) -> np.ndarray:
    """Around the points, at an angle of about 40 degrees; every tenth is a near copy of the one before."""
    out = points[rng.integers(len(points), size=count)] + 0.8 * directions(rng, count, points.shape[1])
    out[9::10] = out[8::10][: len(out[9::10])] + 0.05 * directions(rng, len(out[9::10]), points.shape[1])
    return out


def write(folder: Path, rows: int, dim: int) -> Upstream:
    rng = np.random.default_rng(0)
    points = directions(rng, math.isqrt(rows), dim)
    made = []
    for number, start in enumerate(range(0, rows, SHARD)):
        x = rows_of(rng, points, min(SHARD, rows - start))
        uuids = pa.array([f"00000000-0000-5000-8000-{start + row:012}" for row in range(len(x))])
        cells = pa.FixedSizeListArray.from_arrays(pa.array(x.reshape(-1)), dim)
        path = folder / f"{number:06}.parquet"
        pq.write_table(pa.table([uuids, cells], EMBEDDING(dim)), path)
        made.append((f"{number:06}", {".parquet": str(path)}))
    return {"embed": made}


class Watch:
    """Seconds and peak memory of each part."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak: dict[str, int] = {}
        self.turns: dict[str, int] = {}

    @contextlib.contextmanager
    def __call__(self, words: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        begun = time.perf_counter()
        yield
        seconds = time.perf_counter() - begun
        status = Path("/proc/self/status").read_text()
        peak = int(re.search(r"VmHWM:\s+(\d+)", status)[1]) * 1024  # type: ignore[index]
        self.seconds[words] = self.seconds.get(words, 0.0) + seconds
        self.peak[words] = max(self.peak.get(words, 0), peak)
        self.turns[words] = self.turns.get(words, 0) + 1


def best(*works: Callable[[], object]) -> list[float]:
    """The least seconds of each, one after the other, TURNS times."""
    out = [math.inf] * len(works)
    for work in works:
        work()
    for _ in range(TURNS):
        for place, work in enumerate(works):
            begun = time.perf_counter()
            work()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            out[place] = min(out[place], time.perf_counter() - begun)
    return out


def steps(dim: int) -> None:
    tiles, rng = sphere.Tiles(), np.random.default_rng(1)
    print(f"\n{tiles.on}, {torch.get_num_threads()} threads, {dim} dimensions, 32 bits; best of {TURNS}\n")
    print("| step | GFLOP/s | torch.mm of the same size | ratio | seconds over those of mm |\n|---|---|---|---|---|")
    scale = 1 if tiles.on.type == "cpu" else 8
    for count, k in ((65536 * scale, 1000), (16384 * scale, 4096)):
        points = directions(rng, k, dim)
        x, _ = sphere.unit(rows_of(rng, points, count))
        c = torch.from_numpy(sphere.unit(points)[0]).to(tiles.on)
        apart, y = sphere.gaps(c), torch.from_numpy(x).to(tiles.on)
        out = torch.empty(len(x), k, device=tiles.on)
        kernel = lambda x=x, c=c, apart=apart: sphere.assign(x, c, apart, 0.03, tiles)
        labels = lambda y=y, c=c: sphere.nearest(y, c, tiles)
        own, near, plain = best(kernel, labels, lambda y=y, c=c, out=out: torch.mm(y, c.T, out=out))
        work = 2 * len(x) * k * dim / 1e9
        for words, seconds in (("assign: home and guests", own), ("k-means: nearest centroid", near)):
            print(f"| {words}, {len(x)} x {k} | {work / seconds:.0f} | {work / plain:.0f} | {plain / seconds:.2f} | "
                  f"{seconds / plain:.2f} |", flush=True)  # fmt: skip
    for count, guests in ((1000, 0), (1000, 4000), (8192, 0), (8192, 8192), (16384 * min(scale, 4), 0)):
        x, _ = sphere.unit(rows_of(rng, directions(rng, 1, dim), count + guests))
        home, guest = x[:count], x[count:]
        order = rng.permutation(len(x))
        rank, guest_rank = np.sort(order[:count]), np.sort(order[count:])
        kernel = lambda a=home, b=guest, r=rank, s=guest_rank: sphere.earlier(a, b, r, s, 0.03, tiles)
        a, b = (torch.from_numpy(one).to(tiles.on) for one in (home, x))
        out = torch.empty(count, len(x), device=tiles.on)
        own, plain = best(kernel, lambda a=a, b=b, out=out: torch.mm(a, b.T, out=out))
        tri = sum((part.stop - part.start) * part.stop for part in sphere.blocks(count, tiles.rows))  # what it computes
        done, whole = (2 * products * dim / 1e9 for products in (tri + count * guests, count * len(x)))
        print(f"| prune: {count} at home, {guests} guests | {done / own:.0f} | {whole / plain:.0f} | "
              f"{(done / own) / (whole / plain):.2f} | {own / plain:.2f} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--folder", type=Path, help="where to work; default: a temporary one")
    parser.add_argument("--steps", action="store_true", help="the steps alone")
    words = parser.parse_args()
    steps(words.dim)
    if words.steps:
        return
    with tempfile.TemporaryDirectory(dir=words.folder) as name:
        folder = Path(name)
        upstream = write(folder, words.rows, words.dim)
        watch = Watch()
        out = run(folder / "run", Dedup(), upstream, around=watch)
        print(f"\n{words.rows:,} rows x {words.dim}, {words.rows * words.dim * 4 / 2**30:.2f} GiB\n")
        print("| part | shards | seconds | peak memory, GiB |\n|---|---|---|---|")
        for part, seconds in watch.seconds.items():
            print(f"| {part} | {watch.turns[part]} | {seconds:.1f} | {watch.peak[part] / 2**30:.2f} |")
        for path in sorted((out / "extraction").glob("*.csv")):
            print(path.read_text().splitlines()[1])
        rows = sum(pq.read_metadata(path).num_rows for path in folder.glob("run/dedup-assign/*.parquet"))
        clusters = len(np.load(out / "clustering_results" / "kmeans_centroids.npy"))
        print(f"{clusters} clusters; a row is a guest in {rows / words.rows - 1:.2f}")


if __name__ == "__main__":
    main()
