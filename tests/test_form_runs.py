"""Forms of tokens from films to a data set that its reader's rules find nothing wrong with: ids of the tokenizer, words
of the encoder."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import runs
import token_sets
import torch
import yaml
from test_prepare import film, item, work
from test_text_embed import reference, save

from hpc import validate
from hpc.data.tokens import BOV, PAD
from hpc.data.upstream import table
from hpc.models import tokenizers
from hpc.models.tokenizers import cosmos, files
from hpc.prepare import bridge, tokens
from hpc.prepare.settings import Tokens
from hpc.train import token_data

FRAMES = {("train", "7"): 3, ("train", "12"): 4, ("test", "1"): 2, ("val", "1"): 2}


def tokenizer(folder: Path) -> str:
    torch.manual_seed(0)
    dv = cosmos.CosmosDiscrete(cosmos.Config(channels=8, window=3))
    dv.encoder.quantise.weight.data *= 50
    files.save(dv, folder / "dv")
    return str(folder / "dv")


def test_actions(tmp_path: Path) -> None:
    """Each frame's ids are those of the frame alone."""
    root = tmp_path / "bridge"
    for place, count in FRAMES.items():
        one = token_sets.trajectory(root, *place, count)
        film(Path(one.source), count, seed=count)
    assert not validate.validate(str(root), "bridge").problems
    stage = {"kind": "prepare.tokens", "tokenizer": tokenizer(tmp_path), "size": [32, 64], "windows": "all",
             "precision": "float32", "form": "action", "frames": 1, "resources": {"cpus": 1}}  # fmt: skip
    file = tmp_path / "t.yaml"
    file.write_text(yaml.safe_dump({
        "name": "t", "inputs": str(root / "videos"), "output": "out", "stages": {"tokens": stage},
        "env": {"OMP_NUM_THREADS": "1"}}))  # fmt: skip
    runs.hpc("run", file)
    folder = str(tmp_path / "out/tokens@v1")
    report = validate.validate(folder, "action-tokens")
    assert {one.rule for one in report.problems} == {"latent"} and report.entries == 2 + 3 + 1 + 1
    data = token_data.Action(f"{folder}/train")
    said = [json.loads((root / f"annotation/train/{name}.json").read_text())["action"] for name in ("7", "12")]
    assert np.allclose([one.action for one in (data[i] for i in range(5))], said[0] + said[1])
    ids = tokenizers.load(str(tmp_path / "dv")).encode(frames(root / "videos/train/7/rgb.mp4"))
    for i in range(2):
        both = [BOV, *ids[i].reshape(-1).tolist(), *ids[i + 1].reshape(-1).tolist()]
        assert data[i].tokens[: len(both)].tolist() == both and set(data[i].tokens[len(both) :].tolist()) == {PAD}
    assert {bridge.placed(row["source"]) for row in table(f"{folder}/000000.parquet").to_pylist()} == {
        bridge.Place(str(root), "train", "7"), bridge.Place(str(root), "train", "12")}  # fmt: skip


def frames(path: Path) -> torch.Tensor:
    """Each frame as a video of one, [frames, 3, 1, height, width] from -1 to 1."""
    with av.open(str(path)) as file:
        found = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    return torch.from_numpy(found).permute(0, 3, 1, 2)[:, :, None].float() / 127.5 - 1


def test_instructions(tmp_path: Path) -> None:
    (tmp_path / "robot/instructions").mkdir(parents=True)
    told = {"pick": "a rabbit eats", "fold": "the sun", "push": "a rabbit eats"}
    films = [film(tmp_path / f"robot/videos/{name}.mp4", 9, seed=seed) for seed, name in enumerate(told)]
    for name, words in told.items():
        (tmp_path / f"robot/instructions/{name}.json").write_text(json.dumps({"language_instruction_0": words}))
    t5 = save(tmp_path / "t5", d_model=1024)
    settings = Tokens(tokenizer=tokenizer(tmp_path), size=(32, 64), frames=9, precision="float32", form="instruction",
                      text_encoder=str(t5), split="1,1,1")  # fmt: skip
    parts = {name: part.settings for name, part in settings.parts().items()}
    made = tokens.start(parts["ids"])(work(tmp_path, [item(path) for path in films]))
    ids = {"tokens-ids": [("000000", token_sets.publish(tmp_path, "ids@v1", "000000", made.objects))]}
    folder, _ = token_sets.form(tmp_path, parts[""], ids)
    report = validate.validate(folder, "instruction-tokens")
    assert {one.rule for one in report.problems} == {"latent"} and report.entries == 3
    rows = [row for path in Path(folder).glob("*.parquet") for row in table(str(path)).to_pylist()]
    assert {Path(row["source"]).stem: row["prompt"] for row in rows} == told
    for row in rows:
        one = token_data.Video2World(folder, row["split"], (2, 2, 4), given=1)[row["index"]]
        embedded = reference(t5, row["prompt"])
        assert one.context is not None and one.context_mask is not None and int(one.context_mask.sum()) == len(embedded)
        np.testing.assert_allclose(one.context[: len(embedded)], embedded, rtol=2e-2, atol=2e-3)
        assert int(one.loss_mask.sum()) == 8
