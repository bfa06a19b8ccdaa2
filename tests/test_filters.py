"""The filters that need no model, on videos that the tests make so that the truth is known, and on the trailer."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
import pytest
from test_clips import FAST, TRAILER, Stage, ffmpeg, item, rows

from hpc.curate.filters import blur, displacement, motion
from hpc.curate.settings import Clips, Split
from hpc.curate.settings.filters import SCORES, Black, Blur, Duration, Filters, Motion, Resolution, Static
from hpc.data import video
from hpc.data.units import Seconds

WHOLE = Split(detector="stride", stride=Seconds(60.0), min_clip=Seconds(0.5))
SECONDS = Split(detector="stride", stride=Seconds(2.5), min_clip=Seconds(0.5))
EVERYTHING = Filters(resolution=Resolution(mode="score-only"), duration=Duration(mode="score-only"),
                     black=Black(mode="score-only"), static=Static(mode="score-only"), blur=Blur(mode="score-only"),
                     motion=Motion(mode="score-only"))  # fmt: skip
PIXELS = Filters(motion=Motion(mode="score-only", by="pixels"))
X264 = ("-c:v", "libx264", "-preset", "veryfast", "-bf", "0", "-refs", "1")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("stage"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1280x720 of grass and trees: something to see everywhere."""
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    ffmpeg("-ss", "27", "-i", TRAILER, "-frames:v", "1", path)
    return path


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """7.5 s of the trailer with cuts, 320x180, H.264 with B-frames."""
    path = tmp_path_factory.mktemp("real") / "real.mp4"
    ffmpeg("-ss", "31", "-t", "7.5", "-i", TRAILER, "-vf", "scale=320:180", "-c:v", "libx264", "-preset", "veryfast",
           "-g", "48", "-bf", "3", "-an", path)  # fmt: skip
    return path


def measured(stage: Stage, path: Path, named: Filters = EVERYTHING, rules: Split = WHOLE) -> list[dict[str, Any]]:
    made = stage(Clips(split=rules, encode=FAST, filter=named), item(path))
    assert made.bad == []
    return rows(made)


def only(stage: Stage, path: Path, named: Filters = EVERYTHING) -> dict[str, Any]:
    (row,) = measured(stage, path, named)
    return row


def source(path: Path, graph: str, frames: int = 72, encoder: tuple[str, ...] = X264) -> Path:
    """A video of what lavfi makes of this."""
    ffmpeg("-f", "lavfi", "-i", graph, "-frames:v", f"{frames}", "-pix_fmt", "yuv420p", *encoder, path)
    return path


def pan(path: Path, picture: Path, speed: float, side: int = 640, encoder: tuple[str, ...] = X264) -> Path:
    """The camera moves right by `speed` pixels a frame: 16:9, `side` pixels wide."""
    height = side * 9 // 16 // 2 * 2
    ffmpeg("-loop", "1", "-r", "24", "-i", picture, "-frames:v", "48", "-vf",
           f"scale={2 * side}:-2,crop={side}:{height}:x='n*{speed}':y=0:exact=1,format=yuv420p",
           *encoder, path)  # fmt: skip
    return path


# motion


@pytest.mark.parametrize("speed", [0, 2, 8])
def test_motion_is_the_speed_of_the_camera(stage: Stage, picture: Path, tmp_path: Path, speed: int) -> None:
    """By vectors and by pixels: pixels a frame by width + height."""
    path = pan(tmp_path / "pan.mp4", picture, speed)
    truth = speed / (640 + 360)
    by_vectors = only(stage, path)
    assert by_vectors["motion_pixels_global"] is None and by_vectors["motion_pixels_patch"] is None
    by_pixels = only(stage, path, PIXELS)
    assert by_pixels["motion_vectors_global"] is None and by_pixels["motion_vectors_patch"] is None
    for row, kind in ((by_vectors, "vectors"), (by_pixels, "pixels")):
        assert row[f"motion_{kind}_global"] == pytest.approx(truth, rel=0.15, abs=2e-5), kind
        assert row[f"motion_{kind}_patch"] == pytest.approx(truth, rel=0.25, abs=2e-5), kind
    for named in (Filters(motion=Motion()), Filters(motion=Motion(by="pixels"))):
        row = only(stage, path, named)
        assert row["verdict"] == ("keep" if speed else "motion"), row["reasons"]


@pytest.mark.parametrize("side", [128, 224])
def test_motion_of_small_videos(stage: Stage, picture: Path, tmp_path: Path, side: int) -> None:
    """The same way across the picture is the same score, also with sides that upstream refuses."""
    speed = 8 * side / 640
    row = only(stage, pan(tmp_path / "pan.mp4", picture, speed, side))
    assert row["motion_vectors_global"] == pytest.approx(0.008, rel=0.2)
    assert row["motion_vectors_patch"] == pytest.approx(0.008, rel=0.35)
    assert only(stage, tmp_path / "pan.mp4", PIXELS)["motion_pixels_global"] == pytest.approx(0.008, rel=0.2)


@pytest.mark.parametrize(
    ("encoder", "kind"),
    [
        (("-c:v", "mpeg4", "-q:v", "3"), "vectors"),
        (("-c:v", "mpeg2video", "-q:v", "3"), "vectors"),
        (("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none"), "pixels"),
        (("-c:v", "libx264", "-preset", "ultrafast", "-g", "1"), "pixels"),
    ],
    ids=["mpeg4", "mpeg2", "hevc", "h264-intra"],
)
def test_which_codecs_have_vectors(
    stage: Stage, picture: Path, tmp_path: Path, encoder: tuple[str, ...], kind: str
) -> None:
    """The columns tell which measure was used; whichever it was, it is about the speed."""
    path = pan(tmp_path / "pan.mkv", picture, 8, encoder=encoder)
    row = only(stage, path)
    assert [row[f"motion_{k}_global"] is not None for k in ("vectors", "pixels")] == [
        kind == "vectors",
        kind == "pixels",
    ]
    assert row[f"motion_{kind}_global"] == pytest.approx(0.008, rel=0.2)
    row = only(stage, path, Filters(motion=Motion(by="vectors", min_vectors_global=0.1, min_pixels_global=0.1)))
    assert row["motion_pixels_global"] is None  # not measured, and so it drops nothing
    assert row["verdict"] == ("motion" if kind == "vectors" else "keep")
    assert row["reasons"] == (["motion_vectors_global 0.00" in r and r for r in row["reasons"]] or [])


def test_pixels_are_the_same_for_every_codec(stage: Stage, tmp_path: Path) -> None:
    """One shot of real film: within 20 % of each other, clip by clip, whatever was lost in the copy."""
    real, path = tmp_path / "real.mp4", tmp_path / "copy.mkv"
    ffmpeg("-ss", "15.5", "-t", "7.5", "-i", TRAILER, "-vf", "scale=640:360", "-an", *X264, real)
    ffmpeg("-i", real, "-c:v", "libx265", "-preset", "ultrafast", "-crf", "26", "-x265-params", "log-level=none", path)
    one, other = (measured(stage, p, PIXELS, SECONDS) for p in (real, path))
    assert len(one) == 3 and [row["source_codec"] for row in (one[0], other[0])] == ["h264", "hevc"]
    for a, b in zip(one, other, strict=True):
        assert a["motion_pixels_global"] == pytest.approx(b["motion_pixels_global"], rel=0.2)
        assert a["motion_pixels_global"] > 1e-4


def test_turned_videos_have_their_vectors(stage: Stage, picture: Path, tmp_path: Path) -> None:
    path, turned = pan(tmp_path / "pan.mp4", picture, 8), tmp_path / "turned.mp4"
    ffmpeg("-i", path, "-c", "copy", "-metadata:s:v:0", "rotate=90", turned)
    info = video.probe(turned)
    assert (info.width, info.height) == (360, 640) and info.rotation in (90, 270)
    upright, row = only(stage, path), only(stage, turned)
    for column in ("motion_vectors_global", "motion_vectors_patch"):
        assert row[column] == upright[column] > 0


def test_the_formula_of_the_vectors() -> None:
    """A made frame of 640x512: nothing moves but two blocks, one over the other, and one at the edge."""
    info = msgspec.structs.replace(video.probe(TRAILER), width=640, height=512)
    kinds = [("source", "i4"), ("w", "u1"), ("h", "u1"), ("dst_x", "i2"), ("dst_y", "i2"),
             ("motion_x", "i4"), ("motion_y", "i4"), ("motion_scale", "u2")]  # fmt: skip
    blocks = [
        (-1, 16, 16, 136, 136, 12, 16, 4),  # 5 pixels; right and below of a patch's middle
        (1, 16, 16, 136, 136, 24, 32, 4),  # 10 pixels, in its place
        (-1, 8, 8, 636, 4, 4, 0, 4),  # 1 pixel
        (-1, 16, 16, 648, 8, 400, 0, 4),  # beyond the picture
        (-1, 16, 8, 8, -4, 400, 0, 4),
    ]
    mean, patches = motion.by_vectors(np.array(blocks, kinds), info)
    assert mean == pytest.approx((16 * 16 * 10 + 8 * 8 * 1) / (640 * 512) / (640 + 512))
    assert patches.shape == (2, 2)  # 640 / 256 is 2.5, to the even number
    assert patches.ravel().tolist() == [pytest.approx(10 / 4 / (640 + 512)), 0, 0, 0]
    small = msgspec.structs.replace(info, width=360, height=180)
    assert motion.by_vectors(np.array(blocks, kinds), small)[1].shape == (1, 2)
    turned = msgspec.structs.replace(info, width=512, height=640, rotation=90)
    assert motion.by_vectors(np.array(blocks, kinds), turned)[0] == mean


def test_each_measure_has_limits_of_its_own(stage: Stage, picture: Path, tmp_path: Path) -> None:
    path = pan(tmp_path / "pan.mp4", picture, 8)
    for by, other in (("vectors", "pixels"), ("pixels", "vectors")):
        for part in ("global", "patch"):
            limit: dict[str, Any] = {f"min_{by}_{part}": 0.1}
            row = only(stage, path, Filters(motion=Motion(by=by, **limit)))
            assert row["verdict"] == "motion" and row["reasons"][0].startswith(f"motion_{by}_{part} 0.00")
            limit = {f"min_{other}_{part}": 0.1}
            row = only(stage, path, Filters(motion=Motion(by=by, **limit)))
            assert row["verdict"] == "keep" and row["reasons"] == []


def test_vectors_are_those_of_one_thread() -> None:
    """With frame threads some frames have too few, others in every run."""

    def told(vectors: Any) -> Any:
        return None if vectors is None else [vectors[n].tobytes() for n in ("dst_x", "dst_y", "motion_x", "motion_y")]

    with av.open(str(TRAILER)) as container:
        stream = container.streams.video[0]
        stream.thread_type, stream.codec_context.thread_count = "NONE", 1
        stream.codec_context.flags2 |= av.codec.context.Flags2.export_mvs
        expected = [told(video.motion_vectors(frame)) for frame in itertools.islice(container.decode(stream), 400)]
    decoder = itertools.islice(video.Decoder(TRAILER, vectors=True), 400)
    assert [told(video.motion_vectors(frame)) for _, frame in decoder] == expected


def test_half_of_the_moments_count() -> None:
    """At least ten, if there are as many."""
    info = video.probe(TRAILER)
    for moments, counted in ((6, 6), (14, 10), (30, 15)):
        meter = motion.start(Motion())(info)
        meter.vectors = [(float(n), np.array([[n, 2 * n]])) for n in range(moments)]  # type: ignore[attr-defined]
        mean = (counted - 1) / 2
        assert meter.scores() == {"motion_vectors_global": mean, "motion_vectors_patch": mean}


def test_displacements() -> None:
    """Parts of a picture that move by themselves; nothing in a flat picture, however bright."""
    rng = np.random.default_rng(0)  # structure of every size
    big = sum(
        np.kron(rng.normal(0, 8 * side**0.5, (192 // side, 288 // side)), np.ones((side, side)))
        for side in (2, 4, 8, 16, 32)
    )
    big = np.clip(128 + big, 0, 255).astype(np.uint8)
    first = big[50:146, 60:220].copy()
    for x, y in ((0, 0), (1, 0), (0, -1), (5, 3), (-9, 6)):
        ways = displacement.displacements(first, big[50 - y : 146 - y, 60 - x : 220 - x])
        assert ways.shape == (12, 20, 2)
        assert np.median(ways, (0, 1)) == pytest.approx([x, y], abs=0.05)
        assert np.abs(ways[3:-3, 3:-3] - [x, y]).mean() < 0.3
    second = first.copy()
    second[32:64, 64:96] = first[32:64, 66:98]
    lengths = np.hypot(*displacement.displacements(first, second).transpose(2, 0, 1))
    assert lengths[4:8, 8:12].mean() == pytest.approx(2, rel=0.2) and np.median(lengths) < 0.01
    flat = np.full((96, 160), 100, np.uint8)
    assert not displacement.displacements(flat, flat).any() and not displacement.displacements(flat, flat + 5).any()


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (1920, 1080, (160, 96)),
        (720, 1280, (96, 160)),
        (640, 480, (128, 96)),
        (16, 16, (128, 128)),
        (4096, 64, (992, 32)),
    ],
)
def test_sizes_of_the_small_pictures(width: int, height: int, size: tuple[int, int]) -> None:
    info = msgspec.structs.replace(video.probe(TRAILER), width=width, height=height)
    assert displacement.size(info) == size
    first = np.random.default_rng(0).integers(0, 255, size[::-1], np.uint8)
    mean, patches = motion.by_pictures(first, first, info)
    assert mean == 0 and patches.shape == (size[1] // 32, size[0] // 32)


def test_vectors_only_where_they_are_asked_for(real: Path) -> None:
    """And the pictures are the same with and without."""
    plain, rich = (list(video.Decoder(real, vectors=vectors)) for vectors in (False, True))
    assert all(video.motion_vectors(frame) is None for _, frame in plain)
    assert sum(video.motion_vectors(frame) is not None for _, frame in rich) > 150
    for (_, one), (_, other) in zip(plain[::20], rich[::20], strict=True):
        assert np.array_equal(one.to_ndarray(), other.to_ndarray())
    assert Filters(motion=Motion()).vectors()
    for named in (Filters(), Filters(motion=Motion(mode="disable")), PIXELS, Filters(blur=Blur())):
        assert not named.vectors()


# black, static, blur, duration


def test_black(stage: Stage, picture: Path, tmp_path: Path) -> None:
    size = "s=320x180:r=24"
    night = source(tmp_path / "night.mp4", f"color=black:{size},noise=alls=8:allf=t")
    half = source(tmp_path / "half.mp4", f"testsrc2={size},drawbox=color=black:t=fill:enable='lt(t,1.4)'", 72)
    title = source(tmp_path / "title.mp4", f"color=black:{size},drawbox=x=100:y=80:w=120:h=20:color=white:t=fill")
    for path, share in ((night, 1.0), (half, 0.5), (title, 0.0)):
        assert only(stage, path)["black_share"] == share, path
    row = only(stage, night, Filters(black=Black()))
    assert (row["verdict"], row["reasons"]) == ("black", ["black_share 1 > 0.5"])
    assert only(stage, half, Filters(black=Black()))["verdict"] == "keep"
    assert only(stage, half, Filters(black=Black(max_share=0.4)))["verdict"] == "black"
    assert only(stage, title, Filters(black=Black(area=0.9)))["verdict"] == "black"
    assert only(stage, night, Filters(black=Black(level=0.0)))["verdict"] == "keep"


@pytest.mark.parametrize(
    ("luma", "full_range", "black"), [(30, False, 1), (30, True, 0), (20, True, 1), (45, False, 0)]
)
def test_black_is_what_the_range_says(stage: Stage, tmp_path: Path, luma: int, full_range: bool, black: float) -> None:
    """30 is 0.06 from 16 to 235, and 0.12 from 0 to 255."""
    path = tmp_path / "flat.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        planes = np.full((270, 320), 128, np.uint8)
        planes[:180] = luma
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.color_range = stream.codec_context.color_range = 2 if full_range else 1
        for number in range(24):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert (next(iter(video.Decoder(path)))[1].color_range == 2) is full_range
    assert only(stage, path)["black_share"] == black


def test_static(stage: Stage, picture: Path, real: Path, tmp_path: Path) -> None:
    frozen = tmp_path / "frozen.mp4"
    ffmpeg("-loop", "1", "-r", "24", "-i", picture, "-frames:v", "96", "-vf", "scale=640:360,noise=alls=4:allf=t",
           "-pix_fmt", "yuv420p", *X264, "-crf", "26", "-g", "24", frozen)  # fmt: skip
    slides = tmp_path / "slides.mp4"
    ffmpeg("-i", real, "-vf", "select='not(mod(n,48))',setpts=N/0.5/TB,fps=24", "-frames:v", "192", *X264, slides)
    bird = source(tmp_path / "bird.mp4", f"movie={picture},loop=-1:1,fps=24,scale=640:360[a];"
                  "color=white:s=16x16:r=24[b];[a][b]overlay=x='40+n*3':y=100", 96)  # fmt: skip
    moving = pan(tmp_path / "pan.mp4", picture, 1)
    shares = {path.stem: only(stage, path)["static_share"] for path in (frozen, slides, bird, moving)}
    assert shares == {"frozen": 1.0, "slides": pytest.approx(12 / 15), "bird": 0.0, "pan": 0.0}
    for path, verdict in ((frozen, "static"), (slides, "static"), (bird, "keep"), (moving, "keep")):
        assert only(stage, path, Filters(static=Static()))["verdict"] == verdict, path
    assert only(stage, slides, Filters(static=Static(max_share=0.9)))["verdict"] == "keep"
    assert only(stage, frozen, Filters(static=Static(noise=0.0)))["verdict"] == "keep"


@pytest.mark.parametrize("height", [240, 720])
def test_blur(stage: Stage, tmp_path: Path, height: int) -> None:
    """The more blur, the lower; the same blur of the whole picture is the same at every size."""
    found = []
    for share in (0, 1 / 360, 1 / 90):
        path = tmp_path / f"{share}.mp4"
        scale = f"scale=-2:{height}" + (f",gblur=sigma={share * height}:steps=3" if share else "")
        ffmpeg("-ss", "26", "-t", "1", "-i", TRAILER, "-vf", scale, "-an", "-c:v", "libx264", "-preset", "veryfast",
               "-crf", "18", path)  # fmt: skip
        row = only(stage, path, Filters(blur=Blur()))
        found.append(row["blur_sharpness"])
        assert row["verdict"] == ("blur" if share == 1 / 90 else "keep"), found
    sharp, soft, softest = found
    assert sharp > 1.5 * soft > 6 * softest
    assert soft == pytest.approx(1.1, rel=0.2)


def test_sharpness() -> None:
    """White noise has 5; contrast, flat areas and black bars change nothing; nothing to see is no score."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (256, 480))
    assert blur.sharpness(noise.astype(np.uint8)) == pytest.approx(5, rel=0.02)
    assert blur.sharpness((100 + noise / 8).astype(np.uint8)) == pytest.approx(5, rel=0.05)
    flat = np.full((256, 480), 80, np.uint8)
    assert blur.sharpness(flat) is None
    assert blur.sharpness(flat + (rng.random(flat.shape) < 0.05)) is None
    flat[100:150, 100:200] = noise[:50, :100]
    assert blur.sharpness(flat) == pytest.approx(5, rel=0.1)


def test_nothing_to_see_is_no_score(stage: Stage, tmp_path: Path) -> None:
    """Null, which drops nothing."""
    row = only(stage, source(tmp_path / "grey.mp4", "color=gray:s=320x180:r=24", 24), Filters(blur=Blur()))
    assert row["blur_sharpness"] is None and row["verdict"] == "keep" and row["reasons"] == []


def test_duration(stage: Stage, tmp_path: Path) -> None:
    """To the last frame's end, with steps of milliseconds that are not even ones."""
    path = source(tmp_path / "two.mkv", "testsrc2=s=320x180:r=24000/1001", 47)  # 1.960 s
    assert only(stage, path)["duration_seconds"] == 1.96
    row = only(stage, path, Filters(duration=Duration()))
    assert (row["verdict"], row["reasons"]) == ("duration", ["duration_seconds 1.96 < 2"])
    assert only(stage, path, Filters(duration=Duration(min=Seconds(1.96))))["verdict"] == "keep"
    row = only(stage, path, Filters(duration=Duration(min=Seconds(1.0), max=Seconds(1.5))))
    assert row["reasons"] == ["duration_seconds 1.96 > 1.5"]
    even = source(tmp_path / "even.mkv", "testsrc2=s=320x180:r=24", 48)
    assert only(stage, even, Filters(duration=Duration()))["verdict"] == "keep"
    with pytest.raises(ValueError, match="every clip would be dropped: 3 s at least, 2 s at most"):
        Duration(min=Seconds(3.0), max=Seconds(2.0))


# all of them


COLUMNS = [column for kind in (Duration, Black, Static, Blur, Motion) for column in kind.SCORES]


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_scores_do_not_depend_on_the_plan(stage: Stage, real: Path, tmp_path: Path, codec: str) -> None:
    """Spans, or all at once, or again: not a bit differs. And naming the filters does not change a clip's bytes."""
    path = real
    if codec == "hevc":
        path = tmp_path / "real.mkv"
        ffmpeg("-i", real, "-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none:keyint=30", path)
    settings = Clips(split=SECONDS, encode=FAST, filter=EVERYTHING)
    whole = stage(settings, item(path))
    expected = {row["uuid"]: [row[c] for c in COLUMNS] for row in rows(whole)}
    filled = {column for column in COLUMNS if rows(whole)[1][column] is not None}
    kind = "vectors" if codec == "h264" else "pixels"
    assert filled == {c for c in COLUMNS if not c.startswith("motion")} | {
        f"motion_{kind}_global",
        f"motion_{kind}_patch",
    }
    assert len(expected) == 3 == len({str(scores) for scores in expected.values()})
    for parts in (1, 3):
        made = [stage(settings, item(path, part, parts)) for part in range(parts)]
        assert {row["uuid"]: [row[c] for c in COLUMNS] for one in made for row in rows(one)} == expected
    bare = stage(Clips(split=SECONDS, encode=FAST), item(path))
    assert [row["bytes"] for row in rows(bare)] == [row["bytes"] for row in rows(whole)]
    assert all(row[column] is None for row in rows(bare) for column in SCORES)


def test_modes(stage: Stage, real: Path) -> None:
    """Limits that nothing meets: each filter drops every clip, names itself, and drops nothing if it only scores."""
    impossible: dict[str, Any] = {
        "duration": Duration(max=Seconds(2.0)),
        "black": Black(level=1.0),
        "static": Static(noise=1.0),
        "blur": Blur(min_sharpness=9.0),
        "motion": Motion(min_vectors_global=1.0),
    }
    for name, one in impossible.items():
        found = measured(stage, real, Filters(**{name: one}), SECONDS)
        assert [row["verdict"] for row in found] == [name] * 3
        assert all(len(row["reasons"]) >= 1 and row["reasons"][0].startswith(f"{name}_") for row in found)
        assert all(row["bytes"] is None for row in found)
    quiet = {name: msgspec.structs.replace(one, mode="score-only") for name, one in impossible.items()}
    found = measured(stage, real, Filters(**quiet), SECONDS)
    assert [(row["verdict"], row["reasons"]) for row in found] == [("keep", [])] * 3
    assert all(row["blur_sharpness"] is not None for row in found)
    off = {name: msgspec.structs.replace(one, mode="disable") for name, one in impossible.items()}
    found = measured(stage, real, Filters(**off), SECONDS)
    assert all(row["verdict"] == "keep" and row[column] is None for row in found for column in COLUMNS)
    row = measured(stage, real, Filters(**impossible), SECONDS)[0]
    assert row["verdict"] == "duration" and len(row["reasons"]) >= 5  # the first names it, all are told
