"""Secrets in what is shown of a run and written down of it: the values of those that its spec names and of variables
that are called like one, and what looks like one anyway.

A run folder holds names of secrets and never their values; but a program may print what it was given, and an error may
quote an address with a password in it. So what workers and ranks print from Python goes through `Writer`, records and
reports are masked as they are written, and what `hpc` shows once more. Not masked: what a stage writes as its output,
and what programs and libraries that are not Python write to the log by themselves.
"""

from __future__ import annotations

import html
import io
import json
import logging
import os
import re
import sys
import traceback
import urllib.parse
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

MASK = "***"
SHORTEST = 6
"""A value shorter than that is no secret, and stands in many a word."""
LONGEST_LINE = 1 << 16
"""Characters without an end of line that are held back, so that a secret printed in parts is found."""
NAMES = "HPC_SECRETS"
"""The variable with the names of the spec's secrets, by which a worker tells the processes that it starts."""
CALLED = re.compile(r"(?i)(?:SECRET|TOKEN|PASSWORD|PASSWD|API_?KEY|(?:ACCESS|PRIVATE)_KEY(?:_ID)?|WEBHOOK(?:_URL)?)$")
"""How variables with secrets are called: AWS_SECRET_ACCESS_KEY, HF_TOKEN, WANDB_API_KEY."""
LOOKS = (  # each begins with words of its own: long texts are gone through once
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\b(?:hf_|ghp_|gho_|sk-|xox[abp]-)[A-Za-z0-9_-]{16,}"), MASK),
    (re.compile(r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]{8,}"), rf"\1{MASK}"),
    (re.compile(r"(://[^/\s:@\"'\\<>]*:)[^/\s@\"'\\<>]+(?=@)"), rf"\1{MASK}"),
    (re.compile(r"(https://hooks\.slack\.com/services/)[\w/]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)((?:password|passwd|secret|api_?key|access_?key(?:_?id)?|[_-]token|x-amz-signature|"
                r"x-amz-credential|x-amz-security-token)[\"']?\s*[:=]\s*[\"']?)"
                r"(?![\d.]+(?:[\s\"',;&)}\]]|$))[^\s\"'\\,;&<>(){}\[\]]{6,}"), rf"\1{MASK}"),  # numbers are counts
)  # fmt: skip


def named(spec: Path) -> tuple[str, ...]:
    """The secrets of a run's spec.yaml, by name; none where it cannot be read."""
    try:
        found = yaml.load(spec.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506  a safe one
        return tuple(name for name in found.get("secrets") or () if isinstance(name, str))
    except (OSError, yaml.YAMLError, AttributeError, TypeError):
        return ()


def values(names: Iterable[str] = ()) -> list[str]:
    """What to hide: the values of these environment variables and of those called like a secret, as they are and as
    they stand in addresses, in JSON, in Python's words and in HTML; the longest first."""
    named = {*names, *os.environ.get(NAMES, "").split(","), *(name for name in os.environ if CALLED.search(name))}
    found = {value for name in named if len(value := os.environ.get(name, "").strip()) >= SHORTEST}
    found |= {form(value) for value in found for form in (_in_address, _in_json, _in_repr, html.escape)}
    return sorted(found, key=len, reverse=True)


def _in_address(value: str) -> str:
    return urllib.parse.quote(value, safe="")


def _in_json(value: str) -> str:
    return json.dumps(value)[1:-1]


def _in_repr(value: str) -> str:
    return repr(value)[1:-1]


def without(text: str, hidden: Sequence[str]) -> str:
    """The text without these values."""
    for value in hidden:
        text = text.replace(value, MASK)
    return text


def cleaned(text: str, hidden: Sequence[str]) -> str:
    """The text without these values, and without what looks like a secret. JSON stays JSON."""
    text = without(text, hidden)
    for pattern, mask in LOOKS:
        text = pattern.sub(mask, text)
    return text


def masked(text: str, names: Iterable[str] = ()) -> str:
    """The text without values of these environment variables, and without what looks like a secret."""
    return cleaned(text, values(names))


def everywhere(value: Any, names: Iterable[str] = ()) -> Any:
    """A JSON value with all of its texts masked."""
    hidden = values(names)

    def walk(value: Any) -> Any:
        if isinstance(value, str):
            return cleaned(value, hidden) if len(value) >= SHORTEST else value
        if isinstance(value, dict):
            return {walk(k): walk(v) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [v if isinstance(v, (int, float)) else walk(v) for v in value]
        return value

    return walk(value)


class Writer(io.TextIOWrapper):
    """sys.stdout or sys.stderr, masked line by line."""

    hidden: Sequence[str] = ()
    held = ""

    def write(self, text: str) -> int:
        """Hands on whole lines; the rest waits for its end, or for `flush`."""
        whole = self.held + text
        end = max(whole.rfind("\n"), whole.rfind("\r")) + 1
        if len(whole) - end > LONGEST_LINE:
            end = len(whole)
        self.held = whole[end:]
        if end:
            super().write(cleaned(whole[:end], self.hidden))
        return len(text)

    def flush(self) -> None:
        if self.held and not self.closed:
            rest, self.held = self.held, ""
            super().write(cleaned(rest, self.hidden))
        super().flush()


def excepthook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """For sys.excepthook: a traceback, masked."""
    sys.stderr.write(masked("".join(traceback.format_exception(kind, error, trace))))


def install(spec: Path | None = None) -> None:
    """From here on mask what Python prints in this process, tracebacks included. spec: of the run, whose secrets'
    names the processes that this one starts are told; without it this one was told so itself."""
    if spec is not None:
        os.environ[NAMES] = ",".join(named(spec))
    hidden = values()
    for name in ("stdout", "stderr"):
        old = getattr(sys, name)
        if old is None or isinstance(old, Writer):
            continue
        old.flush()
        new = Writer(old.buffer, old.encoding, "backslashreplace", line_buffering=True)
        new.hidden = hidden
        setattr(sys, name, new)
        loggers = [logging.root, *(one for one in logging.root.manager.loggerDict.values() if hasattr(one, "handlers"))]
        for handler in (handler for logger in loggers for handler in logger.handlers):
            if isinstance(handler, logging.StreamHandler) and handler.stream is old:
                handler.setStream(new)  # submitit's, made when it was imported
