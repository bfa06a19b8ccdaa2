"""sbatch/train.sbatch on a real Slurm: 2 nodes x 2 ranks."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest
from conftest import Cluster

SCRIPT = Path(__file__).parents[2] / "sbatch" / "train.sbatch"
TWO_BY_TWO = ("--nodes=2", "--ntasks-per-node=2", "--output=log", SCRIPT, "--")


def lines(folder: Path) -> list[dict[str, object]]:
    """What the ranks printed as JSON, in the order of their ranks."""
    found = [json.loads(line) for line in (folder / "log").read_text().splitlines() if line.startswith("{")]
    return sorted(found, key=lambda line: int(str(line["rank"])))


def wait_for_ranks(folder: Path, word: str, ranks: int = 4, timeout: float = 60) -> None:
    """Waits until each rank has made its file <word>-<rank>."""
    deadline = time.monotonic() + timeout
    while len(list(folder.glob(f"{word}-*"))) < ranks:
        assert time.monotonic() < deadline, (
            f"{sorted(p.name for p in folder.iterdir())}\n{(folder / 'log').read_text()}"
        )
        time.sleep(0.1)


def test_all_reduce_over_two_nodes(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text("""
import json, os, socket
import torch
import torch.distributed as dist
dist.init_process_group("gloo")
x = torch.tensor([1.0 + dist.get_rank()])
dist.all_reduce(x)
names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "SLURM_CPUS_PER_TASK"]
names += ["CUDA_VISIBLE_DEVICES"]
print(json.dumps({"rank": dist.get_rank(), "sum": x.item(), "host": socket.gethostname(),
                  **{n: os.environ[n] for n in names}}), flush=True)
dist.destroy_process_group()
""")
    resources = ("--cpus-per-task=2", "--gpus-per-node=2")
    job = cluster.sbatch(*resources, *TWO_BY_TWO, "sums.py", cwd=tmp_path, env={"OMP_NUM_THREADS": "1"})
    assert cluster.wait(job, timeout=120) == {job: "COMPLETED"}, (tmp_path / "log").read_text()
    seen = lines(tmp_path)
    assert [line["sum"] for line in seen] == [1.0 + 2 + 3 + 4] * 4
    assert [line["host"] for line in seen] == ["n1", "n1", "n2", "n2"]
    assert [line["RANK"] for line in seen] == ["0", "1", "2", "3"]
    assert [line["LOCAL_RANK"] for line in seen] == ["0", "1", "0", "1"]
    for name, value in {
        "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "n1", "SLURM_CPUS_PER_TASK": "2",
        "CUDA_VISIBLE_DEVICES": "0,1",
    }.items():  # fmt: skip
        assert {line[name] for line in seen} == {value}, name


def test_a_module_with_flags_and_the_callers_environment(cluster: Cluster, tmp_path: Path) -> None:
    package = tmp_path / "elsewhere" / "mine"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "prog.py").write_text("""
import json, os, sys
print(json.dumps({"rank": os.environ["RANK"], "argv": sys.argv[1:], "port": os.environ["MASTER_PORT"],
                  "word": os.environ["WORD"]}))
""")
    env = {"PYTHONPATH": str(package.parent), "WORD": "two words", "MASTER_PORT": "12345", "MASTER_ADDR": "elsewhere"}
    job = cluster.sbatch(*TWO_BY_TWO, "-m", "mine.prog", "--name", "a b", "*", cwd=tmp_path, env=env)
    assert cluster.wait(job) == {job: "COMPLETED"}, (tmp_path / "log").read_text()
    assert lines(tmp_path) == [
        {"rank": str(rank), "argv": ["--name", "a b", "*"], "port": "12345", "word": "two words"} for rank in range(4)
    ]


def test_an_environment_that_was_not_exported(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "prog.py").write_text("""
import json, os, subprocess
subprocess.run(["true"], check=True)
print(json.dumps({"rank": os.environ["RANK"], "word": os.environ.get("WORD"), "mine": os.environ["PYTHONUNBUFFERED"]}))
""")
    only = f"--export=HPC_PYTHON={sys.executable}"
    job = cluster.sbatch(only, *TWO_BY_TWO, "prog.py", cwd=tmp_path, env={"WORD": "not given", "PYTHONUNBUFFERED": "0"})
    assert cluster.wait(job) == {job: "COMPLETED"}, (tmp_path / "log").read_text()
    assert lines(tmp_path) == [{"rank": str(rank), "word": None, "mine": "1"} for rank in range(4)]


def test_a_rank_that_fails_ends_the_job(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("""
import os, pathlib, sys, time
pathlib.Path("up-" + os.environ["RANK"]).touch()
if os.environ["RANK"] == "3":
    while len(list(pathlib.Path().glob("up-*"))) < 4:
        time.sleep(0.05)
    sys.exit(7)
time.sleep(600)
""")
    began = time.monotonic()
    job = cluster.sbatch(*TWO_BY_TWO, "fails.py", cwd=tmp_path)
    assert cluster.wait(job) == {job: "FAILED"}
    assert time.monotonic() - began < 45
    assert "task 3: Exited with exit code 7" in (tmp_path / "log").read_text()


def test_usr2_comes_to_every_rank_before_the_time_limit(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "saves.py").write_text("""
import os, pathlib, signal, sys
rank = os.environ["RANK"]
signal.signal(signal.SIGUSR2, lambda *_: (pathlib.Path("saved-" + rank).touch(), sys.exit(0)))
pathlib.Path("up-" + rank).touch()
while True:
    signal.pause()
""")
    job = cluster.sbatch("--time=10", *TWO_BY_TWO, "saves.py", cwd=tmp_path)
    wait_for_ranks(tmp_path, "up")
    assert not list(tmp_path.glob("saved-*"))
    # leaves less than the 120 s of --signal; Slurm looks at time limits every 30 s
    cluster.run("scontrol", "update", f"JobId={job}", "TimeLimit=2")
    wait_for_ranks(tmp_path, "saved")
    assert cluster.wait(job) == {job: "COMPLETED"}, (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("options", "arguments", "words"),
    [
        ((), ("my_train.py",), "usage: sbatch"),
        ((), ("--",), "usage: sbatch"),
        (("--nodes=2", "--ntasks=3"), ("--", "my_train.py"), "3 ranks on 2 nodes"),
    ],
)
def test_what_it_refuses(
    cluster: Cluster, tmp_path: Path, options: tuple[str, ...], arguments: tuple[str, ...], words: str
) -> None:
    job = cluster.sbatch(*options, "--output=log", SCRIPT, *arguments, cwd=tmp_path)
    assert cluster.wait(job) == {job: "FAILED"}
    assert words in (tmp_path / "log").read_text()
