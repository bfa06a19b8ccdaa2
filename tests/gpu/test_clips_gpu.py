"""curate.clips where a GPU decodes and detects: the frames, the cuts and the bytes are those of the CPU."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no GPU", allow_module_level=True)

from hpc.curate import clips, gpu, source, split
from hpc.curate.look import Look
from hpc.curate.settings import Clips
from hpc.curate.settings.encode import Encode
from hpc.curate.settings.split import Split
from hpc.data import layers, storage, video
from hpc.data.units import Seconds
from hpc.data.video import nvdec
from hpc.data.work import Item, Made, Stopped, Work
from hpc.models import shots, shots_gpu

nvdec.prepare()
TRAILER = Path(__file__).parent.parent.parent / "jobs" / "quickstart" / "trailer_bbb.mp4"
SHORT = Split(min_clip=Seconds(0.5), min_frames=8, crop=Seconds(0.1), max_clip=Seconds(3.0))
SETTINGS = Clips(split=SHORT, encode=Encode(preset="ultrafast", crf=30.0))


def encode(path: Path, codec: str, frames: int = 50, pix_fmt: str = "yuv420p", size: tuple[int, int] = (640, 360),
           options: dict[str, str] | None = None) -> Path:  # fmt: skip
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


def on_cpu(path: Path) -> list[video.Frame]:
    return [frame for _, frame in video.Decoder(path)]


def on_gpu(path: Path, most: int = 2**30) -> Iterator[gpu.GpuLook]:
    info = video.probe(path)
    assert nvdec.fits(info)
    decoder = video.Decoder(path, nvdec=True)
    held = gpu.Held(info, decoder, most)
    for number, frame in decoder:
        yield held.look(number, frame, {}, b"")


@pytest.fixture(scope="module")
def batcher() -> shots_gpu.Batcher:
    return shots_gpu.Batcher(shots.load_transnetv2("cuda"))


class Stage:
    """Runs the stage in one scratch folder after another."""

    def __init__(self, folder: Path, batcher: shots_gpu.Batcher) -> None:
        self.folder, self.batcher, self.runs = folder, batcher, 0

    def __call__(self, *paths: Path, lanes: int = 8, nvdec: bool = True,
                 check: Callable[[], None] = lambda: None) -> Made:  # fmt: skip
        self.runs += 1
        scratch = self.folder / f"{self.runs}"
        scratch.mkdir()
        items = [Item(e.uri, e.size, e.etag) for e in (storage.stat(str(path)) for path in paths) if e]
        tools = source.Tools(SETTINGS, self.batcher, {}, lanes, 2**30 if nvdec else 0)
        return clips.process(tools, Work("000001", items, [], {}, scratch, "abc", check, lambda *a: None))


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, batcher: shots_gpu.Batcher) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"), batcher)


def content(made: Made) -> list[bytes]:
    return [path.read_bytes() for path in made.objects]


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size", "suffix", "options"),
    [
        ("libx264", "yuv420p", (640, 360), ".mp4", {}),
        ("libx264", "yuv420p", (722, 406), ".mkv", {"crf": "30"}),
        ("libx264", "yuv420p", (854, 480), ".mkv", {"bf": "0", "g": "10"}),
        ("libx264", "yuvj420p", (640, 360), ".mp4", {}),
        ("libx265", "yuv420p", (640, 360), ".mp4", {"x265-params": "log-level=none"}),
        ("libx265", "yuv420p10le", (640, 360), ".mp4", {"x265-params": "log-level=none"}),
        ("libvpx-vp9", "yuv420p", (640, 360), ".webm", {"cpu-used": "8", "deadline": "realtime"}),
    ],
)
def test_every_bit_is_the_cpus(codec: str, pix_fmt: str, size: tuple[int, int], suffix: str, options: dict[str, str],
                               tmp_path: Path) -> None:  # fmt: skip
    path = encode(tmp_path / f"film{suffix}", codec, pix_fmt=pix_fmt, size=size, options=options)
    expected = on_cpu(path)
    looks = list(on_gpu(path))
    assert all(look.coded for look in looks) and len(looks) == len(expected) == 50
    for look, frame in zip(looks, expected, strict=True):
        got = look.frame
        for name in ("pts", "duration", "time_base", "width", "height", "colorspace", "color_range", "color_trc"):
            assert getattr(got, name) == getattr(frame, name), name
        assert got.format.name == frame.format.name
        assert np.array_equal(got.to_ndarray(), frame.to_ndarray())
        number = look.number
        assert np.array_equal(look.rgb(160, 90), Look(number, frame, {}).rgb(160, 90)), "chroma siting"


def test_the_whole_trailer() -> None:
    count = 0
    for look, frame in zip(on_gpu(TRAILER, most=64 * 2**20), on_cpu(TRAILER), strict=True):
        assert look.pts == frame.pts and np.array_equal(look.frame.to_ndarray(), frame.to_ndarray())
        count += 1
    assert count == 1323


def test_the_gpus_memory_is_bounded() -> None:
    most = 40 * 1536 * 720 * 3 // 2
    looks = [look for look, _ in zip(on_gpu(TRAILER, most), range(300), strict=False)]
    assert 30 <= sum(look.coded is not None for look in looks) <= 40
    assert all(look.coded is None for look in looks[:250])


@pytest.mark.parametrize("kind", ["odd", "interlaced", "high"])
def test_what_does_not_fit(kind: str, tmp_path: Path) -> None:
    if kind == "odd":
        assert not nvdec.fits(video.probe(encode(tmp_path / "a.mkv", "ffv1", size=(639, 360))))
    elif kind == "interlaced":
        path = encode(tmp_path / "a.mp4", "libx264", options={"x264-params": "tff=1"})
        assert not nvdec.fits(video.probe(path))
        with pytest.raises(video.Unfit, match="interlaced"):
            list(video.Decoder(path, nvdec=True))
    else:
        path = encode(tmp_path / "a.mp4", "libx264", pix_fmt="yuv420p10le")
        assert not nvdec.fits(video.probe(path))
        with pytest.raises(video.Unfit, match="GPU does not decode"):
            list(video.Decoder(path, nvdec=True))


def test_probabilities_and_cuts(batcher: shots_gpu.Batcher) -> None:
    frames = on_cpu(TRAILER)
    pictures = [video.Resizer(48, 27)(frame) for frame in frames]
    exact = shots.Detector(shots.load_transnetv2("cpu"))
    expected = np.concatenate([*(exact.push(picture) for picture in pictures), exact.finish()])
    uploaded, own = batcher.detector(), batcher.detector()
    lower = np.concatenate([*(uploaded.push(picture) for picture in pictures), uploaded.finish()])
    found = np.concatenate([*(own.push(look.planes) for look in on_gpu(TRAILER)), own.finish()])
    print(f"float16: {np.abs(lower - expected).max():.4f}, and pictures: {np.abs(found - expected).max():.4f}")
    assert np.abs(lower - expected).max() < 0.002
    assert np.abs(found - expected).max() < 0.02
    assert np.array_equal(found > 0.4, expected > 0.4)


def test_the_middle_of_a_video(batcher: shots_gpu.Batcher) -> None:
    looks = list(on_gpu(TRAILER, most=2**33))[:500]
    whole, rest = batcher.detector(), batcher.detector(200)
    expected = np.concatenate([*(whole.push(look.planes) for look in looks), whole.finish()])
    found = np.concatenate([*(rest.push(look.planes) for look in looks[175:]), rest.finish()])
    assert np.array_equal(found, expected[200:])


def test_company_changes_no_answer(batcher: shots_gpu.Batcher) -> None:
    windows = torch.randint(0, 256, (24, 100, 27, 48, 3), dtype=torch.uint8, device="cuda")
    made = torch.cuda.Event()
    made.record()
    alone = [batcher.submit(window, made).result() for window in windows]
    answers: dict[int, np.ndarray] = {}

    def submit(start: int) -> None:
        for i, answer in [(i, batcher.submit(windows[i], made)) for i in range(start, 24, 3)]:
            answers[i] = answer.result()

    threads = [threading.Thread(target=submit, args=(start,)) for start in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(answers[i], alone[i]) for i in range(24))


def test_the_same_bytes_with_any_lanes_and_on_the_cpu(stage: Stage, tmp_path: Path) -> None:
    films = [tmp_path / f"{i}.mp4" for i in range(5)]
    shutil.copy(TRAILER, films[0])
    encode(films[1], "libx264", frames=200)
    films[2].write_bytes(b"no video at all")
    broken = bytearray(encode(films[3], "libx264", frames=200).read_bytes())
    broken[len(broken) // 2 : len(broken) // 2 + 40] = bytes(40)
    films[3].write_bytes(broken)
    encode(films[4], "libx264", pix_fmt="yuv420p10le", frames=200)
    one, many = stage(*films, lanes=1), stage(*films, lanes=8)
    decoded = stage(*films, lanes=4, nvdec=False)
    assert content(one) == content(many)
    assert [bad.reason for bad in many.bad] == ["not-a-video"] and many.counts["inputs"] == 5
    assert one.counts["frames"] == decoded.counts["frames"]
    assert 1323 + 200 <= many.counts["frames_on_gpu"] < many.counts["frames"]
    mine, theirs = (layers.read_table(made.objects[1]).to_pylist() for made in (many, decoded))
    assert [row["uuid"] for row in mine] == [row["uuid"] for row in theirs]
    whole = [i for i, row in enumerate(mine) if not row["source"].endswith("3.mp4")]
    assert [mine[i]["mp4_size"] for i in whole] == [theirs[i]["mp4_size"] for i in whole]


def test_it_stops(stage: Stage) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 300:
            raise Stopped

    before = threading.active_count()
    with pytest.raises(Stopped):
        stage(*[TRAILER] * 12, check=check)
    assert threading.active_count() <= before


def test_labels_of_the_stage(batcher: shots_gpu.Batcher) -> None:
    labeller = split.Shots(batcher, 0.4, 0)
    labels = [label for look in on_gpu(TRAILER) for label in labeller.push(look)] + labeller.finish()
    assert len(labels) == 1323
