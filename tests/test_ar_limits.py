"""train.ar at its limits: killed at any moment it goes on to the last bit, and what cannot be learned from is told of;
what a step took is counted as the README says."""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import runs
import torch
from ar_runs import SHAPE, here, run, settings, tokens, train
from forks import together
from stages import ids
from trainings import curve, timeless

from hpc.data import layers
from hpc.models.ar import keys
from hpc.models.ar.presets import preset
from hpc.train import ar, ranks
from hpc.train.checkpoint import Checkpoints, complete
from hpc.train.estimate import Place
from hpc.train.metrics import lines
from hpc.train.settings import TrainAr
from hpc.train.settings.ar import HeldOut, Layout
from hpc.train.settings.optimizer import Optimizer

__all__ = ["here", "tokens"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore")


def stopped(folder: Path, given: TrainAr, rows: list[Any], steps: int, after: float) -> int:
    """A training that is killed so many seconds after it has taken so many steps. Returns the checkpoint that it
    leaves."""
    told, begun = folder / "metrics.jsonl", max(complete(folder / "checkpoints"), default=0)
    before = told.stat().st_mtime_ns if told.exists() else 0
    last = lambda: max((line["step"] for line in lines(told)), default=0)
    [process] = together(1, train, folder, given, rows)
    until = time.monotonic() + 120
    while time.monotonic() < until and process.is_alive():
        if told.exists() and told.stat().st_mtime_ns > before and last() >= begun + steps:
            break
        time.sleep(0.002)
    time.sleep(after)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it was killed while it trained"
    return max(complete(folder / "checkpoints"), default=0)


def test_killed_at_any_moment_it_goes_on_to_the_last_bit(tmp_path: Path, tokens: list[dict[str, str]]) -> None:
    """A checkpoint after each step, which is written while the next one is taken: of two steps ago there is one."""
    given = settings(steps=16, batch=2, checkpoints=Checkpoints(every=1), validation=HeldOut(clips=0))
    whole = run(1, tmp_path / "whole", given, tokens)
    assert [line["step"] for line in whole] == list(range(1, 17))
    reached = [0]
    for steps, after in ((1, 0.0), (3, 0.0), (3, 0.03), (3, 0.1)):
        reached.append(stopped(tmp_path / "killed", given, tokens, steps, after))
        assert reached[-1] >= reached[-2] + (steps - 2 if steps > 2 else 0), reached
    assert reached[-1] < 16
    assert timeless(run(1, tmp_path / "killed", given, tokens)) == timeless(whole)
    ours, theirs = (keys.Published(tmp_path / one / "model/model.safetensors") for one in ("whole", "killed"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_gradients_that_stay_bad_end_it(tmp_path: Path, tokens: list[dict[str, str]], here: ranks.Here) -> None:
    """...with the count of steps left out in the metrics and in the checkpoints, and so after going on."""
    wild = Optimizer(rate=1e30, warmup=0, decay="constant", bad_steps=3)
    given = settings(steps=9, precision="bf16", optimizer=wild, checkpoints=Checkpoints(every=3))
    for last in (4, 6):  # the checkpoint of step 3 has weights that give nothing finite
        with pytest.raises(RuntimeError, match=f"the gradients of 3 steps in a row, up to step {last}, are not finite"):
            ar.train(given, tokens, tmp_path, here, lambda: None)
        said = list(lines(tmp_path / "metrics.jsonl"))
        assert [line["step"] for line in said] == list(range(1, last + 1))
        assert [line["skipped"] for line in said] == list(range(last))
        assert said[0]["grad_norm"] > 0 and said[1]["grad_norm"] == "nan"
    facts = json.loads((tmp_path / "checkpoints/iter_000000003/training.json").read_text())
    assert facts["skipped"] == 2


def test_what_the_loss_is_of(tmp_path: Path, tokens: list[dict[str, str]], here: ranks.Here) -> None:
    """...by default: all frames but the first, and 1e-4 of the squared logarithm of the softmax's sum over all."""
    said: dict[str, dict[str, Any]] = {}
    for name, more, frames in (("default", {}, 2), ("weight", {"z_loss": 1e-2}, 2), ("given", {"condition": 2}, 1)):
        given = settings(steps=1, batch=1, validation=HeldOut(clips=0), **more)
        ar.train(given, tokens, tmp_path / name, here, lambda: None)
        [said[name]] = curve(tmp_path / name)
        assert ar.dataset(given, tokens, "train")[0].loss_mask.sum() == frames * math.prod(SHAPE[1:])
    usual, weight, given_two = said.values()
    assert usual["z_loss"] == pytest.approx(1e-4 * math.log(64_000) ** 2, rel=0.2)
    assert weight["z_loss"] == pytest.approx(100 * usual["z_loss"]) and weight["grad_norm"] != usual["grad_norm"]
    assert weight["cross_entropy"] == usual["cross_entropy"] != given_two["cross_entropy"]
    assert given_two["z_loss"] == usual["z_loss"]


@pytest.mark.parametrize(
    ("clips", "vocabulary", "words"),
    [
        (1, 64_000, "needs: of these tokens no clip is for training and 1 for validation: take more or longer"),
        (6, 65_536, "tokenizer of these tokens, dv, has 65,536 ids, and ar-tiny chooses among 64,000: make tokens"),
    ],
)
def test_tokens_that_teach_nothing(tmp_path: Path, here: ranks.Here, clips: int, vocabulary: int, words: str) -> None:
    files = {path.suffix: str(path) for path in ids.write(tmp_path, "000000", SHAPE, clips)}
    table = layers.read_table(Path(files[".parquet"]))
    meta = {"shape": SHAPE, "vocabulary": vocabulary, "tokenizer": "dv"}
    layers.write_arrow(Path(files[".parquet"]), table.replace_schema_metadata(None), meta)
    with pytest.raises(ValueError, match=words):
        ar.train(settings(), [files], tmp_path / "out", here, lambda: None)
    assert not (tmp_path / "out/checkpoints").exists()


@pytest.mark.parametrize(
    ("tokens", "train", "words"),
    [
        ({}, {}, ""),
        ({"frames": 17}, {}, "clips of these tokens are [3, 40, 64] (latent frames, rows, columns), the model's are"),
        ({"size": [320, 512]}, {}, "write `shape: [5, 20, 32]`"),
        ({"size": [320, 512]}, {"shape": [5, 20, 32]}, ""),
        ({"size": [480, 640], "frames": 1, "windows": "all", "form": "action"}, {"model": "ar-5b-action"}, ""),
        ({"size": [240, 320], "frames": 1, "windows": "all", "form": "action"}, {"model": "ar-5b-action"},
         "write `shape: [2, 15, 20]`"),
    ],
)  # fmt: skip
def test_the_shape_of_tokens_is_known_before_they_are_made(
    tmp_path: Path, tokens: dict[str, Any], train: dict[str, Any], words: str
) -> None:
    """...of a published tokenizer."""
    stages = {"clips": {"kind": "curate.clips"}, "ids": {"kind": "prepare.tokens", "needs": "clips", **tokens},
              "ar": {"kind": "train.ar", "needs": "ids", "steps": 1, "batch": 1, **train}}  # fmt: skip
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.mp4").touch()
    said = runs.hpc("check", runs.spec(tmp_path, {}, stages), code=2 if words else None)
    assert words in said.stderr and ("shape" in said.stderr) == bool(words), said.stderr


def test_fp8_takes_tokens_in_eights() -> None:
    """12,864 tokens over 16 ranks are 804 each."""
    values: dict[str, Any] = {"model": "ar-5b-video2world", "steps": 1, "batch": 8, "precision": "fp8-current"}
    both = Layout(tensor=8, context=2)
    words = r"micro_batch 1 x 12,864 / context 2 / tensor 8 = 804: make `micro_batch` 2, or say `sequence: false`"
    with pytest.raises(ValueError, match=words):
        TrainAr(layout=both, **values)
    TrainAr(layout=both, **values | {"precision": "bf16"})
    two = TrainAr(layout=both, micro_batch=2, **values)
    assert "`micro_batch: 1`" not in [name for name, *_ in two.alternatives(Place(ranks=16))]
    split = [name for name, *_ in TrainAr(layout=Layout(context=2), **values).alternatives(Place(ranks=16))]
    assert "`layout.tensor: 4`" in split and "`layout.tensor: 8`" not in split
    TrainAr(layout=Layout(tensor=8, context=2, sequence=False), **values)


def test_what_a_step_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs, a step of 8 seconds of which they work 6: all of it counts."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 7 << 30)
    two: Any = ranks.Here(0, 2, torch.device("cuda", 0), None, None)  # type: ignore[arg-type]
    work = preset("ar-4b").flops() * 8
    line = ranks.took(two, 6.0, 1.5, 0.5, 8, 8 * 12_800, work)
    assert (line["seconds"], line["waited"], line["checkpoint_seconds"]) == (6.0, 1.5, 0.5)
    assert line["samples_per_second"] == 1 and line["memory_bytes"] == 7 << 30
    assert line["tokens_per_second"] == 12_800 and line["tokens_per_second_per_gpu"] == 6_400
    assert line["tflops_per_gpu"] == pytest.approx(27.5e9 * 6_400 / 1e12, rel=2e-3)
    assert line["mfu"] == pytest.approx(line["tflops_per_gpu"] / 989)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU that nobody knows")
    assert "mfu" not in ranks.took(two, 6.0, 1.5, 0.5, 8, 8 * 12_800, work)


def test_attention_counts_once_and_what_is_computed_again_does_not() -> None:
    """The convention of every MFU here: 6 for each weight that a token meets, and half of all pairs of tokens."""
    small = msgspec.structs.replace(preset("ar-tiny"), layers=1, yarn=None)
    n, p = small.length, small
    matrices = p.parameters - p.vocab * p.dim - p.dim - (2 * p.dim + 2 * p.head_dim)
    attention = 3 * 2 * 2 * (n * n / 2) * p.heads * p.head_dim
    assert small.flops() == pytest.approx(6 * n * matrices + attention)
    assert TrainAr(model="ar-tiny", steps=1, batch=1, recompute="full").flops == preset("ar-tiny").flops()
