"""A diffusion model is trained in one process: it learns, goes on after a warning, and what comes out can be used."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_runs import SHAPE, alone, here, near, settings, tar
from safetensors.torch import load_file
from trainings import curve

from hpc.data.work import Stopped, Work
from hpc.models import dit_files
from hpc.models.dit import DiT
from hpc.models.dit_presets import PRESETS
from hpc.models.tokenizers import files
from hpc.train import diffusion, diffusion_model, ema, ranks, samples, saver
from hpc.train.checkpoint import complete
from hpc.train.estimate import Place
from hpc.train.estimate_diffusion import memory
from hpc.train.samples import listed
from hpc.train.settings.data import Shape, Validation
from hpc.train.settings.diffusion import AdamW, Lora, Mesh, Pictures, Text
from hpc.train.settings.diffusion import Objective as Changed
from hpc.train.settings.optimizer import Mean
from hpc.train.settings.tokenizer import Sizes as Wan
from hpc.train.tokenizer import made as made_of

__all__ = ["alone", "here", "tar"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")


def test_it_learns_and_measures(alone: Path) -> None:
    said = curve(alone)
    assert [line["step"] for line in said] == list(range(1, 9))
    assert [line["step"] for line in said if "held_out" in line] == [4, 8]
    assert said[-1]["held_out"] < said[3]["held_out"]
    names = {f"{mean}held_out_{level}" for mean in ("", "ema_") for level in (0.1, 0.3, 0.5, 0.7, 0.9)}
    assert names <= said[-1].keys() and said[-1]["ema_held_out"] != said[-1]["held_out"]
    errors = [line for line in said if any(name.startswith("error_") for name in line)]
    assert len(errors) == 8
    assert all(line["loss"] == pytest.approx(10 * line["error"], rel=1e-5) for line in said), "Predict2 has it tenfold"


def stopped_after(steps: int) -> Callable[[], None]:
    """A check that asks to leave after so many steps."""
    left = iter([*range(1, steps), 0])

    def check() -> None:
        if not next(left):
            raise Stopped

    return check


def test_parts_of_a_share_and_recompute_change_nothing(
    tar: Path, here: ranks.Here, alone: Path, tmp_path: Path
) -> None:
    """...up to the first look at held-out clips."""
    for recompute in ("blocks", "attention", "matmuls"):
        folder, given = tmp_path / recompute, settings(micro_batch=2, recompute=recompute)
        with pytest.raises(Stopped):
            diffusion.train(given, listed([str(tar)]), folder, here, stopped_after(4))
        near(curve(folder), curve(alone)[:4])


def test_a_warning_saves_and_leaves(tar: Path, here: ranks.Here, alone: Path, tmp_path: Path) -> None:
    table = listed([str(tar)])
    with pytest.raises(Stopped):
        diffusion.train(settings(), table, tmp_path, here, stopped_after(5))
    assert complete(tmp_path / "checkpoints") == [3, 5]
    held = samples.held_out(table, 0.25, "clip")[1]["key"].to_pylist()
    written = (tmp_path / "held_out.json").read_bytes()
    assert json.loads(written) == {"by": "clip", "clips": sorted(held)}
    (tmp_path / "held_out.json").unlink()  # by an earlier version it was not written
    diffusion.train(settings(), table, tmp_path, here, lambda: None)
    assert curve(tmp_path) == curve(alone) and (tmp_path / "held_out.json").read_bytes() == written
    with pytest.raises(ValueError, match="is of another training: seed: 1 there, 2 now"):
        diffusion.train(settings(seed=2), table, tmp_path, here, lambda: None)
    with pytest.raises(ValueError, match="is of another training: validation"):
        diffusion.train(settings(validation=Validation(share=0.5, by="clip")), table, tmp_path, here, lambda: None)
    assert (tmp_path / "held_out.json").read_bytes() == written, "of the training whose checkpoints are there"


def test_means_are_their_formula(tar: Path, here: ranks.Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the weights after each step, and as they are published."""
    seen: list[dict[str, torch.Tensor]] = []
    update = ema.update

    def noted(mean: Any, model: Any, kept: float) -> None:
        update(mean, model, kept)
        seen.append({name: one.full_tensor().clone() for name, one in model.named_parameters()})

    monkeypatch.setattr(ema, "update", noted)
    diffusion.train(settings(steps=5), listed([str(tar)]), tmp_path, here, lambda: None, weights=tmp_path / "model")
    steps = seen[::2]  # there are two means
    wide = dict(steps[0])
    for t, weights in enumerate(steps, 1):
        kept = (1 - 1 / t) ** (6.9358 + 1)
        for name, value in weights.items():
            wide[name] = kept * wide[name] + (1 - kept) * value
    found = load_file(tmp_path / "model/ours/model.safetensors")
    for name, value in wide.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)
    other = load_file(tmp_path / "model/ema_2/model.safetensors")
    name = "blocks.0.mlp.layer1.weight"
    assert not torch.equal(other[name], found[name])


def test_steps_that_are_not_finite_change_nothing_and_are_counted(
    tar: Path, here: ranks.Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, given, step = listed([str(tar)]), diffusion.dropped, 0

    def poisoned(*what: Any) -> torch.Tensor:
        nonlocal step
        step += 1
        return given(*what) * (math.nan if step in (3, 5, 6) else 1)

    monkeypatch.setattr(diffusion, "dropped", poisoned)
    diffusion.train(settings(validation=Validation(share=0)), table, tmp_path / "a", here, lambda: None)
    said = curve(tmp_path / "a")
    assert [line["skipped"] for line in said] == [0, 0, 1, 1, 2, 3, 3, 3]
    assert said[2]["loss"] == "nan" and said[2]["grad_norm"] == "nan" and said[3]["loss"] != "nan"
    step = 0
    few = settings(optimizer=AdamW(warmup=2, bad_steps=2), validation=Validation(share=0))
    with pytest.raises(RuntimeError, match="the gradients of 2 steps in a row, up to step 6, are not finite"):
        diffusion.train(few, table, tmp_path / "b", here, lambda: None)


def test_a_checkpoint_to_files_and_back(tar: Path, here: ranks.Here, alone: Path, tmp_path: Path) -> None:
    """DCP -> model.pt -> training that begins with it -> DCP: the same weights, bit for bit; by either average."""
    published = torch.load(alone / "model/model.pt")
    for average in (False, True):
        given = settings(weights=str(alone / "model/model.pt"), average=average)
        model = diffusion_model.build(given, here)
        diffusion_model.begin(model, given, here)
        saver.save({"model": model.state_dict()}, tmp_path / str(average))
        other = diffusion_model.build(settings(), here)
        saver.load({"model": other.state_dict()}, tmp_path / str(average))
        prefix = "net_ema." if average else "net."
        for name, value in other.state_dict().items():
            theirs = published[prefix + dit_files.published(name, "predict2")]
            assert torch.equal(value.full_tensor(), theirs), name


def test_adapters_alone_are_trained_and_added(tar: Path, here: ranks.Here, alone: Path, tmp_path: Path) -> None:
    given = settings(weights=str(alone / "model/model.pt"), lora=Lora(rank=2, alpha=6.0), steps=3,
                     optimizer=AdamW(rate=1e-2, warmup=0), ema=(Mean(rate=0.0),))  # fmt: skip
    diffusion.train(given, listed([str(tar)]), tmp_path, here, lambda: None, weights=tmp_path / "model")
    before = torch.load(alone / "model/model.pt")
    after = torch.load(tmp_path / "model/model.pt")
    small = load_file(tmp_path / "model/adapters.safetensors")
    assert len(small) == 2 * 2 * (4 + 4 + 2)
    a, b = (small[f"blocks.1.mlp.layer2.lora_{x}.default.weight"] for x in "AB")
    name = "net.blocks.1.mlp.layer2.weight"
    assert b.abs().max() > 0
    torch.testing.assert_close(after[name], before[name] + 6.0 / 2 * b @ a)
    assert torch.equal(after["net.x_embedder.proj.1.weight"], before["net.x_embedder.proj.1.weight"])
    dit_files.load(tmp_path / "model/model.pt", PRESETS["tiny-predict2"].config)


@pytest.mark.parametrize("model", ["tiny-predict1", "tiny-predict2.5"])
def test_other_models_are_trained_and_published(tar: Path, here: ranks.Here, tmp_path: Path, model: str) -> None:
    """...through the whole stage."""
    shape = (Shape(**SHAPE, batch=4),)
    given = settings(model=model, shapes=shape, text=Text(source="none"), steps=3, ema=(Mean(rate=0.5),))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (rows,) = diffusion.freeze(given, {"data": [("000000", {".tar": str(tar)})]}, set())
    work = Work("000000", [], rows, {}, scratch, "f" * 12, lambda: None, lambda share, words: None,
                folder=str(tmp_path / "out" / "t@v1"))  # fmt: skip
    made = diffusion.process(given, here, work)
    assert [path.name for path in made.objects] == [f"000000{suffix}" for suffix in given.OBJECTS]
    told = json.loads(made.objects[-1].read_text())
    assert told["last"]["step"] == 3 and math.isfinite(told["last"]["held_out"])
    assert "<svg" in made.objects[1].read_text()
    where = scratch / "model"
    names = {str(path.relative_to(where)) for path in made.tree.values() if where in path.parents}
    if model == "tiny-predict1":
        assert names == {"iter_000000003_reg_model.pt", "iter_000000003_ema_model.pt", "ours/config.json",
                         "ours/model.safetensors"}  # fmt: skip
    else:
        assert "model_ema_bf16.pt" in names
    again = dit_files.load(scratch / "model/ours")
    assert isinstance(again, DiT)


def test_a_tokenizer_of_the_same_spec_shows_what_latents_become(tar: Path, here: ranks.Here, tmp_path: Path) -> None:
    """`tokenizer: vae`: its folder stands before the data, and videos are made to look at."""
    torch.manual_seed(0)
    small = Wan(family="wan", channels=8, latent_channels=16, multipliers=(1, 1, 1, 2), blocks=1)
    files.save(made_of(small), tmp_path / "vae")
    (tmp_path / "vae.json").write_text(json.dumps({"tokenizer": str(tmp_path / "vae")}))
    given = settings(tokenizer="vae", text=Text(source="none"), steps=2, pictures=Pictures(every=2, steps=2),
                     validation=Validation(share=0.3, by="clip", every=2, clips=2))  # fmt: skip
    assert given.wired() == {"tokenizer": ("vae", ("train.tokenizer",))} and not settings().wired()
    assert given.compression is None and given.models() == {}
    upstream = {"vae": [("000000", {".json": str(tmp_path / "vae.json")})], "data": [("000000", {".tar": str(tar)})]}
    (rows,) = diffusion.freeze(given, upstream, set())
    assert rows == [str(tmp_path / "vae"), str(tar)]
    (tmp_path / "scratch").mkdir()
    work = Work("000000", [], rows, {}, tmp_path / "scratch", "f" * 12, lambda: None, lambda share, words: None,
                folder=str(tmp_path / "out/t@v1"))  # fmt: skip
    made = diffusion.process(given, here, work)
    shown = sorted(path.name for path in made.tree.values() if path.suffix in (".webp", ".mp4"))
    assert shown == ["000000002.webp", "000000002_0_ema.mp4", "000000002_0_regular.mp4"]


def test_what_cannot_be_is_said_with_the_arithmetic() -> None:
    """...before anything is started."""
    shape = Shape(frames=93, height=704, width=1280, batch=8)

    def wrong(words: str, ranks: int = 8, **more: Any) -> None:
        with pytest.raises(ValueError, match=words):
            settings(model="predict2.5-2b", shapes=(shape,), **more).shared_by(ranks)

    wrong(r"shapes: 0.batch: 8 samples / \(6 ranks / cp 1 = 6\) = 1.333: make it 6 or 12", 6)
    wrong(r"mesh: dp_replicate 3 x dp_shard any x cp 1 are not 8 ranks", mesh=Mesh(dp_replicate=3))
    wrong(r"mesh: cp: 16 heads / 3 = 5.333", 6, mesh=Mesh(cp=3))
    wrong(r"mesh: cp: 24 latent frames of shapes.0 / 16 = 1.5", 16, mesh=Mesh(cp=16))
    wrong(r"objective: multiplier: predict2.5-2b is trained as flow, which has given_frames, shift",
          objective=Changed(multiplier=2.0))  # fmt: skip
    wrong(r"lora: adapters to random weights teach nothing", lora=Lora())
    wrong(r"gpu_memory: about \d+ GiB a GPU are needed, of 20: weights 1.\d.*\d+ GiB with `recompute: blocks`",
          gpu_memory=20 * 2**30)  # fmt: skip
    with pytest.raises(ValueError, match=r"shapes: 0.frames: 90 is not 1 \+ k x 4: make it 89 or 93"):
        settings(model="predict2.5-2b", shapes=(Shape(frames=90, height=704, width=1280, batch=8),))
    with pytest.raises(ValueError, match=r"precision: fp8-current: 9 tokens of a sample of shapes.0 / 16 = 0.5625"):
        settings(model="predict2.5-2b", shapes=(Shape(frames=1, height=48, width=48, batch=8),),
                 precision="fp8-current").shared_by(8)  # fmt: skip
    fits = settings(model="predict2.5-2b", shapes=(shape,), mesh=Mesh(cp=2), precision="fp8-current")
    fits.shared_by(8)
    half, whole = (memory(fits, Place(ranks=ranks))["weights"] for ranks in (16, 8))
    assert half == pytest.approx(whole / 2)
