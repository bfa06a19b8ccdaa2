"""What `hpc check` says of a spec beyond its words: does it fit, in memory, time and on disk?

    rows = examine(spec, cluster, runs, inputs)         # of hpc.batch.doctor's kind; `bad` ones would fail
    data_sets(spec)                                     # what trainings read that is there already: to be validated

Memory of GPUs and times of steps are estimates (hpc.train.estimate); time limits, memory of workers and bytes written
are compared with what earlier runs of the same stages took (hpc.batch.earlier), where there are any.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from hpc.batch import accounting, disk, ledger
from hpc.batch import earlier as before
from hpc.batch.cluster import Cluster
from hpc.batch.doctor import Row, Verdict
from hpc.batch.earlier import Earlier
from hpc.batch.spec import Resources, Spec, Stage
from hpc.data import gpu_types, storage
from hpc.data.gpu_types import GIB
from hpc.data.units import seconds, size
from hpc.train import estimate
from hpc.train.estimate import Estimate, Place

NEAR = 0.92
"""Share of a GPU's memory from which on it is tight: NCCL's buffers, the context and fragments come on top."""
BEYOND = 1
"""Checkpoints beside those that are kept: the one that is being written."""


class DataSet(NamedTuple):
    """Something that a training reads and that is there."""

    stage: str
    folder: str
    consumer: str
    """For hpc.validate."""
    frames: int


def examine(spec: Spec, cluster: Cluster, runs: Path, inputs: float) -> list[Row]:
    """inputs: bytes of them all. Raises ValueError as cluster.resources does."""
    rows: list[Row] = []
    known = before.of(spec, runs)
    estimates: dict[str, Estimate] = {}
    for stage in spec.stages.values():
        resources = cluster.resources(stage)
        if hasattr(stage.settings, "estimate") and resources.gpus:
            for nodes in dict.fromkeys((resources.nodes, resources.least_nodes or resources.nodes)):
                on = f" on {nodes} node{'s' * (nodes > 1)}" if nodes < resources.nodes else ""
                place = place_of(spec, stage, msgspec.structs.replace(resources, nodes=nodes), cluster)
                try:
                    found = stage.settings.estimate(place)
                except ValueError as error:
                    rows.append(Row(f"{stage.name}: memory{on}", "unknown", str(error)))
                else:
                    estimates.setdefault(stage.name, found)
                    rows += of_gpus(stage, resources, place, found, on)
        rows += of_time(stage, resources, known.get(stage.name), estimates.get(stage.name))
        rows += of_memory(stage, resources, known.get(stage.name))
    rows += of_disks(spec, runs, inputs, known, estimates)
    return rows


def place_of(spec: Spec, stage: Stage, resources: Resources, cluster: Cluster) -> Place:
    here = cluster.for_stage(stage.name, stage.kind)
    fabric = cluster.all_reduce * 1e9 / resources.workers if cluster.all_reduce else estimate.FABRIC
    latents = any(spec.stages[name].kind.startswith("prepare.latents") for name in stage.needs)
    return Place(ranks=resources.nodes * resources.workers, gpu=gpu_types.named(here.gpu_type or ""),
                 per_node=resources.workers, fabric=fabric, latents=latents)  # fmt: skip


def of_gpus(stage: Stage, resources: Resources, place: Place, found: Estimate, on: str = "") -> Iterator[Row]:
    """Does it fit into the GPUs' memory? Else what would. on: which nodes, where these are not all: with fewer of them
    each GPU may hold more of the model."""
    what = f"{stage.name}: memory{on}"
    own = stage.settings.gpu_memory
    if not on and place.gpu and not place.gpu.fp8 and stage.settings.precision.startswith("fp8"):
        yield Row(f"{stage.name}: precision", "bad", f"{stage.settings.precision}: {place.gpu.name} has no FP8",
                  "`precision: bf16`, or GPUs from H100 and L40S on")  # fmt: skip
    limit = (own or (place.gpu.memory if place.gpu else 0.0)) / resources.sharing
    if not limit:
        yield Row(what, "unknown", f"{found.what}: {found.total / GIB:.0f} GiB a GPU: {found.words()}",
                  "give `gpu_type` in the cluster preset, such as h100, or `gpu_memory: 80GiB` here")  # fmt: skip
        return
    named = f" ({place.gpu.name})" if place.gpu and not own else ""
    words = f"{found.what}: {found.total / GIB:.0f} of {limit / GIB:.0f} GiB a GPU{named}: {found.words()}"
    verdict: Verdict = "bad" if found.total > limit else "warn" if found.total > NEAR * limit else "ok"
    yield Row(what, verdict, words, "" if verdict == "ok" else estimate.less(stage.settings, place, NEAR * limit))


def of_time(stage: Stage, resources: Resources, known: Earlier | None, found: Estimate | None) -> Iterator[Row]:
    """Does its time limit do? Of a training: how often it will start."""
    what, limit = f"{stage.name}: time", float(resources.time)
    if "gang" in stage.settings.PHASES:
        if known and known.step and known.same:
            step, told = known.step, f"{known.step:.3g} s a step in {_runs(known)}, on {known.ranks} ranks"
        elif found and found.times:
            step, told = found.step, found.time_words()
        else:
            return
        steps = getattr(stage.settings, "steps", 0)
        starts = max(1, math.ceil(steps * step / limit))
        words = f"{told}; about {seconds(steps * step)} in all, of {seconds(limit)} each start has"
        yield Row(what, "ok", words, f"it will start about {starts:,} times, from the last checkpoint"
                  if starts > 1 else "")  # fmt: skip
        return
    if known is None or not known.longest:
        return
    took = f"of {known.tasks} tasks in {_runs(known)} the longest took {seconds(known.longest)}"
    words = f"{seconds(limit)} are asked for; {took}"
    short = "timeout" in known.short_of
    wanted = accounting.propose(limit, known.longest, short, accounting.SPARE_TIME, accounting.LEAST_TIME, 300.0)
    if known.shard > limit:
        needed = _time(accounting.SPARE_TIME * known.shard)
        yield Row(what, "bad", f"{words}, and a shard alone {seconds(known.shard)}",
                  f"`time: {needed}`, or smaller shards: `shards.size`")  # fmt: skip
    elif wanted and wanted > limit:
        why = ", and shards ran out of it" if short else ""
        yield Row(what, "warn", words + why, f"`time: {_time(wanted)}`")
    else:
        yield Row(what, "ok", words, f"`time: {_time(wanted)}` would do, and may start sooner" if wanted else "")


def of_memory(stage: Stage, resources: Resources, known: Earlier | None) -> Iterator[Row]:
    """Does a worker's memory do?"""
    if known is None or not known.memory:
        return
    asked = float(resources.memory)
    short = "memory" in known.short_of
    wanted = accounting.propose(
        asked, known.memory, short, accounting.SPARE_MEMORY, accounting.LEAST_MEMORY, GIB / 2
    )  # fmt: skip
    words = f"{size(asked)} a worker are asked for; in {_runs(known)} one held {size(known.memory)}"
    if wanted and wanted > asked:
        words += ", and shards ran out of it" if short else ""
        verdict: Verdict = "bad" if short and known.memory > asked else "warn"
        yield Row(f"{stage.name}: worker", verdict, words, f"`memory: {wanted / GIB:g}GiB`")
    elif wanted:
        yield Row(f"{stage.name}: worker", "ok", words, f"`memory: {wanted / GIB:g}GiB` would do")


def of_disks(spec: Spec, runs: Path, inputs: float, known: dict[str, Earlier],
             estimates: dict[str, Estimate]) -> Iterator[Row]:  # fmt: skip
    """Room in the file systems of the run folder, the output, and checkpoints: beside what will be written there."""
    local = None if storage.is_s3(spec.output) else Path(spec.output)
    folders = [runs, *([local] if local else [])]
    bytes_in: dict[str, float] = {}
    files_in: dict[str, float] = {}
    told: dict[str, list[str]] = {}

    def add(folder: Path, words: str, size_: float, files: float) -> None:
        mount = disk.look(folder).mount
        bytes_in[mount] = bytes_in.get(mount, 0.0) + size_
        files_in[mount] = files_in.get(mount, 0.0) + files
        told.setdefault(mount, []).append(f"{words} {size(size_)}")

    for name, stage in spec.stages.items():
        one = known.get(name)
        if local and one and one.written is not None:
            add(local, name, one.written * inputs, one.files / one.source * inputs)
        own = getattr(stage.settings, "folder", None)
        folder = Path(own).expanduser() if own else local
        if name in estimates and folder:
            folders.append(folder)
            kept = stage.settings.checkpoints.keep + BEYOND
            add(folder, f"{kept} checkpoints of {name}", kept * estimates[name].kept, 64.0 * kept)
    seen: dict[str, disk.Disk] = {}
    for folder in folders:
        found = disk.look(folder)
        seen.setdefault(found.mount, found)
    for mount, found in seen.items():
        wanted, files = bytes_in.get(mount, 0.0), files_in.get(mount, 0.0)
        words = found.words() + (f"; about {size(wanted)} will be written: {', '.join(told[mount])}" if wanted else "")
        full = found.room < wanted or found.files < files
        tight = found.room < max(1.5 * wanted, float(GIB)) or found.files < max(1.5 * files, 1000.0)
        yield Row(f"disk of {found.folder}", "bad" if full else "warn" if tight else "ok", words,
                  f"make room, ask for more, or put `output` and --runs elsewhere: du -sh {found.folder}/* | sort -h"
                  if full or tight else "")  # fmt: skip


def data_sets(spec: Spec) -> list[DataSet]:
    """What the trainings of a spec read, and whose rules are known: data sets of stages that they need, the newest
    version of each, where there is one; of trainings that need none, the inputs."""
    found = []
    for stage in spec.stages.values():
        if not stage.kind.startswith("train."):
            continue
        frames = min((shape.frames for shape in getattr(stage.settings, "shapes", ())), default=2) - 1
        places = [folder for name in stage.needs if (folder := newest(spec.output, name))]
        if not stage.needs:
            places = [one.uri for one in spec.inputs if storage.is_s3(one.uri) or Path(one.uri).is_dir()]
        for folder in places:
            if consumer := consumer_of(folder, stage.settings):
                found.append(DataSet(stage.name, folder, consumer, frames))
    return found


def newest(output: str, stage: str) -> str:
    """The folder of a stage's newest version; "" where there is none, or it is out of reach."""
    number, last = 1, ""
    try:
        while ledger.info_of(folder := storage.join(output, f"{stage}@v{number}")):
            number, last = number + 1, folder
    except (OSError, storage.StorageError):
        return ""
    return last


def consumer_of(folder: str, settings: Any) -> str:
    """Whose rules a data set follows; "" where that is not known."""
    try:
        info = ledger.info_of(folder)
        if info is None:
            videos = next(storage.listing(storage.join(folder, "videos") + "/"), None)
    except (OSError, storage.StorageError):
        return ""
    if info is None:
        source = getattr(getattr(settings, "text", None), "source", "none")
        return {"pickles": "predict2", "encoder": "predict2.5"}.get(source, "") if videos else ""
    if info.kind.startswith("prepare.tokens-"):
        form = info.kind.removeprefix("prepare.tokens-")
        return f"{form}-tokens" if form in ("megatron", "video2world", "instruction", "action") else ""
    if info.kind == "prepare.latents-list":
        return "latents"
    if info.kind.startswith("curate.shard"):
        return info.settings.get("layout", "") if isinstance(info.settings, dict) else ""
    return ""


def verdict_of(report: Any) -> Verdict:
    """Of hpc.validate's report: a trainer passes over single videos that it cannot take, so some may be wrong; of
    tokens and latents none."""
    if not report.errors:
        return "ok"
    skipped = report.consumer in ("predict2", "predict2.5", "webdataset")
    return "warn" if skipped and report.errors < report.entries else "bad"


def _runs(known: Earlier) -> str:
    others = "" if known.same else ", with other settings"
    some = f"{known.runs[0]}" + (f" and {len(known.runs) - 1} more" if len(known.runs) > 1 else "")
    return f"{some}{others}"


def _time(value: float) -> str:
    """Whole five minutes, as a spec says it."""
    minutes = max(10, -(-int(value) // 300) * 5)
    return f"{minutes // 60}h{minutes % 60:02}m" if minutes % 60 and minutes > 60 else (
        f"{minutes // 60}h" if minutes % 60 == 0 else f"{minutes}m")  # fmt: skip
