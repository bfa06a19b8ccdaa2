"""Data sets for tests: clips with captions and text embeddings as the stages before would leave them, and what becomes
of them through the parts of curate.shard, without Slurm.

    made = datasets.publish(tmp_path, [Clip(frames=300, captions=["a", "b"]), ...])
    folder = datasets.shard(tmp_path, made, layout="cosmos")
"""

from __future__ import annotations

import functools
import importlib
import itertools
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import av
import msgspec
import numpy as np
import pyarrow as pa

from hpc.curate import clip, windows
from hpc.curate.settings import Shard
from hpc.data import layers, storage
from hpc.data.work import Work

WIDTH = 8
"""Of text embeddings here; T5-XXL has 1024."""
CAPTIONS = pa.schema(
    [("uuid", pa.string()), ("window", pa.int32()), ("start_frame", pa.int32()), ("end_frame", pa.int32()),
     ("caption", pa.string()), ("status", pa.string()), ("detail", pa.string()), ("prompt_tokens", pa.int32()),
     ("output_tokens", pa.int32()), ("enhanced", pa.string()), ("enhanced_status", pa.string())]
)  # fmt: skip
TEXTS = pa.schema([("uuid", pa.string()), ("window", pa.int32()), ("tokens", pa.int32()), ("embedding", pa.binary())])


class Clip(msgspec.Struct):
    frames: int = 200
    fps: float = 24.0
    width: int = 1280
    height: int = 720
    verdict: str = "keep"
    status: tuple[str, ...] = ()
    """Of the captions; success."""
    enhanced: tuple[str, ...] = ()
    """Captions that are written out."""
    source: str = "/videos/a/one.mp4"
    cameras: tuple[str, ...] = ()
    more: dict[str, Any] = {}
    """Further columns."""
    uuid: str = ""


@functools.cache
def mp4(frames: int, fps: int = 24) -> bytes:
    """A real video, as small as can be: frame i is a plain grey."""
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with av.open(file.name, "w", format="mp4") as out:
            stream = out.add_stream("libx264", rate=fps, options={"preset": "ultrafast", "crf": "40", "g": "48"})
            stream.width, stream.height, stream.pix_fmt = 64, 36, "yuv420p"
            for i in range(frames):
                picture = av.VideoFrame.from_ndarray(np.full((36, 64, 3), i % 250, np.uint8), "rgb24")
                out.mux(stream.encode(picture))
            out.mux(stream.encode())
        return Path(file.name).read_bytes()


def array(tokens: int, seed: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).standard_normal((tokens, WIDTH)).astype("<f2")


def publish(
    folder: Path, shards: Sequence[Sequence[Clip]], *, captions: bool = True, texts: bool = True, base: str = "",
    window: int = windows.WINDOW,
) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Stage -> shards, as a barrier is given them."""
    base = base or str(folder / "out")
    made: dict[str, list[tuple[str, dict[str, str]]]] = {"clips": []}
    numbers = itertools.count()
    for s, clips in enumerate(shards):
        shard, table, told, vectors = f"{s:06}", [], [], []
        with layers.TarWriter(folder / "x.tar") as tar:
            for one in clips:
                number = next(numbers)
                one.uuid = one.uuid or str(uuid.uuid5(uuid.NAMESPACE_URL, f"{one.source}_{number}"))
                row = row_of(one, number)
                if one.verdict == "keep":
                    put(tar, one, row)
                    for w, (start, end) in enumerate(windows.windows(one.frames, window)):
                        status = (*one.status, *["success"] * 99)[w]
                        text = f"clip {number} window {w}" if status != "error" else ""
                        same = {"uuid": one.uuid, "window": w}
                        better = one.enhanced[w] if w < len(one.enhanced) else None
                        told.append(same | {"start_frame": start, "end_frame": end, "caption": text, "status": status,
                                            "prompt_tokens": 10, "output_tokens": 5, "enhanced": better,
                                            "enhanced_status": better and "success"})  # fmt: skip
                        if text:
                            value = array(3 + w, 100 * number + w).tobytes()
                            vectors.append(same | {"tokens": 3 + w, "embedding": value})
                table.append(row)
        layers.write_table(folder / "x.parquet", table, {"shard": shard}, clip.SCHEMA)
        objects = {suffix: folder / f"x{suffix}" for suffix in (".tar", ".parquet")}
        made["clips"].append((shard, put_all(base, "clips@v1", shard, objects)))
        for stage, rows, schema in (("caption", told, CAPTIONS), ("text", vectors, TEXTS)):
            if {"caption": captions, "text": texts}[stage]:
                path = folder / "layer.parquet"
                layers.write_table(path, rows, {"stage": f"curate.{stage}", "field": "best"}, schema)
                made.setdefault(stage, []).append((shard, put_all(base, f"{stage}@v1", shard, {".parquet": path})))
    return made


def row_of(one: Clip, number: int) -> dict[str, Any]:
    seconds = one.frames / one.fps
    row = {
        "uuid": one.uuid, "source": one.source, "member": "", "etag": "e", "start_seconds": 10.0 * number,
        "end_seconds": 10.0 * number + seconds, "start_frame": 0, "end_frame": one.frames, "verdict": one.verdict,
        "reasons": [], "num_frames": one.frames, "fps": one.fps, "is_vfr": False, "source_width": one.width,
        "source_height": one.height, "source_fps": one.fps, "source_frames": 9000, "source_seconds": 375.0,
        "source_codec": "h264", "source_pix_fmt": "yuv420p", "source_audio_codec": "aac", "source_bytes": 1000,
    }  # fmt: skip
    return row | one.more


def put(tar: layers.TarWriter, one: Clip, row: dict[str, Any]) -> None:
    video = mp4(one.frames, round(one.fps))
    row |= {"width": one.width, "height": one.height, "codec": "h264", "bytes": len(video)}
    members = {".mp4": video, ".json": clip.described(row), ".webp": b"a picture"}
    if one.cameras:
        row["camera"] = one.cameras[0]
        row["cameras"] = [{"camera": name, "source": f"/drive/{name}.mp4", "etag": "e", "num_frames": one.frames,
                           "width": one.width, "height": one.height} for name in one.cameras[1:]]  # fmt: skip
        members |= {f".{name}.mp4": video for name in one.cameras[1:]}
    members[".preview_0_199.webp"] = b"a preview"
    place = tar.add(one.uuid, members)
    row |= {"offset": place.offset, "size": place.size}
    for kind in ("mp4", "webp"):
        row[f"{kind}_offset"], row[f"{kind}_size"] = place.members[f".{kind}"]


def put_all(base: str, stage: str, shard: str, files: dict[str, Path]) -> dict[str, str]:
    uris = {suffix: storage.join(base, stage, shard + suffix) for suffix in files}
    for suffix, path in files.items():
        storage.put(uris[suffix], path)
    return uris


def shard(
    folder: Path, upstream: dict[str, Any], *, base: str = "", superseded: Iterable[tuple[str, str]] = (),
    **settings: Any,
) -> str:  # fmt: skip
    """All parts of curate.shard, each shard published as a runner does; the folder of the data set."""
    base = base or str(folder / "out")
    made = dict(upstream)
    for name, (part, needs, _) in Shard(**settings).parts().items():
        stage = f"shard-{name}" if name else "shard"
        names = {"": [*upstream], ".": ["shard"]}
        needed = {n for need in needs for n in names.get(need, [f"shard-{need}"])}
        module = importlib.import_module(part.CODE)
        given = {n: shards for n, shards in made.items() if n in needed}
        process = module.start(part)
        made[stage] = []
        for number, rows in enumerate(module.freeze(part, given, set(superseded))):
            one = work(folder, f"{number:06}", msgspec.json.decode(msgspec.json.encode(rows)), f"{base}/{stage}@v1")
            done = process(one)
            output = one.folder.rpartition("/")[0] + "/"
            for uri, path in done.tree.items():
                assert uri.startswith(output) and storage.put_new(uri, path), uri
            files = {path.name[6:]: path for path in done.objects}
            assert tuple(files) == part.OBJECTS
            made[stage].append((one.shard, put_all(base, f"{stage}@v1", one.shard, files)))
    upstream["made"] = made
    return f"{base}/shard@v1"


def work(folder: Path, name: str, rows: list[Any], out: str = "") -> Work:
    scratch = Path(tempfile.mkdtemp(dir=folder))
    return Work(name, [], rows, {}, scratch, "f", lambda: None, lambda share, words: None, folder=out)
