"""Layers see the clips that are kept, in the order of their tar, with their videos; pictures come by their number."""

from __future__ import annotations

import contextlib
from pathlib import Path

import av
import numpy as np
import pytest

from hpc.data import layers, upstream, video
from hpc.data.work import Work


def work(place: Path, **needs: dict[str, Path]) -> Work:
    named = {stage: {suffix: str(path) for suffix, path in objects.items()} for stage, objects in needs.items()}
    return Work("000000", [], [], named, place, "f", lambda: None, lambda share, words: None)


@pytest.fixture
def clips(tmp_path: Path) -> dict[str, Path]:
    """Four clips, the second of them dropped."""
    rows = []
    with layers.TarWriter(tmp_path / "000000.tar") as tar:
        for name, verdict in (("a", "keep"), ("b", "black"), ("c", "keep"), ("d", "keep")):
            row = {"uuid": name, "verdict": verdict, "fps": 24.0, "mp4_offset": None, "mp4_size": None}
            if verdict == "keep":
                places = tar.add(name, {".mp4": f"video of {name}".encode(), ".json": b"{}"}).members
                row |= dict(zip(("mp4_offset", "mp4_size"), places[".mp4"], strict=True))
            rows.append(row)
    layers.write_table(tmp_path / "000000.parquet", rows, {})
    return {".tar": tmp_path / "000000.tar", ".parquet": tmp_path / "000000.parquet"}


def layer(path: Path, rows: list[dict[str, object]]) -> dict[str, Path]:
    layers.write_table(path, rows, {})
    return {".parquet": path}


def test_kept_clips_with_their_videos(tmp_path: Path, clips: dict[str, Path]) -> None:
    verdicts = layer(tmp_path / "v.parquet", [{"uuid": "c", "verdict": "semantic"}, {"uuid": "d", "verdict": "keep"}])
    captions = layer(tmp_path / "t.parquet", [{"uuid": "a", "caption": "x"}])
    found = upstream.clips(work(tmp_path, clips=clips, judge=verdicts, caption=captions), ["fps"])
    assert [(one.uuid, one.row["fps"]) for one in found] == [("a", 24.0), ("d", 24.0)]
    assert [data for _, data in upstream.videos(found)] == [b"video of a", b"video of d"]
    alone = upstream.clips(work(tmp_path, clips=clips))
    assert [one.uuid for one in alone] == ["a", "c", "d"] and "fps" not in alone[0].row


def test_a_stage_without_clips_is_told_what_it_lacks(tmp_path: Path) -> None:
    captions = layer(tmp_path / "t.parquet", [{"uuid": "a", "caption": "x"}])
    with pytest.raises(ValueError, match="add the stage that makes them to `needs`"):
        upstream.clips(work(tmp_path, caption=captions))


def test_pictures_by_number(tmp_path: Path) -> None:
    """Frame i of the film is a plain grey of 20 * i."""
    path = tmp_path / "x.mp4"
    with contextlib.closing(av.open(str(path), "w")) as out:
        stream = out.add_stream("libx264", 10, options={"crf": "10", "g": "4"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for grey in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 20 * grey, np.uint8), "rgb24")
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    for source in (path, path.read_bytes()):
        pictures = video.sample(source, [0, 3, 3, 11, 15], 32, 24)
        assert pictures.shape == (5, 24, 32, 3) and pictures.dtype == np.uint8
        assert np.abs(pictures.mean((1, 2, 3)) - [0, 60, 60, 220, 220]).max() < 4
    late = video.sample(path, [5, 7], 32, 24)
    assert (late == video.sample(path, [0, 5, 7], 32, 24)[1:]).all(), "from the key frame before"
    assert video.sample(path, [], 32, 24).shape == (0, 24, 32, 3)
