"""What is measured of a diffusion model while it trains: errors of held-out clips and by noise level; their page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusion_runs import alone, here, settings, tar
from test_diffusion import MEAN, STD, Ideal, normal
from test_diffusion import SHAPE as NORMAL

from hpc.models.diffusion import EDM, Condition, Flow, Loss, Objective, SigmaFlow
from hpc.models.dit import DiT
from hpc.train import diffusion, diffusion_model, ranks
from hpc.train import diffusion_measure as measure
from hpc.train.diffusion_input import Inputs
from hpc.train.loader import Batches
from hpc.train.metrics import lines
from hpc.train.samples import listed
from hpc.train.settings.diffusion import Text

__all__ = ["alone", "here", "tar"]  # fixtures
pytestmark = pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")


@pytest.mark.parametrize("of", [EDM(latent_scale=STD), Flow(), SigmaFlow()])
def test_held_out_errors_of_the_best_network_are_what_noise_hides(of: Objective) -> None:
    """At each level that of x0, s^2 sigma^2 / (s^2 + sigma^2), with the weight of the objective; of given frames 0."""
    x0 = normal(8, *NORMAL) * STD + MEAN
    mask = (torch.arange(4) < torch.tensor([0, 1, 2, 4])[:, None]).float()
    for t in measure.LEVELS:
        sigma = t / (1 - t)
        weight = of.weight(torch.tensor(sigma)).item() if isinstance(of, EDM) else t**-2
        known = STD**2 * sigma**2 / (STD**2 + sigma**2) * weight
        drawn = normal(1, *NORMAL), normal(3, *NORMAL)
        found = measure.errors(of, Ideal(of), x0, Condition(torch.zeros(4, 1, 1), mask), *drawn, t)
        assert found[mask == 1].abs().max() == 0
        torch.testing.assert_close(found[mask == 0], torch.full((9,), known), rtol=0.1, atol=0)


@pytest.mark.parametrize("kind", [EDM, Flow])
def test_errors_are_told_by_noise_level(tar: Path, here: ranks.Here, kind: type[Objective]) -> None:
    """In five bins of t, of an EDM sigma / (1 + sigma); bins without samples are not told."""
    t, error = torch.tensor([0.05, 0.15, 0.5, 0.99]), torch.tensor([1.0, 3.0, 5.0, 7.0])

    class Known(kind):  # type: ignore[valid-type, misc]
        def loss(self, model: DiT, *_: Any) -> Loss:
            level = t / (1 - t) if kind is EDM else t
            return Loss(model.x_embedder.weight.sum() * 0, error, level)

    table, given = listed([str(tar)]), settings()
    inputs = Inputs(given, Flow(), table, here.device)
    batch = Batches(table, given.shapes, 1, read=inputs.read).at(0)
    _, sums, _ = diffusion.gradients(given, DiT(given.config), Known(), inputs, batch, None)
    assert diffusion.levels(sums) == {"error_0.1": 2.0, "error_0.5": 5.0, "error_0.9": 7.0}


def test_held_out_clips_are_looked_at_with_the_same_noise(tar: Path, here: ranks.Here) -> None:
    """Each time, whatever the training's seed is; of other weights it says something else."""
    table, found = listed([str(tar)]), []
    for seed in (1, 1, 2):
        given = settings(seed=seed, text=Text(source="none"))
        of = diffusion_model.objective(given)
        inputs = Inputs(given, of, table, here.device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            model = DiT(given.config)
        held = measure.clips(given, table, inputs, 0, 1)
        found.append(measure.look(given, model, of, inputs, held, None, here))
    assert found[0] == found[1] == found[2] and len(found[0]) == 1 + len(measure.LEVELS)
    torch.nn.init.zeros_(model.final_layer.linear.weight)
    zero = measure.look(given, model, of, inputs, held, None, here)
    assert zero["held_out"] != found[0]["held_out"]
    assert zero["held_out"] == pytest.approx(sum(zero[f"held_out_{t:g}"] for t in measure.LEVELS) / 5)


def test_a_training_whose_figures_are_none_ends_and_says_so(alone: Path) -> None:
    """Weights that went astray after the last look: their page is written all the same."""
    said = list(lines(alone / "metrics.jsonl"))
    said[-1] |= {"held_out": "nan", "ema_held_out": "inf", "loss": "nan"}
    told = {"steps": 8, "samples": 32, "clips": {}, "parameters": 1, "ranks": 1, "skipped": 0, "gpu_hours": 0.1,
            "model": "m", "last": said[-1]}  # fmt: skip
    shown = diffusion.as_page(told, said, alone)
    assert "<td>held_out<td>nan" in shown and "<td>ema_held_out<td>inf" in shown and "<svg" in shown
