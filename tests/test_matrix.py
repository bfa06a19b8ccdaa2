from __future__ import annotations

from pathlib import Path

from specs import SPEC, errors, one, write

from hpc.batch.spec import load


def test_overrides(tmp_path: Path) -> None:
    spec = one(tmp_path, SPEC, "stages.clips.split.min_clip=3s", "stages.clips.resources={cpus: 8}", "env.A=b=c",
               "inputs=[s3://b/c]", "stages.clips.throttle=")  # fmt: skip
    clips = spec.stages["clips"]
    assert (clips.settings.split.min_clip, clips.resources.cpus, spec.env, clips.throttle) == (3, 8, {"A": "b=c"}, None)
    assert one(tmp_path, SPEC.replace(": in", ": [in, {uri: in}]"), "inputs.1.limit=3").inputs[1].limit == 3
    found = errors(tmp_path, SPEC, "name.x=1", "stages.clips.throttle=[", "inputs={uri: s3://b, lim: 1}", ".=1", "=1")
    assert found.splitlines() == [
        "override 1: name.x: there is nothing to set here: name is 't', not a mapping",
        "override 2: stages.clips.throttle: not YAML: expected the node content, but found '<stream end>', at '['",
        "override 3: inputs.lim: no such key: did you mean limit?",
        "    valid keys: uri, limit, match, group_by",
        "override 4: '.=1' is not KEY=VALUE, such as stages.clips.split.min_clip=3s",
        "override 5: '=1' is not KEY=VALUE, such as stages.clips.split.min_clip=3s",
    ]


def test_a_matrix_gives_a_spec_for_each_combination(tmp_path: Path) -> None:
    matrix = "matrix:\n  stages.clips.split.min_clip: [2s, 4s]\n  stages.clips.encode.crf: [18, 23.5]\n"
    file = write(tmp_path, SPEC + matrix)
    specs = load(file)
    assert [s.name for s in specs] == ["t-2s-18", "t-2s-23.5", "t-4s-18", "t-4s-23.5"]
    assert [(s.stages["clips"].settings.split.min_clip, s.stages["clips"].settings.encode.crf) for s in specs] == [
        (2, 18), (2, 23.5), (4, 18), (4, 23.5)]  # fmt: skip
    assert len({s.hash for s in specs}) == 4
    [same] = load(file, ["matrix={}"])
    assert (same.name, same.hash) == ("t", one(tmp_path).hash)


def test_matrix_values_without_a_name_of_their_own_are_counted(tmp_path: Path) -> None:
    content = SPEC + "matrix: {stages.clips.split: [{min_clip: 2s}, {min_clip: 4s}]}\n"
    assert [s.name for s in load(write(tmp_path, content))] == ["t-1", "t-2"]
    content = SPEC + "matrix: {env.PROMPT: ['what?', 'what!']}\n"
    assert [s.name for s in load(write(tmp_path, content))] == ["t-1", "t-2"]


def test_matrix_mistakes(tmp_path: Path) -> None:
    matrix = "matrix:\n  stages.clips.split.min_clp: [2s, 4s]\n  shards.size:\n  - 1\n  - 1MiB\n"
    found = errors(tmp_path, SPEC + matrix)
    assert found.splitlines()[0] == "DIR/x.yaml:8: stages.clips.split.min_clp: no such key: did you mean min_clip?"
    assert "DIR/x.yaml:10: shards.size: 1 is not a size" in found
    assert len(found.splitlines()) == 3, "each problem once, however many combinations have it"
    assert "matrix.retries: 3 is not a list" in errors(tmp_path, SPEC + "matrix: {retries: 3}")
    assert "matrix.retries: empty" in errors(tmp_path, SPEC + "matrix: {retries: []}")
    assert "not a dotted key" in errors(tmp_path, SPEC + "matrix: {a..b: [1]}")
    big = ", ".join(map(str, range(40)))
    found = errors(tmp_path, SPEC + f"matrix: {{retries: [{big}], shards.size: [{big}]}}")
    assert "more than 1000 combinations" in found
    swept = SPEC + "matrix: {stages.clips.split: [{min_clip: 2s}]}"
    assert "override 1: stages.clips.split.crop: the spec's matrix gives values for stages.clips.split" in errors(
        tmp_path, swept, "stages.clips.split.crop=1s")  # fmt: skip
