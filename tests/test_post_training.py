"""Post-training of autoregressive models: adapters alone move, are saved and are added; actions and instructions are
what the next frames depend on."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import runs
import torch
import torch.distributed as dist
from ar_runs import run, settings, tokens
from trainings import timeless

from hpc.batch import check
from hpc.data import tensors
from hpc.data.tokens import action, video2world
from hpc.models import lora
from hpc.models.ar import cpu, keys
from hpc.models.ar.generate import Decoder, Generator, Prompt
from hpc.models.ar.presets import Preset, preset
from hpc.train import convert_ar, token_data
from hpc.train.checkpoint import Checkpoints, complete
from hpc.train.convert import convert
from hpc.train.estimate_ar import memory
from hpc.train.settings import TrainAr
from hpc.train.settings.ar import HeldOut, Layout, Lora
from hpc.train.settings.optimizer import Optimizer

__all__ = ["tokens"]  # the fixture
pytestmark = pytest.mark.filterwarnings("ignore")
SMALL = {"classes": 512, "layers": 2}
ACTION = msgspec.structs.replace(preset("ar-tiny-action"), shape=(2, 4, 4), **SMALL)
WORLD = msgspec.structs.replace(preset("ar-tiny-video2world"), shape=(2, 4, 4), **SMALL)
CHANCE = math.log(2) / 16
"""Cross entropy of a frame of 16 ids, of which the first one may be of two, and the others are like it."""


# Adapters


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to begin with."""
    path = tmp_path_factory.mktemp("base") / "model.pt"
    torch.save(dict(keys.Initial(settings().preset, lambda name: torch.Generator().manual_seed(len(name)))), path)
    return path


def adapted(base: Path, **more: Any) -> TrainAr:
    rate = Optimizer(rate=0.1, warmup=0, weight_decay=0.0)
    return settings(**{"start": str(base), "lora": Lora(rank=2, alpha=6.0), "steps": 4, "optimizer": rate, **more})


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokens: list[dict[str, str]], base: Path) -> Path:
    """By two tensor-parallel ranks."""
    folder = tmp_path_factory.mktemp("lora")
    said = run(2, folder, adapted(base, layout=Layout(tensor=2)), tokens)
    assert len(said) == 4 and said[-1]["loss"] < said[0]["loss"] - 0.02, said
    return folder


def test_adapters_alone_are_trained_and_added(trained: Path, base: Path) -> None:
    shape_of = settings().preset
    before, after = keys.Published(base), keys.Published(trained / "model/model.safetensors")
    keys.account(keys.rules(shape_of), after, "the published names")
    small = keys.Published(trained / "model/adapters.safetensors")
    keys.account(keys.trained(shape_of, 2), small, "adapters")
    assert lora.adapters(dict(small)).keys() == set(small) and len(small) == 4 * 7 * 2
    for name in before:
        a, b = (small.get(name.replace(".weight", f".lora_{x}.default.weight")) for x in "AB")
        if a is None or b is None:
            assert torch.equal(before[name], after[name]), name
        else:
            assert b.abs().max() > 0.01
            torch.testing.assert_close(after[name], before[name] + 3 * b @ a, msg=name)
    config = json.loads((trained / "model/config.json").read_text())
    assert config["lora"] == {"rank": 2, "alpha": 6.0} and config["preset"] == "ar-tiny"


def test_a_model_with_its_adapters_added_is_the_model_that_was_trained(
    trained: Path, tmp_path: Path, tokens: list[dict[str, str]]
) -> None:
    still = Optimizer(rate=1e-30, warmup=0, weight_decay=0.0)
    start = str(trained / "model/model.safetensors")
    [line] = run(1, tmp_path, settings(steps=1, start=start, optimizer=still), tokens)
    last = json.loads((trained / "made.json").read_text())["last"]
    assert line["validation_nll"] == pytest.approx(last["validation_nll"], abs=1e-5)


def test_checkpoints_have_adapters_alone_and_are_converted_with_the_rest(
    trained: Path, base: Path, tmp_path: Path
) -> None:
    newest = convert_ar.found(trained)
    size = sum(path.stat().st_size for path in newest.iterdir())
    assert size < base.stat().st_size / 10, "the weights that do not move are not in it"
    said = runs.facts("convert", trained, tmp_path / "model.pt", cwd=tmp_path)
    assert said["tensors"] == 3 + 4 * 11
    for file in ("model.safetensors", "adapters.safetensors"):
        convert(str(newest), str(tmp_path / file))
        ours, theirs = keys.Published(tmp_path / file), keys.Published(trained / "model" / file)
        assert set(ours) == set(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours), file
    there = keys.Published(tmp_path / "model.pt")
    assert all(torch.equal(ours, there[name]) for name, ours in keys.Published(tmp_path / "model.safetensors").items())
    with pytest.raises(ValueError, match=r"adapters\.safetensors: this model was trained without `lora`"):
        (tmp_path / "to").mkdir()
        convert(str(tmp_path / "model.pt"), str(tmp_path / "to/adapters.safetensors"), "ar-tiny", (3, 4, 4))
    base.rename(base.with_suffix(".away"))
    with pytest.raises(FileNotFoundError, match=r"there is no .*model\.pt on this machine"):
        convert(str(trained), str(tmp_path / "again.pt"))
    base.with_suffix(".away").rename(base)


def test_adapters_go_on_to_the_last_bit(tmp_path: Path, tokens: list[dict[str, str]], base: Path) -> None:
    given = adapted(base, precision="bf16", checkpoints=Checkpoints(every=1), validation=HeldOut(clips=0))
    whole = run(1, tmp_path / "whole", given, tokens)
    run(1, tmp_path / "killed", given, tokens, kill_at=3)
    assert complete(tmp_path / "killed/checkpoints")[-1] in (1, 2)
    assert timeless(run(1, tmp_path / "killed", given, tokens)) == timeless(whole) and len(whole) == 4
    ours, theirs = (keys.Published(tmp_path / one / "model/adapters.safetensors") for one in ("whole", "killed"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# Actions and instructions


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    from megatron.core import parallel_state

    with cpu.stand_in():
        dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
        yield
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def bridge(folder: Path, pairs: Sequence[tuple[int, int]], told: Sequence[int], split: str = "train") -> str:
    """Trajectories of two frames, each of one id; what was done is 1 or -1 in one of seven numbers."""
    place = folder / split
    place.mkdir(parents=True)
    height, width = ACTION.shape[1:]
    ids = np.array(pairs, np.int32).reshape(-1, 1, 1, 1) * np.ones((1, 1, height, width), np.int32)
    done = np.full((len(ids), 7), np.nan, np.float32)
    done[::2] = np.random.default_rng(1).normal(size=(len(told), 7)) * 0.1
    done[::2, 2] = told
    tensors.write(place / action.FRAMES, [ids], "int32", (1, height, width))
    tensors.write(place / action.ACTIONS, [done], "float32", (7,))
    return str(place)


def learned(shape_of: Preset, data: Any, held: Any, **more: Any) -> tuple[float, Any]:
    """(cross entropy of all held-out clips, the weights)."""
    from hpc.train import ar
    from hpc.train.ar_engine import Compute, Engine

    size = more["lora"].rank if "lora" in more else 0
    weights = keys.Initial(shape_of, lambda name: torch.Generator().manual_seed(len(name)), size)
    engine = Engine(shape_of, Layout(), Compute(precision="fp32"), Optimizer(weight_decay=0.0), weights, **more)
    batches = token_data.Batches(data, 8, seed=1)
    for step in range(16):
        engine.step(ar.microbatches(batches.at(step), 8), 1e-2)
    whole = token_data.Batches(held, len(held), seed=1).at(0)
    return engine.run(ar.microbatches(whole, 8), backward=False)[0], dict(engine.published())


def test_the_next_frame_is_what_was_done(tmp_path: Path, alone: None) -> None:
    """Of the same first frames there are two next ones, by the action; where actions are of other pairs nothing tells
    which."""
    random = np.random.default_rng(2)
    first, told = random.integers(20, 24, 48), np.array([-1, 1] * 24)
    pairs = [(a, 7 if b > 0 else 9) for a, b in zip(first, told, strict=True)]
    held = token_data.Action(bridge(tmp_path, pairs[:16], told[:16], "test"))
    right, weights = learned(ACTION, token_data.Action(bridge(tmp_path, pairs[16:], told[16:])), held)
    other = bridge(tmp_path / "x", pairs[16:], random.permutation(told[16:]))
    wrong, _ = learned(ACTION, token_data.Action(other), held)
    assert right < 0.5 * CHANCE and wrong > 0.9 * CHANCE, (right, wrong)
    model = Decoder(ACTION, weights, "cpu", torch.float32)
    frame = torch.full((16,), 21)
    made = Generator(model, 3)([Prompt(frame, action_A=torch.eye(7)[2] * one) for one in (1, -1, 1)])
    assert made[:, 16:].tolist() == [[7] * 16, [9] * 16, [7] * 16] and bool((made[:, :16] == 21).all())


def test_the_video_is_what_was_said(tmp_path: Path, alone: None) -> None:
    """The same of instructions, of which there are embeddings."""
    random = np.random.default_rng(3)
    words = random.normal(size=(2, 5, 1024)).astype(np.float16)
    told = np.array([0, 1] * 16)
    data = {}
    for name, said in (("held", told[:16]), ("right", told), ("wrong", random.permutation(told))):
        folder = tmp_path / name
        folder.mkdir()
        for number, (which, what) in enumerate(zip(told, said, strict=False)):
            ids = np.full(WORLD.shape, [7, 9][which])
            ids[0] = random.integers(20, 24)
            video, prompt = video2world.names("train", number)
            (folder / video).write_bytes(video2world.video(ids))
            (folder / prompt).write_bytes(video2world.prompt(words[what]))
        counts = {"train": len(said), "valid": 0, "test": 0}
        (folder / video2world.METADATA).write_bytes(video2world.metadata(counts))
        data[name] = token_data.Video2World(str(folder), "train", WORLD.shape, given=1)
    right, weights = learned(WORLD, data["right"], data["held"])
    wrong, _ = learned(WORLD, data["wrong"], data["held"])
    assert right < 0.5 * CHANCE and wrong > 0.9 * CHANCE, (right, wrong)
    model = Decoder(WORLD, weights, "cpu", torch.float32)
    contexts = [torch.from_numpy(video2world.embedding(one)).float() for one in words]
    made = Generator(model, 2)([Prompt(torch.full((16,), 21), context_CD=one) for one in contexts])
    assert made[0, 16:].unique().tolist() == [7] and made[1, 16:].unique().tolist() == [9]


def test_train_ar_on_actions(tmp_path: Path) -> None:
    """From the weights of a video2world model, which have no MLP; over two ranks; held-out pairs are measured."""
    shape = (2, 4, 4)
    random = np.random.default_rng(2)
    for split, count in (("train", 6), ("test", 2)):
        bridge(tmp_path / "data", random.integers(0, 64_000, (count, 2)), random.choice([-1, 1], count), split)
    world = msgspec.structs.replace(preset("ar-tiny-video2world"), shape=shape)
    torch.save(dict(keys.Initial(world, lambda name: torch.Generator().manual_seed(len(name)))), tmp_path / "world.pt")
    given = settings(model="ar-tiny-action", shape=shape, steps=2, batch=2, layout=Layout(tensor=2),
                     start=str(tmp_path / "world.pt"), lora=Lora(rank=2))  # fmt: skip
    said = run(2, tmp_path / "out", given, [str(tmp_path / "data")])
    assert len(said) == 2 and 10 < said[-1]["validation_nll"] < 13
    found = keys.Published(tmp_path / "out/model/model.safetensors")
    keys.account(keys.rules(given.preset), found, "the published names, and an MLP's")
    assert "model.action_mlp.2.bias" in keys.Published(tmp_path / "out/model/adapters.safetensors")
    convert(str(tmp_path / "out"), str(tmp_path / "nemo"))
    convert(str(tmp_path / "nemo"), str(tmp_path / "b.pt"), "ar-tiny-action", shape)
    again = keys.Published(tmp_path / "b.pt")
    assert all(torch.equal(again[name], found[name]) for name in found)
    # and on, from these
    more = msgspec.structs.replace(given, start=str(tmp_path / "nemo"), lora=None, layout=Layout(), steps=1)
    assert len(run(1, tmp_path / "more", more, [str(tmp_path / "data")])) == 1


def test_adapters_need_little_memory_and_work() -> None:
    whole = TrainAr(model="ar-5b-video2world", steps=1, batch=8)
    some = msgspec.structs.replace(whole, start="/x", lora=Lora(rank=16))
    shapes = [shape for rule in keys.adapters(whole.preset, 16).values() for shape in rule.shapes]
    assert some.moving == sum(math.prod(shape) for shape in shapes) < whole.moving / 100
    before, after = memory(whole, 1), memory(some, 1)
    assert after["gradients"] == 4 * some.moving and after["optimizer"] == 12 * some.moving
    assert after["weights"] == before["weights"] + 2 * some.moving and after["activations"] == before["activations"]
    assert 0.6 < some.flops / whole.flops < 0.75, "no gradients of weights, which are a third, but of attention"


def test_which_data_set_a_model_is_trained_on(tmp_path: Path) -> None:
    """Each takes one of three; instructions have the form of video2world."""
    from hpc.train import ar

    ids = {suffix: f"/x/000000{suffix}" for suffix in (".bin", ".idx", ".parquet")}
    sets = {"ar-tiny": {"ids": [("000000", ids)]}}
    rows: dict[str, list[Any]] = {"ar-tiny": [ids]}
    for model, mark in (("ar-tiny-video2world", video2world.METADATA), ("ar-tiny-action", f"train/{action.FRAMES}")):
        (tmp_path / model / mark).parent.mkdir(parents=True)
        (tmp_path / model / mark).touch()
        table = str(tmp_path / model / "000000.parquet")
        sets[model] = {"tokens": [("000000", {".parquet": table})]}
        rows[model] = [str(tmp_path / model), table]
    for model in sets:
        given = settings(model=model, shape=(2, 4, 4))
        for other, stage in sets.items():
            if other == model:
                assert list(ar.freeze(given, stage, set())) == [rows[model]]
            else:
                with pytest.raises(ValueError, match=f"{model} is trained on tokens of the form"):
                    list(ar.freeze(given, stage, set()))


def test_adapters_are_converted_where_there_are_some(tmp_path: Path, base: Path) -> None:
    train = {"kind": "train.ar", "needs": "ids", "model": "ar-tiny", "shape": [3, 4, 4], "steps": 1, "batch": 1}
    convert = {"kind": "convert.ar", "needs": "ar", "forms": ["model.pt", "adapters.safetensors"]}
    lora = {"lora": {"rank": 4}, "start": str(base)}
    for more, code, words in (({}, 2, "forms: ar trains all weights, and no adapters"), (lora, 0, "")):
        stages = {"ids": {"kind": "stages:Ids"}, "ar": train | more, "convert": convert}
        said = runs.hpc("check", runs.spec(tmp_path, runs.numbered(1), stages), code=code)
        assert words in said.stderr


# What cannot be


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"lora": {}}, "lora: adapters to random weights teach nothing: say what training begins with, `start`"),
        ({"model": "ar-5b-action", "layout": {"pipeline": 2}}, "layout: pipeline: 2 stages: all layers attend to what"),
        ({"model": "ar-5b-action", "condition": 0}, "ar-5b-action makes of a frame the next one: `shape: [2, rows"),
        ({"model": "ar-5b-action", "shape": [5, 40, 64]}, "`shape: [2, rows, columns]` and `condition: 1`"),
        ({"lora": {"rank": 0}, "start": "/x"}, "Expected `int` >= 1"),
    ],
)
def test_what_cannot_be(values: dict[str, Any], words: str) -> None:
    with pytest.raises((ValueError, msgspec.ValidationError), match=re.escape(words)):
        msgspec.convert({"steps": 1, "batch": 8} | values, TrainAr, dec_hook=check.unit)
