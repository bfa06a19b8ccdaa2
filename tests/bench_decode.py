"""How fast a training gets its frames: CPU workers against a GPU's video engines, and what training waits for them.

    python tests/bench_decode.py [--film FILE] [--clips 32] [--batches 24] [--workers 4,16] [--step 0.05] [--tiny]

Clips of 150 frames are cut from --film (the trailer of the quickstart if none is given) at 1280x720 and encoded anew
with x264, a key frame every 2 s or less. Shapes: 33 frames of 256x456 in batches of 8, and 33 of 720x1280 in batches of
2, from random starts. Each row is a loader after one batch to warm up: first as fast as it goes, then with a consumer
that computes --step seconds a batch (on a GPU with matmuls on the default stream, where libav's copies queue behind
them). `wait` is the share of the time that it waited for data. --tiny is everything small, also on a CPU, whose decoder
then stands in for the engines.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import av
import torch

from hpc.data.video import nvdec
from hpc.train.loader import Batches
from hpc.train.samples import Shape, listed

TRAILER = Path(__file__).parents[1] / "jobs/quickstart/trailer_bbb.mp4"


def clips(film: Path, folder: Path, count: int, frames: int) -> None:
    """mp4 files of so many frames each, one after the other; from the start again where the film ends."""
    made = 0
    while made < count:
        with av.open(str(film)) as source:
            pictures = source.decode(video=0)
            while made < count:
                some = [picture for _, picture in zip(range(frames), pictures, strict=False)]
                if len(some) < frames:
                    break
                with av.open(str(folder / f"{made:04}.mp4"), "w") as out:
                    stream = out.add_stream("libx264", 24, options={"preset": "veryfast", "crf": "18", "g": "48"})
                    stream.width, stream.height, stream.pix_fmt = some[0].width, some[0].height, "yuv420p"
                    for number, picture in enumerate(some):
                        picture.pts, picture.time_base, picture.pict_type = number, Fraction(1, 24), 0
                        out.mux(stream.encode(picture))
                    out.mux(stream.encode(None))
                made += 1


class Consumer:
    """Computes about so many seconds for each batch, as training would."""

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.seconds, self.times = device, seconds, 1
        self.matrix = None
        if device.type == "cuda" and seconds:
            self.matrix = torch.randn(4096, 4096, device=device, dtype=torch.bfloat16) / 64
            for self.times in (8, 200):  # the first to warm up
                begun = time.monotonic()
                self.compute()
                torch.cuda.synchronize()
                spent = time.monotonic() - begun
            self.times = max(1, round(self.times * seconds / spent))

    def compute(self) -> None:
        for _ in range(self.times):
            torch.mm(self.matrix, self.matrix)

    def __call__(self, frames: torch.Tensor) -> None:
        total = frames.to(self.device, non_blocking=True).float().sum()
        if self.matrix is not None:
            self.compute()
        elif self.seconds:
            time.sleep(self.seconds)
        total.item()  # as the loss is read


def row(name: str, table: object, shape: Shape, gpu: torch.device | None, workers: int, count: int, step: float,
        device: torch.device) -> None:  # fmt: skip
    batches = Batches(table, [shape], 1, gpu=gpu)
    consumer = Consumer(device, step)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    arriving = batches.of_rank(0, 1, workers=workers)
    consumer(next(arriving).frames)
    begun, cpu, waited, by_cpu = time.monotonic(), time.process_time(), 0.0, 0
    for batch, _ in zip(arriving, range(count), strict=False):
        waited += batch.waited
        by_cpu += batch.decoded_by_cpu
        consumer(batch.frames)
    spent = time.monotonic() - begun
    rate = count * shape.batch * shape.frames / spent
    own = (time.process_time() - cpu) / spent
    arriving.close()
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    print(f"| {name} | {shape.frames}x{shape.height}x{shape.width}, {shape.batch} | {step:g} s | {rate:,.0f} | "
          f"{waited / spent:.0%} | {own:.1f} | {by_cpu} | {memory:.1f} |", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--film", type=Path, default=TRAILER)
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--batches", type=int, default=24)
    parser.add_argument("--workers", default="4,16")
    parser.add_argument("--step", type=float, default=0.05)
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        nvdec.prepare()
        print(torch.cuda.get_device_name(), end=", ")
    gpu = torch.device("cpu") if given.tiny and device.type == "cpu" else nvdec.device_for("gpu", device)
    print(f"{len(os.sched_getaffinity(0))} CPUs")
    if given.tiny:
        count, frames, given.batches, workers = 2, 20, 2, [1]
        shapes = [Shape(frames=5, height=64, width=112, batch=2)]
    else:
        count, frames, workers = given.clips, 150, [int(one) for one in given.workers.split(",")]
        shapes = [Shape(frames=33, height=256, width=456, batch=8), Shape(frames=33, height=720, width=1280, batch=2)]
    with tempfile.TemporaryDirectory() as folder:
        clips(given.film, Path(folder), count, frames)
        table = listed(folder)
        print("| decoded by | frames x height x width, batch | step | frames/s | wait | CPUs of the trainer | "
              "by the CPU | GiB at most |\n|---|---|---|---|---|---|---|---|")  # fmt: skip
        for shape in shapes:
            for step in (0.0, given.step):
                for many in workers:
                    row(f"{many} CPU workers", table, shape, None, many, given.batches, step, device)
                row("video engines", table, shape, gpu, 0, given.batches, step, device)


if __name__ == "__main__":
    main()
