"""What runs took and cost: Slurm's hours where it has any, of every start; what to ask for next; by user, account."""

from __future__ import annotations

import csv
import io
import json
import os
import time
from pathlib import Path

import figures
import pytest
import runs
from test_report import Page

from hpc.batch import accounting, overview, status
from hpc.batch.run import Run

SACCT = ("101_0|PREEMPTED|n1|1800|0:0|billing=8,cpu=4,gres/gpu=2,mem=64G,node=1|103|ann|vision|None\n"
         "101_0|COMPLETED|n2|3600|0:0|billing=8,cpu=4,gres/gpu=2,mem=64G,node=1|103|ann|vision|None\n"
         "102_[0-4]|PENDING|None assigned|0|0:0||102|ann|vision|Priority\n")  # fmt: skip


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return figures.site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def fake(film: Run, tmp_path: Path) -> runs.Slurm:
    fake = figures.slurm(tmp_path)
    fake.answers(sacct=SACCT)
    return fake


def test_hours_are_those_of_slurm(film: Run, fake: runs.Slurm) -> None:
    """Of both starts; and it is asked once."""
    made = runs.facts("report", film.folder, cwd=film.folder, env=runs.environment(PATH=fake.path))
    assert [call["command"] for call in fake.calls()] == ["squeue", "sacct"]
    [call] = fake.calls("sacct")
    assert call["argv"][:2] == ["-nXP", "--duplicates"] and "101,102" in call["argv"]
    account = made["account"]
    pair, echo, train = account["stages"]
    assert pair["from_slurm"] and (pair["gpu_hours"], pair["cpu_hours"], pair["tasks"]) == (3.0, 6.0, 2)
    assert not echo["from_slurm"] and echo["gpu_hours"] == 0 and echo["cpu_hours"] > 0 and train["tasks"] == 0
    assert pair["cost"] == 3 * figures.RATES["gpu_hour"] and pair["used_time"] == pytest.approx(3600, abs=60)
    assert pair["gpu_utilization"] == pytest.approx(0.8) and pair["energy_kwh"] == pytest.approx(3 * 0.5)
    assert account["gpu_utilization"] == pytest.approx(0.8) and account["currency"] == "EUR"
    assert account["cost"] == pytest.approx(pair["cost"] + echo["cpu_hours"] * 36)
    assert (account["account"], account["spec"], account["attempts"]) == ("vision", film.id.rpartition("-")[2], 1)
    sha = made["provenance"]["git"]["sha"]
    assert account["git"].rstrip("+") == sha[:12] and account["state"] == "running"
    assert made["trainings"][0]["mfu"] == pytest.approx(0.41)


def test_without_slurm_the_records_tell(film: Run) -> None:
    gathered = status.gather(film, ask_slurm=False)
    made = accounting.of(gathered, {"user": "bob"}, film)
    pair = made.stages[0]
    assert not pair.from_slurm and pair.gpu_hours == pytest.approx(1, abs=0.05)
    assert pair.cost == pytest.approx(pair.gpu_hours * 3600) and made.user == "bob" and made.account == "vision"


@pytest.mark.parametrize(("asked", "used", "short", "wanted"), [
    (4 * 3600, 3000, False, 4500), (4 * 3600, 11000, False, None), (4 * 3600, 13000, False, 19500),
    (4 * 3600, 10, False, 600), (600, 10, False, None), (3600, 3600, True, 7200), (3600, 0, False, None)])  # fmt: skip
def test_the_next_request(asked: float, used: float, short: bool, wanted: float | None) -> None:
    assert accounting.propose(asked, used, short, 1.5, 600.0, 300.0) == wanted


def test_memory_is_doubled_where_it_fell_short(film: Run) -> None:
    made = accounting.of(status.gather(film, ask_slurm=False), {}, film)
    pair, echo, _ = made.stages
    assert echo.next_memory == 2 * echo.requested_memory, "a shard of it failed for memory"
    assert pair.requested_memory == 8 << 30 and pair.next_memory == 1 << 30 > pair.used_memory > 1 << 20
    assert "memory: 1.0 GiB (now 8.0 GiB, a worker held" in pair.words()


def test_the_report_says_it(film: Run, fake: runs.Slurm) -> None:
    said = runs.hpc("report", film.folder, cwd=film.folder, code=None, env=runs.environment(PATH=fake.path)).stdout
    assert "3.00 GPU-hours, GPUs busy 80%, 1.50 kWh, cost 10,8" in said and "EUR" in said
    assert "step 30 of 20, loss 1.461" in said and "MFU 41.0%, waited for data 5.0%" in said
    page = Page(film.report("html").read_text())
    assert page.wrong == [] and "Asked for and used" in page.text and "Slurm's accounting" in page.text
    rows = list(csv.DictReader(io.StringIO(film.report("csv").read_text())))
    assert [row["stage"] for row in rows] == ["pair", "echo", "train"]
    assert (rows[0]["run"], rows[0]["account"], rows[0]["gpu_hours"], rows[0]["from_slurm"]) == (
        film.id, "vision", "3", "True")  # fmt: skip


def test_all_runs_since(film: Run, tmp_path: Path) -> None:
    """Three runs of two users; one is too old; one cannot be read. One squeue, one sacct."""
    place = tmp_path / "runs"
    place.mkdir()
    figures.copies(film, 4, place)
    twins = sorted(place.iterdir())
    facts = [json.loads((twin / "attempt-1/provenance.json").read_text()) for twin in twins]
    for twin, fact, user, job in zip(twins, facts, ("ann", "ann", "<b>bob", "ann"), (201, 301, 401, 501), strict=True):
        (twin / "attempt-1/provenance.json").write_text(json.dumps(fact | {"user": user}))
        jobs = twin / "attempt-1/jobs.jsonl"
        jobs.write_text(jobs.read_text().replace('"101"', f'"{job}"').replace('"102"', f'"{job + 1}"'))
    old = time.time() - 10 * 86400
    for path in (p for p in twins[3].rglob("*")):
        os.utime(path, (old, old))
    (place / "broken-1" / "attempt-1").mkdir(parents=True)
    (place / "broken-1" / "attempt-1" / "plan.json").write_text("{")
    fake = runs.Slurm(tmp_path / "slurm")
    told = ((201, 1, "vision"), (301, 2, "vision"), (401, 4, "=cmd()"))
    fake.answers(sacct="".join(f"{job}_0|COMPLETED|n1|{hours * 3600}|0:0|cpu=4,gres/gpu=8|{job}|x|{account}|None\n"
                               for job, hours, account in told))  # fmt: skip
    env = runs.environment(PATH=fake.path)
    made = runs.facts("report", "--since", "7d", "--runs", place, cwd=tmp_path, env=env)
    assert [call["command"] for call in fake.calls()] == ["squeue", "sacct"]
    assert [run["run"] for run in made["runs"]] == [twin.name for twin in twins[:3]]
    assert made["unreadable"] == [str(place / "broken-1")]
    assert {t["who"]: (t["runs"], t["gpu_hours"]) for t in made["by_user"]} == {"ann": (2, 24.0), "<b>bob": (1, 32.0)}
    assert {t["who"]: t["gpu_hours"] for t in made["by_account"]} == {"vision": 24.0, "=cmd()": 32.0}
    assert made["by_user"][0]["who"] == "<b>bob" and made["by_user"][0]["cost"] == pytest.approx(32 * 3600, rel=0.01)

    words = ("report", "--since", "7d", "--runs", place, "--output")
    said = runs.hpc(*words, tmp_path / "all.html", cwd=tmp_path, env=env).stdout
    assert "3 runs with anything done since" in said and "ask next time for:" in said
    page = Page((tmp_path / "all.html").read_text())
    assert page.wrong == [] and "<b>bob" in page.text and "By account" in page.text
    runs.hpc(*words, tmp_path / "all.csv", cwd=tmp_path, env=env)
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert len(rows) == 9 and {row["account"] for row in rows} == {"vision", "'=cmd()"}, "no formula for a spreadsheet"


def test_when_since_is() -> None:
    assert overview.parse("7d") == pytest.approx(time.time() - 7 * 86400, abs=5)
    assert time.localtime(overview.parse("2026-11-01"))[:5] == (2026, 11, 1, 0, 0)
    with pytest.raises(ValueError, match=r"--since soon: give a duration \(7d, 36h\) or a date"):
        overview.parse("soon")


def test_calls_that_make_no_sense(tmp_path: Path) -> None:
    for words in (["report"], ["report", "x", "--since", "7d"], ["report", "--since", "7d", "--output", "a.pdf"]):
        done = runs.hpc(*words, "--runs", tmp_path, cwd=tmp_path, code=2)
        assert "Traceback" not in done.stderr and done.stderr.startswith("hpc report: ")
