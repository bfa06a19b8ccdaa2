"""Figures of all videos together, with intervals, and the page: the last part of evaluate.videos.

One shard: <shard>.parquet with the rows of all generated videos, <shard>.json with the figures and with what was not
measured, and page.html. Shards are added up in the order of their names, so that the figures are the same bits however
many tasks made them.
"""

from __future__ import annotations

import functools
import json
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hpc.data import layers, storage
from hpc.data.upstream import table
from hpc.data.work import Made, Work
from hpc.evaluate import frechet, intervals, page
from hpc.evaluate.frechet import FIELDS, Statistics
from hpc.evaluate.settings.videos import Merge

NAMED = 1000  # videos that are not measured, in the .json; the table has them all
SAMPSON_BANDS = (1.0, 3.0, 5.0)
BANDS = {"inception": (30.0, 50.0, 100.0), "i3d": (100.0, 200.0, 400.0)}
"""By which the Cosmos cookbook tells good figures from bad ones: of FID, of FVD, and of Sampson errors."""


class Figure(NamedTuple):
    name: str
    value: float | None
    """None: there are none."""
    low: float | None
    high: float | None
    n: int
    """Of what it is the mean, or of how many generated features."""
    unit: str
    better: str
    """"higher", "lower" or ""."""
    band: str = ""
    note: str = ""


class Column(NamedTuple):
    column: str
    title: str
    unit: str
    better: str
    bands: tuple[float, ...] = ()


COLUMNS = (
    Column("psnr", "PSNR", "dB", "higher"),
    Column("ssim", "SSIM", "", "higher"),
    Column("tse", "TSE", "px", "lower", SAMPSON_BANDS),
    Column("tse_mean", "TSE, outliers too", "px", "lower"),
    Column("real_tse", "TSE of the real ones", "px", ""),
    Column("cse", "CSE", "px", "lower", SAMPSON_BANDS),
    Column("cse_mean", "CSE, outliers too", "px", "lower"),
    Column("real_cse", "CSE of the real ones", "px", ""),
)


def freeze(
    settings: Merge, upstream: Mapping[str, Sequence[tuple[str, dict[str, str]]]], superseded: set[tuple[str, str]]
) -> Iterator[list[Any]]:
    """One shard, of all."""
    [shards] = upstream.values()
    yield [[files[".npz"], files[".parquet"]] for _, files in sorted(shards)]


def start(settings: Merge) -> Callable[[Work], Made]:
    return functools.partial(process, settings)


def process(settings: Merge, work: Work) -> Made:
    """Make the shard."""
    rows = pa.concat_tables(layers.map_ahead(table, (uri for _, uri in work.rows))).combine_chunks()
    work.check()
    figures = [*of_columns(rows, settings, work.check), *of_answers(rows, settings, work.check)]
    figures += of_features([uri for uri, _ in work.rows], settings, work)
    lost = rows.filter(pc.is_valid(rows["why"]))
    alone = rows.filter(pc.and_(pc.is_valid(rows["real_why"]), pc.is_null(rows["why"])))
    told = {
        "stage": settings.KIND, "fingerprint": work.fingerprint, "videos": len(rows),
        "generated": folder(rows, "generated"), "real": folder(rows, "real"), "held_out": held_out(rows),
        "measured": len(rows) - len(lost), "pairs": len(rows) - rows["compared"].null_count, "level": settings.level,
        "figures": [one._asdict() for one in figures], "not_measured": named(lost, "why"),
        "without_real": named(alone, "real_why"),
    }  # fmt: skip
    out, summary = (work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS)
    layers.write_arrow(out, rows, {"stage": settings.KIND, "fingerprint": work.fingerprint})
    summary.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n")
    html = work.scratch / "page.html"
    html.write_text(page.page(told, rows, settings.shown, work.check))
    counts = {"videos": len(rows), "measured": len(rows) - len(lost), "pairs": told["pairs"]}
    return Made([out, summary], counts, tree={storage.join(work.folder, "page.html"): html})


def folder(rows: pa.Table, side: str) -> str:
    """Where the videos of a side lie: what their uris have in common; "" where there are none."""
    uris = [uri for uri in pc.unique(pc.struct_field(rows[side].combine_chunks(), "uri")).to_pylist() if uri]
    common = posixpath.commonpath([uri.rpartition("/")[0] for uri in uris]) if uris else ""
    return common.replace("s3:/", "s3://", 1) if storage.is_s3(next(iter(uris), "")) else common


def held_out(rows: pa.Table) -> dict[str, int]:
    """List of a training's held-out clips -> how many videos go on from one of them."""
    counted = pc.value_counts(rows["held_out"].drop_null()).to_pylist()
    return {one["values"]: one["counts"] for one in sorted(counted, key=lambda one: one["values"])}


def figures(open_object: Callable[[str], BinaryIO]) -> dict[str, Any]:
    """What the run's report shows of a published shard."""
    with open_object(".json") as file:
        told = json.load(file)
    return {"of": page.compared(told), "rows": told["figures"]}


def named(rows: pa.Table, why: str) -> dict[str, str]:
    """Name -> why, of the first ones."""
    some = rows.slice(0, NAMED)
    return dict(zip(some["name"].to_pylist(), some[why].to_pylist(), strict=True))


def of_columns(rows: pa.Table, settings: Merge, check: Callable[[], None]) -> Iterator[Figure]:
    """The means over videos; of CSE over scenes."""
    for one in COLUMNS:
        if len(values := rows[one.column].drop_null()):
            yield mean(one.title, one.column, values.to_numpy(), one.unit, one.better, settings, check, one.bands)


def of_answers(rows: pa.Table, settings: Merge, check: Callable[[], None]) -> Iterator[Figure]:
    """The mean of each question; what was not understood is counted beside it."""
    told = [one for cell in rows["answers"].to_pylist() for one in cell or ()]
    for name in dict.fromkeys(one["question"] for one in told):
        mine = [one for one in told if one["question"] == name]
        values = np.array([one["value"] for one in mine if one["value"] is not None])
        lost = len(mine) - len(values)
        note = f"{lost} of {len(mine)} answers were not understood" if lost else ""
        if len(values):
            yield mean(f"model: {name}", name, values, "", "", settings, check)._replace(note=note)
        else:
            yield Figure(f"model: {name}", None, None, None, 0, "", "", note=note)


def mean(
    title: str, name: str, values: Any, unit: str, better: str, settings: Merge, check: Callable[[], None],
    bands: tuple[float, ...] = (),
) -> Figure:  # fmt: skip
    rng = intervals.generator(settings.seed, name)
    low, high = intervals.of_mean(values, settings.resamples, settings.level, rng, check) or (None, None)
    value = float(np.asarray(values, np.float64).mean())
    return Figure(title, value, low, high, len(values), unit, better, band(value, bands))


def band(value: float, limits: Sequence[float]) -> str:
    """Which limit a figure is below: "below 30"; "" without limits."""
    below = next((f"below {limit:g}" for limit in limits if value < limit), "")
    return below or (f"{limits[-1]:g} or more" if limits else "")


def of_features(uris: Sequence[str], settings: Merge, work: Work) -> Iterator[Figure]:
    """The Fréchet distance of each network. Statistics of all shards are added into GROUPS groups, one shard after the
    other: memory does not grow with their number."""
    for number, (name, network) in enumerate(settings.networks.items()):
        groups: dict[str, list[Statistics]] = {"generated": [], "real": []}
        for place, found in enumerate(layers.map_ahead(functools.partial(_read, name), uris, threads=2)):
            work.check()
            work.progress((number + 0.5 * place / len(uris)) / len(settings.networks), f"features of {name}")
            for side, one in found.items():
                if not one.n:
                    continue
                if len(groups[side]) < intervals.GROUPS:
                    groups[side].append(one)
                else:
                    groups[side][place % intervals.GROUPS].merge(one)
        n, m = (sum(one.n for one in groups[side]) for side in ("generated", "real"))
        if not m:  # there are no real ones
            continue
        if min(n, m) < 2:
            note = f"of {n} generated and {m} real features by {network}: two of each are the least"
            yield Figure(f"Fréchet: {name}", None, None, None, n, "", "lower", note=note)
            continue
        dim = groups["real"][0].dim
        all_of = [frechet.combined(groups[side]) for side in ("generated", "real")]
        rng = intervals.generator(settings.seed, f"frechet {name}")
        value = frechet.distance(*all_of)
        low = high = None
        note = f"of {n} generated and {m} real features by {network}"
        if min(n, m) <= dim:  # nor would groups that are drawn again tell anything: they have fewer different ones yet
            note += (f"; no more than their {dim} dimensions: such distances are too large, and to be compared only "
                     "between sets of the same sizes")  # fmt: skip
        elif span := intervals.of_distance(groups["generated"], groups["real"], settings.resamples, settings.level,
                                           rng, work.check):  # fmt: skip
            low, high = span
        yield Figure(f"Fréchet: {name}", value, low, high, n, "", "lower", band(value, BANDS.get(network, ())), note)


def _read(name: str, uri: str) -> dict[str, Statistics]:
    with storage.open(uri) as file, np.load(file) as arrays:
        return {side: Statistics.of_arrays({field: arrays[f"{name}/{side}/{field}"] for field in FIELDS})
                for side in ("generated", "real")}  # fmt: skip
