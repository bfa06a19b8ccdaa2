"""Layouts: what becomes of clips and of what layers say of them, read back by our reader, by webdataset's own, and by
the rules of `hpc validate`."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
import runs
import webdataset
from datasets import Clip

from hpc import validate
from hpc.curate import clip, judge, left_out, shard_members
from hpc.curate.layouts import Window, bins
from hpc.curate.settings import Shard, ShardMembers
from hpc.data import layers, pickles, storage, video
from hpc.data.upstream import KEEP

TREE = ["cosmos", "cosmos-frames", "predict2.5-webdataset"]
BIN = "v0/resolution_720/aspect_ratio_16_9"


def files(folder: str) -> dict[str, bytes]:
    """What a reader looks at, by name; not the stage's own tables."""
    names = {entry.uri.removeprefix(folder + "/"): entry.uri for entry in storage.listing(folder)}
    own = re.compile(r"\d{6}\.parquet|left-out\.parquet")
    return {name: storage.read(uri) for name, uri in names.items() if not own.fullmatch(name)}


def tar(data: bytes) -> dict[str, dict[str, bytes]]:
    """What our reader and webdataset's see in a tar: the same."""
    ours = dict(layers.read_tar(io.BytesIO(data)))
    with webdataset.tariterators.tarfile.open(fileobj=io.BytesIO(data)) as file:
        parts = webdataset.tariterators.group_by_keys(
            {"fname": one.name, "data": file.extractfile(one).read(), "__url__": ""} for one in file
        )
        theirs = {
            sample["__key__"]: {f".{name}": data for name, data in sample.items() if not name.startswith("__")}
            for sample in parts
        }
    assert ours == theirs
    return ours


def lost(folder: str, name: str = "left-out.parquet") -> dict[str, str]:
    """What is not in a data set, and why."""
    with storage.open(f"{folder}/{name}") as file:
        table = layers.read_table(file)
    assert all(table["detail"].to_pylist()) and not table["path"].drop_null()
    return dict(zip(*(table[name].to_pylist() for name in ("key", "why")), strict=True))


def good(folder: str, consumer: str, **more: int) -> validate.Report:
    report = validate.validate(folder, consumer, **more)
    assert not report.errors, list(validate.lines(report))
    return report


@pytest.mark.parametrize(
    ("width", "height", "place"),
    [(1920, 1080, "1080/16_9"), (1080, 1920, "1080/9_16"), (1280, 720, "720/16_9"), (1279, 719, "lt_720/16_9"),
     (720, 720, "720/1_1"), (650, 1000, "lt_720/9_16"), (651, 1000, "lt_720/3_4"), (880, 1000, "720/3_4"),
     (881, 1000, "720/1_1"), (1160, 1000, "720/1_1"), (1161, 1000, "720/4_3"), (1550, 1000, "720/4_3"),
     (1551, 1000, "720/16_9"), (1000, 100, "lt_720/16_9")],
)  # fmt: skip
def test_bins_by_shape(width: int, height: int, place: str) -> None:
    """The bounds of cosmos_curate's dimensions.py: lower ones exclusive, upper ones inclusive."""
    assert f"{bins.resolution(width, height)}/{bins.aspect(width, height)}" == place


def test_bins_by_duration() -> None:
    """Both ends of a bin belong to it, and the first that fits is taken."""
    published = ("5_10", "10_30", "30_inf")
    found = [bins.duration(seconds, published) for seconds in (5.0, 10.0, 10.01, 30.0, 30.01, 1e6)]
    assert found == ["5_10", "5_10", "10_30", "10_30", "30_inf", "30_inf"]
    assert bins.duration(5.0, (*published, "2_5")) == "5_10" and bins.duration(4.9, (*published, "2_5")) == "2_5"
    for seconds, names in ((4.99, published), (1.9, (*published, "2_5"))):
        with pytest.raises(bins.Unfit, match="too-short"):
            bins.duration(seconds, names)
    with pytest.raises(bins.Unfit, match="no-duration-bin"):
        bins.duration(31.0, ("5_10", "10_30"))
    with pytest.raises(bins.Unfit, match="too-wide"):
        bins.aspect(1001, 100)
    assert bins.by_window(1280, 720, 256) == "resolution_720/aspect_ratio_16_9/frames_256_511"


def test_the_tree_of_cosmos_curate(tmp_path: Path) -> None:
    clips = [Clip(), Clip(frames=400), Clip(width=480, height=480)]
    folder = datasets.shard(tmp_path, datasets.publish(tmp_path, [clips[:2], clips[2:]]), layout="cosmos")
    made = files(folder)
    places = [f"{BIN}/duration_10_30", f"{BIN}/duration_5_10", "v0/resolution_lt_720/aspect_ratio_1_1/duration_5_10"]
    kinds = ("metas", "t5_xxl", "video")
    tars = {f"{place}/{kind}/part_000000/000000.tar" for place in places for kind in kinds}
    assert set(made) == tars | {f"{place}/wdinfo.json" for place in places} | {"v0/wdinfo_list.csv"}
    assert json.loads(made[f"{places[0]}/wdinfo.json"]) == {
        "data_keys": ["video", "t5_xxl", "metas"], "chunk_size": 100, "data_list": ["part_000000/000000.tar"],
        "root": f"{folder}/{places[0]}", "total_key_count": 1,
    }  # fmt: skip
    listed = [row for row in csv.reader(io.StringIO(made["v0/wdinfo_list.csv"].decode()))]
    assert listed == [[f"{folder}/{place}/wdinfo.json"] for place in places]
    one = clips[1]
    video_, metas, t5 = (
        tar(made[f"{places[0]}/{kind}/part_000000/000000.tar"]) for kind in ("video", "metas", "t5_xxl")
    )
    assert video_ == {one.uuid: {".mp4": datasets.mp4(400)}}
    arrays = pickles.loads(t5[one.uuid][".pickle"])
    assert [(a.dtype.str, a.shape) for a in arrays] == [("<f2", (3, 8)), ("<f2", (4, 8))]
    assert np.array_equal(arrays[1], datasets.array(4, 101))
    about = json.loads(metas[one.uuid][".json"])
    assert about.pop("clip_location").endswith(f"000000.tar#{one.uuid}.mp4")
    assert about == {
        "span_uuid": one.uuid, "source_video": one.source, "duration_span": [10.0, 10.0 + 400 / 24], "width": 1280,
        "height": 720, "width_source": 1280, "height_source": 720, "framerate_source": 24.0, "framerate": 24.0,
        "num_frames": 400, "video_codec": "h264", "num_bytes": len(datasets.mp4(400)), "filtered_windows": [],
        "windows": [
            {"start_frame": first, "end_frame": last, "qwen_caption": f"clip 1 window {w}", "qwen_prompt_tokens": 10,
             "qwen_output_tokens": 5} for w, (first, last) in enumerate([(0, 255), (256, 399)])
        ],
        "valid": True, "has_caption": True, "total_prompt_tokens": 20, "total_output_tokens": 10,
    }  # fmt: skip
    assert good(folder, "cosmos").entries == 3 and not lost(folder)


def test_what_fits_no_bin_is_named(tmp_path: Path) -> None:
    clips = [Clip(frames=119), Clip(width=4000, height=100), Clip(status=("error",)), Clip(frames=120), Clip(frames=3),
             Clip(verdict="motion"), Clip(frames=300, status=("success", "refused"))]  # fmt: skip
    again = Clip(uuid="7ca6ee8d-95d5-5a2c-b2a5-7b1c9d8b5b0a")
    made = datasets.publish(tmp_path, [clips, [again], [Clip(uuid=again.uuid)]])
    folder = datasets.shard(tmp_path, made, layout="cosmos")
    assert lost(folder) == {
        clips[0].uuid: "too-short", clips[1].uuid: "too-wide", clips[2].uuid: "no-caption", clips[4].uuid: "too-short",
        again.uuid: "duplicate",
    }  # fmt: skip
    assert good(folder, "cosmos").entries == 3
    (tmp_path / "more").mkdir()
    folder = datasets.shard(tmp_path / "more", {k: made[k] for k in ("clips", "caption", "text")}, layout="cosmos",
                            further_durations=("2_5",))  # fmt: skip
    assert set(lost(folder).values()) == {"too-wide", "no-caption", "too-short", "duplicate"}
    assert any("duration_2_5" in name for name in files(folder))


def test_each_window_has_an_entry_in_the_layout_of_frames(tmp_path: Path) -> None:
    clips = [Clip(frames=300), Clip(frames=600), Clip(frames=100)]
    folder = datasets.shard(tmp_path, datasets.publish(tmp_path, [clips]), layout="cosmos-frames")
    made = files(folder)
    keys = {}
    for frames in ("frames_0_255", "frames_256_511"):
        found = [tar(made[f"{BIN}/{frames}/{kind}/part_000000/000000.tar"]) for kind in ("video", "metas", "t5_xxl")]
        keys[frames] = [list(one) for one in found]
        assert keys[frames][0] == keys[frames][1] == keys[frames][2]
        for key, members in found[1].items():
            (window,) = json.loads(members[".json"])["windows"]
            assert window["start_frame"] // 256 * 256 == int(frames.split("_")[1])
            assert len(pickles.loads(found[2][key][".pickle"])) == 1
    assert sorted(keys["frames_0_255"][0]) == sorted(one.uuid for one in clips)
    assert keys["frames_256_511"][0] == [clips[1].uuid]
    assert good(folder, "cosmos-frames").entries == 4


def test_short_windows_share_an_entry_in_the_layout_of_frames(tmp_path: Path) -> None:
    clips = [Clip(frames=384), Clip(frames=200, status=("refused",))]
    made = datasets.publish(tmp_path, [clips], window=64)
    folder = datasets.shard(tmp_path, made, layout="cosmos-frames")
    found = files(folder)
    starts = {"frames_0_255": [[0, 64, 128, 192], [64, 128]], "frames_256_511": [[256, 320]]}
    for frames, expected in starts.items():
        metas, t5 = (tar(found[f"{BIN}/{frames}/{kind}/part_000000/000000.tar"]) for kind in ("metas", "t5_xxl"))
        for one, numbers in zip(clips, expected, strict=False):
            windows = json.loads(metas[one.uuid][".json"])["windows"]
            assert [window["start_frame"] for window in windows] == numbers
            assert len(pickles.loads(t5[one.uuid][".pickle"])) == len(numbers)
    assert lost(folder) == {f"{clips[1].uuid}_0_63": "no-caption"}
    assert good(folder, "cosmos-frames").entries == 3


def test_further_durations_are_tried_first() -> None:
    for further, seconds, place in (("60_inf", 90.0, "60_inf"), ("60_inf", 40.0, "30_inf"), ("2_5", 5.0, "2_5")):
        members = Shard(layout="cosmos", further_durations=(further,)).parts()["members"].settings
        assert bins.duration(seconds, members.durations) == place


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


def test_the_dialect_of_predict25(tmp_path: Path) -> None:
    clips = [Clip(frames=400), Clip(), Clip(fps=8.0, frames=80)]
    folder = datasets.shard(tmp_path, datasets.publish(tmp_path, [clips]), layout="predict2.5-webdataset")
    made = files(folder)
    name = f"{BIN}/duration_10_30/%s/part_000000/000000.tar"
    (about,) = (json.loads(one[".json"]) for one in tar(made[name % "metas"]).values())
    windows = [{"start_frame": first, "end_frame": end, "qwen2p5_7b_caption": f"clip 0 window {w}"}
               for w, (first, end) in enumerate([(0, 256), (256, 400)])]  # fmt: skip
    assert about["t2w_windows"] == about["i2w_windows_later_frames"] == windows
    assert (about["framerate"], about["nb_frames"]) == (24.0, 400)
    (arrays,) = (pickles.loads(one[".pickle"]) for one in tar(made[name % "t5_xxl"]).values())
    assert [sorted(one) for one in arrays] == 2 * [["i2w_qwen2p5_7b_later_frames", "t2w_qwen2p5_7b"]]
    assert arrays[0]["t2w_qwen2p5_7b"].dtype == np.float16
    assert lost(folder) == {clips[2].uuid: "frame-rate"}
    assert not good(folder, "predict2.5-webdataset").warnings
    wrong = validate.validate(folder, "cosmos")
    assert wrong.rules["metadata"] == 2, "the two dialects differ"


@pytest.mark.parametrize("layout", ["predict2", "predict2.5"])
def test_folders_for_post_training(tmp_path: Path, layout: str) -> None:
    clips = [Clip(), Clip(frames=400), Clip(frames=93), Clip(frames=500, status=("success", "error"))]
    datasets.WIDTH, width = 1024, datasets.WIDTH
    try:
        made = datasets.publish(tmp_path, [clips[:3], clips[3:]])
    finally:
        datasets.WIDTH = width
    folder = datasets.shard(tmp_path, made, layout=layout)
    made_ = files(folder)
    stems = [f"{clips[0].uuid}_0_199", f"{clips[1].uuid}_0_255", f"{clips[1].uuid}_256_399", f"{clips[3].uuid}_0_255"]
    kinds = {"videos": ".mp4", "metas": ".txt"} | ({"t5_xxl": ".pickle"} if layout == "predict2" else {})
    assert set(made_) == {f"{kind}/{stem}{suffix}" for kind, suffix in kinds.items() for stem in stems}
    assert made_[f"videos/{stems[0]}.mp4"] == datasets.mp4(200), "copied"
    assert [video.index(io.BytesIO(made_[f"videos/{stem}.mp4"])).frames for stem in stems] == [200, 256, 144, 256]
    assert made_[f"metas/{stems[2]}.txt"] == b"clip 1 window 1"
    if layout == "predict2":
        (array,) = pickles.loads(made_[f"t5_xxl/{stems[2]}.pickle"])
        assert array.shape == (4, 1024) and array.dtype == np.float16
    assert lost(folder) == {f"{clips[2].uuid}_0_92": "too-few-frames", f"{clips[3].uuid}_256_499": "no-caption"}
    assert good(folder, layout).entries == 4


def test_which_caption_is_learned(tmp_path: Path) -> None:
    clips = [Clip(frames=400, enhanced=("A long story.",)), Clip()]
    made = datasets.publish(tmp_path, [clips], texts=False)
    stages = {name: made[name] for name in ("clips", "caption")}
    expected = {
        "best": ["A long story.", "clip 0 window 1", "clip 1 window 0"],
        "caption": ["clip 0 window 0", "clip 0 window 1", "clip 1 window 0"],
        "enhanced": ["A long story."],
    }
    for field, words in expected.items():
        base = str(tmp_path / field)
        found = files(datasets.shard(tmp_path, dict(stages), layout="predict2.5", base=base, field=field))
        assert sorted(data.decode() for name, data in found.items() if name.endswith(".txt")) == words
    folder = datasets.shard(tmp_path, dict(stages), layout="cosmos")
    (about,) = (
        json.loads(m[".json"])
        for m in tar(files(folder)[f"{BIN}/duration_10_30/metas/part_000000/000000.tar"]).values()
    )
    assert about["windows"][0]["qwen_caption"] == "clip 0 window 0"
    assert about["windows"][0]["qwen_lm_enhanced_caption"] == "A long story."
    embedded = datasets.publish(tmp_path, [clips])
    with pytest.raises(ValueError, match="text embeds the field 'best' of captions, and this stage takes 'caption'"):
        datasets.shard(tmp_path, embedded, layout="cosmos", field="caption", base=str(tmp_path / "x"))


def test_a_window_is_cut_to_the_frame(tmp_path: Path) -> None:
    """Frame i of the clips is a plain grey of i (modulo 250)."""
    made = datasets.publish(tmp_path, [[Clip(frames=400)]], texts=False)
    folder = datasets.shard(tmp_path, made, layout="predict2.5")
    (name,) = (name for name in files(folder) if name.endswith("_256_399.mp4"))
    pictures = video.sample(files(folder)[name], [0, 100, 143], 64, 36)
    greys = [256 - 250, 356 - 250, 399 - 250]
    assert np.allclose(pictures.mean(axis=(1, 2, 3)), greys, atol=8)


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


def test_folders_of_each_camera(tmp_path: Path) -> None:
    """predict2-multiview; frame i of the clips is a plain grey of i (modulo 250)."""
    rig = ("front", "left", "rear")
    clips = [Clip(cameras=rig), Clip(frames=400, cameras=rig), Clip(), Clip(frames=300, cameras=rig)]
    datasets.WIDTH, width = 1024, datasets.WIDTH
    try:
        made = datasets.publish(tmp_path, [clips])
    finally:
        datasets.WIDTH = width
    path = Path(made["clips"][0][1][".parquet"])
    with path.open("rb") as file:
        table, meta = layers.read_table(file).to_pylist(), layers.read_meta(file)
    table[3]["cameras"][1]["num_frames"] = 299
    layers.write_table(path, table, meta, clip.SCHEMA)
    with pytest.raises(ValueError, match=r"add curate.text_embed"):
        datasets.shard(tmp_path, {k: made[k] for k in ("clips", "caption")}, layout="predict2-multiview", base="/x")
    folder = datasets.shard(tmp_path, made, layout="predict2-multiview")
    found = files(folder)
    stems = [f"{clips[0].uuid}_0_199", f"{clips[1].uuid}_0_255", f"{clips[1].uuid}_256_399"]
    assert set(found) == {f"videos/{camera}/{stem}.mp4" for camera in rig for stem in stems} | {
        f"{kind}/front/{stem}{suffix}" for kind, suffix in (("metas", ".txt"), ("t5_xxl", ".pkl")) for stem in stems
    }
    assert found[f"videos/rear/{stems[0]}.mp4"] == datasets.mp4(200), "copied"
    pictures = video.sample(found[f"videos/left/{stems[2]}.mp4"], [0, 143], 64, 36)
    assert np.allclose(pictures.mean(axis=(1, 2, 3)), [256 - 250, 399 - 250], atol=8)
    (array,) = pickles.loads(found[f"t5_xxl/front/{stems[2]}.pkl"])
    assert np.array_equal(array, datasets_array(4, 101))
    assert lost(folder) == {clips[2].uuid: "one-camera", f"{clips[3].uuid}_0_299": "camera-short"}
    assert good(folder, "predict2-multiview").entries == 3


def datasets_array(tokens: int, seed: int) -> Any:
    """datasets.array of the width of T5-XXL."""
    return np.random.default_rng(seed).standard_normal((tokens, 1024)).astype("<f2")


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


def test_a_tar_a_session(tmp_path: Path) -> None:
    clips = [Clip(cameras=("front", "left", "rear")), Clip()]
    folder = datasets.shard(tmp_path, datasets.publish(tmp_path, [clips]), layout="sessions")
    found = files(folder)
    assert set(found) == {f"{clips[0].uuid}.tar"}
    ((key, members),) = tar(found[f"{clips[0].uuid}.tar"]).items()
    cameras = ("front", "left", "rear")
    assert key == clips[0].uuid
    assert set(members) == {".json", *(f".{camera}{suffix}" for camera in cameras for suffix in (".mp4", ".json"))}
    times = json.loads(members[".left.json"])
    assert len(times) == 200 and times[0] == {"frame_num": 0, "timestamp": 0}
    assert times[24]["timestamp"] == 1000 and times[199]["frame_num"] == 199
    assert json.loads(members[".json"])["windows"][0]["caption"] == "clip 0 window 0"
    assert lost(folder) == {clips[1].uuid: "one-camera"}
    assert good(folder, "sessions").entries == 1


def test_plain_tars_have_what_layers_say(tmp_path: Path) -> None:
    clips = [Clip(), Clip(frames=400), Clip(cameras=("front", "left"))]
    made = datasets.publish(tmp_path, [clips[:2], clips[2:]])
    folder = datasets.shard(tmp_path, made, layout="webdataset", join=True)
    found = tar(storage.read(f"{folder}/000000.tar"))
    assert set(found) == {one.uuid for one in clips}
    members = found[clips[1].uuid]
    assert list(members) == [".mp4", ".json", ".pickle", ".webp", ".preview_0_199.webp"]
    about = json.loads(members[".json"])
    assert [one["caption"] for one in about["windows"]] == ["clip 1 window 0", "clip 1 window 1"]
    assert about["num_frames"] == 400 and "mp4_offset" not in about
    assert len(pickles.loads(members[".pickle"])) == 2
    assert ".left.mp4" in found[clips[2].uuid]
    assert good(folder, "webdataset").entries == 3
    bare = datasets.publish(tmp_path, [[Clip()]], captions=False, texts=False, base=str(tmp_path / "bare"))
    folder = datasets.shard(tmp_path, bare, layout="webdataset", join=True, base=str(tmp_path / "bare"))
    ((_, members),) = tar(storage.read(f"{folder}/000000.tar")).items()
    assert list(members) == [".mp4", ".json", ".webp", ".preview_0_199.webp"]
    with pytest.raises(ValueError, match="needs` has caption, text, which layout webdataset joins with `join: true`"):
        datasets.shard(tmp_path, {name: made[name] for name in ("clips", "caption", "text")})


@pytest.mark.parametrize("layout", [*TREE, "sessions", "predict2", "predict2.5", "predict2-multiview"])
def test_a_layout_without_what_it_holds_is_refused(tmp_path: Path, layout: str) -> None:
    made = datasets.publish(tmp_path, [[Clip(cameras=("front", "left"))]], captions=False, texts=False)
    if layout == "sessions":
        good(datasets.shard(tmp_path, made, layout=layout), layout)
        return
    with pytest.raises(ValueError, match=r"add (a stage that makes them \(curate.caption|curate.text_embed)"):
        datasets.shard(tmp_path, made, layout=layout)


def test_trees_without_text_embeddings(tmp_path: Path) -> None:
    folder = datasets.shard(tmp_path, datasets.publish(tmp_path, [[Clip()]], texts=False), layout="cosmos")
    assert not any("t5_xxl" in name for name in files(folder))
    assert json.loads(files(folder)[f"{BIN}/duration_5_10/wdinfo.json"])["data_keys"] == ["video", "metas"]
    good(folder, "cosmos")


def test_tars_are_full_and_parts_have_a_hundred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = [Clip() for _ in range(23)]
    size = len(datasets.mp4(200))
    made = datasets.publish(tmp_path, [clips[:10], clips[10:]])
    monkeypatch.setattr("hpc.curate.shard_tree.PER_PART", 4)
    folder = datasets.shard(tmp_path, made, layout="cosmos", tar=2 * size)
    names = [f"part_{i // 4:06}/{i % 4:06}.tar" for i in range(12)]
    info = json.loads(files(folder)[f"{BIN}/duration_5_10/wdinfo.json"])
    assert info["data_list"] == names and info["total_key_count"] == 23
    sizes = [len(tar(files(folder)[f"{BIN}/duration_5_10/video/{name}"])) for name in names]
    assert sizes == [2] * 11 + [1]
    uuids = [key for name in names for key in tar(files(folder)[f"{BIN}/duration_5_10/metas/{name}"])]
    assert uuids == sorted(uuids, key=lambda u: hashlib.blake2b(u.encode(), digest_size=16).digest()) != sorted(uuids)
    good(folder, "cosmos")


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    """Also when the clips come in other shards: the order is that of their hashes."""
    clips = [Clip(frames=150 + 10 * i) for i in range(6)]
    runs = []
    for number, cut in enumerate((6, 2, 6)):
        base = str(tmp_path / f"{number}")
        made = datasets.publish(tmp_path, [clips[:cut], clips[cut:]], base=base)
        folder = datasets.shard(tmp_path, made, layout="predict2.5-webdataset", base=base)
        runs.append({name: data for name, data in files(folder).items() if name.endswith(".tar")})
    assert runs[0] == runs[1] == runs[2] and len(runs[0]) == 3


def test_decisions_drop_clips(tmp_path: Path) -> None:
    """Those of a layer over the same shards, and those of a stage with shards of its own."""
    clips = [Clip() for _ in range(5)]
    made = datasets.publish(tmp_path, [clips[:3], clips[3:]])
    for stage, shards in (
        ("judge", [[{"uuid": clips[0].uuid, "verdict": "semantic", "reasons": ["logo"]}], []]),
        ("dedup", [[{"uuid": clips[4].uuid, "verdict": "duplicate", "max_id": clips[1].uuid, "score": 0.99}], [], []]),
    ):
        for number, rows in enumerate(shards):
            path = tmp_path / "d.parquet"
            more = [("reasons", pa.list_(pa.string()))]
            if stage == "dedup":
                more = [("max_id", pa.string()), ("score", pa.float32())]
            schema = pa.schema([("uuid", pa.string()), ("verdict", pa.string()), *more])
            layers.write_table(path, rows, {"stage": f"curate.{stage}"}, schema)
            uris = datasets.put_all(str(tmp_path), stage, f"{number:06}", {".parquet": path})
            made.setdefault(stage, []).append((f"{number:06}", uris))
    for (plan,) in shard_members.freeze(ShardMembers(), made, set()):
        assert set(plan) == {"clips", "caption", "text", "judge"}, "those of dedup are not over the same clips"
    left = {one.uuid for one in clips[1:4]}
    for layout in ("cosmos", "webdataset", "predict2.5", "cosmos-curate"):
        base = str(tmp_path / layout)
        stages = {k: v for k, v in made.items() if k != "made" and not k.startswith("shard")}
        folder = datasets.shard(tmp_path, stages, layout=layout, join=True, base=base)
        assert good(folder, layout).entries == 3
        text = " ".join(files(folder)) + "".join(map(str, (tar(d) for n, d in files(folder).items() if ".tar" in n)))
        if layout == "webdataset":
            text = str(tar(storage.read(f"{folder}/000000.tar")))
        kept = text.replace(f"metas/v0/{clips[0].uuid}", "").replace(f"filtered_clips/{clips[0].uuid}", "")
        assert {one.uuid for one in clips if one.uuid in kept} == left, layout
        name = "left-out/000000.parquet" if layout == "webdataset" else "left-out.parquet"
        assert lost(folder, name) == {clips[0].uuid: "semantic", clips[4].uuid: "duplicate"}
        with storage.open(f"{folder}/{name}") as file:
            words = set(layers.read_table(file, ["detail"])["detail"].to_pylist())
        assert words == {"judge: logo", f"dedup: duplicate, like {clips[1].uuid} (cosine 0.9900)"}


def test_stages_with_shards_of_their_own_say_so(tmp_path: Path) -> None:
    """Verdicts of someone else's stage, whose shards only look like those of the clips."""
    clips = [Clip() for _ in range(3)]
    made = datasets.publish(tmp_path, [clips[:2], clips[2:]])
    schema = pa.schema([("uuid", pa.string()), ("verdict", pa.string())])
    for tables, words in (
        ([clips[:1], [], clips[1:]], "mine has shards that clips has not, e.g. 000002: a stage with shards of its own"),
        ([clips[2:], []], f"mine: shard 000000 is about 1 clips that are not in .*, e.g. {clips[2].uuid}: a stage"),
    ):
        made["mine"] = []
        for number, some in enumerate(tables):
            rows = [{"uuid": one.uuid, "verdict": "dull"} for one in some]
            layers.write_table(tmp_path / "m.parquet", rows, {"stage": "me:Mine"}, schema)
            uris = datasets.put_all(str(tmp_path), "mine", f"{number:06}", {".parquet": tmp_path / "m.parquet"})
            made["mine"].append((f"{number:06}", uris))
        stages = {name: made[name] for name in ("clips", "caption", "text", "mine")}
        with pytest.raises(ValueError, match=words + ".* has the column max_id"):
            datasets.shard(tmp_path, stages, layout="predict2.5", base=str(tmp_path / f"{len(tables)}"))


def test_layers_without_verdicts_are_not_read_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = datasets.publish(tmp_path, [[Clip()] for _ in range(9)])
    opened = []
    monkeypatch.setattr(left_out, "columns_of", lambda uri: opened.append(uri) or shard_members.columns_of(uri))
    assert left_out.judges({name: made[name] for name in ("caption", "text")}) == []
    assert opened == [made[name][0][1][".parquet"] for name in ("caption", "text")]


@pytest.mark.parametrize("layout", ["cosmos", "cosmos-curate", "predict2.5"])
def test_nothing_is_left(tmp_path: Path, layout: str) -> None:
    made = datasets.publish(tmp_path, [[Clip(status=("error",)), Clip(verdict="motion")], []], texts=False)
    folder = datasets.shard(tmp_path, made, layout=layout)
    tars = [name for name in files(folder) if name.endswith((".tar", ".txt"))]
    assert not tars and set(lost(folder).values()) == ({"no-caption"} if layout != "cosmos-curate" else set())


def test_replaced_inputs_are_left_out(tmp_path: Path) -> None:
    clips = [Clip(), Clip(source="/videos/old.mp4")]
    made = datasets.publish(tmp_path, [clips])
    for layout in ("cosmos", "webdataset"):
        stages = {k: v for k, v in made.items() if k != "made"}
        folder = datasets.shard(tmp_path, stages, layout=layout, join=True, base=str(tmp_path / layout),
                                superseded={("/videos/old.mp4", "e")})  # fmt: skip
        assert good(folder, layout).entries == 1


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


def test_trees_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3

    with s3.moto() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        keys = f"aws_access_key_id = {s3.KEY}\naws_secret_access_key = {s3.SECRET}\nregion = us-east-1\n"
        (tmp_path / "credentials").write_text(f"[mine]\n{keys}")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
        base = "s3://mine@bucket/a run"
        made = datasets.publish(tmp_path, [[Clip(), Clip(frames=400)]], base=base)
        folder = datasets.shard(tmp_path, made, layout="predict2.5-webdataset", base=base)
        info = json.loads(storage.read(f"{folder}/{BIN}/duration_5_10/wdinfo.json"))
        assert info["root"] == f"a run/shard@v1/{BIN}/duration_5_10", "the loader has the bucket from elsewhere"
        assert good(folder, "predict2.5-webdataset").entries == 2
        stages: Any = {k: v for k, v in made.items() if k != "made"}
        good(datasets.shard(tmp_path, stages, layout="cosmos-curate", base="s3://mine@bucket/b"), "cosmos-curate")
        for place in (folder, "s3://mine@bucket/b/shard@v1"):
            told = b"".join(data for name, data in files(place).items() if not name.endswith(".mp4"))
            assert b"s3://bucket/" in told and b"mine@" not in told, "profiles are nobody else's"


def test_by_the_command(tmp_path: Path) -> None:
    """From a video to a data set that its reader takes, with all parts as stages; what is left out is told."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in/film.mp4").write_bytes(datasets.mp4(24 * 14))
    spec = tmp_path / "x.yaml"
    spec.write_text(
        "name: x\ninputs: in\noutput: out\nstages:\n"
        "  clips: {kind: curate.clips, split: {detector: stride, stride: 6s, min_clip: 1s}, "
        "encode: {preset: ultrafast}}\n"
        "  caption: {kind: curate.caption, needs: clips, text: A grey wall.}\n"
        "  set: {kind: curate.shard, needs: [clips, caption], layout: predict2.5-webdataset}\n"
    )
    said = runs.hpc("run", spec, timeout=300).stdout
    assert re.search(r"set-index +2 entries, 1 bin, 1 tar, 1 dropped \(1 too-short\)", said), said
    folder = tmp_path / "out/set@v1"
    assert len(list((folder / "v0/resolution_lt_720/aspect_ratio_16_9/duration_5_10/video").rglob("*.tar"))) == 1
    assert good(str(folder), "predict2.5-webdataset").entries == 2
    assert list(lost(str(folder)).values()) == ["too-short"]
    assert "nothing to do" in runs.hpc("run", spec).stdout
    assert runs.hpc("validate", folder, "--as", "cosmos", cwd=tmp_path, code=1).stdout.startswith("error: metadata")


@pytest.mark.parametrize(
    ("status", "caption", "enhanced", "best"),
    [("success", " a ", "b ", "b"), ("success", "a", " ", "a"), ("refused", "sorry", " ", ""), ("error", "", None, "")],
)
def test_the_words_of_a_window(status: str, caption: str, enhanced: str | None, best: str) -> None:
    window = Window(0, 9, caption, status, enhanced=enhanced)
    window.choose("best")
    assert window.words == best and window.usable == bool(best)
