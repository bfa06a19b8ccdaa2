"""Captions that Cosmos-Curate wrote become a layer: of the clips that they are about, and of no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from hpc.curate import caption, caption_import
from hpc.curate.settings import CaptionImport
from hpc.data import layers
from hpc.data.work import Made, Work

WINDOWS = [
    {"start_frame": 0, "end_frame": 255, "qwen_caption": "A street.", "qwen_prompt_tokens": 5, "qwen_output_tokens": 2,
     "qwen_lm_enhanced_caption": "A wide street."},
    {"start_frame": 256, "end_frame": 399, "qwen_caption": "A square.", "qwen_prompt_tokens": 6},
    {"start_frame": 400, "end_frame": 460, "cosmos_r1_caption": "A park."},
]  # fmt: skip


def made(place: Path, metas: dict[str, Any], clips: tuple[str, ...] = ("one", "two")) -> Made:
    for name, told in metas.items():
        (place / f"{name}.json").write_text(told if isinstance(told, str) else json.dumps(told))
    rows = [{"uuid": f"our-{name}", "verdict": "keep", "source": f"s3://b/v0/clips/{name}.mp4", "num_frames": 450,
             "mp4_offset": 0, "mp4_size": 1} for name in clips]  # fmt: skip
    columns = dict.fromkeys(("uuid", "verdict", "source"), pa.string())
    columns |= dict.fromkeys(("num_frames", "mp4_offset", "mp4_size"), pa.int64())
    layers.write_table(place / "clips.parquet", rows, {}, pa.schema(columns))
    (place / "scratch").mkdir(exist_ok=True)
    needs = {"clips": {".tar": str(place / "x.tar"), ".parquet": str(place / "clips.parquet")}}
    work = Work("000000", [], [], needs, place / "scratch", "f", lambda: None, lambda share, words: None)
    return caption_import.start(CaptionImport(folder=str(place)))(work)


def test_windows_and_words_are_taken_over(tmp_path: Path) -> None:
    done = made(tmp_path, {"one": {"span_uuid": "one", "windows": WINDOWS}, "three": {"windows": WINDOWS}})
    table = layers.read_table(done.objects[0])
    assert table.schema.remove_metadata() == caption.SCHEMA
    rows = table.to_pylist()
    assert [(row["uuid"], row["window"], row["start_frame"], row["end_frame"], row["caption"], row["status"])
            for row in rows] == [("our-one", 0, 0, 255, "A street.", "success"),
                                 ("our-one", 1, 256, 399, "A square.", "success"),
                                 ("our-one", 2, 400, 449, "", "error")]  # fmt: skip
    assert rows[0]["enhanced"] == "A wide street." and rows[1]["enhanced"] is None
    assert (rows[0]["prompt_tokens"], rows[1]["output_tokens"]) == (5, 0)
    assert rows[2]["detail"] == "no qwen_caption; there is cosmos_r1_caption"
    assert done.counts == {"clips": 2, "windows": 3, "clips_without_metadata": 1, "errors": 1}
    assert layers.read_meta(done.objects[0])["without_metadata"] == ["our-two"]


def test_another_folder_is_found_out(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no .*/one.json, nor one for any other clip"):
        made(tmp_path, {"other": {"windows": WINDOWS}})
    with pytest.raises(ValueError, match=r"one.json is no metadata of a clip"):
        made(tmp_path, {"one": "{", "two": {"windows": []}})
    with pytest.raises(ValueError, match=r"two.json is no metadata .* KeyError"):
        made(tmp_path, {"one": {"windows": []}, "two": {"clips": []}})
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"folder": "metas/v0"}, CaptionImport)


def test_a_shard_without_clips(tmp_path: Path) -> None:
    done = made(tmp_path, {}, ())
    assert layers.read_table(done.objects[0]).num_rows == 0
