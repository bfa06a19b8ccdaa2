"""Noise levels, losses and samplers against closed forms, and step by step against diffusers' schedulers.

Where data is normal, mean m and standard deviation s, the best denoiser is known: of x = x0 + sigma n it is
(s^2 x + sigma^2 m) / (s^2 + sigma^2), and the differential equation that it defines has a solution in closed form:
(x - m) / sqrt(s^2 + sigma^2) stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_dit import PREDICT1, PREDICT2, PREDICT25, arrays, given, published, tensor
from test_tokenizer_parity import close
from torch import Tensor

from hpc.models import samplers
from hpc.models.diffusion import EDM, Condition, Draws, Flow, SigmaFlow, first_frames
from hpc.models.dit import DiT, Output
from hpc.models.samplers import Sampling

MEAN, STD = 0.7, 0.4
SHAPE = (4, 16, 4, 16, 16)


def normal(name: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(name))


def best(x: Tensor, sigma: Tensor) -> Tensor:
    """x0 of x = x0 + sigma n."""
    sigma = sigma.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    return (STD**2 * x + sigma**2 * MEAN) / (STD**2 + sigma**2)


def best_of_flow(x: Tensor, t: Tensor) -> Tensor:
    """x0 of x = (1 - t) x0 + t n."""
    t = t.view(-1, *[1] * (x.ndim - 1)).to(x.dtype)
    total = (1 - t) ** 2 * STD**2 + t**2
    return MEAN + (1 - t) * STD**2 / total * (x - (1 - t) * MEAN)


class Ideal:
    """A network that gives what the best denoiser would, for an objective; and a log-variance, if it is told one."""

    def __init__(self, of: EDM | Flow, log_variance: float | None = None) -> None:
        self.of, self.log_variance = of, log_variance
        self.seen: list[tuple[Tensor, ...]] = []

    def __call__(self, x: Tensor, level: Tensor, text: Tensor, given_BT: Tensor | None, *_: Tensor) -> Output:
        self.seen.append((x, level, text))
        if isinstance(self.of, EDM):
            sigma = torch.exp(4 * level)
            skip, out, scale, _ = self.of.scales(sigma)
            x = x / scale.view(-1, 1, 1, 1, 1)
            x0 = best(x, sigma)
            found = (x0 - skip.view(-1, 1, 1, 1, 1) * x) / out.view(-1, 1, 1, 1, 1)
        else:
            t = level if isinstance(self.of, SigmaFlow) else level / 1000
            t = t[:, -1] if t.ndim == 2 else t
            x0 = best_of_flow(x, t)
            found = (x - x0) / t.view(-1, 1, 1, 1, 1)
        return Output(found, None if self.log_variance is None else torch.full((len(x),), self.log_variance))


def draws(level: Tensor, high: Tensor | None = None) -> Draws:
    high = torch.ones(len(level), 2) if high is None else high
    return Draws(normal(1, *SHAPE), level, high, normal(2, len(level)), normal(3, *SHAPE))


# Noise levels


def test_the_scales_of_edm_keep_the_variance() -> None:
    """Of what the network is given and asked for: 1 at all noise levels, where data has sigma_data."""
    edm = EDM()
    sigma = torch.tensor([0.002, 0.1, 0.5, 3.0, 80.0])
    skip, out, scale, level = edm.scales(sigma)
    torch.testing.assert_close(scale**2 * (0.25 + sigma**2), torch.ones(5))
    # the variance of (x0 - skip x) / out
    torch.testing.assert_close(((1 - skip) ** 2 * 0.25 + skip**2 * sigma**2) / out**2, torch.ones(5))
    torch.testing.assert_close(edm.weight(sigma), 1 / out**2)
    torch.testing.assert_close(level, sigma.log() / 4)
    assert EDM(multiplier=4.0).levels(torch.tensor([0.0, 1.0]), torch.ones(2, 2)).tolist() == pytest.approx(
        [4, 4 * math.e]
    )


def test_the_noise_levels_of_flow_are_diffusers() -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler

    for shift in (1.0, 3.0, 5.0):
        theirs = FlowMatchEulerDiscreteScheduler(shift=shift)
        torch.testing.assert_close(Flow(shift=shift).times, theirs.sigmas[:1000], rtol=1e-6, atol=0)
        torch.testing.assert_close(Flow(shift=shift).told(Flow(shift=shift).times), theirs.timesteps)


def test_the_noise_levels_of_flow_are_the_published_ones() -> None:
    golden = arrays("predict25")
    found = Flow().levels(torch.logit(golden["u"].double()).float(), torch.ones(6, 2))
    torch.testing.assert_close(found, golden["sigmas"])
    torch.testing.assert_close(1000 * found, golden["timesteps"])


def test_a_share_of_samples_has_high_noise() -> None:
    count = 20_000
    level, high = normal(5, count), torch.rand(count, 2, generator=torch.Generator().manual_seed(6))
    t = Flow(high=0.05).levels(level, high)
    highest = Flow().times[Flow().times >= 0.98]
    chosen = t[high[:, 0] < 0.05]
    assert len(chosen) == pytest.approx(0.05 * count, rel=0.1)
    assert torch.equal(chosen.unique().flip(0), highest) and len(highest) > 50
    assert chosen.mean().item() == pytest.approx(highest.mean().item(), abs=1e-3)
    assert torch.equal(t[high[:, 0] >= 0.05], Flow().levels(level, high)[high[:, 0] >= 0.05])
    # Predict2: evenly in log sigma
    t = SigmaFlow(high=0.05).levels(level, high)
    log_sigma = (t.double() / (1 - t.double())).log()[high[:, 0] < 0.05]
    assert log_sigma.min() >= math.log(199) and log_sigma.max() <= math.log(101_000)
    assert log_sigma.mean().item() == pytest.approx((math.log(200) + math.log(1e5)) / 2, rel=0.02)
    rest = (t / (1 - t)).log()[high[:, 0] >= 0.05]
    assert rest.mean().item() == pytest.approx(math.log(24) / 2, abs=0.03)
    assert rest.std().item() == pytest.approx(1, abs=0.02)


def test_how_many_frames_are_given() -> None:
    uniform = torch.rand(20_000, generator=torch.Generator().manual_seed(7))
    for shares in ((0.5, 0.25, 0.25), (0.0, 0.5, 0.5), (1 / 3, 1 / 3, 1 / 3), (1.0,)):
        masks = first_frames(uniform, shares, 5)
        counts = masks.sum(1).long()
        assert torch.equal(masks, (torch.arange(5) < counts[:, None]).float())
        found = torch.bincount(counts, minlength=len(shares)) / len(uniform)
        assert found.tolist() == pytest.approx(list(shares), abs=0.01)
    assert first_frames(uniform, (0.0, 0.5, 0.5), 1).sum() == 0, "a picture is never given"
    assert first_frames(torch.tensor([0.0, 1.0]), (0.5, 0.25, 0.25), 3).sum(1).tolist() == [0, 2]


# Losses


@pytest.mark.parametrize("of", [EDM(latent_scale=STD), Flow(), SigmaFlow()])
def test_the_best_network_has_the_loss_that_nobody_can_beat(of: EDM | Flow) -> None:
    """The variance of what noise hides: s^2 sigma^2 / (s^2 + sigma^2) of x0, times the weight."""
    x0 = normal(8, *SHAPE) * STD + MEAN
    level = torch.tensor([-1.0, 0.0, 0.5, 1.5])
    network = Ideal(of)
    loss = of.loss(network, x0, Condition(torch.zeros(4, 1, 1)), draws(level))
    if isinstance(of, EDM):
        sigma = loss.level_B
        hidden = STD**2 * sigma**2 / (STD**2 + sigma**2) * of.weight(sigma)
        torch.testing.assert_close(hidden, torch.ones(4))  # that is what the weights are for
    else:
        t = loss.level_B
        sigma = t / (1 - t)
        hidden = STD**2 * sigma**2 / (STD**2 + sigma**2) / t**2
    torch.testing.assert_close(loss.per_sample_B, hidden, rtol=0.03, atol=0)
    assert loss.loss.item() == pytest.approx(loss.per_sample_B.mean().item() * getattr(of, "loss_scale", 1))
    x, told, _ = network.seen[0]
    assert x.std(dim=(1, 2, 3, 4)).max() < 1.5 and told.shape == (4,)


@pytest.mark.parametrize("of", [EDM(), Flow(), SigmaFlow()])
def test_given_frames_cost_nothing_and_are_told(of: EDM | Flow) -> None:
    x0 = normal(8, *SHAPE) * STD + MEAN
    mask = given(0, 1, 2, 4)
    network = Ideal(of)
    plan = draws(torch.zeros(4))
    loss = of.loss(network, x0, Condition(torch.zeros(4, 1, 1), mask), plan)
    free = of.loss(Ideal(of), x0, Condition(torch.zeros(4, 1, 1)), plan)
    assert loss.per_sample_B[3] == 0
    left = loss.per_sample_B[:3] / free.per_sample_B[:3]
    torch.testing.assert_close(left, torch.tensor([1, 0.75, 0.5]), rtol=0.1, atol=0)
    x, told, _ = network.seen[0]
    if isinstance(of, EDM):  # theirs is little noise, scaled for it
        own = torch.exp(plan.given_level_B * 2 - 3)
        seen = (x0 + own.view(-1, 1, 1, 1, 1) * plan.given_noise_BCTHW) / (own**2 + 0.25).sqrt().view(-1, 1, 1, 1, 1)
        torch.testing.assert_close(x[2, :, :2], seen[2, :, :2])
    else:
        assert torch.equal(x[2, :, :2], x0[2, :, :2]) and not torch.equal(x[2, :, 2:], x0[2, :, 2:])
        if of.given_level is None:
            assert told.shape == (4,)
        else:
            assert torch.equal(told == of.given_level, mask.bool())


def test_the_log_variance_is_best_at_the_logarithm_of_the_error() -> None:
    """And is the head's, through which gradients go."""
    of = EDM()
    x0 = normal(8, *SHAPE) * STD + MEAN
    plan = draws(torch.zeros(4))
    error = of.loss(Ideal(of), x0, Condition(torch.zeros(4, 1, 1)), plan).per_sample_B.mean().item()
    at = {u: of.loss(Ideal(of, u), x0, Condition(torch.zeros(4, 1, 1)), plan).loss.item()
          for u in (math.log(error) - 0.1, math.log(error), math.log(error) + 0.1)}  # fmt: skip
    low, here, above = at.values()
    assert here == pytest.approx(1 + math.log(error), abs=1e-3) and low > here and above > here
    model = published(PREDICT1, "predict1")
    latents = (2, 16, 4, 8, 12)
    plan = Draws(tensor("n", *latents), torch.zeros(2), torch.ones(2, 2), torch.zeros(2), tensor("g", *latents))
    loss = of.loss(model, tensor("x0", *latents), Condition(tensor("text", 2, 6, 32), given(0, 1)), plan)
    loss.loss.backward()
    assert model.log_variance.out.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("of", "config", "how"),
    [
        (EDM(), PREDICT1, Sampling("multistep", "karras", 12, 0)),
        (SigmaFlow(multiplier=math.sqrt(2)), PREDICT2, Sampling("multistep", "karras", 12, 0)),
        (Flow(), PREDICT25, Sampling("unipc", "shifted", 12, 0)),
    ],
)
def test_a_network_learns_what_texts_say_and_makes_it(of: EDM | Flow, config, how: Sampling) -> None:
    """Data is near 0.8 for one text and near -0.8 for the other: network, loss and sampler together."""
    torch.manual_seed(0)
    model, g = DiT(config), torch.Generator().manual_seed(1)
    texts = torch.randn(2, 4, config.text_input, generator=g)
    shape = (16, 2, 4, 4)

    def batch(count: int) -> tuple[Tensor, Tensor, Draws]:
        which = torch.randint(0, 2, (count,), generator=g)
        x0 = 0.8 * (which * 2 - 1).view(-1, 1, 1, 1, 1) + 0.3 * torch.randn(count, *shape, generator=g)
        made = [torch.randn(count, *more, generator=g) for more in (shape, (), (), shape)]
        return which, x0 * of.latent_scale, Draws(made[0], made[1], torch.rand(count, 2, generator=g), *made[2:])

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99))
    for _ in range(100):
        which, x0, plan = batch(16)
        mask = first_frames(torch.rand(16, generator=g), (0.7, 0.3), 2)
        of.loss(model, x0, Condition(texts[which], mask), plan).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    which, x0, plan = batch(64)
    with torch.no_grad():
        right, wrong = (of.loss(model, x0, Condition(texts[one], torch.zeros(64, 2)), plan).per_sample_B.mean().item()
                        for one in (which, 1 - which))  # fmt: skip
    assert wrong > 2 * right, "texts count"
    for one, near in enumerate((-0.8, 0.8)):
        condition = Condition(texts[[one] * 8], torch.zeros(8, 2), torch.zeros(8, *shape))
        found = samplers.sample(model, of, how, condition, None, samplers.noise((8, *shape), 3))
        assert found.mean().item() == pytest.approx(near, abs=0.25)


# Samplers


def exact(start: Tensor, sigma_max: float, sigma_min: float) -> Tensor:
    """x0 of the best denoiser at the end of the exact path from x = start at sigma_max."""
    x = MEAN + (start - MEAN) * math.sqrt((STD**2 + sigma_min**2) / (STD**2 + sigma_max**2))
    return best(x, torch.tensor([sigma_min]))


def errors(solve: Callable[[int], Tensor], wanted: Tensor, steps: tuple[int, ...]) -> list[float]:
    return [(solve(n) - wanted).abs().max().item() for n in steps]


@pytest.mark.parametrize(("solver", "order"), [(samplers.multistep, 2), (samplers.heun, 2)])
def test_solvers_over_sigma_converge_with_their_order(solver: Callable, order: int) -> None:
    """Twice the steps, a quarter of the error; at float32's rounding it ends."""
    start = normal(9, 64).double() * 80
    wanted = exact(start, 80.0, 0.002)
    found = errors(lambda n: solver(best, start, samplers.karras(n)), wanted, (16, 32, 64))
    for coarse, fine in pairwise(found):
        assert math.log2(coarse / fine) > order - 0.4, found
    assert found[-1] < 0.01


@pytest.mark.parametrize(("solver", "order"), [(samplers.unipc, 2), (samplers.euler, 1)])
def test_solvers_over_t_converge_with_their_order(solver: Callable, order: int) -> None:
    start = normal(9, 64).double()
    t = samplers.shifted(10)[0].item()
    # in terms of sigma: x / (1 - t) is x0 + sigma n
    wanted = exact(start / (1 - t), t / (1 - t), 0.0)
    found = errors(lambda n: solver(best_of_flow, start, samplers.shifted(n)), wanted, (16, 32, 64))
    for coarse, fine in pairwise(found):
        assert math.log2(coarse / fine) > order - 0.4, found
    assert found[-1] < (0.1 if order == 1 else 5e-3)


@pytest.mark.parametrize(
    ("of", "how"),
    [
        (EDM(), Sampling("multistep", "karras", 64, 0)),
        (EDM(latent_scale=1.0), Sampling("heun", "karras", 64, 0)),
        (EDM(), Sampling("euler", "karras-zero", 200, 0)),
        (SigmaFlow(), Sampling("multistep", "karras", 64, 0)),
        (Flow(), Sampling("unipc", "shifted", 64, 0)),
        (Flow(), Sampling("unipc", "flow-karras", 64, 0)),
        (Flow(), Sampling("euler", "shifted", 200, 0)),
    ],
)
def test_samples_have_the_mean_and_variance_of_the_data(of: EDM | Flow, how: Sampling) -> None:
    """Through the objective's own scales. The network of a flow is told whole timesteps: that is its error."""
    found = samplers.sample(Ideal(of), of, how, Condition(torch.zeros(4, 1, 1)), None, samplers.noise(SHAPE, 3))
    found = found * of.latent_scale
    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found.std().item() == pytest.approx(STD, abs=0.02)


def test_the_multistep_solver_is_the_published_one() -> None:
    """Of a denoiser that is no straight line."""
    golden = arrays("predict1")
    start = tensor("start", 2, 3).double() * 80
    for steps in (4, 9):
        # the published solver gives the denoiser the type that it was given
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(samplers, "_of", lambda f: lambda x, s: f(x, s.expand(len(x))))
            found = samplers.multistep(lambda x, s: torch.tanh(x / (1 + s[:, None])), start, samplers.karras(steps))
        close(found.double(), golden[f"sampled.{steps}"], tolerance=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 35])
@pytest.mark.parametrize("kind", ["unipc", "euler"])
def test_solvers_of_flows_are_diffusers_step_by_step(kind: str, steps: int) -> None:
    from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

    def velocity(x: Tensor, t: float) -> Tensor:
        return torch.tanh(2 * x + t) - 0.3 * x

    times = samplers.shifted(steps)
    if kind == "unipc":
        theirs = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0)
        theirs.set_timesteps(steps)
        theirs.sigmas = times.float()  # of version 0.42; its own begin nearer to 1 than those of Predict2.5
    else:
        theirs = FlowMatchEulerDiscreteScheduler()
        theirs.set_timesteps(sigmas=times[:-1].numpy())
        np.testing.assert_allclose(theirs.sigmas.numpy(), times.numpy(), rtol=1e-5, atol=1e-7)
    x = normal(11, 2, 3, 4, 4, 4)
    states: list[Tensor] = []
    state = x.clone()
    for i, step in enumerate(theirs.timesteps):
        states.append(state)
        state = theirs.step(velocity(state, times[i].item()), step, state).prev_sample
    seen: list[Tensor] = []

    def denoised(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return x - t[0] * velocity(x, t[0].item())

    found = getattr(samplers, kind)(denoised, x, times)
    assert len(seen) == steps
    for i, (mine, their) in enumerate(zip(seen, states, strict=True)):
        close(mine, their, f"step {i}", 2e-5)
    close(found, state, "the end", 2e-5)


def test_euler_over_sigma_is_diffusers_step_by_step() -> None:
    """EDMEulerScheduler, as Predict1's published inference has it: 80 to 0.0002, then 0."""
    from diffusers import EDMEulerScheduler

    steps = 7
    theirs = EDMEulerScheduler(sigma_max=80, sigma_min=0.0002, sigma_data=0.5)
    theirs.set_timesteps(steps)
    how = Sampling("euler", "karras-zero", steps, 0)
    levels = samplers.levels_of(how, EDM())
    np.testing.assert_allclose(theirs.sigmas.numpy(), levels.numpy(), rtol=1e-5)

    def network(x: Tensor, level: Tensor, *_: Tensor | None) -> Output:
        return Output(torch.tanh(3 * x + level.view(-1, 1, 1, 1, 1)) - 0.2 * x, None)

    start = normal(12, 1, 3, 2, 4, 4)
    x = start * theirs.init_noise_sigma
    for i, step in enumerate(theirs.timesteps):
        scaled = theirs.scale_model_input(x, step)
        x = theirs.step(network(scaled, step.view(1)).latents_BCTHW, step, x).prev_sample
        assert step.item() == pytest.approx(levels[i].log().item() / 4, abs=1e-5)
    found = samplers.sample(network, EDM(), how, Condition(torch.zeros(1, 1, 1)), None, start * 80.0062 / 80)
    close(found * 0.5, x, "the end", 1e-3)


@pytest.mark.parametrize("name", ["unipc.1", "unipc.2", "unipc.3", "unipc.10", "unipc.10.karras"])
def test_unipc_is_the_published_one(name: str) -> None:
    golden = arrays("predict25")
    steps = int(name.split(".")[1])
    times = samplers.flow_karras(steps) if name.endswith("karras") else samplers.shifted(steps)
    np.testing.assert_allclose(times.numpy(), golden[f"{name}.sigmas"].numpy(), rtol=1e-6)
    told: list[float] = []
    of = Flow()

    def network(x: Tensor, level: Tensor, *_: Tensor | None) -> Output:
        told.append(level[0].item())
        t = times[len(told) - 1].item()
        return Output(torch.tanh(2 * x + t) - 0.3 * x, None)

    how = Sampling("unipc", "flow-karras" if name.endswith("karras") else "shifted", steps, 0)
    start = tensor("start", 2, 3, 4)[:, :, None, None]  # [B, C, T, H, W]
    found = samplers.sample(network, of, how, Condition(torch.zeros(2, 1, 1)), None, start)
    close(found[:, :, 0, 0], golden[name], tolerance=2e-5)
    assert told == pytest.approx(golden[f"{name}.told"].tolist(), abs=1e-3)


@pytest.mark.parametrize(
    ("of", "config", "names", "how"),
    [
        (EDM(), PREDICT1, "predict1", Sampling("multistep", "karras", 3, 2.0)),
        (EDM(), PREDICT1, "predict1", Sampling("heun", "karras", 2, 2.0)),
        (EDM(), PREDICT1, "predict1", Sampling("euler", "karras-zero", 3, 2.0)),
        (SigmaFlow(), PREDICT2, "predict2", Sampling("multistep", "karras", 3, 2.0)),
        (Flow(), PREDICT25, "predict2", Sampling("unipc", "shifted", 4, 2.0)),
        (Flow(given_level=0.1), PREDICT25, "predict2", Sampling("unipc", "flow-karras", 3, 0)),
        (Flow(), PREDICT25, "predict2", Sampling("euler", "shifted", 3, 2.0)),
    ],
)
def test_given_frames_are_kept_exactly(of: EDM | Flow, config, names: str, how: Sampling) -> None:
    """And seeds reproduce, texts and given frames count, guidance steers."""
    model = published(config, names)
    latents = tensor("latents", 2, 16, 4, 8, 12)
    text, other = (tensor(name, 2, 6, config.text_input) for name in ("text", "other"))
    condition = Condition(text, given(1, 2), latents, torch.tensor([12.0, 12.0]))

    def made_with(condition=condition, negative=other, seed=1, how=how) -> Tensor:
        return samplers.sample(model, of, how, condition, negative, samplers.noise(latents.shape, seed))

    found = made_with()
    assert torch.isfinite(found).all()
    assert torch.equal(found[0, :, :1], latents[0, :, :1]) and torch.equal(found[1, :, :2], latents[1, :, :2])
    assert torch.equal(found, made_with())
    rest = found[:, :, 2:]
    for what, changed in {
        "seed": made_with(seed=2),
        "text": made_with(condition._replace(text_BLE=other)),
        "given frames": made_with(condition._replace(latents_BCTHW=latents * 0.5)),
        "which are given": made_with(condition._replace(given_BT=given(0, 0))),
    }.items():
        assert not torch.allclose(changed[:, :, 2:], rest, rtol=1e-3), what
    # what is not given is not looked at
    hidden = latents.clone()
    hidden[:, :, 2:] = torch.nan
    assert torch.equal(made_with(condition._replace(latents_BCTHW=hidden)), found)
    if how.guidance:
        assert not torch.allclose(made_with(negative=text * 0.1)[:, :, 2:], rest, rtol=1e-3)
        close(made_with(negative=text), made_with(how=how._replace(guidance=0)), tolerance=1e-5)


def test_guidance_is_counted_as_published() -> None:
    """with + guidance (with - without)."""
    one = samplers.guided(lambda x, s: x, lambda x, s: 3 * x, 2.0)
    assert one(torch.ones(1), torch.ones(1)).item() == 1 + 2 * (1 - 3)


def test_noise_is_numpys() -> None:
    wanted = np.random.RandomState(17).standard_normal((2, 3)).astype(np.float32)
    assert torch.equal(samplers.noise((2, 3), 17), torch.from_numpy(wanted))


def test_what_does_not_go_together_is_said() -> None:
    condition, start = Condition(torch.zeros(1, 1, 1)), torch.zeros(1, 16, 1, 2, 2)
    for of, how, words in (
        (EDM(), Sampling("unipc", "shifted"), "shifted is of flows; the model was trained as an EDM"),
        (EDM(), Sampling("euler", "flow-karras"), "flow-karras is of flows; the model was trained as an EDM"),
        (Flow(), Sampling("unipc", "karras"), "schedule karras: there are .*unipc over shifted or flow-karras"),
        (Flow(), Sampling("multistep", "shifted"), "there are multistep over karras"),
        (Flow(), Sampling("ddim", "karras"), "solver ddim, schedule karras: there are"),
        (Flow(), Sampling("unipc", "shifted"), "guidance needs a text"),
    ):
        with pytest.raises(ValueError, match=words):
            samplers.sample(SimpleNamespace(), of, how, condition, None, start)
