"""The kinds of stages: those of the suite by name, your own by import path.

A kind is the struct of its settings; hpc.curate.settings says what its class variables mean. Modules of settings are
light, so that a login node can check a spec without torch, av or numpy.
"""

from __future__ import annotations

import importlib
import re
from typing import Any

import msgspec

from hpc.batch import check
from hpc.curate import settings as curate
from hpc.evaluate import settings as evaluate
from hpc.generate import settings as generate
from hpc.prepare import settings as prepare
from hpc.train import settings as train

KINDS: dict[str, type] = {
    kind.KIND: kind
    for module in (curate, prepare, train, generate, evaluate)
    for kind in vars(module).values()
    if hasattr(kind, "KIND")
}
CONTRACT = [name for name in curate.Clips.__annotations__ if name.isupper() and name != "KIND"]
"""Class variables that the settings of every stage declare."""


def kind_type(kind: str) -> Any:
    """The struct of a kind's settings. Raises ValueError."""
    if kind in KINDS:
        return KINDS[kind]
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", kind):
        raise ValueError(f"{kind!r}: {check.unknown(kind, KINDS, 'kind')}, or package.module:Class for one of your own")
    module, name = kind.split(":")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # someone else's module: anything can come out of it
        raise ValueError(f"{kind} cannot be imported: {error} (is {module} installed, or on PYTHONPATH?)") from error
    if not check.is_struct(found):
        raise ValueError(f"{module} has no msgspec.Struct {name} with the settings of a stage")
    if hasattr(found, "parts"):
        return found  # its parts are the stages
    if missing := [name for name in CONTRACT if not hasattr(found, name)]:
        lacking = ", ".join(missing)
        raise ValueError(f"{kind} lacks the class variables {lacking}; hpc/curate/settings/__init__.py explains them")
    return found


def settings_of(kind: str, values: dict[str, Any]) -> Any:
    """Settings that `check.plain` wrote into a plan, as the struct of their kind. Raises ValueError."""
    return msgspec.convert(values, kind_type(kind), dec_hook=check.unit)
