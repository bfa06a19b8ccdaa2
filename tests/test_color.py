"""High dynamic range to standard: the formulas against published numbers, the filter against the formulas."""

from __future__ import annotations

import gc
import subprocess
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from hpc.data.video import color

Array = npt.NDArray[np.float64]
KINDS = {"pq": color.PQ, "hlg": color.HLG}
LUMA_2020, LUMA_709 = np.array([0.2627, 0.6780, 0.0593]), np.array([0.2126, 0.7152, 0.0722])
PATCH = 16  # pixels a side


def hdr_frame(colors: Array, transfer: int) -> tuple[av.VideoFrame, Array]:
    """colors: [rows, columns, 3] of 0..1, R'G'B' -> a frame of patches, 10 bits, limited range, 4:4:4; and the colors
    that it holds after rounding."""
    red, green, blue = np.moveaxis(np.kron(colors, np.ones((PATCH, PATCH, 1))), -1, 0)
    luma = np.stack([red, green, blue], -1) @ LUMA_2020
    planes = [64 + 876 * luma, 512 + 896 * (blue - luma) / 1.8814, 512 + 896 * (red - luma) / 1.4746]
    planes = [plane.round() for plane in planes]
    frame = av.VideoFrame(luma.shape[1], luma.shape[0], "yuv444p10le")
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((luma.shape[0], plane.line_size // 2), np.uint16)
        rows[:, : luma.shape[1]] = values
        plane.update(rows.tobytes())
    frame.pts, frame.time_base = 0, Fraction(1, 24)
    frame.color_trc, frame.color_primaries, frame.colorspace, frame.color_range = transfer, 9, 9, 1
    luma, to_blue, to_red = (planes[0] - 64) / 876, (planes[1] - 512) / 896, (planes[2] - 512) / 896
    red, blue = luma + 1.4746 * to_red, luma + 1.8814 * to_blue
    green = (luma - LUMA_2020[0] * red - LUMA_2020[2] * blue) / LUMA_2020[1]
    middle = slice(PATCH // 2, None, PATCH)
    return frame, np.clip(np.stack([red, green, blue], -1), 0, 1)[middle, middle]


def errors(colors: Array, transfer: int) -> Array:
    """Difference of the filter's 8-bit Y, Cb and Cr from the formulas in float64, [rows, columns, 3]."""
    frame, held = hdr_frame(colors, transfer)
    made = color.ToneMap(frame)(frame)
    assert (made.format.name, made.color_trc, made.color_primaries, made.colorspace, made.color_range) == (
        "yuv420p", 1, 1, 1, 1,
    )  # fmt: skip
    red, green, blue = np.moveaxis(color.to_sdr(held, transfer, color.BT2020), -1, 0)
    luma = np.stack([red, green, blue], -1) @ LUMA_709
    expected = [16 + 219 * luma, 128 + 224 * (blue - luma) / 1.8556, 128 + 224 * (red - luma) / 1.5748]
    planes = made.to_ndarray()
    height, width = frame.height, frame.width
    chroma = planes[height:].reshape(2, height // 2, width // 2)[:, PATCH // 4 :: PATCH // 2, PATCH // 4 :: PATCH // 2]
    found = [planes[:height][PATCH // 2 :: PATCH, PATCH // 2 :: PATCH], *chroma]
    return np.abs(np.stack(found, -1) - np.stack(expected, -1))


def test_published_numbers() -> None:
    assert color.nits_to_pq(np.array([0.1, 100, 1000, 10000])) == pytest.approx([0.0623, 0.5081, 0.7518, 1], abs=1e-4)
    signal = np.linspace(0, 1, 101)
    assert color.nits_to_pq(color.pq_to_nits(signal)) == pytest.approx(signal, abs=1e-6)
    # BT.2408: white at 75 % of HLG and 58 % of PQ is 203 cd/m2
    white = color.hlg_to_nits(np.array([[0.75] * 3, [1.0] * 3, [0.0] * 3]), color.to_xyz(color.BT2020)[1])
    assert white[:, 0] == pytest.approx([203, 1000, 0], rel=2e-3)
    assert color.pq_to_nits(np.array(0.5807)) == pytest.approx(203, rel=2e-3)
    # BT.2087, from BT.2020 to BT.709
    matrix = np.linalg.inv(color.to_xyz(color.BT709)) @ color.to_xyz(color.BT2020)
    assert matrix == pytest.approx(
        np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]]), abs=1e-4
    )
    assert color.to_xyz(color.BT2020)[1] == pytest.approx(LUMA_2020, abs=1e-4)


def test_the_curve() -> None:
    """Below its knee (79 cd/m2) light stays as it is; it rises all the way, and ends at white."""
    assert color.eetf(np.array([0, 0.5, 20, 79])) == pytest.approx([0, 0.5, 20, 79], rel=1e-3)
    nits = color.eetf(np.linspace(0, 1000, 1001))
    assert (np.diff(nits) > 0).all() and nits[-1] == pytest.approx(203)
    assert color.eetf(np.array([4000.0, 10000])) == pytest.approx([203, 203])


@pytest.mark.parametrize("kind", KINDS)
def test_greys_and_colors(kind: str) -> None:
    """Errors in 8-bit codes, at most: greys 1.5; colors within BT.709 4; colors outside it, which are clipped, 12."""
    chance = np.random.default_rng(0)
    colors = chance.random((16, 32, 3))
    grey = np.linspace(0.1, 1, 32)[None, :, None] * np.ones((1, 1, 3))
    assert errors(grey, KINDS[kind]).max() <= 1.5
    mean = colors.mean(-1, keepdims=True)
    mild = mean + (colors - mean) / 4
    linear = color.to_sdr(hdr_frame(mild, KINDS[kind])[1], KINDS[kind], color.BT2020)
    within = ((linear > 0.02) & (linear < 1)).all(-1)
    found = errors(mild, KINDS[kind])
    assert within.mean() > 0.3 and found[within].max() < 4 and found[within].mean() < 0.5
    found = errors(colors, KINDS[kind])
    assert found.max() < 12 and found.mean() < 1


def test_other_primaries() -> None:
    """White stays white whatever the primaries; PQ in BT.709 keeps its hues."""
    for primaries in (1, 9, 12):
        white = color.to_sdr(np.full((1, 3), 0.9), color.PQ, primaries)
        assert np.ptp(white) < 1e-3
    red = color.to_sdr(np.array([[0.5, 0.0, 0.0]]), color.PQ, color.BT709)
    assert red[0, 0] > 0.5 and red[0, 1:].max() < 1e-6
    frame, _ = hdr_frame(np.full((2, 2, 3), 0.5), color.PQ)
    made = []
    for primaries in (2, 9, 22):
        frame.color_primaries = primaries
        made.append(color.ToneMap(frame)(frame).to_ndarray().tobytes())
    assert made[0] == made[1] == made[2]  # what is not said, or not known, is taken for BT.2020


def test_the_table_stands_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "it's C:\\, [so]; %d"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    frame, _ = hdr_frame(np.full((2, 2, 3), 0.5), color.PQ)
    tone_map = color.ToneMap(frame)
    assert len(list(folder.iterdir())) == 1
    tone_map(frame)
    del tone_map
    gc.collect()
    assert list(folder.iterdir()) == []


def test_a_film_that_went_to_hdr_comes_back(tmp_path: Path) -> None:
    """SDR that ffmpeg's zscale took to PQ with white at 203 cd/m2: as it was, but for the room that highlights get."""
    tags = "colorspace=bt709:color_primaries=bt709:color_trc=bt709"
    bt709 = f"scale=out_color_matrix=bt709,format=yuv444p,setparams={tags}"
    to_pq = ",zscale=t=smpte2084:p=bt2020:m=bt2020nc:npl=203,format=yuv444p10le"
    for name, filters in (("sdr.mkv", bt709), ("pq.mkv", bt709 + to_pq)):
        bars = ["-f", "lavfi", "-i", "smptehdbars=s=320x192:r=5:d=0.2", "-vf", filters, "-c:v", "ffv1"]
        subprocess.run(["ffmpeg", "-v", "error", *bars, tmp_path / name], check=True)
    pictures = []
    for path in ("sdr.mkv", "pq.mkv"):
        with av.open(str(tmp_path / path)) as container:
            frame = next(container.decode(video=0))
        frame = color.ToneMap(frame)(frame) if frame.color_trc == color.PQ else frame
        pictures.append(frame.reformat(160, 96, "rgb24").to_ndarray().astype(int))
    before, after = pictures
    below_the_knee = before.max(-1) < 160
    difference = np.abs(after - before)
    assert 0.2 < below_the_knee.mean() < 0.9
    assert difference[below_the_knee].mean() < 1.5
    assert 3 < (before - after)[~below_the_knee].max(-1).mean() < 40
