"""The clip tree of Cosmos-Curate: clips, metadata, summaries and embeddings."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
from datasets import Clip
from read_back import files, good

from hpc.curate import judge
from hpc.data import layers
from hpc.data.upstream import KEEP


def test_the_clip_tree_of_cosmos_curate(tmp_path: Path) -> None:
    clips = [Clip(), Clip(verdict="motion"), Clip(source="/videos/b.mp4", frames=400), Clip(verdict="blur")]
    further = [Clip(frames=300), Clip(verdict="short")]  # of the first video again: it is planned as spans
    made = datasets.publish(tmp_path, [clips, further])
    vectors = [{"uuid": one.uuid, "embedding": [float(i), 1.0]} for i, one in enumerate(clips)]
    for name, rows in (("000000", vectors), ("000001", [])):
        path = tmp_path / "v.parquet"
        schema = pa.schema([("uuid", pa.string()), ("embedding", pa.list_(pa.float32(), 2))])
        layers.write_table(path, rows, {"stage": "curate.embed"}, schema)
        made.setdefault("embed", []).append((name, datasets.put_all(str(tmp_path), "embed", name, {".parquet": path})))
    folder = datasets.shard(tmp_path, made, layout="cosmos-curate", embeddings="ce1_embd_224p")
    found = files(folder)
    kept = [clips[0].uuid, clips[2].uuid, further[0].uuid]
    assert {name for name in found if name.startswith("clips/")} == {f"clips/{uuid}.mp4" for uuid in kept}
    assert {name for name in found if name.startswith("metas/v0/")} == {
        f"metas/v0/{uuid}.json" for uuid in [*kept, clips[1].uuid, clips[3].uuid]
    }
    about = json.loads(found[f"metas/v0/{kept[1]}.json"])
    assert about["clip_location"] == f"{folder}/clips/{kept[1]}.mp4" and about["valid"]
    dropped = json.loads(found[f"metas/v0/{clips[1].uuid}.json"])
    assert not dropped["valid"] and dropped["windows"] == [] and "num_frames" not in dropped
    assert found[f"previews/{kept[0]}/0_199.webp"] == b"a preview"
    summary = json.loads(found["summary.json"])
    assert (summary["num_input_videos"], summary["total_num_clips_passed"]) == (2, 3)
    assert summary["total_num_clips_filtered_by_motion"] == 1 and summary["total_num_clips_with_embeddings"] == 2
    one = summary["a/one.mp4"]
    assert one["clips"] == [kept[0], kept[2]] and one["filtered_clips"] == [clips[1].uuid, clips[3].uuid]
    assert (one["num_clip_chunks"], one["num_total_clips"]) == (2, 4)
    record = json.loads(found["processed_videos/a/one.mp4.json"])
    assert (record["video"], record["audio_format"], record["num_clip_chunks"]) == ("/videos/a/one.mp4", "aac", 2)
    chunk = json.loads(found["processed_clip_chunks/a/one.mp4_1.json"])
    assert chunk["all_windows"] == {kept[2]: {"0_299": "clip 4 window 0"}}
    assert json.loads(found["v0/all_window_captions.json"])["b.mp4"] == {
        kept[1]: {"0_255": "clip 2 window 0", "256_399": "clip 2 window 1"}
    }
    (parquet,) = (name for name in found if name.endswith(f"{one['video_uuid']}_0.parquet"))
    assert parquet.startswith("ce1_embd_224p_parquet/")
    embedded = {name: data for name, data in found.items() if name.startswith("ce1_embd_224p/")}
    assert set(embedded) == {f"ce1_embd_224p/{uuid}.pickle" for uuid in kept[:2]}
    vector = pickle.loads(embedded[f"ce1_embd_224p/{kept[1]}.pickle"])
    assert (vector.dtype, vector.tolist()) == (np.float16, [[2.0, 1.0]])
    table = layers.read_table(io.BytesIO(found[parquet]))
    assert table.schema.field("embedding").type == pa.list_(pa.float64())
    assert table.to_pylist() == [{"id": kept[0], "embedding": [0.0, 1.0]}]
    assert good(folder, "cosmos-curate").entries == 3


def test_refusals_are_no_captions(tmp_path: Path) -> None:
    clips = [Clip(frames=600, status=("refused", "truncated"), enhanced=("Better.",))]
    made = datasets.publish(tmp_path, [clips])
    found = files(datasets.shard(tmp_path, made, layout="cosmos-curate"))
    about = json.loads(found[f"metas/v0/{clips[0].uuid}.json"])
    assert [(one.get("qwen_caption"), one.get("qwen_lm_enhanced_caption")) for one in about["windows"]] == [
        (None, "Better."), ("clip 0 window 1", None)
    ]  # fmt: skip
    captions = json.loads(found["v0/all_window_captions.json"])
    assert captions == {"one.mp4": {clips[0].uuid: {"256_599": "clip 0 window 1"}}}


def judged(tmp_path: Path, made: dict[str, Any], stage: str, seen: dict[str, list[Any]], **meta: Any) -> None:
    """A layer as curate.semantic and curate.classify write it: uuid -> [(first frame, last, status, yes)]."""
    rows = [
        {"uuid": uuid, "verdict": KEEP if uuid in meta["keep"] else stage, "reasons": ["logo"], "share": 1.0,
         "found": [], "windows": len(windows), "unparsed": 0,
         "seen": [dict(zip(("start_frame", "end_frame", "status", "yes"), one, strict=True)) for one in windows]}
        for uuid, windows in seen.items()
    ]  # fmt: skip
    layers.write_table(tmp_path / "j.parquet", rows, {"stage": f"curate.{stage}", **meta}, judge.SCHEMA)
    uris = datasets.put_all(str(tmp_path), stage, "000000", {".parquet": tmp_path / "j.parquet"})
    made[stage] = [("000000", uris)]


def test_windows_that_were_judged(tmp_path: Path) -> None:
    """filtered_windows of Cosmos-Curate's metadata: what models said of windows, and what went wrong with captions."""
    clips = [Clip(frames=600, status=("refused",)), Clip(frames=400), Clip(), Clip()]
    made = datasets.publish(tmp_path, [clips])
    one, two, three, four = (clip.uuid for clip in clips)
    parsed, none = "parsed", list[str]()
    judged(tmp_path, made, "semantic", keep=[one, four], names=["logo", "blur"], seen={
        one: [(0, 255, parsed, none), (256, 599, "unparsed", none)], four: [],
        two: [(0, 255, parsed, ["logo", "blur"]), (256, 399, "refused", none)],
        three: [(0, 199, parsed, ["logo"])],
    })  # fmt: skip
    judged(tmp_path, made, "classify", keep=[one, three], names=["tv", "game", "news"], block=["game"], allow=["tv"],
           seen={one: [(0, 255, parsed, ["tv", "news"])], three: [(0, 199, parsed, ["game"])],
                 four: [(0, 199, parsed, ["news"])]})  # fmt: skip
    found = files(datasets.shard(tmp_path, made, layout="cosmos-curate"))
    about = {uuid: json.loads(found[f"metas/v0/{uuid}.json"]) for uuid in (one, two, three, four)}
    assert {uuid: told["filtered_windows"] for uuid, told in about.items()} == {
        one: [{"start_frame": 0, "end_frame": 255, "qwen_rejection_reasons": "{}",
               "errors": {"qwen_caption": "refused"}},
              {"start_frame": 256, "end_frame": 599, "errors": {"qwen": "malformed_model_output"}}],
        two: [{"start_frame": 0, "end_frame": 255, "qwen_rejection_reasons": "{'logo': 'yes', 'blur': 'yes'}"},
              {"start_frame": 256, "end_frame": 399, "errors": {"qwen": "refused"}}],
        three: [{"start_frame": 0, "end_frame": 199,
                 "qwen_rejection_reasons": "{'game': 'yes', 'tv': 'no', 'logo': 'yes'}"}],
        four: [{"start_frame": 0, "end_frame": 199, "qwen_rejection_reasons": "{'tv': 'no'}"}],
    }  # fmt: skip
    assert [about[uuid].get("qwen_rejection_stage") for uuid in about] == [None, "semantic", "semantic", "classifier"]
    assert len(about[one]["windows"]) == 2 and not any(about[uuid]["valid"] for uuid in (two, three, four))


def test_nothing_is_told_of_replaced_videos(tmp_path: Path) -> None:
    """A clip of the video as it was, which a filter dropped, has the uuid of one of today's that stays."""
    before = [Clip(verdict="motion", uuid="7ca6ee8d-95d5-5a2c-b2a5-7b1c9d8b5b0a"), Clip(source="/gone/x.mp4")]
    now = [Clip(uuid=before[0].uuid, more={"etag": "new"})]
    session = [Clip(cameras=("front", "left"), source="/videos/a/front.mp4", more={"etag": "new"})]
    made = datasets.publish(tmp_path, [before, now, session])
    gone = {("/videos/a/one.mp4", "e"), ("/gone/x.mp4", "e"), ("/drive/left.mp4", "e")}
    folder = datasets.shard(tmp_path, made, layout="cosmos-curate", superseded=gone)
    found = files(folder)
    assert json.loads(found[f"metas/v0/{now[0].uuid}.json"])["valid"]
    summary = json.loads(found["summary.json"])
    assert summary["num_input_videos"] == 1 and summary["total_num_clips_filtered_by_motion"] == 0
    one = summary["one.mp4"]
    assert (one["clips"], one["filtered_clips"], one["num_clip_chunks"]) == ([now[0].uuid], [], 1)
    assert {name for name in found if name.startswith("processed")} == {
        "processed_videos/one.mp4.json", "processed_clip_chunks/one.mp4_0.json"
    }  # fmt: skip
    assert good(folder, "cosmos-curate").entries == 1
