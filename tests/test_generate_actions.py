"""generate.ar with actions: a frame for each, of the frame before; from films of a robot to videos, by one command."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import runs
import token_sets
import torch
import yaml
from test_form_runs import FRAMES, frames, tokenizer
from test_generate import film, picture, rows_of, work
from test_prepare import film as filmed

from hpc.batch.kinds import settings_of
from hpc.data import layers, video
from hpc.generate import ar, prompts
from hpc.models import tokenizers
from hpc.models.ar import keys
from hpc.models.ar.presets import preset

pytestmark = pytest.mark.filterwarnings("ignore")  # megatron-core's, of what is not installed
SHAPE = (2, 4, 4)
LEFT, RIGHT = [[30.0] * 7, [-30.0] * 7], [[-30.0] * 7, [30.0] * 7]


@pytest.fixture(scope="module")
def maker(tmp_path_factory: pytest.TempPathFactory) -> ar.Maker:
    """A model with random weights."""
    folder = tmp_path_factory.mktemp("models")
    shape_of = msgspec.structs.replace(preset("ar-tiny-action"), shape=SHAPE)
    source = keys.Initial(shape_of, lambda name: torch.Generator().manual_seed(len(name)))
    torch.save(dict(source), folder / "model.pt")
    return ar.Maker(settings_of("generate.ar", {
        "model": "ar-tiny-action", "shape": list(SHAPE), "weights": str(folder), "tokenizer": tokenizer(folder),
        "precision": "float32", "batch": 4}))  # fmt: skip


def test_a_frame_for_each_action(tmp_path: Path, maker: ar.Maker) -> None:
    picture(tmp_path / "a.png", 5)
    film(tmp_path / "c.mp4", 10)
    np.save(tmp_path / "left.npy", np.array(LEFT, np.float32))
    (tmp_path / "13.json").write_text(json.dumps({"texts": ["go"], "action": RIGHT}))
    asked = [
        {"name": "left", "visual_input": "a.png", "actions": LEFT},
        {"name": "right", "visual_input": "a.png", "actions": RIGHT},
        {"name": "again", "visual_input": "a.png", "actions": "left.npy", "num_output_frames": 3},
        {"name": "longer", "visual_input": "a.png", "actions": [*LEFT, [0.0] * 7]},
        {"name": "film", "visual_input": "c.mp4", "actions": "13.json"},
        {"name": "none", "visual_input": "a.png"},
        {"name": "long", "visual_input": "a.png", "actions": LEFT, "num_output_frames": 9},
        {"name": "blind", "prompt": "go", "actions": LEFT},
    ]
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(map(json.dumps, asked)))
    rows = [msgspec.to_builtins(one) | {"weights": maker.weights}
            for one in prompts.requests(path.read_bytes(), str(path), "e", wordless=True)]  # fmt: skip
    made = ar.process(maker, work(tmp_path / "w", rows=rows))
    table = {row["name"]: row for row in layers.read_table(made.objects[1]).to_pylist()}
    assert {name: row["why"] for name, row in table.items() if row["why"]} == {
        "none": "no-actions", "long": "bad-frames", "blind": "no-media"}  # fmt: skip
    with made.objects[0].open("rb") as tar:
        members = dict(layers.read_tar(tar))
    ids = {name: np.load(io.BytesIO(there[".npy"])) for name, there in members.items()}
    assert {name: one.shape for name, one in ids.items()} == {
        "left": (3, 4, 4), "right": (3, 4, 4), "again": (3, 4, 4), "longer": (4, 4, 4), "film": (3, 4, 4)}  # fmt: skip
    assert np.array_equal(ids["left"], ids["again"]) and np.array_equal(ids["left"], ids["longer"][:3])
    assert np.array_equal(ids["left"][0], ids["right"][0])
    assert all((ids["left"][i] != ids["right"][i]).any() for i in (1, 2)), "actions count"
    info, count = video.measured(members["longer"][".mp4"])
    assert (info.width, info.height, count) == (64, 64, 4)
    shown = torch.cat([maker.tokenizer.decode(torch.from_numpy(one)[None, None])[0] for one in ids["longer"]], 1)
    expected = ((shown.permute(1, 2, 3, 0) + 1) * 127.5).clamp(0, 255).numpy()
    assert np.abs(maker.frames(torch.from_numpy(ids["longer"]).flatten()) - expected).max() <= 0.51
    assert table["film"]["actions"] == RIGHT and table["film"]["given"] == 1 and table["longer"]["frames"] == 4
    assert made.counts["ids"] == (4 * 2 + 3) * 16


def test_from_films_of_a_robot(tmp_path: Path) -> None:
    root = tmp_path / "bridge"
    for place, count in FRAMES.items():
        filmed(Path(token_sets.trajectory(root, *place, count).source), count, seed=count)
    tokens = {"kind": "prepare.tokens", "tokenizer": tokenizer(tmp_path), "size": [32, 64], "windows": "all",
              "precision": "float32", "form": "action", "frames": 1, "resources": {"cpus": 1}}  # fmt: skip
    model = {"model": "ar-tiny-action", "shape": [2, 2, 4], "resources": {"cpus": 1}}
    train = {"kind": "train.ar", "needs": "tokens", "steps": 2, "batch": 1, "precision": "fp32", "readers": 0,
             "validation": {"clips": 1}, **model}  # fmt: skip
    asked = {"visual_input": str(root / "videos/train/12/rgb.mp4"), "actions": str(root / "annotation/train/12.json")}
    (tmp_path / "asked.jsonl").write_text(json.dumps(asked))
    videos = {"kind": "generate.ar", "needs": "ar", "tokenizer": tokens["tokenizer"], "precision": "float32",
              "prompts": str(tmp_path / "asked.jsonl"), **model}  # fmt: skip
    stages = {"tokens": tokens, "ar": train, "videos": videos}
    spec = {"name": "t", "inputs": str(root / "videos"), "output": "out", "stages": stages,
            "env": {"OMP_NUM_THREADS": "1"}}  # fmt: skip
    file = tmp_path / "t.yaml"
    file.write_text(yaml.safe_dump(spec, sort_keys=False))
    runs.hpc("run", file, timeout=300)
    made = json.loads((tmp_path / "out/ar@v1/000000.json").read_text())
    assert made["clips"] == 2 + 3 and 9 < made["last"]["validation_nll"] < 13 and made["previous_frame_nll"] > 0
    [row] = rows_of(tmp_path / "out")
    assert row["frames"] == 4 and len(row["actions"]) == 3
    data = row["tar"].read_bytes()[row["npy_offset"] : row["npy_offset"] + row["npy_size"]]
    first = tokenizers.load(tokens["tokenizer"]).encode(frames(Path(asked["visual_input"]))[:1])
    assert np.array_equal(np.load(io.BytesIO(data))[0], first[0, 0].numpy()), "the first frame of the film is given"

    for stage, change, words in (
        ("ar", {"model": "ar-tiny", "shape": [5, 8, 8]}, "tokens makes tokens of `form: action`, for ar-5b-action, "
         "ar-13b-action, ar-tiny-action; ar-tiny is trained on `form: megatron`"),
        ("tokens", {"form": "megatron"}, "for ar-4b, ar-12b, ar-tiny; ar-tiny-action is trained on `form: action`"),
        ("videos", {"model": "ar-tiny-video2world", "given": 1}, "ar trains ar-tiny-action on latents [2, 2, 4], and "
         "this is ar-tiny-video2world"),
        ("videos", {"prompts": "tokens", "needs": ["ar", "tokens"]}, "clips of tokens do not say what is done"),
    ):  # fmt: skip
        wrong = {name: one | (change if name == stage else {}) for name, one in stages.items()}
        file.write_text(yaml.safe_dump(spec | {"stages": wrong}, sort_keys=False))
        assert words in runs.hpc("check", file, code=2).stderr


@pytest.mark.parametrize(
    ("actions", "wordless", "words"),
    [
        ([[1.0] * 6], True, "`actions`: actions of [1, 6]; [frames - 1, 7] of finite numbers are expected"),
        ([[1.0] * 7, [1.0] * 6], True, "`actions`: "),
        ("none.npy", True, "none.npy"),
        ({"action": 1}, True, "`actions`: "),
        ([[1.0] * 7], False, "unknown: actions; known are"),
    ],
)
def test_what_a_prompt_cannot_say(actions: Any, wordless: bool, words: str, tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    line = json.dumps({"visual_input": "a.png", "prompt": "go", "actions": actions}).encode()
    [one] = prompts.requests(line, str(tmp_path / "x.jsonl"), "e", wordless)
    assert one.why is not None and words in one.why.detail
