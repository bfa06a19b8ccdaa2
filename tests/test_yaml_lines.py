from __future__ import annotations

from pathlib import Path

import pytest
from specs import errors, one

from hpc.batch import yaml_lines
from hpc.batch.spec import SpecErrors, load


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "x.yaml:1: a job spec is a mapping with the keys name, "),
        ("- a", "x.yaml:1: a job spec is a mapping"),
        ("name: t\nstages:\n\tclips: {}", "x.yaml:3: a tab: YAML is indented with spaces"),
        ("name: t: u", 'x.yaml:1: not YAML: a second ": " on the line'),
        ("name: [t", "x.yaml:1: not YAML: expected ',' or ']'"),
        ("name: t\n---\nname: u", "x.yaml:2: not YAML: `---` begins a second document"),
        ("name: *t", "x.yaml:1: not YAML: found undefined alias 't'"),
        ("name: !!python/object:os.system t", "x.yaml:1: name: the tag tag:yaml.org,2002:python/object:os.system is "),
        ("name: !env t", "x.yaml:1: name: the tag !env is not allowed"),
        ('name: "a\\0b"', "x.yaml:1: name: 'a\\x00b' has control characters"),
        ('name: "\\ud800"', "x.yaml:1: name: '\\ud800' has control characters"),
        ("? [a]\n: b", "x.yaml:1: a key must be plain text"),
        ("retries: 1e999", "retries: 1e999 is too large a number"),
        (f"retries: {'9' * 5000}", "999 is too large a number"),
        ("&a [*a]", "40 levels deep: an alias (*name) unfolds too often, or into itself"),
        ("[" * 5000, "nested too deeply"),
        ("a: &a [1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d]", "more than 20000 values"),
        ("<<: 3", "x.yaml:1: `<<` takes a mapping"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_or_too_much_of_it(tmp_path: Path, content: str, message: str) -> None:
    assert message in errors(tmp_path, content)


def test_files_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_bytes(b"name: \xff\xfe")
    with pytest.raises(SpecErrors, match="cannot be read: not a text file"):
        load(tmp_path / "x.yaml")
    with pytest.raises(SpecErrors, match=r"none\.yaml: cannot be read: No such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(SpecErrors, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_scalars_are_those_of_yaml_1_2() -> None:
    source = "[yes, off, 1:30, 0755, 2024-01-01, 1_000, .inf, 0x1f, 0o17, 1e3, .5, -3, +2, True, ~, NULL]"
    found = yaml_lines.parse(source, "f", problems := [])
    assert found is not None and not problems
    texts = ["yes", "off", "1:30", "0755", "2024-01-01", "1_000", ".inf"]
    assert found.plain() == [*texts, 31, 15, 1000.0, 0.5, -3, 2, True, None, None]


def test_anchors_and_merge_keys(tmp_path: Path) -> None:
    spec = one(tmp_path, """\
        name: t
        inputs: in
        output: out
        stages:
          a: &a {kind: curate.clips, throttle: 3, split: &split {min_clip: 3s, crop: 0s}}
          b: {<<: *a, throttle: 4, split: {<<: [{crop: 1s}, *split], max_clip: 9s}}
        """)  # fmt: skip
    b = spec.stages["b"]
    assert (b.throttle, b.settings.split.min_clip, b.settings.split.crop, b.settings.split.max_clip) == (4, 3, 1, 9)
