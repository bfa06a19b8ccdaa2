"""What trainers do alike around the loop: which data set it is, which held-out clips are looked at, and which training
goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import torch.distributed as dist

from hpc.data.upstream import trained
from hpc.data.work import Work
from hpc.train import samples
from hpc.train.randomness import key
from hpc.train.ranks import Here
from hpc.train.settings.data import Shape

Upstream = Mapping[str, list[tuple[str, dict[str, str]]]]


def freeze(settings: Any, upstream: Upstream, superseded: set[tuple[str, str]]) -> Iterator[list[Any]]:
    """One shard: the tars of the needed data sets, or of a data set in another layout its folder; the inputs, where no
    stage is needed. Of videos in a folder `videos`, the folder around it, with metas/ and t5_xxl/. Raises ValueError
    where a needed stage made no data set. Where another stage trains the tokenizer its folder comes first."""
    wired = getattr(settings, "wired", dict)()
    rows = [trained(upstream[name], key)[key] for key, (name, _) in wired.items()]
    for name, shards in upstream.items():
        if any(name == other for other, _ in wired.values()):
            continue
        made = shards[0][1]
        if name == "inputs":  # no stage is called so
            rows += sorted({around(uri) for _, uris in shards for uri in uris})
            continue
        if {".tar", ".parquet"} <= made.keys():
            raise ValueError(f"{name} makes clips; training takes a data set of them: put a stage of kind curate.shard "
                             f"with `needs: {name}` before this one, and need that")  # fmt: skip
        if ".tar" in made:
            rows += [files[".tar"] for _, files in shards]
        else:
            rows.append(next(iter(made.values())).rpartition("/")[0])
    yield rows


def around(uri: str) -> str:
    folder = uri.rpartition("/")[0]
    apart = uri.lower().endswith(samples.MOVING) and folder.endswith("/videos")
    return folder.removesuffix("/videos") if apart else uri


def place(settings: Any, work: Work) -> Path:
    """Where checkpoints and metrics are while it trains. Raises ValueError for an output on S3 without `folder`."""
    if settings.folder:
        return Path(settings.folder).expanduser() / work.fingerprint
    if "://" in work.folder:
        raise ValueError(f"folder: the output, {work.folder}, is no file system, where checkpoints could be: give a "
                         "folder that all nodes see")  # fmt: skip
    return Path(work.folder, "training")


def dataset(rows: list[str], folder: Path, here: Here) -> pa.Table:
    """The samples, listed once by one rank: those that go on later see the very same."""
    kept = folder / "samples.parquet"
    if here.rank == 0 and not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        named = [uri for uri in rows if uri.lower().endswith((".tar", *samples.MOVING))]
        tables = [samples.listed(named)] if named else []
        tables += [samples.listed(uri) for uri in rows if uri not in named]
        beside = kept.with_suffix(".part")
        pq.write_table(pa.concat_tables(tables), beside)
        beside.replace(kept)
    dist.barrier(group=here.words)
    return pq.read_table(kept)


class Look(NamedTuple):
    """A held-out clip that is looked at."""

    row: dict[str, Any]
    """Of the table of samples."""
    shape: Shape
    start: int
    """Its middle frames are taken."""
    counts: bool
    """False: it is here only so that every rank has as many."""


def looked_at(settings: Any, held: pa.Table, rank: int, ranks: int) -> Iterator[Look]:
    """A rank's part of the held-out clips that are looked at: the same ones on any number of ranks. Raises ValueError
    where there are held-out ones, and none fits a shape."""
    if not len(held):
        return
    fits = {int(row): shape for shape, rows in zip(
        settings.shapes, samples.assigned(held, settings.shapes).rows, strict=True) for row in rows}  # fmt: skip
    if not fits:
        raise ValueError(f"validation: none of {len(held)} held-out clips has the frames of a shape: hold out more, or "
                         "take shorter shapes")  # fmt: skip
    names = held["key"].to_pylist()
    order = sorted(fits, key=lambda row: key(0, "looked at", names[row]))[: settings.validation.clips]
    for begin in range(0, len(order), ranks):
        number = begin + rank
        row = order[min(number, len(order) - 1)]
        one, shape = held.slice(row, 1).to_pylist()[0], fits[row]
        yield Look(one, shape, (one["frames"] - shape.span(one["fps"])) // 2, number < len(order))


def plain(settings: Any) -> dict[str, Any]:
    """As JSON has it."""
    return msgspec.json.decode(msgspec.json.encode(settings, enc_hook=float))  # durations


def deciding(settings: Any) -> dict[str, Any]:
    """Those settings that must be equal for a checkpoint to be continued."""
    return {name: value for name, value in plain(settings).items() if name not in settings.NEUTRAL}


def identity(settings: Any, table: pa.Table) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued."""
    digest = hashlib.sha256()
    for batch in table.select(["key", "frames", "fps", "height", "width"]).combine_chunks().to_batches():
        digest.update(batch.serialize())
    return deciding(settings) | {"data": digest.hexdigest()[:16]}
