"""`hpc doctor`: is this place fit for a run? One row for each thing: what was found, a verdict, and what to do next.

    rows = examine(spec, cluster, runs)      # spec may be None: then what needs none
    print("\\n".join(lines(rows)))

On a login node it asks Slurm, looks at disks, stores and images from here. Inside of an allocation (salloc, sbatch) it
looks at every node as well: driver, GPUs, scratch, images, clocks, and the bandwidth of an all-reduce over all GPUs.
Nothing is changed: what is written for a measurement is deleted again.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import msgspec

from hpc.batch import container, probe, slurm
from hpc.batch.cluster import Cluster
from hpc.batch.spec import NO_IMAGE, Spec
from hpc.data.units import size

Verdict = Literal["ok", "warn", "bad", "unknown"]
OLDEST = (22, 5)
"""Slurm's release from which on its commands print what hpc.batch.slurm reads."""
TEST_BYTES = 64 * 2**20
SLOW_DISK = 50e6
"""Bytes per second written, below which a disk is worth a look."""
SLOW_FILES = 50.0
"""Files made, synced and deleted per second."""
SKEW = 2.0
"""Seconds between clocks. S3 refuses requests from 15 minutes on, make and rsync are confused long before."""
SHARE = 0.8
"""Of the expected bandwidth, from which on it is well."""
FULL = 0.02
"""Share of inodes, or of space, that is left where a disk is full."""

ADVICE = {"Slurm": "scontrol ping; is SLURM_CONF right?", "nodes": "srun hostname; sinfo -N -l"}
"""Where a part fails altogether."""


class Row(msgspec.Struct):
    what: str
    verdict: Verdict
    found: str
    next: str = ""
    """The next command, or thing to do."""


def examine(spec: Spec | None, cluster: Cluster, runs: Path) -> list[Row]:
    """All rows. Each part that fails in a way that nobody thought of is a row too."""
    if spec:
        named = [container.image_of(stage, cluster) for stage in spec.stages.values()]
    else:
        named = [place.image or "" for place in (cluster, *cluster.stages.values())]
    images = sorted(set(named) - {"", NO_IMAGE})
    job = os.environ.get("SLURM_JOB_ID", "")
    parts: list[tuple[str, Callable[[], Iterator[Row]]]] = [
        ("Slurm", lambda: of_slurm(cluster)),
        ("run folder", lambda: of_folder(runs)),
        ("S3", lambda: of_stores(spec)),
        ("images", lambda: of_images(images, spec, cluster, runs)),
        ("nodes", lambda: of_nodes(cluster, runs, images) if job else no_allocation(cluster)),
    ]
    rows = []
    for name, part in parts:
        try:
            rows += list(part())
        except Exception as error:  # whatever it is: the other parts are worth knowing
            said = " ".join(str(error).split())
            rows.append(Row(name, "bad", f"{type(error).__name__}: {said}"[:400], ADVICE.get(name, "")))
    return rows


def lines(rows: list[Row]) -> list[str]:
    """A table for people; what to do stands below its row."""
    wide = max(len(row.what) for row in rows)
    out = []
    for row in rows:
        out.append(f"{row.verdict.upper() if row.verdict == 'bad' else row.verdict:<8}{row.what:<{wide}}  {row.found}")
        if row.next:
            out.append(f"{'':<8}{'':<{wide}}  -> {row.next}")
    return out


def of_slurm(cluster: Cluster) -> Iterator[Row]:
    if not slurm.available():
        yield Row("Slurm", "bad", "no sbatch in PATH", "go to a login node; on this machine: hpc run SPEC")
        return
    limits = slurm.limits()
    version = limits.version
    release = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    fine = release >= OLDEST
    yield Row("Slurm", "ok" if fine else "bad", version, "" if fine else "22.05 or newer is needed")
    small = limits.max_array_size < 1001
    yield Row("Slurm limits", "warn" if small else "ok", f"arrays up to {limits.max_array_size} tasks",
              "tasks get longer, and arrays several; ask for a larger MaxArraySize" if small else "")  # fmt: skip
    kept = slurm.keeps_accounting()
    yield Row("accounting", "ok" if kept else "warn", "sacct answers" if kept else "sacct knows nothing",
              "" if kept else "lost tasks are noticed by squeue alone; ask for slurmdbd")  # fmt: skip
    yield from of_partitions(cluster, slurm.partitions())


def of_partitions(cluster: Cluster, found: list[slurm.Partition]) -> Iterator[Row]:
    wanted = set((cluster.partition or "").split(",")) - {""}
    for override in cluster.stages.values():
        wanted |= set((override.partition or "").split(",")) - {""}
    names = list(dict.fromkeys(one.name for one in found))
    for name in sorted(wanted - set(names)):
        yield Row(f"partition {name}", "bad", f"there is none; there are {', '.join(names)}",
                  f"put another one into {cluster.path}, or ask for access: sinfo -a")  # fmt: skip
    for name in names:
        here = [one for one in found if one.name == name]
        total = sum(one.nodes for one in here)
        away = sum(one.nodes for one in here if one.state.startswith(slurm.AWAY) or one.state.endswith("*"))
        gres = ", ".join(dict.fromkeys(one.gres.partition("(")[0] for one in here if one.gres != "(null)"))
        words = f"{total} nodes, {away} away; {gres or 'no GPUs'}; time limit {here[0].limit}"
        verdict: Verdict = "ok"
        do = ""
        if here[0].available != "up":
            verdict, do, words = "bad", f"scontrol show partition {name}", f"{here[0].available}; {words}"
        elif away == total:
            verdict, do = "bad", f"no node is up: sinfo -R -p {name}"
        elif away:
            verdict, do = "warn", f"why they are away: sinfo -R -p {name}"
        if name not in wanted and wanted and verdict == "bad":
            verdict = "warn"
        yield Row(f"partition {name}", verdict, words, do)
    kind, each = cluster.gpu_type, cluster.gpus_per_node
    if wanted and (kind or each):
        own = [one.gres for one in found if one.name in wanted]
        counts = [int(n) for gres in own for t, n in re.findall(r"gpu(?::([\w.-]+))?:(\d+)", gres) if kind in (None, t)]
        fits = bool(counts) and max(counts) >= each
        yield Row("GPUs of the preset", "ok" if fits else "bad", f"{each or 'some'} {kind or ''} a node are named, "
                  f"Slurm has {', '.join(dict.fromkeys(own)) or 'none'}",
                  "" if fits else f"put that into {cluster.path}: scontrol show node | grep Gres")  # fmt: skip


def of_folder(runs: Path) -> Iterator[Row]:
    """Where run folders are: space, inodes, speed, and the clock of the server that keeps it."""
    folder = probe.exists(Path(os.path.abspath(runs)))  # noqa: PTH100
    if not os.access(folder, os.W_OK):
        yield Row("run folder", "bad", f"{folder}: you may not write there", "name another one: --runs, or $HPC_RUNS")
        return
    space = os.statvfs(folder)
    free, inodes = space.f_bavail * space.f_frsize, space.f_favail / space.f_files if space.f_files else 1.0
    full = space.f_bavail < FULL * space.f_blocks
    room: Verdict = "bad" if free < 2**30 else "warn" if full else "ok"
    yield Row("run folder: space", room, f"{size(free)} free in {folder}",
              "" if room == "ok" else f"make room: du -sh {folder}/* | sort -h")  # fmt: skip
    tight = inodes < FULL
    yield Row("run folder: inodes", "bad" if tight else "ok", f"{inodes:.0%} free",
              f"remove old runs, or name another place with --runs; your share: quota -s, lfs quota {folder}"
              if tight else "")  # fmt: skip
    with tempfile.TemporaryDirectory(prefix=".hpc-doctor-", dir=folder) as name:
        block, begun = os.urandom(2**20), time.perf_counter()
        with (Path(name) / "large").open("wb") as file:
            for _ in range(TEST_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        speed = TEST_BYTES / (time.perf_counter() - begun)
        begun, many = time.perf_counter(), 50
        for number in range(many):
            with (Path(name) / str(number)).open("wb") as file:
                file.write(b"x")
                os.fsync(file.fileno())
        each = many / (time.perf_counter() - begun)
        before = time.time()
        (Path(name) / "clock").write_bytes(b"x")
        there, after = (Path(name) / "clock").stat().st_mtime, time.time()
    slow = speed < SLOW_DISK or each < SLOW_FILES
    yield Row("run folder: speed", "warn" if slow else "ok", f"{size(speed)}/s written, {each:.0f} files/s",
              "put runs on a faster disk: --runs, $HPC_RUNS; its load: lfs df, nfsstat, iostat" if slow else "")
    skew = max(before - there, there - after, 0.0)
    yield Row("run folder: clock", "warn" if skew > SKEW else "ok", f"{skew:.1f} s from this machine's",
              "tell the admins: chronyc tracking, here and on the file server" if skew > SKEW else "")  # fmt: skip


def of_stores(spec: Spec | None) -> Iterator[Row]:
    """The S3 places of a spec: inputs are listed, one object is written to the output, and deleted."""
    from hpc.data import storage

    if spec is None:
        return
    for one in spec.inputs:
        if storage.is_s3(one.uri):
            place = re.split(r"[*?\[]", one.uri)[0]
            try:
                first = next(iter(storage.listing(place)), None)
                empty = first is None
                yield Row(f"read {one.uri}", "warn" if empty else "ok", "nothing is there" if empty else "listed",
                          "is the prefix right? hpc check SPEC" if empty else "")  # fmt: skip
            except (OSError, storage.StorageError) as error:
                yield Row(f"read {one.uri}", "bad", str(error)[:300], "credentials and endpoint: README, S3")
    if storage.is_s3(spec.output):
        uri = storage.join(spec.output, f".hpc-doctor-{storage.writer_name()}")
        try:
            made = storage.put_new(uri, b"x")
            again = storage.put_new(uri, b"y")
            same = storage.read(uri) == b"x"
            storage.delete(uri)
            fine = made and not again and same
            yield Row(f"write {spec.output}", "ok" if fine else "warn", "written once, read, deleted" if fine else
                      "what is there was written over", "" if fine else
                      "the store lacks If-None-Match: of two writers the commit record decides")  # fmt: skip
        except (OSError, storage.StorageError) as error:
            yield Row(f"write {spec.output}", "bad", str(error)[:300],
                      "rights needed: list, get, put and delete objects")  # fmt: skip


def of_images(images: list[str], spec: Spec | None, cluster: Cluster, runs: Path) -> Iterator[Row]:
    if spec is not None and images:
        try:
            container.check(spec, cluster, runs)
        except ValueError as error:
            for line in str(error).splitlines()[1:]:
                found, _, do = line.strip().partition(": ")
                yield Row("containers", "bad", found, do)
            return
    for image in images:
        there = os.access(image, os.R_OK)
        found = size(Path(image).stat().st_size) if there else "not here"
        yield Row(f"image {image}", "ok" if there else "bad", found,
                  "" if there else f"sbatch sbatch/image.sbatch NAME {Path(image).parent}")  # fmt: skip


def no_allocation(cluster: Cluster) -> Iterator[Row]:
    if not slurm.available():
        return
    partition = f" --partition={cluster.partition}" if cluster.partition else ""
    gpus = f" --gpus-per-node={cluster.gpus_per_node}" if cluster.gpus_per_node else ""
    tasks = f" --ntasks-per-node={max(1, cluster.gpus_per_node)}"
    yield Row("nodes", "unknown", "drivers, scratch, clocks and all-reduce are looked at inside of an allocation",
              f"salloc --nodes=2{tasks}{partition}{gpus} hpc doctor --cluster {cluster.path or cluster.name}")


def of_nodes(cluster: Cluster, runs: Path, images: list[str]) -> Iterator[Row]:
    """Every node of this allocation, and all of them together."""
    count = int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
    folder = probe.exists(Path(os.path.abspath(runs)))  # noqa: PTH100
    words = [sys.executable, "-m", "hpc.batch.probe", "node", str(folder), probe.scratch_of(cluster.scratch), *images]
    before = time.time()
    said = slurm.in_step(slurm.step(words, nodes=count, tasks_per_node=1, cpus_per_task=1))
    after = time.time()
    nodes = sorted((msgspec.json.decode(line, type=probe.Node) for line in probe.lines(said)), key=lambda one: one.node)
    silent = count - len(nodes)
    names = ", ".join(one.node for one in nodes)
    yield Row("nodes", "bad" if silent else "ok", f"{len(nodes)} of {count} answered: {names}",
              "sinfo -N -l: leave out what is not idle" if silent else "")  # fmt: skip
    for one in nodes:
        yield from of_node(one, cluster, folder)
    skew = max((max(before - one.time, one.time - after, 0.0) for one in nodes), default=0.0)
    yield Row("clocks", "warn" if skew > SKEW else "ok", f"of nodes within {skew + after - before:.1f} s of this one's",
              f"{skew:.0f} s apart at least: srun --ntasks-per-node=1 chronyc tracking" if skew > SKEW else "")
    per_node = {len(one.gpus) for one in nodes}
    if len(per_node) > 1:
        counts = ", ".join(f"{one.node} {len(one.gpus)}" for one in nodes)
        yield Row("GPUs", "bad", f"nodes have different numbers of them: {counts}", "scontrol show node; nvidia-smi -L")
        return
    gpus = max(per_node, default=0)
    yield of_all_reduce(cluster, count, max(1, gpus), 256 if gpus else 16)


def of_node(one: probe.Node, cluster: Cluster, folder: Path) -> Iterator[Row]:
    """What is wrong with a node, or one row that nothing is."""
    bad: list[tuple[Verdict, str, str]] = []
    shun = f"scontrol update nodename={one.node} state=drain reason=..., or tell the admins"
    if one.problem:
        bad.append(("bad", f"driver: {one.problem}", shun))
    if len(one.gpus) < cluster.gpus_per_node:
        bad.append(("bad", f"{len(one.gpus)} GPUs, {cluster.gpus_per_node} are expected", f"nvidia-smi -L; {shun}"))
    broken = [gpu for gpu in one.gpus if re.search(r", [1-9]\d*$", gpu)]
    if broken:
        bad.append(("bad", f"uncorrected memory errors: {'; '.join(broken)}", f"nvidia-smi -q -d ECC; {shun}"))
    if not one.folder:
        bad.append(("bad", f"{folder} is not seen", "put runs on a disk that all nodes mount: --runs, $HPC_RUNS"))
    if one.scratch_free < 10 * 2**30 or one.scratch_inodes < FULL:
        where = probe.scratch_of(cluster.scratch)
        bad.append(("warn", f"scratch {where}: {size(one.scratch_free)}, {one.scratch_inodes:.0%} of inodes free",
                    f"`scratch` in the preset; ls {where} on {one.node}"))  # fmt: skip
    for image, there in one.images.items():
        if not there:
            bad.append(("bad", f"{image} is not there", "put images on a disk that all nodes mount"))
    for verdict, found, do in bad:
        yield Row(f"node {one.node}", verdict, found, do)
    if not bad:
        kinds = ", ".join(sorted({gpu.rpartition(", ")[0] for gpu in one.gpus})) or "no GPUs"
        yield Row(f"node {one.node}", "ok", f"{len(one.gpus)} x {kinds}; scratch {size(one.scratch_free)} free")


def of_all_reduce(cluster: Cluster, nodes: int, per_node: int, megabytes: int) -> Row:
    if nodes * per_node < 2:
        return Row("all-reduce", "unknown", "one rank alone", "salloc --nodes=2 ... hpc doctor")
    words = [sys.executable, "-m", "hpc.batch.rank", "--", "-m", "hpc.batch.probe", "all-reduce", str(megabytes)]
    command = slurm.step(words, nodes=nodes, tasks_per_node=per_node, cpus_per_task=1)
    try:
        said = probe.lines(slurm.in_step(command))
    except slurm.SlurmError as error:
        last = [line for line in str(error).splitlines() if "Error" in line][-1:] or [str(error).splitlines()[-1]]
        return Row("all-reduce", "bad", f"failed: {last[0]}"[:300],
                   "NCCL_DEBUG=INFO hpc doctor; NCCL_SOCKET_IFNAME and NCCL_IB_HCA in the preset's env")  # fmt: skip
    made = msgspec.json.decode(said[0], type=probe.AllReduce)
    found = f"{made.backend}, {made.ranks} ranks: {made.bandwidth / 1e9:.1f} GB/s over the bus"
    expected = cluster.all_reduce
    if expected is None:
        return Row("all-reduce", "unknown", found, "give `all_reduce` in the preset: what a good allocation reaches")
    slow = made.bandwidth < SHARE * expected * 1e9
    return Row("all-reduce", "warn" if slow else "ok", f"{found}, {expected:g} expected",
               "halve the nodes to find the slow one; NCCL_DEBUG=INFO says by which links; ibstat" if slow else "")
