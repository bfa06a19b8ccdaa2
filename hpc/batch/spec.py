"""A job spec: what a file in jobs/ may say, every check of it, its hash, and the fingerprints of its stages.

    specs = load("jobs/quickstart.yaml", ["stages.clips.split.min_clip=3s"])

A spec means the same from any working directory: relative `inputs` and `output` count from the spec's own folder (those
given as overrides on a command line count from the working directory, as paths on command lines do). `~` and `$NAME`
are not expanded. Everything that is wrong is reported at once, with file and line.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from hpc.batch import check, matrix, places, yaml_lines
from hpc.batch.kinds import KINDS, kind_type, settings_of
from hpc.batch.yaml_lines import Node, Problem, SpecErrors
from hpc.data.units import Bytes, Seconds, size

__all__ = ["KINDS", "Inputs", "Notify", "Problem", "Resources", "Shards", "Spec", "SpecErrors", "Stage",
           "fingerprint", "load", "schema", "settings_of", "text"]  # fmt: skip

SpecName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="a name: at most 64 letters, digits, . _ and -")
]
StageName = Annotated[
    str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,31}$", description="a stage name: a-z first, then at most 31 of a-z 0-9 _ -")
]
Variable = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", description="the name of an environment variable")]
Uri = Annotated[str, Meta(min_length=1, description="a path or an s3:// URI")]
Mail = Annotated[str, Meta(pattern=r"^[^\s,@-][^\s,@]*(@[^\s,@]+)?$", description="a mail address")]
NO_IMAGE = "none"
Image = Annotated[
    str,
    Meta(pattern=r"^(none|/[^\s:,]+)$", description='the absolute path of an image (.sqsh), without spaces, or "none"'),
]
RESERVED = ("inputs", "report", "barrier")
"""Not names of stages: the shards of the inputs, the report job's logs, the presets' word for barrier jobs."""
Kind = Annotated[str, Meta(description=f"the kind of the stage: {', '.join(KINDS)}, or package.module:Class")]
Count = Annotated[int, Meta(ge=1)]
STARTS = 3
"""Of ranks, in a row, that may end without a new checkpoint."""


class Resources(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a stage asks of the cluster."""

    cpus: Count = 2
    """Per worker."""
    memory: Bytes = Bytes(4 * 1024**3)
    """Per worker."""
    gpus: Annotated[float, Meta(ge=0)] = 0.0
    """Per worker: a whole number; or 0.5, 0.25 and so on, so that 2, 4, ... workers of a task share each GPU."""
    time: Seconds = Seconds(4 * 3600)
    """Time limit of one array task."""
    workers: Count = 1
    """Workers per array task, which share its row. A preset that allocates whole nodes raises it."""
    nodes: Count = 1
    """Stages that train only: how many nodes work together."""
    least_nodes: Count | None = None
    """Stages that train only: they begin, or go on after a node was lost, on as few where there are no more now; of
    those that they get they take so many as can share the batch equally. null: on `nodes`, for which they wait."""
    patience: Seconds | None = None
    """Stages that train only: when no rank has got on for so long, they write down where they are, and start again.
    null: 20 steps, but 10m at least."""

    def __post_init__(self) -> None:
        if self.memory < 64 * 1024**2:
            raise ValueError(f"memory: {size(self.memory)} is too little: a worker needs 64MiB at least")
        if not math.isclose(self.gpus, 1 / self.sharing if 0 < self.gpus < 1 else round(self.gpus), rel_tol=0.01):
            raise ValueError(f"gpus: {self.gpus:g} is neither a whole number nor a share of one GPU: 0.5, 0.25, 0.125")
        if self.time < 60:
            raise ValueError(f"time: {check.plain(self.time)} is too short: Slurm counts minutes, give 1m at least")

        if self.least_nodes is not None and self.least_nodes > self.nodes:
            raise ValueError(f"least_nodes: {self.least_nodes} is more than the {self.nodes} of `nodes`")

    @property
    def sharing(self) -> int:
        """Workers that share a GPU."""
        return round(1 / self.gpus) if 0 < self.gpus < 1 else 1

    def gpus_of(self, workers: int) -> int:
        """Of the first so many workers of a task together."""
        return -(-workers // self.sharing) * math.ceil(self.gpus)


class StageBlock(Struct, frozen=True, kw_only=True):
    """A stage. The settings of its kind stand beside these keys."""

    kind: Kind
    """What the stage does. "package.module:Class" names the settings of a stage of your own."""
    needs: str | list[str] = []
    """The stage or stages whose output this one reads; without it the stage reads the `inputs`."""
    resources: Resources = Resources()
    """What the stage asks of the cluster."""
    required: Annotated[float, Meta(ge=0, le=1)] = 0.95
    """Share of the needed stages' shards that must be good before a barrier goes on."""
    throttle: Count | None = None
    """Array tasks that may run at once; null: as many as the cluster has room for."""
    starts: Count = STARTS
    """Stages that train only: starts in a row without a new checkpoint, after which it fails. Those that Slurm ended by
    preemption are not counted."""
    image: Image | None = None
    """Container image that the stage starts from (pyxis/enroot), instead of the cluster preset's; "none": it runs
    outside of containers. Has no effect on this machine (`hpc run`)."""


class Stage(Struct, frozen=True, kw_only=True):
    """A stage, checked."""

    name: str
    kind: str
    needs: tuple[str, ...] = ()
    resources: Resources = Resources()
    required: float = 0.95
    throttle: int | None = None
    starts: int = STARTS
    image: str | None = None
    settings: Any
    """Of the stage's kind, e.g. hpc.curate.settings.Clips."""


class Inputs(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where inputs come from."""

    uri: Uri
    """A file, a folder, a glob, a list file (.txt, .jsonl), an s3:// prefix or an earlier stage's output folder."""
    limit: Count | None = None
    """Take this many only, the first by name: for trying things out."""
    match: str | None = None
    """Take only files whose path relative to `uri` matches this glob, e.g. "*.mp4"."""
    group_by: str | None = None
    """Several cameras that recorded at the same time: how the path relative to `uri` names session and camera, e.g.
    "{session}/{camera}.mp4", "{camera}/{session}.mp4", "{session}_{camera}" (without a suffix: whatever that is). A
    session is cut as one."""

    def __post_init__(self) -> None:
        if self.group_by is not None and sorted(re.findall(r"{(.*?)}", self.group_by)) != ["camera", "session"]:
            raise ValueError(
                f"group_by: {self.group_by!r} must name {{session}} and {{camera}} once each, "
                "e.g. '{session}/{camera}.mp4' for session_1/front.mp4"
            )


class Shards(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How work is cut into pieces."""

    size: Bytes = Bytes(512 * 1024**2)
    """Input bytes per shard."""
    split_above: Bytes = Bytes(2 * 1024**3)
    """An input larger than this is planned as spans of about `size`."""
    task: Seconds = Seconds(1800)
    """Target duration of one array task, which makes several shards."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError("size: must be larger than 0B")
        if self.split_above < self.size:
            sizes = f"{check.plain(self.split_above)} is smaller than size, {check.plain(self.size)}"
            raise ValueError(f"split_above: {sizes}: inputs are split because they are larger than a shard")
        if self.task < 1:
            raise ValueError("task: must be 1s or longer")


class Notify(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who is told when a run ends."""

    mail: Mail | None = None
    """One mail per run, never one per task."""
    webhook: str | None = None
    """NAME of the secret that holds the URL; never the URL itself."""


class Common(Struct, frozen=True, kw_only=True):
    name: SpecName
    """Runs are called name-<hash of the spec>."""
    output: Uri
    """Folder or s3:// prefix; each stage writes <output>/<stage>@v<number>."""
    cluster: str = "local"
    """Name of a preset in clusters/ beside the spec, or a path to one; `local` runs on this machine without Slurm."""
    shards: Shards = Shards()
    """How work is cut into pieces."""
    env: dict[Variable, str] = {}
    """The environment of the jobs, nothing of the shell's. Not for secrets: it is written into the run folder."""
    secrets: tuple[Variable, ...] = ()
    """NAMES of environment variables to pass on from the shell that submits. Values are written nowhere."""
    retries: Annotated[int, Meta(ge=0)] = 0
    """Attempts that are submitted unattended for shards that failed, after the first one."""
    notify: Notify = Notify()
    """Who is told when a run ends."""


class JobFile(Common, frozen=True, kw_only=True):
    """A job spec: from inputs through stages to an output."""

    inputs: Uri | Inputs | Annotated[list[Uri | Inputs], Meta(min_length=1)]
    """One or several places. A mapping gives a limit or a pattern too."""
    stages: Annotated[dict[StageName, Any], Meta(min_length=1)]
    """Name -> stage. The order in the file does not matter, `needs` does."""
    matrix: matrix.Matrix = {}
    """Dotted key -> values: one run for each combination, e.g. {stages.clips.split.min_clip: [2s, 4s]}."""


class Spec(Common, frozen=True, kw_only=True):
    """A spec, checked and resolved."""

    inputs: tuple[Inputs, ...]
    """With absolute, normalised paths."""
    stages: dict[str, Stage]
    """In topological order."""
    path: str = ""
    """Of the file, absolute."""
    hash: str = ""
    """8 hexadecimal digits of everything but `cluster` and `path`."""


def load(
    path: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    cluster: str | None = None,
    *,
    check_paths: bool = True,
) -> list[Spec]:
    """Read a spec; one with a matrix gives several.

    overrides: "dotted.key=value", the value as YAML. cluster: instead of the spec's. check_paths: false for the record
    of a run that once was checked, and whose inputs may be gone by now. Raises SpecErrors.
    """
    problems: list[Problem] = []
    file = os.fspath(path)
    root = yaml_lines.read(file, problems)
    if root is None:
        raise SpecErrors(problems)
    if not isinstance(root.value, dict):
        problems.append(root.problem("", f"a job spec is a mapping with the keys {', '.join(_keys(JobFile))}"))
        raise SpecErrors(problems)
    for number, override in enumerate(overrides, 1):
        root = matrix.override(root, override, f"override {number}", problems)
    specs = [
        _spec(tree, suffix, file, cluster, check_paths, problems)
        for tree, suffix in matrix.expand(root, overrides, problems)
    ]  # fmt: skip
    if problems:
        raise SpecErrors(problems)
    return [spec for spec in specs if spec is not None]


def fingerprint(spec: Spec, stage: str) -> str:
    """12 hexadecimal digits of what decides on a stage's output: kind, VERSION, settings, and the same of its needs."""
    prints: dict[str, str] = {}
    for name, one in spec.stages.items():
        settings = check.plain(one.settings)
        for neutral in one.settings.NEUTRAL:
            *above, last = neutral.split(".")
            inner = settings
            for key in above:
                inner = inner.get(key) or {}
            inner.pop(last, None)
        prints[name] = _digest([one.kind, one.settings.VERSION, settings, [prints[n] for n in one.needs]])[:12]
    return prints[stage]


def text(spec: Spec) -> str:
    """The spec as YAML with every default written out; loading it gives the same hash."""
    return yaml_lines.dump(_file(spec))


def schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a job file, for editors."""
    from hpc.batch import json_schema

    return json_schema.job(JobFile, StageBlock, KINDS)


def _keys(struct: type[Struct]) -> tuple[str, ...]:
    return struct.__struct_encode_fields__


def _file(spec: Spec) -> dict[str, Any]:
    """The resolved spec in the shape of a job file."""
    plain = check.plain(spec)
    stages = {}
    for name, stage in plain["stages"].items():
        settings = stage.pop("settings")
        common = {key: value for key, value in stage.items() if key != "name" and (key, value) != ("image", None)}
        common["resources"] = {k: v for k, v in common["resources"].items()
                               if k not in ("least_nodes", "patience") or v is not None}  # fmt: skip
        stages[name] = common | settings
    first = {"name": plain["name"], "inputs": plain["inputs"], "output": plain["output"], "stages": stages}
    return first | {key: plain[key] for key in ("cluster", "shards", "env", "secrets", "retries", "notify")}


def _digest(value: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(value, order="deterministic")).hexdigest()


def _spec(tree: Node, suffix: str, file: str, cluster: str | None, check_paths: bool,
          problems: list[Problem]) -> Spec | None:  # fmt: skip
    before = len(problems)
    values = check.fields(tree, [JobFile], "", problems)
    stages = _stages(tree.below("stages"), problems)
    uris, output = _places(tree, file, check_paths, problems)
    _environment(tree, stages, problems)
    if suffix and "name" in values:
        values["name"] += suffix
        check.convert(Node(values["name"], file, tree.value["name"].line), SpecName, "name", problems)
    preset = tree.below("cluster") if cluster is None else Node(cluster, "--cluster", 0)
    if str(preset.value).endswith(".yaml"):
        values["cluster"] = places.absolute(str(preset.value), preset, file)
    elif cluster is not None:
        values["cluster"] = cluster
    if len(problems) > before:
        return None
    given = values["inputs"] if isinstance(values["inputs"], list) else [values["inputs"]]
    inputs = [msgspec.structs.replace(one if isinstance(one, Inputs) else Inputs(uri=uri), uri=uri)
              for one, uri in zip(given, uris, strict=True)]  # fmt: skip
    del values["matrix"]
    spec = Spec(**values | {"inputs": tuple(inputs), "output": output, "stages": stages,
                            "path": os.path.abspath(file)})  # noqa: PTH100  # fmt: skip
    return msgspec.structs.replace(spec, hash=_digest({k: v for k, v in _file(spec).items() if k != "cluster"})[:8])


def _stages(node: Node, problems: list[Problem]) -> dict[str, Stage]:
    """All stages that are right, in topological order."""
    stages: dict[str, Stage] = {}
    for name, block in node.entries().items():
        where = f"stages.{name}"
        if name in RESERVED:
            problems.append(block.problem(where, f"{name!r} is a word that runs use themselves: choose another name"))
        if not isinstance(block.value, dict):
            problems.append(block.problem(where, f"{check.shown(block)} is not a stage: write {{kind: ...}}"))
            continue
        kind, struct = block.below("kind"), None
        if isinstance(kind.value, str):
            try:
                struct = kind_type(kind.value)
                if taken := set(_keys(StageBlock)) & set(_keys(struct)):
                    struct = None
                    names = ", ".join(sorted(taken))
                    raise ValueError(f"{kind.value} has settings that every stage has: rename {names}")
            except ValueError as error:
                problems.append(kind.problem(f"{where}.kind", str(error)))
        if struct is None:  # of an unknown kind the common keys can be checked, no others
            common = {key: child for key, child in block.value.items() if key in _keys(StageBlock)}
            check.fields(Node(common, block.file, block.line), [StageBlock], where, problems)
            continue
        before = len(problems)
        values = check.fields(block, [StageBlock, struct], where, problems)
        needs = values.get("needs", [])
        needs = tuple(dict.fromkeys([needs] if isinstance(needs, str) else needs))
        for need in needs:
            if need not in node.value:
                others = [other for other in node.value if other != name]
                message = f"{need!r}: {check.unknown(need, others, 'stage')}"
                problems.append(block.below("needs").problem(f"{where}.needs", message))
        ranks = "gang" in getattr(struct, "PHASES", ())
        if not ranks and values.get("starts", STARTS) != STARTS:
            message = f"{kind.value} has no ranks that go on from a checkpoint: leave this out"
            problems.append(block.below("starts").problem(f"{where}.starts", message))
        if "resources" in values and values["resources"].nodes > 1 and not ranks:
            message = f"a task of {kind.value} runs on one node: leave this out, its array spreads over the cluster"
            place = block.below("resources").below("nodes")
            problems.append(place.problem(f"{where}.resources.nodes", message))
        if "resources" in values and values["resources"].least_nodes is not None and not ranks:
            message = f"{kind.value} has no ranks on several nodes: leave this out"
            place = block.below("resources").below("least_nodes")
            problems.append(place.problem(f"{where}.resources.least_nodes", message))
        if "resources" in values and values["resources"].patience is not None and not ranks:
            message = f"{kind.value} has no ranks that wait for each other: leave this out"
            place = block.below("resources").below("patience")
            problems.append(place.problem(f"{where}.resources.patience", message))
        if len(problems) > before:
            continue
        own = {f.name: values[f.name] for f in msgspec.structs.fields(struct)}
        settings = check.build(struct, own, block, where, problems)
        common = {key: values[key] for key in ("kind", "resources", "required", "throttle", "starts", "image")}
        stages[name] = Stage(name=name, needs=needs, settings=settings, **common)
    for name, stage in stages.items():
        kinds = [stages[need].kind for need in stage.needs if need in stages]
        if message := getattr(stage.settings, "unmet", lambda kinds: "")(kinds):
            problems.append(node.below(name).problem(f"stages.{name}.needs", message))
        needed = {need: stages[need].settings for need in stage.needs if need in stages}
        if message := getattr(stage.settings, "clash", lambda needed: "")(needed):
            problems.append(node.below(name).problem(f"stages.{name}", message))
        for key, (named, allowed) in getattr(stage.settings, "wired", dict)().items():
            if named not in stage.needs:
                message = f"{named!r}: {check.unknown(named, stage.needs, 'stage in `needs`')}"
            elif named not in stages or ":" in stages[named].kind or stages[named].kind in allowed:
                continue
            else:
                message = f"{named} is {stages[named].kind}, and here stands one of {', '.join(allowed)}"
            problems.append(node.below(name).below(key).problem(f"stages.{name}.{key}", message))
    return _in_parts(_ordered(stages, node, problems), node, problems)


def _in_parts(stages: dict[str, Stage], node: Node, problems: list[Problem]) -> dict[str, Stage]:
    """Stages that are made of several, each in its place."""
    out: dict[str, Stage] = {}
    for name, stage in stages.items():
        if not hasattr(stage.settings, "parts"):
            out[name] = stage
            continue
        for part, (settings, needs, gpus) in stage.settings.parts().items():
            full = f"{name}-{part}" if part else name
            if part and full in stages:
                message = f"{name} has a part of this name: rename it"
                problems.append(node.below(full).problem(f"stages.{full}", message))
            named = [name if need == "." else f"{name}-{need}" if need else "" for need in needs]
            out[full] = Stage(
                name=full, kind=settings.KIND, settings=settings, throttle=stage.throttle, starts=stage.starts,
                image=stage.image,
                needs=tuple(dict.fromkeys(n for one in named for n in ([one] if one else stage.needs))),
                # a share of good shards is for what comes from outside: of its own parts a stage needs all
                required=stage.required if "" in needs else 1.0,
                resources=stage.resources if gpus else msgspec.structs.replace(stage.resources, gpus=0.0),
            )  # fmt: skip
    return out


def _ordered(stages: dict[str, Stage], node: Node, problems: list[Problem]) -> dict[str, Stage]:
    """Needed stages first, otherwise as in the file."""
    done: dict[str, Stage] = {}
    left = dict(stages)
    while left:
        ready = next((s for s in left.values() if not any(n in left for n in s.needs)), None)
        if ready is None:
            chain = [next(iter(left))]
            while chain[-1] not in chain[:-1]:
                chain.append(next(n for n in left[chain[-1]].needs if n in left))
            cycle = chain[chain.index(chain[-1]) :]
            place = node.below(cycle[0]).below("needs")
            message = f"needs go round in a circle: {' -> '.join(cycle)}"
            problems.append(place.problem(f"stages.{cycle[0]}.needs", message))
            return {}
        done[ready.name] = left.pop(ready.name)
    return done


def _places(tree: Node, file: str, check_paths: bool, problems: list[Problem]) -> tuple[list[str], str]:
    """The URIs of inputs and output, absolute. Looks at the nodes, so that paths are checked whatever else is wrong."""
    uris, output = [], ""
    place = tree.below("output")
    if isinstance(place.value, str) and place.value:
        output = places.absolute(place.value, place, file)
        reasons = places.refused(place.value) or (places.unwritable(output) if check_paths else [])
        problems += [place.problem("output", reason) for reason in reasons]
    given = tree.below("inputs")
    several = isinstance(given.value, list)
    for i, place in enumerate(given.value if several else [given]):
        where = f"inputs.{i}" if several else "inputs"
        if isinstance(place.value, dict):
            place, where = place.below("uri"), f"{where}.uri"
        if isinstance(place.value, str) and place.value:
            uri = places.absolute(place.value, place, file)
            reasons = places.refused(place.value) or (places.unreadable(uri) if check_paths else [])
            if output and places.reads(uri, output):
                reasons.append(f"the output, {output}, lies inside: it would be read as input the next time")
            problems += [place.problem(where, reason) for reason in reasons]
            uris.append(uri)
    return uris, output


def _environment(tree: Node, stages: dict[str, Stage], problems: list[Problem]) -> None:
    listed = tree.below("secrets").value
    secrets = [name.value for name in listed if isinstance(name.value, str)] if isinstance(listed, list) else []
    for name, node in tree.below("env").entries().items():
        if name in secrets:
            message = "is in `secrets` too: a secret's value comes from the shell and is never written down"
            problems.append(node.problem(f"env.{name}", message))
    for name, stage in stages.items():
        for key, secret in check.marked(stage.settings, "secret"):
            if secret not in secrets:
                node = tree.below("stages").below(name)
                for part in key.split("."):
                    node = node.below(part)
                problems.append(node.problem(f"stages.{name}.{key}", check.unknown(secret, secrets, "secret")))
    webhook = tree.below("notify").below("webhook")
    if isinstance(webhook.value, str) and webhook.value not in secrets:
        message = check.unknown(webhook.value, secrets, "secret")
        if "/" in webhook.value:
            message = "the URL is a secret: put it into a variable, list the name in `secrets`, and give the name here"
        problems.append(webhook.problem("notify.webhook", message))
