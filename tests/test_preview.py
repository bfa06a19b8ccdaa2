"""Windows and their animated previews: exact numbers, the right pictures, spans equal to the whole, bounded memory."""

from __future__ import annotations

import io
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from hpc.curate import clips, filters, preview, source
from hpc.curate.look import Look
from hpc.curate.settings import Clips, Encode, Split
from hpc.curate.settings.preview import Preview
from hpc.curate.windows import LEAST, windows
from hpc.data import layers, storage, video
from hpc.data.units import Seconds
from hpc.data.work import Item, Made, Work

TRAILER = Path(__file__).parents[1] / "jobs" / "quickstart" / "trailer_bbb.mp4"
SETTINGS = Clips(
    split=Split(detector="stride", stride=Seconds(20.0)), encode=Encode(preset="ultrafast", crf=30.0), preview=Preview()
)


def test_the_published_rule() -> None:
    """B4 of cosmos_curate's windowing: ends inclusive."""
    assert windows(3) == [] and windows(4) == [(0, 3)] and windows(256) == [(0, 255)]
    assert windows(300) == [(0, 299)] and windows(383) == [(0, 382)] and windows(384) == [(0, 255), (256, 383)]
    assert windows(400) == [(0, 255), (256, 399)]
    assert windows(640, 256) == [(0, 255), (256, 511), (512, 639)] and windows(639)[-1] == (256, 638)


@given(st.integers(0, 5000), st.integers(8, 600))
def test_windows_are_all_of_a_clip(frames: int, window: int) -> None:
    found = windows(frames, window)
    assert [n for first, last in found for n in range(first, last + 1)] == list(range(frames if found else 0))
    assert bool(found) == (frames >= LEAST)
    assert all(min(frames, window // 2) <= last - first + 1 < window + window // 2 for first, last in found)


class Grey(Look):
    """A frame without a decoder: its picture tells its number."""

    def __init__(self, number: int, pts: int) -> None:
        self.number, self.pts, self.asked = number, pts, 0

    def rgb(self, width: int, height: int) -> np.ndarray:
        self.asked += 1
        return np.full((height, width, 3), self.number % 251, np.uint8)


INFO = video.Video(64, 32, 0, Fraction(1), "", "", Fraction(24), 0, 0.0, 0, Fraction(1, 24), "", 0)


def shown(file: Path | io.BytesIO) -> list[tuple[np.ndarray, int]]:
    """(picture, milliseconds) of an animation that loops for ever; a single picture stands still."""
    found = []
    with PIL.Image.open(file) as image:
        assert image.format == "WEBP" and (image.n_frames == 1 or image.info["loop"] == 0)
        for n in range(image.n_frames):
            image.seek(n)
            picture = np.asarray(image.convert("RGB"), np.float32)
            found.append((picture, image.info["duration"] or 1000))
    return found


@pytest.mark.parametrize("frames", [3, 4, 255, 256, 383, 384, 511, 700, 1279])
def test_each_window_has_its_pictures(frames: int, tmp_path: Path) -> None:
    made = preview.Windows(INFO, Preview(quality=90), tmp_path / "0", 0.01)
    held = 0
    for number in range(frames):
        made.take(Grey(number, number), number / 24)
        held = max(held, len(made.window.pictures) + (len(made.rest.pictures) if made.rest else 0))
    made.close()
    assert list(made.files) == windows(frames) and held <= (256 + 128 + 127) // 24 + 2
    for (first, last), path in made.files.items():
        assert path == tmp_path / f"0.preview_{first}_{last}.webp"
        pictures = shown(path)
        wanted = [n % 251 for n in range(first, last + 1, 24)]
        assert [ms for _, ms in pictures] == [1000] * len(wanted)
        assert all(p.shape == (32, 64, 3) for p, _ in pictures)
        assert max(abs(p.mean() - grey) for (p, _), grey in zip(pictures, wanted, strict=True)) <= 1.5
    made.abandon()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("frames", [1, 2, 5, 8, 48, 49, 100, 1440, 5000])
def test_the_middle_is_near(frames: int) -> None:
    made = preview.Middle(INFO, 16)
    looks = [Grey(number, number) for number in range(frames)]
    for look in looks:
        made.take(look)
        assert len(made.looks) <= 8
    made.picture()
    [at] = [look.number for look in looks if look.asked]
    assert abs(at - (frames - 1) / 2) <= max(2, frames / 32)


def test_pictures_go_by_time(tmp_path: Path) -> None:
    """Of a variable frame rate the first frame of each second; none twice where there is a gap."""
    made = preview.Windows(INFO, Preview(quality=90), tmp_path / "0", 0.01)
    looks = [Grey(20 * n, 0) for n in range(9)]
    for look, seconds in zip(looks, (0, 0.5, 0.995, 1.5, 3.7, 3.9, 4.2, 4.99, 5.5), strict=True):
        made.take(look, seconds)
    made.close()
    assert [look.asked for look in looks] == [1, 0, 1, 0, 1, 0, 1, 1, 0]


def stage(folder: Path, settings: Clips, *items: Item) -> Made:
    folder.mkdir()
    tools = source.Tools(settings, None, filters.start(settings.filter))
    return clips.process(tools, Work("000000", list(items), [], {}, folder, "abc", lambda: None, lambda *a: None))


def item(part: int = 0, parts: int = 1) -> Item:
    entry = storage.stat(str(TRAILER))
    return Item(entry.uri, entry.size, entry.etag, part, parts)


def rows(made: Made) -> list[dict[str, Any]]:
    return [r for r in layers.read_table(made.objects[1]).to_pylist() if r["verdict"] == "keep"]


@pytest.fixture(scope="module")
def trailer(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return stage(tmp_path_factory.mktemp("preview") / "whole", SETTINGS, item())


def test_in_the_shard(trailer: Made) -> None:
    """Members of the clip's key, found by webdataset and by the table's byte ranges; at most 240 high."""
    samples = {s["__key__"]: s for s in webdataset.WebDataset(str(trailer.objects[0]), shardshuffle=False)}
    tar = trailer.objects[0].read_bytes()
    found = rows(trailer)
    assert [r["num_frames"] for r in found] == [480, 480, 363]
    for row in found:
        bounds = windows(row["num_frames"])
        sample = samples[row["uuid"]]
        told = json.loads(sample["json"])["previews"]
        assert [(p["start_frame"], p["end_frame"]) for p in row["previews"]] == bounds
        assert told == [{"start_frame": first, "end_frame": last} for first, last in bounds]
        assert sorted(name for name in sample if name.startswith("preview")) == sorted(
            f"preview_{first}_{last}.webp" for first, last in bounds
        )
        for p in row["previews"]:
            member = sample[f"preview_{p['start_frame']}_{p['end_frame']}.webp"]
            assert tar[p["offset"] : p["offset"] + p["size"]] == member
            pictures = shown(io.BytesIO(member))
            assert {p.shape[0] for p, _ in pictures} == {min(240, row["height"])}
            # equal pictures in a row are one that lasts longer
            assert sum(ms for _, ms in pictures) == 1000 * ((p["end_frame"] - p["start_frame"]) // 24 + 1)


def test_the_pictures_are_the_clips(trailer: Made) -> None:
    """The k-th picture of a window is the frame k seconds after its first one."""
    frames = [f.to_ndarray(format="rgb24") for n, f in video.Decoder(TRAILER) if 480 <= n < 960 and (n - 480) % 8 == 0]
    row = rows(trailer)[1]
    tar = trailer.objects[0].read_bytes()
    for p in row["previews"]:
        at = p["start_frame"]
        for picture, ms in shown(io.BytesIO(tar[p["offset"] : p["offset"] + p["size"]])):
            size = picture.shape[1::-1]
            near = {8 * k: np.abs(picture - np.asarray(PIL.Image.fromarray(f).resize(size), np.float32)).mean()
                    for k, f in enumerate(frames) if abs(8 * k - at) <= 48}  # fmt: skip
            assert near[at] < 6 and near[at] <= min(near.values()) + 0.5, (at, near)
            at += 24 * ms // 1000


def test_spans_equal_the_whole(trailer: Made, tmp_path: Path) -> None:
    def members(made: Made) -> dict[str, dict[str, bytes]]:
        with made.objects[0].open("rb") as file:
            return dict(layers.read_tar(file))

    parts = [members(stage(tmp_path / f"{n}", SETTINGS, item(n, 3))) for n in range(3)]
    assert {key: value for part in parts for key, value in part.items()} == members(trailer)


def test_none_unless_named(tmp_path: Path) -> None:
    made = stage(tmp_path / "plain", Clips(split=SETTINGS.split, encode=SETTINGS.encode), item())
    assert [r["previews"] for r in rows(made)] == [None] * 3
    with made.objects[0].open("rb") as file:
        assert {s for _, members in layers.read_tar(file) for s in members} == {".mp4", ".json", ".webp"}
