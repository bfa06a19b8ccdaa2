from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from specs import SPEC, errors, one, write

from hpc.batch import places
from hpc.batch.spec import load


def test_paths_count_from_the_spec_and_overrides_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)
    elsewhere = tmp_path / "in"
    monkeypatch.chdir(elsewhere)
    [spec] = load("../x.yaml")
    assert (spec.inputs[0].uri, spec.output, spec.path) == (
        str(tmp_path / "in"), str(tmp_path / "out"), str(tmp_path / "x.yaml"))  # fmt: skip
    [spec] = load("../x.yaml", ["output=../mine", "cluster=a/b.yaml"])
    assert (spec.output, spec.cluster) == (str(tmp_path / "mine"), str(elsewhere / "a/b.yaml"))
    [spec] = load("../x.yaml", [], "c.yaml")
    assert spec.cluster == str(elsewhere / "c.yaml")
    [spec] = load("../x.yaml", [], "h100")
    assert spec.cluster == "h100"
    assert one(tmp_path, SPEC + "cluster: clusters/b.yaml\n").cluster == str(tmp_path / "clusters/b.yaml")
    assert one(tmp_path, SPEC.replace("inputs: in", "inputs: s3://b/c//d/../e")).inputs[0].uri == "s3://b/c//d/../e"


@pytest.mark.parametrize(
    ("inputs", "output", "inside"),
    [
        ("in", "in/out", True), ("in", "in", True), ("in", "inn", False), ("in", "out", False), ("in/..", "out", True),
        ("in/*.mp4", "in/out", False), ("in/*", "in/out", True), ("in/**/*.mp4", "in/out", True),
        ("*/*.mp4", "out", False), ("s3://b/raw", "s3://b/raw/v0", True), ("s3://b/raw/", "s3://b/raw-v0", False),
        ("in/a/*.mp4", "in/b", False),
    ],
)  # fmt: skip
def test_an_output_inside_the_inputs_would_be_read(tmp_path: Path, inputs: str, output: str, inside: bool) -> None:
    (tmp_path / "in/a").mkdir(parents=True)
    content = SPEC.replace("inputs: in", f"inputs: '{inputs}'").replace("output: out", f"output: {output}")
    if inside:
        assert "lies inside: it would be read as input" in errors(tmp_path, content)
    else:
        one(tmp_path, content)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ("~/videos", "'~/videos': ~ and variables are not expanded"),
        ("$DATA/x", "'$DATA/x': ~ and variables are not expanded"),
        ("gs://bucket/x", "'gs://bucket/x': only paths and s3://bucket/prefix are understood"),
        ("s3:///x", "only paths and s3://bucket/prefix"),
        ("none/*.mp4", "DIR/none does not exist (but DIR does)"),
        ("none/deeper", "DIR/none/deeper does not exist (but DIR does)"),
        ("x" * 300, "does not exist"),
        ("''", "'' is not a path"),
    ],
)
def test_inputs_that_cannot_be(tmp_path: Path, inputs: str, message: str) -> None:
    assert message in errors(tmp_path, SPEC.replace("inputs: in", f"inputs: {inputs}"))


def as_nobody(call: Callable[[], object]) -> str:
    """What a call returns to somebody without rights."""
    read, wrote = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            os.write(wrote, repr(call()).encode())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    os.close(wrote)
    with os.fdopen(read) as pipe:
        return pipe.read()


def test_paths_without_permission() -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # pytest's own folders can't be entered by others
    try:
        folder.chmod(0o755)
        (folder / "shut/in").mkdir(parents=True)
        (folder / "file").touch(mode=0o200)
        (folder / "shut").chmod(0o000)
        assert "you may not read it" in as_nobody(lambda: places.unreadable(f"{folder}/file"))
        assert "you may not read it" in as_nobody(lambda: places.unreadable(f"{folder}/shut"))
        assert f"you may not enter {folder}/shut" in as_nobody(lambda: places.unreadable(f"{folder}/shut/in"))
        (folder / "shut").chmod(0o555)
        assert f"you may not write to {folder}/shut" in as_nobody(lambda: places.unwritable(f"{folder}/shut/out/v0"))
        assert as_nobody(lambda: places.unreadable(f"{folder}/shut")) == "[]"
    finally:
        (folder / "shut").chmod(0o755)
        shutil.rmtree(folder)


def test_output_below_a_file(tmp_path: Path) -> None:
    found = errors(tmp_path, SPEC.replace(": out", ": x.yaml/out"))
    assert "DIR/x.yaml/out cannot be made: DIR/x.yaml is a file" in found
