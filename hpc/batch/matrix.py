"""What changes a spec before it is checked: overrides from the command line, and the combinations of its `matrix`."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any

from msgspec import Meta

from hpc.batch import check, yaml_lines
from hpc.batch.yaml_lines import Node, Problem

MAX = 1000
"""Combinations."""
Matrix = dict[str, Annotated[list[Any], Meta(min_length=1)]]


def override(root: Node, given: str, file: str, problems: list[Problem]) -> Node:
    """`root` with "dotted.key=value" set, the value read as YAML. file: what to call the override in messages."""
    key, equals, value = given.partition("=")
    if not equals or not all(key.split(".")):
        problems.append(Problem(file, 0, "", f"{given!r} is not KEY=VALUE, such as stages.clips.split.min_clip=3s"))
        return root
    before = len(problems)
    node = yaml_lines.parse(value, file, problems)
    if node is None or len(problems) > before:
        problems[before:] = [Problem(file, 0, key, p.message) for p in problems[before:]]
        return root
    return yaml_lines.put(root, key, _placed(node, file), problems)


def _placed(node: Node, file: str) -> Node:
    """Without line numbers: an override has none worth showing."""
    value = node.value
    if isinstance(value, dict):
        value = {key: _placed(child, file) for key, child in value.items()}
    elif isinstance(value, list):
        value = [_placed(child, file) for child in value]
    return Node(value, file, 0)


def expand(root: Node, overrides: Iterable[str], problems: list[Problem]) -> Iterator[tuple[Node, str]]:
    """Every combination as (spec without `matrix`, what to append to its name)."""
    tree = Node({key: node for key, node in root.value.items() if key != "matrix"}, root.file, root.line)
    matrix = root.value.get("matrix")
    before = len(problems)
    if matrix is not None:
        check.convert(matrix, Matrix, "matrix", problems)
    if matrix is None or len(problems) > before or not matrix.value:
        yield tree, ""
        return
    for number, override in enumerate(overrides, 1):
        changed = override.partition("=")[0]
        for key in matrix.value:
            if f"{changed}.".startswith(f"{key}."):
                problems.append(Problem(f"override {number}", 0, changed, f"the spec's matrix gives values for {key}, "
                    "which would replace this one: override the matrix instead, matrix={}"))  # fmt: skip
    combinations = list(itertools.islice(itertools.product(*(n.value for n in matrix.value.values())), MAX + 1))
    if len(combinations) > MAX:
        problems.append(matrix.problem("matrix", f"more than {MAX} combinations"))
        return
    names = ["-".join(map(_word, values)) for values in combinations]
    if len(set(names)) < len(names) or not all(0 < len(name) <= 40 for name in names):
        names = [str(number) for number in range(1, len(names) + 1)]
    for values, name in zip(combinations, names, strict=True):
        made = tree
        for key, value in zip(matrix.value, values, strict=True):
            if not all(key.split(".")):
                problems.append(value.problem(f"matrix.{key}", "not a dotted key like stages.clips.split.min_clip"))
                continue
            made = yaml_lines.put(made, key, value, problems)
        yield made, f"-{name}"


def _word(value: Node) -> str:
    """A value as part of a name; empty for lists and mappings."""
    if isinstance(value.value, (list, dict)):
        return ""
    shown = value.value if isinstance(value.value, str) else check.shown(value)
    return re.sub(r"[^A-Za-z0-9.]+", "-", shown).strip("-.")
