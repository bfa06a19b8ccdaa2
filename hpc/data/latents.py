"""Latents in files: .safetensors with one tensor, "latents", of bfloat16 [channels, t, h, w].

Written by hpc.prepare, read by hpc.train, checked by hpc.validate, or by anything that knows safetensors: eight bytes
with the length of a JSON, the JSON ({name: {"dtype", "shape", "data_offsets"}}), and the numbers, little endian
(https://github.com/huggingface/safetensors, "Format").
"""

from __future__ import annotations

import json
import math
import struct

import numpy as np
import numpy.typing as npt

SUFFIX = ".safetensors"
NAME = "latents"
DTYPES = {"BF16": "<u2", "F16": "<f2", "F32": "<f4"}


def dumps(latents_CTHW: npt.NDArray[np.float32]) -> bytes:
    """float32, rounded to bfloat16 as torch does: to the nearest, halves to even. Numbers are finite."""
    bits = np.ascontiguousarray(latents_CTHW, "<f4").view("<u4")
    data = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    about = {NAME: {"dtype": "BF16", "shape": latents_CTHW.shape, "data_offsets": [0, len(data)]}}
    head = json.dumps(about, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    return struct.pack("<Q", len(head)) + head + data


def loads(data: bytes) -> npt.NDArray[np.float32]:
    """float32 [channels, t, h, w]. Raises ValueError for what is no such file, or cut short."""
    try:
        (length,) = struct.unpack_from("<Q", data)
        head = json.loads(data[8 : 8 + length])[NAME]
        dtype, shape = head["dtype"], head["shape"]
        begin, end = (8 + length + offset for offset in head["data_offsets"])
        if len(shape) != 4 or end - begin != np.dtype(DTYPES[dtype]).itemsize * math.prod(shape) or end > len(data):
            raise ValueError(f"{dtype}{shape} in {end - begin} of {len(data)} bytes")
    except (ValueError, LookupError, TypeError, struct.error) as error:
        words = f"a tensor {NAME!r} of floats [channels, t, h, w] is expected: {type(error).__name__}: {error}"
        raise ValueError(words) from error
    found = np.frombuffer(data[begin:end], DTYPES[dtype])
    if dtype == "BF16":
        found = (found.astype("<u4") << 16).view("<f4")
    return found.astype(np.float32).reshape(shape)
