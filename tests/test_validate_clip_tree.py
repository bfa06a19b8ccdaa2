"""Every rule of `hpc validate` for the clip tree of Cosmos-Curate, and for tables and files of embeddings in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from broken_sets import CLIPS, broken, change, found, good, uuid

from hpc.data import layers, pickles

__all__ = ["broken", "good"]  # fixtures


@pytest.mark.parametrize(
    "rule",
    ["no-summary", "keys", "no-clips", "unprocessed", "record", "chunk", "chunks", "metadata", "not-valid",
     "clip-location", "missing", "num-bytes", "frame-count", "caption-gap", "no-caption", "window", "captions",
     "orphan"],
)  # fmt: skip
def test_the_clip_tree(broken: Callable[[str], Path], rule: str) -> None:
    place = broken("cosmos-curate")
    id = uuid(0, 0)  # of 400 frames, with two windows
    meta, mp4, summary = place / f"metas/v0/{id}.json", place / f"clips/{id}.mp4", place / "summary.json"
    record, chunk = place / "processed_videos/one.mp4.json", place / "processed_clip_chunks/one.mp4_0.json"
    windows = json.loads(meta.read_bytes())["windows"]
    bare = [{"start_frame": one["start_frame"], "end_frame": one["end_frame"]} for one in windows]
    at = {"meta": f"metas/v0/{id}.json", "mp4": f"clips/{id}.mp4"}
    if rule == "no-summary":
        summary.unlink()
        expected = {("missing", "summary.json")}
    elif rule == "keys":
        change(summary, total_clip_duration=...)
        expected = {(rule, "summary.json")}
    elif rule == "no-clips":
        change(summary, **{"one.mp4": ...})
        expected = {(rule, "summary.json"), ("captions", "v0/all_window_captions.json")}
        expected |= {("orphan", f"clips/{one.uuid}.mp4") for some in CLIPS for one in some}
    elif rule == "unprocessed":
        change(summary, **{"two.mp4": {"source_video": "/two.mp4", "processed": False}})
        expected = {(rule, "summary.json")}
    elif rule == "record":
        record.unlink()
        expected = {("missing", "processed_videos/one.mp4.json")}
    elif rule == "chunk":
        change(chunk, clips=...)
        expected = {("keys", "processed_clip_chunks/one.mp4_0.json"), ("chunks", "processed_videos/one.mp4.json")}
    elif rule == "chunks":
        change(chunk, clips=[id])
        expected = {(rule, "processed_videos/one.mp4.json")}
    elif rule == "metadata":
        change(meta, span_uuid="x")
        expected = {(rule, at["meta"])}
    elif rule == "not-valid":
        change(meta, valid=False, windows=[])
        expected = {(rule, at["meta"])}
    elif rule == "clip-location":
        change(meta, clip_location="/gone/x.mp4")
        expected = {(rule, at["meta"])}
    elif rule == "missing":
        mp4.unlink()
        expected = {(rule, at["mp4"]), ("clip-location", at["meta"])}
        change(meta, clip_location=str(place / "elsewhere.mp4"))
    elif rule == "num-bytes":
        change(meta, num_bytes=7)
        expected = {(rule, at["mp4"])}
    elif rule == "frame-count":
        change(meta, num_frames=401)
        expected = {(rule, at["mp4"])}
    elif rule == "caption-gap":
        change(meta, windows=[bare[0], windows[1]])
        expected = {(rule, at["meta"])}
    elif rule == "no-caption":
        change(meta, windows=[windows[0], bare[1]])
        expected = {(rule, at["meta"])}
    elif rule == "window":
        change(meta, windows=[windows[0], windows[1] | {"end_frame": 400}])
        expected = {(rule, at["meta"])}
    elif rule == "captions":
        change(place / "v0/all_window_captions.json", **{"x.mp4": {}})
        expected = {(rule, "v0/all_window_captions.json")}
    else:
        (place / "clips/x.mp4").write_bytes(b"")
        expected = {(rule, "clips/x.mp4")}
    assert found(place, "cosmos-curate") == expected


@pytest.mark.parametrize(
    "table",
    [pa.table({"id": ["x"]}), pa.table({"id": [1], "embedding": [[1.0]]}), pa.table({"id": ["x"], "embedding": [1.0]}),
     pa.table({"id": ["x"], "embedding": [[1.0]]})],
)  # fmt: skip
def test_embeddings_of_the_clip_tree(broken: Callable[[str], Path], table: pa.Table) -> None:
    place = broken("cosmos-curate")
    (place / "iv2_embd_parquet").mkdir()
    layers.pq.write_table(table, place / "iv2_embd_parquet/x.parquet")
    assert found(place, "cosmos-curate") == {("embeddings", "iv2_embd_parquet/x.parquet")}


@pytest.mark.parametrize(
    ("file", "more"),
    [("meta", {"windows": [{"qwen_caption": "x"}]}), ("meta", {"windows": [5]}), ("meta", {"framerate": "24"}),
     ("meta", {"clip_location": 5}), ("record", {"num_clip_chunks": "1"}), ("chunk", {"clips": 5}),
     ("chunk", {"clips": [5, "x"]}), ("summary", {"one.mp4": {"clips": 5}}), ("summary", {"one.mp4": {"clips": [5]}})],
)  # fmt: skip
def test_values_that_the_curator_does_not_expect(
    broken: Callable[[str], Path], file: str, more: dict[str, Any]
) -> None:
    place = broken("cosmos-curate")
    path = {"meta": f"metas/v0/{uuid(0, 0)}.json", "record": "processed_videos/one.mp4.json",
            "chunk": "processed_clip_chunks/one.mp4_0.json", "summary": "summary.json"}[file]  # fmt: skip
    change(place / path, **more)
    rule = "metadata" if file == "meta" else "keys"
    told = found(place, "cosmos-curate")
    assert (rule, "processed_videos/one.mp4.json" if file == "chunk" else path) in told
    assert file == "summary" or {one for one in told if uuid(1, 0) in one[1]} == set()


def test_a_table_of_embeddings_that_is_none(broken: Callable[[str], Path]) -> None:
    place = broken("cosmos-curate")
    (place / "iv2_embd_parquet").mkdir()
    (place / "iv2_embd_parquet/x.parquet").write_bytes(b"no table")
    assert found(place, "cosmos-curate") == {("embeddings", "iv2_embd_parquet/x.parquet")}


@pytest.mark.parametrize(("value", "rule"), [(b"x", "pickle"), (np.zeros((2, 4)), "pickle"), (np.zeros((1, 5)), "")])
def test_files_of_embeddings(broken: Callable[[str], Path], value: Any, rule: str) -> None:
    place = broken("cosmos-curate")
    (place / "ce1_embd_224p").mkdir()
    for name, one in (("x", value), ("y", np.zeros((1, 4), np.float16))):
        data = one if isinstance(one, bytes) else pickles.dumps_array(one)
        (place / f"ce1_embd_224p/{name}.pickle").write_bytes(data)
    expected = ("pickle", "ce1_embd_224p/x.pickle") if rule else ("embeddings", "")
    assert found(place, "cosmos-curate") == {expected}
