"""Two ranks compute what one computes, on CPUs with gloo: losses, gradients and samples where they share a video's
latent frames; a loss and gradients where they share the weights (FSDP2), and each has a video of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forks import FORKS
from test_dit import PREDICT1, PREDICT25, given, published, tensor
from torch.distributed.fsdp import MixedPrecisionPolicy

from hpc.models import context_parallel, samplers
from hpc.models.diffusion import EDM, Condition, Draws, Flow
from hpc.models.dit import DiT
from hpc.models.samplers import Sampling
from hpc.train import fsdp

LATENTS = (2, 16, 4, 8, 12)
CASES = {
    "predict1": (EDM(), PREDICT1, "predict1", Sampling("multistep", "karras", 2, 1.0)),
    "predict2.5": (Flow(given_level=0.1), PREDICT25, "predict2", Sampling("unipc", "shifted", 3, 1.0)),
}


def computed(case: str, group: dist.ProcessGroup | None) -> dict[str, torch.Tensor]:
    """A training step's loss and gradients, and a sample; of this rank's frames where there is a group."""
    of, config, names, how = CASES[case]
    model = published(config, names)

    def mine(x: torch.Tensor, dim: int = 2) -> torch.Tensor:
        return context_parallel.part(x, group, dim) if group else x

    if group:
        context_parallel.share_frames(model, group)
    condition = Condition(
        tensor("text", 2, 6, config.text_input), mine(given(1, 3), 1), None, torch.tensor([12.0, 30.0]),
        first_frame=context_parallel.first_frame(4, group) if group else 0,
    )  # fmt: skip
    draws = Draws(
        mine(tensor("noise", *LATENTS)), torch.tensor([0.3, -0.4]), torch.ones(2, 2), torch.tensor([0.1, 0.2]),
        mine(tensor("given noise", *LATENTS)),
    )  # fmt: skip
    x0 = mine(tensor("x0", *LATENTS))
    loss = of.loss(model, x0, condition, draws)
    loss.loss.backward()
    found = {"loss": loss.loss.detach(), "per sample": loss.per_sample_B}
    found |= {f"gradient of {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    if group:  # as data parallelism averages
        for value in found.values():
            dist.all_reduce(value, group=group)
            value /= dist.get_world_size(group)
    condition = condition._replace(latents_BCTHW=x0)
    other = tensor("other", 2, 6, config.text_input)
    sample = samplers.sample(model, of, how, condition, other, mine(samplers.noise(LATENTS, 5)))
    return found | {"sample": context_parallel.whole(sample, group) if group else sample}


def of_videos(model: DiT, which: list[int]) -> torch.Tensor:
    draws = Draws(tensor("noise", *LATENTS)[which], torch.tensor([0.3, -0.4])[which], torch.ones(2, 2)[which],
                  torch.zeros(2)[which], None)  # fmt: skip
    condition = Condition(tensor("text", 2, 6, 80)[which], given(1, 3)[which])
    return Flow(given_level=0.1).loss(model, tensor("x0", *LATENTS)[which], condition, draws).loss


def sharded(rank: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Weights are gathered as this type. Inputs stay what they are: noise levels and what is made of them are float32
    for a reason."""
    model = published(PREDICT25, "predict2")
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    fsdp.shard([*model.blocks, model], fsdp.mesh(torch.device("cpu")), policy)
    loss = of_videos(model, [rank])
    loss.backward()
    found = fsdp.whole({name: p.grad for name, p in model.named_parameters()})
    dist.all_reduce(loss)
    return found | {"loss": loss.detach() / 2}


def rank_of_two(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {case: computed(case, dist.group.WORLD) for case in CASES}
    found |= {str(dtype): sharded(rank, dtype) for dtype in (torch.float32, torch.bfloat16)}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    processes = [FORKS.Process(target=rank_of_two, args=(i, folder)) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    return [torch.load(folder / f"{i}.pt") for i in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_compute_what_one_does(case: str, of_two_ranks: list[dict[str, dict[str, torch.Tensor]]]) -> None:
    alone = computed(case, None)
    for found in of_two_ranks:
        assert found[case].keys() == alone.keys() and len(alone) > 40
        for name, value in alone.items():
            difference = (found[case][name] - value).abs().max() / value.abs().max().clamp(min=1e-12)
            assert difference < 2e-4, f"{name} differs by {difference:.1e}"
    assert torch.equal(of_two_ranks[0][case]["sample"], of_two_ranks[1][case]["sample"])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_sharded_weights_give_the_same_gradients(
    dtype: torch.dtype, tolerance: float, of_two_ranks: list[dict[str, dict[str, torch.Tensor]]]
) -> None:
    model = published(PREDICT25, "predict2")
    loss = of_videos(model, [0, 1])
    loss.backward()
    found = of_two_ranks[0][str(dtype)]
    assert found["loss"].item() == pytest.approx(loss.item(), rel=tolerance)
    for name, parameter in model.named_parameters():
        assert found[name].dtype == torch.float32
        assert (found[name] - parameter.grad).norm() < tolerance * parameter.grad.norm(), name


def test_what_cannot_be_shared_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda *_: 3)
    with pytest.raises(ValueError, match="3 ranks share a video's frames, but 2 heads"):
        context_parallel.share_frames(published(PREDICT25, "predict2"), None)
    with pytest.raises(ValueError, match="4 latent frames cannot be shared by 3 ranks"):
        context_parallel.part(torch.zeros(LATENTS), None)
