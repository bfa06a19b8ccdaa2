"""The dedup for tests and benches: its parts one after the other, as their barriers plan them. Without the worker."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from hpc.curate.settings import Dedup
from hpc.data import layers
from hpc.data.work import Work

Upstream = dict[str, list[tuple[str, dict[str, str]]]]
EMBEDDING = lambda dim: pa.schema([("uuid", pa.string()), ("embedding", pa.list_(pa.float32(), dim))])


def run(
    folder: Path,
    settings: Dedup,
    upstream: Upstream,
    superseded: set[tuple[str, str]] = frozenset(),  # type: ignore[assignment]
    around: Callable[[str], AbstractContextManager[None]] = lambda words: nullcontext(),
) -> Path:
    """All parts; returns the folder of the last one. Rows go through JSON, as they do in a plan."""
    made = dict(upstream)
    for name, (part, needs, _) in settings.parts().items():
        module, stage = importlib.import_module(part.CODE), f"dedup-{name}".removesuffix("-")
        own = {one: shards for one, shards in made.items()
               if (one in upstream and "" in needs) or one.removeprefix("dedup-") in needs}  # fmt: skip
        process, made[stage] = module.start(part), []
        with around(f"{stage} freeze"):
            plans = list(module.freeze(part, own, superseded))
        for number, rows in enumerate(plans):
            shard, scratch = f"{number:06}", folder / "scratch" / stage / str(number)
            scratch.mkdir(parents=True)
            plan = msgspec.json.decode(msgspec.json.encode(rows))
            place = str(folder / stage)
            work = Work(shard, [], plan, {}, scratch, "print", lambda: None, lambda share, words: None, folder=place)
            with around(stage):
                done = process(work)
            assert [path.name for path in done.objects] == [shard + suffix for suffix in part.OBJECTS]
            objects = {suffix: str(folder / stage / f"{shard}{suffix}") for suffix in part.OBJECTS}
            for uri, path in {**done.tree, **dict(zip(objects.values(), done.objects, strict=True))}.items():
                assert not Path(uri).exists(), "two shards made the same file"
                Path(uri).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, uri)
            made[stage].append((shard, objects))
        shutil.rmtree(folder / "scratch")
    return folder / "dedup"


def embedded(folder: Path, vectors: np.ndarray, uuids: Sequence[str], shards: int) -> Upstream:
    folder.mkdir(parents=True)
    out = []
    for number, rows in enumerate(np.array_split(np.arange(len(vectors)), shards)):
        path = folder / f"{number:06}.parquet"
        table = [{"uuid": uuids[row], "embedding": vectors[row].tolist()} for row in rows]
        layers.write_table(path, table, {}, EMBEDDING(vectors.shape[1]))
        out.append((f"{number:06}", {".parquet": str(path)}))
    return {"embed": out}


def decided(folder: Path) -> dict[str, tuple[str, float, str]]:
    """uuid -> (max_id, score, reason) of what goes."""
    rows = [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert len({row["uuid"] for row in rows}) == len(rows) and {row["verdict"] for row in rows} <= {"duplicate"}
    return {row["uuid"]: (row["max_id"], row["score"], *row["reasons"]) for row in rows}
