"""What the control plane costs: the README's table.   python tests/bench.py [--slurm]

Ratios and differences on this machine, medians of interleaved runs; CPU seconds where other load would blur wall time.
--slurm adds `hpc status` of a run of 10,000 array tasks on the cluster that SLURM_CONF names (about six minutes).
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec

HERE = Path(__file__).parent
ENV = os.environ | {"PYTHONPATH": str(HERE)}
ROWS: list[tuple[str, str, str, str]] = []


def row(what: str, goal: str, measured: str, made_of: str = "") -> None:
    ROWS.append((what, goal, measured, made_of))
    print(f"{what}: {measured} (goal {goal}) {made_of}", flush=True)


def wall(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, env=ENV, check=True, capture_output=True)
    return time.perf_counter() - begun


def start_up() -> None:
    hpc, bare = [], []
    for _ in range(15):
        bare.append(wall([sys.executable, "-c", "pass"]))
        hpc.append(wall([sys.executable, "-m", "hpc.cli", "--help"]))
    difference = statistics.median(hpc) - statistics.median(bare)
    row("`hpc --help` over a bare interpreter", "< 100 ms", f"{1000 * difference:.0f} ms")


def spec_of(folder: Path, inputs: int, size: str = "512MiB", bytes_each: int = 5_000_000) -> Path:
    """A spec whose list file carries sizes and etags, so that planning looks at nothing else."""
    with (folder / "list.jsonl").open("w") as out:
        for i in range(inputs):
            uri = f"s3://bucket/videos/{i % 997:03}/clip number {i}.mp4"
            out.write(json.dumps({"uri": uri, "size": bytes_each + i % 7919 * 1000, "etag": f"{i:032x}"}) + "\n")
    path = folder / "job.yaml"
    path.write_text(
        f"name: bench\ninputs: list.jsonl\noutput: out\nshards: {{size: {size}, split_above: 100GiB}}\n"
        'stages:\n  echo: {kind: "stages:Echo"}\n  note: {kind: "stages:Note", needs: echo}\n'
        '  join: {kind: "stages:Join", needs: echo}\n'
    )
    return path


def planned(path: str) -> dict[str, float]:
    """In a process of its own: CPU seconds of a plan, those of listing taken out, and its peak memory."""
    import gc

    from hpc.batch import cluster, inputs, launch, spec

    gc.disable()  # as the command does
    listing = [0.0]
    resolve = inputs.resolve

    def timed(*args):
        begun = time.process_time()
        try:
            return resolve(*args)
        finally:
            listing[0] += time.process_time() - begun

    inputs.resolve = timed
    job = spec.load(path)[0]
    begun = time.process_time()
    prepared = launch.plan(job, cluster.LOCAL, Path(path).parent / "runs", on_slurm=False, command=[])
    seconds = time.process_time() - begun - listing[0]
    return {"seconds": seconds, "listing": listing[0], "shards": prepared.shards, "todo": prepared.attempt is not None,
            "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}  # fmt: skip


def in_process(call: str) -> dict[str, float]:
    code = f"import json, sys; sys.path.insert(0, {str(HERE)!r}); import bench; print(json.dumps(bench.{call}))"
    return json.loads(subprocess.run([sys.executable, "-c", code], env=ENV, check=True, capture_output=True).stdout)


def planning() -> None:
    for inputs, goal in ((100_000, "< 2 s"), (1_000_000, "< 10 s, < 1 GB")):
        with tempfile.TemporaryDirectory() as folder:
            path = spec_of(Path(folder), inputs)
            p = in_process(f"planned({str(path)!r})")
        what = f"plan of {inputs:,} inputs, after listing"
        row(
            what,
            goal,
            f"{p['seconds']:.1f} s CPU, {p['mib']:.0f} MiB",
            f"{p['shards']:.0f} shards; listing {p['listing']:.1f} s",
        )


def files_at_submit() -> None:
    counts = []
    for inputs in (10, 100_000):
        with tempfile.TemporaryDirectory() as folder:
            path = spec_of(Path(folder), inputs)
            in_process(f"planned({str(path)!r})")
            counts.append(sum(p.is_file() for p in (Path(folder) / "runs").rglob("*")))
    row(
        "files written at submit, 10 and 100,000 inputs",
        "equal",
        f"{counts[0]} and {counts[1]}",
        "most are the code snapshot",
    )


def resume() -> None:
    """100,000 shards of one input each, all recorded done; then the same plan again."""
    from hpc.batch import records, run
    from hpc.data.work import Object

    with tempfile.TemporaryDirectory() as folder:
        path = spec_of(Path(folder), 100_000, size="1B")
        path.write_text(path.read_text().split("  note:")[0])
        first = in_process(f"planned({str(path)!r})")
        assert first["shards"] == 100_000, first
        (run_folder,) = (Path(folder) / "runs").iterdir()
        the_run = run.Run(run_folder)
        from hpc.batch import commit

        commit.commit(the_run, the_run.attempt(1))
        stage = the_run.attempt(1).plan().stage("echo")
        log = records.Log(the_run.records("echo") / "compact-0001.jsonl")
        log.write(records.Worker(time.time(), the_run.id, 1, "echo", stage.fingerprint, "1_0", 0, 0, "n1"))
        encode = msgspec.json.Encoder().encode
        done = [
            records.Record("done", f"{i:06}", time.time(), seconds=1.0, times={"work": 1.0, "publish": 0.1},
                           objects=[Object(f"{stage.folder}/{i:06}.jsonl", 100, f"{i:064x}")], counts={"lines": 1})
            for i in range(100_000)
        ]  # fmt: skip
        os.write(log.fd, b"".join(encode(r) + b"\n" for r in done))
        log.close()
        again = []
        for _ in range(3):
            begun = time.perf_counter()
            out = subprocess.run([sys.executable, "-m", "hpc.cli", "run", str(path), "--runs", f"{folder}/runs"],
                                 env=ENV, check=True, capture_output=True, text=True).stdout  # fmt: skip
            again.append(time.perf_counter() - begun)
            assert "nothing to do" in out, out
    row("no-op resume of 100,000 finished shards", "< 5 s", f"{statistics.median(again):.1f} s wall, listing included")


def overhead() -> None:
    """Empty shards through the whole worker: 200 in one task."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        for i in range(200):
            (root / "in" / f"{i}.txt").write_text("x")
        (root / "job.yaml").write_text(
            "name: empty\ninputs: in\noutput: out\nshards: {size: 1B, split_above: 1KiB}\n"
            'stages:\n  echo: {kind: "stages:Echo", resources: {cpus: 64}}\n'
        )
        subprocess.run(
            [sys.executable, "-m", "hpc.cli", "plan", "job.yaml"], cwd=root, env=ENV, check=True, capture_output=True
        )
        (run_folder,) = (root / "runs").iterdir()
        subprocess.run([sys.executable, "-m", "hpc.batch.commit", str(run_folder), "1"], env=ENV, check=True)
        row_one = (run_folder / "attempt-1" / "plan.jsonl").read_text().splitlines()[0]
        shards = len(json.loads(row_one)[1])
        before = sum(1 for p in run_folder.rglob("*") if p.is_file())
        begun = time.perf_counter()
        with (run_folder / "logs" / "echo" / "1_0.out").open("wb") as log:
            subprocess.run(
                [sys.executable, "-m", "hpc.batch.worker", str(run_folder), "echo", "1", "0"],
                env=ENV,
                check=True,
                stdout=log,
            )
        total = time.perf_counter() - begun
        files = sum(1 for p in run_folder.rglob("*") if p.is_file()) - before
        lines = [json.loads(x) for p in (run_folder / "records" / "echo").iterdir() for x in p.read_text().splitlines()]
    done = [x for x in lines if x.get("state") == "done"]
    assert len(done) == shards, (len(done), shards)
    start = sum(x["times"].get("start", 0) for x in done)
    publish = statistics.median(x["times"]["publish"] for x in done)
    each = (done[-1]["t"] - done[0]["t"]) / (shards - 1)
    row(
        "worker overhead of the first shard of a task",
        "<= 3 s",
        f"{total - each * (shards - 1):.2f} s",
        f"two interpreters and their imports; the stage's process {start:.2f} s of it",
    )
    row(
        "worker overhead of each further shard",
        "<= 3 s",
        f"{1000 * each:.1f} ms",
        f"publish with its fsyncs {1000 * publish:.1f} ms, the record's fsync, two messages",
    )
    row("files made by one array task", "<= 2", f"{files}", "its log and its record file")


def status_of_many() -> None:
    """10,000 array tasks that Slurm really ran, 10,000 record files, 20,000 shards."""
    from hpc.batch import commit, records, run, slurm
    from hpc.data.work import Object

    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        path = spec_of(Path(folder), 20_000, size="1B")
        path.write_text(path.read_text().split("  note:")[0])
        in_process(f"planned({str(path)!r})")
        (run_folder,) = (Path(folder) / "runs").iterdir()
        the_run = run.Run(run_folder)
        attempt = the_run.attempt(1)
        commit.commit(the_run, attempt)
        stage = attempt.plan().stage("echo")
        script = Path(folder) / "true.sh"
        script.write_text("#!/bin/sh\nexit 0\n")
        limit = slurm.limits().max_array_size
        jobs, left = [], 10_000
        while left:
            n = min(left, limit - 1)
            out = slurm.call(
                ["sbatch", "--parsable", f"--array=0-{n - 1}", "--output=/dev/null", "--mem=1M", str(script)]
            )
            jobs.append((out.strip(), n))
            left -= n
        with (attempt.folder / "jobs.jsonl").open("w") as out:
            for job, n in jobs:
                out.write(json.dumps({"job": job, "stage": "echo", "phase": "map", "first_row": 0, "tasks": n}) + "\n")
        shard = 0
        for job, n in jobs:
            for i in range(n):
                log = records.Log(the_run.records("echo") / f"{job}_{i}.0.jsonl")
                lines = [
                    records.Worker(time.time(), the_run.id, 1, "echo", stage.fingerprint, f"{job}_{i}", 0, i, "n1")
                ]
                for _ in range(2):
                    uri = f"{stage.folder}/{shard:06}.jsonl"
                    lines.append(records.Record("start", f"{shard:06}", time.time()))
                    lines.append(records.Record("done", f"{shard:06}", time.time(), seconds=1.0, times={"work": 1.0},
                                                objects=[Object(uri, 100, f"{shard:064x}")], counts={"lines": 1}))  # fmt: skip
                    shard += 1
                os.write(log.fd, b"".join(msgspec.json.encode(x) + b"\n" for x in lines))
                log.close()
        while slurm.queue([job for job, _ in jobs]):
            time.sleep(10)
        took = []
        for _ in range(5):
            begun = time.perf_counter()
            out = subprocess.run([sys.executable, "-m", "hpc.cli", "status", str(run_folder)], env=ENV,
                                 capture_output=True, text=True).stdout  # fmt: skip
            took.append(time.perf_counter() - begun)
        assert "COMPLETED 10000" in out and "20000/20000" in out, out
    row(
        "`hpc status` of a run of 10,000 array tasks",
        "< 1 s",
        f"{statistics.median(took):.2f} s",
        "10,000 record files, one squeue, one sacct",
    )


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    for step in (
        start_up,
        planning,
        files_at_submit,
        resume,
        overhead,
        *([status_of_many] if "--slurm" in sys.argv else []),
    ):
        step()
    print("\n| what | goal | measured | |\n|---|---|---|---|")
    for cells in ROWS:
        print("| " + " | ".join(cells) + " |")
