"""Stages that are made of several, that need shards of different kinds, and that write trees of files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runs

from hpc.batch import records
from hpc.batch.prepare import counted, domains, good_shards
from hpc.batch.run import Run
from hpc.batch.spec import SpecErrors, load

TALE: dict[str, Any] = {"kind": "stages:Tale", "needs": "echo", "resources": {"cpus": 1, "gpus": 1}}
STAGES = {"echo": runs.ECHO, "tale": TALE}


def told(place: Path) -> dict[str, str]:
    return {str(p.relative_to(place)): p.read_text() for p in sorted(place.rglob("*.txt"))}


def test_a_stage_of_a_spec_is_several(tmp_path: Path) -> None:
    (spec,) = load(runs.spec(tmp_path, runs.numbered(2), STAGES))
    assert {name: (stage.kind, stage.needs, stage.required, stage.resources.gpus)
            for name, stage in spec.stages.items()} == {
        "echo": ("stages:Echo", (), 0.95, 0),
        "tale-count": ("stages:Count", ("echo",), 0.95, 0),
        "tale": ("stages:Tell", ("echo", "tale-count"), 0.95, 1),
    }  # fmt: skip
    (same,) = load(runs.spec(tmp_path, {}, STAGES), ["stages.tale.end=x"])
    assert same.stages["tale-count"].settings == spec.stages["tale-count"].settings
    with pytest.raises(SpecErrors, match="tale has a part of this name"):
        load(runs.spec(tmp_path, {}, STAGES | {"tale-count": runs.JOIN}))


def test_it_runs_to_the_end_and_again(tmp_path: Path) -> None:
    """A barrier over shards of the inputs and its own; a part whose settings did not change is not made again."""
    spec = runs.spec(tmp_path, runs.numbered(3), STAGES)
    runs.hpc("run", spec)
    assert told(tmp_path / "out/tale@v1/tale") == {f"00000{i}/{x}.txt": "1 of 3." for i in range(3) for x in "ab"}
    assert "nothing to do" in runs.hpc("run", spec).stdout
    runs.hpc("run", spec, "stages.tale.end=x")
    assert told(tmp_path / "out/tale@v2/tale") == {f"00000{i}/{x}.txt": "1 of 3x" for i in range(3) for x in "ab"}
    assert [p.name for p in sorted((tmp_path / "out").glob("tale*"))] == ["tale-count@v1", "tale@v1", "tale@v2"]
    runs.write(tmp_path / "in", {"009.txt": "late"})
    runs.hpc("run", spec)
    assert len(told(tmp_path / "out/tale@v3/tale")) == 8 and (tmp_path / "out/tale-count@v2/000000.json").exists()


def test_what_is_missing_is_made_by_a_retry(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, {"0.txt": "fail 1", "1.txt": "fine"},
                     {"echo": runs.ECHO | {"flags": str(tmp_path)}, "tale": TALE | {"required": 0.5}})  # fmt: skip
    runs.hpc("run", spec, code=1)
    assert set(told(tmp_path / "out/tale@v1/tale").values()) == {"1 of 1."}
    runs.hpc("retry", "t", cwd=tmp_path)
    assert set(told(tmp_path / "out/tale@v2/tale").values()) == {"1 of 2."}


def test_what_decisions_never_saw_is_left_out(tmp_path: Path) -> None:
    """Tale needs Join, whose lines are those of Echo's shards that Note has made as well: so do Tale's."""
    stages = {
        "echo": runs.ECHO, "note": runs.NOTE | {"required": 0.5},
        "join": runs.JOIN | {"needs": ["note", "echo"], "required": 0.5}, "tale": TALE | {"needs": ["echo", "join"]},
    }  # fmt: skip
    (spec,) = load(runs.spec(tmp_path, runs.numbered(3), stages))
    where = domains(spec)
    needs = {name: SimpleNamespace(needs=stage.needs, domain=where[name]) for name, stage in spec.stages.items()}
    assert counted(["echo", "join"], needs) == ["echo", "join", "note"]  # type: ignore[arg-type]

    def done(*shards: str) -> records.Fold:
        return records.Fold(done={shard: records.Record("done", shard, 0.0) for shard in shards})

    folds = {"echo": done("0", "1", "2"), "note": done("0", "2"), "join": done("0")}
    domain_of = {name: where[name] for name in folds}
    good, _ = good_shards({"inputs": ["0", "1", "2"], "join": ["0"]}, domain_of, folds)
    assert good == {"inputs": ["0", "2"], "join": ["0"]}


def test_a_tree_lies_in_the_output(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, runs.numbered(1), {"echo": runs.ECHO, "tale": TALE | {"where": "../../elsewhere"}})
    said = runs.hpc("run", spec, code=1).stdout
    assert "outside of the output" in said and not (tmp_path / "elsewhere").exists()


def test_every_file_of_a_tree_is_recorded(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, runs.numbered(1), STAGES)
    runs.hpc("run", spec)
    (run,) = (tmp_path / "runs").glob("t-*")
    fold = runs.fold(Run(run), "tale")
    assert [Path(o.uri).name for o in fold.done["000000"].objects] == ["a.txt", "b.txt", "000000.txt"]
    assert all(Path(o.uri).stat().st_size == o.bytes for o in fold.done["000000"].objects)
