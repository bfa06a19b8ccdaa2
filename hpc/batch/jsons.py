"""JSON with units: Seconds and Bytes are written as in specs ("30m", "4GiB"), everything else as msgspec does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from hpc.batch import check


def encode(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=check.plain)


def pretty(value: Any) -> bytes:
    return msgspec.json.format(encode(value), indent=1) + b"\n"


def decode(data: bytes, kind: Any) -> Any:
    return msgspec.json.decode(data, type=kind, dec_hook=check.unit)


def write(path: Path, value: Any) -> None:
    """Readable, and complete or absent: a reader never sees half of it."""
    temp = path.with_name(f".{path.name}")
    temp.write_bytes(pretty(value))
    temp.rename(path)
