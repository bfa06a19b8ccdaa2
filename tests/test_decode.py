"""Frames for a GPU: the numbers that the CPU's path takes, in pictures that are the same to the last bit anywhere."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
import pytest
import torch

from hpc.data import video
from hpc.data.video import nvdec
from hpc.data.video.sample_gpu import Sampler, together
from hpc.kernels import yuv
from hpc.prepare.settings import LatentsEncode
from hpc.train.settings import TrainTokenizer
from hpc.train.settings.data import Shape
from hpc.train.settings.tokenizer import Sizes

TRAILER = Path(__file__).parents[1] / "jobs" / "quickstart" / "trailer_bbb.mp4"
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Two seconds of the trailer, anew, 640x360: key frames every 12, and frames shown before some that they need."""
    return excerpt(tmp_path_factory.mktemp("film") / "a.mp4").read_bytes()


def excerpt(path: Path, frames: int = 48, pix_fmt: str = "yuv420p", size: tuple[int, int] = (640, 360)) -> Path:
    with av.open(str(TRAILER)) as source, av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=24, options={"preset": "veryfast", "g": "12", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        source.seek(20_000_000)
        for number, frame in zip(range(frames), source.decode(video=0), strict=False):
            frame = frame.reformat(*size, pix_fmt)
            frame.pts, frame.time_base, frame.pict_type = number, Fraction(1, 24), 0
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def apart(made: torch.Tensor, expected: np.ndarray[Any, Any]) -> tuple[float, int]:
    """Mean and largest distance, in levels."""
    off = np.abs(made.cpu().numpy().astype(int) - expected)
    return float(off.mean()), int(off.max())


@pytest.mark.parametrize("size", [(228, 128), (640, 360), (320, 360), (854, 480), (227, 128), (96, 54)])
def test_pictures_are_those_of_the_cpus_path(film: bytes, size: tuple[int, int]) -> None:
    """Neighbouring frames are further apart than these pictures are from those that they stand for."""
    numbers = [0, 13, 13, 30, 47, 99]
    expected = video.sample(film, numbers, *size)
    sampler = Sampler(CPU)
    made = sampler(film, numbers, *size)
    assert made.shape == (6, size[1], size[0], 3) and made.dtype == torch.uint8 and sampler.by_cpu == 1
    mean, most = apart(made, expected)
    assert mean < 0.6 and most <= 5
    assert torch.equal(made[1], made[2]) and torch.equal(made[4], made[5]) and not torch.equal(made[0], made[1])
    assert apart(made[1:2], video.sample(film, [14], *size))[0] > 2 * mean


def test_numbers_from_the_key_frame_before(film: bytes) -> None:
    """Alone, together or late, a frame is the same, by a file as by its bytes."""
    sampler = Sampler(CPU)
    every = sampler(film, range(48), 160, 90)
    for first in (1, 11, 12, 29, 46):
        assert torch.equal(sampler(io.BytesIO(film), [first, first + 1], 160, 90), every[first : first + 2])
    assert sampler(film, [], 160, 90).shape == (0, 90, 160, 3)


@pytest.mark.parametrize("pix_fmt", ["yuvj420p", "yuv422p", "yuv420p10le"])
def test_other_formats(tmp_path: Path, pix_fmt: str) -> None:
    path = excerpt(tmp_path / "a.mp4", 4, pix_fmt)
    mean, most = apart(Sampler(CPU)(path, [0, 3], 320, 180), video.sample(path, [0, 3], 320, 180))
    assert mean < 1.1 and most <= 5


def test_frames_that_change_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream whose pictures become smaller, and little memory."""
    parts = [excerpt(tmp_path / f"{i}.h264", 6, size=size) for i, size in enumerate([(640, 360), (320, 180)])]
    (tmp_path / "both.h264").write_bytes(b"".join(part.read_bytes() for part in parts))
    expected = video.sample(tmp_path / "both.h264", range(12), 160, 90)
    whole = Sampler(CPU)(tmp_path / "both.h264", range(12), 160, 90)
    assert apart(whole, expected)[0] < 0.6
    monkeypatch.setattr("hpc.data.video.sample_gpu.HELD", 1)
    assert torch.equal(Sampler(CPU)(tmp_path / "both.h264", range(12), 160, 90), whole)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_fitted_as_arrays_are(film: bytes, fit: Any) -> None:
    wide, high, left, top = video.fit.placed(640, 360, 128, 128, fit)
    expected = video.fit.laid(video.sample(film, [5, 6], wide, high), 128, 128, left, top)
    made = Sampler(CPU).fitted(film, [5, 6], (640, 360), (128, 128), fit)
    mean, most = apart(made, expected)
    assert made.shape == (2, 128, 128, 3) and mean < 0.6 and most <= 5
    assert (made.numpy() == 0).all(-1)[:, :20].all() == (fit == "pad")
    assert together([made, made]).shape == (2, 2, 128, 128, 3)


@pytest.mark.parametrize(("size", "to"), [((720, 1280), (256, 456)), ((90, 160), (360, 640)), ((2160, 3840), (60, 90))])
@pytest.mark.parametrize("deep", [False, True])
def test_whole_numbers_are_exact(size: tuple[int, int], to: tuple[int, int], deep: bool) -> None:
    """In float32, in any order, and with the 11 bits that TF32 has: as in int64."""
    most = 1023 if deep else 255
    noise = torch.from_numpy(np.random.default_rng(0).choice([0, most, most // 3], (2, *size)))
    (rows, b), (columns, c) = yuv.whole(size[0], to[0], 0.0, CPU), yuv.whole(size[1], to[1], yuv.LEFT, CPU)
    for weights, bits in ((rows, b), (columns, c)):
        assert (weights.sum(1) == 2**bits).all() and weights.abs().max() <= 2048
        assert ((weights - yuv.bicubic(*weights.T.shape, yuv.LEFT if weights is columns else 0.0) * 2**bits).abs()
                <= 8).all()  # fmt: skip
    step = b - (0 if deep else 2)
    quarters = (rows.long() @ noise + 2 ** (step - 1)) >> step
    assert quarters.abs().max() <= 2048
    expected = (quarters @ columns.long().T + 2 ** (c - 3)) >> (c - 2)
    made = yuv.resized(noise.float(), *to, deep, yuv.LEFT)
    assert torch.equal(made.long(), expected)
    assert quarters.abs().amax() * columns.abs().sum(1).max() < 2**24


def test_ten_bits_are_used() -> None:
    """A ramp of 10 bits, within a level of the same ramp of 8, and of finer steps than these."""
    ramp = torch.arange(256, 3 * 256)[None].expand(64, -1)
    deep = (ramp << 6).to(torch.int32).numpy().astype(np.uint16)
    grey = torch.full((32, 256, 2), 128)
    ten = yuv.Planes(torch.from_numpy(deep), torch.from_numpy((grey << 8).numpy().astype(np.uint16)), 1, True)
    eight = yuv.Planes((ramp >> 2).to(torch.uint8), grey.to(torch.uint8), 1, True)
    fine, coarse = (yuv.rgb([one], 128, 16)[0, 8, :, 0].int() for one in (ten, eight))
    assert (fine - coarse).abs().max() <= 1 and (fine[1:] >= fine[:-1]).all() and fine[0] < 70 < 180 < fine[-1]


def test_who_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda", 1)
    assert nvdec.device_for("cpu", gpu) is None and nvdec.device_for("auto", CPU) is None
    with pytest.raises(ValueError, match=r"decode: gpu: there is no GPU here.*decode: cpu"):
        nvdec.device_for("gpu", CPU)
    monkeypatch.setattr(nvdec, "_missing", lambda: "")
    assert nvdec.device_for("auto", gpu) == nvdec.device_for("gpu", gpu) == gpu
    monkeypatch.setattr(nvdec, "_missing", lambda: "libnvcuvid.so.1: cannot open")
    assert nvdec.device_for("auto", gpu) is None
    with pytest.raises(ValueError, match=r"libnvcuvid.so.1: cannot open: in a container NVIDIA_DRIVER_CAPABILITIES"):
        nvdec.device_for("gpu", gpu)


def test_what_a_spec_cannot_say() -> None:
    same = {"tokenizer": Sizes(family="wan"), "shapes": (Shape(frames=9, height=64, width=64, batch=1),), "steps": 2000}
    assert TrainTokenizer(**same, decode="auto", in_memory=True).decode == "auto"
    with pytest.raises(ValueError, match="decode: gpu: with `in_memory` each clip is decoded once, by CPUs"):
        TrainTokenizer(**same, decode="gpu", in_memory=True)
    with pytest.raises(msgspec.ValidationError, match="Invalid enum value 'auto'"):
        msgspec.convert({"decode": "auto"}, LatentsEncode)
