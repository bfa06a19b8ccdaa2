"""The forms of tokens: samples keep their ids and words whatever the shards were, splits are those of the data set's
order, and what cannot be taken is left out by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_sets
import torch
import yaml
from test_text_embed import reference, save
from token_sets import Window

from hpc.batch.spec import SpecErrors, load
from hpc.data import layers, pickles
from hpc.data.tokens import BOV, PAD, action, video2world
from hpc.prepare.forms import video2world as form
from hpc.prepare.settings import Action, Instruction, Tokens, Video2World

WORDS = ["a rabbit", "the butterfly sleeps in the sun", "a rabbit", None, "a rabbit eats apples", "the sun"]
WINDOWS = [Window(f"clip-{i // 2}", 33 * (i % 2), WORDS[i % 6], f"/films/{i // 4}.mp4") for i in range(14)]


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny, but as wide as T5-XXL."""
    return save(tmp_path_factory.mktemp("t5"), d_model=1024)


def cut(size: int) -> list[list[Window]]:
    return [WINDOWS[i : i + size] for i in range(0, len(WINDOWS), size)]


def files(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*")
            if path.is_file() and path.suffix != ".parquet"}  # fmt: skip


def rows(folder: str) -> list[dict[str, Any]]:
    return [row for path in sorted(Path(folder).glob("*.parquet")) for row in layers.read_table(path).to_pylist()]


def test_video2world(tmp_path: Path, t5: Path) -> None:
    stages = token_sets.ids(tmp_path, [*cut(5), [Window("short", why="too-short")]])
    folder, made = token_sets.form(tmp_path, Video2World(text_encoder=str(t5)), stages)
    said = {"train_samples": 9, "test_samples": 3, "val_samples": 2}
    assert json.loads((Path(folder) / "metadata.json").read_bytes()) == said
    assert video2world.sizes(folder) == {"train": 9, "test": 3, "val": 2}
    assert len(files(folder)) == 2 * 14 + 1 and len(made) == 3
    told = {(row["uuid"], row["start"]): row for row in rows(folder)}
    assert len(told) == 14
    for one in WINDOWS:
        row = told[one.uuid, one.start]
        video, prompt = video2world.read(folder, row["split"], row["index"])
        found = token_sets.ids_of(one, (2, 2, 4)).reshape(-1)
        assert video[0] == BOV and np.array_equal(video[1:17], found) and (video[17:] == PAD).all() and len(video) == 65
        embedded = reference(t5, one.caption or "")
        assert row["prompt"] == (one.caption or "") and row["prompt_tokens"] == len(embedded)
        np.testing.assert_allclose(prompt[: len(embedded)], embedded, rtol=2e-2, atol=2e-3)
        assert not prompt[len(embedded) :].any()
    assert sum(one.counts["samples"] for one in made) == 14
    assert sum(one.counts["samples_test"] for one in made) == 3
    sources = {split: {row["source"] for row in told.values() if row["split"] == split} for split in ("train", "val")}
    assert not sources["train"] & sources["val"], "no film is in both"


def test_the_data_set_does_not_depend_on_the_shards(tmp_path: Path, t5: Path) -> None:
    found = []
    for number, size in enumerate((1, 4, 14)):
        (tmp_path / str(number)).mkdir()
        stages = token_sets.ids(tmp_path / str(number), cut(size))
        folder, _ = token_sets.form(tmp_path / str(number), Video2World(text_encoder=str(t5)), stages)
        found.append({name: data for name, data in files(folder).items() if "prompt" not in name})
    assert found[0] == found[1] == found[2] and len(found[0]) == 15


def test_embeddings_of_a_stage(tmp_path: Path) -> None:
    """That of the window which a sample's first frame is in; none leaves zeros, and is counted."""
    windows = [[Window("x", 0), Window("x", 255), Window("x", 256)], [Window("y", 0), Window("z", 0)]]
    stages = token_sets.ids(tmp_path, windows)
    stages |= token_sets.embeddings(tmp_path, [[("x", 0, 0, 255), ("x", 1, 256, 511)], [("z", 0, 0, 255)]])
    folder, made = token_sets.form(tmp_path, Video2World(split="1,0,0"), stages)
    found = {(row["uuid"], row["start"]): video2world.read(folder, "train", row["index"])[1] for row in rows(folder)}
    values = {key: (prompt[0, 0], int((prompt[:, 5] != 0).sum())) for key, prompt in found.items()}
    assert values == {("x", 0): (1, 1), ("x", 255): (1, 1), ("x", 256): (2, 2), ("y", 0): (0, 0), ("z", 0): (3, 3)}
    assert sum(one.counts["without_prompt"] for one in made) == 1
    assert video2world.sizes(folder) == {"train": 5, "test": 0, "val": 0}


def test_embeddings_in_tars(tmp_path: Path) -> None:
    """Of curate.shard: an array in the .pickle for each window of the .json that has words."""
    said = [{"start_frame": 0, "end_frame": 99, "caption": "a"}, {"start_frame": 100, "end_frame": 199, "caption": " "},
            {"start_frame": 200, "end_frame": 299, "caption": "b", "enhanced": "c"}]  # fmt: skip
    arrays = pickles.dumps([np.full((2, 1024), 2), np.full((3, 1024), 3)])
    with layers.TarWriter(tmp_path / "x.tar") as tar:
        tar.add("x", {".mp4": b"film", ".json": json.dumps({"windows": said}).encode(), ".pickle": arrays})
        tar.add("y", {".mp4": b"film", ".json": json.dumps({"windows": said[:1]}).encode(), ".pickle": arrays})
        tar.add("z", {".mp4": b"film", ".json": b"{}"})
    windows = [Window("x", 66), Window("x", 199), Window("x", 200), Window("y", 0), Window("z", 0)]
    stages = token_sets.ids(tmp_path, [windows], media=f"{tmp_path / 'x.tar'}#")
    stages["dataset"] = [("000000", {".tar": str(tmp_path / "x.tar")})]
    folder, [made] = token_sets.form(tmp_path, Video2World(split="1,0,0"), stages)
    tokens = {(row["uuid"], row["start"]): row["prompt_tokens"] for row in rows(folder)}
    assert tokens == {("x", 66): 2, ("x", 199): 0, ("x", 200): 3, ("y", 0): 0, ("z", 0): 0}
    for row in rows(folder):
        _, prompt = video2world.read(folder, "train", row["index"])
        assert prompt[0, 0] == row["prompt_tokens"] == int(prompt.any(1).sum())
    assert made.counts["without_prompt"] == 3
    other = stages | token_sets.ids(tmp_path, [[Window("z", 0)]], media=f"{tmp_path / 'x.tar'}#")
    with pytest.raises(ValueError, match="not one of 1 windows has an embedding"):
        token_sets.form(tmp_path, Video2World(split="1,0,0"), other, "other")


def test_what_the_models_cannot_take(tmp_path: Path) -> None:
    stages = token_sets.ids(tmp_path, cut(14))
    with pytest.raises(ValueError, match=r"text_encoder.*needs"):
        token_sets.form(tmp_path, Video2World(), stages)
    with pytest.raises(ValueError, match="32 numbers a token"):
        token_sets.form(tmp_path, Video2World(text_encoder=str(save(tmp_path / "narrow"))), stages)
    large = token_sets.ids(tmp_path, cut(14), vocabulary=65536)
    with pytest.raises(ValueError, match="65,536 ids, and 64,000 begins a video"):
        next(form.freeze(Video2World(text_encoder=str(tmp_path)), large, set()))


def told(folder: Path, name: str, text: str) -> str:
    """A film with an instruction beside it."""
    for place in ("videos", "instructions"):
        (folder / place).mkdir(exist_ok=True)
    (folder / "instructions" / f"{name}.json").write_text(json.dumps({"language_instruction_0": text}))
    return str(folder / "videos" / f"{name}.mp4")


def test_instructions(tmp_path: Path, t5: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Of folders and of Bridge data sets; videos without one are left out by name."""
    films = [told(tmp_path, "one", " a rabbit "), told(tmp_path, "two", "the sun"), told(tmp_path, "blank", " ")]
    films += [str(tmp_path / "videos/none.mp4"),
              token_sets.trajectory(tmp_path / "bridge", "train", "7", 5, "a rabbit eats").source]  # fmt: skip
    windows = [Window(f"clip-{i}", 0, "a caption", film) for i, film in enumerate(films)]
    stages = token_sets.ids(tmp_path, [windows[:3], windows[3:]])
    settings = Instruction(text_encoder=str(t5), split="1,1,1")
    folder, _ = token_sets.form(tmp_path, settings, stages)
    assert {(row["uuid"], row["prompt"]) for row in rows(folder)} == {
        ("clip-0", "a rabbit"), ("clip-1", "the sun"), ("clip-4", "a rabbit eats")}  # fmt: skip
    assert video2world.sizes(folder) == {"train": 1, "test": 1, "val": 1}
    for row in rows(folder):
        _, prompt = video2world.read(folder, row["split"], row["index"])
        embedded = reference(t5, row["prompt"])
        np.testing.assert_allclose(prompt[: len(embedded)], embedded, rtol=2e-2, atol=2e-3)
    assert "blank.json: it is empty" in caplog.text and "instructions/none.json" in caplog.text
    bare = token_sets.ids(tmp_path / "bridge", [[windows[3]]])
    with pytest.raises(ValueError, match="not one of 1 videos has an instruction"):
        token_sets.form(tmp_path, settings, bare)


def bridge(folder: Path) -> list[Window]:
    """Trajectories 2, 10 and 3 of train, 1 of test and val each."""
    sizes = {("train", "10"): 4, ("train", "2"): 3, ("test", "1"): 5, ("val", "1"): 2, ("train", "3"): 6}
    return [one for place, count in sizes.items()
            for one in token_sets.frames(token_sets.trajectory(folder, *place, count), count)]  # fmt: skip


SHAPE = {"shape": (1, 2, 3), "frames": 1}


def test_actions(tmp_path: Path) -> None:
    windows = bridge(tmp_path)
    stages = token_sets.ids(tmp_path, [windows[:7], windows[7:14], windows[14:]], **SHAPE)
    folder, made = token_sets.form(tmp_path, Action(), stages)
    pairs = action.Pairs(f"{folder}/train")
    assert len(pairs) == 3 + 2 + 5 and pairs.latent == (2, 2, 3)
    order = [("2", 3), ("3", 6), ("10", 4)]
    assert [(row["id"], row["frames"], row["first"]) for row in rows(folder) if row["split"] == "train"] == [
        ("2", 3, 0), ("3", 6, 3), ("10", 4, 9)]  # fmt: skip
    number = 0
    for name, count in order:
        said = json.loads((tmp_path / f"annotation/train/{name}.json").read_text())
        for i in range(count - 1):
            current, following = (token_sets.ids_of(Window(f"uuid-train-{name}", i + k), (6,)) for k in (0, 1))
            assert np.array_equal(pairs[number].current, current) and np.array_equal(pairs[number].next, following)
            np.testing.assert_allclose(pairs[number].action, said["action"][i], rtol=1e-6)
            number += 1
    assert len(action.Pairs(f"{folder}/test")) == 4 and len(action.Pairs(f"{folder}/val")) == 1
    state = torch.load(f"{folder}/val/state.pt", weights_only=True)
    np.testing.assert_allclose(state, np.load(tmp_path / "videos/val/1/state.npy"), rtol=1e-6)
    assert torch.load(f"{folder}/val/gripper.pt", weights_only=True).tolist() == [0, 0]
    assert sum(one.counts["pairs"] for one in made) == 15 and sum(one.counts["frames"] for one in made) == 20


def test_trajectories_that_do_not_fit_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    good = token_sets.trajectory(tmp_path, "train", "0", 4)
    longer = token_sets.trajectory(tmp_path, "train", "1", 4, action=[[0.0] * 7] * 4)
    narrow = token_sets.trajectory(tmp_path, "train", "2", 4, action=[[0.0] * 6] * 3)
    alone = token_sets.trajectory(tmp_path, "train", "3", 4)
    (tmp_path / "annotation/train/3.json").unlink()
    stateless = token_sets.trajectory(tmp_path, "train", "4", 4)
    (tmp_path / "videos/train/4/state.npy").unlink()
    endless = token_sets.trajectory(tmp_path, "train", "5", 4, continuous_gripper_state=[float("inf")] * 4)
    wider = token_sets.trajectory(tmp_path, "train", "6", 4)
    np.save(tmp_path / "videos/train/6/state.npy", np.zeros((4, 9)))
    torn = token_sets.frames(token_sets.trajectory(tmp_path, "train", "7", 4), 4)[1:]
    elsewhere = [Window("x", i, source="/films/x.mp4") for i in range(4)]
    some = [good, longer, narrow, alone, stateless, endless, wider]
    windows = [frame for one in some for frame in token_sets.frames(one, 4)] + torn + elsewhere
    folder, [made] = token_sets.form(tmp_path, Action(), token_sets.ids(tmp_path, [windows], **SHAPE))
    assert [row["id"] for row in rows(folder)] == ["0"] and len(action.Pairs(f"{folder}/train")) == 3
    assert {(one.uri.split("/")[-2], one.reason) for one in made.bad} == {
        ("1", "annotation"), ("2", "annotation"), ("3", "no-annotation"), ("4", "no-state"), ("5", "annotation"),
        ("6", "state")}  # fmt: skip
    assert "action is of 5 frames" in next(one.detail for one in made.bad if "/1/" in one.uri)
    assert "/films/x.mp4" in caplog.text and "train/7/rgb.mp4" in caplog.text
    with pytest.raises(ValueError, match="no film of a Bridge data set"):
        token_sets.form(tmp_path, Action(), token_sets.ids(tmp_path, [elsewhere], **SHAPE))
    with pytest.raises(ValueError, match="frames: 1"):
        token_sets.form(tmp_path, Action(), token_sets.ids(tmp_path, [windows]))


def test_replaced_inputs_are_left_out(tmp_path: Path, t5: Path) -> None:
    gone = {("/films/0.mp4", "e")}
    folder, _ = token_sets.form(tmp_path, Video2World(text_encoder=str(t5)), token_sets.ids(tmp_path, cut(5)),
                                superseded=gone)  # fmt: skip
    assert len(rows(folder)) == 10 and all(row["source"] != "/films/0.mp4" for row in rows(folder))


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"form": "action"}, "frames: 1"), ({"form": "action", "frames": 1, "windows": "all", "fps": 3.0}, "fps"),
     ({"form": "instruction"}, "name a text_encoder"), ({"text_encoder": "google-t5/t5-11b"}, "has no words")],
)  # fmt: skip
def test_settings_that_do_not_go_together(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Tokens(**settings)


def test_the_parts_of_each_form() -> None:
    t5 = "google-t5/t5-11b@main"
    for name, more, kind in (("megatron", {}, "prepare.tokens-megatron"),
                             ("video2world", {}, "prepare.tokens-video2world"),
                             ("instruction", {"text_encoder": t5}, "prepare.tokens-instruction"),
                             ("action", {"frames": 1, "windows": "all"}, "prepare.tokens-action")):  # fmt: skip
        made = Tokens(form=name, split="3,2,1", hold_out="clip", **more)
        part = made.parts()[""]
        assert part.settings.KIND == kind and (part.settings.split, part.settings.hold_out) == ("3,2,1", "clip")
        assert part.gpus == bool(more.get("text_encoder")) and (t5 in made.models()) == part.gpus


def test_prompts_are_missed_before_anything_is_encoded(tmp_path: Path) -> None:
    """A stage that is needed later changes what the ids are made of: they would all be made again."""
    stages = {"clips": {"kind": "curate.clips"}, "caption": {"kind": "curate.caption", "needs": "clips"},
              "embed": {"kind": "curate.text_embed", "needs": ["clips", "caption"]}}  # fmt: skip
    file = tmp_path / "t.yaml"
    (tmp_path / "in").mkdir()

    def write(**tokens: Any) -> None:
        tokens = {"kind": "prepare.tokens", "form": "video2world", "tokenizer": "/dv"} | tokens
        file.write_text(yaml.safe_dump({"name": "t", "inputs": str(tmp_path / "in"), "output": str(tmp_path / "out"),
                                        "stages": stages | {"tokens": tokens}}))  # fmt: skip

    write(needs=["clips", "caption"])
    with pytest.raises(SpecErrors, match=r"tokens\.needs.*curate\.text_embed"):
        load(file)
    for more in ({"needs": ["clips", "caption", "embed"]}, {"needs": ["clips"], "text_encoder": "/t5"}):
        write(**more)
        load(file)
