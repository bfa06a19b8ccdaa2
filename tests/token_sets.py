"""Token data sets for tests: shards of ids as the first part of prepare.tokens leaves them, and what the forms make of
them, each shard published as a runner does.

    shards = token_sets.ids(tmp_path, [[Window("a", 0), Window("a", 33)], [Window("b", 0)]])
    folder = token_sets.form(tmp_path, Video2World(text_encoder=...), shards)
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from hpc.data import layers, storage
from hpc.data.tokens import VOCABULARY
from hpc.data.work import Made, Work
from hpc.prepare.documents import SCHEMA, Shards

TEXTS = pa.schema([("uuid", pa.string()), ("window", pa.int32()), ("tokens", pa.int32()), ("embedding", pa.binary())])
WINDOWS = pa.schema([("uuid", pa.string()), ("window", pa.int32()), ("start_frame", pa.int32()),
                     ("end_frame", pa.int32()), ("caption", pa.string())])  # fmt: skip


class Window(msgspec.Struct):
    uuid: str
    start: int = 0
    caption: str | None = "a rabbit"
    source: str = "/films/a.mp4"
    why: str | None = None


def ids_of(window: Window, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """A window's own."""
    seed = int.from_bytes(f"{window.uuid} {window.start}".encode(), "little")
    return np.random.default_rng(seed).integers(0, VOCABULARY, shape, np.int32)


def ids(folder: Path, shards: Sequence[Sequence[Window]], shape: Sequence[int] = (2, 2, 4), media: str = "",
        **meta: Any) -> Shards:  # fmt: skip
    """media: where the clips are, "x.tar#"."""
    made = []
    about = {"tokenizer": "tiny", "vocabulary": VOCABULARY, "shape": list(shape), "frames": 9, "size": [32, 64],
             "fps": None, "fit": "crop", "windows": "all", "precision": "float32"} | meta  # fmt: skip
    for number, windows in enumerate(shards):
        data, rows = b"", []
        for one in windows:
            row = {"uuid": one.uuid, "start": one.start, "caption": one.caption, "source": one.source, "etag": "e",
                   "why": one.why, "media": f"{media}{one.uuid}.mp4", "frames": 99, "fps": 24.0, "width": 64,
                   "height": 32}  # fmt: skip
            if one.why is None:
                found = ids_of(one, shape).tobytes()
                row |= {"offset": len(data), "size": len(found)}
                data += found
            rows.append(row)
        layers.write_table(folder / "x.parquet", rows, about, SCHEMA)
        (folder / "x.bin").write_bytes(data)
        shard = f"{number:06}"
        made.append((shard, publish(folder, "ids@v1", shard, [folder / "x.bin", folder / "x.parquet"])))
    return {"tokens-ids": made}


def publish(folder: Path, stage: str, shard: str, files: Sequence[Path]) -> dict[str, str]:
    uris = {path.suffix: storage.join(str(folder), "out", stage, shard + path.suffix) for path in files}
    for path in files:
        storage.put(uris[path.suffix], path)
    return uris


def embeddings(folder: Path, shards: Sequence[Sequence[tuple[str, int, int, int]]], width: int = 1024) -> Shards:
    """Of captions: (uuid, window, first and last frame) each; filled with 1, 2, 3... in the order given, of as many
    tokens."""
    texts, windows, value = [], [], 0
    for number, some in enumerate(shards):
        told, vectors = [], []
        for uuid, window, first, last in some:
            value += 1
            told.append({"uuid": uuid, "window": window, "start_frame": first, "end_frame": last, "caption": "words"})
            vectors.append({"uuid": uuid, "window": window, "tokens": value,
                            "embedding": np.full((value, width), value, "<f2").tobytes()})  # fmt: skip
        for stage, rows, schema, found in (("text", vectors, TEXTS, texts), ("caption", told, WINDOWS, windows)):
            layers.write_table(folder / "x.parquet", rows, {}, schema)
            found.append((f"{number:06}", publish(folder, f"{stage}@v1", f"{number:06}", [folder / "x.parquet"])))
    return {"text": texts, "caption": windows}


def form(folder: Path, settings: Any, stages: Shards, name: str = "tokens", **more: Any) -> tuple[str, list[Made]]:
    """The folder of the data set, and what was made of each shard."""
    module = importlib.import_module(settings.CODE)
    process, base, made = module.start(settings), storage.join(str(folder), "out", f"{name}@v1"), []
    for number, rows in enumerate(module.freeze(settings, stages, more.get("superseded", set()))):
        rows = msgspec.json.decode(msgspec.json.encode(rows))  # as it goes through the plan
        scratch = Path(tempfile.mkdtemp(dir=folder))
        work = Work(f"{number:06}", [], rows, {}, scratch, "f", lambda: None, lambda share, words: None, folder=base)
        done = process(work)
        for uri, path in done.tree.items():
            assert storage.put_new(uri, path), uri
        publish(folder, f"{name}@v1", work.shard, done.objects)
        made.append(done)
    return base, made


def trajectory(root: Path, split: str, name: str, frames: int, text: str = "flip pot", **more: Any) -> Window:
    """A trajectory of a Bridge data set, but for its film."""
    chance = np.random.default_rng(frames)
    state = chance.standard_normal((frames, 8))
    said = {
        "task": "robot_trajectory_prediction", "texts": [text], "episode_id": name,
        "videos": [{"video_path": f"videos/{split}/{name}/rgb.mp4"}],
        "action": (chance.standard_normal((frames - 1, 7)) / 100).tolist(), "state": state[:, :7].tolist(),
        "continuous_gripper_state": [0.0] * frames,
    } | more  # fmt: skip
    (root / "annotation" / split).mkdir(parents=True, exist_ok=True)
    (root / "videos" / split / name).mkdir(parents=True, exist_ok=True)
    (root / "annotation" / split / f"{name}.json").write_text(json.dumps(said))
    np.save(root / "videos" / split / name / "state.npy", state)
    return Window(f"uuid-{split}-{name}", source=str(root / "videos" / split / name / "rgb.mp4"))


def frames(window: Window, count: int) -> list[Window]:
    """A document for each frame of a film."""
    return [msgspec.structs.replace(window, start=i) for i in range(count)]
