"""Clips -> latents of a continuous video tokenizer: the first part of prepare.latents.

A shard is a plain webdataset tar with these members for each window, whose key is <uuid>_<first frame>:

    .safetensors    "latents", bfloat16 [channels, t, h, w], normalised as the tokenizer's `encode` does: Cosmos CV8x8x8
                    by the mean and std of each channel and latent frame, Wan2.1 by those of each channel
    .json           {"uuid", "start", "num_frames", "fps", "height", "width", "inside": [left, top, right, bottom],
                    "caption", "tokenizer", ...}; sizes are those of the frames that were encoded
    .pickle         [float16 [tokens, width]], the embedding of its caption, where `needs` has a curate.text_embed, or
                    the tars of curate.shard have them; as predict2 has it

and <shard>.parquet has a row of SCHEMA for each window, and for each clip that was left out; offset and size are those
of the .safetensors in the tar. hpc.train.samples takes such tars as it does those of videos, or the list of their
samples that hpc.prepare.latents_list makes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from hpc.data import layers, pickles
from hpc.data.latents import SUFFIX, dumps
from hpc.data.work import Bad, Made, Work
from hpc.prepare import encode
from hpc.prepare.documents import LATENTS as SCHEMA
from hpc.prepare.documents import NAMES
from hpc.prepare.encode import Encoder
from hpc.prepare.encode import freeze as freeze
from hpc.prepare.settings import LatentsEncode


def start(settings: LatentsEncode) -> Callable[[Work], Made]:
    """Raises as `encode.opened` does."""
    return encode.started(settings, False, process)


def process(settings: LatentsEncode, encoder: Encoder, work: Work) -> Made:
    """Make one shard. Raises ValueError for a tokenizer that makes other latents than it promises, or no numbers."""
    tar_path, table_path = (work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS)
    shape = (encoder.tokenizer.latent_channels, *encoder.shape)
    rows: list[dict[str, Any]] = []
    bad: list[Bad] = []
    counts: Counter[str] = Counter(windows=0, frames=0)
    same = {"num_frames": settings.frames, "height": settings.size[0], "width": settings.size[1],
            "tokenizer": settings.tokenizer, "shape": shape}  # fmt: skip
    with layers.TarWriter(tar_path) as tar:
        for row, made, vector in encode.encoded(settings, encoder, work, bad, counts):
            if made is not None:
                if made.shape != shape or not made.isfinite().all():
                    raise ValueError(f"{settings.tokenizer} made {made.dtype}{list(made.shape)} with {made.min()} to "
                                     f"{made.max()} of {row['media']}; finite {list(shape)} are expected")  # fmt: skip
                inside = [row[name] for name in ("left", "top", "right", "bottom")]
                told = {name: row[name] for name in ("uuid", "start", "fps", "source_fps", "caption", "source")}
                about = json.dumps(told | same | {"inside": inside}, ensure_ascii=False).encode()
                members = {SUFFIX: dumps(made.float().numpy()), ".json": about}
                if vector is not None:
                    members[".pickle"] = pickles.dumps([vector])
                    counts["embedded"] += 1
                key = f"{row['uuid']}_{row['start']}"
                row = row | {"key": key}
                for suffix, (offset, size) in tar.add(key, members).members.items():
                    name = NAMES[suffix]
                    row |= {f"{name}offset": offset, f"{name}size": size}
            rows.append(row)
    meta = {
        "stage": settings.KIND, "fingerprint": work.fingerprint, "tokenizer": settings.tokenizer, "shape": shape,
        "frames": settings.frames, "size": settings.size, "fps": settings.fps, "fit": settings.fit,
        "windows": settings.windows, "precision": settings.precision,
        "decode": settings.decode,
    }  # fmt: skip
    layers.write_table(table_path, rows, meta, SCHEMA)
    return Made([tar_path, table_path], {**counts, "bytes_out": tar_path.stat().st_size}, bad)
