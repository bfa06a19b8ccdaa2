from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from specs import SPEC, errors, one, write

from hpc.batch import yaml_lines
from hpc.batch.cluster import load_cluster
from hpc.batch.spec import KINDS, Resources, Spec, SpecErrors, fingerprint, load, schema, text
from hpc.curate.settings import Clips, Split
from hpc.data.units import Bytes, Seconds

JOBS = Path(__file__).parent.parent / "jobs"
VALIDATOR = jsonschema.Draft202012Validator(schema())


def test_the_quickstart_is_what_it_says() -> None:
    [spec] = load(JOBS / "quickstart.yaml")
    assert [i.uri for i in spec.inputs] == [str(JOBS / "quickstart" / "trailer_bbb.mp4")]
    assert spec.output == str(JOBS.parent / "out" / "quickstart")
    assert list(spec.stages) == ["clips", "shard"]
    assert spec.stages["shard"].needs == ("clips",)
    assert spec.stages["clips"].settings == Clips(split=Split(min_clip=Seconds(1), min_frames=24))
    assert spec.stages["clips"].resources == Resources(cpus=2, memory=Bytes(4 << 30), time=Seconds(4 * 3600))
    assert (spec.cluster, spec.retries, spec.path) == ("local", 0, str(JOBS / "quickstart.yaml"))


@pytest.mark.parametrize("file", sorted(JOBS.glob("*.yaml")), ids=lambda file: file.stem)
def test_specs_to_copy_are_right(file: Path) -> None:
    """And every stage fits on a node of the preset to copy."""
    [spec] = load(file, check_paths=False)
    cluster = load_cluster("h100", file)
    for stage in spec.stages.values():
        assert cluster.resources(stage) == stage.resources


CLASSIC = """\
name: my spec
inputs: [missing.mp4, {uri: s3://bucket/raw, limt: 3}, in]
output: $SCRATCH/out
stages:
  clips:
    kind: curate.clip
    resources: {cpus: 0, memory: 4}
  cut:
    kind: curate.clips
    min_clip: 2s
    split: {detector: transnet, min_clip: 2, threshold: "0.4", max_clip: 1:30}
  Shard: {kind: curate.shard, needs: [cut, clps], shuffle: yes, resources: {memory: 1MB}}
  a: {kind: curate.shard, needs: b}
  b: {kind: curate.shard, needs: a}
  c: curate.shard
env: {OMP_NUM_THREADS: 4, TOKEN: abc}
secrets: [TOKEN]
notify: {webhook: https://hooks.example.org/x}
retries: -1
retries: 2
"""

ALL_AT_ONCE = """\
DIR/x.yaml:1: name: 'my spec' is not a name: at most 64 letters, digits, . _ and -
DIR/x.yaml:2: inputs.1.limt: no such key: did you mean limit?
    valid keys: uri, limit, match, group_by
DIR/x.yaml:2: inputs.0: DIR/missing.mp4 does not exist (but DIR does)
DIR/x.yaml:3: output: '$SCRATCH/out': ~ and variables are not expanded, a spec means the same for everyone; \
write the path out, or give it on the command line, where the shell expands it: "output=$SCRATCH/out"
DIR/x.yaml:6: stages.clips.kind: 'curate.clip': no such kind: did you mean curate.clips?
    valid kinds: KINDS, or package.module:Class for one of your own
DIR/x.yaml:7: stages.clips.resources.cpus: 0 is not a whole number >= 1
DIR/x.yaml:7: stages.clips.resources.memory: 4 is not a size: write "512MiB" or "64GiB" \
(units: B, KiB, KB, MiB, MB, GiB, GB, TiB, TB, PiB, PB)
DIR/x.yaml:10: stages.cut.min_clip: no such key; there is one in `split`
    valid keys: CLIPS
DIR/x.yaml:11: stages.cut.split.detector: 'transnet' is not one of transnetv2, content, adaptive, stride: \
did you mean transnetv2?
DIR/x.yaml:11: stages.cut.split.threshold: '0.4' is not a number
DIR/x.yaml:11: stages.cut.split.min_clip: 2 is not a duration: write "2s", "90min" or "1h30m" \
(units: ms, s, m, min, h, d)
DIR/x.yaml:11: stages.cut.split.max_clip: '1:30' is not a duration: write "2s", "90min" or "1h30m" \
(units: ms, s, m, min, h, d)
DIR/x.yaml:12: stages.Shard: 'Shard' is not a stage name: a-z first, then at most 31 of a-z 0-9 _ -
DIR/x.yaml:12: stages.Shard.resources.memory: 976.6 KiB is too little: a worker needs 64MiB at least
DIR/x.yaml:12: stages.Shard.shuffle: 'yes' is not true or false: write true
DIR/x.yaml:12: stages.Shard.needs: 'clps': no such stage: did you mean clips?
    valid stages: clips, cut, a, b, c
DIR/x.yaml:13: stages.a.needs: needs go round in a circle: a -> b -> a
DIR/x.yaml:15: stages.c: 'curate.shard' is not a stage: write {kind: ...}
DIR/x.yaml:16: env.OMP_NUM_THREADS: 4 is not text: put it in quotes, "4"
DIR/x.yaml:16: env.TOKEN: is in `secrets` too: a secret's value comes from the shell and is never written down
DIR/x.yaml:18: notify.webhook: the URL is a secret: put it into a variable, list the name in `secrets`, \
and give the name here
DIR/x.yaml:19: retries: -1 is not a whole number >= 0
DIR/x.yaml:20: retries: given twice, first on line 19: keep one of them
override 1: stages.cut.split.crp: no such key: did you mean crop?
    valid keys: SPLIT
override 2: 'nonsense' is not KEY=VALUE, such as stages.clips.split.min_clip=3s"""


def test_classic_mistakes_are_all_reported_at_once(tmp_path: Path) -> None:
    found = errors(tmp_path, CLASSIC, "stages.cut.split.crp=1s", "nonsense")
    keys = ("kind", "needs", "resources", "required", "throttle", "starts", "image", *Clips.__struct_fields__)
    expected = ALL_AT_ONCE.replace("KINDS", ", ".join(KINDS)).replace("CLIPS", ", ".join(keys))
    assert found == expected.replace("SPLIT", ", ".join(type(Clips().split).__struct_fields__))


def test_unions_choose_by_shape(tmp_path: Path) -> None:
    spec = one(tmp_path, SPEC.replace("inputs: in", "inputs: [in, {uri: in, limit: 2, match: '*.mp4'}]"))
    assert [(i.limit, i.match) for i in spec.inputs] == [(None, None), (2, "*.mp4")]
    assert one(tmp_path, SPEC.replace("inputs: in", "inputs: {uri: in, limit: 2}")).inputs[0].limit == 2
    assert "inputs: 3 is not a path or an s3:// URI" in errors(tmp_path, SPEC.replace("inputs: in", "inputs: 3"))
    assert "inputs: empty: give one at least" in errors(tmp_path, SPEC.replace("inputs: in", "inputs: []"))
    assert "stages: empty" in errors(tmp_path, "name: t\ninputs: in\noutput: out\nstages: {}")
    assert "x.yaml:1: output: missing: give a path" in errors(tmp_path, SPEC.replace("output: out\n", ""))


def test_a_record_loads_after_its_inputs_are_gone(tmp_path: Path) -> None:
    file = write(tmp_path)
    (tmp_path / "in").rmdir()
    [spec] = load(file, check_paths=False)
    assert spec.inputs[0].uri == str(tmp_path / "in")


def test_stages_come_in_topological_order_else_as_written(tmp_path: Path) -> None:
    spec = one(tmp_path, """\
        name: t
        inputs: in
        output: out
        stages:
          last: {kind: curate.shard, needs: [b, a]}
          b: {kind: curate.clips}
          a: {kind: curate.clips}
          mid: {kind: curate.shard, needs: b}
        """)  # fmt: skip
    assert list(spec.stages) == ["b", "a", "last", "mid"]
    assert spec.stages["last"].needs == ("b", "a")
    itself = SPEC.replace("split:", "needs: clips, split:")
    assert "needs go round in a circle: clips -> clips" in errors(tmp_path, itself)


def test_only_trainers_are_started_until_they_save(tmp_path: Path) -> None:
    message = "stages.clips.starts: curate.clips has no ranks that go on from a checkpoint: leave this out"
    assert message in errors(tmp_path, SPEC, "stages.clips.starts=5")
    assert one(tmp_path, SPEC, "stages.clips.starts=3").stages["clips"].starts == 3


def test_only_trainers_take_several_nodes(tmp_path: Path) -> None:
    message = "stages.clips.resources.nodes: a task of curate.clips runs on one node"
    assert message in errors(tmp_path, SPEC, "stages.clips.resources.nodes=2")


def test_notify_and_secrets(tmp_path: Path) -> None:
    spec = one(tmp_path, SPEC + "secrets: [HOOK]\nnotify: {webhook: HOOK, mail: me@example.org}")
    assert (spec.secrets, spec.notify.webhook, spec.notify.mail) == (("HOOK",), "HOOK", "me@example.org")
    found = errors(tmp_path, SPEC + "secrets: [HOOK, 1A]\nnotify: {webhook: HOK, mail: '-x y'}")
    assert "notify.webhook: no such secret: did you mean HOOK?" in found
    assert "secrets.1: '1A' is not the name of an environment variable" in found
    assert "notify.mail: '-x y' is not a mail address" in found
    assert "env.A B: 'A B' is not the name of an environment variable" in errors(tmp_path, SPEC + "env: {A B: c}")


def test_names_end_where_they_end(tmp_path: Path) -> None:
    assert "name: 't\\n' is not a name" in errors(tmp_path, SPEC.replace("name: t", 'name: "t\\n"'))


def test_the_hash_is_of_what_the_spec_means(tmp_path: Path) -> None:
    spec = one(tmp_path)
    assert len(spec.hash) == 8
    other = tmp_path / "other"
    other.mkdir()
    moved = SPEC.replace(": in", ": ../in").replace(": out", f": {tmp_path}/./out").replace(": t", ":   't' # x")
    assert one(other, moved).hash == spec.hash
    assert one(tmp_path, SPEC.replace("min_clip: 2s", "min_clip: 2000ms, crop: 0.5s")).hash == spec.hash
    assert one(tmp_path, SPEC + "cluster: h100").hash == spec.hash
    for change in ("name=u", "retries=1", "stages.clips.split.min_clip=3s", "env.A=b", "output=elsewhere"):
        assert one(tmp_path, SPEC, change).hash != spec.hash


def test_the_resolved_text_loads_as_the_same_spec(tmp_path: Path) -> None:
    content = SPEC + "env: {A: 'yes', B: '0o17', C: '1e3', D: ' x', E: 'a: b', F: \"l1\\nl2\", G: '~', H: '', I: '='}\n"
    spec = one(tmp_path, content, "shards.task=90s", "stages.clips.split.crop=333ms", "retries=2")
    (tmp_path / "again").mkdir()
    [again] = load(write(tmp_path / "again", text(spec)))
    assert msgspec.structs.replace(again, path=spec.path) == spec
    assert text(again) == text(spec)


def test_a_fingerprint_changes_with_what_decides_on_the_output(tmp_path: Path) -> None:
    def prints(content: str = SPEC, *overrides: str) -> tuple[str, str]:
        spec = one(tmp_path, content, *overrides)
        return fingerprint(spec, "clips"), fingerprint(spec, "shard")

    clips, shard = prints()
    assert len(clips) == 12
    for neutral in ("name=u", "output=v", "stages.clips.resources.cpus=9", "retries=3", "stages.shard.required=0.5",
                    "stages.clips.split.min_clip=2000ms", "stages.clips.throttle=4", "shards.size=1MiB"):  # fmt: skip
        assert prints(SPEC, neutral) == (clips, shard), neutral
    assert prints(SPEC, "stages.shard.tar=1GiB")[0] == clips
    assert prints(SPEC, "stages.shard.tar=1GiB")[1] != shard
    deep = prints(SPEC, "stages.clips.split.min_clip=3s")
    assert deep[0] != clips and deep[1] != shard
    renamed = one(tmp_path, SPEC.replace("  clips:", "  cut:").replace("needs: clips", "needs: cut"))
    assert (fingerprint(renamed, "cut"), fingerprint(renamed, "shard")) == (clips, shard), "names decide on nothing"


FULL = {
    "name": "t", "inputs": ["in", {"uri": "s3://b/c", "limit": 3}], "output": "out", "cluster": "h100", "retries": 1,
    "stages": {
        "clips": {"kind": "curate.clips", "split": {"crop": "2s", "threshold": 0.5}, "resources": {"memory": "1GiB"}},
        "shard": {"kind": "curate.shard", "needs": ["clips"], "required": 0.5, "throttle": 2, "shuffle": False},
    },
    "shards": {"size": "1MiB", "task": "5m"}, "env": {"A": "b"}, "secrets": ["S"],
    "notify": {"mail": "a@b", "webhook": "S"}, "matrix": {"retries": [1, 2], "stages.clips.split.crop": ["1s"]},
}  # fmt: skip
VALUES = st.one_of(
    st.sampled_from([None, True, False, 0, -1, 7, 10**400, 0.5, 1e308, -0.0, "", "yes", "2s", "3GiB", "9" * 400 + "s",
                     "~/x", "clips", "curate.shard", "a.b:C", "<<", "$x", "s3://", "*", [], {}, [[]], {"a": {}}, [None],
                     ["in"]]),
    st.text(max_size=8), st.integers(), st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip


def spots(value: object, path: tuple = ()) -> list[tuple]:
    """The path of every value in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(spot for key, child in inner for spot in spots(child, (*path, key)))][0 if path else 1 :]


@st.composite
def mutants(draw: st.DrawFn) -> dict:
    document = json.loads(json.dumps(FULL))
    for _ in range(draw(st.integers(0, 4))):
        *above, last = draw(st.sampled_from(spots(document) or [("name",)]))
        parent = document
        for key in above:
            parent = parent[key]
        action = draw(st.sampled_from(["delete", "replace", "replace", "rename", "wrap"]))
        if action == "replace" or last not in (parent if isinstance(parent, dict) else range(len(parent))):
            parent[last] = copy.deepcopy(draw(VALUES))
        elif action == "delete":
            del parent[last]
        elif action == "wrap":
            parent[last] = draw(st.sampled_from([[parent[last]], {"uri": parent[last]}, [parent[last]] * 2]))
        elif isinstance(parent, dict):
            parent[draw(st.text(max_size=5) | st.sampled_from(["a.b", "kind", "<<", "x" * 33]))] = parent.pop(last)
    return document


FEW = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def load_or_explain(file: Path, overrides: list[str]) -> list[Spec]:
    """Specs, or none after problems that can be shown: nothing else may happen."""
    try:
        specs = load(file, overrides, check_paths=False)
    except SpecErrors as caught:
        assert caught.errors and str(caught).encode()
        assert all(p.message and (p.file == str(file) or p.file.startswith("override ")) for p in caught.errors)
        return []
    for spec in specs:
        VALIDATOR.validate(yaml_lines.parse(text(spec), "f", []).plain())  # type: ignore[union-attr]
        again = file.with_name("again.yaml")
        again.write_text(text(spec))
        assert [s.hash for s in load(again, check_paths=False)] == [spec.hash]
    return specs


@FEW
@given(mutants())
def test_any_spec_is_right_or_explained(tmp_path: Path, document: dict) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(document))
    specs = load_or_explain(file, [])
    if specs and not document.get("matrix"):
        VALIDATOR.validate(yaml_lines.parse(file.read_text(), "f", []).plain())  # type: ignore[union-attr]


@FEW
@given(st.data())
def test_any_text_is_a_spec_or_explained(tmp_path: Path, data: st.DataObject) -> None:
    file = tmp_path / "x.yaml"
    content = SPEC + "env: {A: &a b, C: *a}\nmatrix: {retries: [1, 2]}\n"
    for _ in range(data.draw(st.integers(0, 3))):
        first = data.draw(st.integers(0, len(content)))
        last = data.draw(st.integers(first, min(first + 6, len(content))))
        between = data.draw(st.text(max_size=4) | st.text("{}[]:,&*!<-? \n\t'\"#", max_size=4))
        content = content[:first] + between + content[last:]
    file.write_bytes(content.encode("utf-8", "surrogatepass"))
    keys = st.sampled_from(["name", "stages.clips.split", "inputs.0", "matrix", "a..b", "env.A", "stages.x.y.z", ""])
    override = data.draw(st.none() | st.tuples(keys, st.text(max_size=6)).map("=".join))
    load_or_explain(file, [] if override is None else [override])


def test_importing_needs_nothing_heavy() -> None:
    code = "import sys, hpc.batch.spec, hpc.batch.cluster; print([m for m in sys.modules if m in sys.argv])"
    heavy = ["torch", "numpy", "av", "pyarrow", "boto3", "rich", "submitit", "jsonschema"]
    done = subprocess.run([sys.executable, "-c", code, *heavy], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
