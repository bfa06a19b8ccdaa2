"""The `hpc` command as people and scripts use it: a few lines or one JSON value, one clear message about mistakes."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs

from hpc.batch import local
from hpc.batch import run as run_folder


@pytest.fixture(scope="module")
def failed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A real `hpc run` in which a shard of two stages failed, and what it printed."""
    place = tmp_path_factory.mktemp("failed")
    texts = {"0.txt": "fine", "1.txt": "fail", "2.txt": "bad", "3.txt": "fine"}
    spec = runs.spec(place, texts, {"echo": runs.ECHO, "note": runs.NOTE, "join": runs.JOIN | {"required": 0.5}})
    return place, runs.hpc("run", spec, code=1)


@pytest.fixture
def slurm(tmp_path: Path) -> runs.Slurm:
    return runs.Slurm(tmp_path / "slurm")


# What it prints


def test_run_tells_what_it_does_and_what_came_of_it(failed: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, done = failed
    run = run_folder.find("t", place / "runs")
    said = done.stdout
    assert f"{run.id}: 4 inputs in 4 shards (4 new)\n  echo: 0 done, 4 to do\n  note: 0 done, 4 to do" in said
    assert "failed: echo 000001" in said and "RuntimeError: told to fail" in said
    assert f"{run.id}  attempt 1  failed  {run.folder}" in said
    assert f"report: {run.report('html')}" in said
    assert runs.states(run) == {"echo": "3/1/0", "note": "3/1/0", "join": "1/0/0"}
    assert "\x1b" not in said and "\r" not in said, "no terminal, no colours"
    assert done.stderr == ""


def test_no_pickles_are_left(failed: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    assert not [p for p in (failed[0] / "runs").rglob("*") if p.suffix == ".pkl" or p.name.endswith(".sh.tmp")]


def test_status_and_report(failed: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, _ = failed
    told = runs.facts("status", "t", cwd=place, code=1)
    assert told["state"] == "failed" and told["stages"][0]["failures"] == {"code": 1}
    assert "3/4 shards; 1 failed (1 code); 1 inputs quarantined" in runs.hpc("status", "t", cwd=place, code=1).stdout
    assert runs.facts("report", "t", cwd=place, code=1)["status"] == told
    assert runs.facts("status", place / "runs" / told["run"], cwd=Path("/"), code=1) == told, "by its folder"
    elsewhere = runs.facts("status", "t", "--runs", place / "runs", cwd=Path("/"), code=1)
    by_variable = runs.facts("status", "t", cwd=Path("/"), code=1, env=runs.environment(HPC_RUNS=str(place / "runs")))
    assert elsewhere == by_variable == told


def test_logs(failed: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    place, _ = failed
    found = runs.facts("logs", "t", "--failed", cwd=place)
    whys = {why for entry in found for why in [entry["why"].partition(": ")[0]]}
    assert whys <= {"shard 000001"} and any("told to fail" in line for entry in found for line in entry["tail"])
    assert {Path(e["path"]).parent.name for e in runs.facts("logs", "t", "--stage", "note", cwd=place)} == {"note"}
    assert all(len(e["tail"]) <= 3 for e in runs.facts("logs", "t", "-n", "3", cwd=place))
    text = runs.hpc("logs", "t", "--failed", "--stage", "echo", cwd=place).stdout
    assert "(shard 000001: code: RuntimeError: told to fail" in text and "Traceback" in text


def test_every_verb_prints_one_json_value(tmp_path: Path, slurm: runs.Slurm) -> None:
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters/site.yaml").write_text("partition: main\n")
    spec = runs.spec(tmp_path, runs.numbered(2), cluster="site")
    env = runs.environment(PATH=slurm.path)

    def ask(*words: str | Path, code: int = 0):
        return runs.facts(*words, cwd=tmp_path, env=env, code=code)

    [checked] = ask("check", spec)
    assert checked["inputs"] == 2 and checked["refused"] == {} and checked["domains"] == {"echo": "inputs"}
    assert [c for c in slurm.calls("sbatch") if "--test-only" not in c["argv"]] == [], "check submits nothing"
    [planned] = ask("plan", spec)
    assert planned["attempt"] == 1 and Path(planned["submit"]).exists() and planned["missing"] == {"echo": 2}
    assert len(slurm.calls("sbatch")) == 1
    slurm.forget()
    [submitted] = ask("submit", spec)
    assert submitted["jobs"] == ["101", "102"] and submitted["run"] == planned["run"]
    slurm.answers(squeue="101_[0]|PENDING|Priority||101\n102|PENDING|Dependency||102\n", scontrol="")
    assert ask("status", "t")["state"] == "waiting"
    assert ask("logs", "t") == []
    assert ask("throttle", "t", "1") == {"run": planned["run"], "changed": ["101"], "tasks": 1}
    assert ask("report", "t")["status"]["jobs"] == ["101", "102"]
    assert ask("cancel", "t") == {"run": planned["run"], "cancelled": ["101", "102"]}
    assert slurm.calls("scancel")[0]["argv"] == ["101", "102"]
    slurm.answers(squeue="", scontrol="MaxArraySize = 1001")
    retried = ask("retry", "t")
    assert retried["attempt"] == submitted["attempt"] + 1 and retried["jobs"] == ["103", "104"]
    assert ask("cancel", "t") == {"run": planned["run"], "cancelled": []}
    assert ask("schema")["$schema"].startswith("https://json-schema.org/")
    [ran] = ask("run", spec)
    assert ran["state"] == "done"
    [nothing] = ask("run", spec)
    assert nothing["attempt"] is None and nothing["missing"] == {"echo": 0}


def test_what_slurm_would_refuse(tmp_path: Path, slurm: runs.Slurm) -> None:
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters/site.yaml").write_text("partition: main\n")
    spec = runs.spec(tmp_path, runs.numbered(2), cluster="site")
    slurm.answers(sbatch="!allocation failure: Invalid account or account/partition combination specified")
    done = runs.hpc("check", spec, env=runs.environment(PATH=slurm.path), code=1)
    assert "Slurm would refuse echo: allocation failure: Invalid account" in done.stdout


def test_a_submission_that_is_refused(tmp_path: Path, slurm: runs.Slurm) -> None:
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters/site.yaml").write_text("partition: main\n")
    spec = runs.spec(tmp_path, runs.numbered(2), cluster="site")
    slurm.refuse(2)
    done = runs.hpc("submit", spec, env=runs.environment(PATH=slurm.path), code=2)
    assert "Invalid partition name specified" in done.stderr and "Traceback" not in done.stderr
    assert "submission failed: cancelling 101" in done.stderr


# Arguments


def test_overrides_anywhere_on_the_line(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, runs.numbered(1))
    one, two = "stages.echo.prompt=a b", "shards.size=17B"
    lines = [[spec, one, two, "--json"], [spec, one, "--json", two],
             ["--json", spec, "--runs", "x", one, "--cluster", "local", two], [one, "--json", spec, two],
             [one, two, spec, "--json"]]  # fmt: skip
    hashes = {json.loads(runs.hpc("check", *line, cwd=tmp_path).stdout)[0]["hash"] for line in lines}
    assert len(hashes) == 1 and hashes != {runs.facts("check", spec)[0]["hash"]}


def test_a_matrix_is_several_runs(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, runs.numbered(2), {"echo": runs.ECHO, "note": runs.NOTE},
                     matrix={"stages.note.prompt": ["who", "what"]})  # fmt: skip
    told = runs.facts("run", spec)
    assert [fact["run"].rpartition("-")[0] for fact in told] == ["t-who", "t-what"]
    assert [fact["state"] for fact in told] == ["done", "done"]
    assert told[1]["missing"] == {"echo": 0, "note": 2}, "what they share is made once"
    notes = {p.parent.name: p.read_text() for p in (tmp_path / "out").glob("note@v*/000000.note")}
    assert notes == {"note@v1": "who 1\n", "note@v2": "what 1\n"}
    assert runs.facts("status", "t-who", cwd=tmp_path)["state"] == "done"
    assert "several begin with it" in runs.hpc("status", "t", cwd=tmp_path, code=2).stderr
    assert [fact["attempt"] for fact in runs.facts("run", spec)] == [None, None]


# What is wrong


BAD = {
    "no spec": (["run", "gone.yaml"], "gone.yaml: cannot be read: No such file"),
    "a folder": (["run", "."], ".: cannot be read: Is a directory"),
    "no YAML": (["check", "bad.yaml"], "bad.yaml:3: not YAML"),
    "unknown key": (["check", "t.yaml", "stages.echo.promt=x"], "no such key: did you mean prompt?"),
    "no value": (["check", "t.yaml", "stages.echo.prompt"], "'stages.echo.prompt' is not KEY=VALUE"),
    "unknown stage": (["check", "t.yaml", "stages.note={kind: 'stages:Note', needs: ecco}"], "did you mean echo?"),
    "unknown kind": (["check", "t.yaml", "stages.echo.kind=gone:Gone"], "gone:Gone cannot be imported"),
    "unknown cluster": (["plan", "t.yaml", "--cluster", "h1000"], "'h1000': no such cluster"),
    "no inputs": (["plan", "t.yaml", "inputs=empty"], "no inputs found in"),
    "inputs gone": (["plan", "t.yaml", "inputs=nowhere"], "nowhere does not exist"),
    "output a file": (["plan", "t.yaml", "output=t.yaml/x"], "is a file, not a folder"),
    "a run folder as input": (["plan", "t.yaml", "inputs=runs/t-00000000"], "is a run folder: name one of its outputs"),
    "local submit": (["submit", "t.yaml", "--cluster", "local"], "`local` is this machine: use `hpc run`"),
    "no Slurm": (["submit", "t.yaml", "--cluster", "site"], "scontrol: not found. This machine has no Slurm client"),
    "no secret": (["run", "t.yaml", "secrets=[TOKEN]"], "secrets TOKEN: set these environment variables first"),
    "unknown run": (["status", "nothing"], "nothing: no such run under runs (runs there: t-00000000"),
    "no runs": (["status", "t", "--runs", "nowhere"], "runs there: none"),
    "runs a file": (["run", "t.yaml", "--runs", "t.yaml"], "Not a directory: "),
    "nothing planned": (["status", "t-0000"], "no attempt has been planned here; is it a run folder?"),
    "two domains": (["plan", "t.yaml", "stages={echo: {kind: 'stages:Echo'}, join: {kind: 'stages:Join', needs: echo}, "
                     "note: {kind: 'stages:Note', needs: [echo, join]}}"],
                    "stages.note: needs echo, join, which have different shards"),
}  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("desk")
    runs.spec(place, runs.numbered(1))
    (place / "bad.yaml").write_text("name: x\nstages: {\n")
    for folder in ("empty", "clusters", "runs/t-00000000/attempt-1"):
        (place / folder).mkdir(parents=True)
    (place / "clusters/site.yaml").write_text("partition: main\n")
    return place


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_one_clear_message(desk: Path, name: str) -> None:
    words, message = BAD[name]
    if name == "a run folder as input":
        (desk / "runs/t-00000000/attempt-1/plan.json").touch()
    env = runs.environment(PATH=str(Path(sys.executable).parent))
    done = runs.hpc(*words, cwd=desk, env=env, code=2)
    (desk / "runs/t-00000000/attempt-1/plan.json").unlink(missing_ok=True)
    assert message in done.stderr and (done.stdout == "" or name == "no secret")
    assert done.stderr.startswith(f"hpc {words[0]}: ") and "Traceback" not in done.stderr
    assert "[Errno" not in done.stderr or name == "runs a file"


CALLS = [[], ["fly"], ["run"], ["status"], ["run", "t.yaml", "--fast"], ["throttle", "t", "two"],
         ["status", "t", "a=b"], ["logs", "t", "-n", "x"]]  # fmt: skip


@pytest.mark.parametrize("words", CALLS, ids=" ".join)
def test_a_wrong_call_shows_the_usage(desk: Path, words: list[str]) -> None:
    done = runs.hpc(*words, cwd=desk, code=2)
    assert done.stderr.startswith("usage: hpc") and "error: " in done.stderr and not done.stdout


def test_a_run_whose_files_are_damaged(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, runs.numbered(1))
    made = runs.planned(spec)
    assert made.attempt
    text = made.run.spec.read_text()
    made.run.spec.write_text(text.replace("prompt: ''", "prompt: other"))
    done = runs.hpc("retry", "t", cwd=tmp_path, code=2)
    assert "was changed and no longer is the spec of t-" in done.stderr and "Traceback" not in done.stderr
    made.run.spec.write_text(text)
    plan = made.attempt.folder / "plan.json"
    plan.write_text(plan.read_text()[:100])
    for verb in ("status", "report", "logs", "retry"):
        done = runs.hpc(verb, "t", *(["--failed"] if verb == "logs" else []), cwd=tmp_path, code=2)
        assert done.stderr.startswith(f"hpc {verb}: {plan}: damaged"), done.stderr


def test_a_reader_that_goes_away(desk: Path) -> None:
    """`hpc schema | head -1`."""
    for words in (["schema"], ["--help"]):
        process = subprocess.Popen([sys.executable, "-m", "hpc.cli", *words], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env=runs.environment(), text=True)  # fmt: skip
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait(60) == 0
        process.stderr.close()


# Time and signals


@pytest.mark.parametrize(("driver", "gpus", "said"), [(True, 0, True), (False, 0, False), (True, 1, False)])
def test_gpus_that_no_stage_asks_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: bool, gpus: int, said: bool
) -> None:
    monkeypatch.setattr(local, "DRIVER", tmp_path / "nvidiactl")
    if driver:
        (tmp_path / "nvidiactl").touch()
    stage = runs.ECHO | {"resources": {"gpus": gpus}}
    planned = runs.planned(runs.spec(tmp_path, runs.numbered(2), {"echo": stage, "note": runs.NOTE}), cores=2)
    assert planned.attempt
    assert ("`resources: {gpus: 1}`" in local.unseen(planned.attempt.plan())) == said


def test_it_starts_in_a_blink() -> None:
    """Less than 100 ms over a bare interpreter; best of three, since other load makes it slower and nothing faster."""

    def wall(*words: str) -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True, env=runs.environment())
        return time.perf_counter() - begun

    measured = []
    while len(measured) < 3 and not (measured and measured[-1] < 0.1):
        pairs = [(wall("-m", "hpc.cli", "--help"), wall("-c", "pass")) for _ in range(7)]
        measured.append(statistics.median(a for a, _ in pairs) - statistics.median(b for _, b in pairs))
    assert min(measured) < 0.1, measured


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_stopped_it_leaves_no_processes_and_goes_on_from_there(tmp_path: Path, how: str) -> None:
    spec = runs.spec(tmp_path, runs.numbered(6), {"echo": runs.ECHO | {"seconds": 0.3}})
    command = [sys.executable, "-m", "hpc.cli", "run", str(spec)]
    process = subprocess.Popen(command, cwd=tmp_path, env=runs.environment(), text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    with runs.ended(process):
        run = runs.until(lambda: next(iter((tmp_path / "runs").glob("t-*/attempt-1/plan.json")), None)).parents[1]
        found = run_folder.Run(run)
        runs.until(lambda: len(runs.said(found, "done")) >= 1)
        if how == "Ctrl-C":
            os.killpg(process.pid, signal.SIGINT)  # a terminal tells the whole group
        else:
            process.terminate()
        _, err = process.communicate(timeout=180)
    assert process.returncode == 130 and "stopped; the same command goes on from here" in err
    assert "Traceback" not in err, err
    assert runs.processes(str(run)) == {}
    done = runs.said(found, "done")
    assert 1 <= len(done) < 6
    [fact] = runs.facts("run", spec)
    assert fact["attempt"] == 2 and fact["missing"] == {"echo": 6 - len(done)} and fact["state"] == "done"
    assert not [s for s in done if runs.said(found, "start").count(s) > 1], "what was done is not done again"


def test_inside_an_allocation(tmp_path: Path, slurm: runs.Slurm) -> None:
    """`hpc run` in a job (salloc, srun --pty): the job is not ours to requeue, and its task number is no row."""
    spec = runs.spec(tmp_path, runs.numbered(3), {"echo": runs.ECHO, "join": runs.JOIN})
    job = {"SLURM_JOB_ID": "77", "SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "5", "SLURM_RESTART_COUNT": "2",
           "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0",
           "SLURM_LOCALID": "0", "SLURMD_NODENAME": "n9"}  # fmt: skip
    [fact] = runs.facts("run", spec, env=runs.environment(PATH=slurm.path, **job))
    assert fact["state"] == "done"
    names = [p.name for p in (Path(fact["folder"]) / "records/join").iterdir()]
    assert names == ["local1_0.0.jsonl"] and slurm.calls("scontrol", "sbatch") == []
