"""Which clips a training held out is told beside its checkpoints, and videos go on from these alone."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
import yaml
from test_generate import clips_of
from test_pipeline import shorter

from hpc.batch.kinds import settings_of
from hpc.batch.spec import SpecErrors, fingerprint, load
from hpc.data import layers, upstream
from hpc.generate import ar, diffusion
from hpc.generate.settings import Ar, Diffusion
from hpc.train import samples, unseen

DIFFUSION = {"model": "tiny-predict2", "weights": "world", "tokenizer": "/vae", "text_encoder": "none",
             "prompts": "data", "held_out": "world"}  # fmt: skip


# What a training says


def table(path: Path, **columns: list[str]) -> str:
    layers.write_arrow(path, pa.table(columns), {})
    return str(path)


def test_clips_of_which_no_window_is_trained_on(tmp_path: Path) -> None:
    """Splits are of windows, and those of each file its own: the clip at a border is in two of them."""
    splits = ["train", "train", "train", "valid", "test"]
    one = table(tmp_path / "0.parquet", uuid=["c", "c", "b", "b", "a"], split=splits)
    two = table(tmp_path / "1.parquet", uuid=["e", "a", "d", "d"], split=["train", "valid", "valid", "test"])
    assert unseen.of_tokens([{".parquet": one}, {".parquet": two}]) == ["a", "d"]
    assert unseen.of_tokens([{".parquet": one}]) == ["a"]
    assert unseen.of_tokens([{".parquet": two}]) == ["a", "d"]
    three = table(tmp_path / "2.parquet", uuid=["f"], split=["train"])
    again = table(tmp_path / "3.parquet", uuid=["a"], split=["train"])
    assert unseen.of_tokens([{".parquet": uri} for uri in (one, three, again)]) == []
    # of the forms with files of their own the tables follow their folder, and splits are called otherwise
    names = table(tmp_path / "4.parquet", uuid=["x", "y", "z"], source=["f", "f", "f"], split=["train", "test", "val"])
    assert unseen.of_tokens(["/tokens@v1", names]) == ["y", "z"]
    films = table(tmp_path / "5.parquet", id=["1", "1"], source=["/train/1.mp4", "/val/1.mp4"], split=["train", "val"])
    assert unseen.of_tokens(["/tokens@v1", films]) == ["/val/1.mp4"]
    nameless = table(tmp_path / "6.parquet", split=["train", "valid"])
    assert unseen.of_tokens([{".parquet": nameless}]) == unseen.of_tokens(["/tokens@v1"]) == []


@pytest.mark.parametrize("key", ["{}_{}", "{}_{}_255"])
@pytest.mark.parametrize("by", ["clip", "source"])
def test_windows_are_held_out_with_their_clip(key: str, by: Any) -> None:
    """Latents are <uuid>_<first frame>; Predict2's videos <uuid>_<first>_<last>, and know no source."""
    uuids = [str(uuid.UUID(int=n)) for n in range(20)]
    keys = [key.format(one, start) for one in uuids for start in (0, 9, 18)]
    rows = [{"key": one, "source": one, "still": False, "frames": 9, "fps": 8.0} for one in keys]
    known, held = samples.held_out(pa.Table.from_pylist(rows, schema=samples.SCHEMA), 0.2, by)
    found = unseen.of_samples(known, held)
    assert len(held) == 12 and len(found) == 4 and found == sorted(found) and set(found) <= set(uuids)
    assert not any(one.startswith(tuple(found)) for one in known["key"].to_pylist())


def test_the_list_is_the_same_however_often_it_is_written(tmp_path: Path) -> None:
    unseen.write(tmp_path, "clip", ["a", "b"])
    before = (tmp_path / "held_out.json").read_bytes()
    unseen.write(tmp_path, "clip", ["a", "b"])
    assert [path.name for path in tmp_path.iterdir()] == ["held_out.json"], "no part of one"
    assert (tmp_path / "held_out.json").read_bytes() == before
    assert json.loads(before) == {"by": "clip", "clips": ["a", "b"]}
    assert unseen.published(tmp_path, "s3://out/world@v1") == {
        "s3://out/world@v1/held_out.json": tmp_path / "held_out.json"}  # fmt: skip


# What videos go on from


def trained(folder: Path, clips: list[str] | None, **more: Any) -> list[tuple[str, dict[str, str]]]:
    """A training's shard; None: it says nothing of clips."""
    folder.mkdir(exist_ok=True)
    told = {"model": str(folder / "model"), **more}
    if clips is not None:
        unseen.write(folder, "clip", clips)
        told["held_out"] = str(folder / "held_out.json")
    (folder / "000000.json").write_text(json.dumps(told))
    return [("000000", {end: str(folder / f"000000{end}") for end in (".jsonl", ".html", ".json")})]


def diffused(folder: Path, clips: list[str] | None) -> list[tuple[str, dict[str, str]]]:
    settings = {"model": "tiny-predict2", "text": {"source": "none"}, "objective": {}}
    return trained(folder, clips, settings=settings)


def test_clips_that_were_held_out_alone_are_gone_on_from(tmp_path: Path) -> None:
    """`limit` is of these; each video says so."""
    settings, data = settings_of("generate.diffusion", DIFFUSION), clips_of(tmp_path)
    world = diffused(tmp_path / "world", ["b", "c", "z"])
    for needed in ({"data": data, "world": world}, {"world": world, "data": data}):
        [rows] = diffusion.freeze(settings, needed, set())
        assert [(row["name"], row["given"], row["held_out"]) for row in rows] == [
            (name, 2, str(tmp_path / "world/held_out.json")) for name in ("b", "c")
        ]  # fmt: skip
        assert {row["weights"] for row in rows} == {str(tmp_path / "world/model/ours")}
    [[row]] = diffusion.freeze(msgspec.structs.replace(settings, limit=1), {"data": data, "world": world}, set())
    assert row["name"] == "b"
    [rows] = diffusion.freeze(msgspec.structs.replace(settings, held_out=None), {"data": data, "world": world}, set())
    assert [row["name"] for row in rows] == ["a", "b", "c"] and "held_out" not in rows[0]


def test_the_model_may_be_another_one(tmp_path: Path) -> None:
    """Published weights, or those of a conversion, on clips that a training held out."""
    data = clips_of(tmp_path)
    config = {"preset": "ar-tiny", "shape": [3, 4, 4]}
    made = {}
    for name in ("ar", "weights"):
        made[name] = trained(tmp_path / name, ["c"] if name == "ar" else None)
        (tmp_path / name / "model").mkdir()
        (tmp_path / name / "model/config.json").write_text(json.dumps(config))
        (tmp_path / name / "model/model.safetensors").touch()
    settings = Ar(model="ar-tiny", shape=(3, 4, 4), prompts="data", held_out="ar", given=1)
    found = {}
    for name, needed in (("ar", ["ar"]), ("weights", ["ar", "weights"]), ("turned", ["weights", "ar"])):
        [[row]] = ar.freeze(settings, {"data": data, **{one: made[one] for one in needed}}, set())
        assert (row["name"], row["held_out"]) == ("c", str(tmp_path / "ar/held_out.json"))
        found[name] = row["weights"]
    assert found == {"ar": str(tmp_path / "ar/model/model.safetensors"),
                     "weights": str(tmp_path / "weights/model/model.safetensors"),
                     "turned": str(tmp_path / "weights/model/model.safetensors")}  # fmt: skip
    given = msgspec.structs.replace(settings, weights="/somewhere")
    [[row]] = ar.freeze(given, {"data": data, "ar": made["ar"]}, set())
    assert row["name"] == "c" and "weights" not in row
    published = Diffusion(prompts="data", held_out="world")
    [[row]] = diffusion.freeze(published, {"data": data, "world": diffused(tmp_path / "world", ["a"])}, set())
    assert row["name"] == "a" and not {"weights", "objective"} & row.keys()


def test_a_training_that_held_nothing_out_is_told(tmp_path: Path) -> None:
    settings, data = settings_of("generate.diffusion", DIFFUSION), clips_of(tmp_path)
    for clips, words in (
        (None, "held_out: world does not say which clips it held out: stages of kinds train.ar and train.diffusion do"),
        ([], r"held_out: world held no clips out \(.*held_out.json\): give train.diffusion a `validation`"),
        (["x", "y"], "held_out: none of the 2 clips that world held out, such as x, is among the 3 of data, such as a"),
    ):
        with pytest.raises(ValueError, match=words):
            list(diffusion.freeze(settings, {"data": data, "world": diffused(tmp_path / "world", clips)}, set()))
    with pytest.raises(ValueError, match="held_out: own does not say which"):
        upstream.held_out([("000000", {".tar": "/x.tar"})], "own")


# What a spec can say


def changed(folder: Path, **stages: dict[str, Any]) -> Path:
    path = shorter(folder)
    spec = yaml.safe_load(path.read_text())
    for name, change in stages.items():
        spec["stages"][name] |= change
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"videos": {"held_out": "wrld"}}, "'wrld': no such stage in `needs`: did you mean world?"),
        ({"videos": {"held_out": "data"}}, "data is curate.shard, and here stands one of train.ar, train.diffusion"),
        ({"videos": {"held_out": "vae"}}, "vae is train.tokenizer, and here stands one of train.ar, train.diffusion"),
        ({"videos": {"prompts": None}}, "world: it chooses among the clips of a stage: name that as `prompts`"),
        ({"videos": {"prompts": "/a.jsonl"}}, "it chooses among the clips of a stage"),
        ({"world": {"validation": {"share": 0}}}, "world holds nothing out: give it a `validation: {share: ...}`"),
        ({"videos": {"weights": "/x", "needs": ["vae", "data"]}}, "'world': no such stage in `needs`"),
    ],
)  # fmt: skip
def test_what_cannot_be(stages: dict[str, dict[str, Any]], words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecErrors) as error:
        load(changed(tmp_path, **stages))
    assert words in str(error.value) and "stages.videos" in str(error.value)


def test_more_training_makes_other_videos(tmp_path: Path) -> None:
    """Also of weights that were there before: what is held out is made by the training, and awaited."""
    prints = set()
    for number, steps in enumerate((2, 3)):
        path = changed(tmp_path / str(number), world={"steps": steps}, videos={"weights": "/x/model.pt"})
        [spec] = load(path, [f"output={tmp_path}/out", f"inputs={tmp_path}/0/jobs/quickstart/trailer_bbb.mp4"])
        assert "world" in spec.stages["videos"].needs
        prints.add(fingerprint(spec, "videos"))
    assert len(prints) == 2


def test_which_stage_makes_the_model(tmp_path: Path) -> None:
    """Of two that could the one that `held_out` does not name."""
    stages = ("clips", "data", "ids", "tokens", "ar", "weights", "ar-videos")

    def told(**change: Any) -> str:
        path = shorter(tmp_path / str(len(list(tmp_path.iterdir()))), stages)
        spec = yaml.safe_load(path.read_text())
        spec["stages"]["more"] = spec["stages"]["ar"] | {"shape": [2, 6, 10]}
        spec["stages"]["ar-videos"] |= change
        path.write_text(yaml.safe_dump(spec, sort_keys=False))
        try:
            load(path)
        except SpecErrors as error:
            return str(error)
        return ""

    assert told() == told(needs=["ar", "ids", "data"]) == ""
    assert told(needs=["weights", "more", "ids", "data"], held_out="more") == "", "another one's shape is nothing here"
    words = "one stage train.ar or convert.ar must make the model"
    assert words in told(needs=["weights", "ar", "ids", "data"], held_out=None)
    assert words in told(needs=["weights", "ar", "more", "ids", "data"])
    assert "more trains ar-tiny on latents [2, 6, 10]" in told(needs=["ar", "more", "ids", "data"])
    assert told(needs=["ar", "ids", "data"], weights="/x") == ""
    assert "`weights` says where the model is: take convert.ar away" in told(weights="/x")
