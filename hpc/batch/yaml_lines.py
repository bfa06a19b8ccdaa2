"""YAML that remembers where every value stands, and the problems that are reported at those places.

Scalars follow the core schema of YAML 1.2: `yes`, `on`, `1:30` and `0755` are text here, never a boolean, 5400 or 493.
What PyYAML lets pass is refused: a key given twice, values that contain themselves, files that unfold to a
million values through aliases, tags. Anchors, aliases and merge keys (`<<: *base`) work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import msgspec
import yaml

MAX_TEXT = 1 << 20
"""Characters in a file."""
MAX_VALUES = 20_000
"""Values in a file once its aliases are unfolded."""
MAX_DEPTH = 40


class Problem(msgspec.Struct, frozen=True):
    """One thing that is wrong, for a person."""

    file: str
    """As it was given, or "override 2" for the second override on the command line."""
    line: int
    """Counted from 1; 0 if there is none to show."""
    where: str
    """Dotted key: "stages.clips.split.min_clip"; may be empty."""
    message: str
    """What was given, what is allowed, what to do."""

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (place, self.where, self.message) if part)


class SpecErrors(Exception):
    """Everything that is wrong with a spec or a cluster preset, at once, in the order of the file."""

    def __init__(self, errors: Sequence[Problem]) -> None:
        def order(problem: Problem) -> tuple[int, int]:
            override, _, number = problem.file.partition(" ")
            return (int(number) if override == "override" and number.isdecimal() else 0, problem.line)

        self.errors = sorted(dict.fromkeys(errors), key=order)
        super().__init__("\n".join(map(str, self.errors)))


class Node(msgspec.Struct, frozen=True):
    """A value and its place."""

    value: Any
    """None, bool, int, float, str, list[Node] or dict[str, Node]."""
    file: str
    line: int
    """For a value in a mapping the line of its key: that is where one looks for it."""

    def problem(self, where: str, message: str) -> Problem:
        return Problem(self.file, self.line, where, message)

    def entries(self) -> dict[str, Node]:
        """Of a mapping; none for any other value."""
        return self.value if isinstance(self.value, dict) else {}

    def below(self, key: str) -> Node:
        """What a mapping gives for a key; a null for what it doesn't."""
        return self.entries().get(key) or Node(None, self.file, self.line)

    def plain(self) -> Any:
        """The value without places."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        return [node.plain() for node in self.value] if isinstance(self.value, list) else self.value


_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u2028\u2029]")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)$|0x[0-9a-fA-F]+$|0o[0-7]+$")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$")
_CORE = {
    "null": (re.compile(r"(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    "bool": (re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    "int": (_INT, list("-+0123456789")),
    "float": (_FLOAT, list("-+.0123456789")),
    "merge": (re.compile(r"<<$"), ["<"]),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}  # noqa: RUF012  none of YAML 1.1's


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would read as something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _tag, (_regexp, _first) in _CORE.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _regexp, _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _regexp, _first)


def dump(data: Any) -> str:
    """Plain values as YAML that `parse` reads back as the same values."""
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


def parse(text: str, file: str, problems: list[Problem]) -> Node | None:
    """The document with places. Reports to `problems`; None if nothing can be made of the text."""
    if len(text) > MAX_TEXT:
        problems.append(Problem(file, 0, "", f"{len(text)} characters are too many: {MAX_TEXT} are allowed"))
        return None
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.YAMLError as error:
        problems.append(_syntax(error, text, file))
        return None
    except RecursionError:
        problems.append(Problem(file, 0, "", f"nested too deeply: {MAX_DEPTH} levels are allowed"))
        return None
    if root is None:
        return Node(None, file, 1)
    return _Build(file, problems).node(root, "", root.start_mark.line + 1, 0)


def read(path: str, problems: list[Problem]) -> Node | None:
    """`parse` for a file."""
    try:
        with open(path, encoding="utf-8") as f:  # noqa: PTH123  pathlib costs 10 ms of start-up
            text = f.read(MAX_TEXT + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"not a text file ({error})"
        problems.append(Problem(path, 0, "", f"cannot be read: {reason}"))
        return None
    return parse(text, path, problems)


def put(root: Node, key: str, value: Node, problems: list[Problem]) -> Node:
    """A copy of `root` with the value at a dotted key replaced or added; numbers count into lists."""

    def inside(node: Node, parts: list[str], done: str) -> Node:
        if not parts:
            return value
        part, *rest = parts
        where = f"{done}.{part}" if done else part
        if isinstance(node.value, list) and part.isdecimal() and int(part) < len(node.value):
            items = list(node.value)
            items[int(part)] = inside(items[int(part)], rest, where)
            return Node(items, node.file, node.line)
        if node.value is None or isinstance(node.value, dict):
            entries = dict(node.value or {})
            entries[part] = inside(entries.get(part, Node(None, value.file, value.line)), rest, where)
            return Node(entries, node.file, node.line)
        what = f"a list of {len(node.value)}" if isinstance(node.value, list) else repr(node.value)
        problems.append(value.problem(key, f"there is nothing to set here: {done} is {what}, not a mapping"))
        return node

    return inside(root, key.split("."), "")


class _Build:
    """Turns PyYAML's nodes into ours. A class because it counts values over the whole file."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file, self.problems, self.values = file, problems, 0

    def report(self, line: int, where: str, message: str) -> None:
        self.problems.append(Problem(self.file, line, where, message))

    def node(self, raw: yaml.Node, where: str, line: int, depth: int) -> Node:
        self.values += 1
        if self.values > MAX_VALUES or depth > MAX_DEPTH:
            if self.values < math.inf:
                self.report(line, "", f"more than {MAX_VALUES} values or {MAX_DEPTH} levels deep: an alias (*name) "
                                      "unfolds too often, or into itself")  # fmt: skip
            self.values = math.inf  # type: ignore[assignment]  # say it once, and build nothing more
            return Node(None, self.file, line)
        if isinstance(raw, yaml.MappingNode) and raw.tag == "tag:yaml.org,2002:map":
            return Node(self.mapping(raw, where, depth), self.file, line)
        if isinstance(raw, yaml.SequenceNode) and raw.tag == "tag:yaml.org,2002:seq":
            items = [
                self.node(child, f"{where}.{i}" if where else str(i), child.start_mark.line + 1, depth + 1)
                for i, child in enumerate(raw.value)
            ]
            return Node(items, self.file, line)
        return Node(self.scalar(raw, where, line), self.file, line)

    def mapping(self, raw: yaml.MappingNode, where: str, depth: int) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for key, child in raw.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                self.report(line, where, "a key must be plain text, not a list or a mapping")
            elif key.tag == "tag:yaml.org,2002:merge":
                for part in child.value if isinstance(child, yaml.SequenceNode) else [child]:
                    base = self.node(part, where, part.start_mark.line + 1, depth + 1).value
                    if isinstance(base, dict):
                        merged = base | merged
                    else:
                        self.report(line, where, "`<<` takes a mapping or a list of mappings, such as `<<: *base`")
            elif key.value in own:
                first = own[key.value].line
                self.report(line, f"{where}.{key.value}" if where else key.value,
                            f"given twice, first on line {first}: keep one of them")  # fmt: skip
            else:
                below = f"{where}.{key.value}" if where else key.value
                self.text(key.value, below, line)
                own[key.value] = self.node(child, below, line, depth + 1)
        return merged | own if merged else own

    def scalar(self, raw: yaml.Node, where: str, line: int) -> Any:
        kind, value = raw.tag.removeprefix("tag:yaml.org,2002:"), raw.value
        try:
            if kind == "null" and _CORE["null"][0].match(value):
                return None
            if kind == "bool" and _CORE["bool"][0].match(value):
                return value.lower() == "true"
            if kind == "int" and _INT.match(value):
                return int(value, 0)
            if kind == "float" and _FLOAT.match(value) and math.isfinite(float(value)):
                return float(value)
        except ValueError:  # Python reads integers of at most 4300 digits
            pass
        if kind in ("str", "merge"):
            return self.text(value, where, line)
        if kind in ("int", "float") and (_INT.match(value) or _FLOAT.match(value)):
            self.report(line, where, f"{value[:40]} is too large a number")
        else:
            self.report(line, where, f"the tag {raw.tag} is not allowed here: write plain values")
        return None

    def text(self, value: str, where: str, line: int) -> str:
        if _CONTROL.search(value):
            self.report(line, where, f"{value[:40]!r} has control characters in it")
            return ""
        return value


def _syntax(error: yaml.YAMLError, text: str, file: str) -> Problem:
    """PyYAML's complaint in one sentence with the line it is about."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        place = getattr(error, "position", 0)
        return Problem(file, text.count("\n", 0, place) + 1, "", f"not YAML: {getattr(error, 'reason', error)}")
    lines = text.splitlines() or [""]
    line = lines[min(mark.line, len(lines) - 1)]
    if "\t" in line[: len(line) - len(line.lstrip())]:
        return Problem(file, mark.line + 1, "", "a tab: YAML is indented with spaces")
    what = getattr(error, "problem", None) or "cannot be read"
    context = getattr(error, "context", None)
    start = getattr(error, "context_mark", None)
    if context and start is not None and start.line != mark.line:
        what += f" ({context} that begins on line {start.line + 1})"
    if "another document" in what:
        what = "`---` begins a second document: one file holds one"
    elif "mapping values" in what:
        what = 'a second ": " on the line, or wrong indentation; text with ": " in it needs quotes'
    elif "undefined alias" in what or "scanning an alias" in (context or "") or "cannot start any token" in what:
        what += '; text that begins with one of * & ! % @ ` { [ needs quotes: "*.mp4"'
    return Problem(file, mark.line + 1, "", f"not YAML: {what}, at {line.strip()[:60]!r}")
