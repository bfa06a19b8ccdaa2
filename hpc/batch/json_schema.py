"""JSON Schemas (draft 2020-12) of the files people write, made from the structs that check them.

Descriptions are the docstrings under the fields, read from the source, so that there is one place to write them.
Editors complete keys and underline mistakes with it.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import textwrap
import types
from typing import Any, Literal, Union, get_args, get_origin

import msgspec

from hpc.batch import check
from hpc.data.units import BYTES, SECONDS, Bytes, Seconds

DRAFT = "https://json-schema.org/draft/2020-12/schema"
NAMES: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
UNITS: dict[Any, Any] = {Seconds: SECONDS, Bytes: BYTES}


def job(file: type, block: type, kinds: dict[str, type]) -> dict[str, Any]:
    """Of a job spec. A stage's keys are those of `block` and, by its `kind`, those of the kind's settings."""
    defs: dict[str, Any] = {}
    whole = struct(file, defs)
    branches = []
    for name, settings in kinds.items():
        common, own = struct(block, defs), struct(settings, defs)
        common["properties"]["kind"] = {"const": name, "description": own["description"]}
        defs[name] = own | {"properties": common["properties"] | own["properties"],
                            "required": common["required"] + own["required"]}  # fmt: skip
        branches.append({"if": {"properties": {"kind": {"const": name}}, "required": ["kind"]},
                         "then": {"$ref": f"#/$defs/{name}"}})  # fmt: skip
    kind = struct(block, defs)["properties"]["kind"]
    kind["anyOf"] = [{"enum": list(kinds)}, {"type": "string", "pattern": r"^[\w.]+:\w+$"}]
    whole["properties"]["stages"]["additionalProperties"] = {
        "type": "object", "properties": {"kind": kind}, "required": ["kind"], "allOf": branches}  # fmt: skip
    return {"$schema": DRAFT, "title": "hpc job spec", **whole, "$defs": defs}


def one(file: type, title: str) -> dict[str, Any]:
    """Of a file that is one struct."""
    defs: dict[str, Any] = {}
    return {"$schema": DRAFT, "title": title, **struct(file, defs), "$defs": defs}


def struct(kind: type, defs: dict[str, Any]) -> dict[str, Any]:
    docs = documentation(kind)
    properties, required = {}, []
    for field in msgspec.structs.fields(kind):
        shape = of(field.type, defs)
        if field.name in docs:
            shape = {**shape, "description": docs[field.name]}
        if field.required:
            required.append(field.encode_name)
        else:
            default = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
            shape = {**shape, "default": check.plain(default)}
        properties[field.encode_name] = shape
    return {"type": "object", "description": inspect.getdoc(kind) or kind.__name__, "properties": properties,
            "required": required, "additionalProperties": False}  # fmt: skip


def of(kind: Any, defs: dict[str, Any]) -> dict[str, Any]:
    """Of any type that check.convert understands; structs are put into `defs`."""
    bare, metas = check.unwrap(kind)
    origin, args = get_origin(bare), get_args(bare)
    shape: dict[str, Any] = {}
    if check.is_struct(bare):
        name = f"{bare.__module__.removeprefix('hpc.')}.{bare.__name__}"
        if name not in defs:
            defs[name] = {}  # a struct may contain itself
            defs[name].update(struct(bare, defs))
        return {"$ref": f"#/$defs/{name}"}
    if bare in UNITS:
        number = rf"\s*[0-9]+(\.[0-9]+)?\s*({'|'.join(UNITS[bare])})\s*"
        return {"type": "string", "pattern": f"^({number})+$", "description": check.describe(bare)}
    if origin in (Union, types.UnionType):
        shape = {"anyOf": [of(t, defs) for t in args]}
    elif origin is Literal:
        shape = {"enum": list(args)}
    elif origin is dict:
        shape = {"type": "object", "propertyNames": of(args[0], defs), "additionalProperties": of(args[1], defs)}
    elif origin is list or (origin is tuple and args[-1] is ...):
        shape = {"type": "array", "items": of(args[0], defs)}
    elif origin is tuple:
        shape = {"type": "array", "prefixItems": [of(t, defs) for t in args], "minItems": len(args), "items": False}
    elif check.has(kind, "file"):
        file = {"type": "object", "properties": {"file": {"type": "string"}}, "required": ["file"],
                "additionalProperties": False}  # fmt: skip
        shape = {"anyOf": [{"type": "string"}, file]}
    elif bare is not Any:
        shape = {"type": NAMES[bare]}
    words = {"array": ("minItems", "maxItems"), "object": ("minProperties", "maxProperties")}
    least, most = words.get(shape.get("type", ""), ("minLength", "maxLength"))
    for meta in metas:
        bounds = {"minimum": meta.ge, "exclusiveMinimum": meta.gt, "maximum": meta.le, "exclusiveMaximum": meta.lt,
                  "pattern": meta.pattern, "description": meta.description, least: meta.min_length,
                  most: meta.max_length}  # fmt: skip
        shape |= {key: value for key, value in bounds.items() if value is not None}
    return shape


def documentation(kind: type) -> dict[str, str]:
    """The docstrings under the fields of a struct and of what it inherits from."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base is msgspec.Struct or not check.is_struct(base):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        for field, below in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr):
                docs[field.target.id] = inspect.cleandoc(below.value.value)  # type: ignore[union-attr, attr-defined]
    return docs
