"""A barrier: see what came of the stages before, freeze it, and plan the stage behind. Runs as a job of its own.

The exact list of shards that were good at this moment is frozen into the fingerprint of what follows, so a data set
is always made from one list: shards that finish later make a new version of it, never a silent mixture.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import sys
import tempfile
from pathlib import Path

import msgspec

from hpc.batch import commit, jsons, ledger, plan, prepare, records
from hpc.batch.run import Attempt, AttemptPlan, Run, StagePlan
from hpc.batch.spec import settings_of
from hpc.data import storage


def run(run: Run, attempt: Attempt, name: str) -> int:
    """Exit status: 0, or 1 if too few shards are good (what waits for this barrier is then cancelled)."""
    if attempt.barrier(name).exists():
        print(f"{name}: this barrier has run already")  # requeued after its node was lost: what it froze holds
        return 0
    attempt_plan = attempt.plan()
    stage = attempt_plan.stage(name)
    runs, lost = ledger.runs(attempt_plan.output)
    if gone := sorted({str(f) for f in lost} - set(attempt_plan.unreachable)):
        words = f"out of reach from {os.uname().nodename}, with records that count: {', '.join(gone)}"
        print(f"{name}: {words}", file=sys.stderr)
        return 1
    counts = prepare.counted(stage.needs, {s.name: s for s in attempt_plan.stages})
    needed = [frozen_stage(attempt, attempt_plan, n) for n in counts]
    for need in needed:
        records.compact(run.records(need.name))
    folds = {n.name: prepare.fold_stage(runs, n.name, n.fingerprint) for n in needed}
    domain_of = {n.name: n.domain for n in needed}
    scopes = {domain: domain_scope(attempt, attempt_plan, domain) for domain in domain_of.values()}
    good, parts = prepare.good_shards(scopes, domain_of, folds)
    for domain, scope in scopes.items():
        few = [need.name for need in needed if need.domain == domain]
        share = len(good[domain]) / len(scope) if scope else 0.0
        words = f"{len(good[domain])} of {len(scope)} shards of {', '.join(few)} are good"
        print(f"{name}: {words} ({share:.1%}; required {stage.required:.1%})")
        if share < stage.required or not good[domain]:
            for of in few:
                for shard, record in list(folds[of].failed.items())[:10]:
                    print(f"  {of} {shard}: {record.failure}: {record.detail}")
            print(f"too few: look at the failures (hpc logs {run.id} --failed), then hpc retry {run.id}",
                  file=sys.stderr)  # fmt: skip
            return 1
    inputs: dict[str, dict[str, str]] = {}
    if not stage.needs:
        wanted = set(attempt.scope(attempt_plan))
        known = [shard for shard in ledger.load(attempt_plan.output).shards if shard.id in wanted]
        inputs = prepare.of_inputs(known, attempt_plan.superseded)
        parts = prepare.parts_of(inputs)
    parts += prepare.parts_of_files(settings_of(stage.kind, stage.settings))
    frozen = prepare.frozen_digest(parts, attempt_plan.superseded)
    stage.fingerprint = prepare.frozen_fingerprint(stage.fingerprint, frozen)
    stage.folder = begin(attempt_plan.output, stage, frozen)
    freeze(stage, good, {n.name: n for n in needed if n.name in stage.needs}, inputs, attempt_plan)
    shards = prepare.frozen_ids(stage.folder)
    members = [s for s in attempt_plan.stages if s.domain == name and s.name != name]
    for member in members:
        member.fingerprint = prepare.frozen_fingerprint(member.fingerprint, stage.fingerprint)
        member.folder = begin(attempt_plan.output, member, "")
    done = {s.name: set(prepare.fold_stage(runs, s.name, s.fingerprint).done) for s in [stage, *members]}
    missing = [shard for shard in shards if any(shard not in ids for ids in done.values())]
    cuts = plan.pack([1.0] * len(missing), max(1.0, len(missing) / stage.width), float("inf"), stage.width)
    wanted = set(missing)
    with contextlib.closing(prepare.frozen_shards(stage.folder)) as frozen_shards:
        left = (shard for shard in frozen_shards if shard.id in wanted)
        rows = (plan.Row(i, list(itertools.islice(left, b - a))) for i, (a, b) in enumerate(cuts))
        attempt.write_rows(name, rows)
    for one in [*members, stage]:
        one.done = [shard for shard in missing if shard in done[one.name]]
        jsons.write(attempt.barrier(one.name), one)
    print(f"{name}: {len(shards)} shards in {stage.folder}, {len(missing)} to make in {len(cuts)} tasks")
    return 0


def domain_scope(attempt: Attempt, attempt_plan: AttemptPlan, domain: str) -> list[str]:
    """The shards that stages over this domain should have made."""
    if domain == "inputs":
        return attempt.scope(attempt_plan)
    return prepare.frozen_ids(frozen_stage(attempt, attempt_plan, domain).folder)


def frozen_stage(attempt: Attempt, attempt_plan: AttemptPlan, name: str) -> StagePlan:
    """A stage as it ran: behind a barrier, with the fingerprint and folder that the barrier gave it."""
    path = attempt.barrier(name)
    return jsons.decode(path.read_bytes(), StagePlan) if path.exists() else attempt_plan.stage(name)


def begin(output: str, stage: StagePlan, frozen: str) -> str:
    """Find or claim the version folder."""
    while True:
        folder, exists = ledger.version(output, stage.name, stage.fingerprint)
        if exists:
            return folder
        try:
            ledger.claim(folder, commit.info(stage, frozen))
            return folder
        except ledger.Conflict:
            continue  # another run began this number with something else: the next one is free


def freeze(
    stage: StagePlan, good: dict[str, list[str]], needed: dict[str, StagePlan], inputs: dict[str, dict[str, str]],
    attempt_plan: AttemptPlan,
) -> None:  # fmt: skip
    """Plan the shards behind the barrier, once for all: not again if that was done before. A stage that needs no other
    gets the inputs instead: {"inputs": [(shard, {uri: etag})]}."""
    file = storage.join(stage.folder, "_plan.jsonl")
    if storage.stat(file):
        return
    settings = settings_of(stage.kind, stage.settings)
    upstream = {
        n: [(shard, {x: storage.join(s.folder, shard + x) for x in s.objects}) for shard in good[s.domain]]
        for n, s in needed.items()
    }
    if not stage.needs:
        upstream = {"inputs": list(inputs.items())}
    planned = importlib.import_module(settings.CODE).freeze(settings, upstream, set(attempt_plan.superseded))
    encode = msgspec.json.Encoder().encode
    with tempfile.TemporaryDirectory(prefix="hpc-barrier-") as scratch:
        path = Path(scratch) / "_plan.jsonl"
        with path.open("wb") as out:
            for i, rows in enumerate(planned):
                out.write(encode(plan.RowShard(f"{i:06}", rows)) + b"\n")
        storage.put_new(file, path)  # if another was first, its plan holds
