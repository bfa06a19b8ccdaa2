"""A folder of runs with something of everything that dashboards show; and a Prometheus that scrapes it.

The runs are real: planned, worked on, their records written by workers. What this machine has not got (GPUs, Slurm's
queue, a training that takes its time) is put into their files, in the form in which workers and trainers write it.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import runs

from hpc.batch import barrier, records
from hpc.batch.run import Run
from hpc.train.metrics import Metrics

GANG: dict[str, Any] = {"kind": "stages:Gang", "needs": "pair", "resources": {"cpus": 1, "workers": 2, "time": "10m"}}
RATES = {"gpu_hour": 3600.0, "cpu_hour": 36.0, "currency": "EUR"}


def site(folder: Path, name: str = "film") -> Run:
    """folder/runs with one run: a stage that is done and had GPUs, one with failures and pending tasks, a training."""
    texts = {"a.txt": "fail", "b.txt": "oom", **runs.numbered(4)}
    pair = {"kind": "pair:Pair", "resources": {"cpus": 1, "memory": "8GiB"}}
    spec = runs.spec(folder, texts, {"pair": pair, "echo": runs.ECHO, "train": GANG}, name=name)
    made = runs.planned(spec)
    assert made.attempt and made.plan
    for stage in ("pair", "echo"):
        runs.finish(runs.worker(made, stage))
    runs.finish(runs.worker(made, "train", "barrier"))
    rewrite(made.run, "pair")
    preset = made.attempt.folder / "cluster.json"
    preset.write_text(json.dumps(json.loads(preset.read_text()) | {"rates": RATES, "account": "vision"}))
    jobs = [{"job": "101", "stage": "pair", "phase": "map", "tasks": 1},
            {"job": "102", "stage": "echo", "phase": "map", "tasks": 5}]  # fmt: skip
    (made.attempt.folder / "jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    frozen = barrier.frozen_stage(made.attempt, made.plan, "train")
    with Metrics(Path(frozen.folder, "training", "metrics.jsonl"), gpus=1) as told:
        for step in range(1, 31):
            learn(told, step)
    return made.run


def learn(told: Metrics, step: int) -> None:
    """A line as train.ar writes it."""
    told.step(step, loss=8 / math.sqrt(step), grad_norm=1.5, rate=3e-4, samples=32, tokens=32_000, seconds=1.9,
              waited=0.1, checkpoint_seconds=0.0, skipped=2, memory_bytes=7e10, mfu=0.41,
              validation_seconds=3.0, validation_nll=8.5 / math.sqrt(step), z_loss=0.01, tflops_per_gpu=405,
              tokens_per_second_per_gpu=4_000)  # fmt: skip


def rewrite(run: Run, stage: str) -> None:
    """The workers of a stage held a GPU each, which was busy 80 % of the time at 500 W; its filters dropped clips."""
    for path in records.files(run.records(stage)):
        lines = list(records.read(path))
        for line in lines:
            if isinstance(line, records.Worker):
                line.gpus, line.t = 1, line.t - 3600
            elif isinstance(line, records.Record) and line.state == "done":
                line.gpu = {"seconds": 100.0, "busy": 80.0, "joules": 50_000.0, "bytes": 2e10}
                line.counts |= {"dropped": 1.0, "dropped_black": 1.0, "frames": 240.0}
        path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def slurm(folder: Path) -> runs.Slurm:
    """What squeue says of its jobs."""
    fake = runs.Slurm(folder)
    fake.answers(squeue="102_[0-3]|PENDING|Priority||102\n102_4|RUNNING|None|n1|106\n")
    return fake


def copies(run: Run, count: int, place: Path) -> None:
    """Runs in `place`, alike but for their names."""
    for number in range(count):
        twin = place / f"twin{number:04}-{run.id.rpartition('-')[2]}"
        shutil.copytree(run.folder, twin, ignore=shutil.ignore_patterns("code", "logs"))
        for path in (twin / "records").rglob("*.jsonl"):
            path.write_text(path.read_text().replace(run.id, twin.name))


@contextlib.contextmanager
def exporter(folder: Path, **env: str) -> Iterator[str]:
    """`hpc exporter` as a process; its address."""
    command = [runs.sys.executable, "-m", "hpc.cli", "exporter", str(folder), "--port", "0"]
    process = subprocess.Popen(command, env=runs.environment(**env), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(60)


def get(address: str, timeout: float = 10) -> str:
    with urllib.request.urlopen(address, timeout=timeout) as answer:
        return answer.read().decode()


class Prometheus:
    """A real one, on a free port."""

    def __init__(self, folder: Path, target: str, rules: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        config = folder / "prometheus.yml"
        host = urllib.parse.urlsplit(target).netloc
        config.write_text(json.dumps({
            "global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "rule_files": [str(rules)],
            "scrape_configs": [{"job_name": "hpc", "honor_labels": True, "static_configs": [{"targets": [host]}]}],
        }))  # fmt: skip
        self.process = subprocess.Popen(
            ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}",
             f"--web.listen-address={self.address}", "--log.level=error"], cwd=folder, env=runs.environment()
        )  # fmt: skip

    def ask(self, path: str, **parameters: str) -> Any:
        answer = json.loads(get(f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"))
        assert answer["status"] == "success", answer
        return answer["data"]

    def value(self, query: str) -> float:
        [found] = self.ask("query", query=query)["result"]
        return float(found["value"][1])

    def until_scraped(self, times: int, timeout: float = 60) -> None:
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if self.value('count_over_time(up{job="hpc"}[10m])') >= times:
                    return
            except (OSError, ValueError):
                pass
            time.sleep(0.2)
        raise AssertionError("Prometheus did not scrape in time")

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
