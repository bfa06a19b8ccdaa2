"""What a shard of prepare.tokens or prepare.latents costs on one GPU, from mp4 to ids, and where the time goes.

    python tests/bench_prepare.py [--only dv,cv,wan] [--clips 24] [--batch 1,2] [--film FILE] [--tiny]

Random weights of the published sizes in bfloat16; windows of 33 frames of 640x1024 (dv) and of 93 of 704x1280 (wan; 97
for cv). Clips of two windows each are cut from --film (the trailer of the quickstart if none is given) at 1280x720, and
encoded anew with x264, so that decoding is of what curation leaves. `wait` is the share of the time that the tokenizer
waited for decoded windows: with more cores there is less of it. Each row is a shard after one to warm up, and is made
twice: `same` says whether its bytes were, too. --tiny is everything at small sizes, to see that it runs; also on a CPU.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import torch

from hpc.data import storage
from hpc.data.work import Item, Made, Work
from hpc.models.tokenizers import cosmos, files, wan
from hpc.prepare import latents, tokens
from hpc.prepare.settings import LatentsEncode, TokensIds

TRAILER = Path(__file__).parents[1] / "jobs/quickstart/trailer_bbb.mp4"
CV = {"spatial": 8, "levels": (), "latent_channels": 16}


def tokenizer(kind: str, tiny: bool) -> Any:
    size = {"channels": 8} if tiny else {}
    if kind == "wan":
        return wan.WanVAE(wan.Config(**size))
    if kind == "dv":
        return cosmos.CosmosDiscrete(cosmos.Config(**size))
    one = ((1.0,) * 16,) * 16
    return cosmos.CosmosContinuous(cosmos.Config(**size, **CV, mean=one, std=one))


def clips(film: Path, folder: Path, count: int, frames: int) -> list[Item]:
    """mp4 files of so many frames each, one after the other; from the start again where the film ends."""
    items, taken, out, stream = [], 0, None, None
    while len(items) < count:
        with av.open(str(film)) as source:
            for picture in source.decode(video=0):
                if taken == 0:
                    path = folder / f"{len(items):04}.mp4"
                    out = av.open(str(path), "w")
                    stream = out.add_stream("libx264", 24, options={"preset": "veryfast", "crf": "18"})
                    stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
                picture.pts, picture.time_base = taken, Fraction(1, 24)
                out.mux(stream.encode(picture))
                taken += 1
                if taken == frames:
                    out.mux(stream.encode(None))
                    out.close()
                    entry = storage.stat(str(path))
                    items.append(Item(entry.uri, entry.size, entry.etag))
                    taken = 0
                    if len(items) == count:
                        break
    return items


def shard(process: Any, items: list[Item]) -> tuple[Made, bytes, float]:
    with tempfile.TemporaryDirectory() as scratch:
        work = Work("000000", items, [], {}, Path(scratch), "f", lambda: None, lambda share, words: None)
        began = time.monotonic()
        made = process(work)
        spent = time.monotonic() - began
        return made, made.objects[0].read_bytes(), spent


def row(kind: str, batch: int, items: list[Item], folder: Path, shape: dict[str, Any]) -> None:
    same = {"tokenizer": str(folder / kind), "windows": "all", "batch": batch} | shape
    if kind == "dv":
        process = tokens.start(TokensIds(**same))
    else:
        process = latents.start(LatentsEncode(**same))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    shard(process, items[:batch])
    made, first, spent = shard(process, items)
    _, second, _ = shard(process, items)
    c = made.counts
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    print(
        f"{kind:4} batch {batch}  {c['windows'] / spent:7.2f} windows/s {c['frames'] / spent:8.1f} frames/s "
        f"{c.get('tokens', 0) / spent:10,.0f} tokens/s  wait {c['data_wait_seconds'] / spent:4.0%}  "
        f"tokenizer {c['model_seconds'] / spent:4.0%}  {peak:5.1f} GiB  same {first == second}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="dv,cv,wan")
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--batch", default="1,2")
    parser.add_argument("--film", type=Path, default=TRAILER)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{where}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}", flush=True)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kind in given.only.split(","):
            frames, size = {"dv": (33, (640, 1024)), "cv": (97, (704, 1280)), "wan": (93, (704, 1280))}[kind]
            if given.tiny:
                frames, size = 9, (32, 64)
            files.save(tokenizer(kind, given.tiny), folder / kind)
            (folder / f"{kind}-clips").mkdir()
            items = clips(given.film, folder / f"{kind}-clips", given.clips, 2 * frames)
            shape = {"frames": frames, "size": size} | ({"precision": "float32"} if given.tiny else {})
            for batch in map(int, given.batch.split(",")):
                row(kind, batch, items, folder, shape)


if __name__ == "__main__":
    main()
