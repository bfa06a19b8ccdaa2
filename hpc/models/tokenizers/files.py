"""Weights of tokenizers in files: reading each format, strict accounting of keys, and a folder of our own.

Our own folder has config.json ({"tokenizer": "cosmos-dv", "channels": 128, ...}: a kind and its Config) and
model.safetensors (float32 or as trained, the names of our modules).
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hpc.models.hub import shorten
from hpc.models.tokenizers import cosmos, names, wan
from hpc.models.tokenizers.causal import CausalTokenizer
from hpc.models.tokenizers.torchscript import read_torchscript

KINDS: dict[str, tuple[type[CausalTokenizer], type]] = {
    "cosmos-dv": (cosmos.CosmosDiscrete, cosmos.Config),
    "cosmos-cv": (cosmos.CosmosContinuous, cosmos.Config),
    "wan": (wan.WanVAE, wan.Config),
}
NOT_WEIGHTS = r"(^|\.)((un)?patcher3d|quantizer)\."
"""Buffers of Cosmos' files that are no weights: wavelets, levels and a table of all codes."""


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of one file by name, on the CPU. Raises RuntimeError for what holds none."""
    if path.suffix == ".jit":
        return read_torchscript(path)
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    state = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        held = shorten([str(key) for key in state]) if isinstance(state, dict) else type(state).__name__
        raise RuntimeError(f"{path}: expected a file of named tensors; it holds {held}")
    return state


def guess(state: dict[str, Tensor]) -> str:
    """Whose names these are: one of "cosmos", "cosmos diffusers", "wan", "wan diffusers"."""
    signs = {
        "cosmos": r"\.conv3d\.weight$",
        "cosmos diffusers": r"\.conv_s\.weight$",
        "wan": r"\.residual\.0\.gamma$",
        "wan diffusers": r"\.resnets\.0\.norm1\.gamma$",
    }
    found = [whose for whose, sign in signs.items() if any(re.search(sign, name) for name in state)]
    if len(found) != 1:
        raise RuntimeError(
            f"these are not the weights of a tokenizer that is known here ({', '.join(signs)}): {shorten(list(state))}"
        )
    return found[0]


def fit(tokenizer: CausalTokenizer, state: dict[str, Tensor], rules: names.Rules, where: str) -> None:
    """Copies weights into a tokenizer. Shapes may differ in dimensions of size 1: a convolution (3, 1, 1) is one over
    (time, pixels) here. Raises RuntimeError unless every weight is there, of its size, and nothing is left."""
    own = tokenizer.state_dict()
    found: dict[str, tuple[str, Tensor]] = {}
    left: list[str] = []
    wrong: list[str] = []
    for name, value in state.items():
        ours = names.renamed(name, rules)
        if ours not in own or ours in found:
            left.append(name)
            continue
        found[ours] = (name, value)
        if [n for n in value.shape if n != 1] != [n for n in own[ours].shape if n != 1]:
            wrong.append(f"{name} {list(value.shape)} for {list(own[ours].shape)}")
    missing = [name for name in own if name not in found]
    if missing or left or wrong:
        parts = {"missing (as they are called here)": missing, "left over": left, "of another size": wrong}
        words = "; ".join(f"{what}: {shorten(keys) or 'nothing'}" for what, keys in parts.items())
        raise RuntimeError(f"{where}: these are not the weights of this {tokenizer.kind}: {words}")
    tokenizer.load_state_dict({ours: value.reshape(own[ours].shape) for ours, (_, value) in found.items()}, assign=True)


def from_published(paths: list[Path], config: Any = None) -> CausalTokenizer:
    """A tokenizer of Cosmos-Tokenize1's .jit files (a CV's mean_std.pt among them) or Wan2.1's .pth, of the published
    sizes unless `config` says others. Raises RuntimeError where the weights are others."""
    where = " ".join(map(str, paths))
    state: dict[str, Tensor] = {}
    for path in paths:
        if path.name != "mean_std.pt":
            state |= read(path)
    whose = guess(state)
    if whose == "wan":
        tokenizer: CausalTokenizer = wan.WanVAE(config or wan.Config())
        fit(tokenizer, state, names.wan_published(tokenizer.config), where)
        return tokenizer
    if whose != "cosmos":
        raise RuntimeError(f"{where}: weights with diffusers' names: give the folder with their config.json instead")
    levels = next((value for name, value in state.items() if name.endswith("quantizer._levels")), None)
    latent_channels = state["quant_conv.conv3d.weight"].shape[0] if "quant_conv.conv3d.weight" in state else 0
    config = config or (cosmos.DV8x16x16 if latent_channels == 6 else cosmos.CV8x8x8)
    if levels is not None and tuple(levels.tolist()) != config.levels:
        raise RuntimeError(f"{where}: its FSQ has levels {levels.tolist()}, not {list(config.levels)}")
    weights = {name: value for name, value in state.items() if not re.search(NOT_WEIGHTS, name)}
    if config.levels:
        tokenizer = cosmos.CosmosDiscrete(config)
    else:
        statistics = next((path for path in paths if path.name == "mean_std.pt"), None)
        if statistics is None:
            raise RuntimeError(f"{where}: a continuous tokenizer needs its mean_std.pt beside these files")
        mean, std = torch.load(statistics, map_location="cpu", weights_only=True)
        tokenizer = cosmos.CosmosContinuous(
            dataclasses.replace(config, mean=rows(mean, config.latent_channels), std=rows(std, config.latent_channels))
        )
    fit(tokenizer, weights, names.cosmos_published(config), where)
    return tokenizer


def rows(values: Any, channels: int) -> tuple[tuple[float, ...], ...]:
    """A list or tensor of channels x latent frames numbers, as a table; None is none."""
    if values is None:
        return ()
    return tuple(map(tuple, torch.as_tensor(values).float().reshape(channels, -1).tolist()))


def from_diffusers(folder: Path, config: dict[str, Any]) -> CausalTokenizer:
    """A tokenizer of a folder that diffusers has saved: AutoencoderKLCosmos or AutoencoderKLWan."""
    state = read(folder / "diffusion_pytorch_model.safetensors")
    kind = config["_class_name"]
    if kind == "AutoencoderKLCosmos":
        first, *widths = config["encoder_block_out_channels"]
        channels = config["latent_channels"]
        expected = {
            "decode_block_out_channels": [*widths, widths[-1]],
            "patch_type": "haar",
            "in_channels": 3,
            "out_channels": 3,
            "scaling_factor": 1.0,
        }
        sizes = cosmos.Config(
            temporal=config["temporal_compression_ratio"],
            spatial=config["spatial_compression_ratio"],
            levels=(),
            latent_channels=channels,
            channels=first,
            multipliers=tuple(width // first for width in widths),
            blocks=config["num_layers"],
            patch=config["patch_size"],
            z_channels=channels,
            mean=rows(config["latents_mean"], channels),
            std=rows(config["latents_std"], channels),
        )
        tokenizer: CausalTokenizer = cosmos.CosmosContinuous(sizes)
        rules = names.COSMOS_DIFFUSERS
    elif kind == "AutoencoderKLWan":
        expected = {"is_residual": False, "patch_size": None, "attn_scales": [], "in_channels": 3, "out_channels": 3}
        wan_sizes = wan.Config(
            channels=config["base_dim"],
            multipliers=tuple(config["dim_mult"]),
            blocks=config["num_res_blocks"],
            halves_frames=tuple(config["temperal_downsample"]),
            mean=tuple(config["latents_mean"]),
            std=tuple(config["latents_std"]),
        )
        tokenizer = wan.WanVAE(wan_sizes)
        rules = names.wan_diffusers(wan_sizes)
    else:
        raise RuntimeError(f"{folder}: a {kind}; AutoencoderKLCosmos and AutoencoderKLWan are known here")
    other = {key: config[key] for key, value in expected.items() if key in config and config[key] != value}
    if other:
        raise RuntimeError(f"{folder}: a {kind} of another make: {other}, where {expected} is known here")
    fit(tokenizer, state, rules, str(folder))
    return tokenizer


def save(tokenizer: CausalTokenizer, folder: Path) -> None:
    """Our own folder, for `load`: weights as they are, in their type."""
    from safetensors.torch import save_file

    kind = next(name for name, (cls, _) in KINDS.items() if type(tokenizer) is cls)
    config = {"tokenizer": kind, **dataclasses.asdict(tokenizer.config)}
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous() for name, value in tokenizer.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def from_folder(folder: Path) -> CausalTokenizer:
    """A tokenizer of our own folder, or of one that diffusers has saved, told by its config.json."""
    import msgspec

    config = json.loads((folder / "config.json").read_bytes())
    if "_class_name" in config:
        return from_diffusers(folder, config)
    kind = config.pop("tokenizer")
    if kind not in KINDS:
        raise RuntimeError(f"{folder}/config.json: tokenizer is {kind!r}; known are {', '.join(KINDS)}")
    cls, sizes = KINDS[kind]
    known = [field.name for field in dataclasses.fields(sizes)]
    if unknown := [key for key in config if key not in known]:
        raise RuntimeError(f"{folder}/config.json: {', '.join(unknown)}: a {kind} has {', '.join(known)}")
    try:
        tokenizer = cls(msgspec.convert(config, sizes))
    except (msgspec.ValidationError, ValueError) as error:
        raise RuntimeError(f"{folder}/config.json: {error}") from error
    fit(tokenizer, read(folder / "model.safetensors"), [], str(folder))
    return tokenizer
