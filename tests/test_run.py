"""The run folder: a person can read it, it holds everything that the run needs, and it stays small."""

from __future__ import annotations

import json
import os
import py_compile
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import runs
import yaml

from hpc.batch import prepare, run
from hpc.batch.run import Run

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("place")


@pytest.fixture(scope="module")
def planned(place: Path) -> prepare.Prepared:
    stages = {"echo": runs.ECHO, "note": runs.NOTE, "join": runs.JOIN}
    return runs.planned(runs.spec(place, runs.numbered(6), stages), cores=2)


def test_a_person_can_read_it(planned: prepare.Prepared) -> None:
    attempt = planned.attempt
    assert attempt
    binary = []
    for path in (p for p in planned.run.folder.rglob("*") if p.is_file() and attempt.code not in p.parents):
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            binary.append(path.name)
            continue
        if path.suffix == ".json":
            assert json.loads(text) and text.count("\n") > 3, f"{path} is not laid out for reading"
        if path.suffix == ".jsonl":
            assert all(json.loads(line) for line in text.splitlines())
    assert set(binary) <= {"plan.idx"}
    spec = yaml.safe_load(planned.run.spec.read_text())
    assert spec["stages"]["echo"]["resources"]["time"] == "4h", "every default is written out"
    facts = json.loads((attempt.folder / "plan.json").read_text())
    assert [s["name"] for s in facts["stages"]] == ["echo", "note", "join"]
    assert facts["stages"][0]["resources"]["memory"] == "4GiB"
    rows = [json.loads(line) for line in (attempt.folder / "plan.jsonl").read_text().splitlines()]
    assert [[shard[0] for shard in row[1]] for row in rows] == [["000000", "000001", "000002"],
                                                                 ["000003", "000004", "000005"]]  # fmt: skip
    assert rows[0][1][0][1][0][0].endswith("/in/000.txt")
    assert (attempt.folder / "scope.txt").read_text().split() == [f"{i:06}" for i in range(6)]
    assert os.access(attempt.submit, os.X_OK)
    for folder in (planned.run.folder, attempt.folder):
        assert folder.stat().st_mode & 0o007 == 0, "paths and settings are not for everyone on a shared machine"


def test_a_row_is_read_alone(planned: prepare.Prepared) -> None:
    attempt = planned.attempt
    assert attempt and attempt.rows("inputs") == 2
    row = attempt.read_row("inputs", 1)
    assert row and row.row == 1 and [s.id for s in row.shards] == ["000003", "000004", "000005"]
    assert attempt.read_row("inputs", 2) is None and attempt.read_row("inputs", 10**6) is None


def test_provenance(planned: prepare.Prepared, place: Path) -> None:
    assert planned.attempt
    facts = json.loads((planned.attempt.folder / "provenance.json").read_text())
    assert facts["command"] == ["test"] and facts["spec_hash"] == planned.run.id.rpartition("-")[2]
    assert facts["python"]["path"] == sys.executable and facts["packages"]["msgspec"]
    assert facts["host"] and facts["user"] and facts["time"][:2] == "20"


def checkout(folder: Path) -> Path:
    """A copy of this checkout with a commit of its own."""
    copy = folder / "checkout"
    for name in ("hpc", "kernels", "sbatch", "tests/stages"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    git = ["git", "-C", str(copy), "-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *words], check=True, env=runs.environment(), capture_output=True)
    return copy


def test_the_run_has_its_own_code(tmp_path: Path) -> None:
    """Planned from a checkout that is edited, then broken, then gone: the run goes on with what it was planned with."""
    copy = checkout(tmp_path)
    sha = subprocess.run(["git", "-C", copy, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    env = runs.environment(PYTHONPATH=f"{copy}:{copy}/tests")
    spec = runs.spec(tmp_path, runs.numbered(2), {"echo": runs.ECHO, "note": runs.NOTE})

    runs.hpc("plan", spec, env=env)
    found = run.find("t", tmp_path / "runs")
    clean = json.loads((found.latest().folder / "provenance.json").read_text())["git"]
    assert clean == {"sha": sha, "changed": False, "diff": ""}
    assert not (found.latest().folder / "code.diff").exists()

    note = copy / "tests/stages/note.py"
    note.write_text(note.read_text().replace("{settings.prompt}", "edited {settings.prompt}"))
    runs.hpc("plan", spec, env=env)
    latest = found.latest()
    changed = json.loads((latest.folder / "provenance.json").read_text())["git"]
    assert changed == {"sha": sha, "changed": True, "diff": "code.diff"}
    assert "+        out.write_text(f\"edited {settings.prompt}" in (latest.folder / "code.diff").read_text()

    note.write_text("broken(")
    (copy / "hpc/batch/runner.py").write_text("broken(")
    code = runs.environment(PYTHONPATH=str(latest.code))
    subprocess.run([sys.executable, "-m", "hpc.batch.commit", found.folder, str(latest.number)], check=True, env=code)
    shutil.rmtree(copy)
    prepared = prepare.Prepared(found, latest, latest.plan(), 2, {}, {}, 2, 2)
    for stage in ("echo", "note"):
        runs.finish(runs.worker(prepared, stage))
    assert (tmp_path / "out/note@v1/000000.note").read_text() == "edited what is this? 1\n"
    imported = subprocess.run([sys.executable, "-c", "import hpc, stages; print(hpc.__file__, stages.__file__)"],
                              cwd=tmp_path, env=code, capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert [Path(p).is_relative_to(latest.code) for p in imported.split()] == [True, True]


def test_the_snapshot_holds_the_scripts_and_no_leftovers(planned: prepare.Prepared) -> None:
    assert planned.attempt
    code = planned.attempt.code
    for name in ("hpc/cli.py", "hpc/sbatch/array.sbatch", "hpc/sbatch/report.sbatch", "stages/echo.py"):
        assert (code / name).is_file(), name
    assert os.access(code / "hpc/sbatch/array.sbatch", os.R_OK)
    assert not (code / "test_run.py").exists(), "only the package of a stage is copied, not what lies beside it"


def test_the_snapshot_is_not_compiled_again_by_every_process(tmp_path: Path) -> None:
    """What the checkout has compiled of its code is taken along and used; what other Pythons left, or has no source, is
    not; and what is edited in the snapshot counts."""
    copy = checkout(tmp_path)
    py_compile.compile(str(copy / "hpc/batch/health.py"))
    compiled = copy / "hpc/batch/__pycache__"
    [name] = [path.name for path in compiled.iterdir()]
    for leftover in ("gone.cpython-311.pyc", "health.cpython-27.pyc", f"{name}.139872"):
        shutil.copy(compiled / name, compiled / leftover)
    spec = runs.spec(tmp_path, runs.numbered(1))
    env = runs.environment(PYTHONPATH=f"{copy}:{copy}/tests", PYTHONDONTWRITEBYTECODE="1")
    runs.hpc("plan", spec, env=env)
    code = run.find("t", tmp_path / "runs").latest().code
    assert [str(path.relative_to(code)) for path in code.rglob("*.pyc*")] == [f"hpc/batch/__pycache__/{name}"]

    def loaded() -> str:
        words = [sys.executable, "-v", "-c", "import hpc.batch.health; print(hpc.batch.health.__file__)"]
        done = subprocess.run(words, cwd=tmp_path, env=env | {"PYTHONPATH": str(code)}, capture_output=True, text=True,
                              check=True)  # fmt: skip
        assert done.stdout.strip() == str(code / "hpc/batch/health.py")
        return done.stderr

    assert f"code object from '{code}/hpc/batch/__pycache__/{name}'" in loaded()
    with (code / "hpc/batch/health.py").open("a") as file:
        file.write("# edited\n")
    assert f"code object from {code}/hpc/batch/health.py" in loaded()


def files(folder: Path) -> int:
    return sum(p.is_file() for p in folder.rglob("*"))


def test_the_number_of_files_does_not_grow_with_the_inputs(tmp_path: Path) -> None:
    counts = []
    for number in (3, 300):
        spec = runs.spec(tmp_path / str(number), runs.numbered(number), {"echo": runs.ECHO, "join": runs.JOIN})
        made = runs.planned(spec, cores=4)
        counts.append((files(made.run.folder), files(tmp_path / str(number) / "out")))
    assert counts[0] == counts[1]
    assert counts[0][1] <= 4, "the output holds a ledger, a pointer to the run, a card of the stage"


def test_find(tmp_path: Path) -> None:
    base = tmp_path / "runs"
    for name in ("traffic-11111111", "traffic-22222222", "rain-33333333", "nothing-here"):
        (base / name).mkdir(parents=True)
        if name != "nothing-here":
            (base / name / "attempt-1").mkdir()
    assert run.find("rain", base) == run.find("r", base) == Run(base / "rain-33333333")
    assert run.find("traffic-2", base) == Run(base / "traffic-22222222")
    assert run.find(str(base / "rain-33333333"), tmp_path) == Run(base / "rain-33333333")
    with pytest.raises(FileNotFoundError, match="several begin with it: traffic-11111111, traffic-22222222"):
        run.find("traffic", base)
    with pytest.raises(FileNotFoundError, match=r"snow: no such run under .*runs there: rain-33333333, traffic-1"):
        run.find("snow", base)
    with pytest.raises(FileNotFoundError, match="runs there: none"):
        run.find("snow", tmp_path / "gone")
    (base / "traffic").mkdir()
    (base / "traffic" / "attempt-1").mkdir()
    assert run.find("traffic", base) == Run(base / "traffic"), "a whole name goes before the beginning of others"
    with pytest.raises(FileNotFoundError, match="no attempt has been planned here"):
        run.find("rain", base).latest()


def test_an_attempt_is_never_one_that_another_planner_began(tmp_path: Path) -> None:
    made = Run(tmp_path / "t-1")
    half = run.new_attempt(made)
    (half.folder / "half-written").touch()
    whole = run.new_attempt(made)
    assert (half.number, whole.number) == (1, 2) and (half.folder / "half-written").exists()
    (whole.folder / "plan.json").touch()
    assert made.attempts() == [2] and made.latest() == whole, "what was never finished does not count"
    assert run.new_attempt(made).number == 3
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: run.new_attempt(made).number, range(24)))
    assert sorted(numbers) == list(range(4, 28)), "also of planners at once"
