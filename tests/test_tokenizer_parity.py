"""Tokenizers compute what the published code computes, forwards and backwards: with the same random weights, through
the key maps, in float32 to 1e-5. Gradients sum up rounding errors: those of each parameter are compared in float64, and
all together in float32.

diffusers' AutoencoderKLCosmos and AutoencoderKLWan run here. What has no package (FSQ, DV8x16x16) is compared with
arrays that golden/make_tokenizers.py made by the published code.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from made import made, weight
from torch import Tensor, nn

from hpc.models.tokenizers import cosmos, files, haar, names, wan
from hpc.models.tokenizers.causal import CausalTokenizer
from hpc.models.tokenizers.fsq import FSQ

GOLDEN = Path(__file__).parent / "golden"
FACTS = json.loads((GOLDEN / "tokenizers.json").read_text())


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    with np.load(GOLDEN / "tokenizers.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def close(ours: Tensor, theirs: Tensor, what: str = "", tolerance: float = 1e-5) -> None:
    """To within the tolerance of the largest number, which rounding errors are of the size of."""
    assert ours.shape == theirs.shape, what
    difference = (ours - theirs).abs().max().item() / max(theirs.abs().max().item(), 1e-30)
    assert difference < tolerance, f"{what} differs by {difference:.1e} of its largest"


def is_key_bias(name: str) -> bool:
    """It moves all of a query's scores alike, which softmax takes no notice of: its gradient is 0, but for rounding."""
    return name.endswith((".to_k.bias", ".k.conv3d.bias"))


def same_gradients(ours: CausalTokenizer, theirs: nn.Module, rules: names.Rules) -> None:
    by_name = dict(ours.named_parameters())
    pairs = [(name, by_name[names.renamed(name, rules)].grad, p.grad) for name, p in theirs.named_parameters()]
    assert len(pairs) == len(by_name)
    total = torch.cat([grad.flatten() for _, _, grad in pairs])
    close(torch.cat([grad.flatten() for _, grad, _ in pairs]), total, "the gradient")
    if total.dtype == torch.float64:
        for name, mine, grad in pairs:
            if is_key_bias(name):
                assert mine.abs().max() < 1e-6 * total.abs().max()
            else:
                close(mine.reshape(grad.shape), grad, f"the gradient of {name}")


def fill(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        parameter.data = torch.from_numpy(weight(name, *parameter.shape)).to(parameter.dtype)


@pytest.mark.parametrize(
    ("spatial", "patch", "dtype"),
    [
        (8, 4, torch.float32),
        (8, 4, torch.float64),
        (16, 4, torch.float64),
        (8, 2, torch.float32),
        (8, 2, torch.float64),
    ],
)
def test_cosmos_is_that_of_diffusers(spatial: int, patch: int, dtype: torch.dtype) -> None:
    from diffusers import AutoencoderKLCosmos

    theirs = AutoencoderKLCosmos(
        latent_channels=3,
        encoder_block_out_channels=(8, 16, 32, 32),
        decode_block_out_channels=(16, 32, 32, 32),
        spatial_compression_ratio=spatial,
        temporal_compression_ratio=8 if patch == 4 else 4,
        patch_size=patch,
    )
    fill(theirs.to(dtype))
    config = cosmos.Config(
        temporal=8 if patch == 4 else 4,
        spatial=spatial,
        patch=patch,
        levels=(),
        latent_channels=3,
        z_channels=3,
        channels=8,
    )
    ours = cosmos.CosmosContinuous(config).to(dtype)
    files.fit(ours, {k: v.clone() for k, v in theirs.state_dict().items()}, names.COSMOS_DIFFUSERS, "here")
    videos = [torch.from_numpy(made("video", 2, 3, 17, 32, 48)).to(dtype).requires_grad_() for _ in range(2)]
    latents = [ours.encode(videos[0]), theirs.encode(videos[1]).latent_dist.mode()]
    close(*(x.float() for x in latents), "latents")
    again = [ours.decode(latents[0]), theirs.decode(latents[1]).sample]
    close(*again, "the video")
    for video in again:
        (video * torch.from_numpy(made("gradient", *video.shape))).sum().backward()
    close(videos[0].grad, videos[1].grad, "the gradient of the video")
    same_gradients(ours, theirs, names.COSMOS_DIFFUSERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wan_is_that_of_diffusers(dtype: torch.dtype) -> None:
    from diffusers import AutoencoderKLWan

    theirs = AutoencoderKLWan(base_dim=8, z_dim=3, latents_mean=[0.1, 0.2, -0.3], latents_std=[1.0, 2.0, 0.5])
    fill(theirs.to(dtype))
    theirs.decoder.conv_out.weight.data *= 0.2  # so that no pixel is clamped, which loses its gradient
    config = wan.Config(channels=8, mean=(0.1, 0.2, -0.3), std=(1.0, 2.0, 0.5))
    ours = wan.WanVAE(config).to(dtype)
    rules = names.wan_diffusers(config)
    files.fit(ours, {k: v.clone() for k, v in theirs.state_dict().items()}, rules, "here")
    videos = [torch.from_numpy(made("video", 2, 3, 13, 16, 24)).to(dtype).requires_grad_() for _ in range(2)]
    posterior = theirs.encode(videos[1]).latent_dist
    mean, std = (torch.tensor(x)[:, None, None, None] for x in (config.mean, config.std))
    latents = [ours.encode(videos[0]), (posterior.mode() - mean) / std]
    close(*(x.float() for x in latents), "latents")
    moments = ours.encoder(videos[0], None)[0]
    close(moments, posterior.parameters, "means and log variances")
    again = [ours.decode(latents[0]), theirs.decode(latents[1] * std + mean).sample]
    assert again[1].abs().max() < 1
    close(*again, "the video")
    for video, variance in zip(again, (moments, posterior.parameters), strict=True):
        loss = (video * torch.from_numpy(made("gradient", *video.shape))).sum() + variance[:, 3:].square().mean()
        loss.backward()
    close(videos[0].grad, videos[1].grad, "the gradient of the video")
    same_gradients(ours, theirs, rules)


def test_fsq_is_the_published_one(golden: dict[str, Tensor]) -> None:
    fsq = FSQ((8, 8, 8, 5, 5, 5))
    z = torch.from_numpy(made("fsq", 1, 6, 1, 1, 4000) * 4)
    codes, ids = fsq(z)
    assert ids.dtype == torch.int32 and ids.unique().numel() > 2000
    assert torch.equal(ids.flatten(), golden["fsq.ids"])
    assert torch.equal(codes[0, :, 0, 0], golden["fsq.codes"])
    codes16, ids16 = fsq(z.bfloat16())
    assert codes16.dtype == torch.bfloat16 and ids16.dtype == torch.int32
    assert torch.equal(ids16.flatten(), golden["fsq.ids.bfloat16"])
    assert not torch.equal(ids16, ids), "rounded latents are other latents"


def test_ids_are_the_published_sum() -> None:
    """sum(level x basis) in float32, then int32, for the codes of random latents."""
    fsq = FSQ((8, 8, 8, 5, 5, 5))
    z = torch.randn(2, 6, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2
    codes, ids = fsq(z)
    half = torch.tensor([4.0, 4, 4, 2, 2, 2])
    basis = torch.tensor([1.0, 8, 64, 512, 2560, 12800])
    assert torch.equal(ids, ((codes.movedim(1, -1) * half + half) * basis).sum(-1).to(torch.int32))


def test_haar_is_the_published_one(golden: dict[str, Tensor]) -> None:
    close(haar.patch(torch.from_numpy(made("haar", 1, 3, 9, 8, 8)), 4, True), golden["haar"], tolerance=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dv_is_the_published_one(golden: dict[str, Tensor], dtype: torch.dtype) -> None:
    facts = FACTS["dv"]
    config = cosmos.Config(channels=facts["channels"])
    ours = cosmos.CosmosDiscrete(config).to(dtype)
    rules = names.cosmos_published(config)
    own = dict(ours.named_parameters())
    parameters = {name: own[names.renamed(name, rules)] for name in FACTS["dv.grads"]}
    assert len(parameters) == len(own)
    kernel = {"space": lambda s: (s[0], s[1], 1, *s[2:]), "time": lambda s: (*s[:3], 1, 1)}

    def published(name: str, parameter: Tensor) -> tuple[int, ...]:
        """The shape in the published code, where all of these are 3D convolutions."""
        if not name.endswith("conv3d.weight"):
            return tuple(parameter.shape)
        if parameter.ndim == 2:
            return (*parameter.shape, 1, 1, 1)
        return kernel["time" if parameter.shape[-1] == 1 else "space"](parameter.shape)

    for name, parameter in parameters.items():
        values = weight(name, *published(name, parameter)) * (4 if name == "quant_conv.conv3d.weight" else 1)
        parameter.data = torch.from_numpy(values).reshape(parameter.shape).to(dtype)
    video = torch.from_numpy(made("video", *facts["video"])).to(dtype).requires_grad_()
    z, _ = ours.encoder(video, None)
    close(z.float(), golden["dv.z"], "z")
    codes, ids = ours.fsq(z)
    assert torch.equal(ids, golden["dv.ids"]) and ids.unique().numel() > 8
    assert torch.equal(ours.encode(video), ids)
    again, _ = ours.decoder(codes, None)
    close(again.float().flatten()[:: facts["every"]], golden["dv.reconstruction"], "the video")
    close(ours.decode(ids).to(dtype), again, "the video from ids")
    (again * torch.from_numpy(made("gradient", *facts["video"]))).sum().backward()
    close(video.grad.float().flatten()[:: facts["every"]], golden["dv.video.grad"], "the gradient of the video")
    for (name, parameter), (length, projection) in zip(parameters.items(), golden["dv.grads"].tolist(), strict=True):
        if is_key_bias(name) or dtype == torch.float32:
            continue
        gradient = parameter.grad.double().reshape(published(name, parameter))
        assert gradient.norm().item() == pytest.approx(length, rel=1e-6), name
        probe = torch.from_numpy(made("probe." + name, *gradient.shape))
        assert (gradient * probe).sum().item() == pytest.approx(projection, abs=1e-6 * length), name


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("DV8x16x16", lambda: cosmos.CosmosDiscrete(cosmos.DV8x16x16)),
        ("CV8x8x8", lambda: cosmos.CosmosContinuous(cosmos.CV8x8x8)),
        ("Wan2.1", lambda: wan.WanVAE()),
    ],
)
def test_published_names_and_sizes_are_all_known(name: str, make) -> None:
    """Of the published files at their published sizes: every weight has its place, and no place is left."""
    import re

    with torch.device("meta"):
        ours = make()
        state = {key: torch.empty(shape) for key, shape in FACTS["names"][name].items()}
    rules = names.wan_published(ours.config) if name == "Wan2.1" else names.cosmos_published(ours.config)
    assert files.guess(state) == ("wan" if name == "Wan2.1" else "cosmos")
    weights = {key: value for key, value in state.items() if not re.search(files.NOT_WEIGHTS, key)}
    files.fit(ours, weights, rules, name)
    assert len(weights) == len(ours.state_dict())
