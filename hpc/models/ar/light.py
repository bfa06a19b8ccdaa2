"""megatron-core, imported without what no rank needs of it; import this before it. 3.7 s of a CPU instead of 7.0, and
2,400 modules instead of 3,800, which every rank of a cluster reads from one file system when it starts.

Its fused functions are compiled with torch.compile where they are defined, which loads torch's compiler for functions
that are not called: here each is when it is first called. wandb and tensorboard are for its own loggers; ours import
them where a spec asks for them.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

COMPILE = torch.compile
LOGGERS = ("wandb", "torch.utils.tensorboard")


def compile_later(function: Callable | None = None, **options: Any) -> Any:
    """torch.compile, when the function is first called."""
    if function is None:
        return functools.partial(compile_later, **options)
    compiled: list[Callable] = []

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not compiled:
            compiled.append(COMPILE(function, **options))
        return compiled[0](*args, **kwargs)

    return call


absent = [name for name in LOGGERS if name not in sys.modules]
try:
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]  # None: importing it is an ImportError
    with mock.patch.object(torch, "compile", compile_later):
        import megatron.core  # noqa: F401  its other modules take the decorator from this one's
finally:
    for name in absent:
        del sys.modules[name]
