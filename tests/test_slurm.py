"""What Slurm's commands print, as squeue, sacct and scontrol of 22.05 to 25.x do; and how rarely they are called."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import runs

from hpc.batch import slurm
from hpc.batch.slurm import SlurmError, Task


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Slurm:
    made = runs.Slurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", made.path)
    return made


@pytest.mark.parametrize(
    ("text", "job", "indices"),
    [
        ("12", "12", ()),
        ("12_0", "12", (0,)),
        ("123_[5-1024%8]", "123", tuple(range(5, 1025))),
        ("123_[5-7,9%8]", "123", (5, 6, 7, 9)),
        ("123_[0]", "123", (0,)),
        ("123_[0-8:4]", "123", (0, 4, 8)),
        ("123_[3,1,...]", "123", (3, 1)),  # squeue's own abbreviation
        ("32+1", "32+1", ()),
    ],
)
def test_job_ids(text: str, job: str, indices: tuple[int, ...]) -> None:
    assert slurm.split_id(text) == (job, indices)


def test_the_queue(fake: runs.Slurm) -> None:
    fake.answers(squeue="100_[3-5%2]|PENDING|JobArrayTaskLimit||100\n"
                        "100_1|RUNNING|None|n[1-2],gpu07|101\n"
                        "100_2|COMPLETING|None|n1|102\n"
                        "103|PENDING|ReqNodeNotAvail, UnavailableNodes:n1||103\n")  # fmt: skip
    assert slurm.queue(["100", "103"]) == [
        Task("100", (3, 4, 5), "PENDING", "JobArrayTaskLimit", "", raw_job="100", live=True),
        Task("100", (1,), "RUNNING", "None", "n[1-2],gpu07", raw_job="101", live=True),
        Task("100", (2,), "COMPLETING", "None", "n1", raw_job="102", live=True),
        Task("103", (), "PENDING", "ReqNodeNotAvail, UnavailableNodes:n1", "", raw_job="103", live=True),
    ]
    [call] = fake.calls()
    assert call["argv"][call["argv"].index("--jobs") + 1] == "100,103"
    fake.answers(squeue="")
    assert slurm.queue(["100"]) == []
    fake.answers(squeue="!slurm_load_jobs error: Invalid job id specified")
    assert slurm.queue(["100"]) == [], "Slurm forgets jobs a few minutes after they end"
    fake.answers(squeue="!slurm_load_jobs error: Unable to contact slurm controller (connect failure)")
    with pytest.raises(SlurmError, match=r"^squeue --noheader --jobs 100 .*: exit 1: .*Unable to contact"):
        slurm.queue(["100"])


def test_the_accounting(fake: runs.Slurm) -> None:
    fake.answers(sacct="100_0|COMPLETED|n1|3725|0:0|billing=4,cpu=4,gres/gpu=1,mem=4G,node=1|101|ann|vision|None\n"
                       "100_1|CANCELLED by 1000|n2|7|0:15||102|ann|vision|None\n"
                       "100_2|OUT_OF_MEMORY|n2|8|0:125|cpu=4|103|ann|vision|OutOfMemory\n"
                       "100_[3-9%2]|PENDING|None assigned|0|0:0||100|ann|vision|Priority\n"
                       "104|NODE_FAIL|n3||1:0||104|ann||NodeDown|more\n")  # fmt: skip
    found = slurm.accounting(["100", "104"], time.time())
    assert [(t.job, t.indices, t.state) for t in found] == [
        ("100", (0,), "COMPLETED"), ("100", (1,), "CANCELLED by 1000"), ("100", (2,), "OUT_OF_MEMORY"),
        ("100", tuple(range(3, 10)), "PENDING"), ("104", (), "NODE_FAIL")]  # fmt: skip
    assert (found[0].elapsed, found[0].exit_code, found[0].node, found[0].raw_job) == (3725.0, "0:0", "n1", "101")
    assert "gres/gpu=1" in found[0].requested and found[4].elapsed == 0.0
    assert (found[0].holds("cpu"), found[0].holds("gres/gpu"), found[1].holds("cpu")) == (4, 1, 0)
    assert (found[0].user, found[0].account, found[2].reason, found[4].account) == ("ann", "vision", "OutOfMemory", "")
    [call] = fake.calls()
    assert call["argv"][0] == "-nXP", "X: no steps (100_0.batch), of which there are two for each task"
    assert "--duplicates" not in call["argv"]
    fake.answers(sacct="!Slurm accounting storage is disabled")
    assert slurm.accounting(["100"], time.time()) == []
    fake.answers(sacct="!sacct: error: Problem talking to the database: Connection refused")
    with pytest.raises(SlurmError, match="Problem talking to the database"):
        slurm.accounting(["100"], time.time())


def test_no_jobs_no_calls(fake: runs.Slurm) -> None:
    assert slurm.queue([]) == slurm.accounting([], 0.0) == []
    slurm.cancel([])
    assert fake.calls() == []


CONFIG = """Configuration data as of 2026-01-02T03:04:05
AccountingStorageType   = accounting_storage/slurmdbd
MaxArraySize            = 10001
MaxJobCount             = 200000
SchedulerParameters     = {scheduler}
SLURM_VERSION           = 23.11.10

Slurmctld(primary) at head is UP
"""


@pytest.mark.parametrize(
    ("scheduler", "size"),
    [("(null)", 10001), ("defer,max_array_tasks=500,bf_continue", 500), ("max_array_tasks=99999", 10001)],
)
def test_limits(fake: runs.Slurm, scheduler: str, size: int) -> None:
    fake.answers(scontrol=CONFIG.format(scheduler=scheduler))
    assert slurm.limits() == slurm.Limits("23.11.10", size)


def test_limits_that_are_not_told(fake: runs.Slurm) -> None:
    fake.answers(scontrol="SLURM_VERSION           = 22.05.8\n")
    assert slurm.limits().max_array_size == 1001, "Slurm's own default"


def test_a_users_habits_change_nothing(fake: runs.Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SQUEUE_FORMAT", "SQUEUE_STATES", "SACCT_FORMAT", "SLURM_TIME_FORMAT", "SLURM_JOB_ID"):
        monkeypatch.setenv(name, "polluted")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    slurm.queue(["1"])
    slurm.accounting(["1"], 0.0)
    for call in fake.calls():
        assert "polluted" not in call["env"].values()
        assert call["env"]["SLURM_CONF"] == "/etc/slurm.conf"


def test_what_is_changed_live(fake: runs.Slurm) -> None:
    fake.answers(scontrol="")
    slurm.cancel(["1", "2_3"])
    slurm.throttle("1", 4)
    slurm.requeue("1_3")
    assert [(c["command"], c["argv"]) for c in fake.calls()] == [
        ("scancel", ["1", "2_3"]), ("scontrol", ["update", "jobid=1", "arraytaskthrottle=4"]),
        ("scontrol", ["requeue", "1_3"])]  # fmt: skip


def test_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not slurm.available()
    with pytest.raises(SlurmError, match=r"scontrol: not found\. This machine has no Slurm client"):
        slurm.limits()


def test_status_asks_each_once(tmp_path: Path, fake: runs.Slurm) -> None:
    """However many arrays and tasks there are; and nothing is asked of a run that never was submitted."""
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters/site.yaml").write_text("partition: main\nmax_array_size: 2\n")
    listed = [{"uri": f"/no/{i}.txt", "size": 40 << 30, "etag": "e"} for i in range(4)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(one) + "\n" for one in listed))
    echo = runs.ECHO | {"resources": {"time": "1m"}}
    spec = runs.spec(tmp_path, {}, {"echo": echo, "note": runs.NOTE}, cluster="site", inputs="list.jsonl",
                     shards={"size": "40GiB", "split_above": "80GiB"})  # fmt: skip
    env = runs.environment(PATH=fake.path)
    runs.hpc("plan", spec, env=env)
    fake.forget()
    assert runs.facts("status", "t", cwd=tmp_path, env=env, code=None)["slurm_calls"] == 0 and not fake.calls()

    submitted = runs.facts("submit", spec, "stages.note.prompt=x", env=env)[0]
    jobs = submitted["jobs"]
    assert len(jobs) == 5, "two arrays a stage, and the report"
    pending = [(job, "Dependency" if i % 2 else "Priority") for i, job in enumerate(jobs[:4])]
    fake.answers(squeue="".join(f"{job}_[0-1]|PENDING|{why}||{job}\n" for job, why in pending),
                 sacct="".join(f"{job}_[0-1]|PENDING|None|0|0:0||{job}|ann||{why}\n"
                               for job, why in pending))  # fmt: skip
    fake.forget()
    said = runs.hpc("status", submitted["run"], cwd=tmp_path, env=env).stdout
    assert [call["command"] for call in fake.calls()] == ["squeue", "sacct"]
    assert "waiting" in said and "tasks: PENDING 4; pending for: Priority 4" in said
    for call in fake.calls():
        assert ",".join(jobs) in call["argv"], "all jobs in one call"
    told = runs.facts("status", submitted["run"], cwd=tmp_path, env=env)
    assert told["active"] and told["slurm_calls"] == 2 and told["jobs"] == jobs
    assert told["stages"][1]["tasks"] == {"PENDING": 4} and told["stages"][1]["reasons"] == {"Dependency": 4}
