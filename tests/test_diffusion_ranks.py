"""A diffusion model is trained the same however ranks share it, and after any interruption."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from diffusion_runs import alone, here, near, settings, spread, tar
from forks import together
from trainings import curve, resumed, torn

from hpc.data.work import Stopped
from hpc.models import dit_files
from hpc.models.dit_presets import PRESETS, parameters
from hpc.train import clips, diffusion, ranks, saver
from hpc.train.checkpoint import Checkpoints, complete
from hpc.train.metrics import lines
from hpc.train.samples import listed
from hpc.train.settings import TrainDiffusion
from hpc.train.settings.data import Validation
from hpc.train.settings.diffusion import Mesh, Sizes
from hpc.train.settings.optimizer import Mean

__all__ = ["alone", "here", "tar"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp": {"mesh": Mesh(dp_shard=2)}, "hsdp": {"mesh": Mesh(dp_replicate=2)}, "cp": {"mesh": Mesh(cp=2)},
}  # fmt: skip


@pytest.fixture(scope="module")
def two(tar: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    spread(LAYOUTS, tar, folder)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_ranks_learn_what_one_does(two: Path, alone: Path, layout: str) -> None:
    near(curve(two / layout), curve(alone))


@pytest.mark.parametrize("layout", ["fsdp", "cp"])
def test_one_rank_goes_on_from_a_checkpoint_of_two(
    tar: Path, two: Path, alone: Path, here: ranks.Here, tmp_path: Path, layout: str
) -> None:
    """...and one that is torn is not picked."""
    torn(there := two / layout, tmp_path)
    diffusion.train(settings(), listed([str(tar)]), tmp_path, here, lambda: None)
    times = [[line["time"] for line in lines(folder / "metrics.jsonl")] for folder in (tmp_path, there)]
    assert [one == other for one, other in zip(*times, strict=True)] == [True] * 3 + [False] * 5, "from the third on"
    near(curve(tmp_path), curve(alone))


def test_a_run_whose_rank_is_killed_is_equal_to_the_last_bit(tar: Path, two: Path, tmp_path: Path) -> None:
    """`hpc run` on two ranks, one of them killed: tried again at once, from the newest checkpoint."""
    said = clips.plain(settings()) | {"kind": "train.diffusion", "checkpoints": {"every": 3}}
    training = resumed(tmp_path, tar, "world", said)
    assert curve(training) == curve(two / "fsdp")
    output = tmp_path / "out/world@v1"
    assert complete(training / "checkpoints") == complete(two / "fsdp/checkpoints")
    told = json.loads((output / "000000.json").read_text())
    assert told["ranks"] == 2 and told["clips"] == {"trained_on": 9, "held_out": 3}
    assert told["held_out"] == str(output / "held_out.json")
    held = (output / "held_out.json").read_bytes()
    assert held == (output / "training/held_out.json").read_bytes() == (two / "fsdp/held_out.json").read_bytes()
    assert len(set(json.loads(held)["clips"])) == 3
    assert {path.name for path in (output / "model").iterdir()} == {
        "model.pt", "model_ema_fp32.pt", "model_ema_bf16.pt", "ours", "ema_2"}  # fmt: skip
    assert dit_files.load(output / "model/ours").config == PRESETS["tiny-predict2"].config


def _killed_while_it_saves(tar: Path, folder: Path) -> None:
    write = saver.save

    def half(state: saver.State, to: Path, group: Any) -> None:
        if to.name != "iter_000000006.part":
            return write(state, to, group)
        write({"model": state["model"]}, to, group)
        os.kill(os.getpid(), signal.SIGKILL)

    saver.save = half
    diffusion.train(settings(), listed([str(tar)]), folder, ranks.start(), lambda: None)


def test_two_ranks_go_on_where_one_was_killed_while_it_saved(tar: Path, alone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fsdp"
    [process] = together(1, _killed_while_it_saves, tar, folder)
    process.join(180)
    assert process.exitcode == -signal.SIGKILL
    kept = folder / "checkpoints"
    assert complete(kept) == [3] and (kept / "iter_000000006.part/model/.metadata").exists()
    assert (kept / "latest_checkpoint.txt").read_text() == "iter_000000003"
    spread({"fsdp": LAYOUTS["fsdp"]}, tar, tmp_path)
    assert complete(kept) == [3, 6, 8] and not list(kept.glob("*.part"))
    near(curve(folder), curve(alone))


def _measured(tar: Path, folder: Path, given: TrainDiffusion, most: int) -> None:
    ranks.memory = lambda device: 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])  # type: ignore
    steps = 0

    def check() -> None:
        nonlocal steps
        steps += 1
        if steps == most:
            raise Stopped

    with contextlib.suppress(Stopped):
        diffusion.train(given, listed([str(tar)]), folder, ranks.start(), check)


def test_to_go_on_takes_no_more_memory_than_to_begin(tar: Path, tmp_path: Path) -> None:
    """The peak of a process up to its second step, before anything is saved: 26 million weights, 98 MiB for each copy
    of them, so that one copy too many would show."""
    given = settings(sizes=Sizes(channels=512, blocks=6, heads=4, adaln_rank=64), steps=9, ema=(Mean(width=0.1),),
                     validation=Validation(share=0), checkpoints=Checkpoints(every=9))  # fmt: skip
    for _ in range(2):
        [process] = together(1, _measured, tar, tmp_path, given, 2)
        process.join(180)
        assert process.exitcode == 0
    assert complete(tmp_path / "checkpoints") == [2, 4]
    said = list(lines(tmp_path / "metrics.jsonl"))
    fresh, resumed = said[1]["memory_bytes"], said[3]["memory_bytes"]
    assert fresh > 5 * 4 * parameters(given.config), "weights, gradients, moments and means"
    assert resumed < fresh + 0.75 * 4 * parameters(given.config)
