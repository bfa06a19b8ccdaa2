"""Cluster presets: what a site's Slurm wants to hear, written once and used by every spec.

    cluster = load_cluster("h100", spec.path)          # clusters/h100.yaml beside the spec, or in the site's folder
    resources = cluster.resources(stage)               # the stage's, with the preset's changes; whole nodes filled
    there = cluster.for_stage(stage.name, stage.kind)  # partition, account... for this stage

`local` is built in: this machine, without Slurm.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from hpc.batch import check, yaml_lines
from hpc.batch.health import Health
from hpc.batch.kinds import KINDS
from hpc.batch.spec import Count, Image, Mail, Resources, Stage, Variable
from hpc.batch.yaml_lines import Node, Problem, SpecErrors
from hpc.data.units import Bytes, Seconds

OWN: dict[str, str] = {
    name: do
    for names, do in {
        "array dependency job-name output error input open-mode parsable signal requeue no-requeue comment chdir wrap "
        "kill-on-invalid-dep export export-file get-user-env test-only wait hold begin ntasks ntasks-per-node clusters "
        "help version quiet verbose": "hpc decides on this itself",
        "exclusive": "give `whole_nodes: true`, so that the node is filled with workers",
        "partition account qos constraint reservation wckey": "it has a key of its own in the preset",
        "mail-user mail-type": "give `mail`: one mail per run, never one per task",
        "cpus-per-task mem mem-per-cpu mem-per-gpu gpus gpus-per-node gpus-per-task gres nodes time":
            "give it in the stage's `resources`, or under `stages` in the preset",
        "container-image container-mounts container-workdir container-env container-mount-home no-container-mount-home":
            "give `image` and `mounts`",
        "exclude nodelist": "hpc excludes nodes that failed; give `constraint` or `reservation` to choose nodes",
    }.items()
    for name in names.split()
}  # fmt: skip
"""sbatch's long options that a preset may not give, and what to do instead."""

Option = Annotated[
    str, Meta(pattern=r"^[a-z]+(-[a-z]+)*$", description="a long option of sbatch without the dashes, e.g. `licenses`")
]
Name = Annotated[str, Meta(min_length=1, pattern=r"^[^\s]+$", description="a name without spaces")]
Mount = Annotated[str, Meta(pattern=r"^/[^\s:,]*(:/[^\s:,]*(:[a-z+-]+)?)?$",
                            description='SRC, SRC:DST or SRC:DST:ro, absolute paths without spaces, e.g. "/lustre"')]


class Placement(Struct, frozen=True, kw_only=True):
    """Where jobs go."""

    partition: Name | None = None
    """Slurm partition; several, separated by commas, mean the one that starts first. null: the site's default."""
    account: Name | None = None
    """Account to charge."""
    qos: Name | None = None
    """Quality of service."""
    constraint: Name | None = None
    """Node features, e.g. "h100&nvme"."""
    reservation: Name | None = None
    """Reservation to run in."""
    wckey: Name | None = None
    """Workload key, at sites that account by it."""
    gpu_type: Name | None = None
    """Type of GPU as the site calls it: --gres=gpu:h100:8. null: any."""
    image: Image | None = None
    """Container image that stages start from (pyxis/enroot): a .sqsh file that all nodes see, made by
    sbatch/image.sbatch. A stage's own `image` in the spec wins. "none": outside of containers, as where nothing is
    given. hpc's own small jobs are always outside."""


class Override(Placement, frozen=True, kw_only=True):
    """Changes for some stages. What is left out stays as it is."""

    whole_nodes: bool | None = None
    """See the preset's `whole_nodes`; a partition of another kind of node may want another answer."""
    cpus_per_node: Count | None = None
    """See the preset's `cpus_per_node`."""
    gpus_per_node: Annotated[int, Meta(ge=0)] | None = None
    """See the preset's `gpus_per_node`."""
    memory_per_node: Bytes | None = None
    """See the preset's `memory_per_node`."""
    sbatch: dict[Option, str | bool] = {}
    """More options of sbatch, on top of the preset's."""
    mounts: list[Mount] = []
    """More mounts, on top of the preset's."""
    cpus: Count | None = None
    """Per worker, instead of the spec's, as are the following."""
    memory: Bytes | None = None
    """Per worker."""
    gpus: Annotated[float, Meta(ge=0)] | None = None
    """Per worker."""
    time: Seconds | None = None
    """Time limit of one array task."""
    workers: Count | None = None
    """Workers per array task."""
    nodes: Count | None = None
    """Stages that train only."""
    least_nodes: Count | None = None
    """Stages that train only."""
    patience: Seconds | None = None
    """Stages that train only."""


class Rates(Struct, frozen=True, kw_only=True):
    """What an hour costs."""

    gpu_hour: Annotated[float, Meta(ge=0)] = 0.0
    """Of one GPU, with the part of the node that goes with it."""
    cpu_hour: Annotated[float, Meta(ge=0)] = 0.0
    """Of one core, of jobs that hold no GPU."""
    currency: Annotated[str, Meta(max_length=16)] = ""
    """A word for reports: "EUR", "SU"."""

    def cost(self, cpu_hours: float, gpu_hours: float) -> float:
        return self.gpu_hour * gpu_hours if gpu_hours else self.cpu_hour * cpu_hours


class ClusterFile(Placement, frozen=True, kw_only=True):
    """A cluster preset."""

    whole_nodes: bool = False
    """The site gives out whole nodes: one array task takes a node and runs as many workers as fit on it."""
    cpus_per_node: Count | None = None
    """Cores of a node. Needed with `whole_nodes`."""
    gpus_per_node: Annotated[int, Meta(ge=0)] = 0
    """GPUs of a node. Needed with `whole_nodes` where stages use GPUs."""
    memory_per_node: Bytes | None = None
    """Memory of a node that jobs may use (RealMemory in `scontrol show node`). null: not looked at."""
    all_reduce: Annotated[float, Meta(gt=0)] | None = None
    """Bus bandwidth in GB/s that an all-reduce over several nodes reaches here when all is well (nccl-tests' busbw):
    what `hpc doctor` compares with. null: it only measures."""
    max_array_size: Count | None = None
    """Array indices stay below this. null: what `scontrol show config` says (MaxArraySize)."""
    max_tasks: Count | None = None
    """Tasks of one array at most, where the site limits that (max_array_tasks, MaxSubmitJobs). null: no limit."""
    env: dict[Variable, str] = {}
    """Environment of every job, e.g. NCCL's; a spec's `env` adds to it and wins."""
    sbatch: dict[Option, str | bool] = {}
    """More long options of sbatch, without the dashes: {licenses: "scratch:1", contiguous: true}. false: not given."""
    python: Annotated[str, Meta(pattern=r"^/", description="an absolute path")] | None = None
    """Path of the Python interpreter on the compute nodes. null: the one that submits."""
    scratch: Annotated[str, Meta(pattern=r"^/", description="an absolute path")] | None = None
    """Node-local folder for files in the making. null: the node's TMPDIR, else /tmp."""
    mounts: list[Mount] = []
    """What containers see beside the run folder and `scratch`: inputs, outputs, caches, credentials. SRC, SRC:DST or
    SRC:DST:ro, e.g. ["/lustre/data", "/lustre/hf:/lustre/hf:ro", "/home/me/.aws:/root/.aws:ro"]."""
    mail: Mail | None = None
    """Who gets the mail of a run whose spec names nobody."""
    health: Health = Health()
    """When a node is not fit for work, and what follows: {scratch: 10GiB, all_reduce: 300, exclude: 8}."""
    rates: Rates | None = None
    """What hours cost, for reports: {gpu_hour: 2.5, cpu_hour: 0.02, currency: EUR}. null: reports name no cost."""
    stages: dict[Name, Override] = {}
    """Changes for some stages, by kind ("curate.clips") or by name ("clips"); the name wins where both speak. Also for
    hpc's own small jobs, "barrier" and "report": send them to a partition of cheap CPU nodes."""

    def __post_init__(self) -> None:
        if self.whole_nodes and self.cpus_per_node is None:
            raise ValueError("cpus_per_node: needed with whole_nodes: true, to know how many workers fit on a node")


class Cluster(ClusterFile, frozen=True, kw_only=True):
    """A preset, loaded."""

    name: str = "local"
    path: str = ""
    """Of the file; empty for `local`."""

    def for_stage(self, name: str, kind: str) -> Cluster:
        """The preset with what its `stages` say about where this stage goes."""
        changes: dict[str, Any] = {}
        for key in _called(kind, name):
            if override := self.stages.get(key):
                sbatch = changes.get("sbatch", self.sbatch) | override.sbatch
                mounts = [*changes.get("mounts", self.mounts), *override.mounts]
                changes |= _given(override, Cluster) | {"sbatch": sbatch, "mounts": mounts}
        return msgspec.structs.replace(self, **changes)

    def resources(self, stage: Stage) -> Resources:
        """What the stage asks for here. Where nodes are given out whole, a task has as many workers as fit on one; of
        a training, so many ranks as it asks for.

        Raises ValueError if not even one worker fits, if changes and resources don't go together, or if the ranks of a
        training would be too many or too few for its settings.
        """
        changes: dict[str, Any] = {}
        for key in _called(stage.kind, stage.name):
            if override := self.stages.get(key):
                changes |= _given(override, Resources)
        wanted = msgspec.structs.replace(stage.resources, **changes)
        here = self.for_stage(stage.name, stage.kind)
        if not here.whole_nodes:
            return _shareable(stage, wanted)
        fits = {"cpus": (here.cpus_per_node, wanted.cpus), "memory": (here.memory_per_node, wanted.memory)}
        if wanted.gpus:
            fits["gpus"] = (here.gpus_per_node, wanted.gpus_of(1))
        for what, (there, each) in fits.items():
            if there is not None and there < each:
                raise ValueError(
                    f"stages.{stage.name}.resources.{what}: a worker asks for {check.plain(each)}, a node of cluster "
                    f"{self.name} has {check.plain(there)} ({what}_per_node in {self.path})"
                )
        # a worker per GPU even if the last ones get fewer cores than they asked for: an idle GPU costs more
        if wanted.gpus:
            del fits["cpus"]
        most = {what: n // each for what, (n, each) in fits.items() if n is not None}
        if "gpus" in most:
            most["gpus"] *= wanted.sharing
        if "gang" in stage.settings.PHASES:  # its batch is made for so many ranks
            what, fit = min(most.items(), key=lambda pair: pair[1])
            if fit < wanted.workers:
                raise ValueError(
                    f"stages.{stage.name}.resources.workers: {wanted.workers} ranks a node; a node of cluster "
                    f"{self.name} has room for {fit} ({what}_per_node in {self.path})"
                )
            return _shareable(stage, wanted)
        return msgspec.structs.replace(wanted, workers=min(most.values()))


LOCAL = Cluster()


def _shareable(stage: Stage, resources: Resources) -> Resources:
    if shared_by := getattr(stage.settings, "shared_by", None):
        try:
            for nodes in {resources.nodes, resources.least_nodes or resources.nodes}:
                shared_by(nodes * resources.workers)
        except ValueError as error:
            raise ValueError(f"stages.{stage.name}.{error}") from error
    return resources


def _called(kind: str, name: str) -> list[str]:
    """What a preset may call a stage, the last one counting most. A part of a stage, of kind <its kind>-<part>, gets
    what the whole gets."""
    whole, dash, part = kind.partition("-")
    return list(dict.fromkeys([whole, kind, name.removesuffix(dash + part), name]))


def load_cluster(name: str, spec_path: str | os.PathLike[str] = "") -> Cluster:
    """A preset by name, or by a path that ends in .yaml (relative ones count from the spec). Raises SpecErrors."""
    if name == LOCAL.name:
        return LOCAL
    beside = Path(spec_path).parent
    file = beside / name if name.endswith(".yaml") else _find(name, beside, spec_path)
    problems: list[Problem] = []
    root = yaml_lines.read(str(file), problems)
    if root is None:
        raise SpecErrors(problems)
    values = check.fields(root, [ClusterFile], "", problems)
    if problems:
        raise SpecErrors(problems + _reserved(root))
    problems = _reserved(root)
    preset = check.build(Cluster, values | {"name": file.stem, "path": os.path.abspath(file)}, root, "", problems)  # noqa: PTH100
    for key in preset.stages if preset is not None else ():
        place = root.below("stages").below(key)
        if "." in key and ":" not in key and key not in KINDS:
            problems.append(place.problem(f"stages.{key}", check.unknown(key, KINDS, "kind")))
        try:
            preset.for_stage(key, key)
        except ValueError as error:
            problems.append(place.problem(f"stages.{key}", str(error)))
    if problems:
        raise SpecErrors(problems)
    return preset


def _find(name: str, beside: Path, spec_path: str | os.PathLike[str]) -> Path:
    folders = [beside / "clusters", Path(os.environ.get("HOME", "/"), ".config/hpc/clusters")]
    if site := os.environ.get("HPC_CLUSTERS"):
        folders.insert(1, Path(site))
    for folder in folders if re.fullmatch(r"[\w.-]{1,64}", name) else ():
        if os.access(folder / f"{name}.yaml", os.R_OK):
            return folder / f"{name}.yaml"
    names = ["local", *sorted({preset.stem for folder in folders for preset in folder.glob("*.yaml")})]
    looked = ", ".join(map(str, folders)) + ("" if site else " ($HPC_CLUSTERS is not set)")
    message = f"{name!r}: {check.unknown(name, names, 'cluster')}\n    looked for {name}.yaml in {looked}"
    raise SpecErrors([Problem(os.fspath(spec_path), 0, "cluster", message)])


def _reserved(root: Node) -> list[Problem]:
    """Options under `sbatch` that hpc gives itself. sbatch takes abbreviations too: `depend` is `dependency`."""
    problems = []
    blocks = {"": root} | {f"stages.{key}.": child for key, child in root.below("stages").entries().items()}
    for where, block in blocks.items():
        for option, child in block.below("sbatch").entries().items():
            own = next((own for own in OWN if option and own.startswith(option)), None)
            if own:
                message = f"sbatch's --{own} can't be given here: {OWN[own]}"
                problems.append(child.problem(f"{where}sbatch.{option}", message))
    return problems


def cluster_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a preset, for editors."""
    from hpc.batch import json_schema

    return json_schema.one(ClusterFile, "hpc cluster preset")


def _given(override: Override, target: type[Struct]) -> dict[str, Any]:
    """The fields that an override gives and `target` has."""
    values = {name: getattr(override, name) for name in target.__struct_fields__ if hasattr(override, name)}
    return {name: value for name, value in values.items() if value is not None}
