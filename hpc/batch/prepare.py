"""Plan an attempt: list the inputs, look up what is done, and write what is missing into a run folder.

The same function serves `hpc plan`, `run`, `submit` and `retry`: what is done is never done again, so a first attempt
is the retry of nothing.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any

import msgspec

from hpc.batch import check, container, failure, health, inputs, jsons, ledger, plan, records, run, script, slurm
from hpc.batch.cluster import Cluster
from hpc.batch.gang import is_gang
from hpc.batch.run import Attempt, AttemptPlan, Run, StagePlan
from hpc.batch.spec import KINDS, Resources, Spec, Stage, fingerprint, text
from hpc.data import storage

MAX_BOOST = 8.0
"""Memory or time is raised up to this factor over attempts."""
BARRIER_WIDTH = 64
"""Tasks at most of the array behind a barrier: writing tars is bound by the file system, not by cores."""


class Prepared(msgspec.Struct):
    """What a planning came to."""

    run: Run
    attempt: Attempt | None
    """None: nothing to do."""
    plan: AttemptPlan | None
    shards: int
    """In the domain "inputs"."""
    missing: dict[str, int]
    """stage -> shards it has to make (of the domain "inputs")."""
    ignored: dict[str, int]
    inputs: int
    new_shards: int
    excluded: dict[str, list[str]] = {}
    """stage -> nodes that it is kept away from."""
    folders: dict[str, str] = {}
    """stage -> its version folder, where known."""
    unreachable: list[str] = []
    """Run folders that wrote to this output and can't be read from here: what they made is made again, and compared."""


def domains(spec: Spec) -> dict[str, str]:
    """stage -> the domain whose shards it maps over: a barrier stage has its own, a map stage that of its needs."""
    out: dict[str, str] = {}
    for name, stage in spec.stages.items():
        of_needs = sorted({out[n] for n in stage.needs} or {"inputs"})
        barrier = "barrier" in stage.settings.PHASES
        if len(of_needs) > 1 and not barrier:
            raise ValueError(
                f"stages.{name}: needs {', '.join(stage.needs)}, which have different shards ({', '.join(of_needs)})"
            )
        if barrier and not stage.needs and not stage.settings.INPUT_SUFFIXES:
            raise ValueError(f"stages.{name}: {stage.kind} makes its shards from those of another stage: give `needs`")
        out[name] = name if barrier else of_needs[0]
    return out


def of_inputs(shards: Iterable[ledger.Shard], superseded: Iterable[tuple[str, str]]) -> dict[str, dict[str, str]]:
    """Shard -> {uri: etag} of its inputs that are still there: what a barrier without `needs` consumes."""
    gone = set(superseded)
    return {s.id: {i.uri: i.etag for i in s.items if (i.uri, i.etag) not in gone} for s in shards}


def parts_of(inputs: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    """For `frozen_digest`."""
    return [(f"inputs/{shard}/{uri}", etag) for shard, items in inputs.items() for uri, etag in items.items()]


def parts_of_files(settings: Any) -> list[tuple[str, str]]:
    """...of files that a barrier reads besides: what is made of another content is another version."""
    found = [(uri, storage.stat(uri)) for uri in getattr(settings, "files", ())]
    return [(f"files/{uri}", there.etag if there else "") for uri, there in found]


def frozen_digest(good: Iterable[tuple[str, str]], superseded: Iterable[tuple[str, str]]) -> str:
    """Digest of what a barrier consumes: (shard/stage, sha256 of its objects) and the inputs that were replaced."""
    digest = hashlib.sha256()
    for pair in [*good, ("", ""), *superseded]:
        digest.update("\0".join(pair).encode() + b"\1")
    return digest.hexdigest()


def frozen_fingerprint(base: str, frozen: str) -> str:
    return hashlib.sha256(f"{base} {frozen}".encode()).hexdigest()[:12]


def counted(needs: Iterable[str], stages: dict[str, StagePlan]) -> list[str]:
    """The stages whose shards must be good where these are needed: they, and what they were made of, as far as that has
    the same shards as one of them. A data set of clips without what its decisions never saw: duplicates, say."""
    out = list(needs)
    domains = {stages[name].domain for name in out}
    for name in out:  # grows meanwhile
        out += [n for n in stages[name].needs if n not in out]
    return [name for name in out if stages[name].domain in domains]


def good_shards(
    scopes: dict[str, list[str]], domain_of: dict[str, str], folds: dict[str, records.Fold]
) -> tuple[dict[str, list[str]], list[tuple[str, str]]]:
    """Of each domain the shards that all of these stages over it have done, and what their digest is made of.

    scopes: domain -> its shards. domain_of, folds: of the stages, by name.
    """
    good: dict[str, list[str]] = {}
    parts = []
    for domain, scope in scopes.items():
        here = {name: fold for name, fold in sorted(folds.items()) if domain_of[name] == domain}
        good[domain] = [shard for shard in scope if all(shard in fold.done for fold in here.values())]
        for shard in good[domain]:
            parts += [(f"{name}/{shard}", o.sha256) for name, fold in here.items() for o in fold.done[shard].objects]
    return good, parts


def fold_stage(runs: list[Path], stage: str, fingerprint: str) -> records.Fold:
    """Records of a stage over all runs that wrote to this output."""
    return records.fold([folder / "records" / stage for folder in runs], fingerprint)


def barrier_missing(stage: StagePlan, folder: str, fold: records.Fold) -> set[str] | None:
    """Shards of a barrier stage's version that are still to be made; None if nothing was ever planned there."""
    try:
        return set(frozen_ids(folder)) - set(fold.done)
    except FileNotFoundError:
        return None


def fold_nodes(fold: records.Fold) -> set[str]:
    """Nodes where something failed for which they are to blame."""
    failures = [(r, fold.where[shard]) for shard, r in fold.failed.items()]
    return {r.node or worker.node for r, worker in failures if failure.REMEDIES[r.failure].elsewhere}


class _Id(msgspec.Struct, array_like=True):
    id: str


def frozen_ids(folder: str) -> list[str]:
    """The shards that a barrier planned for this version folder. Raises FileNotFoundError where none did yet."""
    with storage.open(storage.join(folder, "_plan.jsonl")) as file:
        decode = msgspec.json.Decoder(_Id).decode
        return [decode(line).id for line in file]


def frozen_shards(folder: str) -> Generator[plan.RowShard]:
    """...with what each of them is made of, one after the other: all together may be large."""
    with storage.open(storage.join(folder, "_plan.jsonl")) as file:
        decode = msgspec.json.Decoder(plan.RowShard).decode
        for line in file:
            yield decode(line)


def prepare(spec: Spec, cluster: Cluster, base: Path, *, on_slurm: bool, command: list[str], cores: int | None = None,
            lost: dict[tuple[str, str], str] | None = None, dry: bool = False) -> Prepared:  # fmt: skip
    """Plan the next attempt of a spec.

    base: the folder of run folders. cores: of this machine, for a run without Slurm.
    lost: (stage, shard) -> class of failure, for shards whose workers vanished.
    Raises inputs.InputError, ledger.Grown, slurm.SlurmError, ValueError; nothing is written then but the run folder.
    """
    where = domains(spec)
    if on_slurm:
        try:
            container.check(spec, cluster, base)
        except ValueError as error:  # a dry run may be read where images and mounts are not
            if not dry:
                raise
            print(error, file=sys.stderr)
    firsts = [s for s in spec.stages.values() if not s.needs]
    suffixes = tuple(dict.fromkeys(x for s in firsts for x in s.settings.INPUT_SUFFIXES))
    beside = tuple(x for s in firsts for x in getattr(s.settings, "BESIDE", ()))
    listing = inputs.resolve(spec.inputs, suffixes, beside)
    book = ledger.load(spec.output)
    fresh = ledger.assign(book, listing.entries, spec.shards.size, spec.shards.split_above, listing.weights,
                           listing.sessions, listing.captions)  # fmt: skip
    listed = {(e.uri, e.etag) for e in listing.entries}
    old = [s for s in book.shards if any((i.uri, i.etag) in listed for i in s.items)]
    scope = old + fresh
    replaced = sorted(ledger.superseded(old, listed))

    run_ = Run((base / f"{spec.name}-{spec.hash}").resolve())
    known_runs, unreachable = ledger.runs(spec.output)
    if run_.folder.is_dir() and run_.folder not in known_runs:
        known_runs.append(run_.folder)

    stages: dict[str, StagePlan] = {}
    folds: dict[str, records.Fold] = {}
    todo: dict[str, list[str]] = {}
    rates: dict[str, float] = {}
    weights = {s.id: sum(i.size / i.parts for i in s.items) for s in book.shards + fresh}
    for name, block in spec.stages.items():
        stage = stages[name] = _stage_plan(spec, block, where[name], cluster)
        if stage.domain != "inputs":
            continue
        stage.folder, exists = ledger.version(spec.output, name, stage.fingerprint)
        # what is recorded, but in a folder that somebody has deleted, is made again
        folds[name] = fold_stage(known_runs, name, stage.fingerprint) if exists else records.Fold()
        rates[name] = _rate(folds[name], weights, block.settings.SECONDS_PER_GIB)
        for s in scope:
            if s.id not in folds[name].done:
                todo.setdefault(s.id, []).append(name)

    resources = {name: stages[name].resources for name in folds}
    boosts, exclude = _remedies(folds, scope, lost or {}, resources)
    limits = slurm.Limits()
    if on_slurm and not (cluster.max_array_size and cluster.max_tasks):
        try:
            limits = slurm.limits()
        except slurm.SlurmError as error:  # a dry run may be read where there is no Slurm
            if not dry:
                raise
            print(f"taking Slurm's default limits (arrays up to {limits.max_array_size}): {error}", file=sys.stderr)
    max_array = min(cluster.max_array_size or limits.max_array_size, cluster.max_tasks or limits.max_array_size)
    if cores is not None:
        max_array = 1_000_000
    groups, rows = plan.group(
        scope,
        {shard: tuple(names) for shard, names in todo.items()},
        boosts,
        rates,
        resources,
        spec.shards.task,
        max_array,
        cores,
    )

    behind = _behind(spec, stages, scope, folds, known_runs, replaced, bool(groups))
    for name in stages:
        failed = fold_nodes(folds[name]) if name in behind and name in folds else set()
        if nodes := failed | health.shunned(run_, cluster.health):
            exclude[name] = sorted(nodes | set(exclude.get(name, ())))
    missing = {name: sum(name in names for names in todo.values()) for name in rates}
    result = Prepared(run_, None, None, len(scope), missing, listing.ignored, len(listing.entries), len(fresh), exclude,
                      {n: s.folder for n, s in stages.items() if s.folder}, [str(f) for f in unreachable])  # fmt: skip
    if not groups and not behind:
        return result

    attempt = run.new_attempt(run_)
    total_bytes = sum(weights[s.id] for s in scope)
    for stage in stages.values():
        if stage.name in behind:
            of = spec.stages[stage.domain].settings
            seconds = total_bytes / 2**30 * of.SECONDS_PER_GIB
            likely = 1 if is_gang(stage) else max(1, min(BARRIER_WIDTH, round(seconds / 60), len(scope)))
            stage.width = min(getattr(of, "tasks", None) or likely, max_array)
    attempt_plan = AttemptPlan(
        run=run_.id, attempt=attempt.number, spec_hash=spec.hash, output=spec.output, created=time.time(),
        stages=list(stages.values()), groups=groups, domain_size=len(scope), scope="scope.txt", superseded=replaced,
        unreachable=[str(f) for f in unreachable], generation=book.generation + 1 if fresh else 0,
        scratch=cluster.scratch or "", cluster=cluster.name,
        retries=spec.retries, notify={"mail": spec.notify.mail, "webhook": spec.notify.webhook},
        env=cluster.env | spec.env,
    )  # fmt: skip
    (attempt.folder / "scope.txt").write_text("".join(f"{s.id}\n" for s in scope))
    if fresh:
        (attempt.folder / "shards.jsonl").write_bytes(ledger.encode(fresh))
    attempt.write_rows("inputs", rows)
    run_.spec.write_text(text(spec))
    run.snapshot(attempt, _foreign_code(spec))
    run.provenance(attempt, spec.hash, command, container.facts(spec, cluster) if on_slurm else {})
    jsons.write(attempt.folder / "cluster.json", cluster)
    script.write(run_, attempt, attempt_plan, spec, cluster, max_array, exclude)
    run.finish(attempt, attempt_plan)
    result.attempt, result.plan = attempt, attempt_plan
    return result


def refused(spec: Spec, cluster: Cluster) -> dict[str, str]:
    """Stages that Slurm would not take as they are (partition, account, limits), and what it says. Submits nothing."""
    out = {}
    for name, stage in spec.stages.items():
        planned = _stage_plan(spec, stage, "inputs", cluster)
        try:
            slurm.test_only(script.resource_flags(planned, cluster), run.sibling("sbatch") / "array.sbatch")
        except slurm.SlurmError as error:
            out[name] = str(error)
    return out


def _stage_plan(spec: Spec, stage: Stage, domain: str, cluster: Cluster) -> StagePlan:
    s = stage.settings
    return StagePlan(
        name=stage.name, kind=stage.kind, settings=check.plain(s), fingerprint=fingerprint(spec, stage.name),
        folder="", objects=s.OBJECTS, phases=s.PHASES, needs=stage.needs, domain=domain,
        resources=cluster.resources(stage), required=stage.required, throttle=stage.throttle,
        starts=stage.starts,
    )  # fmt: skip


def _rate(fold: records.Fold, weights: dict[str, float], guess: float) -> float:
    """Seconds of one worker per GiB of input, from what is done, or the kind's first guess."""
    work = [(r.seconds, weights.get(shard, 0.0)) for shard, r in fold.done.items()]
    gib = sum(w for _, w in work) / 2**30
    return max(sum(s for s, _ in work) / gib, 0.001) if gib > 0.01 else guess


def _remedies(folds: dict[str, records.Fold], scope: list[ledger.Shard],
              lost: dict[tuple[str, str], str], resources: dict[str, Resources]
              ) -> tuple[dict[str, tuple[float, float]], dict[str, list[str]]]:  # fmt: skip
    """What earlier failures ask for: shard -> (memory, time) factors, and the nodes to keep each stage away from.

    Where every node that a stage has seen failed, it isn't the nodes (a full shared disk, say): none is kept away from.
    """
    boosts: dict[str, tuple[float, float]] = {}
    exclude: dict[str, list[str]] = {}
    ids = {s.id for s in scope}
    for name, fold in folds.items():
        nodes: set[str] = set()
        failures = [(shard, r.failure, r.node, fold.where[shard]) for shard, r in fold.failed.items()]
        failures += [(s, lost[name, s], "", w) for s, (w, _) in fold.running.items() if (name, s) in lost]
        for shard, why, node, worker in failures:
            remedy = failure.REMEDIES.get(why)
            if remedy is None or shard not in ids:
                continue
            if remedy.elsewhere:
                nodes.add(node or worker.node)
            memory, seconds = boosts.get(shard, (1.0, 1.0))
            if remedy.memory > 1:  # of what it had when it failed: the spec may ask for more since
                memory = max(memory, min(remedy.memory * worker.memory / resources[name].memory, MAX_BOOST))
            if remedy.time > 1:
                seconds = max(seconds, min(remedy.time * worker.time / resources[name].time, MAX_BOOST))
            if (memory, seconds) != (1.0, 1.0):
                boosts[shard] = memory, seconds
        if {w.node for w in fold.where.values()} - nodes:
            exclude[name] = sorted(nodes)
    return boosts, exclude


def _behind(spec: Spec, stages: dict[str, StagePlan], scope: list[ledger.Shard], folds: dict[str, records.Fold],
            known_runs: list[Path], replaced: list[tuple[str, str]], upstream_missing: bool) -> set[str]:  # fmt: skip
    """Stages behind a barrier that have something to do. While anything before them is missing, all of them may."""
    behind: set[str] = set()
    plans: dict[str, tuple[list[str], str]] = {}  # domain -> (its shards, fingerprint)
    for name, stage in stages.items():
        if stage.domain == "inputs":
            continue
        if upstream_missing or any(n in behind for n in stage.needs):
            behind.add(name)
            continue
        if "barrier" in stage.phases:
            domain_of = {n: stages[n].domain for n in counted(stage.needs, stages)}
            known = {"inputs": [s.id for s in scope]} | {domain: shards for domain, (shards, _) in plans.items()}
            scopes = {domain: known[domain] for domain in domain_of.values()}
            _, parts = good_shards(scopes, domain_of, {n: folds[n] for n in domain_of})
            if not stage.needs:
                parts = parts_of(of_inputs(scope, replaced))
            parts += parts_of_files(spec.stages[name].settings)
            print_ = frozen_fingerprint(stage.fingerprint, frozen_digest(parts, replaced))
        else:
            print_ = frozen_fingerprint(stage.fingerprint, plans[stage.domain][1])
        folder, exists = ledger.version(spec.output, name, print_)
        fold = folds[name] = fold_stage(known_runs, name, print_)
        left = barrier_missing(stage, folder, fold) if exists and "barrier" in stage.phases else None
        if "barrier" in stage.phases:
            plans[name] = (sorted(fold.done), print_)
            if left is None or left:
                behind.add(name)
        elif set(plans[stage.domain][0]) - set(fold.done):
            behind.add(name)
        if name not in behind:
            stage.folder, stage.fingerprint = folder, print_
    # a stage over a barrier's shards gets its rows from that barrier, even if the barrier's own shards are all there
    for name in list(behind):
        head = stages[stages[name].domain]
        if head.name not in behind:
            behind.add(head.name)
            head.folder, head.fingerprint = "", fingerprint(spec, head.name)
    return behind


def _foreign_code(spec: Spec) -> list[Path]:
    """Top-level packages or files of stages that the suite does not ship: they go into the code snapshot."""
    out = []
    for stage in spec.stages.values():
        if stage.kind not in KINDS:
            top = importlib.import_module(type(stage.settings).__module__.partition(".")[0])
            file = getattr(sys.modules[top.__name__], "__file__", None)
            if file:
                path = Path(file)
                out.append(path.parent if path.name == "__init__.py" else path)
            else:
                out.extend(Path(p) for p in list(top.__path__)[:1])
    return list(dict.fromkeys(out))
