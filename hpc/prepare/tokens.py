"""Clips -> ids of a discrete video tokenizer, encoded once: the first part of prepare.tokens.

hpc.prepare.documents says what a shard is; forms of it are made behind it, in hpc/prepare/forms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from hpc.data import layers
from hpc.data.work import Bad, Made, Work
from hpc.prepare import encode
from hpc.prepare.documents import SCHEMA
from hpc.prepare.encode import Encoder
from hpc.prepare.encode import freeze as freeze
from hpc.prepare.settings import TokensIds


def start(settings: TokensIds) -> Callable[[Work], Made]:
    """Raises as `encode.opened` does."""
    return encode.started(settings, True, process)


def process(settings: TokensIds, encoder: Encoder, work: Work) -> Made:
    """Make one shard. Raises ValueError for a tokenizer that makes ids which it should not have."""
    bin_path, table_path = (work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS)
    vocabulary = encoder.tokenizer.vocabulary or 0
    rows: list[dict[str, Any]] = []
    bad: list[Bad] = []
    counts: Counter[str] = Counter(windows=0, frames=0)
    offset = 0
    with bin_path.open("wb") as file:
        for row, made, _ in encode.encoded(settings, encoder, work, bad, counts):
            if made is not None:
                ids = made.numpy()  # int32 from the tokenizer on; floats of 16 bits do not hold them
                if ids.dtype != np.int32 or ids.shape != encoder.shape or ids.min() < 0 or ids.max() >= vocabulary:
                    raise ValueError(
                        f"{settings.tokenizer} made {ids.dtype}{list(ids.shape)} from {ids.min()} to {ids.max()}; "
                        f"int32{list(encoder.shape)} from 0 to {vocabulary - 1} are expected"
                    )
                row = row | {"offset": offset, "size": ids.nbytes}
                offset += file.write(ids.astype("<i4", copy=False).tobytes())
            rows.append(row)
    meta = {
        "stage": settings.KIND, "fingerprint": work.fingerprint, "tokenizer": settings.tokenizer,
        "vocabulary": vocabulary, "shape": encoder.shape, "frames": settings.frames, "size": settings.size,
        "fps": settings.fps, "fit": settings.fit, "windows": settings.windows, "precision": settings.precision,
        "decode": settings.decode,
    }  # fmt: skip
    layers.write_table(table_path, rows, meta, SCHEMA)
    return Made([bin_path, table_path], {**counts, "tokens": offset // 4, "bytes_out": offset}, bad)
