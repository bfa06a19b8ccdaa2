"""Weights from one form into another: of any layout, to the last bit, every name accounted for."""

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
from ar_runs import run, settings, tokens
from test_generate import work

from hpc.models.ar import keys, nemo
from hpc.train import convert_ar
from hpc.train.checkpoint import Checkpoints, complete
from hpc.train.convert import convert
from hpc.train.settings import ConvertAr
from hpc.train.settings.ar import HeldOut, Layout

__all__ = ["tokens"]  # the fixture
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tokens: list[dict[str, str]]) -> dict[str, Path]:
    """Trainings by two ranks, in two layouts."""
    found = {}
    for name, layout in (("tensor", Layout(tensor=2)), ("pipeline", Layout(pipeline=2))):
        found[name] = tmp_path_factory.mktemp(name)
        more: dict[str, Any] = {"precision": "bf16", "steps": 3, "validation": HeldOut(clips=0)}
        run(2, found[name], settings(layout=layout, checkpoints=Checkpoints(every=2), **more), tokens)
    return found


def same(a: Path, b: Path) -> bool:
    one, two = keys.Published(a), keys.Published(b)
    return set(one) == set(two) and all(one[n].dtype == two[n].dtype and torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("layout", ["tensor", "pipeline"])
def test_a_checkpoint_of_any_layout(layout: str, trained: dict[str, Path], tmp_path: Path) -> None:
    folder = trained[layout]
    made = runs.facts("convert", folder, tmp_path / "model.pt", cwd=tmp_path)
    assert made["model"] == "ar-tiny" and made["tensors"] == 3 + 4 * 11
    assert same(tmp_path / "model.pt", folder / "model/model.safetensors"), "what all ranks together said it is"
    flat = torch.load(tmp_path / "model.pt", weights_only=True)
    keys.account(keys.rules(settings().preset), flat, "published weights")
    # an earlier one, which is for one layout alone, is read too
    assert complete(folder / "checkpoints") == [2, 3]
    convert(str(folder / "checkpoints/iter_000000002"), str(tmp_path / "two.pt"))
    assert not same(tmp_path / "two.pt", tmp_path / "model.pt")
    # there and back again
    for source, to in (("model.pt", "nemo"), ("nemo", "b.safetensors"), ("b.safetensors", "c.pt")):
        convert(str(tmp_path / source), str(tmp_path / to), "ar-tiny", settings().preset.shape)
    assert same(tmp_path / "c.pt", tmp_path / "model.pt")
    assert not list(tmp_path.glob(".*")), "nothing half done is left"


def test_what_cannot_be_converted(trained: dict[str, Path], tmp_path: Path) -> None:
    model = trained["tensor"] / "model/model.safetensors"
    (tmp_path / "there.pt").touch()
    (tmp_path / "bare").mkdir()
    (tmp_path / "page.pt").write_text("<html>\n")
    bare = tmp_path / "bare/x.safetensors"
    bare.write_bytes(model.read_bytes())
    torn = tmp_path / "torn/iter_000000009"
    torn.mkdir(parents=True)
    cases: list[tuple[Path, str, dict[str, Any], str]] = [
        (model, "there.pt", {}, "there.pt is there already"),
        (tmp_path / "none", "a.pt", {}, "there is no"),
        (bare, "a.pt", {}, "does not say which model it is: say `--model` and one of ar-4b"),
        (model, "a.pt", {"model": "ar-4b"}, "is of ar-tiny, not of ar-4b"),
        (bare, "a.pt", {"model": "ar-4b"}, "model.tok_embeddings.weight (64000, 64) for (64000, 4096)"),
        (bare, "a.pt", {"model": "ar-tiny-video2world"}, "missing: model.layers.0.cross_attention"),
        (model, "a.bin", {}, "a.bin: known are names that end in .pt"),
        (torn.parent, "a.pt", {}, "there is no complete checkpoint"),
        (tmp_path / "bare", "a.pt", {"model": "ar-tiny"}, "no distributed checkpoint here"),
        (bare, "a.pt", {"model": "ar-4"}, "'ar-4' is no model that is known here: did you mean ar-4b? there"),
        (bare, "a.pt", {"model": "ar-tiny", "shape": (5, 8)}, "shape: 5,8: latent frames, rows and columns are"),
        (bare, "no/such/a.pt", {"model": "ar-tiny"}, "no/such: there is no such folder to write a.pt into: mkdir -p"),
        (tmp_path / "page.pt", "a.pt", {"model": "ar-tiny"}, "or safetensors leave it: it is text, '<html>'"),
    ]
    for source, to, more, words in cases:
        with pytest.raises((ValueError, OSError), match=re.escape(words)):
            convert(str(source), str(tmp_path / to), **more)
    assert not (tmp_path / "a.pt").exists()
    said = runs.hpc("convert", bare, tmp_path / "a.pt", cwd=tmp_path, code=2)
    assert "say `--model`" in said.stderr
    with pytest.raises(FileNotFoundError, match="no complete checkpoint of step 7; there are: 2, 3"):
        convert_ar.found(trained["tensor"], 7)
    said = runs.facts("convert", bare, tmp_path / "a.pt", "--model", "ar-tiny", "--shape", "3,4,4", cwd=tmp_path)
    assert same(Path(said["files"][0]), model)


def test_a_stage_makes_all_forms(trained: dict[str, Path], tmp_path: Path) -> None:
    ours = trained["pipeline"]
    made = convert_ar.process(ConvertAr(step=2, forms=("model.pt", "model.safetensors", "nemo")),
                              msgspec.structs.replace(work(tmp_path, rows=[str(ours)]), folder="/out"))  # fmt: skip
    there = {uri.removeprefix("/out/") for uri in made.tree}
    assert {"model.pt", "model.safetensors", "config.json", "nemo/weights/.metadata"} <= there
    assert json.loads(made.objects[0].read_text())["step"] == 2 and made.counts["tensors"] == 47
    assert same(tmp_path / "model.pt", tmp_path / "model.safetensors")
    convert(str(tmp_path / "nemo"), str(tmp_path / "again.pt"), "ar-tiny", settings().preset.shape)
    assert same(tmp_path / "model.pt", tmp_path / "again.pt")


def test_what_nemo_has_beside_weights_is_taken_along(
    trained: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """context/ names classes of NeMo's: it is copied from where the weights come from, or it is said what to do."""
    source = trained["tensor"] / "model/model.safetensors"
    convert(str(source), str(tmp_path / "nemo"))
    said = capsys.readouterr().err
    assert "it has no context/" in said and "huggingface-cli download" in said
    assert not (tmp_path / "nemo/context").exists()
    (tmp_path / "nemo/context").mkdir()
    (tmp_path / "nemo/context/io.json").write_text('{"root": 1}')
    convert(str(tmp_path / "nemo"), str(tmp_path / "again"), "ar-tiny", settings().preset.shape)
    assert (tmp_path / "again/context/io.json").read_text() == '{"root": 1}' and not capsys.readouterr().err
    again = tmp_path / "again"
    assert nemo.context_of("", "nvidia/Cosmos-1.0-Autoregressive-4B", str(again)) == again / "context"
    ours = trained["tensor"] / "checkpoints"
    [checkpoint] = [one for one in ours.iterdir() if one.name.endswith("3")]
    moved = tmp_path / checkpoint.name
    shutil.copytree(checkpoint, moved)
    told = json.loads((moved / "training.json").read_text())
    told["identity"]["start"] = str(tmp_path / "again")
    (moved / "training.json").write_text(json.dumps(told))
    convert(str(moved), str(tmp_path / "trained"))
    assert (tmp_path / "trained/context/io.json").is_file(), "of what training began with"


def test_what_a_spec_converts(tmp_path: Path) -> None:
    stages = {"ids": {"kind": "stages:Ids"}, "x": {"kind": "convert.ar", "needs": "ids"}}
    said = runs.hpc("check", runs.spec(tmp_path, runs.numbered(1), stages), code=2)
    assert "convert.ar converts what one stage train.ar has trained; it needs stages:Ids" in said.stderr
