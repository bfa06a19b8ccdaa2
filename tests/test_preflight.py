"""`hpc check` beyond the spec: memory of GPUs, time limits and disks beside earlier runs, data sets that are there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import figures
import msgspec
import pytest
import runs
from datasets import mp4

from hpc.batch import disk, earlier, heartbeat, preflight, records
from hpc.batch.cluster import Cluster, load_cluster
from hpc.batch.doctor import Row
from hpc.batch.run import Run
from hpc.batch.spec import load
from hpc.data.units import Bytes, seconds
from hpc.data.work import Object

JOBS = Path(__file__).parents[1] / "jobs"
AR = JOBS / "autoregressive.yaml"


def rows(folder: Path, *overrides: str, cluster: Cluster | None = None, job: Path = AR) -> dict[str, Row]:
    places = [f"inputs={JOBS}/quickstart", f"output={folder}/out"]
    [spec] = load(job, [*places, *overrides], str(JOBS / "clusters/h100.yaml"))
    found = preflight.examine(spec, cluster or load_cluster(spec.cluster, job), folder / "runs", 1e7)
    return {row.what: row for row in found}


def test_a_training_is_estimated_in_a_line(tmp_path: Path) -> None:
    found = rows(tmp_path, "stages.ar.gpu_memory=null")
    one = found["ar: memory"]
    assert one.verdict == "ok" and one.found.startswith(
        "ar-4b over 8 GPUs, tensor 2, data 4: 34 of 79 GiB a GPU (H100): weights 7.0, gradients 7.5, optimizer 5.6")
    assert "a step of 32 x 12,800 tokens about 2." in found["ar: time"].found
    assert "% MFU; 5,000 steps about 2." in found["ar: time"].found and found["ar: time"].verdict == "ok"
    slow = rows(tmp_path, "stages.ar.resources.time=30m")["ar: time"]
    assert slow.next == "it will start about 6 times, from the last checkpoint"
    world = rows(tmp_path, job=JOBS / "diffusion.yaml")
    assert "predict2.5-2b over 8 GPUs, dp_shard 8" in world["world: memory"].found
    assert "text encoder 15.4" in world["world: memory"].found
    assert "encoding" not in world["world: memory"].found, "its data set has latents"


def test_what_cannot_fit_is_bad_and_says_what_would(tmp_path: Path) -> None:
    large = tuple(f"stages.ar.{one}" for one in ("model=ar-12b", "gpu_memory=null", "layout.tensor=1", "precision=bf16",
                                                 "start=null"))  # fmt: skip
    found = rows(tmp_path, *large)["ar: memory"]
    assert found.verdict == "bad" and "160 of 79 GiB a GPU (H100)" in found.found
    assert found.next.startswith("It would be 5") and "with `layout.tensor: 4`" in found.next
    tight = rows(tmp_path, *large, "stages.ar.layout.tensor=2", "stages.ar.recompute=full")["ar: memory"]
    assert tight.verdict == "ok"
    assert rows(tmp_path, *large, f"stages.ar.gpu_memory={Bytes(165 << 30)}B")["ar: memory"].verdict == "warn"
    a100 = Cluster(gpu_type="a100", name="x")
    assert rows(tmp_path, "stages.ar.precision=fp8-current", cluster=a100)["ar: precision"].verdict == "bad"
    assert "ar: precision" not in rows(tmp_path, "stages.ar.precision=bf16", cluster=a100)
    nameless = rows(tmp_path, *large, cluster=Cluster(gpus_per_node=8, name="x"))["ar: memory"]
    assert nameless.verdict == "unknown" and "give `gpu_type` in the cluster preset" in nameless.next


def test_a_training_that_may_run_on_fewer_nodes_fits_these_too(tmp_path: Path) -> None:
    two = ("stages.ar.gpu_memory=null", "stages.ar.resources.nodes=2", "stages.ar.resources.least_nodes=1")
    found = rows(tmp_path, *two)
    assert found["ar: memory"].found.startswith("ar-4b over 16 GPUs, tensor 2, data 8: 31 of 79 GiB a GPU (H100)")
    assert found["ar: memory on 1 node"].found.startswith("ar-4b over 8 GPUs, tensor 2, data 4: 34 of 79 GiB")
    assert "on 1 node" not in " ".join(rows(tmp_path, *two[:2]))
    tight = rows(tmp_path, *two[1:], "stages.ar.gpu_memory=36GiB")
    assert (tight["ar: memory"].verdict, tight["ar: memory on 1 node"].verdict) == ("ok", "warn")


def test_the_command_fails_where_memory_does_not_do(tmp_path: Path) -> None:
    slurm = runs.Slurm(tmp_path / "slurm")
    words = [AR, f"inputs={JOBS}/quickstart", f"output={tmp_path}/out", "--cluster", JOBS / "clusters/h100.yaml",
             "stages.ar.gpu_memory=null"]  # fmt: skip
    env = runs.environment(PATH=slurm.path)
    done = runs.hpc("check", *words, "stages.ar.layout.tensor=1", "stages.ar.batch=64", "stages.ar.micro_batch=8",
                    cwd=tmp_path, env=env, code=1)  # fmt: skip
    assert "BAD     ar: memory" in done.stdout and "-> It would be" in done.stdout
    assert "with `micro_batch: 1`" in done.stdout and "Slurm would take every stage" in done.stdout
    facts = runs.facts("check", *words, cwd=tmp_path, env=env, code=None)[0]
    assert {row["what"]: row["verdict"] for row in facts["rows"]}["ar: memory"] == "ok"


def worked(folder: Path, *, took: float, memory: float = 0.0, size: int = 32, failure: str = "") -> Run:
    """A run that was planned, and the records of a worker that made two shards in so many seconds."""
    prepared = runs.planned(runs.spec(folder, runs.numbered(2)))
    assert prepared.plan is not None
    log = records.Log(prepared.run.records("echo") / "1_0.0.jsonl")
    log.write(records.Worker(t=0.0, run=prepared.run.id, attempt=1, stage="echo", fingerprint="f", job="1_0", restart=0,
                             row=0, node="n"))  # fmt: skip
    for number in range(2):
        made = [Object(f"/x/{number}", size, "")]
        state: Any = "failed" if failure else "done"
        log.write(records.Record(state=state, shard=f"{number:06}", t=took * (number + 1) / 2, seconds=took / 2,
                                 memory=memory, objects=made, failure=failure))  # fmt: skip
    log.close()
    return prepared.run


@pytest.mark.parametrize(("took", "failure", "verdict", "words"), [
    (600, "", "ok", "`time: 15m` would do, and may start sooner"),
    (11000, "", "ok", ""),
    (13000, "", "warn", "`time: 5h25m`"),
    (3000, "timeout", "warn", "`time: 8h`"),
    (40000, "", "bad", "`time: 8h20m`, or smaller shards: `shards.size`"),
])  # fmt: skip
def test_time_limits_are_compared_with_earlier_runs(tmp_path: Path, took: float, failure: str, verdict: str,
                                                    words: str) -> None:  # fmt: skip
    run = worked(tmp_path, took=took, failure=failure)
    [spec] = load(tmp_path / "t.yaml")
    found = {row.what: row for row in preflight.examine(spec, Cluster(), tmp_path / "runs", 32.0)}
    assert (found["echo: time"].verdict, found["echo: time"].next) == (verdict, words)
    assert run.id in found["echo: time"].found and "4:00:00 are asked for" in found["echo: time"].found


def test_memory_and_disks_are_compared_with_earlier_runs(tmp_path: Path) -> None:
    run = worked(tmp_path, took=60, memory=6 * 2**30, size=1 << 20)
    [spec] = load(tmp_path / "t.yaml")
    known = earlier.of(spec, tmp_path / "runs")["echo"]
    assert known.runs == [run.id] and known.same and known.written == pytest.approx(2**21 / 32) and known.files == 2
    found = {row.what: row for row in preflight.examine(spec, Cluster(), tmp_path / "runs", 64.0)}
    assert found["echo: worker"].verdict == "warn" and found["echo: worker"].next == "`memory: 8GiB`"
    [disk_row] = [row for what, row in found.items() if what.startswith("disk of")]
    assert "about 4.0 MiB will be written: echo 4.0 MiB" in disk_row.found and disk_row.verdict == "ok"
    short = worked(tmp_path / "short", took=60, memory=6 * 2**30, failure="memory")
    [spec_] = load(tmp_path / "short/t.yaml")
    [row] = [row for row in preflight.examine(spec_, Cluster(), short.folder.parent, 64.0) if "worker" in row.what]
    assert row.verdict == "bad" and "and shards ran out of it" in row.found
    huge = preflight.examine(spec, Cluster(), tmp_path / "runs", 1e15)
    assert [row.verdict for row in huge if row.what.startswith("disk of")] == ["bad"]
    [other] = load(tmp_path / "t.yaml", ["stages.echo.prompt=b"])
    assert not earlier.of(other, tmp_path / "runs")["echo"].same
    (run.folder / "attempt-1/plan.json").write_text("{")
    assert earlier.of(spec, tmp_path / "runs") == {}, "a damaged run tells nothing"


def test_a_training_is_told_by_the_steps_of_the_one_before(tmp_path: Path) -> None:
    run = figures.site(tmp_path)
    log = records.Log(run.records("train") / "1_0.0.jsonl")
    log.write(records.Worker(t=0.0, run=run.id, attempt=1, stage="train", fingerprint="f", job="1_0", restart=0, row=0,
                             node="n"))  # fmt: skip
    log.close()
    [spec] = load(run.spec, check_paths=False)
    known = earlier.of(spec, run.folder.parent)["train"]
    assert (known.step, known.ranks) == (1.9, 2)
    found = {row.what: row for row in preflight.examine(spec, Cluster(), run.folder.parent, 1e6)}
    steps = spec.stages["train"].settings.steps
    assert found["train: time"].found == (
        f"1.9 s a step in {run.id}, on 2 ranks; about {seconds(1.9 * steps)} in all, of 10:00 each start has")
    assert found["pair: worker"].next == "`memory: 1GiB` would do"
    start = run.ranks("train") / "1_0.1.9"  # the last one, on fewer nodes
    start.mkdir(parents=True)
    (start / "00000.json").write_bytes(msgspec.json.encode(heartbeat.Beat(0, 1, "n", 1, 9.0)))
    assert earlier.of(spec, run.folder.parent)["train"].ranks == 1


QUOTA = """Disk quotas for user ann (uid 1000):
     Filesystem  blocks   quota   limit   grace   files   quota   limit   grace
          /home  900000  950000 1000000       0     100       0       0       0
       /scratch 5000000*4000000       0 1763000     900    1000    1200       0
"""
LUSTRE = """      /lustre  2000000*       0 3000000       -    7000       0   10000       -
"""
UNLIMITED = "      /lustre [2000000]       0       0       -    7000       0       0       -\n"


@pytest.mark.parametrize(("said", "mount", "found"), [
    (QUOTA, "/home", (100_000 * 1024, None)), (QUOTA.replace("*4", "* 4"), "/scratch", (0.0, 300)),
    (QUOTA, "/data", None), (LUSTRE, "/lustre", (1_000_000 * 1024, 3000)), (UNLIMITED, "/lustre", (None, None)),
    ("quota: error while getting quota", "/home", None), ("", "/", None)])  # fmt: skip
def test_what_quotas_leave(said: str, mount: str, found: tuple[float | None, float | None] | None) -> None:
    assert disk.left(said, mount) == found


def test_a_quota_counts_where_it_is_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount, kind = disk.mounted(tmp_path)
    assert tmp_path.is_relative_to(mount) and kind and disk.mounted(Path("/proc/self")) == ("/proc", "proc")
    free = disk.look(tmp_path / "not" / "there")
    assert 0 < free.room < float("inf") and free.mount == mount
    (tmp_path / "bin").mkdir()
    for name in ("quota", "lfs"):
        command = tmp_path / "bin" / name
        command.write_text(f'#!/bin/sh\necho "{mount} 100 0 300 0 7 0 10 0"\n')
        command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    less = disk.look(tmp_path)
    assert (less.room, less.files) == (200 * 1024, 3)
    assert "your user's quota leaves 200.0 KiB and 3 files; your group's quota" in less.words()
    spec = runs.spec(tmp_path, runs.numbered(1))
    [facts] = runs.facts("check", spec, env=runs.environment(PATH=f"{tmp_path}/bin:/usr/bin:/bin"))
    [row] = [row for row in facts["rows"] if row["what"].startswith("disk")]
    assert row["verdict"] == "warn" and "make room" in row["next"]


def test_data_sets_are_validated_before_a_gpu_is_allocated(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("a", "b"):
        for folder, suffix, content in (("videos", "mp4", mp4(48)), ("metas", "txt", b"a rabbit")):
            (data / folder).mkdir(parents=True, exist_ok=True)
            (data / folder / f"{name}.{suffix}").write_bytes(content)
    world = {"kind": "train.diffusion", "model": "tiny-predict2.5", "text": {"source": "encoder"},
             "shapes": [{"frames": 17, "height": 64, "width": 96, "batch": 2}], "steps": 2,
             "optimizer": {"warmup": 0}}  # fmt: skip
    spec = runs.spec(tmp_path, {}, {"world": world}, inputs=str(data))
    shutil.rmtree(tmp_path / "in", ignore_errors=True)

    def data_row(code: int = 0) -> dict[str, Any]:
        [facts] = json.loads(runs.hpc("check", spec, "--json", code=code).stdout)
        return next(row for row in facts["rows"] if row["what"] == "world: data")

    fine = data_row()
    assert fine["verdict"] == "ok" and "will do for predict2.5" in fine["found"]
    (data / "metas/a.txt").unlink()
    one = data_row()
    assert one["verdict"] == "warn" and one["next"] == f"hpc validate {data} --as predict2.5"
    (data / "metas/b.txt").write_text("")
    assert data_row(code=1)["verdict"] == "bad"


def test_data_sets_of_stages_that_have_run(tmp_path: Path) -> None:
    """The newest version of what a training needs."""
    out = tmp_path / "out"
    assert preflight.newest(str(out), "tokens") == ""
    for number in (1, 2):
        folder = out / f"tokens@v{number}"
        folder.mkdir(parents=True)
        info = {"stage": "tokens", "kind": "prepare.tokens-megatron", "fingerprint": "f", "settings": {}, "objects": []}
        (folder / "_stage.json").write_text(json.dumps(info))
    [spec] = load(AR, [f"inputs={JOBS}/quickstart", f"output={out}"], "local")
    [found] = preflight.data_sets(spec)
    assert (found.stage, found.folder, found.consumer) == ("ar", str(out / "tokens@v2"), "megatron-tokens")
    for kind, settings, consumer in (("prepare.latents-list", {}, "latents"),
                                     ("curate.shard-tree", {"layout": "cosmos"}, "cosmos"),
                                     ("prepare.tokens-video2world", {}, "video2world-tokens"),
                                     ("stages:Echo", {}, "")):  # fmt: skip
        info = {"stage": "x", "kind": kind, "fingerprint": "f", "settings": settings, "objects": []}
        (out / "tokens@v2/_stage.json").write_text(json.dumps(info))
        assert preflight.consumer_of(str(out / "tokens@v2"), spec.stages["ar"].settings) == consumer
