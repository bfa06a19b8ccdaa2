"""Specs for tests: a small right one, and what loading a changed one says."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from hpc.batch.spec import Spec, SpecErrors, load

SPEC = """\
name: t
inputs: in
output: out
stages:
  clips: {kind: curate.clips, split: {min_clip: 2s}}
  shard: {kind: curate.shard, needs: clips}
"""


def write(folder: Path, content: str = SPEC) -> Path:
    """The spec as a file with the inputs that it names."""
    (folder / "in").mkdir(exist_ok=True)
    file = folder / "x.yaml"
    file.write_text(textwrap.dedent(content))
    return file


def one(folder: Path, content: str = SPEC, *overrides: str) -> Spec:
    [spec] = load(write(folder, content), overrides)
    return spec


def errors(folder: Path, content: str, *overrides: str) -> str:
    """All problems as text, the folder shortened."""
    with pytest.raises(SpecErrors) as caught:
        load(write(folder, content), overrides)
    return str(caught.value).replace(str(folder), "DIR")
