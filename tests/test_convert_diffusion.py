"""Weights of diffusion models from one form into another: of any number of ranks, to the last bit, every name accounted
for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
import runs
import torch
import yaml
from diffusion_runs import SHAPE, here, settings, spread, tar
from test_generate import rows_of, work
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from hpc.batch.kinds import settings_of
from hpc.data import layers
from hpc.generate import diffusion as generate
from hpc.models import dit_files
from hpc.models.tokenizers import files, wan
from hpc.train import convert_diffusion, diffusion, ranks
from hpc.train.checkpoint import Checkpoints, complete
from hpc.train.convert import convert
from hpc.train.samples import listed
from hpc.train.settings import ConvertDiffusion
from hpc.train.settings.data import Validation
from hpc.train.settings.diffusion import AdamW, Lora
from hpc.train.settings.optimizer import Mean

__all__ = ["here", "tar"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
FEW: dict[str, Any] = {"steps": 3, "checkpoints": Checkpoints(every=2), "validation": Validation(share=0)}


@pytest.fixture(scope="module")
def trained(tar: Path, here: ranks.Here, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three steps each: of two ranks, and of one a model of Predict1, and adapters."""
    folder = tmp_path_factory.mktemp("trained")
    layouts = {"predict2": FEW, "weights": FEW | {"ema": (Mean(rate=0.9),)}}
    spread(layouts, tar, folder)
    adapters = {"weights": str(folder / "weights/model/model.pt"), "lora": Lora(rank=2, alpha=6.0),
                "optimizer": AdamW(rate=1e-2, warmup=0)}  # fmt: skip
    for name, more in (("predict1", {"model": "tiny-predict1"}), ("adapters", adapters)):
        diffusion.train(settings(**FEW, **more), listed([str(tar)]), folder / name, here, lambda: None,
                        weights=folder / name / "model")  # fmt: skip
    return {path.name: path for path in folder.iterdir()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert value.dtype == other[name].dtype and torch.equal(value, other[name]), name


def same(one: Path, other: Path) -> None:
    equal(dit_files.read(one), dit_files.read(other))


@pytest.mark.parametrize("name", ["predict2", "predict1", "adapters"])
def test_a_checkpoint_gives_what_the_training_left(trained: dict[str, Path], tmp_path: Path, name: str) -> None:
    """All of its files, to the last bit, and no other."""
    left = trained[name] / "model"
    made = convert(str(trained[name]), str(tmp_path / "model"))
    names = {str(path.relative_to(left)) for path in left.rglob("*") if path.is_file()}
    assert {str(Path(path).relative_to(tmp_path / "model")) for path in made["files"]} == names
    assert names >= ({"iter_000000003_reg_model.pt", "iter_000000003_ema_model.pt"} if name == "predict1" else {
        "model.pt", "model_ema_fp32.pt", "model_ema_bf16.pt", "ema_2/model.safetensors"})  # fmt: skip
    assert ("adapters.safetensors" in names) == (name == "adapters")
    for path in names:
        if path.endswith(".json"):
            assert (left / path).read_bytes() == (tmp_path / "model" / path).read_bytes()
        else:
            same(left / path, tmp_path / "model" / path)
    assert made["step"] == 3 and made["model"].startswith("tiny-predict")


def test_any_checkpoint_into_any_file(trained: dict[str, Path], tmp_path: Path) -> None:
    source = trained["predict2"]
    assert complete(source / "checkpoints") == [2, 3]
    said = runs.facts("convert", source / "checkpoints/iter_000000002", tmp_path / "two_ema_bf16.pt", cwd=tmp_path)
    assert said["step"] == 2 and said["model"] == "tiny-predict2"
    both = tmp_path / "two.safetensors"
    convert(str(source / "checkpoints/iter_000000002"), str(both))
    average = {name.replace("net_ema.", "net."): value for name, value in dit_files.read(both).items()
               if name.startswith("net_ema.")}  # fmt: skip
    small = dit_files.read(tmp_path / "two_ema_bf16.pt")
    equal(small, {name: one.bfloat16() if one.is_floating_point() else one for name, one in average.items()})
    assert {one.dtype for one in small.values()} == {torch.bfloat16, torch.int64}
    first = dit_files.read(both)["net.blocks.0.mlp.layer1.weight"]
    assert not torch.equal(first, dit_files.read(source / "model/model.pt")["net.blocks.0.mlp.layer1.weight"])
    convert(str(trained["predict1"]), str(tmp_path / "x_reg_model.pt"))
    same(tmp_path / "x_reg_model.pt", trained["predict1"] / "model/iter_000000003_reg_model.pt")


def test_there_and_back_again(trained: dict[str, Path], tmp_path: Path) -> None:
    """A checkpoint -> model.pt -> a checkpoint -> model.pt: all equal, and what the published trainers' own converter
    makes of ours is model.pt."""
    source = trained["weights"]
    convert(str(source), str(tmp_path / "model.pt"))
    convert(str(tmp_path / "model.pt"), str(tmp_path / "iter_000000003"), "tiny-predict2")
    checkpoint = source / "checkpoints/iter_000000003/model"
    equal(convert_diffusion.whole(tmp_path / "iter_000000003/model"), convert_diffusion.whole(checkpoint))
    convert(str(tmp_path / "iter_000000003"), str(tmp_path / "again.pt"), "tiny-predict2")
    same(tmp_path / "again.pt", tmp_path / "model.pt")
    dcp_to_torch_save(checkpoint, tmp_path / "theirs.pt")
    same(tmp_path / "theirs.pt", tmp_path / "model.pt")
    same(source / "model/model.pt", tmp_path / "model.pt")
    convert(str(source / "model/ours"), str(tmp_path / "ours.pt"))
    ours = {name: one for name, one in dit_files.read(tmp_path / "ours.pt").items() if "accum_iteration" not in name}
    both = dit_files.read(source / "model/model_ema_fp32.pt")
    equal(ours, {name: one for name, one in both.items() if "accum_iteration" not in name})
    assert not list(tmp_path.glob(".*")), "nothing half done is left"


def test_a_checkpoint_that_training_removes_meanwhile(
    trained: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained["predict2"] / "checkpoints", tmp_path / "checkpoints")
    read, tried = convert_diffusion.whole, []

    def removed(folder: Path) -> dict[str, Tensor]:
        tried.append(folder.parent.name)
        if len(tried) == 1:
            shutil.rmtree(folder.parent)
        return read(folder)

    monkeypatch.setattr(convert_diffusion, "whole", removed)
    assert convert(str(tmp_path), str(tmp_path / "a.pt"))["step"] == 2
    assert tried == ["iter_000000003", "iter_000000002"]
    tried.clear()
    with pytest.raises(FileNotFoundError, match="iter_000000002/model was removed while it was read"):
        convert(str(tmp_path / "checkpoints/iter_000000002"), str(tmp_path / "b.pt"))


def test_what_cannot_be_converted(trained: dict[str, Path], tmp_path: Path) -> None:
    model = trained["predict2"] / "model/model.pt"
    (tmp_path / "there.pt").touch()
    torn = tmp_path / "torn/iter_000000009"
    torn.mkdir(parents=True)
    shutil.copy(trained["predict2"] / "checkpoints/iter_000000003/training.json", torn)
    one = dit_files.read(model)
    alone = {name: value for name, value in one.items() if name.startswith("net.")}
    for name, state in {"alone": alone, "more": one | {"net.x": torch.zeros(1)}, "less": dict(list(alone.items())[:-9]),
                        "other": one | {"net.final_layer.linear.weight": torch.zeros(3)}}.items():  # fmt: skip
        torch.save(state, tmp_path / f"{name}.pt")
    foreign = tmp_path / "foreign"
    shutil.copytree(trained["predict2"] / "checkpoints/iter_000000003", foreign)
    facts = json.loads((foreign / "training.json").read_text())
    facts["identity"]["ema"] = facts["identity"]["ema"][:1]
    (foreign / "training.json").write_text(json.dumps(facts))
    cases: list[tuple[Path, str, dict[str, Any], str]] = [
        (model, "there.pt", {}, "there.pt is there already"),
        (tmp_path / "none", "a.pt", {}, "there is no"),
        (model, "a.pt", {}, "does not say which model it is: say `--model` and one of ar-4b"),
        (trained["predict2"], "a.pt", {"model": "predict2.5-2b"}, "is of tiny-predict2, not of predict2.5-2b"),
        (model, "a.pt", {"model": "predict2.5-2b"}, "these are not the weights of this transformer of 28 blocks"),
        (model, "a.bin", {"model": "tiny-predict2"}, "a.bin: known are names that end in .pt"),
        (torn.parent, "a.pt", {}, "there is no complete checkpoint"),
        (torn, "a.pt", {}, "is no complete checkpoint: the job died while it was written"),
        (tmp_path / "alone.pt", "a_ema_fp32.pt", {"model": "tiny-predict2"}, "there is no average of weights here"),
        (tmp_path / "more.pt", "a.pt", {"model": "tiny-predict2"}, "left over: net.x"),
        (tmp_path / "less.pt", "a.pt", {"model": "tiny-predict2"}, "missing (as they are called here): "),
        (tmp_path / "other.pt", "a.pt", {"model": "tiny-predict2"}, "net.final_layer.linear.weight [3] for"),
        (foreign, "a.pt", {}, "model: left over: net_ema_2.blocks.0"),
    ]
    for source, to, more, words in cases:
        with pytest.raises((ValueError, OSError, RuntimeError), match=re.escape(words)):
            convert(str(source), str(tmp_path / to), **more)
    assert not (tmp_path / "a.pt").exists()
    said = runs.hpc("convert", model, tmp_path / "a.pt", "--model", "predict2.5-2b", cwd=tmp_path, code=2)
    assert "these are not the weights of this transformer" in said.stderr and "Traceback" not in said.stderr


def test_a_stage_converts_what_another_trains(trained: dict[str, Path], tmp_path: Path) -> None:
    told = {"settings": {"folder": None}, "model": str(trained["predict2"] / "model"), "fingerprint": "f"}
    (trained["predict2"] / "training").symlink_to(trained["predict2"])  # as it lies beside the model
    (tmp_path / "000000.json").write_text(json.dumps(told))
    upstream = {"world": [("000000", {".json": str(tmp_path / "000000.json")})]}
    (rows,) = convert_diffusion.freeze(ConvertDiffusion(), upstream, set())
    made = convert_diffusion.process(ConvertDiffusion(step=2),
                                     msgspec.structs.replace(work(tmp_path, rows=rows), folder="/out"))  # fmt: skip
    there = {uri.removeprefix("/out/") for uri in made.tree}
    assert {"model/model.pt", "model/model_ema_bf16.pt", "model/ours/config.json", "model/ema_2/config.json"} <= there
    said = json.loads(made.objects[0].read_text())
    assert said["step"] == 2 and said["model"] == "/out/model" and made.counts["tensors"] == 47
    assert said["settings"]["model"] == "tiny-predict2" and said["settings"]["text"]["source"] == "pickles"
    dit_files.load(tmp_path / "model/ours")
    spec = {"clips": {"kind": "stages:Tar"}, "x": {"kind": "convert.diffusion", "needs": "clips"}}
    said = runs.hpc("check", runs.spec(tmp_path, runs.numbered(1), spec), code=2).stderr
    assert "convert.diffusion converts what one stage train.diffusion has trained; it needs stages:Tar" in said


def test_videos_by_what_was_converted_are_those_of_the_training(tar: Path, tmp_path: Path) -> None:
    """By the real worker. Also where the objective was otherwise than published, which no file of weights says."""
    files.save(wan.WanVAE(wan.Config(channels=8)), tmp_path / "vae")
    (tmp_path / "p.jsonl").write_text('{"name": "a", "prompt": "A."}\n')
    world = {"kind": "train.diffusion", "needs": "data", "model": "tiny-predict2", "shapes": [SHAPE | {"batch": 4}],
             "steps": 2, "readers": 0, "text": {"source": "none"}, "objective": {"latent_scale": 0.5},
             "optimizer": {"rate": 1e-2, "warmup": 0}, "validation": {"share": 0}}  # fmt: skip
    values = {"model": "tiny-predict2", "weights": "converted", "tokenizer": str(tmp_path / "vae"), "frames": 5,
              "text_encoder": "none", "size": [32, 48], "fps": 16.0, "steps": 2, "precision": "float32"}  # fmt: skip
    stages = {
        "data": {"kind": "stages:Tar"}, "world": world, "converted": {"kind": "convert.diffusion", "needs": "world"},
        "videos": {"kind": "generate.diffusion", "needs": "converted", "prompts": str(tmp_path / "p.jsonl"), **values},
    }  # fmt: skip
    for stage in stages.values():
        stage["resources"] = {"cpus": 1}
    path = tmp_path / "w.yaml"
    path.write_text(yaml.safe_dump({"name": "w", "inputs": str(tar), "output": "out", "stages": stages}))
    runs.go(path)
    [row] = rows_of(tmp_path / "out")
    assert row["why"] is None
    chosen = settings_of("generate.diffusion", values)
    of = lambda name: generate.of_training(chosen, name, str(tmp_path / f"out/{name}@v1/000000.json"))
    model = lambda name: str(tmp_path / f"out/{name}@v1/model/ours")
    assert of("converted") == {"weights": model("converted"), "objective": {"latent_scale": 0.5}}
    maker = generate.Maker(chosen)

    def made(name: str, tar: Path | None = None, **places: Any) -> bytes:
        if tar is None:
            one = {"name": "a", "prompt": "A.", "source": "s", "etag": "e"} | places
            tar = generate.process(maker, work(tmp_path / name, rows=[one])).objects[0]
        with tar.open("rb") as file:
            return dict(layers.read_tar(file))["a"][".mp4"]

    found = made("", row["tar"])
    assert found == made("by-the-training", **of("world"))
    assert found != made("as-published", weights=model("converted")), "what the training said of itself counts"
