"""Paths and URIs of a spec: what they are relative to, and whether they can work."""

# os.path says no where pathlib raises: folders that can't be entered, names that are too long
# ruff: noqa: PTH100, PTH109, PTH110, PTH112, PTH118, PTH120

from __future__ import annotations

import fnmatch
import itertools
import os
import re

from hpc.batch.yaml_lines import Node


def absolute(uri: str, node: Node, file: str) -> str:
    """A path from the spec counts from the spec's folder, one from the command line from the working directory."""
    if "://" in uri:
        return uri
    base = os.path.dirname(os.path.abspath(file)) if node.file == file else os.getcwd()
    return os.path.normpath(os.path.join(base, uri))


def refused(given: str) -> list[str]:
    """Why this is neither a path nor a URI that is understood."""
    if "$" in given or given.startswith("~"):
        return [
            f"{given!r}: ~ and variables are not expanded, a spec means the same for everyone; write the path out, or "
            'give it on the command line, where the shell expands it: "output=$SCRATCH/out"'
        ]
    if "://" in given and not re.match(r"s3://[A-Za-z0-9._@-]+(/|$)", given):
        return [f"{given!r}: only paths and s3://bucket/prefix are understood"]
    return []


def _existing(path: str) -> str:
    """The path, or the nearest folder above it that is there."""
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def unreadable(uri: str) -> list[str]:
    """Why these inputs can't be read. Objects are looked up by the planner alone: the checks stay off the network."""
    if "://" in uri:
        return []
    path = uri
    if re.search(r"[*?\[]", uri) and not os.path.lexists(uri):
        path = re.split(r"[*?\[]", uri)[0].rpartition("/")[0] or "/"
    if not os.path.exists(path):
        found = _existing(path)
        if os.path.isdir(found) and not os.access(found, os.X_OK):
            return [f"{path}: you may not enter {found}"]
        return [f"{path} does not exist" + (f" (but {found} does)" if found not in (path, "/") else "")]
    if not os.access(path, os.R_OK | (os.X_OK if os.path.isdir(path) else 0)):
        return [f"{path} is there, but you may not read it"]
    return []


def reads(uri: str, output: str) -> bool:
    """Would files below `output` be found as inputs?"""
    for pattern, part in itertools.zip_longest(uri.rstrip("/").split("/"), output.rstrip("/").split("/")):
        if pattern is None or "**" in pattern:
            return True
        if part is None or not (pattern == part or fnmatch.fnmatchcase(part, pattern)):
            return False
    return True


def unwritable(output: str) -> list[str]:
    """Why the output folder can't be made."""
    if "://" in output:
        return []
    folder = _existing(output)
    if not os.path.isdir(folder):
        return [f"{output} cannot be made: {folder} is a file, not a folder"]
    if not os.access(folder, os.W_OK | os.X_OK):
        return [f"{output} cannot be made: you may not write to {folder}"]
    return []
