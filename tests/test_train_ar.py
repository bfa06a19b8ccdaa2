"""train.ar: settings that cannot work are told with the arithmetic; what is killed goes on, to the last bit; what comes
out has the published names."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any, get_args

import msgspec
import numpy as np
import pytest
import runs
import torch
import yaml
from ar_runs import SHAPE, here, run, settings, tokens
from test_form_runs import tokenizer
from test_prepare import film
from trainings import curve, loses_a_rank, timeless

from hpc.batch import check
from hpc.data import layers
from hpc.data.tokens import video2world
from hpc.data.units import Bytes
from hpc.models.ar import keys
from hpc.models.ar.presets import PRESETS, preset
from hpc.train import ar, ranks
from hpc.train.ar import dataset
from hpc.train.checkpoint import Checkpoints, complete
from hpc.train.clips import plain
from hpc.train.estimate_ar import memory
from hpc.train.metrics import lines
from hpc.train.settings import TrainAr
from hpc.train.settings.ar import HeldOut, Layout, Model
from hpc.train.settings.optimizer import Optimizer

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["here", "tokens"]  # fixtures


def test_killed_or_warned_it_goes_on_to_the_last_bit(tmp_path: Path, tokens: list[dict[str, str]]) -> None:
    given = settings(batch=2)
    whole = run(1, tmp_path / "whole", given, tokens)
    assert [line["step"] for line in whole] == list(range(1, 7)) and whole[-1]["loss"] < whole[0]["loss"] - 0.03
    held = [line["validation_nll"] for line in whole if "validation_nll" in line]
    assert [line["step"] for line in whole if "validation_nll" in line] == [2, 4, 6] and 9 < held[2] < held[0] < 13
    assert complete(tmp_path / "whole/checkpoints") == [2, 4, 6]
    run(1, tmp_path / "killed", given, tokens, kill_at=5)
    there = complete(tmp_path / "killed/checkpoints")
    assert there in ([2], [2, 4]), "the second one may have been in the making"
    run(1, tmp_path / "killed", given, tokens, kill_at=-1)
    assert complete(tmp_path / "killed/checkpoints") == [*there, there[-1] + 1], "told to leave, it saves at that step"
    assert timeless(run(1, tmp_path / "killed", given, tokens)) == timeless(whole)

    made = json.loads((tmp_path / "whole/made.json").read_text())
    assert made["clips"] == 10 and made["tokens"] == 6 * 2 * 48 and made["gpu_hours"] == 0
    found = keys.Published(tmp_path / "whole/model/model.safetensors")
    keys.account(keys.rules(given.preset), found, "the published names")
    again = keys.Published(tmp_path / "killed/model/model.safetensors")
    assert all(torch.equal(found[name], again[name]) for name in found)


@pytest.fixture(scope="module")
def two(tokens: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two tensor-parallel ranks wrote undisturbed, every checkpoint for any layout."""
    folder = tmp_path_factory.mktemp("two")
    run(2, folder, settings(layout=Layout(tensor=2), reshard=True), tokens)
    return folder


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `hpc run` left of the same training, on the same tokens, one of whose ranks was killed: tried again at once,
    from the newest checkpoint. Its checkpoints are for two tensor-parallel ranks alone, but for the last."""
    folder = tmp_path_factory.mktemp("lost")
    ar = plain(settings(layout=Layout(tensor=2))) | {"kind": "train.ar", "needs": "ids", "checkpoints": {"every": 2},
                                                     "resources": {"workers": 2, "cpus": 1}}  # fmt: skip
    stages = {"ids": {"kind": "stages:Ids", "resources": {"cpus": 1}}, "ar": ar}
    prepared = runs.planned(runs.spec(folder, runs.numbered(2), stages))
    runs.finish(runs.worker(prepared, "ids"))
    runs.finish(runs.worker(prepared, "ar", "barrier"))
    loses_a_rank(prepared, "ar", lambda: bool(complete(folder / "out/ar@v1/training/checkpoints")), 120, 180)
    return folder / "out/ar@v1"


def test_a_run_whose_rank_is_killed_is_equal_to_the_last_bit(two: Path, lost: Path) -> None:
    """...on two tensor-parallel ranks, whatever a checkpoint is for."""
    said = curve(lost / "training")
    assert [line["step"] for line in said] == list(range(1, 7)) and said[-1]["loss"] < said[0]["loss"]
    assert said == curve(two)
    assert complete(lost / "training/checkpoints") == complete(two / "checkpoints") == [2, 4, 6]
    made = json.loads((lost / "000000.json").read_text())
    assert made["ranks"] == 2 and made["clips"] == 10 and made["steps"] == 6
    found, whole = (keys.Published(folder / "model/model.safetensors") for folder in (lost, two))
    keys.account(keys.rules(settings().preset), found, "the published names")
    assert all(torch.equal(found[name], whole[name]) for name in whole)


def before_the_last(training: Path, folder: Path) -> Path:
    """In the folder: its metrics and checkpoints, the last of which does not count."""
    shutil.copytree(training, folder)
    (folder / "checkpoints/iter_000000006/complete").unlink()
    return folder


def test_another_layout_takes_the_last_checkpoint_alone(
    lost: Path, tokens: list[dict[str, str]], here: ranks.Here, tmp_path: Path
) -> None:
    shutil.copytree(lost / "training", tmp_path / "last")
    made = ar.train(settings(), tokens, tmp_path / "last", here, lambda: None)
    assert made["steps"] == 6 and curve(tmp_path / "last") == curve(lost / "training"), "there is nothing more to do"
    words = r"iter_000000004 was saved for tensor 2 x pipeline 1 x context 1 alone.*`reshard: true`"
    with pytest.raises(ValueError, match=words):
        ar.train(settings(), tokens, before_the_last(lost / "training", tmp_path / "other"), here, lambda: None)


def test_with_reshard_another_layout_takes_every_checkpoint(
    two: Path, tokens: list[dict[str, str]], here: ranks.Here, tmp_path: Path
) -> None:
    ar.train(settings(), tokens, before_the_last(two, tmp_path / "one"), here, lambda: None)
    times = [[line["time"] for line in lines(folder / "metrics.jsonl")] for folder in (tmp_path / "one", two)]
    assert [a == b for a, b in zip(*times, strict=True)] == [True] * 4 + [False] * 2, "from the fourth step on"
    for line, there in zip(curve(tmp_path / "one"), curve(two), strict=True):
        assert line == {name: pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in there.items()}


def test_prompts(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    generator = np.random.default_rng(1)
    for number in range(4):
        ids = generator.integers(0, 64_000, math.prod(SHAPE))
        embedding = generator.normal(size=(7, 1024)).astype(np.float16)
        video, prompt = video2world.names("train", number)
        (folder / video).write_bytes(video2world.video(ids))
        (folder / prompt).write_bytes(video2world.prompt(embedding))
    (folder / video2world.METADATA).write_bytes(video2world.metadata({"train": 4, "valid": 0, "test": 0}))
    given = settings(model="ar-tiny-video2world", steps=2, batch=2)
    for condition in (1, 2):
        there = dataset(msgspec.structs.replace(given, condition=condition), [str(folder)], "train")
        assert there[0].loss_mask.sum() == (SHAPE[0] - condition) * math.prod(SHAPE[1:])
    said = run(1, tmp_path / "out", given, [str(folder)])
    assert len(said) == 2 and all(10 < line["loss"] < 13 for line in said)
    found = keys.Published(tmp_path / "out/model/model.safetensors")
    keys.account(keys.rules(given.preset), found, "the published names")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model": "ar-5b"}, "Invalid enum value 'ar-5b' - at `$.model`"),
        (
            {"layout": {"tensor": 3}},
            "layout: tensor: 8 heads of keys / 3 = 2.66667: ranks must have equal parts; 2 or 4",
        ),
        ({"layout": {"pipeline": 3}}, "layout: pipeline: 16 layers / 3 = 5.33333"),
        ({"layout": {"context": 3}}, "layout: context: 12,800 tokens are cut into 2 x 3 pieces of 2133.33"),
        ({"condition": 5}, "condition: 5 of 5 latent frames leave nothing to learn"),
        ({"precision": "fp8"}, "precision"),
    ],
)
def test_what_cannot_be(values: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, msgspec.ValidationError), match=re.escape(words)):
        msgspec.convert({"model": "ar-4b", "steps": 1, "batch": 8} | values, TrainAr, dec_hook=check.unit)


@pytest.mark.parametrize(
    ("values", "ranks", "words"),
    [
        (
            {"layout": Layout(tensor=2, pipeline=2)},
            6,
            "tensor 2 x pipeline 2 x context 1 = 4; 6 ranks (nodes x workers)",
        ),
        ({}, 3, "batch: 8 sequences / (3 data-parallel ranks x 1 at a time) = 2.667: make it 6 or 9"),
        (
            {"gpu_memory": Bytes(80 << 30)},
            1,
            "GiB a GPU are needed, of 80: weights 7.5, gradients 15.0, optimizer 44.9",
        ),
        ({"gpu_memory": Bytes(70 << 30)}, 2, "GiB with `layout.tensor: 2`"),
    ],
)
def test_what_so_many_ranks_cannot_do(values: dict[str, Any], ranks: int, words: str) -> None:
    given = TrainAr(**{"model": "ar-4b", "steps": 1, "batch": 8} | values)
    with pytest.raises(ValueError, match=re.escape(words)):
        given.shared_by(ranks)


def test_every_preset_can_be_asked_for() -> None:
    assert set(get_args(Model)) == set(PRESETS)


def test_the_estimate_of_memory_follows_the_layout() -> None:
    given = TrainAr(model="ar-4b", steps=1, batch=8)
    one = memory(given, 1)
    assert one["weights"] == 2 * preset("ar-4b").parameters and one["optimizer"] == 12 * preset("ar-4b").parameters
    split = memory(msgspec.structs.replace(given, layout=Layout(tensor=2)), 4)
    assert split["weights"] == one["weights"] / 2 and split["optimizer"] == one["optimizer"] / 4
    assert split["activations"] == one["activations"] / 2 and split["logits"] == one["logits"] / 2
    full = memory(msgspec.structs.replace(given, recompute="full"), 1)
    assert full["activations"] < one["activations"] / 5


def test_it_begins_with_published_weights(tmp_path: Path, tokens: list[dict[str, str]]) -> None:
    """A step at the rate 0 leaves them as they are, to the last bit."""
    one = settings(steps=1, batch=1, checkpoints=Checkpoints(every=9), validation=HeldOut(clips=0))
    begun = keys.Initial(one.preset, lambda name: torch.Generator().manual_seed(len(name)))
    torch.save({"model": dict(begun)}, tmp_path / "model.pt")
    still = Optimizer(rate=1e-30, warmup=0, weight_decay=0.0)
    run(1, tmp_path / "out", settings(**{
        "steps": 1, "batch": 1, "start": str(tmp_path / "model.pt"), "optimizer": still,
        "validation": HeldOut(clips=0)}), tokens)  # fmt: skip
    found = keys.Published(tmp_path / "out/model/model.safetensors")
    assert all(torch.equal(found[name], begun[name]) for name in begun)


def test_from_films_to_a_model(tmp_path: Path) -> None:
    """prepare.tokens with a small tokenizer, and train.ar on what it makes, by one command."""
    for seed in range(6):
        film(tmp_path / f"films/{seed}.mp4", 9, seed=seed)
    tokens = {"kind": "prepare.tokens", "tokenizer": tokenizer(tmp_path), "frames": 9, "size": [32, 64],
              "precision": "float32", "hold_out": "clip", "resources": {"cpus": 1}}  # fmt: skip
    ar = {"kind": "train.ar", "needs": "tokens", "model": "ar-tiny", "shape": [2, 2, 4], "steps": 2, "batch": 2,
          "precision": "fp32", "readers": 0, "validation": {"clips": 1}, "resources": {"cpus": 1}}  # fmt: skip
    file = tmp_path / "t.yaml"
    file.write_text(yaml.safe_dump({"name": "t", "inputs": str(tmp_path / "films"), "output": "out",
                                    "stages": {"tokens": tokens, "ar": ar},
                                    "env": {"OMP_NUM_THREADS": "1"}}))  # fmt: skip
    runs.hpc("run", file, timeout=300)
    made = json.loads((tmp_path / "out/ar@v1/000000.json").read_text())
    assert made["clips"] == 4 and made["steps"] == 2 and 0 < made["previous_frame_nll"] < 12
    assert 9 < made["last"]["validation_nll"] < 13
    [tokens_of] = (tmp_path / "out").glob("tokens@v1/*.parquet")
    rows = layers.read_table(tokens_of).to_pylist()
    held = {row["uuid"] for row in rows if row["split"] != "train"}
    assert made["held_out"] == str(tmp_path / "out/ar@v1/held_out.json") and len(held) == 2
    for folder in ("out/ar@v1", "out/ar@v1/training"):
        told = json.loads((tmp_path / folder / "held_out.json").read_text())
        assert told == {"by": "split", "clips": sorted(held)}
    files = [{path.suffix: str(path) for path in (tmp_path / "out/tokens@v1").glob("000000.*")}]
    with pytest.raises(ValueError, match=r"clips of these tokens are \[2, 2, 4\].*write `shape: \[2, 2, 4\]`"):
        dataset(settings(shape=(2, 4, 4)), files, "train")


def test_a_page_of_figures_that_are_none(tmp_path: Path) -> None:
    """As metrics.jsonl has them, words in the place of numbers."""
    from hpc.train.ar_measure import as_page

    told = {"steps": 2, "tokens": 80, "clips": 4, "parameters": 10, "trained": 10, "skipped": 1, "model": "m",
            "gpu_hours": 0.0, "last": {"validation_nll": "nan"}, "previous_frame_nll": 2.0}  # fmt: skip
    shown = as_page(told, [{"step": 1, "validation_nll": 1.0}, {"step": 2, "validation_nll": "nan"}], tmp_path)
    assert "<td>NLL of held-out clips<td>nan" in shown and "validation_nll 1</text>" in shown
