"""Trees of tars in bins: what becomes of clips in cosmos, cosmos-frames and predict2.5-webdataset."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import s3
from datasets import Clip
from read_back import BIN, files, good, lost, tar

from hpc import validate
from hpc.curate.layouts import bins
from hpc.curate.settings import Shard
from hpc.data import pickles, storage


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


def test_further_durations_are_tried_first() -> None:
    for further, seconds, place in (("60_inf", 90.0, "60_inf"), ("60_inf", 40.0, "30_inf"), ("2_5", 5.0, "2_5")):
        members = Shard(layout="cosmos", further_durations=(further,)).parts()["members"].settings
        assert bins.duration(seconds, members.durations) == place


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


def test_trees_on_s3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
