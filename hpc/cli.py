"""hpc: from raw video to trained models on plain Slurm.

Verbs are thin: each parses its arguments, calls one function, and prints either a few lines or, with --json, the same
facts as one JSON value. Exit status: 0 all well, 1 the run failed or is incomplete, 2 the call or the spec is wrong.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hpc.batch.run import Run


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    gc.disable()  # a short process that may hold millions of small structs and no cycles: planning takes half the time
    args, rest = parser.parse_known_args(argv)
    if "overrides" in args:  # the spec and overrides (a.b=c) may stand in any order, with flags between them
        words = [args.spec, *args.overrides, *rest]
        spec = args.spec if Path(args.spec).exists() else next((word for word in words if "=" not in word), args.spec)
        words.remove(spec)
        args.spec, args.overrides, rest = spec, words, [word for word in rest if word.startswith("-")]
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        status = args.call(args)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `hpc status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except Exception as error:
        from hpc.batch import masking

        if not _expected(error) or os.environ.get("HPC_TRACEBACK"):
            sys.excepthook = masking.excepthook
            raise
        print(f"hpc {args.verb}: {masking.masked(str(error))}", file=sys.stderr)
        return 2


def _expected(error: Exception) -> bool:
    """Errors that a person can act on are shown as their text alone."""
    names = {cls.__name__ for cls in type(error).__mro__}
    known = {"SpecErrors", "InputError", "SlurmError", "StorageError", "Conflict", "Busy", "OSError", "ValueError"}
    return bool(names & known)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="hpc", description=__doc__.split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    def verb(name: str, call: Any, about: str, *, spec: bool = False, run: bool = False) -> argparse.ArgumentParser:
        p = verbs.add_parser(name, help=about, description=about)
        p.set_defaults(call=call)
        p.add_argument("--json", action="store_true", help="print one JSON value instead of text")
        p.add_argument("--runs", type=Path, default=Path(os.environ.get("HPC_RUNS", "runs")), metavar="DIR",
                       help="folder of the run folders (default: ./runs, or $HPC_RUNS)")  # fmt: skip
        if spec:
            p.add_argument("spec", help="a job spec, e.g. jobs/quickstart.yaml")
            p.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE",
                           help="e.g. stages.clips.split.min_clip=3s")  # fmt: skip
            if name == "run":
                p.set_defaults(cluster="local")
            else:
                p.add_argument("--cluster", help="a preset: a name in clusters/ beside the spec, or a path")
        if run:
            p.add_argument("run", help="a run: its id, the beginning of its id, or its folder")
        return p

    verb("check", check, "check a spec: every mistake at once, with file and line", spec=True)
    verb("plan", plan, "the dry run: write the run folder and print the exact commands; submit nothing", spec=True)
    verb("run", run, "run a spec on this machine", spec=True)
    verb("submit", submit, "submit a spec to Slurm and exit", spec=True)
    p = verb("status", status, "how far a run is", run=True)
    p.add_argument("--watch", action="store_true", help="again and again: after 30 s, then doubling to 10 minutes")
    p = verb("logs", logs, "where the logs are, and their ends", run=True)
    p.add_argument("--failed", action="store_true", help="of failed shards and tasks only")
    p.add_argument("--stage", help="of this stage only")
    p.add_argument("-n", "--lines", type=int, default=40, help="lines of each log (default 40)")
    verb("retry", retry, "plan what is missing as a new attempt, and submit it (a local run: run it)", run=True)
    verb("cancel", cancel, "cancel all jobs of a run", run=True)
    p = verb("throttle", throttle, "change how many array tasks of a run may run at once, live", run=True)
    p.add_argument("tasks", type=int, help="0 takes the limit away")
    p.add_argument("--stage", help="of this stage only")
    p = verb("report", report, "write the report of a run (text, JSON, HTML, CSV, Prometheus), or what all runs took")
    p.add_argument("run", nargs="?", help="a run: its id, the beginning of its id, or its folder")
    p.add_argument("--since", metavar="WHEN", help="instead of a run: what all runs took in which anything was done "
                   "since then, e.g. 7d or 2026-11-01, by user and account")  # fmt: skip
    p.add_argument("--output", type=Path, metavar="FILE", help="with --since: write it there, as .html, .csv or .json")
    p = verb("exporter", exporter, "all runs under a folder as Prometheus metrics: served until stopped, or in a file")
    p.add_argument("folder", type=Path, nargs="?", help="the folder of the run folders (default: that of --runs)")
    p.add_argument("--port", type=int, default=9342, help="where it answers /metrics (default 9342; 0: any free one)")
    p.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine's loopback alone)")
    p.add_argument("--days", type=float, default=30.0, help="leave out runs that did not change for so long (default "
                   "30)")  # fmt: skip
    p.add_argument("--textfile", type=Path, metavar="FILE.prom",
                   help="write once, for node_exporter's textfile collector, and exit")  # fmt: skip
    p.add_argument("--dashboards", type=Path, metavar="DIR",
                   help="copy the Grafana dashboards and alert rules there, and exit")  # fmt: skip
    p = verb("dashboard", dashboard, "a web page of all runs under a folder: live, or as files (--export)")
    p.add_argument("folder", type=Path, nargs="?", help="the folder of the run folders (default: that of --runs)")
    p.add_argument("--port", type=int, default=8765, help="where it answers (default 8765; 0: any free one)")
    p.add_argument("--host", default="127.0.0.1", help="address to listen at (default: this machine's loopback alone; "
                   "others are given a random token to ask for)")  # fmt: skip
    p.add_argument("--export", type=Path, metavar="DIR", help="write the page as it is now into this new folder, and "
                   "exit")  # fmt: skip
    p = verb("top", top, "all runs under a folder in this terminal, live; q leaves. Text once where there is none")
    p.add_argument("folder", type=Path, nargs="?", help="the folder of the run folders (default: that of --runs)")
    p.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="how often it looks (default 5)")
    p = verb("calibrate", calibrate, "propose thresholds for a run's filters from the scores of its clips", run=True)
    p.add_argument("--stage", help="whose filters (default: the first stage that has any)")
    p.add_argument("--keep", type=float, default=0.9, metavar="SHARE",
                   help="share of the clips that each threshold alone keeps (default 0.9)")  # fmt: skip
    p = verb("doctor", doctor, "is this place fit for a run? Slurm, disks, S3, images; in an allocation nodes too")
    p.add_argument("spec", nargs="?", help="a job spec, whose stores and images are looked at too")
    p.add_argument("--cluster", help="a preset: a name in clusters/ beside the spec, or a path")
    p = verb("models", models, "fetch the models that specs name into the Hugging Face cache, ahead of the jobs")
    p.add_argument("action", choices=("pull",))
    p.add_argument("names", nargs="+", metavar="SPEC|NAME", help="a spec (*.yaml), or a model as owner/name@revision")
    p.add_argument("--cluster", help="of the specs: its env may say where the cache is (HF_HOME)")
    p.add_argument("--list", action="store_true", help="print which models and files, and fetch nothing")
    p = verb("validate", validate, "apply a reader's own rules to a data set, and say what to fix")
    p.add_argument("data", metavar="DIR", help="a folder, or s3://bucket/prefix")
    p.add_argument("--as", dest="consumer", required=True, metavar="NAME",
                   help="webdataset, cosmos, cosmos-frames, predict2.5-webdataset, sessions, cosmos-curate, predict2, "
                        "predict2.5, predict2-multiview, video2world-tokens, instruction-tokens, action-tokens, "
                        "bridge, megatron-tokens, latents")  # fmt: skip
    p.add_argument("--num-frames", type=int, default=93, metavar="N",
                   help="that the training takes of a video (default 93)")  # fmt: skip
    p.add_argument("--sample", type=int, metavar="N", help="look at N entries only, picked evenly (default: at all)")
    p = verb("convert", convert, "turn weights of a model from one form into another")
    p.add_argument("source", metavar="FROM", help="a training's folder or one of its checkpoints, a model.pt, a "
                   ".safetensors, or a folder nemo with weights/, or iter_... with model/")  # fmt: skip
    p.add_argument("to", metavar="TO", help="NAME.pt or NAME.safetensors under the published names, or a folder: nemo; "
                   "of diffusion models any name, for all files, or iter_...")  # fmt: skip
    p.add_argument("--model", metavar="NAME", help="such as ar-4b, of files that do not say it themselves")
    p.add_argument("--shape", metavar="T,H,W", type=lambda words: tuple(map(int, words.split(","))),
                   help="of its latents, if not the model's own")  # fmt: skip
    p = verb("import-cosmos", import_cosmos, "turn pipeline configs of Cosmos-Curate into a spec")
    p.add_argument("configs", nargs="+", metavar="CONFIG", help='{"pipeline": "split"|"dedup"|"shard", "args": {...}}')
    p.add_argument("--output", type=Path, metavar="FILE", help="write the spec here (default: print it)")
    p = verb("schema", schema, "print the JSON Schema of job specs")
    p.add_argument("--cluster", action="store_true", help="of cluster presets instead")
    return parser


def emit(args: argparse.Namespace, value: Any, lines: list[str]) -> None:
    from hpc.batch import jsons, masking

    if args.json:
        print(masking.masked(jsons.pretty(value).decode()), end="")
    elif lines:
        print(masking.masked("\n".join(lines)))


def load(args: argparse.Namespace) -> list[Any]:
    from hpc.batch import spec

    return spec.load(args.spec, args.overrides, args.cluster)


def cluster_for(spec: Any) -> Any:
    from hpc.batch.cluster import load_cluster

    return load_cluster(spec.cluster, spec.path)


def find(args: argparse.Namespace) -> Run:
    from hpc.batch import masking, run

    found = run.find(args.run, args.runs)
    os.environ[masking.NAMES] = ",".join(masking.named(found.spec))
    return found


def check(args: argparse.Namespace) -> int:
    from hpc.batch import container, doctor, inputs, preflight, preflight_models, preflight_prompts, prepare, slurm

    facts, lines, status = [], [], 0
    for spec in load(args):
        cluster = cluster_for(spec)
        where = prepare.domains(spec)
        for stage in spec.stages.values():
            cluster.resources(stage)
        if spec.cluster != "local":
            container.check(spec, cluster, args.runs)
        os.environ.update(cluster.env | spec.env)
        firsts = [s.settings for s in spec.stages.values() if not s.needs]
        suffixes, beside = (tuple(x for s in firsts for x in getattr(s, name, ())) for name in
                            ("INPUT_SUFFIXES", "BESIDE"))  # fmt: skip
        listing = inputs.resolve(spec.inputs, suffixes, beside)
        total = sum(e.size for e in listing.entries)
        lines.append(f"{spec.name}-{spec.hash}: {len(listing.entries)} inputs, {total / 2**30:.2f} GiB; stages "
                     + ", ".join(f"{n} ({s.kind})" for n, s in spec.stages.items()))  # fmt: skip
        lines += [f"  ignored {n} x {suffix}" for suffix, n in sorted(listing.ignored.items())]
        refused = {}
        if spec.cluster != "local" and slurm.available():
            refused = prepare.refused(spec, cluster)
            lines += [f"  Slurm would refuse {stage}: {why}" for stage, why in refused.items()]
            lines += [] if refused else [f"  Slurm would take every stage on {spec.cluster}"]
        rows = [*preflight_prompts.examine(spec, listing.entries), *preflight_models.examine(spec, cluster),
                *preflight.examine(spec, cluster, args.runs, total), *_data_sets(preflight.data_sets(spec))]
        lines += [f"  {line}" for line in doctor.lines(rows)]
        status = 1 if refused or any(row.verdict == "bad" for row in rows) else status
        facts.append({"name": spec.name, "hash": spec.hash, "inputs": len(listing.entries), "bytes": total,
                      "ignored": listing.ignored, "domains": where, "refused": refused, "rows": rows})  # fmt: skip
    emit(args, facts, lines)
    return status


def _data_sets(found: list[Any]) -> list[Any]:
    """A sample of each data set that a training will read and that is there already, looked at by its reader's rules:
    before a GPU is allocated."""
    from hpc.batch import preflight
    from hpc.batch.doctor import Row

    rows = []
    for one in found:
        what = f"{one.stage}: data"
        try:
            from hpc import validate as rules

            report = rules.validate(one.folder, one.consumer, one.frames, sample=16)
        except ModuleNotFoundError as error:
            rows.append(Row(what, "unknown", f"{one.folder}: {error.name} is not installed here",
                            f"where it is: hpc validate {one.folder} --as {one.consumer}"))  # fmt: skip
            continue
        except (OSError, ValueError) as error:
            rows.append(Row(what, "bad", str(error)))
            continue
        *_, last = rules.lines(report)
        verdict = preflight.verdict_of(report)
        rows.append(Row(what, verdict, last, f"hpc validate {one.folder} --as {one.consumer}" if report.errors else ""))
    return rows


def _prepared(args: argparse.Namespace, spec: Any, cluster: Any, on_slurm: bool) -> Any:
    from hpc.batch import launch, preflight_prompts

    dry = args.verb == "plan"
    if args.verb != "retry":  # what a run has begun with, it goes on with
        os.environ.update(cluster.env | spec.env)
        try:
            preflight_prompts.refuse(spec)
        except ValueError as error:
            if not dry:  # which may be read where the pictures are not that prompts name
                raise
            print(error, file=sys.stderr)
    return launch.plan(spec, cluster, args.runs, on_slurm=on_slurm, command=sys.argv, dry=dry)


def _facts(p: Any) -> dict[str, Any]:
    return {
        "run": p.run.id, "folder": str(p.run.folder), "attempt": p.attempt.number if p.attempt else None,
        "inputs": p.inputs, "shards": p.shards, "new_shards": p.new_shards, "missing": p.missing,
        "ignored": p.ignored, "excluded_nodes": p.excluded, "folders": p.folders,
        "submit": str(p.attempt.submit) if p.attempt else None,
    }  # fmt: skip


def _summary(p: Any) -> list[str]:
    ignored = "".join(f"; ignored {n} x {s}" for s, n in sorted(p.ignored.items()))
    many = lambda n, word: f"{n:,} {word}{'s' * (n != 1)}"
    lines = [f"{p.run.id}: {many(p.inputs, 'input')} in {many(p.shards, 'shard')} ({p.new_shards:,} new){ignored}"]
    lines += [f"  out of reach, so that what it made is made again and compared: {folder}" for folder in p.unreachable]
    if p.attempt is None:
        folders = "".join(f"\n  {name}: {folder}" for name, folder in p.folders.items())
        return [*lines, f"nothing to do: every shard of every stage is done{folders}"]
    for name, n in p.missing.items():
        lines.append(f"  {name}: {p.shards - n:,} done, {n:,} to do")
    lines += [f"  {stage} is kept away from {', '.join(nodes)}" for stage, nodes in p.excluded.items() if nodes]
    return lines


def plan(args: argparse.Namespace) -> int:
    facts, lines = [], []
    for spec in load(args):
        on_slurm = spec.cluster != "local"
        p = _prepared(args, spec, cluster_for(spec), on_slurm)
        facts.append(_facts(p))
        lines += _summary(p)
        if p.attempt:
            lines += ["", p.attempt.submit.read_text()]
            lines.append(f"# nothing was submitted; to submit exactly this: bash {p.attempt.submit}")
    emit(args, facts, lines)
    return 0


def submit(args: argparse.Namespace) -> int:
    from hpc.batch import launch

    facts, lines, bad = [], [], 0
    for spec in load(args):
        if spec.cluster == "local":
            raise ValueError("`local` is this machine: use `hpc run`, or name a cluster preset with --cluster NAME")
        try:
            p = _prepared(args, spec, cluster_for(spec), True)
        except launch.Busy as error:  # of a matrix, the others may go ahead
            bad += 1
            facts.append({"run": f"{spec.name}-{spec.hash}", "busy": str(error)})
            print(f"hpc submit: {spec.name}-{spec.hash}: {error}", file=sys.stderr)
            continue
        lines += _summary(p)
        if p.attempt:
            lines += [launch.submit(p).strip(), f"  hpc status {p.run.id}"]
        facts.append(_facts(p) | {"jobs": [j.job for j in p.attempt.jobs()] if p.attempt else []})
    emit(args, facts, lines)
    return 2 if bad else 0


def run(args: argparse.Namespace) -> int:
    facts, bad = [], 0
    for spec in load(args):
        fact = _run_here(args, spec)
        bad += fact.get("state", "done") != "done"
        facts.append(fact)
    if args.json:
        emit(args, facts, [])
    return 1 if bad else 0


def _run_here(args: argparse.Namespace, spec: Any) -> dict[str, Any]:
    from hpc.batch import finale, launch, local, progress
    from hpc.batch.cluster import LOCAL

    p = _prepared(args, spec, LOCAL, False)
    fact = _facts(p)
    if not args.json:
        print("\n".join(_summary(p)), flush=True)
    if p.attempt:
        if (words := local.unseen(p.attempt.plan())) and not args.json:
            print(f"  {words}", flush=True)
        with progress.bars(p.run, p.attempt, quiet=args.json) as tick:
            launch.here(p, spec, LOCAL, tick)
        made, _ = finale.finale(p.run, ask_slurm=False, say=not args.json)
        fact["state"] = made.status.state
        if not args.json:
            print(f"\nreport: {p.run.report('html')}")
    return fact


def status(args: argparse.Namespace) -> int:
    from hpc.batch import status as st

    pause = 30.0
    while True:
        s = st.gather(find(args)).status
        emit(args, s, st.lines(s))
        if not args.watch or not s.active:
            return 0 if s.state in ("done", "running", "waiting") else 1
        sys.stdout.flush()
        time.sleep(pause)
        pause = min(2 * pause, 600.0)


def logs(args: argparse.Namespace) -> int:
    from hpc.batch import logs as lg

    found = lg.collect(find(args), args.stage, args.failed, args.lines)
    lines = []
    for entry in found:
        lines += [f"==> {entry.path}  ({entry.why})", *entry.tail, ""]
    emit(args, found, lines or ["no logs" + (" of failed shards or tasks" if args.failed else "")])
    return 0


def retry(args: argparse.Namespace) -> int:
    from hpc.batch import launch

    found = find(args)
    args.runs = found.folder.parent
    spec = launch.spec_of(found)
    if found.latest().plan().cluster == "local":
        fact = _run_here(args, spec)
        if args.json:
            emit(args, fact, [])
        return 0 if fact.get("state", "done") == "done" else 1
    p = _prepared(args, spec, launch.cluster_of(found), True)
    lines = _summary(p)
    if p.attempt:
        lines.append(launch.submit(p).strip())
    emit(args, _facts(p) | {"jobs": [j.job for j in p.attempt.jobs()] if p.attempt else []}, lines)
    return 0


def cancel(args: argparse.Namespace) -> int:
    from hpc.batch import slurm

    found = find(args)
    jobs = [j.job for n in found.attempts() for j in found.attempt(n).jobs()]
    alive = sorted({t.job for t in slurm.queue(jobs)}, key=int) if jobs else []
    slurm.cancel(alive)
    words = f"cancelled {', '.join(alive)}; `hpc retry {found.id}` goes on from what is done"
    emit(args, {"run": found.id, "cancelled": alive}, [words if alive else "no jobs to cancel"])
    return 0


def throttle(args: argparse.Namespace) -> int:
    from hpc.batch import slurm

    found = find(args)
    jobs = [j for j in found.latest().jobs() if j.phase == "map" and args.stage in (None, j.stage)]
    alive = {t.job for t in slurm.queue([j.job for j in jobs])}
    changed = [j for j in jobs if j.job in alive]
    for job in changed:  # several arrays of one stage share the limit
        share = max(1, args.tasks // sum(j.stage == job.stage for j in changed)) if args.tasks else 0
        slurm.throttle(job.job, share)
    many = args.tasks or "any number of"
    lines = [f"{j.stage} ({j.job}): at most {many} tasks at once" for j in changed]
    facts = {"run": found.id, "changed": [j.job for j in changed], "tasks": args.tasks}
    emit(args, facts, lines or ["no live arrays"])
    return 0


def report(args: argparse.Namespace) -> int:
    from hpc.batch import report as rp
    from hpc.batch import status as st

    if bool(args.run) == bool(args.since):
        raise ValueError("name a run, or give --since")
    if args.since:
        return _overview(args)
    found = find(args)
    made = rp.write(found, st.gather(found, history=True))
    emit(args, made, [rp.text(made), f"\nreport: {found.report('html')}"])
    return 0 if made.status.state in ("done", "running", "waiting") else 1


def _overview(args: argparse.Namespace) -> int:
    from hpc.batch import accounting, jsons, masking, overview

    made = overview.build(args.runs, overview.parse(args.since))
    if args.output:
        forms = {".html": overview.html_page, ".csv": lambda o: accounting.table(o.runs),
                 ".json": lambda o: jsons.pretty(o).decode()}  # fmt: skip
        if args.output.suffix not in forms:
            raise ValueError(f"--output {args.output}: the name must end with {', '.join(forms)}")
        args.output.write_text(masking.masked(forms[args.output.suffix](made)))
    emit(args, made, [*overview.text(made), *([str(args.output)] if args.output else [])])
    return 0


def exporter(args: argparse.Namespace) -> int:
    from hpc.batch import exporter as ex

    if args.dashboards:
        files = ex.copy_dashboards(args.dashboards)
        emit(args, {"files": files}, [str(file) for file in files])
        return 0
    here = ex.Exporter(_folder(args), args.days)
    if args.textfile:
        ex.write(here, args.textfile)
        emit(args, {"file": str(args.textfile), "runs": len(here.seen)}, [f"{args.textfile}: {len(here.seen)} runs"])
        return 0
    with ex.serve(here, args.host, args.port) as server:
        address = f"http://{args.host}:{server.server_port}/metrics"
        emit(args, {"address": address, "runs": len(here.seen)}, [f"{len(here.seen)} runs at {address}"])
        sys.stdout.flush()
        server.serve_forever()
    return 0


def dashboard(args: argparse.Namespace) -> int:
    from hpc.batch import dashboard as db

    gc.enable()  # it stays
    board = db.Dashboard(_folder(args))
    if args.export:
        from hpc.batch import dashboard_export as ex

        made = ex.export(board, args.export)
        emit(args, made, [f"{made['page']}: {made['runs']} runs, {made['clips']} clips, {made['files']} files"])
        return 0
    from hpc.batch import dashboard_server

    server, address = dashboard_server.serve(board, args.host, args.port)
    with server:
        emit(args, {"address": address, "folder": str(board.watch.folder)}, [f"{board.watch.folder} at {address}"])
        sys.stdout.flush()
        server.serve_forever()
    return 0


def top(args: argparse.Namespace) -> int:
    from hpc.batch import top as tp

    gc.enable()  # it stays
    return tp.show(_folder(args), args.every, args.json)


def _folder(args: argparse.Namespace) -> Path:
    folder: Path = args.folder or args.runs
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; give the one that the run folders are in")
    return folder


def calibrate(args: argparse.Namespace) -> int:
    from hpc.batch import calibrate as cb

    found = find(args)
    stage, made = cb.calibrate(found, args.stage, args.keep)
    page = found.folder / "calibrate.html"
    lines = [*cb.text(found, stage, made), "", f"# the clips beside each threshold: {page}"]
    emit(args, {"run": found.id, "stage": stage, "page": str(page), "calibration": made}, lines)
    return 0


def doctor(args: argparse.Namespace) -> int:
    from hpc.batch import doctor as dr
    from hpc.batch.cluster import LOCAL, load_cluster

    spec = load_one(args) if args.spec else None
    cluster = cluster_for(spec) if spec else load_cluster(args.cluster, "jobs/-") if args.cluster else LOCAL
    if spec:
        os.environ.update(cluster.env | spec.env)
    rows = dr.examine(spec, cluster, args.runs)
    emit(args, rows, dr.lines(rows))
    return 1 if any(row.verdict == "bad" for row in rows) else 0


def load_one(args: argparse.Namespace) -> Any:
    """Of a matrix the first."""
    from hpc.batch import spec

    return spec.load(args.spec, (), args.cluster, check_paths=False)[0]


def models(args: argparse.Namespace) -> int:
    from hpc.batch import models as md

    found = []
    for model in md.pull(md.wanted(args.names, args.cluster), fetch=not args.list):
        found.append(model)
        if not args.json:  # one by one: a large model takes its time
            print("\n".join(model.lines()), flush=True)
    emit(args, found, [] if found else ["no models are named"])
    return 1 if any(model.problem for model in found) else 0


def validate(args: argparse.Namespace) -> int:
    from hpc import validate as rules

    found = rules.validate(args.data, args.consumer, args.num_frames, args.sample)
    emit(args, found, list(rules.lines(found)))
    return 1 if found.errors else 0


def convert(args: argparse.Namespace) -> int:
    from hpc.train import convert as converting

    made = converting.convert(args.source, args.to, args.model, args.shape)
    emit(args, made, [f"{made['model']}: {made['tensors']} tensors, {made['parameters']:,} parameters", *made["files"]])
    return 0


def import_cosmos(args: argparse.Namespace) -> int:
    from hpc.batch import cosmos

    made = cosmos.convert(args.configs)
    cosmos.check(made)
    if args.output:
        with args.output.open("x", encoding="utf-8") as file:  # a spec that someone worked on is not written over
            file.write(made.text)
    for one in made.left if not args.json else ():
        print(f"{'not taken over' if one.lost else 'not needed'}: {one.file}: {one}", file=sys.stderr)
    said = f"{args.output}: next: hpc check {args.output}" if args.output else made.text.rstrip("\n")
    emit(args, {"spec": made.text, "left": made.left, "output": args.output and str(args.output)}, [said])
    return 0


def schema(args: argparse.Namespace) -> int:
    import json

    from hpc.batch import cluster, spec

    print(json.dumps(cluster.cluster_schema() if args.cluster else spec.schema(), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
