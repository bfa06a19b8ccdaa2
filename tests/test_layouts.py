"""What holds for every layout: which clips and captions are in it, what is left out and why, what is refused; and the
command."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pyarrow as pa
import pytest
import runs
from datasets import Clip
from read_back import BIN, files, good, lost, tar

from hpc.curate import left_out, shard_members
from hpc.curate.layouts import Window
from hpc.curate.settings import ShardMembers
from hpc.data import layers, storage


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


@pytest.mark.parametrize(
    ("status", "caption", "enhanced", "best"),
    [("success", " a ", "b ", "b"), ("success", "a", " ", "a"), ("refused", "sorry", " ", ""), ("error", "", None, "")],
)
def test_the_words_of_a_window(status: str, caption: str, enhanced: str | None, best: str) -> None:
    window = Window(0, 9, caption, status, enhanced=enhanced)
    window.choose("best")
    assert window.words == best and window.usable == bool(best)


@pytest.mark.parametrize("layout", ["cosmos", "cosmos-frames", "predict2.5-webdataset", "sessions", "predict2",
                                    "predict2.5", "predict2-multiview"])  # fmt: skip
def test_a_layout_without_what_it_holds_is_refused(tmp_path: Path, layout: str) -> None:
    made = datasets.publish(tmp_path, [[Clip(cameras=("front", "left"))]], captions=False, texts=False)
    if layout == "sessions":
        good(datasets.shard(tmp_path, made, layout=layout), layout)
        return
    with pytest.raises(ValueError, match=r"add (a stage that makes them \(curate.caption|curate.text_embed)"):
        datasets.shard(tmp_path, made, layout=layout)


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
