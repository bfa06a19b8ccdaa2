"""Tokenizers: any portions of a video are the whole video, in bounded memory; wavelets and ids are exact; weights load
from every format or say what is wrong with them."""

from __future__ import annotations

import gc
import json
import random
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from made import made, weight
from torch import Tensor, nn

from hpc.models.tokenizer_files import files_of
from hpc.models.tokenizers import Tokenizer, cosmos, encoded, files, haar, load, names, wan
from hpc.models.tokenizers.causal import CausalTokenizer
from hpc.models.tokenizers.fsq import FSQ
from hpc.models.tokenizers.torchscript import read_torchscript

DV = cosmos.Config(channels=8, window=3)
CV = cosmos.Config(
    channels=8, spatial=8, levels=(), latent_channels=3, window=None,
    mean=((0.1, 0.2), (0.3, 0.4), (0.5, 0.6)), std=((1.0, 2.0), (3.0, 4.0), (0.5, 0.25)),
)  # fmt: skip
WAN = wan.Config(channels=8, mean=(0.1, 0.2, -0.3), std=(1.0, 2.0, 0.5))
MAKERS = {
    "dv": lambda: cosmos.CosmosDiscrete(DV),
    "cv": lambda: cosmos.CosmosContinuous(CV),
    "wan": lambda: wan.WanVAE(WAN),
}


def small(kind: str) -> CausalTokenizer:
    tokenizer = MAKERS[kind]()
    for name, parameter in tokenizer.named_parameters():
        parameter.data = torch.from_numpy(weight(name, *parameter.shape))
    if kind == "dv":
        tokenizer.encoder.quantise.weight.data *= 4  # so that there are many ids
    return tokenizer.eval().requires_grad_(False)


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request: pytest.FixtureRequest) -> CausalTokenizer:
    return small(request.param)


def splits(total: int, count: int) -> Iterator[list[int]]:
    """All in one, one by one, and random ones, some empty."""
    yield [total]
    yield [1] * total
    draw = random.Random(0)
    for _ in range(count):
        cuts = sorted(draw.choices(range(total + 1), k=draw.randint(1, 5)))
        yield [b - a for a, b in zip([0, *cuts], [*cuts, total], strict=True)]


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and (a - b).abs().max().item() <= 1e-5 * b.abs().max().item()


# --- the interface and its streams


def test_it_is_a_tokenizer(tokenizer: CausalTokenizer) -> None:
    assert isinstance(tokenizer, Tokenizer)
    video = torch.from_numpy(made("video", 2, 3, 17, 32, 48))
    latents = tokenizer.encode(video)
    t, h, w = tokenizer.latent_frames(17), 32 // tokenizer.spatial, 48 // tokenizer.spatial
    if tokenizer.vocabulary:
        assert latents.shape == (2, t, h, w) and latents.dtype == torch.int32
        assert tokenizer.vocabulary == 64_000 and latents.unique().numel() > 10
    else:
        assert latents.shape == (2, tokenizer.latent_channels, t, h, w) and latents.dtype == torch.float32
    assert tokenizer.pixel_frames(t) == 17
    assert tokenizer.decode(latents).shape == video.shape


@pytest.mark.parametrize(
    ("kind", "frames", "latent"), [("dv", (1, 33, 121), (1, 5, 16)), ("wan", (1, 81, 93), (1, 21, 24))]
)
def test_latent_frames(kind: str, frames: tuple[int, ...], latent: tuple[int, ...]) -> None:
    tokenizer = small(kind)
    assert tuple(map(tokenizer.latent_frames, frames)) == latent
    assert tuple(map(tokenizer.pixel_frames, latent)) == frames


def test_any_portions_are_the_whole(tokenizer: CausalTokenizer) -> None:
    video = torch.from_numpy(made("video", 1, 3, 41, 16, 32))
    whole = tokenizer.encode(video)
    for sizes in splits(41, 4):
        parts = torch.cat(list(tokenizer.encode_stream(video.split(sizes, dim=2))), dim=-3)
        assert torch.equal(parts, whole) if tokenizer.vocabulary else close(parts, whole), sizes
    decoded = tokenizer.decode(whole)
    for sizes in splits(whole.shape[-3], 2):
        parts = torch.cat(list(tokenizer.decode_stream(whole.split(sizes, dim=-3))), dim=2)
        assert close(parts, decoded), sizes


def test_no_latent_sees_later_frames(tokenizer: CausalTokenizer) -> None:
    video = torch.from_numpy(made("video", 1, 3, 17, 32, 32))
    other = video.clone()
    other[:, :, 9:] = 0
    seen = tokenizer.latent_frames(9)
    first, second = (tokenizer.encoder(x, None)[0] for x in (video, other))
    assert torch.equal(first[:, :, :seen], second[:, :, :seen])
    assert not torch.equal(first, second)


@pytest.mark.parametrize("frames", [1, 17, 41])
def test_many_pixels_are_encoded_in_pieces(
    tokenizer: CausalTokenizer, frames: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same but for rounding, ids to the last bit; what the encoder sees at once is bounded in any batch."""
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, frames, 16, 32), dtype=np.uint8))
    whole = encoded(tokenizer, pictures)
    assert torch.equal(whole, tokenizer.encode(pictures.float() / 127.5 - 1))
    seen: list[int] = []
    tokenizer.encoder.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, 0].numel()))
    for most in (5 * frames * 512, 2 * 17 * 512, 12 * 512, 512):
        monkeypatch.setattr("hpc.models.tokenizer_files.PIECE", most)
        seen.clear()
        found = encoded(tokenizer, pictures)
        if tokenizer.vocabulary is not None or most >= 5 * frames * 512:
            assert torch.equal(found, whole) and seen == [pictures[:, 0].numel()]
            continue
        assert close(found, whole) and sum(seen) == pictures[:, 0].numel()
        assert len(seen) > 1 and max(seen) <= max(most, tokenizer.temporal * 512)
    if frames == 17 and tokenizer.vocabulary is None:
        monkeypatch.setattr("hpc.models.tokenizer_files.PIECE", 2 * 17 * 512)
        seen.clear()
        encoded(tokenizer, pictures)
        assert seen == [2 * 17 * 512, 2 * 17 * 512, 17 * 512], "small ones go together"


@pytest.mark.parametrize("kind", ["dv", "wan"])
def test_a_stream_needs_no_more_memory_the_longer_it_is(kind: str) -> None:
    tokenizer = small(kind)

    def held() -> int:
        gc.collect()
        tensors = [x for x in gc.get_objects() if type(x) is Tensor]
        return sum({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors}.values())

    def sizes(stream: Iterator[Tensor]) -> list[int]:
        return [held() for step, _ in enumerate(stream) if step in (8, 24)]

    chunk = torch.from_numpy(made("chunk", 1, 3, 8, 16, 16))
    first = chunk[:, :, :1]
    latents = tokenizer.encode(first)
    for stream in (
        tokenizer.encode_stream(x for x in [first] + [chunk] * 24),
        tokenizer.decode_stream(latents for _ in range(25)),
    ):
        before = held()
        early, late = sizes(stream)
        assert before < early == late


def test_the_window_of_attention_over_time() -> None:
    """Up to it, all the same as without; beyond, what leaves it is not seen any more."""
    narrow = small("dv")
    wide = cosmos.CosmosDiscrete(cosmos.Config(channels=8, window=None)).eval()
    wide.load_state_dict(narrow.state_dict())
    video = torch.from_numpy(made("video", 1, 3, 57, 32, 32))
    z = [tokenizer.encoder(video, None)[0] for tokenizer in (narrow, wide)]
    assert close(z[0][:, :, :3], z[1][:, :, :3]) and not close(*z)
    parts = [tokenizer.encoder(video[:, :, :17], None)[0] for tokenizer in (narrow, wide)]
    assert close(*parts)


def test_latents_are_normalised_frame_by_frame() -> None:
    tokenizer = small("cv")
    video = torch.from_numpy(made("video", 1, 3, 25, 16, 16))
    z, _ = tokenizer.encoder(video, None)
    latents = tokenizer.encode(video)
    for frame, column in enumerate((0, 1, 1, 1)):  # those after the last of the table like the last
        mean, std = (torch.tensor([row[column] for row in table])[:, None, None] for table in (CV.mean, CV.std))
        assert torch.allclose(latents[0, :, frame], (z[0, :, frame] - mean) / std)
    assert torch.allclose(tokenizer.z_of(latents, 0), z, atol=1e-6)


def test_bfloat16(tokenizer: CausalTokenizer) -> None:
    """Weights are; ids and latents are not."""
    video = torch.from_numpy(made("video", 1, 3, 9, 32, 32))
    rounded = small(next(kind for kind, make in MAKERS.items() if type(make()) is type(tokenizer))).to(torch.bfloat16)
    latents = rounded.encode(video)
    assert latents.dtype == (torch.int32 if tokenizer.vocabulary else torch.float32)
    assert rounded.decode(latents).dtype == torch.bfloat16
    if not tokenizer.vocabulary:
        exact = tokenizer.encode(video)
        assert 0 < (latents - exact).abs().mean() < 0.1 * exact.abs().mean()


@pytest.mark.parametrize("kind", ["dv", "wan"])
def test_a_network_is_one_graph(kind: str) -> None:
    """So that it compiles whole; also with what a stream keeps."""
    if kind == "dv":
        make = cosmos.CosmosDiscrete(cosmos.Config(channels=4, multipliers=(1, 1), blocks=1, spatial=8))
    else:
        make = wan.WanVAE(
            wan.Config(channels=4, multipliers=(1, 1), blocks=1, halves_frames=(True,), mean=(0,), std=(1,))
        )
    encoder = make.eval().requires_grad_(False).encoder
    compiled = torch.compile(encoder, backend="eager", fullgraph=True, dynamic=False)
    video = torch.from_numpy(made("video", 1, 3, 17, 8, 8))
    whole, kept = encoder(video, None)
    assert kept == []
    first, kept = encoder(video[:, :, :9], ())
    assert close(torch.cat([first, compiled(video[:, :, 9:], kept)[0]], dim=2), whole)
    if kind == "wan":
        assert close(compiled(video, None)[0], whole)


@pytest.mark.parametrize(
    ("video", "words"),
    [
        (torch.zeros(1, 3, 16, 32, 32), r"16 frames.*1 \+ k x 8"),
        (torch.zeros(1, 3, 9, 40, 32), "32x40.*16 divides"),
        (torch.zeros(1, 4, 9, 32, 32), r"\[batch, 3, frames, height, width\].*\[1, 4, 9, 32, 32\]"),
        (torch.zeros(1, 3, 9, 32, 32, dtype=torch.uint8), "floats from -1 to 1.*uint8"),
        (torch.zeros(1, 3, 0, 32, 32), "0 frames"),
    ],
)
def test_what_cannot_be_encoded(video: Tensor, words: str) -> None:
    tokenizer = small("dv")
    with pytest.raises(ValueError, match=words):
        tokenizer.encode(video)
    with pytest.raises(ValueError, match=words):
        list(tokenizer.encode_stream([video]))


# --- wavelets and ids


def test_wavelets_are_exact() -> None:
    """For pixels in 8 bits to the last bit; and the first band is the mean."""
    video = (torch.from_numpy(made("video", 2, 3, 17, 16, 24)) * 128 + 128).floor()
    assert video.unique().numel() == 256
    bands = haar.patch(video, 4, True)
    assert bands.shape == (2, 192, 5, 4, 6)
    assert torch.equal(haar.unpatch(bands, 4, True), video)
    assert torch.equal(bands[:, :3, 1, 0, 0], video[:, :, 1:5, :4, :4].mean((2, 3, 4)))
    floats = torch.from_numpy(made("video", 2, 3, 17, 16, 24))
    assert torch.allclose(haar.unpatch(haar.patch(floats, 4, True), 4, True), floats, atol=1e-6, rtol=0)
    assert torch.equal(
        torch.cat([haar.patch(video[:, :, :9], 4, True), haar.patch(video[:, :, 9:], 4, False)], 2), bands
    )
    assert torch.equal(haar.unpatch(bands[:, :, 3:], 4, False), video[:, :, 9:])


def test_all_ids_round_trip() -> None:
    fsq = FSQ((8, 8, 8, 5, 5, 5))
    ids = torch.arange(64_000, dtype=torch.int32).reshape(1, 10, 80, 80)
    codes = fsq.codes(ids)
    assert codes.movedim(1, -1).reshape(-1, 6).unique(dim=0).shape == (64_000, 6)
    half = torch.tensor([4, 4, 4, 2, 2, 2])
    assert torch.equal(fsq.ids_of(codes.movedim(1, -1) * half), ids)
    # and through the rounding: latents that are bounded to just these levels
    scale = (torch.tensor(fsq.levels) - 1) * 1.001 / 2
    offset = torch.tensor([0.5, 0.5, 0.5, 0, 0, 0])
    z = ((codes.movedim(1, -1) * half + offset) / scale).atanh() - (offset / scale).atanh()
    again, found = fsq(z.movedim(-1, 1))
    assert torch.equal(found, ids) and torch.equal(again, codes)
    # bfloat16, in which some trainers keep ids, holds 1,274 of them, and 64,000 is no id
    held = ids.bfloat16().int()
    assert (held == ids).sum() == 1_274 and held.max() == 64_000


def test_ids_that_there_are_not() -> None:
    fsq = FSQ((8, 5))
    for ids in (torch.tensor([[[40]]]), torch.tensor([[[-1]]])):
        with pytest.raises(ValueError, match="0 to 39"):
            fsq.codes(ids)
    with pytest.raises(ValueError, match="bfloat16"):
        fsq.codes(torch.zeros(1, 1, 1, dtype=torch.bfloat16))


def test_the_gradient_of_rounding_is_that_of_none() -> None:
    fsq = FSQ((8, 5))
    z = torch.randn(1, 2, 1, 2, 2, requires_grad=True)
    fsq(z)[0].sum().backward()
    scale = torch.tensor([7, 4]) * 1.001 / 2
    shift = torch.tensor([(0.5 / scale[0]).atanh(), 0.0])
    slope = (1 - (z.detach().movedim(1, -1) + shift).tanh() ** 2) * scale / torch.tensor([4, 2])
    assert torch.allclose(z.grad.movedim(1, -1), slope, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temporal": 6}, "temporal is 6: it is a power of two"),
        ({"spatial": 32}, "spatial compression is 32.*4 to 16"),
        ({"levels": (8, 8)}, "2 levels for 6 latent channels"),
        ({"mean": ((0.0,),)}, "mean: as many rows as latent channels"),
    ],
)
def test_sizes_that_do_not_fit(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cosmos.Config(**settings)


# --- weights


class Tree(nn.Module):
    """Modules by the names of tensors, as published code has them; it computes nothing of use."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, value in tensors.items():
            node: nn.Module = self
            *parents, last = name.split(".")
            for parent in parents:
                if parent not in dict(node.named_children()):
                    node.add_module(parent, Tree({}))
                node = node.get_submodule(parent)
            if value.is_floating_point():
                node.register_parameter(last, nn.Parameter(value, requires_grad=False))
            else:
                node.register_buffer(last, value)

    def forward(self, x: Tensor) -> Tensor:
        return x + 1


def archive(path: Path, tensors: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.save(torch.jit.trace(Tree(tensors), torch.zeros(1)), path)


def published(tokenizer: CausalTokenizer, rules: names.Rules, of: str) -> dict[str, Tensor]:
    """Its weights under their published names, 3D convolutions as they are there."""
    own = tokenizer.state_dict()
    facts = json.loads((Path(__file__).parent / "golden" / "tokenizers.json").read_text())["names"][of]
    found = {}
    for name, shape in facts.items():
        if (ours := names.renamed(name, rules)) in own:
            value = own[ours].clone()
            found[name] = value.reshape([*value.shape[:2], *shape[2:]]) if len(shape) == 5 else value
    assert len(found) == len([name for name in own if not name.startswith("fsq")])
    return found


def halves(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """What is in encoder.jit and what in decoder.jit, with the buffers that are no weights."""
    wavelets = {"wavelets": torch.ones(2), "_arange": torch.arange(2)}
    encoder = {k: v for k, v in tensors.items() if k.startswith(("encoder.", "quant_conv."))}
    decoder = {k: v for k, v in tensors.items() if k not in encoder}
    return {
        "encoder.jit": encoder
        | {f"encoder.patcher3d.{k}": v for k, v in wavelets.items()}
        | {"quantizer._levels": torch.tensor(DV.levels, dtype=torch.int32)},
        "decoder.jit": decoder | {f"decoder.unpatcher3d.{k}": v for k, v in wavelets.items()},
    }


def test_torchscript_archives(tmp_path: Path) -> None:
    """Also of bfloat16 weights, and of tensors that share memory."""
    shared = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "a.weight": shared,
        "a.other": shared.t(),
        "b.0.weight": torch.randn(3).bfloat16(),
        "b.1.ids": torch.arange(3),
        "empty": torch.empty(0),
    }
    archive(tmp_path / "x.jit", tensors)
    found = read_torchscript(tmp_path / "x.jit")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors.items())
    (tmp_path / "y.jit").write_bytes(b"no archive")
    with pytest.raises(RuntimeError, match=r"y.jit: cannot be read as a TorchScript archive"):
        read_torchscript(tmp_path / "y.jit")
    torch.save(tensors | {"code": print}, tmp_path / "z.jit")
    with pytest.raises(RuntimeError, match=r"__builtin__\.print is not expected"):
        read_torchscript(tmp_path / "z.jit")


def test_published_dv_loads(tmp_path: Path) -> None:
    ours = small("dv")
    for name, tensors in halves(published(ours, names.cosmos_published(DV), "DV8x16x16")).items():
        archive(tmp_path / name, tensors)
    loaded = load(str(tmp_path), config=DV)
    video = torch.from_numpy(made("video", 1, 3, 9, 32, 32))
    assert torch.equal(loaded.encode(video), ours.encode(video))
    assert close(loaded.decode(loaded.encode(video)), ours.decode(ours.encode(video)))
    assert not any(p.requires_grad for p in loaded.parameters())
    assert torch.equal(load(str(tmp_path / "encoder.jit"), config=DV).encode(video), ours.encode(video))
    assert next(load(str(tmp_path), dtype=torch.bfloat16, config=DV).parameters()).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match=r"of another size: encoder.conv_in.0.conv3d.weight"):
        load(str(tmp_path))  # the published sizes are others


def test_published_cv_loads_with_its_statistics(tmp_path: Path) -> None:
    ours = small("cv")
    tensors = published(ours, names.cosmos_published(CV), "CV8x8x8")
    archive(tmp_path / "autoencoder.jit", tensors)
    with pytest.raises(RuntimeError, match=r"needs its mean_std.pt"):
        load(str(tmp_path), config=CV)
    mean, std = torch.tensor(CV.mean), torch.tensor(CV.std)
    torch.save((mean.flatten(), std.flatten()), tmp_path / "mean_std.pt")
    (tmp_path / "config.json").write_text('{"architectures": ["CosmosTokenizer"]}')  # published, and tells nothing
    loaded = load(str(tmp_path), config=cosmos.Config(channels=8, spatial=8, levels=(), latent_channels=3))
    video = torch.from_numpy(made("video", 1, 3, 17, 16, 16))
    assert close(loaded.encode(video), ours.encode(video))


def test_published_wan_loads(tmp_path: Path) -> None:
    ours = small("wan")
    tensors = published(ours, names.wan_published(WAN), "Wan2.1")
    torch.save(tensors, tmp_path / "Wan2.1_VAE.pth")
    video = torch.from_numpy(made("video", 1, 3, 9, 16, 16))
    for where in (tmp_path, tmp_path / "Wan2.1_VAE.pth"):
        assert close(load(str(where), config=WAN).encode(video), ours.encode(video))


def test_diffusers_folders_load(tmp_path: Path) -> None:
    from diffusers import AutoencoderKLCosmos, AutoencoderKLWan

    sizes = dict(latent_channels=2, latents_mean=[0.5, 0.25, 0.0, 1.0], latents_std=[2.0, 4.0, 1.0, 0.5])
    widths = dict(encoder_block_out_channels=(8, 16, 32, 32), decode_block_out_channels=(16, 32, 32, 32))
    theirs = AutoencoderKLCosmos(**sizes, **widths)
    theirs.save_pretrained(tmp_path / "cosmos" / "vae")
    loaded = load(str(tmp_path / "cosmos"))
    video = torch.from_numpy(made("video", 1, 3, 17, 16, 16))
    mean, std = (
        torch.tensor(sizes[x]).reshape(1, 2, -1, 1, 1)[:, :, [0, 1, 1]] for x in ("latents_mean", "latents_std")
    )
    with torch.no_grad():
        assert close(loaded.encode(video), (theirs.encode(video).latent_dist.mode() - mean) / std)
    theirs = AutoencoderKLWan(base_dim=8, z_dim=2, latents_mean=[0.5, 0.25], latents_std=[2.0, 4.0])
    theirs.save_pretrained(tmp_path / "wan")
    loaded = load(str(tmp_path / "wan"))
    mean, std = (torch.tensor(x)[:, None, None, None] for x in ([0.5, 0.25], [2.0, 4.0]))
    with torch.no_grad():
        assert close(loaded.encode(video), (theirs.encode(video).latent_dist.mode() - mean) / std)
    other = json.loads((tmp_path / "wan" / "config.json").read_text()) | {"is_residual": True, "patch_size": 2}
    (tmp_path / "wan" / "config.json").write_text(json.dumps(other))
    with pytest.raises(RuntimeError, match=r"of another make: \{'is_residual': True, 'patch_size': 2\}"):
        load(str(tmp_path / "wan"))


def test_our_own_folder(tokenizer: CausalTokenizer, tmp_path: Path) -> None:
    files.save(tokenizer, tmp_path / "mine")
    loaded = load(str(tmp_path / "mine"))
    assert type(loaded) is type(tokenizer) and loaded.config == tokenizer.config
    video = torch.from_numpy(made("video", 1, 3, 9, 16, 16))
    assert close(loaded.encode(video).float(), tokenizer.encode(video).float())
    config = json.loads((tmp_path / "mine" / "config.json").read_text())
    for changed, words in (
        ({"tokenizer": "other"}, "tokenizer is 'other'; known are cosmos-dv, cosmos-cv, wan"),
        ({"channels": "many"}, r"Expected `int`, got `str` - at `\$.channels`"),
        ({"chanels": 8}, "config.json: chanels: a .* has .*channels"),
    ):
        (tmp_path / "mine" / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(RuntimeError, match=words):
            load(str(tmp_path / "mine"))


def test_weights_that_are_not_those(tmp_path: Path) -> None:
    tensors = published(small("wan"), names.wan_published(WAN), "Wan2.1")
    missing = {k: v for k, v in tensors.items() if k != "decoder.head.2.bias"}
    extra = tensors | {"encoder.extra.weight": torch.zeros(1)}
    wrong = tensors | {"conv1.bias": torch.zeros(5)}
    for state, words in (
        (missing, r"missing \(as they are called here\): decoder.conv_out.bias; left over: nothing"),
        (extra, "missing .*: nothing; left over: encoder.extra.weight; of another size: nothing"),
        (wrong, r"of another size: conv1.bias \[5\] for \[6\]"),
        ({"model": tensors}, "expected a file of named tensors; it holds model"),
        ({"a": torch.zeros(1)}, "not the weights of a tokenizer that is known here.*: a$"),
    ):
        torch.save(state, tmp_path / "Wan2.1_VAE.pth")
        with pytest.raises(RuntimeError, match=words):
            load(str(tmp_path / "Wan2.1_VAE.pth"), config=WAN)
    dv = halves(published(small("dv"), names.cosmos_published(DV), "DV8x16x16"))
    dv["encoder.jit"]["quantizer._levels"] = torch.tensor([8, 8, 8, 8, 8, 8])
    for name, tensors in dv.items():
        archive(tmp_path / name, tensors)
    with pytest.raises(RuntimeError, match=r"its FSQ has levels \[8, 8, 8, 8, 8, 8\]"):
        load(str(tmp_path), config=DV)


def test_another_tokenizer_by_its_import_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from hpc.models.tokenizers.wan import Config, WanVAE\n"
        "def make(device, dtype):\n"
        "    return WanVAE(Config(channels=8)).to(device, dtype)\n"
        "def wrong(device, dtype):\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load("mine:make", dtype=torch.bfloat16)
    assert loaded.latent_channels == 16 and next(loaded.parameters()).dtype == torch.bfloat16
    with pytest.raises(TypeError, match=r"mine:wrong returned a int, which lacks temporal, spatial, .*encode_stream"):
        load("mine:wrong")
    with pytest.raises(ValueError, match="no_such_module"):
        load("no_such_module:make")
    sys.modules.pop("mine", None)


def test_names_that_are_not_known(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="someone/Else: no tokenizer is known by this name"):
        load("someone/Else")
    assert files_of("/a/path") == files_of("a.module:make") == ()
    with pytest.raises(
        FileNotFoundError, match=r"no tokenizer on this machine: no folder with config.json, or encoder"
    ):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("repository", "expected"),
    [
        ("nvidia/Cosmos-Tokenize1-DV8x16x16-720p", "encoder.jit decoder.jit"),
        ("nvidia/Cosmos-1.0-Tokenizer-CV8x8x8", "encoder.jit decoder.jit mean_std.pt"),
        ("Wan-AI/Wan2.1-T2V-1.3B", "Wan2.1_VAE.pth"),
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "vae/config.json vae/diffusion_pytorch_model.safetensors"),
        ("nvidia/Cosmos-Predict2.5-2B", "tokenizer.pth"),
        ("nvidia/Cosmos-Predict2-2B-Video2World", "tokenizer/tokenizer.pth"),
    ],
)
def test_which_files_are_asked_of_the_hub(repository: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpc.models import tokenizers

    asked = []
    monkeypatch.setattr("hpc.models.tokenizer_files.located", lambda where, *files: asked.append((where, files)) or [])
    assert tokenizers.found(f"{repository}@abc") == []
    assert asked == [(f"{repository}@abc", tuple(expected.split()))]
