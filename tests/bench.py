"""What the control plane costs: the README's table.   python tests/bench.py [--slurm]

Medians of interleaved runs; CPU seconds where other load would blur wall time. --slurm adds `hpc status`
of a run of 10,000 array tasks on the cluster that SLURM_CONF names (about six minutes).
"""

from __future__ import annotations

import gc
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
HPC = [sys.executable, "-m", "hpc.cli"]


def wall(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, env=ENV, check=True, capture_output=True)
    return time.perf_counter() - begun


def start_up(times: int = 15) -> float:
    """Seconds of `hpc --help` above those of a bare interpreter."""
    hpc, bare = [], []
    for _ in range(times):
        bare.append(wall([sys.executable, "-c", "pass"]))
        hpc.append(wall([*HPC, "--help"]))
    return statistics.median(hpc) - statistics.median(bare)


def spec_of(folder: Path, inputs: int, size: str = "512MiB", stages: int = 3) -> Path:
    """A spec whose list file carries sizes and etags, so that planning looks at nothing else."""
    with (folder / "list.jsonl").open("w") as out:
        for i in range(inputs):
            uri = f"s3://bucket/videos/{i % 997:03}/clip number {i}.mp4"
            out.write(json.dumps({"uri": uri, "size": 5_000_000 + i % 7919 * 1000, "etag": f"{i:032x}"}) + "\n")
    blocks = [
        'echo: {kind: "stages:Echo"}',
        'note: {kind: "stages:Note", needs: echo}',
        'join: {kind: "stages:Join", needs: echo}',
    ]
    path = folder / "job.yaml"
    path.write_text(
        f"name: bench\ninputs: list.jsonl\noutput: out\nshards: {{size: {size}, split_above: 100GiB}}\nstages:\n"
        + "".join(f"  {block}\n" for block in blocks[:stages])
    )
    return path


def planned(path: str) -> dict[str, float]:
    """CPU seconds of a plan, those of listing taken out, and its peak memory. Call it in a process of its own."""
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
    return {
        "seconds": time.process_time() - begun - listing[0],
        "listing": listing[0],
        "shards": prepared.shards,
        "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def in_process(path: Path) -> dict[str, float]:
    call = f"json.dumps(bench.planned({str(path)!r}))"
    code = f"import json, sys; sys.path.insert(0, {str(HERE)!r}); import bench; print({call})"
    return json.loads(subprocess.run([sys.executable, "-c", code], env=ENV, check=True, capture_output=True).stdout)


def planning(inputs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        return in_process(spec_of(Path(folder), inputs))


def files_at_submit(inputs: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        in_process(spec_of(Path(folder), inputs))
        return sum(p.is_file() for p in (Path(folder) / "runs").rglob("*"))


def planned_run(folder: Path, inputs: int):
    """A planned and committed run of `inputs` shards of one input each: (run, stage)."""
    from hpc.batch import commit, run

    in_process(spec_of(folder, inputs, size="1B", stages=1))
    (run_folder,) = (folder / "runs").iterdir()
    the_run = run.Run(run_folder)
    commit.commit(the_run, the_run.attempt(1))
    return the_run, the_run.attempt(1).plan().stage("echo")


def write_records(the_run, stage, job: str, shards: range) -> None:
    """The record file that a task leaves which made these shards."""
    from hpc.batch import records
    from hpc.data.work import Object

    now = time.time()
    lines = [records.Worker(now, the_run.id, 1, "echo", stage.fingerprint, job, 0, 0, "n1")]
    for i in shards:
        made = [Object(f"{stage.folder}/{i:06}.jsonl", 100, f"{i:064x}")]
        times = {"work": 1.0, "publish": 0.1}
        lines.append(records.Record("start", f"{i:06}", now))
        lines.append(records.Record("done", f"{i:06}", now, 1.0, times, made, {"lines": 1.0}))
    log = records.Log(the_run.records("echo") / f"{job}.0.jsonl")
    os.write(log.fd, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    log.close()


def resume() -> float:
    """Wall seconds of `hpc run` on 100,000 finished shards, the listing of their 100,000 inputs included."""
    with tempfile.TemporaryDirectory() as folder:
        the_run, stage = planned_run(Path(folder), 100_000)
        for task in range(1000):
            write_records(the_run, stage, f"1_{task}", range(task * 100, task * 100 + 100))
        took = []
        for _ in range(3):
            begun = time.perf_counter()
            again = [*HPC, "run", f"{folder}/job.yaml", "--runs", f"{folder}/runs"]
            out = subprocess.run(again, env=ENV, check=True, capture_output=True, text=True).stdout
            took.append(time.perf_counter() - begun)
            assert "nothing to do" in out, out
    return statistics.median(took)


def overhead(shards: int = 200) -> dict[str, float]:
    """Empty shards through the whole worker, all in one task: seconds of the first and of each further one."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "in").mkdir()
        for i in range(shards):
            (root / "in" / f"{i}.txt").write_text("x")
        (root / "job.yaml").write_text(
            "name: empty\ninputs: in\noutput: out\nshards: {size: 1B, split_above: 1KiB}\n"
            'stages:\n  echo: {kind: "stages:Echo", resources: {cpus: 64}}\n'
        )
        subprocess.run([*HPC, "plan", "job.yaml"], cwd=root, env=ENV, check=True, capture_output=True)
        (run,) = (root / "runs").iterdir()
        subprocess.run([sys.executable, "-m", "hpc.batch.commit", str(run), "1"], env=ENV, check=True)
        before = sum(p.is_file() for p in run.rglob("*"))
        task = [sys.executable, "-m", "hpc.batch.worker", str(run), "echo", "1", "0"]
        begun = time.perf_counter()
        with (run / "logs" / "echo" / "1_0.out").open("wb") as log:
            subprocess.run(task, env=ENV, check=True, stdout=log)
        total = time.perf_counter() - begun
        files = sum(p.is_file() for p in run.rglob("*")) - before
        (record_file,) = (run / "records" / "echo").iterdir()
        lines = [json.loads(line) for line in record_file.read_text().splitlines()]
    done = [line for line in lines if line.get("state") == "done"]
    assert len(done) == shards, (len(done), shards)
    each = (done[-1]["t"] - done[0]["t"]) / (shards - 1)
    return {
        "first": total - each * (shards - 1),
        "start": sum(line["times"].get("start", 0) for line in done),
        "each": each,
        "publish": statistics.median(line["times"]["publish"] for line in done),
        "files": files,
    }


def status_of_many(tasks: int = 10_000) -> float:
    """Wall seconds of `hpc status` of a run of array tasks that Slurm really ran, with a record file each."""
    from hpc.batch import slurm

    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        the_run, stage = planned_run(Path(folder), 2 * tasks)
        script = Path(folder) / "true.sh"
        script.write_text("#!/bin/sh\nexit 0\n")
        limit = slurm.limits().max_array_size
        jobs, begun_at = [], time.time()
        for first in range(0, tasks, limit):
            n = min(limit, tasks - first)
            array = ["sbatch", "--parsable", f"--array=0-{n - 1}", "--output=/dev/null", "--mem=1M", str(script)]
            jobs.append(slurm.call(array).strip())
            for i in range(n):
                write_records(the_run, stage, f"{jobs[-1]}_{i}", range(2 * (first + i), 2 * (first + i) + 2))
            line = {"job": jobs[-1], "stage": "echo", "phase": "map", "first_row": first, "tasks": n}
            with (the_run.attempt(1).folder / "jobs.jsonl").open("a") as out:
                out.write(json.dumps(line) + "\n")
        # Accounting hears of the last tasks a little after the queue has forgotten them
        while slurm.queue(jobs) or sum(t.state == "COMPLETED" for t in slurm.accounting(jobs, begun_at)) < tasks:
            time.sleep(5)
        took = []
        for _ in range(5):
            begun = time.perf_counter()
            out = subprocess.run([*HPC, "status", str(the_run.folder)], env=ENV, capture_output=True, text=True).stdout
            took.append(time.perf_counter() - begun)
        assert f"COMPLETED {tasks}" in out and f"{2 * tasks}/{2 * tasks}" in out, out
    return statistics.median(took)


def main() -> None:
    rows = []

    def row(*cells: str) -> None:
        rows.append(cells)
        print(" | ".join(cells), flush=True)

    row("`hpc --help` over a bare interpreter", "< 100 ms", f"{1000 * start_up():.0f} ms", "")
    for inputs, goal in ((100_000, "< 2 s"), (1_000_000, "< 10 s, < 1 GB")):
        p = planning(inputs)
        made_of = f"{p['shards']:.0f} shards; listing takes {p['listing']:.1f} s more"
        cells = (goal, f"{p['seconds']:.1f} s CPU, {p['mib']:.0f} MiB", made_of)
        row(f"plan of {inputs:,} inputs, after listing", *cells)
    few, many = files_at_submit(10), files_at_submit(100_000)
    row("files written at submit: 10 inputs, 100,000 inputs", "equal", f"{few}, {many}", "mostly the code snapshot")
    row("no-op resume of 100,000 finished shards", "< 5 s", f"{resume():.1f} s", "listing included")
    o = overhead()
    row("worker overhead, first shard of a task", "<= 3 s", f"{o['first']:.2f} s",
        f"two interpreters and their imports, {o['start']:.2f} s of it the stage's process")  # fmt: skip
    row("worker overhead, each further shard", "<= 3 s", f"{1000 * o['each']:.1f} ms",
        f"publish with its fsyncs {1000 * o['publish']:.1f} ms; the record's fsync, two messages")  # fmt: skip
    row("files made by an array task", "<= 2", f"{o['files']:.0f}", "its log, its record file")
    if "--slurm" in sys.argv:
        took = status_of_many()
        row("`hpc status` of a run of 10,000 array tasks", "< 1 s", f"{took:.2f} s", "one squeue, one sacct")
    print("\n| what | goal | measured | made of |\n|---|---|---|---|")
    for cells in rows:
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
