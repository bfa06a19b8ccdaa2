"""Vectors of clips: copies are told from other clips by what they look like; models of the real kinds are loaded."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpc.curate import embed
from hpc.curate.settings.embed import Embed
from hpc.data import layers, video
from hpc.data.work import Work
from hpc.models import perceptual
from hpc.models.embed import Perceptual

TRAILER = Path(__file__).parents[1] / "jobs" / "quickstart" / "trailer_bbb.mp4"
SPANS = [(12.0, 3.0), (20.5, 3.0), (24.0, 3.0), (33.0, 2.5)]  # seconds: start, length
COPIES = {
    "coarse": ["-vf", "null", "-crf", "35"],
    "cropped": ["-vf", "crop=iw*0.9:ih*0.9"],
    "faster": ["-vf", "setpts=PTS/1.25,fps=24"],
    "mirrored": ["-vf", "hflip"],
    "half": ["-vf", "scale=iw/2:ih/2"],
    "all": ["-vf", "eq=brightness=0.06,crop=iw*0.95:ih*0.95,hflip,scale=320:180,setpts=PTS/1.25,fps=24", "-crf", "30"],
}


def encode(source: Path, path: Path, *more: str) -> Path:
    at = more.index("-vf")
    command = ["ffmpeg", "-v", "error", "-y", *more[:at], "-i", source, "-an", *more[at:]]
    subprocess.run([*command, "-c:v", "libx264", "-preset", "ultrafast", path], check=True, timeout=180)
    return path


def frames_of(data: bytes) -> int:
    return sum(1 for _ in video.Decoder(io.BytesIO(data))) if data.startswith(b"\0\0\0") else 10


def vector(path: Path) -> np.ndarray:
    times, side = perceptual.times(frames_of(path.read_bytes())), perceptual.SIDE
    return perceptual.describe(video.sample(path, times, side, side))


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Some shots, of a small size."""
    folder = tmp_path_factory.mktemp("shots")
    small = ["-vf", "scale=640:360", "-crf", "16"]
    return [encode(TRAILER, folder / f"{i}.mp4", "-ss", str(start), "-t", str(length), *small)
            for i, (start, length) in enumerate(SPANS)]  # fmt: skip


@pytest.fixture(scope="module")
def vectors(originals: list[Path]) -> np.ndarray:
    return np.stack([vector(path) for path in originals])


# --- perceptual


@pytest.mark.parametrize("kind", COPIES)
def test_copies_are_told_from_other_clips(
    kind: str, originals: list[Path], vectors: np.ndarray, tmp_path: Path
) -> None:
    copies = np.stack([vector(encode(path, tmp_path / path.name, *COPIES[kind])) for path in originals])
    cosines = copies @ vectors.T
    assert np.diag(cosines).min() > 0.9
    assert (cosines - np.eye(len(SPANS))).max() < 0.7


def test_vectors_have_length_one_and_mirrors_the_same(vectors: np.ndarray) -> None:
    assert vectors.shape == (len(SPANS), perceptual.DIMENSIONS) and vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    random = np.random.default_rng(0)
    for _ in range(5):
        clip = random.integers(0, 256, (perceptual.FRAMES, perceptual.SIDE, perceptual.SIDE, 3), np.uint8)
        assert perceptual.describe(clip) @ perceptual.describe(clip[:, :, ::-1]) == pytest.approx(1, abs=1e-5)
        assert perceptual.describe(clip) @ perceptual.describe(clip[:, ::-1]) < 0.9


def test_a_clip_that_shows_nothing() -> None:
    for level in (0, 128, 255):
        clip = np.full((perceptual.FRAMES, perceptual.SIDE, perceptual.SIDE, 3), level, np.uint8)
        assert np.linalg.norm(perceptual.describe(clip)) < 0.01


def test_noise_of_a_standing_picture_counts_little() -> None:
    random = np.random.default_rng(1)
    y, x = np.mgrid[: perceptual.SIDE, : perceptual.SIDE] / perceptual.SIDE
    picture = 128 + 60 * np.sin(5 * x + 3 * y)[..., None] + 40 * np.cos(7 * y)[..., None] * [1, 0, -1]

    def standing() -> np.ndarray:
        noise = random.normal(0, 1, (perceptual.FRAMES, perceptual.SIDE, perceptual.SIDE, 3))
        return perceptual.describe(np.clip(picture + noise, 0, 255).astype(np.uint8))

    assert standing() @ standing() > 0.95


def test_times_are_uniform_fractions() -> None:
    assert perceptual.times(3200)[:3] == [50, 150, 250]
    for frames in (1, 4, 31, 33, 100):
        found = perceptual.times(frames)
        assert len(found) == perceptual.FRAMES and found == sorted(found) and found[-1] < frames


# --- the stage


def shard(folder: Path, videos: dict[str, bytes]) -> dict[str, dict[str, str]]:
    """A shard of clips as the stage finds it: upstream."""
    rows: list[dict[str, Any]] = []
    with layers.TarWriter(folder / "000000.tar") as tar:
        for uuid, data in videos.items():
            place = tar.add(uuid, {".mp4": data, ".json": b"{}"}).members[".mp4"]
            rows.append({"uuid": uuid, "verdict": "keep", "num_frames": frames_of(data), "width": 640, "height": 360}
                        | dict(zip(("mp4_offset", "mp4_size"), place, strict=True)))  # fmt: skip
    layers.write_table(folder / "000000.parquet", rows, {})
    return {"clips": {".tar": str(folder / "000000.tar"), ".parquet": str(folder / "000000.parquet")}}


def work(folder: Path, upstream: dict[str, dict[str, str]]) -> Work:
    (folder / "made").mkdir(exist_ok=True)
    return Work("000000", [], [], upstream, folder / "made", "f", lambda: None, lambda share, words: None)


def test_a_shard_has_a_vector_for_each_clip(originals: list[Path], vectors: np.ndarray, tmp_path: Path) -> None:
    videos = {f"clip-{i}": path.read_bytes() for i, path in enumerate(originals)}
    videos["clip-x"] = b"no video"
    made = embed.start(Embed(model="perceptual"))(work(tmp_path, shard(tmp_path, videos)))
    [path] = made.objects
    rows = layers.read_table(path).to_pylist()
    assert [row["uuid"] for row in rows] == [f"clip-{i}" for i in range(len(originals))]
    found = np.array([row["embedding"] for row in rows])
    assert np.diag(found @ vectors.T).min() > 0.99
    assert layers.read_meta(path) == {"stage": "curate.embed", "fingerprint": "f", "model": "perceptual",
                                      "revision": "", "dim": perceptual.DIMENSIONS, "frames": 32,
                                      "normalised": True}  # fmt: skip
    assert str(layers.read_table(path).schema.field("embedding").type).endswith(f"[{perceptual.DIMENSIONS}]")
    [bad] = made.bad
    assert bad.uri.endswith("000000.tar#clip-x.mp4") and bad.reason
    assert made.counts["clips"] == 5 and made.counts["embedded"] == 4 and made.counts["data_wait_seconds"] > 0


def test_a_shard_without_clips(tmp_path: Path) -> None:
    upstream = shard(tmp_path, {"a": b"x"})
    layers.write_table(tmp_path / "v.parquet", [{"uuid": "a", "verdict": "semantic"}], {})
    upstream["judge"] = {".parquet": str(tmp_path / "v.parquet")}
    made = embed.start(Embed(model="perceptual"))(work(tmp_path, upstream))
    assert layers.read_table(made.objects[0]).num_rows == 0 and made.counts["clips"] == 0


def test_sizes_and_times_of_the_perceptual_one() -> None:
    assert Perceptual().size(1920, 1080) == (48, 48) and len(Perceptual().times(10)) == 32


@pytest.mark.parametrize("model", ["perceptual", "cosmos-embed1-224p", "/models/x", "owner/name@main", "owner/name"])
def test_models_by_name(model: str) -> None:
    named = Embed(model=model).models()
    assert (not named) == (model == "perceptual")


@pytest.mark.parametrize("model", ["", "perceptul", "models/x/y", "owner/name@"])
def test_a_wrong_name(model: str) -> None:
    with pytest.raises(ValueError, match="cosmos-embed1-224p"):
        Embed(model=model)
