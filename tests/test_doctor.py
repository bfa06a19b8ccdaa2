"""hpc doctor: every verdict and its next command, with a fake Slurm; stores and disks are real."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import runs
import s3

from hpc.batch import doctor, probe
from hpc.batch.cluster import LOCAL, Cluster, Override
from hpc.batch.slurm import Partition

GIB = 2**30


def rows(found: Any) -> dict[str, tuple[str, str]]:
    """{what: (verdict, found)}; what is not well says what to do."""
    made = list(found)
    for row in made:
        assert (row.verdict == "ok") == (not row.next), row
    return {row.what: (row.verdict, row.found) for row in made}


def part(name: str = "gpu", up: str = "up", nodes: int = 4, state: str = "idle", gres: str = "gpu:h100:8(S:0-1)"):
    return Partition(name, up, "infinite", nodes, state, gres)


@pytest.mark.parametrize(("found", "verdict", "words"), [
    ([part()], "ok", "4 nodes, 0 away; gpu:h100:8; time limit infinite"),
    ([part(nodes=3), part(nodes=1, state="drained")], "warn", "4 nodes, 1 away"),
    ([part(nodes=3), part(nodes=1, state="idle*")], "warn", "4 nodes, 1 away"),
    ([part(state="down*")], "bad", "4 nodes, 4 away"),
    ([part(up="inact")], "bad", "inact; 4 nodes"),
    ([part(gres="(null)")], "ok", "no GPUs"),
])  # fmt: skip
def test_partitions(found: list[Partition], verdict: str, words: str) -> None:
    said = rows(doctor.of_partitions(LOCAL, found))
    assert said["partition gpu"][0] == verdict and words in said["partition gpu"][1]


def test_a_preset_that_does_not_fit_the_site() -> None:
    cluster = Cluster(partition="gpu,old", gpu_type="a100", gpus_per_node=8, path="/p.yaml",
                      stages={"report": Override(partition="cpu")})  # fmt: skip
    said = rows(doctor.of_partitions(cluster, [part(), part("spare", state="down")]))
    assert {name: verdict for name, (verdict, _) in said.items()} == {
        "partition cpu": "bad", "partition old": "bad", "partition gpu": "ok", "partition spare": "warn",
        "GPUs of the preset": "bad",
    }  # fmt: skip
    assert "there are gpu, spare" in said["partition old"][1]
    fits = Cluster(partition="gpu", gpu_type="h100", gpus_per_node=8)
    assert rows(doctor.of_partitions(fits, [part()]))["GPUs of the preset"][0] == "ok"
    more = Cluster(partition="gpu", gpu_type="h100", gpus_per_node=16)
    assert rows(doctor.of_partitions(more, [part()]))["GPUs of the preset"][0] == "bad"


def node(**changes: Any) -> probe.Node:
    made: dict[str, Any] = {"node": "n1", "time": time.time(), "gpus": ["NVIDIA H100, 570.1, 0"] * 2,
                            "scratch_free": 500.0 * GIB, "images": {"/x.sqsh": True}}  # fmt: skip
    return probe.Node(**made | changes)


@pytest.mark.parametrize(("changes", "verdict", "words"), [
    ({}, "ok", "2 x NVIDIA H100, 570.1; scratch 500"),
    ({"gpus": []}, "bad", "0 GPUs, 2 are expected"),
    ({"gpus": ["NVIDIA H100, 570.1, 0", "NVIDIA H100, 570.1, 12"]}, "bad", "uncorrected memory errors"),
    ({"problem": "Driver/library version mismatch"}, "bad", "driver: Driver/library version mismatch"),
    ({"folder": False}, "bad", "/runs is not seen"),
    ({"scratch_free": 1e9}, "warn", "scratch"),
    ({"scratch_inodes": 0.0}, "warn", "0% of inodes free"),
    ({"images": {"/x.sqsh": False}}, "bad", "/x.sqsh is not there"),
])  # fmt: skip
def test_nodes(changes: dict[str, Any], verdict: str, words: str) -> None:
    said = rows(doctor.of_node(node(**changes), Cluster(gpus_per_node=2), Path("/runs")))
    assert said["node n1"][0] == verdict and words in said["node n1"][1]


def test_the_run_folder(tmp_path: Path) -> None:
    said = rows(doctor.of_folder(tmp_path / "not" / "there" / "yet"))
    assert {verdict for verdict, _ in said.values()} <= {"ok", "warn"} and len(said) == 4
    assert str(tmp_path) in said["run folder: space"][1]
    assert not list(tmp_path.iterdir()), "what was written is deleted again"


def test_a_run_folder_that_cannot_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    assert rows(doctor.of_folder(tmp_path))["run folder"][0] == "bad"
    monkeypatch.undo()
    full = os.statvfs_result((4096, 4096, 1000, 10, 10, 1000, 5, 5, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    said = rows(doctor.of_folder(tmp_path))
    assert said["run folder: space"][0] == said["run folder: inodes"][0] == "bad"


def test_stores_are_read_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpc.batch.spec import load
    from hpc.data import storage

    with s3.moto() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        file = runs.spec(tmp_path, {"a.txt": "a"})
        [spec] = load(file, ["inputs=s3://bucket/raw", "output=s3://bucket/out"], check_paths=False)
        said = rows(doctor.of_stores(spec))
        assert said == {"read s3://bucket/raw": ("warn", "nothing is there"),
                        "write s3://bucket/out": ("ok", "written once, read, deleted")}  # fmt: skip
        storage.put("s3://bucket/raw/a.txt", b"a")
        assert rows(doctor.of_stores(spec))["read s3://bucket/raw"] == ("ok", "listed")
        assert not list(storage.listing("s3://bucket/out"))
        [other] = load(file, ["inputs=s3://nobucket/raw", "output=s3://nobucket/out"], check_paths=False)
        assert {verdict for verdict, _ in rows(doctor.of_stores(other)).values()} == {"bad"}


def test_the_command(tmp_path: Path) -> None:
    """With a fake Slurm: a table with what to do, the same as JSON, and an exit status."""
    fake = runs.Slurm(tmp_path / "slurm")
    (fake.bin / "sinfo").write_text((fake.bin / "squeue").read_text())
    (fake.bin / "sinfo").chmod(0o755)
    fake.answers(sinfo="main|up|1:00:00|4|idle|gpu:h100:8\n", sacct="!sacct: accounting storage is disabled")
    (tmp_path / "clusters").mkdir()
    preset = tmp_path / "clusters/site.yaml"
    preset.write_text("partition: main\ngpus_per_node: 8\nimage: /nowhere/x.sqsh\n")
    env = runs.environment(PATH=fake.path)
    words = ("doctor", "--cluster", str(preset))
    done = runs.hpc(*words, cwd=tmp_path, code=1, env=env)
    assert "warn    accounting" in done.stdout and "BAD     image /nowhere/x.sqsh" in done.stdout
    assert "-> salloc --nodes=2 --ntasks-per-node=8 --partition=main --gpus-per-node=8 hpc doctor" in done.stdout
    said = {row["what"]: row for row in json.loads(runs.hpc(*words, "--json", cwd=tmp_path, code=1, env=env).stdout)}
    assert said["Slurm"]["found"] == "22.05.8" and said["partition main"]["verdict"] == "ok"
    assert said["image /nowhere/x.sqsh"]["next"].startswith("sbatch sbatch/image.sbatch")
    preset.write_text("partition: main\nstages: {train.ar: {image: /nowhere/train.sqsh}}\n")
    assert "BAD     image /nowhere/train.sqsh" in runs.hpc(*words, cwd=tmp_path, code=1, env=env).stdout
    preset.write_text("partition: main\n")
    assert "BAD" not in runs.hpc(*words, cwd=tmp_path, code=0, env=env).stdout
    fake.answers(scontrol="SLURM_VERSION           = 21.08.1\n")
    assert "BAD     Slurm" in runs.hpc(*words, cwd=tmp_path, code=1, env=env).stdout
    fake.answers(scontrol="!slurm_load_ctl_conf error: Unable to contact slurm controller")
    assert "Unable to contact" in runs.hpc(*words, cwd=tmp_path, code=1, env=env).stdout


def test_an_all_reduce_is_measured() -> None:
    """Two ranks on this machine."""
    pytest.importorskip("torch")
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "hpc.batch.probe",
                           "all-reduce", "1"], capture_output=True, text=True, timeout=120)  # fmt: skip
    [line] = probe.lines(done.stdout)
    made = json.loads(line)
    assert made["backend"] in ("gloo", "nccl") and made["ranks"] == 2 and made["bytes"] == 2**20
    assert made["bandwidth"] == pytest.approx(2**20 / made["seconds"])  # 2 (n - 1) / n is 1
