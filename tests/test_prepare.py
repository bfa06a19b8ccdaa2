"""Clips become ids and latents: which frames, where the picture lies, what is left out, from every kind of input; and
Megatron's data set of the ids is the same however it was made."""

from __future__ import annotations

import itertools
import json
import tempfile
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import av
import datasets
import msgspec
import numpy as np
import pytest
import s3
import safetensors.torch
import token_sets
import torch
import yaml
from token_sets import Window

from hpc import validate
from hpc.batch.prepare import domains
from hpc.batch.spec import SpecErrors, load
from hpc.data import latents as latent_files
from hpc.data import layers, pickles, storage, video
from hpc.data.units import Bytes
from hpc.data.upstream import meta_of, table
from hpc.data.work import Item, Made, Work
from hpc.models.tokenizers import cosmos, files, wan
from hpc.prepare import documents, encode, inputs, latents, latents_list, tokens
from hpc.prepare.forms import megatron
from hpc.prepare.settings import LatentsEncode, LatentsList, Megatron, TokensIds
from hpc.train.loader import Batches
from hpc.train.samples import Shape, assigned, fetched, listed

SMALL: dict[str, Any] = {"frames": 9, "size": (32, 64), "precision": "float32"}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders with small random ones: DV8x16x16, CV8x8x8 and Wan's."""
    folder = tmp_path_factory.mktemp("tokenizers")
    torch.manual_seed(0)
    dv = cosmos.CosmosDiscrete(cosmos.Config(channels=8, window=3))
    dv.encoder.quantise.weight.data *= 50  # so that there are many ids
    ones = ((1.0, 1.0, 1.0),) * 3
    cv = cosmos.CosmosContinuous(
        cosmos.Config(channels=8, spatial=8, levels=(), latent_channels=3, window=3, mean=ones, std=ones)
    )
    for name, one in (("dv", dv), ("cv", cv), ("wan", wan.WanVAE(wan.Config(channels=8)))):
        files.save(one, folder / name)
    return {name: str(folder / name) for name in ("dv", "cv", "wan")}


def film(path: Path, frames: int, seed: int, width: int = 64, height: int = 32, fps: int = 24) -> Path:
    """Noise that changes."""
    chance = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("libx264", fps, options={"crf": "10", "g": "6"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(frames):
            picture = chance.integers(0, 255, (height // 8, width // 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        out.mux(stream.encode(None))
    return path


def item(path: Path, **more: Any) -> Item:
    entry = storage.stat(str(path))
    assert entry
    return Item(entry.uri, entry.size, entry.etag, **more)


def work(folder: Path, items: list[Item] = [], upstream: dict[str, dict[str, str]] | None = None) -> Work:  # noqa: B006
    scratch = Path(tempfile.mkdtemp(dir=folder))
    return Work("000000", items, [], upstream or {}, scratch, "f", lambda: None, lambda share, words: None)


def ids_of(made: Made) -> list[tuple[dict[str, Any], np.ndarray[Any, Any] | None]]:
    """Rows of a shard of ids, with their ids."""
    data, meta = made.objects[0].read_bytes(), meta_of(str(made.objects[1]))
    out = []
    for row in table(str(made.objects[1])).to_pylist():
        if row["why"]:
            out.append((row, None))
        else:
            some = np.frombuffer(data[row["offset"] : row["offset"] + row["size"]], "<i4")
            out.append((row, some.reshape(meta["shape"])))
    return out


def test_windows_of_clips(tmp_path: Path, tokenizers: dict[str, str]) -> None:
    """Ids are those of the frames; the table says which these were, and what was left out and why."""
    clips = [datasets.Clip(frames=30), datasets.Clip(frames=8), datasets.Clip(frames=20, verdict="black"),
             datasets.Clip(frames=9, source="/videos/b.mp4")]  # fmt: skip
    made = datasets.publish(tmp_path, [clips], texts=False)
    needs = {name: dict(shards)["000000"] for name, shards in made.items()}
    settings = TokensIds(tokenizer=tokenizers["dv"], windows="all", fit="pad", batch=2, **SMALL)
    process = tokens.start(settings)
    done = process(work(tmp_path, upstream=needs))
    found = ids_of(done)
    assert [(row["uuid"], row["start"], row["why"]) for row, _ in found] == [
        *((clips[0].uuid, start, None) for start in (0, 9, 18)), (clips[1].uuid, None, "too-short"),
        (clips[3].uuid, 0, None)]  # fmt: skip
    assert {k: done.counts[k] for k in ("clips", "windows", "frames", "tokens", "dropped_too_short")} == {
        "clips": 2, "windows": 4, "frames": 36, "tokens": 4 * 2 * 2 * 4, "dropped_too_short": 1}  # fmt: skip
    row, ids = found[1]
    assert (row["caption"], row["fps"], row["source"], row["etag"]) == ("clip 0 window 0", 24, "/videos/a/one.mp4", "e")
    pictures = video.sample(datasets.mp4(30), range(9, 18), 57, 32)
    assert [row[side] for side in ("left", "top", "right", "bottom")] == [3, 0, 60, 32]
    padded = np.pad(pictures, ((0, 0), (0, 0), (3, 4), (0, 0)))
    whole = torch.from_numpy(padded).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    tokenizer = encode.load(tokenizers["dv"])
    assert ids is not None and (ids == tokenizer.encode(whole)[0].numpy()).all()
    assert len(np.unique(np.concatenate([one.ravel() for _, one in found if one is not None]))) > 5
    again = process(work(tmp_path, upstream=needs))
    assert [p.read_bytes() for p in again.objects] == [p.read_bytes() for p in done.objects]
    first = tokens.start(msgspec.structs.replace(settings, windows="first"))(work(tmp_path, upstream=needs))
    assert [row["start"] for row, _ in ids_of(first)] == [0, None, 0], "the default, as NVIDIA's script does"


def test_frames_a_second(tmp_path: Path) -> None:
    """Windows side by side are one after the other in what is taken, whatever the clip's speed."""
    assert inputs.numbers(3, 2.4, 0, 2) == [0, 2, 4, 7, 9, 12]
    assert inputs.numbers(3, 0.5, 0, 2) == [0, 0, 1, 1, 2, 2]
    for frames, stride, of in ((3, 2.4, 13), (3, 2.4, 12), (1, 1.0, 5), (9, 1.0, 8), (4, 0.5, 7)):
        count = inputs.windows(frames, stride, of)
        assert all(number < of for number in inputs.numbers(frames, stride, 0, count))
        assert inputs.numbers(frames, stride, 0, count + 1)[-1] >= of


def test_a_long_film_in_parts(tmp_path: Path, tokenizers: dict[str, str]) -> None:
    """An input that is planned as spans gives the windows that it gives whole, each once; frames by themselves too."""
    path = film(tmp_path / "long.mp4", 64, seed=1)
    for settings in (TokensIds(tokenizer=tokenizers["dv"], windows="all", **SMALL),
                     TokensIds(tokenizer=tokenizers["dv"], windows="all", fps=10, batch=64, **SMALL | {"frames": 1}),
                     TokensIds(tokenizer=tokenizers["dv"], windows="first", **SMALL)):  # fmt: skip
        process = tokens.start(settings)
        [whole, *parts] = ([(row["start"], ids.tolist()) for one in items for row, ids in ids_of(process(
            work(tmp_path, [item(path, part=one[0], parts=one[1])]))) if ids is not None]
            for items in ([(0, 1)], [(0, 3), (1, 3), (2, 3)]))  # fmt: skip
        assert parts == [whole] and len(whole) == {"all": 27 if settings.fps else 7, "first": 1}[settings.windows]
        (tmp_path / "short").mkdir(exist_ok=True)
        with layers.TarWriter(tmp_path / "short.tar") as tar:
            for name, frames in (("a", 3), ("b", 64), ("c", 3), ("d", 20)):
                tar.add(name, {".mp4": film(tmp_path / f"short/{frames}.mp4", frames, seed=1).read_bytes()})
        [whole_tar, *tars] = ([row["media"][-5:] + str(row["start"]) for one in items for row, _ in ids_of(process(
            work(tmp_path, [item(tmp_path / "short.tar", part=one[0], parts=one[1])])))]
            for items in ([(0, 1)], [(0, 3), (1, 3), (2, 3)]))  # fmt: skip
        assert tars == [whole_tar] and len({one[:1] for one in whole_tar}) == 4
        if settings.fps:
            assert [start for start, _ in whole][:4] == [0, 2, 4, 7]


def test_every_kind_of_input_gives_the_same_ids(tmp_path: Path, tokenizers: dict[str, str]) -> None:
    path = film(tmp_path / "a.mp4", 12, seed=3)
    key = str(uuid.uuid4())
    about = {"uuid": key, "num_frames": 12, "fps": 24.0, "width": 64, "height": 32, "source": "/f.mp4", "etag": "e",
             "windows": [{"start_frame": 0, "end_frame": 11, "caption": "said", "status": "success",
                          "enhanced": "said better"}]}  # fmt: skip
    members = {".mp4": path.read_bytes()}
    for name, beside in (("ours", {".json": json.dumps(about).encode()}), ("theirs", {".txt": b"said "}), ("bare", {})):
        with layers.TarWriter(tmp_path / f"{name}.tar") as tar:
            tar.add(key if name == "ours" else "000001", members | beside)
    process = tokens.start(TokensIds(tokenizer=tokenizers["dv"], **SMALL))
    given = {
        "file": work(tmp_path, [item(path)]),
        "prompted": work(tmp_path, [item(path, caption="said")]),
        "shard": work(tmp_path, upstream={"shard": {".tar": str(tmp_path / "ours.tar")}}),
        **{name: work(tmp_path, [item(tmp_path / f"{name}.tar")]) for name in ("ours", "theirs", "bare")},
    }
    found = {name: ids_of(process(one))[0] for name, one in given.items()}
    expected = found["file"][1]
    assert all((ids == expected).all() for _, ids in found.values())
    assert {name: row["caption"] for name, (row, _) in found.items()} == {
        "file": None, "prompted": "said", "shard": "said better", "ours": "said better", "theirs": "said", "bare": None}
    rows = {name: row for name, (row, _) in found.items()}
    assert rows["shard"]["uuid"] == rows["ours"]["uuid"] == key
    assert (rows["shard"]["source"], rows["file"]["source"]) == ("/f.mp4", str(path))
    assert len({rows[name]["uuid"] for name in ("file", "shard", "theirs", "bare")}) == 4
    etag = item(tmp_path / "bare.tar").etag
    assert {"source": str(tmp_path / "bare.tar"), "etag": etag} in rows["bare"]["cameras"], "to go where it is replaced"


def test_from_objects(tmp_path: Path, tokenizers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A video and a tar on S3, and a stage's clips there."""
    path = film(tmp_path / "a.mp4", 12, seed=3)
    with layers.TarWriter(tmp_path / "a.tar") as tar:
        tar.add("x", {".mp4": path.read_bytes()})
    process = tokens.start(TokensIds(tokenizer=tokenizers["dv"], **SMALL))
    [(_, expected)] = ids_of(process(work(tmp_path, [item(path)])))
    with s3.moto() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        items = []
        for name in ("a.mp4", "a.tar"):
            storage.put(f"s3://bucket/in/{name}", tmp_path / name)
            entry = storage.stat(f"s3://bucket/in/{name}")
            assert entry
            items.append(Item(entry.uri, entry.size, entry.etag))
        found = ids_of(process(work(tmp_path, items)))
        assert [row["media"] for row, _ in found] == ["s3://bucket/in/a.mp4", "s3://bucket/in/a.tar#x.mp4"]
        assert all((ids == expected).all() for _, ids in found)
        made = datasets.publish(tmp_path, [[datasets.Clip(frames=20)]], texts=False, base="s3://bucket/out")
        needs = {name: dict(shards)["000000"] for name, shards in made.items()}
        [(row, _)] = ids_of(process(work(tmp_path, upstream=needs)))
        assert row["why"] is None and row["caption"] == "clip 0 window 0"
        storage.put("s3://bucket/in/a.mp4", b"another")
        assert [bad.reason for bad in process(work(tmp_path, items[:1])).bad] == ["changed-since-planned"]


def test_what_cannot_be_read_is_named(tmp_path: Path, tokenizers: dict[str, str]) -> None:
    good = film(tmp_path / "good.mp4", 9, seed=4)
    (tmp_path / "bad.mp4").write_bytes(b"no film " * 99)
    (tmp_path / "torn.tar").write_bytes(b"\1" * 2048)
    with layers.TarWriter(tmp_path / "odd.tar") as tar:
        tar.add("x", {".mp4": good.read_bytes(), ".json": b"{no"})
    gone, changed = item(film(tmp_path / "gone.mp4", 9, seed=5)), item(film(tmp_path / "changed.mp4", 9, seed=5))
    (tmp_path / "gone.mp4").unlink()
    film(tmp_path / "changed.mp4", 12, seed=6)
    items = [item(tmp_path / name) for name in ("bad.mp4", "torn.tar", "odd.tar", "good.mp4")] + [gone, changed]
    done = tokens.start(TokensIds(tokenizer=tokenizers["dv"], **SMALL))(work(tmp_path, items))
    assert {Path(bad.uri).name: bad.reason for bad in done.bad} == {
        "bad.mp4": "not-a-video", "torn.tar": "torn-tar", "odd.tar#x.mp4": "no-json", "gone.mp4": "missing",
        "changed.mp4": "changed-since-planned"}  # fmt: skip
    assert [row["why"] for row, _ in ids_of(done)] == ["not-a-video", "torn-tar", "no-json", None, "missing",
                                                       "changed-since-planned"]  # fmt: skip


def test_two_layers_of_captions(tmp_path: Path, tokenizers: dict[str, str]) -> None:
    made = datasets.publish(tmp_path, [[datasets.Clip(frames=9)]], texts=False)
    needs = {name: dict(shards)["000000"] for name, shards in made.items()}
    with pytest.raises(ValueError, match="2 stages that make captions: caption, other; keep one"):
        list(inputs.clips(work(tmp_path, upstream=needs | {"other": needs["caption"]})))


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        ("cv", {}, "makes latents, not ids: prepare.latents takes it"),
        ("dv", {"size": (40, 64)}, r"size: \[40, 64\]: .* takes heights and widths that 16 divides"),
        ("dv", {"frames": 10}, "frames: 10: "),
    ],
)
def test_a_tokenizer_that_does_not_fit(tokenizers: dict[str, str], kind: str, settings: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tokens.start(TokensIds(tokenizer=tokenizers[kind], **SMALL | settings))
    if kind == "cv":
        with pytest.raises(ValueError, match="makes ids, not latents"):
            latents.start(LatentsEncode(tokenizer=tokenizers["dv"], **SMALL))


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"kind": "prepare.tokens", "tokenizer": "nvidia/Cosmos-Tokenise"}, "no tokenizer is known by this name"),
        ({"kind": "prepare.tokens", "tokenizer": "./here"}, "a path begins with / or ~"),
        ({"kind": "prepare.tokens", "split": "0,1,1"}, "leaves nothing to train on"),
        ({"kind": "prepare.tokens", "split": "4;1"}, "split"),
        ({"kind": "prepare.tokens", "frames": 32}, "frames: 32: .*a multiple of 8 more: make it 25 or 33"),
        ({"kind": "prepare.latents", "frames": 92}, "frames: 92: .*89 or 93"),
        ({"kind": "prepare.tokens", "size": [720, 1280, 3]}, "size"),
        ({"kind": "prepare.tokens", "size": [700, 1280]}, "size: 700: .* 16 divides: make it 688 or 704"),
        ({"kind": "prepare.tokens", "tokenizer": "Wan-AI/Wan2.1-T2V-1.3B"}, "makes latents.*prepare.latents"),
        ({"kind": "prepare.latents", "tokenizer": "nvidia/Cosmos-Tokenize1-DV8x16x16"}, "makes ids.*prepare.tokens"),
    ],
)  # fmt: skip
def test_a_spec_is_refused_before_anything_runs(tmp_path: Path, stage: dict[str, Any], words: str) -> None:
    film(tmp_path / "in/a.mp4", 9, seed=0)
    spec = {"name": "t", "inputs": "in", "output": "out", "stages": {"x": stage}}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(spec))
    with pytest.raises(SpecErrors, match=words):
        load(tmp_path / "t.yaml")


def test_a_gpu_decodes(tmp_path: Path, tokenizers: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Here its engines are the CPU: the same windows of nearly the same pictures; what the CPU had to do is told."""
    made = datasets.publish(tmp_path, [[datasets.Clip(frames=30), datasets.Clip(frames=8)]], texts=False)
    needs = {name: dict(shards)["000000"] for name, shards in made.items()}
    settings = LatentsEncode(tokenizer=tokenizers["wan"], windows="all", fit="stretch", batch=2, decode="gpu", **SMALL)
    with pytest.raises(ValueError, match="decode: gpu: there is no GPU here"):
        latents.start(settings)
    plain = latents.start(msgspec.structs.replace(settings, decode="cpu"))(work(tmp_path, upstream=needs))
    expected = [layers.read_table(plain.objects[1]).to_pylist(), plain.objects[0].read_bytes()]
    monkeypatch.setattr(encode.nvdec, "device_for", lambda decode, device: device if decode == "gpu" else None)
    done = latents.start(settings)(work(tmp_path, upstream=needs))
    assert layers.read_table(done.objects[1]).to_pylist() == expected[0]
    assert done.counts["decoded_by_cpu"] == 1 and "decoded_by_cpu" not in plain.counts
    monkeypatch.setattr(encode, "_run", lambda encoder, frames: frames)
    shown = []
    for gpu in (None, torch.device("cpu")):
        encoder = encode.Encoder(encode.load(tokenizers["wan"]), torch.device("cpu"), (1, 1, 1), gpu)
        found = encode.encoded(settings, encoder, work(tmp_path, upstream=needs), [], Counter())
        shown.append(torch.stack([one.made for one in found if one.made is not None]).int())
    assert shown[0].shape == shown[1].shape == (3, 9, 32, 64, 3)
    assert shown[1].float().std() > 5 and (shown[0] - shown[1]).abs().max() <= 4


# Latents


@pytest.mark.parametrize("kind", ["cv", "wan", "dv"])
def test_large_windows_of_latents_are_streamed(
    tokenizers: dict[str, str], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same but for rounding; ids never."""
    tokenizer = encode.load(tokenizers[kind])
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (2, 41, 32, 32, 3), dtype=np.uint8))
    encoder = encode.Encoder(tokenizer, torch.device("cpu"), (1, 1, 1))
    whole, streams = encode._run(encoder, frames), []
    monkeypatch.setattr("hpc.models.tokenizer_files.PIECE", frames[0, ..., 0].numel() - 1)
    plain = type(tokenizer).encode_stream
    monkeypatch.setattr(type(tokenizer), "encode_stream", lambda *a: streams.append(1) or plain(*a))
    torch.testing.assert_close(encode._run(encoder, frames), whole, rtol=1e-4, atol=1e-4)
    assert len(streams) == 2 * (kind != "dv")


@pytest.mark.parametrize("kind", ["wan", "cv"])
def test_latents_go_round(tmp_path: Path, tokenizers: dict[str, str], kind: str) -> None:
    """What training reads is what the tokenizer made of these frames, rounded to bfloat16, with the padding's mask."""
    clips = [datasets.Clip(frames=30), datasets.Clip(frames=8), datasets.Clip(frames=9, source="/b.mp4")]
    made = datasets.publish(tmp_path, [clips])
    needs = {name: dict(shards)["000000"] for name, shards in made.items()}
    settings = LatentsEncode(tokenizer=tokenizers[kind], fit="pad", batch=2, windows="all", **SMALL)
    done = latents.start(settings)(work(tmp_path, upstream=needs))
    for name in ("data", "list"):
        (tmp_path / name).mkdir()
    for path in done.objects:
        path.rename(tmp_path / "data" / path.name)
    shards = [("000000", {path.suffix: str(tmp_path / "data" / path.name) for path in done.objects})]
    [rows] = latents_list.freeze(LatentsList(), made | {"encode": shards * 2}, set())
    one = work(tmp_path)
    one.rows = msgspec.json.decode(msgspec.json.encode(rows))
    listing = latents_list.start(LatentsList())(one)
    assert listing.counts == {"samples": 4, "dropped": 4, "dropped_duplicate": 4}
    listing.objects[0].rename(tmp_path / "list/000000.parquet")
    for name in ("data", "list"):
        report = validate.validate(str(tmp_path / name), "latents")
        assert (report.errors, report.entries) == (0, 4), report.problems
    by_list, by_tar = (listed(str(tmp_path / name)).drop_columns("prompt") for name in ("list", "data"))
    assert by_list.equals(by_tar), "the list says what the tars say"
    [rows] = latents_list.freeze(LatentsList(), {"encode": shards}, {("/b.mp4", "e")})
    one.rows = msgspec.json.decode(msgspec.json.encode(rows))
    assert latents_list.process(one).counts == {"samples": 3}, "one is of a video that was replaced"
    one.rows[0] += [["/videos/a/one.mp4", "e"]]
    with pytest.raises(ValueError, match="there is not one sample: every clip was left out"):
        latents_list.process(one)
    rows = table(str(tmp_path / "data/000000.parquet")).to_pylist()
    assert [(row["uuid"], row["start"], row["why"]) for row in rows] == [
        *((clips[0].uuid, start, None) for start in (0, 9, 18)), (clips[1].uuid, None, "too-short"),
        (clips[2].uuid, 0, None)]  # fmt: skip
    shape = Shape(frames=9, height=32, width=64, batch=4)
    batches = Batches(listed(str(tmp_path / "list")), [shape, Shape(frames=9, height=32, width=48, batch=1)], seed=0)
    batch = batches.at(0)
    assert sorted(batch.keys) == sorted(f"{row['uuid']}_{row['start']}" for row in rows if row["why"] is None)
    assert (batch.starts, batch.fps.tolist(), batch.replaced) == ([0] * 4, [24.0] * 4, [])
    assert batch.inside.sum().item() == 4 * 57 * 32 and not batch.inside[:, :, :3].any()
    places = {row["key"]: row["embedding"] for row in by_list.to_pylist()}
    tokenizer = encode.load(tokenizers[kind])
    for key, found in zip(batch.keys, batch.frames, strict=True):
        name, _, start = key.rpartition("_")
        frames = next(clip.frames for clip in clips if clip.uuid == name)
        pictures = video.sample(datasets.mp4(frames), range(int(start), int(start) + 9), 57, 32)
        padded = np.pad(pictures, ((0, 0), (0, 0), (3, 4), (0, 0)))
        whole = tokenizer.encode(torch.from_numpy(padded).permute(3, 0, 1, 2)[None].float() / 127.5 - 1)[0]
        close = (found - whole.bfloat16().float()).abs().max() <= 2**-7 * whole.abs().max()
        assert found.shape == whole.shape and close, "batches of other sizes round otherwise"
        [vector] = pickles.loads(fetched(places[key]))
        assert (vector == datasets.array(3, 0 if frames == 30 else 200)).all(), "its caption's embedding"
    other = assigned(listed(str(tmp_path / "data")), [Shape(frames=5, height=32, width=64, batch=1)])
    assert list(other.left_out) == ["no shape is for latents of 9x32x64, 24 frames a second"]


def test_embeddings_of_captions(tmp_path: Path, tokenizers: dict[str, str]) -> None:
    """Of a data set with captions joined, each window's own; where one cannot be read, the clip is left out."""
    about = {"num_frames": 30, "fps": 24.0, "width": 64, "height": 36, "windows": [
        {"start_frame": first, "end_frame": last, "caption": words, "status": status}
        for first, last, words, status in ((0, 5, "", "error"), (6, 17, "b", "success"), (18, 29, "c", "success"))]}
    arrays = [datasets.array(3, 1), datasets.array(4, 2)]  # the first window has none
    with layers.TarWriter(tmp_path / "x.tar") as tar:
        for name, vectors in (("good", arrays), ("short", arrays[:1])):
            tar.add(name, {".mp4": datasets.mp4(30), ".json": json.dumps(about).encode(),
                           ".pickle": pickles.dumps(vectors)})  # fmt: skip
    settings = LatentsEncode(tokenizer=tokenizers["cv"], windows="all", **SMALL)
    done = latents.start(settings)(work(tmp_path, upstream={"shard": {".tar": str(tmp_path / "x.tar")}}))
    with done.objects[0].open("rb") as file:
        found = {key: members for key, members in layers.read_tar(file)}
    assert {key: json.loads(one[".json"])["caption"] for key, one in found.items()} == {
        "good_0": None, "good_9": "b", "good_18": "c"}  # fmt: skip
    assert (pickles.loads(found["good_18"][".pickle"])[0] == arrays[1]).all() and ".pickle" not in found["good_0"]
    assert [bad.reason for bad in done.bad] == ["no-embedding"] and done.counts["embedded"] == 2
    made = datasets.publish(tmp_path, [[datasets.Clip(frames=9)]])
    needs = {name: dict(shards)["000000"] for name, shards in made.items()}
    layers.write_table(tmp_path / "other.parquet", [], {"field": "caption"}, datasets.TEXTS)
    with pytest.raises(ValueError, match="2 stages that embed captions; keep one"):
        inputs.embeddings_of(needs | {"x": needs["text"]})
    with pytest.raises(ValueError, match="embeddings of the field 'caption' of captions, and here `best` is taken"):
        inputs.embeddings_of(needs | {"text": {".parquet": str(tmp_path / "other.parquet")}})


def test_files_of_latents_are_safetensors() -> None:
    """...which torch's own reader and ours take alike, rounded as torch rounds."""
    numbers = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0)) * 100
    data = latent_files.dumps(numbers.numpy())
    assert (safetensors.torch.load(data)["latents"] == numbers.bfloat16()).all()
    assert (latent_files.loads(data) == numbers.bfloat16().float().numpy()).all()
    for dtype in (torch.float32, torch.float16):
        theirs = safetensors.torch.save({"latents": numbers.to(dtype)})
        assert (latent_files.loads(theirs) == numbers.to(dtype).float().numpy()).all()
    for wrong in (b"", data[:-1], safetensors.torch.save({"x": numbers})):
        with pytest.raises(ValueError, match="a tensor 'latents' of floats"):
            latent_files.loads(wrong)


# Megatron's form


def dataset(prefix: str) -> Any:
    """As megatron-core's own reader has it."""
    indexed_dataset = pytest.importorskip("megatron.core.datasets.indexed_dataset")
    return indexed_dataset.IndexedDataset(prefix)


def shards_of(folder: Path, arrays: list[np.ndarray[Any, Any]], vocabulary: int = 64_000) -> documents.Shards:
    """Each array a shard of ids: [documents, t, h, w]."""
    made = []
    for number, ids in enumerate(arrays):
        stem, size = folder / f"{number:06}", ids[0].nbytes
        stem.with_suffix(".bin").write_bytes(ids.astype("<i4").tobytes())
        rows = [{"uuid": f"{number}-{i}", "start": 0, "source": f"{number}-{i}", "offset": i * size, "size": size}
                for i in range(len(ids))]  # fmt: skip
        meta = {"vocabulary": vocabulary, "shape": ids.shape[1:], "tokenizer": "x"}
        layers.write_table(stem.with_suffix(".parquet"), rows, meta, documents.SCHEMA)
        files = {suffix: str(stem.with_suffix(suffix)) for suffix in (".bin", ".parquet")}
        made.append((f"{number:06}", files))
    return {"tokens-ids": made}


def test_all_ids_survive(tmp_path: Path) -> None:
    """...that floats of 16 bits would not hold: megatron-core's reader gives back each of the 64,000."""
    ids = np.arange(64_000, dtype=np.int32).reshape(40, 5, 16, 20)
    folder, [made] = token_sets.form(tmp_path, Megatron(), shards_of(tmp_path, [ids[:13], ids[13:]]))
    found = dataset(f"{folder}/000000")
    assert len(found) == 40 and found.index.dtype == np.int32 and (found.sequence_lengths == 1600).all()
    assert found.document_indices.tolist() == list(range(41))
    rows = table(f"{folder}/000000.parquet").to_pylist()
    assert [row["document"] for row in rows] == list(range(40))
    for row in rows:
        number, i = map(int, row["uuid"].split("-"))
        assert (found[row["document"]] == ids[13 * number + i].ravel()).all()
    assert sorted(np.concatenate([found[i] for i in range(40)]).tolist()) == list(range(64_000))
    assert made.counts == {"documents": 40, "tokens": 64_000, "bytes_out": 256_000, "documents_train": 27,
                           "documents_valid": 6, "documents_test": 7}  # fmt: skip


@pytest.mark.parametrize("split", ["4,1,1", "1,0,0", "99,1", "8,1,1", "969,30,1", "1,1,1", "0.5,0.25,0.25"])
def test_splits_are_megatrons(split: str) -> None:
    """The same documents as megatron-core puts there, for each number of them: it rounds sums of floats."""
    config = pytest.importorskip("megatron.core.datasets.blended_megatron_dataset_config")
    matrix = config.convert_split_vector_to_split_matrix(config.parse_and_normalize_split(split))
    for total in range(1, 500):
        ours = documents.splits(total, split)
        for ends, places in zip(matrix, ours.values(), strict=True):
            begin, end = (round(one * float(total)) for one in ends or (0.0, 0.0))
            assert list(places) == list(range(begin, end))
        assert documents.split_of(total - 1, total, split) in ours
    with pytest.raises(ValueError, match="there is no document 5"):
        documents.split_of(5, 5, split)


def test_megatrons_builder_takes_it(tmp_path: Path) -> None:
    """Each split gets the documents that the table says."""
    gpt = pytest.importorskip("megatron.core.datasets.gpt_dataset")
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder

    windows = [Window(f"c{i}", source=f"/{i}.mp4") for i in range(13)]
    folder, _ = token_sets.form(tmp_path, Megatron(), token_sets.ids(tmp_path, [windows], (5, 4, 4)))
    words = type("Words", (), {"vocab_size": 64_000, "eod": 63_999, "pad": -1, "unique_identifiers": {}})()
    config = gpt.GPTDatasetConfig(
        random_seed=1, sequence_length=80, blend=([f"{folder}/000000"], None), split="4,1,1", tokenizer=words,
        path_to_cache=str(tmp_path / "cache"), reset_position_ids=False, reset_attention_mask=False,
        eod_mask_loss=False, mid_level_dataset_surplus=0.005,
    )  # fmt: skip
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        built = BlendedMegatronDatasetBuilder(gpt.GPTDataset, [4, 2, 2], lambda: True, config).build()
    finally:
        torch.distributed.destroy_process_group()
    rows = table(f"{folder}/000000.parquet").to_pylist()
    for split, part in zip(documents.SPLITS, built, strict=True):
        assert part.indices.tolist() == [row["document"] for row in rows if row["split"] == split] != []


@pytest.mark.parametrize("where", ["local", "moto"])
def test_the_order_is_a_hash_whatever_the_shards(tmp_path: Path, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips of one video stay together; documents that are there twice, or whose video was replaced, are left out."""
    windows = [Window(f"c{i}", start, source=f"/f{i % 7}.mp4") for i in range(40) for start in (0, 9)]
    one, many = (tmp_path / "one"), (tmp_path / "many")
    one.mkdir()
    many.mkdir()
    made = {}
    for folder, cut in ((one, [windows]), (many, [windows[i::6] + windows[:2] for i in range(6)])):
        shards = token_sets.ids(folder, cut)
        made[folder], [done] = token_sets.form(folder, Megatron(hold_out="source"), shards)
    assert done.counts["dropped_duplicate"] == 12, "the first two are in each of six shards once more"
    files = [[Path(folder, f"000000{suffix}").read_bytes() for suffix in (".bin", ".idx")] for folder in made.values()]
    assert files[0] == files[1]
    rows = table(f"{made[many]}/000000.parquet").to_pylist()
    order = [row["source"] for row in rows]
    assert sum(a != b for a, b in itertools.pairwise(order)) == 6, "seven videos, one after the other"
    splits = {source: {row["split"] for row in rows if row["source"] == source} for source in order}
    assert sum(len(some) > 1 for some in splits.values()) <= 2, "but for one at each border"
    assert [(row["uuid"], row["start"]) for row in rows[:2]] == [(rows[0]["uuid"], 0), (rows[0]["uuid"], 9)]
    found = dataset(f"{made[many]}/000000")
    for i in (0, 33):
        expected = token_sets.ids_of(Window(rows[i]["uuid"], rows[i]["start"]), (2, 2, 4)).ravel()
        assert (found[i] == expected).all()
    monkeypatch.setattr(megatron, "PIECE", 200)
    monkeypatch.setattr(megatron, "GAP", 70)
    plan = Megatron(hold_out="clip", file=Bytes(30 * 64))
    gone = {("/f3.mp4", "e")}
    if where == "local":
        folder, several = token_sets.form(many, plan, shards, name="several", superseded=gone)
    else:
        with s3.moto() as server:
            for name, value in server.env.items():
                monkeypatch.setenv(name, value)
            objects = []
            for shard, uris in shards["tokens-ids"]:
                objects.append((shard, {suffix: f"s3://bucket/ids/{shard}{suffix}" for suffix in uris}))
                for suffix, uri in uris.items():
                    storage.put(objects[-1][1][suffix], Path(uri))
            folder, several = token_sets.form(many, plan, {"ids": objects}, name="several", superseded=gone)
    assert [made.counts["documents"] for made in several] == [30, 30, 8]
    assert {source for i in range(3) for source in table(f"{folder}/{i:06}.parquet")["source"].to_pylist()} == {
        f"/f{i}.mp4" for i in range(7) if i != 3}  # fmt: skip
    assert Path(folder, "000002.bin").stat().st_size == 8 * 64


def test_ids_that_are_damaged(tmp_path: Path) -> None:
    ids = np.full((3, 1, 2, 2), 7, np.int32)
    ids[1, 0, 1] = 64_000
    with pytest.raises(ValueError, match=r"000000.bin: ids from 7 to 64000 in the 16 bytes at 16; .* has 64000 ids"):
        token_sets.form(tmp_path, Megatron(), shards_of(tmp_path, [ids]))
    shards = shards_of(tmp_path, [ids, ids])
    (tmp_path / "000001.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="nothing in the 16 bytes"):
        token_sets.form(tmp_path, Megatron(), {"ids": shards["tokens-ids"][1:]})
    other = shards_of(tmp_path / "..", [ids.reshape(3, 2, 2, 1)])["tokens-ids"] + shards["tokens-ids"][1:]
    with pytest.raises(ValueError, match="shards 000000, 000001 of the ids were not made alike"):
        token_sets.form(tmp_path, Megatron(), {"ids": other})
    with pytest.raises(ValueError, match="there is not one document: every clip was left out"):
        token_sets.form(tmp_path, Megatron(), token_sets.ids(tmp_path, [[Window("a", why="too-short")]]))
    with pytest.raises(ValueError, match="a form of tokens is made of shards of ids"):
        documents.ids_of({"clips": [("000000", {".tar": "x"})]})


def test_the_shipped_spec() -> None:
    [spec] = load(Path(__file__).parents[1] / "jobs/tokens.yaml")
    assert list(spec.stages)[-2:] == ["tokens-ids", "tokens"]
    assert spec.stages["tokens"].needs == ("dataset", "tokens-ids")
    assert spec.stages["tokens-ids"].settings.models() == {
        "nvidia/Cosmos-Tokenize1-DV8x16x16-720p": ("encoder.jit", "decoder.jit")}  # fmt: skip
    assert domains(spec)["tokens-ids"] == "dataset" and spec.stages["tokens"].resources.gpus == 0
