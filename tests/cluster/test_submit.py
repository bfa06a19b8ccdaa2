"""hpc submit on a real Slurm: the jobs are exactly those that the spec asks for, whoever submits them and however."""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shutil
import sys
from pathlib import Path

import pytest
import s3
from conftest import Cluster, array_of, own_cluster
from lab import CHECKOUT, Lab, held, wait_until

from hpc.data import storage

ECHO = {"kind": "stages:Echo"}
NOTE = {"kind": "stages:Note", "needs": "echo"}
LOOK = {"kind": "stages:Look"}
JOIN = {"kind": "stages:Join", "needs": "echo"}


def test_more_shards_than_an_array_may_have(cluster: Cluster, tmp_path: Path) -> None:
    with own_cluster(CLUSTER_MAX_ARRAY="4") as small:  # indices 0 to 3
        # 10 tasks are too many, but a time limit of 4 h leaves room for fewer and longer ones
        packed = Lab(small, tmp_path / "packed", {"echo": ECHO}, map(str, range(10)))
        packed.submit()
        # no two of these fit into a time limit of a minute
        limit = {"resources": {"time": "1m"}}
        chunked = Lab(
            small, tmp_path / "chunked", {"echo": ECHO | limit, "note": NOTE | limit}, map(str, range(9)), planned=50
        )
        chunked.submit()
        assert packed.finish() == chunked.finish() == "done"
        assert [arrays(lab) for lab in (packed, chunked)] == [
            {"echo": ["0-3"], "report": [""]},
            {"echo": ["0-2", "0-2", "0-2"], "note": ["0-2", "0-2", "0-2"], "report": [""]},
        ]
        assert [(job["stage"], job["first_row"]) for job in chunked.submitted()[:-1]] == [
            (stage, row) for row in (0, 3, 6) for stage in ("echo", "note")
        ]
        packed.exactly_once()
        chunked.exactly_once()
        chunked.exactly_once("note")
    # what the preset says is a limit too
    fewer = Lab(cluster, tmp_path / "fewer", {"echo": ECHO | limit}, map(str, range(9)), planned=50,
                preset={"max_tasks": 5})  # fmt: skip
    fewer.hpc("plan", fewer.spec)
    assert re.findall(r"--array=(\S+)", (fewer.run / "attempt-1" / "submit.sh").read_text()) == ["0-3", "0-4"]


def arrays(lab: Lab) -> dict[str, list[str]]:
    """{stage: the --array of its jobs}, as Slurm was told; "" for a job that is none."""
    found: dict[str, list[str]] = {}
    lines = {array_of(line.split("|")[0]): line for line in accounted(lab, "SubmitLine")}
    for job in lab.submitted():
        found.setdefault(job["stage"], []).append("".join(re.findall(r"--array=(\S+)", lines[job["job"]])))
    return found


def accounted(lab: Lab, fields: str) -> list[str]:
    """What the accounting, which is a moment late, has of the run's jobs; an array is a line or several."""
    jobs = {job["job"] for job in lab.submitted()}
    command = ("sacct", "-nXP", "-o", f"JobID,{fields}", "-j", ",".join(sorted(jobs)))

    known: list[str] = []

    def complete() -> bool:
        known[:] = lab.cluster.run(*command).stdout.splitlines()
        return {array_of(line.split("|")[0]) for line in known} == jobs

    wait_until(complete, f"sacct knows jobs {jobs}")
    return known


@pytest.mark.parametrize(("gpus", "there"), [(1, 8), (0.5, 4)])
def test_a_task_on_a_whole_node_runs_as_many_workers_as_fit(
    cluster: Cluster, tmp_path: Path, gpus: float, there: int
) -> None:
    (tmp_path / "flags").mkdir()
    look = LOOK | {"resources": {"gpus": gpus, "cpus": 2}, "together": 8, "flags": str(tmp_path / "flags")}
    preset = {"whole_nodes": True, "cpus_per_node": 16, "gpus_per_node": there, "gpu_type": "h100"}
    lab = Lab(cluster, tmp_path / "lab", {"look": look}, map(str, range(8)), per_task=8, preset=preset)
    job = lab.submit()["look"]
    assert lab.finish() == "done"
    assert len({record["job"] for record in lab.records("look")}) == 1
    seen = [json.loads(p.read_text())["env"] for p in Path(lab.output, "look@v1").glob("0*.json")]
    assert sorted(env["CUDA_VISIBLE_DEVICES"] for env in seen) == [str(int(k * gpus)) for k in range(8)]
    assert {env["OMP_NUM_THREADS"] for env in seen} == {"2"}
    given = {array_of(task): tres for task, tres in (line.split("|") for line in accounted(lab, "AllocTRES"))}
    assert {"cpu=16", "gres/gpu:h100=8", "mem=62.50G"} <= set(given[job].split(","))


HARMFUL = {
    "SBATCH_ACCOUNT": "nobody", "SBATCH_ARRAY_INX": "0-7", "SBATCH_CLUSTERS": "nowhere", "SBATCH_CONSTRAINT": "none",
    "SBATCH_DEBUG": "1", "SBATCH_DISTRIBUTION": "cyclic", "SBATCH_EXCLUSIVE": "user", "SBATCH_EXPORT": "NONE",
    "SBATCH_GET_USER_ENV": "1", "SBATCH_GPUS": "5", "SBATCH_GPUS_PER_NODE": "5", "SBATCH_GRES": "gpu:3",
    "SBATCH_HINT": "compute_bound", "SBATCH_JOB_NAME": "fromenv", "SBATCH_MEM_PER_CPU": "7", "SBATCH_MEM_PER_NODE": "7",
    "SBATCH_NO_KILL": "1", "SBATCH_NO_REQUEUE": "1", "SBATCH_OPEN_MODE": "truncate", "SBATCH_OVERCOMMIT": "1",
    "SBATCH_PARTITION": "nowhere", "SBATCH_PROFILE": "all", "SBATCH_QOS": "nothing", "SBATCH_RESERVATION": "nothing",
    "SBATCH_SIGNAL": "KILL@10", "SBATCH_SPREAD_JOB": "1", "SBATCH_THREAD_SPEC": "1", "SBATCH_TIMELIMIT": "1",
    "SBATCH_USE_MIN_NODES": "1", "SBATCH_WAIT": "1", "SBATCH_WAIT_ALL_NODES": "1", "SBATCH_WCKEY": "mine",
    "SLURM_CLUSTERS": "nowhere", "SLURM_TIME_FORMAT": "%s", "SLURM_BITSTR_LEN": "3", "SLURM_EXIT_ERROR": "9",
    "SLURM_JOB_ID": "1", "SLURM_JOBID": "1", "SLURM_ARRAY_JOB_ID": "1", "SLURM_ARRAY_TASK_ID": "7", "SLURM_NTASKS": "9",
    "SLURM_CPUS_PER_TASK": "9", "SLURM_MEM_PER_NODE": "7", "SLURM_RESTART_COUNT": "5", "SLURM_JOB_NUM_NODES": "3",
    "SLURM_HINT": "nomultithread", "SLURM_EXPORT_ENV": "NONE", "SLURM_DEBUG_FLAGS": "all",
    "SQUEUE_FORMAT": "%i", "SQUEUE_FORMAT2": "jobid", "SQUEUE_STATES": "FAILED", "SQUEUE_USERS": "nobody",
    "SQUEUE_PARTITION": "small", "SQUEUE_NAMES": "x", "SQUEUE_ARRAY": "1", "SQUEUE_SORT": "i",
    "SACCT_FORMAT": "jobid", "SACCT_FEDERATION": "1", "SACCT_LOCAL": "1", "SCANCEL_STATE": "FAILED",
    "SCANCEL_NAME": "x", "SCANCEL_INTERACTIVE": "1", "SCONTROL_ALL": "1", "SINFO_FORMAT": "%P",
}  # fmt: skip


def test_the_shell_that_submits_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    token = secrets.token_hex(16)
    (tmp_path / "mine").mkdir()
    lab = Lab(
        cluster, tmp_path / "lab", {"look": LOOK, "echo": ECHO, "note": NOTE, "join": JOIN}, ["a"],
        env={"DECLARED": "two words; $HOME 'quoted'"}, secrets=["TOKEN"], notify={"mail": "me"},
        preset={"env": {"OF_THE_SITE": "1"}},
    )  # fmt: skip
    mine = {
        "TOKEN": token, "PATH": f"/nowhere:{sys.exec_prefix}/bin:/usr/bin:/bin", "MINE": "must not reach a job",
        "LD_LIBRARY_PATH": "/nowhere", "PYTHONHASHSEED": "3", "LC_ALL": "C", "TMPDIR": str(tmp_path / "mine"),
    }  # fmt: skip
    with held(cluster):
        lab.submit(env={"TOKEN": "clean"})
        clean = shown(lab)
        lab.hpc("cancel", lab.run, env=HARMFUL)
        assert not lab.queue()
        for folder in ("runs", "out"):
            shutil.rmtree(lab.folder / folder)
        lab.submit(env=mine | HARMFUL)
        assert shown(lab) == clean
        # the other commands have to read what Slurm says, too
        status = json.loads(lab.hpc("status", lab.run, "--json", env=HARMFUL))
        assert [stage["tasks"] for stage in status["stages"]] == [{"PENDING": n} for n in (1, 1, 1, 2)]
        assert "4" in lab.hpc("throttle", lab.run, 4, "--stage=look", env=HARMFUL)
        assert lab.shown(lab.jobs()["look"])["ArrayTaskThrottle"] == "4"
    assert lab.finish() == "done"
    seen = json.loads(Path(lab.output, "look@v1", "000000.json").read_text())
    code = str(lab.run / "attempt-1" / "code")
    assert seen["cwd"] == str(lab.run)
    env = seen["env"]
    declared = {"DECLARED": "two words; $HOME 'quoted'", "OF_THE_SITE": "1", "TOKEN": token, "PYTHONPATH": code}
    assert {name: env[name] for name in declared} == declared
    of_all_jobs = {"HOME", "LANG", "PATH", "HPC_PYTHON", "PYTHONDONTWRITEBYTECODE"}
    of_the_scripts = {"PYTHONUNBUFFERED", "SUBMITIT_EXECUTOR", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "HPC_SECRETS"}
    of_slurm = {"ENVIRONMENT", "HOSTNAME", "TMPDIR", "PWD", "SHLVL"}
    names = {name for name in env if not name.startswith("SLURM")} - {"USER", "LOGNAME"}
    assert names == declared.keys() | of_all_jobs | of_the_scripts | of_slurm
    assert env["PATH"].split(":")[0] == str(Path(sys.executable).parent) and env["TMPDIR"] == "/tmp"
    assert not env.keys() & {"SLURM_HINT", "SLURM_EXIT_ERROR", "SLURM_EXPORT_ENV", "SLURM_RESTART_COUNT"}

    # the secret has reached its stage, and stands nowhere in the run folder
    told = [p for p in lab.run.rglob("*") if p.is_file() and token.encode() in p.read_bytes()]
    assert not told


def shown(lab: Lab) -> list[str]:
    """All that Slurm knows of the run's jobs, but times and priorities. Jobs have numbers instead of ids, and what is
    about one task only is left out: Slurm keeps an array as one record or as several, as it happens."""
    names = {job["job"]: f"<job {i}>" for i, job in enumerate(lab.submitted())}
    passing = "Time=", "Priority=", "LastSchedEval=", "AllocNode:Sid=", "Reason=", "Scheduler=", "ArrayTaskId="
    with_ids = "JobId=", "ArrayJobId=", "Dependency=", "StdErr=", "StdOut="
    known = []

    def hide(text: str) -> str:
        return text.replace(str(lab.folder), "").replace(lab.run.name, "t").replace(lab.run.name[-8:], "hash")

    for job in names:
        words = set()
        text = lab.cluster.run("scontrol", "--oneliner", "show", "job", job).stdout
        for word in hide(text).replace("NumNodes=1-1", "NumNodes=1").split():
            if word.startswith(with_ids):
                word = re.sub(r"\d+(_\d+)?", lambda id: names.get(id[0].split("_")[0], ""), word)
            if not any(name in word for name in passing) and word != "JobId=":
                words.add(word)
        known += sorted(words)
    fields = "JobName,Partition,Account,QOS,TimelimitRaw,ReqMem,ReqCPUS,ReqNodes,ReqTRES,Comment,WCKey,Constraints"
    return known + sorted({hide(line.partition("|")[2]) for line in accounted(lab, fields)})


def test_a_secret_that_is_not_set_stops_the_submission(cluster: Cluster, tmp_path: Path) -> None:
    lab = Lab(cluster, tmp_path / "lab", {"look": LOOK}, ["a"], secrets=["TOKEN", "OTHER"])
    said = lab.hpc("submit", lab.spec, env={"TOKEN": "x"}, check=False)
    assert said.startswith("2 ") and "OTHER: set this secret before you submit" in said
    assert not (lab.run / "attempt-1" / "jobs.jsonl").exists() and not Path(lab.output).exists()


def test_the_plan_is_what_runs_and_every_script_runs_by_hand(cluster: Cluster, tmp_path: Path) -> None:
    by_hpc = Lab(cluster, tmp_path / "hpc", {"echo": ECHO, "note": NOTE}, ["a", "b", "c"])
    planned = Lab(cluster, tmp_path / "plan", {"echo": ECHO, "note": NOTE}, ["a", "b", "c"])
    by_hand = Lab(cluster, tmp_path / "hand", {"echo": ECHO}, ["a", "b"])

    said = planned.hpc("plan", planned.spec)
    by_hand.hpc("plan", by_hand.spec)
    script = planned.run / "attempt-1" / "submit.sh"
    assert script.read_text() in said and f"bash {script}" in said
    assert not cluster.jobs_left() and not Path(planned.output).exists()

    with held(cluster):
        cluster.run("bash", script, cwd=tmp_path)
        by_hpc.submit()
        assert shown(planned) == shown(by_hpc)
        again = cluster.run("bash", script, check=False)
        assert again.returncode == 1 and "attempt 1 was submitted already" in again.stderr
        assert len(cluster.jobs_left()) == 2 * (3 + 3 + 1)
    job = cluster.sbatch("--array=0-1", CHECKOUT / "sbatch" / "array.sbatch", by_hand.run, "echo", cwd=tmp_path)
    said = lambda: "".join(file.read_text() for file in tmp_path.glob("slurm-*.out"))
    assert set(cluster.wait(job).values()) == {"COMPLETED"}, said()
    by_hand.exactly_once()
    report = cluster.sbatch(CHECKOUT / "sbatch" / "report.sbatch", by_hand.run, cwd=tmp_path)
    assert cluster.wait(report) == {report: "COMPLETED"}
    assert "echo         100.0%  2/2 shards" in (by_hand.run / "report.txt").read_text()

    assert planned.finish() == by_hpc.finish() == "done"
    for lab in (planned, by_hpc):
        lab.exactly_once()
        lab.exactly_once("note")


def test_check_asks_slurm(cluster: Cluster, tmp_path: Path) -> None:
    stages = {"echo": ECHO, "note": NOTE | {"resources": {"gpus": 9}}}
    lab = Lab(cluster, tmp_path / "lab", stages, ["a"])
    said = lab.hpc("check", lab.spec, env=HARMFUL, check=False)
    assert said.startswith("1 ") and "Slurm would refuse note: " in said and "refuse echo" not in said
    (lab.folder / "clusters" / "other.yaml").write_text("partition: nowhere\n")
    facts = json.loads(lab.hpc("check", lab.spec, "--cluster=other", "--json", check=False)[2:])
    assert [sorted(fact["refused"]) for fact in facts] == [["echo", "note"]]
    assert "invalid partition" in facts[0]["refused"]["echo"].lower()
    assert "Slurm would take every stage on site" in lab.hpc("check", lab.spec, "stages.note.resources.gpus=8")


def test_code_that_changes_after_submission_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    for folder in ("hpc", "kernels", "sbatch", "tests/stages"):
        shutil.copytree(CHECKOUT / folder, checkout / folder, ignore=shutil.ignore_patterns("__pycache__"))
    lab = Lab(cluster, tmp_path / "lab", {"echo": ECHO}, ["hello"], checkout=checkout)
    with held(cluster):
        lab.submit()
        for code in ("hpc/batch/worker.py", "hpc/batch/runner.py", "hpc/batch/launch.py", "tests/stages/echo.py"):
            (checkout / code).write_text("raise SystemExit('changed')\n")
        shutil.rmtree(checkout / "sbatch")
    assert lab.finish() == "done"
    lab.exactly_once()


def test_few_files_are_made(cluster: Cluster, tmp_path: Path) -> None:
    few = Lab(cluster, tmp_path / "few", {"echo": ECHO}, ["x"] * 10)
    many = Lab(cluster, tmp_path / "many", {"echo": ECHO}, ["x"] * 2000, per_task=3)  # 667 tasks
    with held(cluster):
        few.submit()
        many.submit()
        assert files(few) == files(many)
        assert len(cluster.jobs_left()) == 10 + 1 + 667 + 1
        cluster.run("scancel", *many.jobs().values())
        before = files(few)
    few.wait_for("echo", "done", shards=10)
    logs_and_records = {p for p in files(few) - before if not p.startswith("report")}
    standing_by = {p for p in logs_and_records if "/twins" in p}  # a folder's folder, and one for a shard that is late
    assert len(logs_and_records - {"logs/report"} - standing_by) <= 2 * 10 + 1 and len(standing_by) <= 2 + 10
    assert few.finish() == "done"
    few.exactly_once()


def files(lab: Lab) -> set[str]:
    """Of the run folder; of its code, the sources."""
    return {str(p.relative_to(lab.run)) for p in lab.run.rglob("*") if p.suffix != ".pyc"}


def test_output_in_an_object_store(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.moto() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        keys = {name: value for name, value in server.env.items() if name != "AWS_ENDPOINT_URL"}
        lab = Lab(
            cluster, tmp_path / "lab", {"echo": ECHO, "join": JOIN}, ["a", "b"], output="s3://bucket/out",
            env={"AWS_ENDPOINT_URL": server.endpoint}, secrets=sorted(keys),
        )  # fmt: skip
        lab.submit()
        assert lab.finish() == "done"
        made = {r["shard"]: r["objects"] for r in lab.records("echo") if r.get("state") == "done"}
        assert sorted(made) == ["000000", "000001"] and lab.states("echo", "done").total() == 2
        for shard, [one] in made.items():
            assert one["uri"] == f"s3://bucket/out/echo@v1/{shard}.jsonl"
            assert hashlib.sha256(storage.read(one["uri"])).hexdigest() == one["sha256"]
        [joined] = [r["objects"][0]["uri"] for r in lab.records("join") if r.get("state") == "done"]
        assert [json.loads(line)["text"] for line in storage.read(joined).splitlines()] == ["a", "b"]
