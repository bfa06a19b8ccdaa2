"""Folders of runs for the dashboard and `hpc top`: one of a film that really ran, with failures planted; and very many,
one of them with ten thousand shards, whose records are written here in the form in which workers write them."""

from __future__ import annotations

import json
import random
import subprocess
import time
from pathlib import Path
from typing import Any

import figures
import msgspec
import runs
from PIL import Image

from hpc.batch import finale, records, status
from hpc.batch.run import Attempt, AttemptPlan, Run
from hpc.data.work import Object
from hpc.train.metrics import Metrics

TRAILER = Path(__file__).parents[1] / "jobs" / "quickstart" / "trailer_bbb.mp4"
SECRET = "s3cr3t-that-nobody-sees"
PIECES = {"one": 0, "two": 9, "three": 18, "fail": 28, "oom": 36}
"""Videos of seven seconds of the trailer -> where they begin."""


def film(folder: Path, name: str = "film") -> Run:
    """folder/runs with a run like the quickstart's: shots of a trailer in five videos and a file that is none, captions
    that fail for two of them, and a training that has pictures."""
    (folder / "in").mkdir(parents=True)
    for piece, begin in PIECES.items():
        cut(begin, 7, folder / "in" / f"{piece}.mp4", 480)
    (folder / "in" / "zero.mp4").write_bytes(b"no video at all" * 100)
    spec = folder / f"{name}.yaml"
    clips = {"kind": "curate.clips", "split": {"detector": "content", "min_clip": "500ms", "min_frames": 8},
             "encode": {"preset": "ultrafast"}, "preview": {}, "filter": {"blur": {"mode": "score-only"},
             "motion": {"mode": "score-only"}, "duration": {"min": "700ms"}}, "resources": {"cpus": 1}}  # fmt: skip
    words = {"kind": "words:Words", "needs": "clips", "resources": {"cpus": 1}}
    train = {"kind": "stages:Gang", "needs": "words", "required": 0.5,
             "resources": {"cpus": 1, "workers": 2, "time": "10m"}}  # fmt: skip
    spec.write_text(json.dumps({"name": name, "inputs": "in", "output": "out", "secrets": ["WORDS_KEY"],
                                "shards": {"size": "1KiB", "split_above": "1GiB"},
                                "stages": {"clips": clips, "words": words, "train": train}}))  # fmt: skip
    made = runs.planned(spec)
    assert made.attempt
    for number, stage in enumerate(("clips", "words")):
        said = runs.finish(runs.worker(made, stage, WORDS_KEY=SECRET, OMP_NUM_THREADS="1"), timeout=120)
        (made.run.logs(stage) / f"{number}_0_log.out").write_text(said)
    runs.finish(runs.worker(made, "train", "barrier"))
    learn(made.run)
    finale.finale(made.run, ask_slurm=False, say=False)
    return made.run


def cut(begin: float, seconds: float, to: Path, width: int) -> None:
    """A piece of the trailer."""
    subprocess.run(["ffmpeg", "-loglevel", "error", "-y", "-ss", str(begin), "-t", str(seconds), "-i", TRAILER, "-c:v",
                    "libx264", "-preset", "ultrafast", "-vf", f"scale={width}:-2", "-an", to], check=True)  # fmt: skip


def learn(run: Run, steps: int = 400, stage: str = "train") -> None:
    """What a diffusion model's training writes: metrics, pictures, videos."""
    place = Path(status.gather(run, ask_slurm=False).stages[stage].folder, "training")
    dice = random.Random(0)
    with Metrics(place / "metrics.jsonl") as told:
        for step in range(1, steps + 1):
            loss = 0.9 / step**0.2 + 0.05 * dice.random() + (1.5 if step == 250 else 0)
            more = {"held_out": 0.92 / step**0.21} if step % 50 == 0 else {}
            told.step(step, loss=loss, grad_norm=1 + dice.random(), rate=3e-4 * min(1, step / 100), samples=32,
                      seconds=1.9 + 0.2 * dice.random(), waited=0.1 * dice.random(), memory_bytes=7e10, **more)
    (place / "pictures").mkdir(exist_ok=True)
    for number, step in enumerate(range(100, steps + 1, 100)):
        for which in ("regular", "ema"):
            cut(6 + 12 * number, 1, place / "pictures" / f"{step:09}_0_{which}.mp4", 192)
        Image.effect_noise((768, 216), 90 - number * 20).save(place / "pictures" / f"{step:09}.webp")


def large(folder: Path, shards: int = 10_000, name: str = "large", stages: int = 2) -> Run:
    """folder/runs with a run of so many shards of each stage, planned by hpc, in the middle of its second attempt's
    array as Slurm's words (figures in `queue`) and the records have it."""
    spec = runs.spec(folder, {"000.txt": "one"}, {"echo": runs.ECHO, "note": runs.NOTE}, name=name)
    made = runs.planned(spec)
    assert made.attempt and made.plan
    ids = [f"{i:06}" for i in range(shards)]
    plan: AttemptPlan = made.plan
    (made.attempt.folder / plan.scope).write_text("\n".join(ids) + "\n")
    lines = b"".join(msgspec.json.encode([row, [[i] for i in ids[4 * row : 4 * row + 4]]]) + b"\n"
                     for row in range(-(-shards // 4)))  # fmt: skip
    (made.attempt.folder / "plan.jsonl").write_bytes(lines)
    dice, now = random.Random(1), time.time()
    jobs = []
    for number, stage in enumerate(list(plan.stages)[:stages]):
        job = 9000 + number
        jobs.append({"job": str(job), "stage": stage.name, "phase": "map", "first_row": 0, "tasks": -(-shards // 4)})
        reached = 0.75 if number == 0 else 0.42
        folder = made.run.records(stage.name)
        folder.mkdir(parents=True, exist_ok=True)
        tasks = int(reached * shards / 4)
        for first in range(0, tasks, 100):
            with (folder / f"{job}_{first}.0.jsonl").open("wb") as out:
                for row in range(first, min(first + 100, tasks)):
                    for line in task(made.run, made.attempt, stage, f"{job}_{row}", ids[4 * row : 4 * row + 4], dice,
                                     now - 7200 * (1 - row / tasks), last=row >= tasks - 40):  # fmt: skip
                        out.write(msgspec.json.encode(line) + b"\n")
    (made.attempt.folder / "jobs.jsonl").write_text("".join(json.dumps(j) + "\n" for j in jobs))
    return made.run


def task(run: Run, attempt: Attempt, stage: Any, job: str, ids: list[str], dice: random.Random, t: float,
         last: bool) -> list[records.Line]:  # fmt: skip
    """What one array task wrote; last: it is still at it."""
    node = f"gpu{int(job.rpartition('_')[2]) % 24:03}"
    out: list[records.Line] = [records.Worker(t, run.id, attempt.number, stage.name, stage.fingerprint, job, 0, 0, node,
                                              cpus=8, gpus=1)]  # fmt: skip
    for number, shard in enumerate(ids):
        took = 60 * dice.lognormvariate(0, 0.5)
        if last and number == 1:
            out.append(records.Record("progress", shard, time.time() - 30, fraction=dice.random()))
            break
        if dice.random() < 0.012:
            why = dice.choice(["code", "memory", "memory", "storage", "node"])
            out.append(records.Record("failed", shard, t + number, took, failure=why, detail=f"{why}: of {shard}"))
        else:
            out.append(records.Record("done", shard, t + number, took, {"work": took}, [Object(f"{shard}.x", 1000, "")],
                                      counts={"clips": 40.0, "frames": 9600.0},
                                      gpu={"seconds": took, "busy": 0.8 * took, "joules": 500 * took}))  # fmt: skip
    if not last:
        out.append(records.End(t + 5))
    return out


def queue(shards: int = 10_000) -> str:
    """squeue's answer for `large`."""
    tasks = -(-shards // 4)
    lines = []
    for job, reached in ((9000, 0.75), (9001, 0.42)):
        begun = int(reached * shards / 4)
        lines += [f"{job}_{i}|RUNNING|None|gpu{i % 24:03}|{20000 + i}" for i in range(begun - 40, begun)]
        half = (begun + tasks) // 2
        lines.append(f"{job}_[{begun}-{half - 1}]|PENDING|Resources||{job}")
        lines.append(f"{job}_[{half}-{tasks - 1}%64]|PENDING|JobArrayTaskLimit||{job}")
    return "\n".join(lines) + "\n"


def many(run: Run, count: int, place: Path) -> None:
    """Runs like this one of figures.site in `place`, of different ages, most of them done."""
    figures.copies(run, count, place)
    frozen = msgspec.json.decode((run.latest().folder / "barrier-train.json").read_bytes())
    for number, twin in enumerate(sorted(place.glob("twin*"))):
        for path in (twin / "records").rglob("*.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            for line in lines:
                line["t"] -= 86400 * 30 * (number / count) ** 2
                if line["type"] == "worker":
                    line["job"] += f"t{number}"
                elif number % 4 and line.get("state") == "failed":
                    line["state"] = "done"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        worker = next(line for line in lines if line["type"] == "worker")
        if number % 4:
            (twin / "records" / "train").mkdir(exist_ok=True)
            own = worker | {"stage": "train", "fingerprint": frozen["fingerprint"], "job": f"{number}_0"}
            done = {"type": "shard", "state": "done", "shard": "000000", "t": worker["t"] + 3, "seconds": 2.0}
            (twin / "records" / "train" / f"{number}_0.0.jsonl").write_text(f"{json.dumps(own)}\n{json.dumps(done)}\n")
