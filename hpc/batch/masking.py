"""Secrets in what is shown of a run: the values of those that its spec names, and what looks like one anyway.

A run folder holds names of secrets and never their values; but a program may print what it was given, and an error may
quote an address with a password in it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

MASK = "***"
SHORTEST = 6
"""A value shorter than that is no secret, and stands in many a word."""
LOOKS = (  # each begins with words of its own: long texts are gone through once
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\b(?:hf_|ghp_|gho_|sk-|xox[abp]-)[A-Za-z0-9_-]{16,}"), MASK),
    (re.compile(r"(?i)(bearer\s+)[A-Za-z0-9._~+/=-]{8,}"), rf"\1{MASK}"),
    (re.compile(r"(://[^/\s:@]*:)[^/\s@]+(?=@)"), rf"\1{MASK}"),
    (re.compile(r"(https://hooks\.slack\.com/services/)[\w/]+"), rf"\1{MASK}"),
    (re.compile(r"(?i)((?:password|passwd|secret|api_?key|access_?key(?:_?id)?|[_-]token|x-amz-signature|"
                r"x-amz-credential|x-amz-security-token)[\"']?\s*[:=]\s*[\"']?)[^\s\"',;&)}]{6,}"), rf"\1{MASK}"),
)  # fmt: skip


def named(spec: Path) -> tuple[str, ...]:
    """The secrets of a run's spec.yaml, by name; none where it cannot be read."""
    try:
        found = yaml.load(spec.read_bytes(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        return tuple(name for name in found.get("secrets") or () if isinstance(name, str))
    except (OSError, yaml.YAMLError, AttributeError, TypeError):
        return ()


def masked(text: str, names: Iterable[str] = ()) -> str:
    """The text without values of these environment variables, and without what looks like a secret."""
    values = {os.environ.get(name, "") for name in names}
    for value in sorted(values, key=len, reverse=True):
        if len(value) >= SHORTEST:
            text = text.replace(value, MASK)
    for pattern, mask in LOOKS:
        text = pattern.sub(mask, text)
    return text


def everywhere(value: Any, names: Iterable[str] = ()) -> Any:
    """A JSON value with all of its texts masked."""
    if isinstance(value, str):
        return masked(value, names) if len(value) >= SHORTEST else value
    if isinstance(value, dict):
        return {everywhere(k, names): everywhere(v, names) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [v if isinstance(v, (int, float)) else everywhere(v, names) for v in value]
    return value
