"""Run again after a change: what is done stays, what is missing is made, and nothing is ever a mixture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import runs

from hpc.batch import ledger, records

CHAIN = {"echo": runs.ECHO, "note": runs.NOTE, "join": runs.JOIN}


def born(output: Path) -> dict[str, tuple[int, int, bytes]]:
    """Every published file with what changes when somebody writes it again."""
    files = [p for p in output.rglob("*") if p.is_file() and "_hpc/runs" not in str(p)]
    return {str(p.relative_to(output)): (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def card(output: Path, folder: str) -> dict:
    return json.loads((output / folder / "_stage.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the whole chain has run once over four inputs; tests take a copy."""
    place = tmp_path_factory.mktemp("finished")
    runs.go(runs.spec(place, runs.numbered(4), CHAIN))
    return place


@pytest.fixture
def copy(finished: Path) -> Path:
    """The same folder, put back as it was after the first run: paths are part of what is recorded."""
    backup = finished.with_name(finished.name + "-backup")
    if not backup.exists():
        shutil.copytree(finished, backup, symlinks=True)
    for path in finished.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(backup, finished, dirs_exist_ok=True)
    return finished


def test_the_first_run(copy: Path) -> None:
    assert sorted(runs.objects(copy / "out")) == [
        *(f"echo@v1/{i:06}.jsonl" for i in range(4)), "join@v1/000000.txt", "join@v1/000001.txt",
        *(f"note@v1/{i:06}.note" for i in range(4))]  # fmt: skip
    joined = b"".join(p.read_bytes() for p in sorted((copy / "out/join@v1").glob("0*")))
    assert [Path(json.loads(line)["uri"]).name for line in joined.splitlines()] == list(runs.numbered(4))
    assert card(copy / "out", "echo@v1")["kind"] == "stages:Echo" and card(copy / "out", "join@v1")["frozen"]


def test_run_twice(copy: Path) -> None:
    before = born(copy / "out")
    said = runs.hpc("run", copy / "t.yaml").stdout
    assert "4 inputs in 4 shards (0 new)" in said
    assert "nothing to do: every shard of every stage is done" in said
    assert f"join: {copy}/out/join@v1" in said, "where it is"
    assert born(copy / "out") == before
    [run] = (copy / "runs").glob("t-*")
    assert not (run / "attempt-2").exists(), "doing nothing leaves nothing"


def test_a_new_input(copy: Path) -> None:
    before = born(copy / "out")
    runs.write(copy / "in", {"000a.txt": "late"})  # between the others by name
    made = runs.go(copy / "t.yaml")
    assert made.new_shards == 1 and made.missing == {"echo": 1, "note": 1} and made.plan
    assert made.plan.groups[0].shards == 1
    after = born(copy / "out")
    assert before.items() <= after.items(), "what was there was touched"
    assert sorted(set(after) - set(before)) == [
        "_hpc/shards/000002.jsonl", "echo@v1/000004.jsonl", "join@v2/000000.txt", "join@v2/000001.txt",
        "join@v2/_plan.jsonl", "join@v2/_stage.json", "note@v1/000004.note"]  # fmt: skip
    assert [shard.id for shard in ledger.load(str(copy / "out")).shards] == [f"{i:06}" for i in range(5)]
    joined = b"".join(p.read_bytes() for p in sorted((copy / "out/join@v2").glob("0*")))
    assert len(joined.splitlines()) == 5, "made from all shards, old and new"
    assert card(copy / "out", "join@v1")["frozen"] != card(copy / "out", "join@v2")["frozen"]
    assert runs.planned(copy / "t.yaml").attempt is None


def test_a_changed_input(copy: Path) -> None:
    before = born(copy / "out")
    runs.write(copy / "in", {"001.txt": "changed"})
    made = runs.go(copy / "t.yaml")
    assert made.new_shards == 1 and made.plan
    assert made.plan.domain_size == 4 and not made.plan.superseded, "its old shard, all of it, is out"
    assert before.items() <= born(copy / "out").items()
    assert "changed" in (copy / "out/echo@v1/000004.jsonl").read_text()
    assert (copy / "out/join@v2").is_dir()
    assert runs.planned(copy / "t.yaml").attempt is None


def test_a_changed_input_beside_one_that_stays(tmp_path: Path) -> None:
    """Their shard stays too; the barrier is told which of its inputs to leave out."""
    spec = runs.spec(tmp_path, runs.numbered(4), {"echo": runs.ECHO, "join": runs.JOIN},
                     shards={"size": "32B", "split_above": "1KiB"})  # fmt: skip
    runs.go(spec)
    old = next(i for s in ledger.load(str(tmp_path / "out")).shards for i in s.items if i.uri.endswith("001.txt"))
    runs.write(tmp_path / "in", {"001.txt": "changed"})
    made = runs.go(spec)
    assert made.plan and made.plan.superseded == [(old.uri, old.etag)]
    assert made.shards == 3 and made.missing == {"echo": 1} and (tmp_path / "out/join@v2").is_dir()


def test_an_input_that_is_gone(copy: Path) -> None:
    """Its objects stay; what is joined from now on is without it."""
    before = born(copy / "out")
    (copy / "in/002.txt").unlink()
    made = runs.go(copy / "t.yaml")
    assert made.missing == {"echo": 0, "note": 0} and made.shards == 3
    assert before.items() <= born(copy / "out").items()
    assert len(b"".join(p.read_bytes() for p in (copy / "out/join@v2").glob("0*")).splitlines()) == 3


def test_a_changed_prompt_reruns_its_stage_alone(copy: Path) -> None:
    before = born(copy / "out")
    made = runs.go(copy / "t.yaml", "stages.note.prompt=who is this?")
    assert made.missing == {"echo": 0, "note": 4} and made.new_shards == 0
    after = born(copy / "out")
    assert before.items() <= after.items()
    assert sorted(set(after) - set(before)) == [*(f"note@v2/{i:06}.note" for i in range(4)), "note@v2/_stage.json"]
    assert (copy / "out/note@v2/000000.note").read_text() == "who is this? 1\n"
    assert card(copy / "out", "note@v2")["settings"] == {"prompt": "who is this?"}
    assert runs.planned(copy / "t.yaml", "stages.note.prompt=who is this?").attempt is None
    back = runs.planned(copy / "t.yaml")
    assert back.attempt is None and back.folders["note"] == f"{copy}/out/note@v1", "the old prompt has its own version"


def test_a_changed_setting_reruns_what_follows(copy: Path) -> None:
    made = runs.planned(copy / "t.yaml", "stages.echo.prompt=x")
    assert made.missing == {"echo": 4, "note": 4} and made.plan
    assert [s.folder for s in made.plan.stages] == [f"{copy}/out/echo@v2", f"{copy}/out/note@v2", ""]


@pytest.mark.parametrize("overrides", [
    ["stages.echo.resources={cpus: 2, memory: 1GiB, time: 10m, workers: 2}"],
    ["stages.echo.seconds=0.01", "stages.echo.flags=/somewhere"],  # its NEUTRAL settings
    ["cluster=site"],
    ["stages.join.required=0.1", "stages.note.throttle=3"],
    ["shards={size: 1MiB, task: 1m}", "retries=3", "env={A: b}", "name=another"],
], ids=lambda o: o[0].split("=")[0])  # fmt: skip
def test_what_does_not_change_the_output_reruns_nothing(copy: Path, overrides: list[str]) -> None:
    (copy / "clusters").mkdir()
    (copy / "clusters/site.yaml").write_text("partition: other\naccount: lab\n")
    made = runs.planned(copy / "t.yaml", *overrides)
    assert made.attempt is None and made.missing == {"echo": 0, "note": 0}
    assert made.folders["join"] == f"{copy}/out/join@v1"


def test_a_stage_that_is_added_later(copy: Path) -> None:
    before = born(copy / "out")
    runs.spec(copy, {}, CHAIN | {"more": runs.NOTE | {"prompt": "more"}, "after": runs.NOTE | {"needs": "join"}})
    made = runs.go(copy / "t.yaml")
    assert made.missing == {"echo": 0, "note": 0, "more": 4}
    after = born(copy / "out")
    assert before.items() <= after.items()
    assert {name.split("/")[0] for name in set(after) - set(before)} == {"more@v1", "after@v1"}
    assert (copy / "out/after@v1/000000.note").read_text() == "what is this? 3\n", "over the shards of the barrier"
    assert (copy / "out/after@v1/000001.note").read_text() == "what is this? 1\n"
    assert runs.planned(copy / "t.yaml").attempt is None
    runs.write(copy / "in", {"009.txt": "late"})
    runs.go(copy / "t.yaml")
    assert (copy / "out/after@v2/000001.note").read_text() == "what is this? 2\n"
    assert runs.planned(copy / "t.yaml").attempt is None


def test_two_specs_share_what_is_done(copy: Path) -> None:
    runs.write(copy / "in", {"009.txt": "late"})
    other = runs.spec(copy, {}, {"echo": runs.ECHO, "note": runs.NOTE | {"prompt": "other"}}, name="u")
    made = runs.go(other)
    assert made.missing == {"echo": 1, "note": 5}, "the shards of the first spec are not made again"
    first = runs.planned(copy / "t.yaml")
    assert first.new_shards == 0 and first.missing == {"echo": 0, "note": 1}
    assert {p.name for p in (copy / "out").iterdir()} == {"_hpc", "echo@v1", "note@v1", "note@v2", "join@v1"}


def test_without_its_run_folder(copy: Path) -> None:
    """All records are gone: everything is made again, found to be the same, and left as it was published."""
    before = born(copy / "out")
    shutil.rmtree(copy / "runs")
    made = runs.go(copy / "t.yaml")
    assert made.missing == {"echo": 4, "note": 4} and made.new_shards == 0
    assert born(copy / "out") == before, "adopted, not doubled"
    assert runs.planned(copy / "t.yaml").attempt is None


def test_with_a_damaged_run_folder(copy: Path) -> None:
    before = born(copy / "out")
    [run] = (copy / "runs").glob("t-*")
    [file] = (run / "records/echo").iterdir()
    data = file.read_bytes()
    file.write_bytes(data[: data.index(b'"000002"') + 20])  # the end is lost
    made = runs.go(copy / "t.yaml")
    assert made.missing == {"echo": 2, "note": 0}
    assert born(copy / "out") == before
    assert runs.planned(copy / "t.yaml").attempt is None


def test_two_halves_of_the_same_records(copy: Path) -> None:
    """A run folder that was restored from a backup beside the one that went on: what either knows counts once."""
    [run] = (copy / "runs").glob("t-*")
    shutil.copytree(run, copy / "runs" / "restored-00000000")
    ledger.register(str(copy / "out"), copy / "runs/restored-00000000")
    assert runs.planned(copy / "t.yaml").attempt is None
    assert len(records.fold([p / "records/echo" for p in (run, copy / "runs/restored-00000000")], None).done) == 4


def test_too_few_good_shards(tmp_path: Path) -> None:
    """Below `required` nothing behind the barrier runs; above it, a shard that comes later makes a new version."""
    (tmp_path / "flags").mkdir()
    echo = runs.ECHO | {"flags": str(tmp_path / "flags")}
    stages = {"echo": echo, "join": runs.JOIN, "after": runs.NOTE | {"needs": "join"}}
    spec = runs.spec(tmp_path, {"0.txt": "a", "1.txt": "b", "2.txt": "fail 2", "3.txt": "c"}, stages)
    made = runs.planned(spec)
    runs.finish(runs.worker(made))
    said = runs.finish(runs.worker(made, "join", "barrier"), 1)
    assert "join: 3 of 4 shards of echo are good (75.0%; required 95.0%)" in said
    assert "  echo 000002: code: RuntimeError: told to fail" in said
    assert f"too few: look at the failures (hpc logs {made.run.id} --failed), then hpc retry {made.run.id}" in said
    assert not list((tmp_path / "out").glob("join*"))
    said = runs.finish(runs.worker(made, "join", 0), 1)
    assert "barrier-join.json is missing: the barrier of join has not run in this attempt" in said
    assert runs.states(made.run)["echo"] == "3/1/0"

    runs.go(spec, "stages.join.required=0.7")  # it fails a second time
    assert len((tmp_path / "out/join@v1/000000.txt").read_text().splitlines()) == 3
    assert (tmp_path / "out/after@v1/000000.note").exists()
    before = born(tmp_path / "out")
    made = runs.go(spec, "stages.join.required=0.7")
    assert made.missing == {"echo": 1} and before.items() <= born(tmp_path / "out").items()
    joined = b"".join(p.read_bytes() for p in (tmp_path / "out/join@v2").glob("0*"))
    assert len(joined.splitlines()) == 4
    assert runs.planned(spec, "stages.join.required=0.7").attempt is None


def test_a_barrier_killed_halfway(copy: Path) -> None:
    """The plan behind a barrier is published once: a second start takes it as it is and makes what is missing."""
    runs.write(copy / "in", {"009.txt": "late"})
    made = runs.planned(copy / "t.yaml")
    for stage in ("echo", "note"):
        runs.finish(runs.worker(made, stage))
    runs.finish(runs.worker(made, "join", "barrier"))
    frozen = (copy / "out/join@v2/_plan.jsonl").read_bytes()
    (made.attempt.folder / "barrier-join.json").unlink()  # type: ignore[union-attr]
    runs.finish(runs.worker(made, "join", "barrier"))
    assert (copy / "out/join@v2/_plan.jsonl").read_bytes() == frozen and not (copy / "out/join@v3").exists()
    runs.finish(runs.worker(made, "join"))
    assert runs.planned(copy / "t.yaml").attempt is None


def test_a_barrier_over_nothing_but_failures(tmp_path: Path) -> None:
    stages = {"echo": runs.ECHO, "join": runs.JOIN | {"required": 0.0}}
    made = runs.planned(runs.spec(tmp_path, {"0.txt": "fail"}, stages))
    runs.finish(runs.worker(made))
    assert "0 of 1 shards of echo are good" in runs.finish(runs.worker(made, "join", "barrier"), 1)
