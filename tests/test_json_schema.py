from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest
from specs import SPEC

from hpc.batch import yaml_lines
from hpc.batch.cluster import cluster_schema
from hpc.batch.spec import load, schema

JOBS = Path(__file__).parent.parent / "jobs"
VALIDATOR = jsonschema.Draft202012Validator(schema())
SHIPPED = {"hpc schema": ("job.schema.json", schema),
           "hpc schema --cluster": ("clusters/cluster.schema.json", cluster_schema)}  # fmt: skip


@pytest.mark.parametrize("command", SHIPPED)
def test_the_shipped_schemas_are_up_to_date(command: str) -> None:
    name, make = SHIPPED[command]
    shipped = json.loads((JOBS / name).read_text())
    assert shipped == make(), f"the schema has changed: {command} > jobs/{name}"
    jsonschema.Draft202012Validator.check_schema(shipped)


@pytest.mark.parametrize("make", [schema, cluster_schema])
def test_every_key_is_explained(make: Callable[[], dict]) -> None:
    found = make()
    structs = {"": found} | {name: shape for name, shape in found["$defs"].items() if name.startswith("batch.")}
    for name, shape in structs.items():
        assert not [key for key, field in shape["properties"].items() if "description" not in field], name


@pytest.mark.parametrize("file", sorted(JOBS.glob("*.yaml")), ids=lambda p: p.name)
def test_shipped_specs_are_right(file: Path) -> None:
    assert load(file, check_paths=False)
    VALIDATOR.validate(yaml_lines.parse(file.read_text(), file.name, []).plain())


@pytest.mark.parametrize(
    "change",
    ["stages.clips.splt={}", "stages.clips.split.min_clip=2", "stages.clips.kind=curate.clip", "retries=-1", "x=1",
     "stages.clips.split.detector=transnet", "stages.clips.resources.cpus=0", "name=a b", "inputs=[]", "stages={}"],
)  # fmt: skip
def test_editors_see_the_mistakes_too(change: str) -> None:
    problems: list[yaml_lines.Problem] = []
    root = yaml_lines.parse(SPEC, "f", problems)
    key, _, value = change.partition("=")
    node = yaml_lines.parse(value, "f", problems)
    assert root is not None and node is not None
    VALIDATOR.validate(root.plain())
    assert not VALIDATOR.is_valid(yaml_lines.put(root, key, node, problems).plain())
