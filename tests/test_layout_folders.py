"""Folders of videos, a tar for each session and plain tars: what becomes of clips in predict2, predict2.5,
predict2-multiview, sessions and webdataset."""

from __future__ import annotations

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Clip
from read_back import files, good, lost, tar

from hpc.curate import clip
from hpc.data import layers, pickles, storage, video


@pytest.mark.parametrize("layout", ["predict2", "predict2.5"])
def test_folders_for_post_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    clips = [Clip(), Clip(frames=400), Clip(frames=93), Clip(frames=500, status=("success", "error"))]
    monkeypatch.setattr(datasets, "WIDTH", 1024)
    made = datasets.publish(tmp_path, [clips[:3], clips[3:]])
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


def test_a_window_is_cut_to_the_frame(tmp_path: Path) -> None:
    """Frame i of the clips is a plain grey of i (modulo 250)."""
    made = datasets.publish(tmp_path, [[Clip(frames=400)]], texts=False)
    folder = datasets.shard(tmp_path, made, layout="predict2.5")
    (name,) = (name for name in files(folder) if name.endswith("_256_399.mp4"))
    pictures = video.sample(files(folder)[name], [0, 100, 143], 64, 36)
    greys = [256 - 250, 356 - 250, 399 - 250]
    assert np.allclose(pictures.mean(axis=(1, 2, 3)), greys, atol=8)


def test_folders_of_each_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """predict2-multiview; frame i of the clips is a plain grey of i (modulo 250)."""
    rig = ("front", "left", "rear")
    clips = [Clip(cameras=rig), Clip(frames=400, cameras=rig), Clip(), Clip(frames=300, cameras=rig)]
    monkeypatch.setattr(datasets, "WIDTH", 1024)
    made = datasets.publish(tmp_path, [clips])
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
    assert np.array_equal(array, datasets.array(4, 101))
    assert lost(folder) == {clips[2].uuid: "one-camera", f"{clips[3].uuid}_0_299": "camera-short"}
    assert good(folder, "predict2-multiview").entries == 3


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
