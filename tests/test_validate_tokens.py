"""Every rule of `hpc validate` for token data sets and films of robots: a set that breaks it is named, by file."""

from __future__ import annotations

import ast
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import s3
import token_sets
import torch
from test_text_embed import save
from token_sets import Window

from hpc import validate
from hpc.data import layers
from hpc.data.tokens import action, video2world
from hpc.prepare.forms.video2world import COLUMNS
from hpc.prepare.settings import Action, Instruction, Video2World
from hpc.train import token_data

ROOT = Path(__file__).parents[1]
Edit = Callable[[Path], object]
Found = set[tuple[str, str]]


def found(place: Path, consumer: str, **more: int) -> Found:
    """(rule, file), of problems that all say what and what to do."""
    report = validate.validate(str(place), consumer, **more)
    assert all(one.what and one.do for one in report.problems)
    return {(one.rule, one.file) for one in report.problems}


def rewrite(name: str, edit: Callable[[torch.Tensor], Any]) -> Edit:
    return lambda place: torch.save(edit(torch.load(place / name, weights_only=True)), place / name)


def put(name: str, *where: int, value: float) -> Edit:
    def edit(tensor: torch.Tensor) -> torch.Tensor:
        tensor[where] = value
        return tensor

    return rewrite(name, edit)


def say(name: str, **more: Any) -> Edit:
    """Change an object in a .json; ... takes a key away."""

    def edit(place: Path) -> None:
        told = json.loads((place / name).read_bytes()) | more
        (place / name).write_text(json.dumps({key: value for key, value in told.items() if value is not ...}))

    return edit


def change(row: int, **more: Any) -> Edit:
    """A row of the table of samples."""

    def edit(place: Path) -> None:
        path = sorted(place.glob("*.parquet"))[0]
        with path.open("rb") as file:
            rows, meta = layers.read_table(file).to_pylist(), layers.read_meta(file)
        rows[row] |= more
        layers.write_table(path, rows, meta, COLUMNS)

    return edit


def write(name: str, data: bytes) -> Edit:
    return lambda place: (place / name).write_bytes(data)


def gone(name: str) -> Edit:
    return lambda place: (place / name).unlink()


def copy(name: str, to: str) -> Edit:
    return lambda place: shutil.copy(place / name, place / to)


def clips(folder: Path) -> list[list[Window]]:
    """With an instruction each; clip-0 to clip-5."""
    (folder / "videos").mkdir()
    (folder / "instructions").mkdir()
    for i in range(6):
        text = "a rabbit" if i < 2 else f"the butterfly sleeps {'a ' * i}"
        (folder / f"instructions/{i}.json").write_text(json.dumps({"language_instruction_0": text}))
    return [[Window(f"clip-{i}", source=str(folder / f"videos/{i}.mp4")) for i in range(6)]]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A data set of each kind, which breaks no rule."""
    base = tmp_path_factory.mktemp("good")
    made = {}
    windows = clips(base)
    stages = token_sets.ids(base, windows, video2world.LATENT)
    t5 = str(save(base / "t5", d_model=1024))
    texts = token_sets.embeddings(base, [[(one.uuid, 0, 0, 99) for one in windows[0]]])
    made["video2world-tokens"] = Path(token_sets.form(base, Video2World(), stages | texts, "words")[0])
    made["instruction-tokens"] = Path(token_sets.form(base, Instruction(text_encoder=t5), stages, "told")[0])
    made["bridge"] = root = base / "bridge"
    frames = []
    for split, name, count in (("train", "3", 4), ("train", "10", 3), ("test", "1", 2), ("val", "1", 5)):
        one = token_sets.trajectory(root, split, name, count)
        Path(one.source).write_bytes(datasets.mp4(count))
        frames += token_sets.frames(one, count)
    ids = token_sets.ids(base, [frames], (1, *action.LATENT), frames=1)
    made["action-tokens"] = Path(token_sets.form(base, Action(), ids, "actions")[0])
    return made


@pytest.mark.parametrize("consumer", ["video2world-tokens", "instruction-tokens", "action-tokens", "bridge"])
def test_what_is_good_breaks_no_rule(good: dict[str, Path], consumer: str) -> None:
    report = validate.validate(str(good[consumer]), consumer)
    assert not report.problems and report.entries == {"action-tokens": 10, "bridge": 4}.get(consumer, 6)


def reshape(place: Path, latent: tuple[int, ...]) -> None:
    """Say so in the table."""
    path = sorted(place.glob("*.parquet"))[0]
    with path.open("rb") as file:
        rows, meta = layers.read_table(file).to_pylist(), layers.read_meta(file)
    layers.write_table(path, rows, meta | {"shape": list(latent)}, COLUMNS)


V, P = "train_video_1.pt", "train_prompt_1.pt"
BF16 = lambda video: video.to(torch.bfloat16)  # what NeMo's reader does to it
RULES: list[tuple[str, Edit, Found]] = [
    ("missing", gone("metadata.json"), {("missing", "metadata.json"), *(("not-counted", name) for split, count in (
        ("train", 4), ("test", 1), ("val", 1)) for i in range(count) for name in video2world.names(split, i))}),
    ("metadata", say("metadata.json", val_samples="1"), {("metadata", "metadata.json"),
     ("not-counted", "val_video_0.pt"), ("not-counted", "val_prompt_0.pt")}),
    ("metadata", say("metadata.json", test_samples=-1), {("metadata", "metadata.json"),
     ("not-counted", "test_video_0.pt"), ("not-counted", "test_prompt_0.pt")}),
    ("json", write("metadata.json", b"{"), {("json", "metadata.json"), *(("not-counted", name) for split, count in (
        ("train", 4), ("test", 1), ("val", 1)) for i in range(count) for name in video2world.names(split, i))}),
    ("empty-split", say("metadata.json", val_samples=0), {("empty-split", "metadata.json"),
     ("not-counted", "val_video_0.pt"), ("not-counted", "val_prompt_0.pt")}),
    ("missing", say("metadata.json", train_samples=5), {("missing", "train_video_4.pt"),
     ("missing", "train_prompt_4.pt"), ("table", "train_video_4.pt")}),
    ("missing", gone(P), {("missing", P)}),
    ("not-counted", copy(V, "train_video_9.pt"), {("not-counted", "train_video_9.pt")}),
    ("table", change(1, split="elsewhere"), {("table", "*")}),
    ("table", lambda place: sorted(place.glob("*.parquet"))[0].write_bytes(b""), {("table", "000000.parquet")}),
    ("latent", lambda place: reshape(place, (5, 64, 40)), {("latent", "000000.parquet")}),
    ("tensor", write(V, b"no tensor"), {("tensor", V)}),
    ("tensor", rewrite(V, lambda video: {"ids": video}), {("tensor", V)}),
    ("tensor", rewrite(V, lambda video: torch.stack([video, video], 1)[:, 0]), {("tensor", V)}),
    ("dtype", rewrite(V, BF16), {("dtype", V)}),
    ("dtype", rewrite(V, lambda video: video.float()), {("dtype", V)}),
    ("dtype", rewrite(P, lambda prompt: prompt.int()), {("dtype", P)}),
    ("bfloat16", rewrite(V, lambda video: torch.cat([video[:1], BF16(video[1:-64]).int(), video[-64:]])),
     {("bfloat16", V)}),
    ("bfloat16", rewrite(V, lambda video: BF16(video).int()), {("bfloat16", V), ("padding", V)}),
    ("shape", rewrite(V, lambda video: video[None]), {("shape", V)}),
    ("prompt-shape", rewrite(P, lambda prompt: prompt[:9].clone()), {("prompt-shape", P)}),
    ("prompt-shape", rewrite(P, lambda prompt: prompt[None]), {("prompt-shape", P)}),
    ("length", rewrite(V, lambda video: video[:-1].clone()), {("length", V)}),
    ("begin", put(V, 0, value=7), {("begin", V)}),
    ("padding", put(V, -1, value=64_000), {("padding", V)}),
    ("ids", put(V, 5, value=64_000), {("ids", V)}),
    ("ids", put(V, 5, value=-1), {("ids", V)}),
    ("prompt-finite", put(P, 0, 3, value=float("nan")), {("prompt-finite", P)}),
    ("prompt-tokens", put(P, 50, 3, value=1), {("prompt-gap", P), ("prompt-tokens", P)}),
    ("no-prompt", rewrite(P, torch.zeros_like), {("no-prompt", P), ("prompt-tokens", P)}),
    ("leak", copy(V, "val_video_0.pt"), {("leak", "val_video_0.pt")}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "edit", "expected"), RULES, ids=[f"{i}-{one[0]}" for i, one in enumerate(RULES)])
def test_video2world(good: dict[str, Path], tmp_path: Path, rule: str, edit: Edit, expected: Found) -> None:
    place = tmp_path / "set"
    shutil.copytree(good["video2world-tokens"], place)
    edit(place)
    problems = found(place, "video2world-tokens")
    if expected == {("table", "*")}:
        assert {one for one, _ in problems} == {"table"} and len(problems) == 1
    else:
        assert problems == expected


def test_what_nvidias_script_writes_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As video2world_prepare_dataset.py does: prompts float32 from a GPU, no tables beside them."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
    chance = np.random.default_rng(0)
    for split in ("train", "test", "val"):
        ids = chance.integers(0, 64_000, 12_800).tolist()
        torch.save(torch.IntTensor([64_000, *ids, *[64_002] * 64]), tmp_path / f"{split}_video_0.pt")
        embedding = torch.zeros(1, 512, 1024)
        embedding[:, :7] = 0.5
        torch.save(embedding.squeeze(), tmp_path / f"{split}_prompt_0.pt")
        one = {f"{name}_samples": 1 for name in ("train", "test", "val")}
        (tmp_path / "metadata.json").write_text(json.dumps(one))
    assert b"cuda:0" in (tmp_path / "val_prompt_0.pt").read_bytes()
    assert found(tmp_path, "video2world-tokens") == set()
    assert found(tmp_path, "instruction-tokens") == {("no-instructions", "")}
    sample = token_data.Video2World(str(tmp_path), "val", given=1)[0]
    assert sample.tokens[1:-63].tolist() == ids and int(sample.loss_mask.sum()) == 4 * 40 * 64
    assert sample.context_mask is not None and int(sample.context_mask.sum()) == 7


def test_on_s3(good: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the rules say, and what training reads, are the same there."""
    kinds = {"instruction-tokens": 6, "action-tokens": 10, "bridge": 4}
    for consumer in kinds:
        shutil.copytree(good[consumer], tmp_path / "bucket" / consumer)
    with s3.rclone(tmp_path) as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        for consumer, entries in kinds.items():
            report = validate.validate(f"s3://bucket/{consumer}", consumer)
            assert not report.problems and report.entries == entries
        pairs = [token_data.Action(f"{place}/train") for place in ("s3://bucket/action-tokens", good["action-tokens"])]
        assert len(pairs[0]) == len(pairs[1]) == 5
        assert all(torch.equal(pairs[0][i].tokens, pairs[1][i].tokens) for i in range(5))
        told = token_data.Video2World("s3://bucket/instruction-tokens", "train")[1]
        here = token_data.Video2World(str(good["instruction-tokens"]), "train")[1]
        assert torch.equal(told.tokens, here.tokens) and told.context is not None and here.context is not None
        assert torch.equal(told.context, here.context)


def test_a_sample_of_samples(good: dict[str, Path]) -> None:
    report = validate.validate(str(good["video2world-tokens"]), "video2world-tokens", sample=2)
    assert report.sampled == {"samples": (2, 6)} and report.entries == 6 and not report.problems


@pytest.mark.parametrize(
    ("rule", "edit", "expected"),
    [("instruction", change(2, prompt=" "), {("instruction", "*")}),
     ("instruction-tokens", lambda place: unlike(place), {("instruction-tokens", "*"), ("prompt-tokens", "*")}),
     ("no-instructions", lambda place: sorted(place.glob("*.parquet"))[0].unlink(), {("no-instructions", "")})],
)  # fmt: skip
def test_instructions(good: dict[str, Path], tmp_path: Path, rule: str, edit: Edit, expected: Found) -> None:
    place = tmp_path / "set"
    shutil.copytree(good["instruction-tokens"], place)
    edit(place)
    assert {(one, file and "*") for one, file in found(place, "instruction-tokens")} == expected


def unlike(place: Path) -> None:
    """Of two samples that are told the same, one is embedded as more tokens."""
    with sorted(place.glob("*.parquet"))[0].open("rb") as file:
        rows = layers.read_table(file).to_pylist()
    same = [i for i, row in enumerate(rows) if row["prompt"] == "a rabbit"]
    assert len(same) == 2
    change(same[1], prompt_tokens=rows[same[1]]["prompt_tokens"] + 1)(place)


F, A = "train/tokenized-frames.pt", "train/actions.pt"
SHORTER = {("rows", A), ("rows", "train/state.pt"), ("rows", "train/gripper.pt")}
ACTIONS: list[tuple[str, Edit, Found]] = [
    ("missing-split", lambda place: shutil.rmtree(place / "test"), {("missing-split", "test/")}),
    ("missing", gone(F), {("missing", F)}),
    ("missing", gone(A), {("missing", A)}),
    ("missing", gone("train/gripper.pt"), {("missing", "train/gripper.pt")}),
    ("tensor", write(A, b"no tensor"), {("tensor", A)}),
    ("dtype", rewrite(F, lambda frames: frames.to(torch.bfloat16)), {("dtype", F)}),
    ("dtype", rewrite(A, lambda done: torch.zeros(7, 7, dtype=torch.int32)), {("dtype", A)}),
    ("shape", rewrite(F, lambda frames: frames[:, 0].clone()), {("shape", F)}),
    ("shape", rewrite(F, lambda frames: frames.transpose(2, 3)), {("shape", F)}),
    ("shape", rewrite(A, lambda done: done[:, :6].clone()), {("shape", A)}),
    ("latent", rewrite(F, lambda frames: frames[..., :39].clone()), {("latent", F)}),
    ("rows", rewrite(F, lambda frames: frames[1:].clone()), SHORTER),
    ("rows", rewrite("train/state.pt", lambda state: state[1:].clone()), {("rows", "train/state.pt")}),
    ("ids", put(F, 3, 0, 0, 0, value=64_000), {("ids", f"{F}#0")}),
    ("bfloat16", rewrite(F, lambda frames: frames.to(torch.bfloat16).int()), {("bfloat16", f"{F}#0")}),
    ("action", put(A, 1, 2, value=float("nan")), {("action", f"{A}#1")}),
    ("action", put(A, 0, 2, value=float("inf")), {("action", f"{A}#0")}),
    ("last", put(A, -1, value=0.5), {("last", A), ("trajectories", A)}),
    ("no-pairs", rewrite(A, lambda done: torch.full_like(done, float("nan"))), {("no-pairs", A), ("trajectories", A)}),
    ("trajectories", put(A, 4, value=float("nan")), {("trajectories", A)}),
    ("table", lambda place: sorted(place.glob("*.parquet"))[0].write_bytes(b""), {("table", "000000.parquet")}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "edit", "expected"), ACTIONS, ids=[f"{i}-{x[0]}" for i, x in enumerate(ACTIONS)])
def test_actions(good: dict[str, Path], tmp_path: Path, rule: str, edit: Edit, expected: Found) -> None:
    place = tmp_path / "set"
    shutil.copytree(good["action-tokens"], place)
    edit(place)
    assert found(place, "action-tokens") == expected


T, FILM, STATE = "annotation/train/3.json", "videos/train/3/rgb.mp4", "videos/train/3/state.npy"
BRIDGE: list[tuple[str, Edit, Found]] = [
    ("no-films", lambda place: (place / "videos").rename(place / "films"), {("no-films", "videos/")}),
    ("missing-split", lambda place: (shutil.rmtree(place / "videos/val"), shutil.rmtree(place / "annotation/val")),
     {("missing-split", "videos/val/")}),
    ("video", write(FILM, b"no video"), {("video", FILM)}),
    ("too-short", write(FILM, datasets.mp4(1)), {("too-short", FILM), ("action", T), ("state", T), ("state-npy", STATE),
     ("continuous_gripper_state", T)}),
    ("id", lambda place: ((place / "videos/train/3").rename(place / "videos/train/03"),
     (place / T).rename(place / "annotation/train/03.json"),
     say("annotation/train/03.json", videos=[{"video_path": "videos/train/03/rgb.mp4"}])(place)),
     {("id", "videos/train/03/rgb.mp4")}),
    ("missing", gone(T), {("missing", T)}),
    ("orphan", copy(T, "annotation/train/9.json"), {("orphan", "annotation/train/9.json")}),
    ("json", write(T, b"{"), {("json", T)}),
    ("annotation", write(T, b"[]"), {("annotation", T)}),
    ("annotation", say(T, state=...), {("annotation", T)}),
    ("annotation", say(T, action=[[0.0] * 7, [0.0]]), {("annotation", T)}),
    ("action", say(T, action=[[0.0] * 7] * 4), {("action", T)}),
    ("action", say(T, action=[[0.0] * 6] * 3), {("action", T)}),
    ("action", say(T, action=[[float("inf")] * 7] * 3), {("action", T)}),
    ("state", say(T, state=[[0.0] * 7] * 3), {("state", T)}),
    ("state", say(T, state=[[0.0] * 5] * 4), {("state", T)}),
    ("gripper", say(T, continuous_gripper_state=[0.0] * 3), {("continuous_gripper_state", T)}),
    ("text", say(T, texts=[]), {("text", T)}),
    ("video-path", say(T, videos=[{"video_path": "elsewhere.mp4"}]), {("video-path", T)}),
    ("video-path", say(T, videos=[]), {("video-path", T)}),
    ("episode", say(T, episode_id=...), {("episode", T)}),
    ("state-npy", gone(STATE), {("state-npy", STATE)}),
    ("state-npy", write(STATE, b"no array"), {("state-npy", STATE)}),
    ("state-npy", lambda place: np.save(place / STATE, np.zeros((3, 8))), {("state-npy", STATE)}),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "edit", "expected"), BRIDGE, ids=[f"{i}-{x[0]}" for i, x in enumerate(BRIDGE)])
def test_bridge(good: dict[str, Path], tmp_path: Path, rule: str, edit: Edit, expected: Found) -> None:
    place = tmp_path / "set"
    shutil.copytree(good["bridge"], place)
    edit(place)
    assert found(place, "bridge") == expected


def test_every_rule_is_broken_here() -> None:
    """The words of all rules in the two modules are those of the tables above."""
    broken = {rule for table in (RULES, ACTIONS, BRIDGE) for _, _, expected in table for rule, _ in expected}
    broken |= {"instruction", "instruction-tokens", "no-instructions"}
    for name in ("tokens", "robots"):
        for node in ast.walk(ast.parse((ROOT / "hpc/validate" / f"{name}.py").read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add":
                if len(node.args) > 3 and isinstance(word := node.args[1], ast.Constant):
                    assert word.value in broken, word.value
