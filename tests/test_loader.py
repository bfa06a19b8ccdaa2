"""Training sees the frames it asks for, the same ones on any number of ranks, from any step on, whoever decodes."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import torch

from hpc.data import layers
from hpc.data.latents import SUFFIX, dumps
from hpc.data.video.fit import placed
from hpc.train.loader import Batches, taken
from hpc.train.samples import Shape, assigned, listed

STEP = 10


def clip(path: Path, frames: int, width: int = 64, height: int = 48, fps: int = 10) -> bytes:
    """Frame i is a plain grey of STEP * i; key frames every 8."""
    with contextlib.closing(av.open(str(path), "w")) as out:
        stream = out.add_stream("libx264", fps, options={"crf": "5", "g": "8"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            picture = np.full((height, width, 3), STEP * number, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        out.mux(stream.encode(None))
    return path.read_bytes()


def numbers(frames: torch.Tensor) -> list[list[int]]:
    """Which frames of their clips these are: [batch][frames]."""
    middle = frames[:, :, frames.shape[2] // 2, frames.shape[3] // 2].float().mean(-1)
    return (middle / STEP).round().int().tolist()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of 9 to 20 frames in two tars, half of them with a JSON that says so; three are upright."""
    place = tmp_path_factory.mktemp("shards")
    clips = {f"c{i:02}": clip(place / f"{i}.mp4", 9 + i, *((48, 64) if i % 4 == 3 else (64, 48))) for i in range(12)}
    said = {"num_frames": 0, "fps": 10.0, "width": 64, "height": 48}
    for tar in range(2):
        with layers.TarWriter(place / f"00000{tar}.tar") as out:
            for i, (key, data) in enumerate(clips.items()):
                if i // 6 == tar:
                    size = {"width": 48, "height": 64} if i % 4 == 3 else {}
                    described = json.dumps(said | size | {"num_frames": 9 + i, "caption": key}).encode()
                    out.add(key, {".mp4": data} | ({".json": described} if i % 2 else {}))
    for path in place.glob("*.mp4"):
        path.unlink()
    return place


def test_a_table_of_tars(shards: Path) -> None:
    rows = listed(str(shards)).to_pylist()
    assert [(r["key"], r["frames"], r["width"], r["height"], r["fps"]) for r in rows] == [
        (f"c{i:02}", 9 + i, *((48, 64) if i % 4 == 3 else (64, 48)), 10.0) for i in range(12)
    ]
    assert [r["json"] is None for r in rows] == [i % 2 == 0 for i in range(12)]


def test_trees_folders_prompts_and_pictures(shards: Path, tmp_path: Path) -> None:
    data = clip(tmp_path / "x.mp4", 9)
    for name, member in {"video/part_000000/000000.tar": (".mp4", data), "t5_xxl/part_000000/000000.tar":
                         (".pickle", b"p"), "metas/part_000000/000000.tar": (".json", b"{}")}.items():  # fmt: skip
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True)
        with layers.TarWriter(path) as out:
            out.add("k", {member[0]: member[1]})
    (row,) = listed(str(tmp_path / "tree")).to_pylist()
    assert (row["frames"], row["embedding"]["size"], row["json"]["size"]) == (9, 1, 2)
    for name, content in {"videos/a.mp4": data, "videos/b.mp4": data, "metas/a.txt": b"a prompt",
                          "t5_xxl/b.pickle": b"p", "not/looked/at.mp4": b"x"}.items():  # fmt: skip
        (tmp_path / "predict" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "predict" / name).write_bytes(content)
    a, b = listed(str(tmp_path / "predict")).to_pylist()
    assert a["key"] == "a" and a["text"]["uri"].endswith("metas/a.txt") and a["embedding"] is None
    assert b["key"] == "b" and b["text"] is None and b["embedding"]["uri"].endswith("t5_xxl/b.pickle")
    PIL.Image.new("RGB", (30, 20), "red").save(tmp_path / "still.png")
    (tmp_path / "list.jsonl").write_text('{"visual_input": "x.mp4", "prompt": "grey"}\n{"visual_input": "still.png"}\n')
    one, two = listed(str(tmp_path / "list.jsonl")).to_pylist()
    assert (one["prompt"], one["frames"], two["still"], two["width"], two["frames"]) == ("grey", 9, True, 30, 1)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no tars, videos or pictures are there"):
        listed(str(tmp_path))
    (tmp_path / "l.jsonl").write_text('{"visual_input": "gone.mp4"}\n')
    with pytest.raises(FileNotFoundError, match=r"l.jsonl:1: .*gone.mp4 is not there"):
        listed(str(tmp_path / "l.jsonl"))
    (tmp_path / "l.jsonl").write_text("video.mp4\n")
    with pytest.raises(ValueError, match=r"l.jsonl:1: 'video.mp4': \{\"visual_input\""):
        listed(str(tmp_path / "l.jsonl"))
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"bad.mp4: bad: not-a-video"):
        listed(str(tmp_path))
    with layers.TarWriter(tmp_path / "000000.tar") as out:
        out.add("k", {".json": b"{}"})
    with pytest.raises(ValueError, match=r"k has \['json', 'key'\] and no video"):
        listed(str(tmp_path))


def test_what_is_in_memory_is_what_is_decoded(shards: Path) -> None:
    table = listed(str(shards))
    shapes = [Shape(frames=5, height=48, width=64, batch=2, fps=5), Shape(frames=9, height=64, width=48, batch=2)]
    decoded, kept = Batches(table, shapes, 1), Batches(table, shapes, 1)
    assert kept.keep(threads=2) == sum(row["frames"] for row in table.to_pylist()) * 48 * 64 * 3
    arriving = kept.of_rank(0, 1, first_step=3)
    for step in range(3, 12):
        one, other = decoded.at(step), next(arriving)
        assert other.step == step and torch.equal(one.frames, other.frames) and torch.equal(one.fps, other.fps)
        assert torch.equal(one.inside, other.inside) and one.starts == other.starts
    arriving.close()


def test_each_sample_goes_to_the_shape_that_is_nearest(shards: Path) -> None:
    table = listed(str(shards))
    sizes = ((9, 48, 64), (16, 48, 64), (9, 64, 48), (16, 24, 32))
    shapes = [Shape(frames=frames, height=height, width=width, batch=1) for frames, height, width in sizes]
    chosen = assigned(table, shapes)
    upright = [i for i in range(12) if i % 4 == 3]
    wide = [i for i in range(12) if i % 4 != 3]
    short, long = [i for i in wide if i < 7], [i for i in wide if i >= 7]
    assert [rows.tolist() for rows in chosen.rows] == [short, long, upright, []]
    assert chosen.left_out == {}
    few = assigned(table, [Shape(frames=17, height=48, width=64, batch=1)])
    assert few.left_out == {"shorter than 17 frames": [f"c{i:02}" for i in range(8)]}
    half = Shape(frames=9, height=48, width=64, batch=1, fps=5)
    assert half.span(10) == 17 and assigned(table, [half]).rows[0].tolist() == [8, 9, 10, 11]


def test_frames_are_those_that_were_drawn(shards: Path) -> None:
    """Random starts, every one of them possible, of clips of exactly as many frames the first; strides by time."""
    table = listed(str(shards))
    batches = Batches(table, [Shape(frames=9, height=24, width=32, batch=4)], seed=1)
    starts: dict[int, set[int]] = {}
    for step in range(60):
        batch = batches.at(step)
        assert numbers(batch.frames) == [list(range(start, start + 9)) for start in batch.starts]
        for row, start in zip(batch.rows, batch.starts, strict=True):
            starts.setdefault(row, set()).add(start)
    assert starts[0] == {0} and starts[1] == {0, 1} and starts[3] == {0, 1, 2, 3} and max(starts[11]) > 8
    batch = Batches(table, [Shape(frames=5, height=24, width=32, batch=4, fps=4)], seed=1).at(0)
    assert numbers(batch.frames) == [[s, s + 2, s + 5, s + 7, s + 10] for s in batch.starts]
    assert batch.fps.tolist() == [4.0] * 4 and batch.frames.shape == (4, 5, 24, 32, 3)


def test_ranks_resumes_and_workers_change_nothing(shards: Path) -> None:
    table = listed(str(shards))
    shapes = [Shape(frames=9, height=24, width=32, batch=4), Shape(frames=9, height=32, width=24, batch=8)]
    batches = Batches(table, shapes, seed=7)
    whole = [batches.at(step) for step in range(6)]
    assert {b.shape.batch for b in whole} == {4, 8}
    for ranks in (2, 4):
        for step, one in enumerate(whole):
            parts = [batches.at(step, rank, ranks) for rank in range(ranks)]
            assert torch.equal(torch.cat([p.frames for p in parts]), one.frames)
            assert [s for p in parts for s in p.samples] == one.samples
    for workers in (0, 2):
        stream = batches.of_rank(1, 2, first_step=2, workers=workers)
        for step, batch in zip(range(2, 6), stream, strict=False):
            assert batch.step == step and torch.equal(batch.frames, batches.at(step, 1, 2).frames)
            assert batch.waited > 0
    with pytest.raises(ValueError, match="cannot be shared by 3 ranks"):
        next(batches.of_rank(0, 3))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2])
def test_workers_do_not_hear_what_tells_their_rank_to_leave(number: signal.Signals) -> None:
    """Slurm may signal all processes of a step: neither as they start nor later does it end one."""
    done = subprocess.run([sys.executable, "-c", LEFT, str(number.value)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0", "1", "2", "3", "4", "5"]


LEFT = """
import itertools, multiprocessing, os, signal, sys, threading, time
from hpc.train.stream import stream

def tell(number):
    while True:
        for child in multiprocessing.active_children():
            os.kill(child.pid, number)
        time.sleep(0.01)

signal.signal(int(sys.argv[1]), lambda *given: None)
threading.Thread(target=tell, args=(int(sys.argv[1]),), daemon=True).start()
for made, waited in itertools.islice(stream(int, 0, workers=2), 6):
    print(made, flush=True)
"""


def test_a_gpus_path_draws_the_same(shards: Path, tmp_path: Path) -> None:
    """Here its engines are the CPU: samples, frames and replacements are those of workers, and pictures nearly."""
    rows = listed(str(shards)).to_pylist()
    (tmp_path / "torn.mp4").write_bytes(b"torn")
    rows[2]["media"] = {"uri": str(tmp_path / "torn.mp4"), "offset": 0, "size": 4}
    table = pa.Table.from_pylist(rows, schema=listed(str(shards)).schema)
    shapes = [Shape(frames=5, height=24, width=32, batch=4, fps=5), Shape(frames=9, height=64, width=48, batch=2)]
    plain, other = Batches(table, shapes, 7), Batches(table, shapes, 7, gpu=torch.device("cpu"))
    stream = other.of_rank(1, 2, first_step=2, workers=3)
    replaced = 0
    for step, batch in zip(range(2, 12), stream, strict=False):
        expected = plain.at(step, 1, 2)
        assert (batch.step, batch.samples, batch.rows, batch.starts) == (
            expected.step, expected.samples, expected.rows, expected.starts)  # fmt: skip
        assert batch.keys == expected.keys and batch.replaced == expected.replaced and batch.waited > 0
        assert numbers(batch.frames) == numbers(expected.frames) and torch.equal(batch.fps, expected.fps)
        assert (batch.frames.int() - expected.frames.int()).abs().max() <= 4
        assert torch.equal(batch.inside, expected.inside) and torch.equal(other.at(step, 1, 2).frames, batch.frames)
        assert batch.decoded_by_cpu == len(batch.keys) and expected.decoded_by_cpu == 0
        replaced += len(batch.replaced)
    stream.close()
    assert replaced and not [one for one in threading.enumerate() if one.name.startswith("decoder")]


def test_what_cannot_be_decoded_is_replaced_and_told(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = listed(str(shards))
    shapes = [Shape(frames=9, height=24, width=32, batch=4)]
    rows = table.to_pylist()
    (tmp_path / "torn.mp4").write_bytes(b"torn")
    rows[2]["media"] = {"uri": str(tmp_path / "torn.mp4"), "offset": 0, "size": 4}
    stream = Batches(pa.Table.from_pylist(rows, schema=table.schema), shapes, 1).of_rank(0, 1)
    batches = [batch for batch, _ in zip(stream, range(3), strict=False)]
    ((step, words),) = ((number, words) for number, batch in enumerate(batches) for words in batch.replaced)
    assert "c02" in words and "torn.mp4" in words and "the sample beside it is taken for c02" in caplog.text
    assert [key for batch in batches for key in batch.keys].count("c03") == 2 and "c03" in batches[step].keys
    none = [row | {"media": rows[2]["media"]} for row in rows]
    with pytest.raises(ValueError, match="8 samples side by side cannot be read"):
        Batches(pa.Table.from_pylist(none, schema=table.schema), shapes, 1).at(0)


def test_pictures_are_cut_padded_or_stretched(tmp_path: Path) -> None:
    shape = Shape(frames=1, height=20, width=20, batch=1)
    assert placed(60, 40, shape.width, shape.height, "crop") == (30, 20, -5, 0)
    assert placed(60, 40, shape.width, shape.height, "pad") == (20, 13, 0, 3)
    assert placed(60, 40, shape.width, shape.height, "stretch") == (20, 20, 0, 0)
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[:, :, 0] = np.linspace(0, 255, 60).astype(np.uint8)
    PIL.Image.fromarray(picture).save(tmp_path / "x.png")
    (row,) = listed(str(tmp_path)).to_pylist()
    edges = {}
    for fit in ("crop", "pad", "stretch"):
        frames, inside, _ = taken(row, shape, 0, fit)
        assert frames.shape == (1, 20, 20, 3)
        edges[fit] = frames[0, 10, [0, -1], 0].tolist()
        assert inside.sum() == (260 if fit == "pad" else 400)
        assert not frames[0, ~inside].any()
    assert abs(edges["crop"][0] - 43) < 8 and abs(edges["crop"][1] - 212) < 8
    assert edges["pad"][0] < 12 and edges["stretch"][1] > 243
    joint = Batches(listed(str(tmp_path)), [shape, Shape(frames=9, height=20, width=20, batch=1)], 0)
    assert joint.shapes == [shape] and joint.at(3).frames.shape == (1, 1, 20, 20, 3)


def test_latents_that_are_none_are_replaced_and_named(tmp_path: Path) -> None:
    """Cut short, of another picture, another tokenizer's, not a number; their .json torn, or without what it needs."""
    good = np.zeros((4, 3, 6, 8), np.float32)
    about = {"num_frames": 9, "fps": 24.0, "height": 48, "width": 64, "inside": [0, 0, 64, 48]}
    bad: dict[str, tuple[bytes, dict[str, Any], str]] = {
        "c01": (dumps(good)[:50], about, "a tensor 'latents' of floats"),
        "c02": (dumps(good[:, :, :, :6]), about, "3 x 6 x 6 cannot be those of 9 x 48 x 64 frames and pixels"),
        "c03": (dumps(good[:, :2, :5]), about, "latents of 2 x 5 x 8 cannot be"),
        "c04": (dumps(np.zeros((8, 3, 6, 8), np.float32)), about, "latents of 8 channels; the model takes 4"),
        "c05": (dumps(good + np.float32("nan")), about, "some of its latents are NaN or infinite"),
        "c06": (dumps(good), {name: about[name] for name in about if name != "inside"}, "its .json has no 'inside'"),
    }
    with layers.TarWriter(tmp_path / "000000.tar") as out:
        for number in range(16):
            data, said, _ = bad.get(f"c{number:02}", (dumps(good), about, ""))
            out.add(f"c{number:02}", {SUFFIX: data, ".json": json.dumps(said).encode()})
    table = listed(str(tmp_path / "000000.tar"))
    shapes = [Shape(frames=9, height=48, width=64, batch=16)]
    batch = Batches(table, shapes, 1, channels=4).at(0)
    assert batch.frames.shape == (16, *good.shape) and batch.frames.isfinite().all()
    for key, (_, _, words) in bad.items():
        assert [one for one in batch.replaced if one.startswith(f"{key} (") and words in one and "000000.tar" in one]
    others = [Shape(frames=17, height=48, width=64, batch=1)]
    with pytest.raises(ValueError, match="no sample fits the shapes that training takes: of 16 are 16, such as c00: "
                                         "no shape is for latents of 9x48x64, 24 frames a second"):  # fmt: skip
        Batches(table, others, 1)
    with layers.TarWriter(tmp_path / "000001.tar") as out:
        out.add("d", {SUFFIX: dumps(good), ".json": b"{"})
    with pytest.raises(ValueError, match=r"000001\.tar: d\.json is no JSON object"):
        listed(str(tmp_path / "000001.tar"))
