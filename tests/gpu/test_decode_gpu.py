"""Frames that video engines decode for training: the CPU's numbers, the same bytes whoever decodes, left on the GPU.

    python -m pytest -q tests/gpu/test_decode_gpu.py            on a CPU with HPC_TEST_ON_CPU=1: its decoder, all else

It needs the trailer in jobs/quickstart, and no other test's files.
"""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from asked import skip_without_gpu

from hpc.data import video
from hpc.data.video import nvdec
from hpc.data.video.sample_gpu import LANES, Sampler, together
from hpc.train.loader import Batches
from hpc.train.samples import Shape, listed

ON_GPU = torch.cuda.is_available()
skip_without_gpu(__name__)

if ON_GPU:
    nvdec.prepare()
DEVICE = torch.device("cuda", 0) if ON_GPU else torch.device("cpu")
CPU = torch.device("cpu")
TRAILER = Path(__file__).parents[2] / "jobs" / "quickstart" / "trailer_bbb.mp4"


def encode(path: Path, codec: str = "libx264", frames: int = 50, pix_fmt: str = "yuv420p",
           size: tuple[int, int] = (640, 360), options: dict[str, str] | None = None) -> Path:  # fmt: skip
    """Some frames of the trailer, 20 s in, in another codec."""
    with av.open(str(TRAILER)) as film, av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=24, options=options or {})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        film.seek(20_000_000)
        for number, frame in zip(range(frames), film.decode(video=0), strict=False):
            frame = frame.reformat(*size, pix_fmt)
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, 24), 0
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.mark.skipif(not ON_GPU, reason="no GPU")
def test_there_are_engines() -> None:
    assert nvdec.device_for("gpu", DEVICE) == nvdec.device_for("auto", torch.device("cuda")) == DEVICE
    sampler = Sampler(DEVICE)
    assert sampler(TRAILER, [0], 64, 36).device == DEVICE and sampler.by_cpu == 0


@pytest.mark.parametrize("size", [(456, 256), (1280, 720), (455, 256), (1920, 1080), (96, 54)])
def test_the_trailer(size: tuple[int, int]) -> None:
    """To the last bit what the CPU's decoder leads to, and nearly what workers of the CPU's path take."""
    numbers = [0, 1, 17, 500, 501, 502, 1322, 1400]
    sampler = Sampler(DEVICE)
    made = sampler(TRAILER, numbers, *size)
    assert made.device == DEVICE and sampler.by_cpu == (not ON_GPU)
    assert torch.equal(made.cpu(), Sampler(CPU)(TRAILER, numbers, *size))
    off = np.abs(made.cpu().numpy().astype(int) - video.sample(TRAILER, numbers, *size))
    print(f"{size}: {off.mean():.3f} levels in the mean, {off.max()} at most")
    assert off.mean() < 0.6 and off.max() <= 6


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size", "suffix", "options", "fits"),
    [
        ("libx264", "yuv420p", (722, 406), ".mkv", {"bf": "3", "g": "12"}, True),
        ("libx264", "yuvj420p", (640, 360), ".mp4", {}, True),
        ("libx265", "yuv420p", (640, 360), ".mp4", {"x265-params": "log-level=none"}, True),
        ("libvpx-vp9", "yuv420p", (640, 360), ".webm", {"cpu-used": "8", "deadline": "realtime"}, True),
        ("libx264", "yuv422p", (640, 360), ".mp4", {}, False),
        ("libx264", "yuv420p10le", (640, 360), ".mp4", {}, False),
        ("libx264", "yuv420p", (640, 360), ".mp4", {"x264-params": "tff=1"}, False),
        ("ffv1", "yuv420p", (639, 360), ".mkv", {}, False),
    ],
)
def test_whoever_decodes(codec: str, pix_fmt: str, size: tuple[int, int], suffix: str, options: dict[str, str],
                         fits: bool, tmp_path: Path) -> None:  # fmt: skip
    """What the engines cannot take falls back, is counted, and is the same."""
    path = encode(tmp_path / f"a{suffix}", codec, pix_fmt=pix_fmt, size=size, options=options)
    sampler = Sampler(DEVICE)
    made = sampler(path.read_bytes(), [3, 30, 31, 49], 320, 180)
    assert sampler.by_cpu == (not (fits and ON_GPU)) and made.device == DEVICE
    assert torch.equal(made.cpu(), Sampler(CPU)(path, [3, 30, 31, 49], 320, 180))


def test_ten_bits(tmp_path: Path) -> None:
    options = {"x265-params": "log-level=none"}
    path = encode(tmp_path / "a.mp4", "libx265", pix_fmt="yuv420p10le", options=options)
    sampler = Sampler(DEVICE)
    off = (sampler(path, range(20, 30), 320, 180).cpu().int() - Sampler(CPU)(path, range(20, 30), 320, 180).int()).abs()
    print(f"10 bits: {off.float().mean():.3f} levels in the mean, {off.max()} at most")
    assert sampler.by_cpu == (not ON_GPU) and off.float().mean() < 1.0 and off.max() <= 4


def test_a_damaged_file(tmp_path: Path) -> None:
    path = encode(tmp_path / "a.mp4", frames=100)
    broken = bytearray(path.read_bytes())
    broken[len(broken) // 2 : len(broken) // 2 + 40] = bytes(40)
    sampler = Sampler(DEVICE)
    assert torch.equal(sampler(bytes(broken), range(100), 320, 180).cpu(),
                       Sampler(CPU)(bytes(broken), range(100), 320, 180))  # fmt: skip
    assert sampler.by_cpu == 1


def test_side_by_side_beside_training() -> None:
    """Several threads, while the default stream is busy: nothing is read too early, or written over."""
    clips = [range(start, start + 33) for start in range(0, 1280 if ON_GPU else 160, 80)]
    expected = [Sampler(DEVICE)(TRAILER, clip, 228, 128).cpu() for clip in clips[:6]]  # one by one
    busy = torch.randn(2048, 2048, device=DEVICE) if ON_GPU else torch.randn(64, 64)
    with ThreadPoolExecutor(LANES) as pool:
        for _ in range(3 if ON_GPU else 1):
            jobs = [pool.submit(Sampler(DEVICE), TRAILER, clip, 228, 128) for clip in clips]
            while not all(job.done() for job in jobs):
                busy = torch.nn.functional.normalize(busy @ busy)
            pairs = [together([a.result(), b.result()]) for a, b in zip(jobs[::2], jobs[1::2], strict=True)]
            del jobs
            copies = [pair.float().add(0) for pair in pairs]
            for number, clip in enumerate(expected):
                assert torch.equal(copies[number // 2][number % 2].cpu(), clip.float())


def test_batches_of_training(tmp_path: Path) -> None:
    """Samples, starts and numbers of frames are those of workers; resumes change nothing; threads end."""
    for number in range(5):
        encode(tmp_path / f"{number}.mp4", frames=20 + 9 * number)
    encode(tmp_path / "odd.mp4", pix_fmt="yuv422p")
    shutil.copy(TRAILER, tmp_path / "trailer.mp4")
    table = listed(str(tmp_path))
    shapes = [Shape(frames=17, height=128, width=224, batch=2), Shape(frames=9, height=96, width=96, batch=4, fps=12)]
    plain, other = Batches(table, shapes, 3), Batches(table, shapes, 3, gpu=DEVICE)
    by_cpu = 0
    for first in (0, 5):
        stream = other.of_rank(0, 1, first_step=first)
        for step, batch in zip(range(first, first + 6), stream, strict=False):
            expected = plain.at(step)
            assert (batch.samples, batch.rows, batch.starts) == (expected.samples, expected.rows, expected.starts)
            assert batch.frames.device == DEVICE and batch.frames.shape == expected.frames.shape and not batch.replaced
            off = (batch.frames.cpu().int() - expected.frames.int()).abs().float()
            assert off.mean() < 0.6 and off.max() <= 12
            assert torch.equal(other.at(step).frames, batch.frames)
            wanted = sum(key == "odd" for key in batch.keys) if ON_GPU else len(batch.keys)
            assert batch.decoded_by_cpu == wanted
            by_cpu += wanted
        stream.close()
    assert by_cpu and not [one for one in threading.enumerate() if one.name.startswith("decoder")]
