"""From YAML nodes to typed structs, collecting everything that is wrong instead of stopping at the first thing.

The types are what msgspec understands: structs, `X | None` and other unions, Literal, dict, list, tuple, int, float,
str, bool with msgspec.Meta bounds, and the two types with units, Seconds and Bytes. Text may be marked as one that a
file can hold: it is read here, so that a spec is what it was whatever becomes of the file. `plain` is the way back.
"""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from hpc.batch.yaml_lines import Node, Problem
from hpc.data.units import Bytes, Seconds

WORDS = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    Seconds: 'a duration such as "90s" or "1h30m"',
    Bytes: 'a size such as "512MiB" or "64GiB"',
}


def convert(node: Node, kind: Any, where: str, problems: list[Problem]) -> Any:
    """The node's value as the type `kind`. What is wrong goes to `problems`; the value is None then."""
    bare, metas = unwrap(kind)
    origin, args = get_origin(bare), get_args(bare)
    before = len(problems)
    if bare is Any:
        return node.plain()
    if origin in (Union, types.UnionType):
        return _union(node, kind, args, where, problems)
    if isinstance(node.value, dict) and has(kind, "file"):
        return _content(node, where, problems)
    if is_struct(bare):
        values = fields(node, [bare], where, problems)
        return build(bare, values, node, where, problems) if len(problems) == before else None
    if origin is dict:
        if not isinstance(node.value, dict):
            problems.append(node.problem(where, refusal(node, kind)))
            return None
        made: Any = {}
        for name, child in node.value.items():
            below = _join(where, name)
            convert(Node(name, child.file, child.line), args[0], below, problems)
            made[name] = convert(child, args[1], below, problems)
    elif origin in (list, tuple):
        if not isinstance(node.value, list):
            problems.append(node.problem(where, refusal(node, kind)))
            return None
        each = [args[0]] * len(node.value) if origin is list or args[-1] is ... else list(args)
        if len(each) != len(node.value):
            problems.append(node.problem(where, f"{len(node.value)} values given, {len(each)} are needed"))
            return None
        pairs = zip(node.value, each, strict=True)
        made = origin([convert(child, t, _join(where, i), problems) for i, (child, t) in enumerate(pairs)])
    else:
        return _leaf(node, kind, where, problems)
    if any(len(made) < (meta.min_length or 0) for meta in metas):
        problems.append(node.problem(where, "empty: give one at least"))
    return made if len(problems) == before else None


def fields(node: Node, structs: Sequence[type[msgspec.Struct]], where: str, problems: list[Problem]) -> dict[str, Any]:
    """The values of a mapping that gives the fields of one or several structs: the good ones, and defaults.

    For several structs their keys lie flat beside each other, as those of a stage do (`kind`, `needs`, settings...).
    """
    if not isinstance(node.value, dict):
        problems.append(node.problem(where, f"{shown(node)} is not a mapping of keys to values"))
        return {}
    known = {field.encode_name: field for struct in structs for field in msgspec.structs.fields(struct)}
    for key, child in node.value.items():
        if key not in known:
            homes = [k for k, f in known.items() if is_struct(f.type) and key in f.type.__struct_encode_fields__]
            hint = f"; there is one in `{homes[0]}`" if homes else ""
            problems.append(child.problem(_join(where, key), unknown(key, known, "key", hint)))
    values = {}
    for key, field in known.items():
        before = len(problems)
        if key in node.value:
            value = convert(node.value[key], field.type, _join(where, key), problems)
        elif field.required:
            problems.append(node.problem(_join(where, key), f"missing: give {describe(field.type)}"))
        else:
            value = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
        if len(problems) == before:
            values[field.name] = value
    return values


def build(struct: type, values: dict[str, Any], node: Node, where: str, problems: list[Problem]) -> Any:
    """Make the struct. Its __post_init__ may raise ValueError("field: what is wrong"): the problem is put there."""
    try:
        return struct(**values)
    except (ValueError, TypeError) as error:
        field, _, rest = str(error).partition(": ")
        child = node.value.get(field)
        if rest and field in struct.__struct_encode_fields__:  # type: ignore[attr-defined]
            problems.append((child or node).problem(_join(where, field), rest))
        else:
            problems.append(node.problem(where, str(error)))
        return None


def _union(node: Node, kind: Any, args: Sequence[Any], where: str, problems: list[Problem]) -> Any:
    if node.value is None and type(None) in args:
        return None
    shapes: dict[type, Any] = {dict: (dict,), list: (list, tuple)}

    def shape(t: Any) -> type | None:
        bare = unwrap(t)[0]
        if is_struct(bare) or get_origin(bare) is dict:
            return dict
        return list if get_origin(bare) in shapes[list] else None

    own = type(node.value) if isinstance(node.value, (dict, list)) else None
    members = [t for t in args if t is not type(None) and (shape(t) is own or (own is dict and has(t, "file")))]
    if len(members) == 1:  # its own message says more than one about the union
        return convert(node, members[0], where, problems)
    for member in members:
        tried: list[Problem] = []
        value = convert(node, member, where, tried)
        if not tried:
            return value
    problems.append(node.problem(where, refusal(node, kind)))
    return None


def _leaf(node: Node, kind: Any, where: str, problems: list[Problem]) -> Any:
    value, bare = node.value, unwrap(kind)[0]
    try:
        if bare in (Seconds, Bytes):
            number = bare.parse(value)
            if not number < 2**53:
                raise OverflowError
            return number
        if isinstance(value, (dict, list)):
            raise ValueError(refusal(node, kind))
        if isinstance(value, str) and "\n" in value and any(meta.pattern for meta in unwrap(kind)[1]):
            raise ValueError(refusal(node, kind))  # `$` in a pattern would let it end in a line break
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        problems.append(node.problem(where, refusal(node, kind)))
    except OverflowError:
        problems.append(node.problem(where, f"{shown(node)} is too large"))
    except ValueError as error:
        problems.append(node.problem(where, str(error)))
    return None


def _content(node: Node, where: str, problems: list[Problem]) -> str | None:
    """{file: PATH} -> what the file holds. The path counts from the spec's folder, given on the command line from the
    working directory."""
    path = node.below("file")
    if list(node.value) != ["file"] or not isinstance(path.value, str):
        problems.append(node.problem(where, f"{shown(node)} is not text: give text, or {{file: PATH}}"))
        return None
    try:
        base = Path(node.file).parent if Path(node.file).is_file() else Path()
        text = (base / path.value).read_text("utf-8").strip()
    except (OSError, ValueError) as error:
        problems.append(path.problem(_join(where, "file"), f"{path.value!r} cannot be read: {error}"))
        return None
    if not text:
        problems.append(path.problem(_join(where, "file"), f"{path.value!r} is empty"))
    return text


def refusal(node: Node, kind: Any) -> str:
    """Why this value is not of this type."""
    value, members = node.value, [unwrap(t)[0] for t in members_of(kind)]
    text = f"{shown(node)} is not {describe(kind)}"
    literals = [str(choice) for t in members if get_origin(t) is Literal for choice in get_args(t)]
    close = difflib.get_close_matches(str(value), literals, 1) if literals else []
    if close:
        text += f": did you mean {close[0]}?"
    elif bool in members and str(value).lower() in ("yes", "no", "on", "off", "y", "n"):
        text += ": write true" if str(value).lower() in ("yes", "on", "y") else ": write false"
    elif str in members and isinstance(value, (bool, int, float)):
        text += f': put it in quotes, "{shown(node)}"'
    return text


def unknown(name: str, known: Iterable[str], what: str, hint: str = "") -> str:
    """`no such key: did you mean detector? Valid keys: crop, detector...`"""
    names = list(known)
    close = difflib.get_close_matches(name, names, 1)
    nearest = f": did you mean {close[0]}?" if close and not hint else hint
    return f"no such {what}{nearest}\n    valid {what}s: {', '.join(names) or 'none'}"


def describe(kind: Any) -> str:
    """A type in words, with its bounds."""
    bare, metas = unwrap(kind)
    origin, args = get_origin(bare), get_args(bare)
    for meta in metas:
        if meta.description:
            return meta.description
    if origin in (Union, types.UnionType):
        words = [describe(t) for t in args]
        return ", ".join(words[:-1]) + f" or {words[-1]}"
    if origin is Literal:
        return "one of " + ", ".join(map(str, args)) if len(args) > 1 else str(args[0])
    if origin in (list, tuple):
        return "a list"
    if origin is dict or is_struct(bare):
        return "a mapping of keys to values"
    bounds = [f"{sign} {limit:g}" for meta in metas for sign, limit in
              ((">=", meta.ge), (">", meta.gt), ("<=", meta.le), ("<", meta.lt)) if limit is not None]  # fmt: skip
    return " ".join([WORDS.get(bare, getattr(bare, "__name__", str(bare))), " and ".join(bounds)]).strip()


def shown(node: Node) -> str:
    """A value the way its author wrote it, cut short."""
    value = node.value
    if isinstance(value, (dict, list)):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else text[:76] + " ..."


def unwrap(kind: Any) -> tuple[Any, list[msgspec.Meta]]:
    """Annotated[int, Meta(ge=0)] -> int, [Meta(ge=0)]."""
    if get_origin(kind) is not Annotated:
        return kind, []
    bare, *metas = get_args(kind)
    return bare, [meta for meta in metas if isinstance(meta, msgspec.Meta)]


def has(kind: Any, mark: str) -> bool:
    """Is the type marked by msgspec.Meta(extra={mark: True})? "file": text that may be given as {file: PATH}. "secret":
    the name of one of the spec's secrets."""
    return any((meta.extra or {}).get(mark) for meta in unwrap(kind)[1])


def marked(struct: msgspec.Struct | None, mark: str) -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of the settings with this mark, but nulls."""
    for field in msgspec.structs.fields(struct) if struct is not None else ():
        value = getattr(struct, field.name)
        if is_struct(type(value)):
            yield from ((_join(field.encode_name, below), found) for below, found in marked(value, mark))
        elif value is not None and any(has(kind, mark) for kind in members_of(field.type)):
            yield field.encode_name, value


def members_of(kind: Any) -> Sequence[Any]:
    bare = unwrap(kind)[0]
    return get_args(bare) if get_origin(bare) in (Union, types.UnionType) else [kind]


def is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def plain(value: Any) -> Any:
    """Structs as values that YAML and JSON can hold, units written out: what `convert` turns back into the same."""
    if isinstance(value, msgspec.Struct):
        names = zip(value.__struct_fields__, value.__struct_encode_fields__, strict=True)
        return {key: plain(getattr(value, name)) for name, key in names}
    if isinstance(value, dict):
        return {key: plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(child) for child in value]
    if isinstance(value, Seconds):
        for unit, seconds in (("d", 86400), ("h", 3600), ("m", 60)):
            if value and value % seconds == 0:
                return f"{int(value // seconds)}{unit}"
        digits = repr(float(value))
        return f"{value:.20f}s" if "e" in digits else digits.removesuffix(".0") + "s"
    if isinstance(value, Bytes):
        for i, unit in enumerate(("TiB", "GiB", "MiB", "KiB")):
            if value and value % 1024 ** (4 - i) == 0:
                return f"{value // 1024 ** (4 - i)}{unit}"
        return f"{value}B"
    return value


def unit(kind: type, value: Any) -> Any:
    """msgspec's dec_hook for values that `plain` wrote; `plain` itself is the enc_hook."""
    if kind not in (Seconds, Bytes):
        raise NotImplementedError(f"{kind} in a record")
    return kind.parse(value) if isinstance(value, str) else kind(value)


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)
