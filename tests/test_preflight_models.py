"""`hpc check`: is what a spec begins with there, and what its presets mean? Of weights their tables alone are read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import msgspec
import pytest
import runs
import torch
import yaml
from safetensors.torch import save_file
from test_text_embed import save as save_t5

from hpc.batch import preflight_models
from hpc.batch.cluster import LOCAL
from hpc.batch.doctor import Row
from hpc.batch.spec import load
from hpc.models import dit_files, dit_presets, headers
from hpc.models.ar import keys, nemo
from hpc.models.ar.presets import preset
from hpc.models.dit import DiT
from hpc.models.tokenizers import cosmos, files
from hpc.train import convert_ar

pytestmark = pytest.mark.filterwarnings("ignore")  # megatron-core's, of what is not installed
WRITTEN = "PREFLIGHT_MODELS_RAN"


def ar_weights(name: str) -> dict[str, torch.Tensor]:
    return dict(keys.Initial(preset(name), lambda word: torch.Generator().manual_seed(len(word))))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("ar-tiny", "ar-tiny-video2world"):
        (folder / name).mkdir()
        torch.save(ar_weights(name), folder / name / "model.pt")
    files.save(cosmos.CosmosDiscrete(cosmos.Config(channels=8)), folder / "dv")
    files.save(cosmos.CosmosContinuous(cosmos.Config(channels=8, levels=(), latent_channels=16)), folder / "cv")
    save_t5(folder / "t5", d_model=1024)
    return folder


def rows(folder: Path, **stages: dict[str, Any]) -> dict[str, Row]:
    (folder / "in").mkdir(exist_ok=True)
    (folder / "in/a.jsonl").write_text('{"visual_input": "x"}')
    spec = folder / "t.yaml"
    spec.write_text(yaml.safe_dump({"name": "t", "inputs": "in", "output": "out", "stages": stages}))
    [found] = load(spec, ())
    return {row.what: row for row in preflight_models.examine(found, LOCAL)}


def videos(models: Path, **more: Any) -> dict[str, Any]:
    return {"kind": "generate.ar", "model": "ar-tiny-video2world", "weights": str(models / "ar-tiny-video2world"),
            "tokenizer": str(models / "dv"), "text_encoder": str(models / "t5"), **more}  # fmt: skip


def world(models: Path, **more: Any) -> dict[str, Any]:
    return {"kind": "generate.diffusion", "model": "tiny-predict2", "weights": str(models / "model.pt"),
            "tokenizer": str(models / "cv"), "text_encoder": "none", "guidance": 0, **more}  # fmt: skip


def test_what_is_there_is_told(tmp_path: Path, models: Path) -> None:
    found = rows(tmp_path, v=videos(models))
    assert {(what, row.verdict) for what, row in found.items()} == {
        ("v: weights", "ok"), ("v: tokenizer", "ok"), ("v: text_encoder", "ok")}  # fmt: skip
    assert "4 layers of 64 channels, told by texts of 1,024" in found["v: weights"].found


@pytest.mark.parametrize(("more", "what", "words", "do"), [
    ({"weights": "{m}/ar-tiny-vidoe2world"}, "weights", "did you mean {m}/ar-tiny-video2world?; {m} has ar-tiny-", ""),
    ({"weights": "{m}"}, "weights", "neither model.safetensors nor model.pt nor weights/ is in it; {m} has", ""),
    ({"weights": "{m}/t5"}, "weights", "these are not the weights of an autoregressive model: decoder.block", "give"),
    ({"weights": "{m}/ar-tiny"}, "weights", "4 layers of 64 channels, 8,", "write `model: ar-tiny`, or give"),
    ({"model": "ar-4b"}, "weights", "ar-4b has 16 layers of 4,096 channels, 4.01B", "`model: ar-tiny-video2world`"),
    ({"tokenizer": "{m}/cv"}, "tokenizer", "a cosmos-cv, which makes latents; ids are wanted", "another tokenizer"),
    ({"tokenizer": "{m}/ar-tiny"}, "tokenizer", "there is no tokenizer on this machine", ""),
    ({"tokenizer": "/nowhere/at/all"}, "tokenizer", "there is no /nowhere/at/all; / has ", "mend the path"),
    ({"text_encoder": "{m}/dv"}, "text_encoder", "a model of the type 'None'; t5 or mt5 or umt5", "another text"),
    ({"text_encoder": "{m}/ar-tiny"}, "text_encoder", "there is no {m}/ar-tiny/config.json", ""),
])  # fmt: skip
def test_another_model_is_told(
    more: dict[str, str], what: str, words: str, do: str, tmp_path: Path, models: Path
) -> None:
    given = {key: value.format(m=models) for key, value in more.items()}
    row = rows(tmp_path, v=videos(models, **given))[f"v: {what}"]
    assert row.verdict == "bad" and words.format(m=models) in row.found and do in row.next, row


def test_trainings_begin_with_something_too(tmp_path: Path, models: Path) -> None:
    """A start of any form; what another stage makes is not looked for."""
    source = ar_weights("ar-tiny")
    with convert_ar.alone():
        nemo.save(tmp_path / "nemo", preset("ar-tiny"), source)
    save_file(source, tmp_path / "model.safetensors")
    ids = {"kind": "stages:Ids", "shape": [5, 8, 8]}
    base = {"kind": "train.ar", "needs": "ids", "model": "ar-tiny", "steps": 1, "batch": 1}
    for start, verdict in ((tmp_path / "nemo", "ok"), (tmp_path / "model.safetensors", "ok"),
                           (models / "ar-tiny-video2world", "bad")):  # fmt: skip
        (tmp_path / "in/x.txt").parent.mkdir(exist_ok=True)
        (tmp_path / "in/x.txt").write_text("x")
        found = rows(tmp_path, ids=ids, ar=base | {"start": str(start)})
        assert found["ar: start"].verdict == verdict, found
    assert "write `model: ar-tiny-video2world`" in found["ar: start"].next
    assert not rows(tmp_path, ids=ids, ar=base), "nothing is named"
    (tmp_path / "nemo/weights/.metadata").write_bytes(b"\x80\x04N.")
    row = rows(tmp_path, ids=ids, ar=base | {"start": str(tmp_path / "nemo")})["ar: start"]
    assert row.verdict == "bad" and "none of a distributed checkpoint" in row.found


@pytest.mark.parametrize("form", ["predict1", "predict2", "diffusers", "ours"])
def test_diffusion_models_of_all_names(form: Any, tmp_path: Path, models: Path) -> None:
    name = "tiny-predict1" if form == "predict1" else "tiny-predict2"
    config = dit_presets.preset(name).config
    state = DiT(config).state_dict()
    torch.save(dit_files.exported(state, form, None if form in ("diffusers", "ours") else "net"), tmp_path / "model.pt")
    given = world(models, model=name, weights=str(tmp_path / "model.pt"))
    assert rows(tmp_path, w=given)["w: weights"].found.endswith("2 blocks of 48 channels")
    row = rows(tmp_path, w=given | {"model": "predict2-14b-video2world", "text_encoder": "none"})["w: weights"]
    assert row.verdict == "bad" and "predict2-14b-video2world has 36 blocks of 5,120 channels, 14" in row.found
    assert f"as {name}" in row.found and row.next.startswith(f"write `model: {name}`")


def test_of_two_kinds_of_weights_the_one_that_is_asked_for(tmp_path: Path, models: Path) -> None:
    state = DiT(dit_presets.preset("tiny-predict2").config).state_dict()
    torch.save(dit_files.exported(state, "predict2", "net_ema"), tmp_path / "model.pt")
    row = rows(tmp_path, w=world(tmp_path))["w: weights"]
    assert "it has no net. weights, only net_ema" in row.found and row.next == "`average: true`"
    assert rows(tmp_path, w=world(tmp_path, average=True))["w: weights"].verdict == "ok"
    adapters = {"net.blocks.0.self_attn.q_proj.lora_A.default.weight": torch.zeros(4, 48)}
    torch.save(adapters, tmp_path / "model.pt")
    row = rows(tmp_path, w=world(tmp_path))["w: weights"]
    assert "it has adapters alone" in row.found and "hpc convert" in row.next
    torch.save(torch.load(models / "ar-tiny/model.pt"), tmp_path / "model.pt")
    row = rows(tmp_path, w=world(tmp_path))["w: weights"]
    assert "these are not the weights of a diffusion transformer, but those of an autoregressive model" in row.found
    row = rows(tmp_path, w=world(tmp_path, tokenizer=str(models / "dv")))["w: tokenizer"]
    assert "a cosmos-dv, which makes ids; latents are wanted" in row.found
    files.save(cosmos.CosmosContinuous(cosmos.Config(channels=8, levels=(), latent_channels=4)), tmp_path / "cv4")
    row = rows(tmp_path, w=world(tmp_path, tokenizer=str(tmp_path / "cv4")))["w: tokenizer"]
    assert "a cosmos-cv of 4 channels; the model takes 16" in row.found


# Tables


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path(WRITTEN),)


def test_nothing_that_a_file_names_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": torch.zeros(2, 3), "b": Bomb()}, "x.pt")
    assert headers.shapes(Path("x.pt")) == {"a": (2, 3)}
    Path("w").mkdir()
    Path("w/.metadata").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match="none of a distributed checkpoint"):
        headers.stored(Path("w"))
    assert not Path(WRITTEN).exists()


def test_tables_are_what_torch_reads(tmp_path: Path) -> None:
    state = {"a": torch.zeros(2, 3), "s": torch.tensor(1.0), "p": torch.nn.Parameter(torch.zeros(4)[1:])}
    torch.save({"model": state, "step": 3}, tmp_path / "x.pt")
    assert headers.shapes(tmp_path / "x.pt") == {"a": (2, 3), "s": (), "p": (3,)}
    save_file({name: one.detach().clone() for name, one in state.items()}, tmp_path / "x.safetensors")
    assert headers.shapes(tmp_path / "x.safetensors") == {"a": (2, 3), "s": (), "p": (3,)}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(("name", "spoil", "words"), [
    ("x.pt", lambda path: path.write_bytes(b""), "it is empty"),
    ("x.pt", lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "a pointer of Git LFS"),
    ("x.pt", lambda path: path.write_text("<!DOCTYPE html>\n<p>"), "it is text, '<!DOCTYPE html>': an answer of a ser"),
    ("x.pt", cut, "it is cut short, or no file of weights"),
    ("x.safetensors", cut, "it is cut short"),
    ("x.safetensors", lambda path: path.write_bytes(b"\x08" + bytes(7) + b"{'a': 1}"), "its header cannot be read"),
    ("x.pt", lambda path: torch.save({"a": 1, "b": 2}, path), "it has no named tensors; it holds a, b"),
    ("x.pt", lambda path: torch.save(state(), path, _use_new_zipfile_serialization=False), "torch before 1.6"),
    ("x.pt", lambda path: torch.jit.script(torch.nn.Linear(2, 2)).save(path), "it has no named tensors"),
])  # fmt: skip
def test_files_that_are_none(name: str, spoil: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / name
    save_file(state(), path) if path.suffix == ".safetensors" else torch.save(state(), path)
    spoil(path)
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        headers.shapes(path)


def state() -> dict[str, torch.Tensor]:
    return {"a": torch.zeros(64, 64)}


def test_the_command(tmp_path: Path, models: Path) -> None:
    rows(tmp_path, v=videos(models, weights="/nowhere/model.pt"))
    said = runs.hpc("check", tmp_path / "t.yaml", code=1).stdout
    assert "BAD     v: weights" in said and "there is no /nowhere/model.pt; / has " in said
    facts = json.loads(runs.hpc("check", tmp_path / "t.yaml", "--json", code=1).stdout)
    assert {row["verdict"] for row in facts[0]["rows"] if row["what"].startswith("v: t")} == {"ok"}
    [one] = load(tmp_path / "t.yaml", ())
    assert "/nowhere/model.pt" not in one.stages["v"].settings.models(), "nothing to fetch"
    assert msgspec.structs.replace(one.stages["v"].settings, weights="a/b").models()["a/b"] == ("model.pt",)
