"""Weights of diffusion transformers in files: what published files call them, and each key accounted for.

Our modules have the names of Predict2 and 2.5. Files of either generation, and those that diffusers saves, are told
apart by their names; a file may have the weights trained last (net.) beside their running average (net_ema.), or one of
them without a prefix.

    Predict1   model.pt, iter_000001000_{reg,ema}_model.pt
               net.blocks.block0.blocks.0.block.attn.to_q.0.weight, logvar.1.weight
    Predict2+  model.pt, model_ema_{fp32,bf16}.pt, <uuid>_ema_bf16.pt   net.blocks.0.self_attn.q_proj.weight
    diffusers  diffusion_pytorch_model*.safetensors                     transformer_blocks.0.attn1.to_q.weight

Our own folder has config.json (the Config) and model.safetensors, with our names.

cosmos_predict1 4ed35fa: diffusion/training/models/model_image.py; cosmos_predict2.5 50369b8: scripts/
convert_distcp_to_pt.py, networks/minimal_v4_dit.py; diffusers 0.42.1: transformer_cosmos.py
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from hpc.models import lora
from hpc.models.dit import DiT
from hpc.models.dit_presets import Config
from hpc.models.hub import shorten

Names = Literal["predict1", "predict2", "diffusers", "ours"]
Weights = Literal["net", "net_ema"]

PUBLISHED: dict[Names, list[tuple[str, str]]] = {
    "predict1": [
        (r"^log_variance\.out\.", "logvar.1."),
        (r"^log_variance\.", "logvar.0."),
        (r"^blocks\.(\d+)\.adaln_modulation_self_attn\.", r"blocks.block\1.blocks.0.adaLN_modulation."),
        (r"^blocks\.(\d+)\.adaln_modulation_cross_attn\.", r"blocks.block\1.blocks.1.adaLN_modulation."),
        (r"^blocks\.(\d+)\.adaln_modulation_mlp\.", r"blocks.block\1.blocks.2.adaLN_modulation."),
        (r"^blocks\.(\d+)\.self_attn\.", r"blocks.block\1.blocks.0.block.attn."),
        (r"^blocks\.(\d+)\.cross_attn\.", r"blocks.block\1.blocks.1.block.attn."),
        (r"^blocks\.(\d+)\.mlp\.", r"blocks.block\1.blocks.2.block."),
        (r"\.([qkv])_proj\.", r".to_\1.0."),
        (r"\.([qk])_norm\.", r".to_\1.1."),
        (r"\.output_proj\.", ".to_out.0."),
        (r"^final_layer\.adaln_modulation\.", "final_layer.adaLN_modulation."),
        (r"^t_embedding_norm\.", "affline_norm."),
        (r"^x_embedder\.", "x_embedder.proj.1."),
        (r"^t_embedder\.", "t_embedder.1."),
    ],
    "predict2": [
        (r"^x_embedder\.", "x_embedder.proj.1."),
        (r"^t_embedder\.", "t_embedder.1."),
        (r"^crossattn_proj\.", "crossattn_proj.0."),
    ],
    "diffusers": [
        (r"^final_layer\.adaln_modulation\.", "norm_out.linear_"),
        (r"^final_layer\.linear\.", "proj_out."),
        (r"\.adaln_modulation_self_attn\.", ".norm1.linear_"),
        (r"\.adaln_modulation_cross_attn\.", ".norm2.linear_"),
        (r"\.adaln_modulation_mlp\.", ".norm3.linear_"),
        (r"\.self_attn\.", ".attn1."),
        (r"\.cross_attn\.", ".attn2."),
        (r"\.([qkv])_proj\.", r".to_\1."),
        (r"\.([qk])_norm\.", r".norm_\1."),
        (r"\.output_proj\.", ".to_out.0."),
        (r"\.mlp\.layer1\.", ".ff.net.0.proj."),
        (r"\.mlp\.layer2\.", ".ff.net.2."),
        (r"^blocks\.", "transformer_blocks."),
        (r"^x_embedder\.", "patch_embed.proj."),
        (r"^t_embedder\.", "time_embed.t_embedder."),
        (r"^t_embedding_norm\.", "time_embed.norm."),
        (r"^extra_pos_embedder\.", "learnable_pos_embed."),
        (r"^crossattn_proj\.", "crossattn_proj.0."),
    ],
    "ours": [],
}
"""Our names -> those of published files: (pattern, replacement), each applied to what the one before has left."""
SIGNS: dict[Names, str] = {
    "predict1": r"^(net\.|net_ema\.)?blocks\.block0\.",
    "predict2": r"^(net\.|net_ema\.)?x_embedder\.proj\.1\.weight$",
    "diffusers": r"^transformer_blocks\.0\.",
    "ours": r"^x_embedder\.weight$",
}
NOT_WEIGHTS = {
    "of transformer-engine": r"(^|\.)_extra_state$",
    "rotary positions": r"(^|\.)pos_embedder\.(seq|dim_spatial_range|dim_temporal_range)$",
    "counters": r"(^|\.)accum_(video_sample_counter|image_sample_counter|iteration|train_in_hours)$",
}
"""What published files have that is computed here, or is of no use. Anything else must have its place."""


class Account(NamedTuple):
    """Of the keys of a file."""

    names: Names
    read: int
    ignored: dict[str, int]
    """What they are -> how many: of NOT_WEIGHTS; the other of net and net_ema; the log-variance, of training alone,
    where the model has no such head."""
    fresh: list[str]
    """Of the model, which the file may lack and does: they keep their values."""


def read(path: Path) -> dict[str, Any]:
    """What one file holds, by name, on the CPU, read as it is used. Raises RuntimeError for what is none."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    # transformer-engine keeps states as bytes in a file; nothing else but tensors is made of a pickle
    with torch.serialization.safe_globals([io.BytesIO]):
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        held = shorten([str(key) for key in state]) if isinstance(state, dict) else type(state).__name__
        raise RuntimeError(f"{path}: expected a file of named tensors; it holds {held}")
    return state


def guess(state: dict[str, Any], where: str) -> Names:
    """Whose names these are. Raises RuntimeError where they are nobody's."""
    for whose, sign in SIGNS.items():
        if any(re.search(sign, name) for name in state):
            return whose
    raise RuntimeError(
        f"{where}: these are not the weights of a diffusion transformer that is known here ({', '.join(SIGNS)}): "
        f"{shorten(list(state))}"
    )


def published(name: str, names: Names) -> str:
    """What published files call a weight of ours, without a prefix."""
    for pattern, replacement in PUBLISHED[names]:
        name = re.sub(pattern, replacement, name)
    return name


def fit(model: DiT, state: dict[str, Any], where: str, weights: Weights = "net", lack: tuple[str, ...] = ()) -> Account:
    """Puts the weights of a file into a model, whose types and device stay. The rest is as of `placed`."""
    found, account = placed(model, state, where, weights, lack)
    own = model.state_dict()
    with torch.no_grad():
        for ours, value in found.items():
            own[ours].copy_(value)
    return account


def placed(
    model: DiT, state: dict[str, Any], where: str, weights: Weights = "net", lack: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], Account]:
    """The tensors of a file by our names of a model's weights. Raises RuntimeError unless every weight of the model,
    whose own may have no values, is there, of its size, and nothing is left over.

    weights: which, of a file that has both.
    lack: beginnings of our names, e.g. ("log_variance.",), that the file may lack.
    """
    names = guess(state, where)
    own = model.state_dict()
    places = {published(name, names): name for name in own}
    found: dict[str, Tensor] = {}
    ignored: dict[str, int] = {}
    left: list[str] = []
    wrong: list[str] = []
    prefixes = {name.partition(".")[0] for name in state} & {"net", "net_ema"}
    if prefixes and weights not in prefixes:
        raise RuntimeError(f"{where}: it has no {weights}. weights, only {' '.join(sorted(prefixes))}")
    for name, value in state.items():
        prefix, _, rest = name.partition(".")
        if what := next((what for what, sign in NOT_WEIGHTS.items() if re.search(sign, name)), None):
            ignored[what] = ignored.get(what, 0) + 1
            continue
        if prefix in prefixes and prefix != weights:
            ignored[f"{prefix}."] = ignored.get(f"{prefix}.", 0) + 1
            continue
        ours = places.get(rest if prefix in prefixes else name)
        if name.startswith(("logvar.", "log_variance.")) and model.log_variance is None:
            ignored["log-variance"] = ignored.get("log-variance", 0) + 1
        elif ours is None or ours in found:
            left.append(name)
        else:
            found[ours] = value
            if value.shape != own[ours].shape:
                wrong.append(f"{name} {list(value.shape)} for {list(own[ours].shape)}")
    absent = [name for name in own if name not in found and not name.endswith("_extra_state")]
    fresh = [name for name in absent if lack and name.startswith(lack)]
    missing = [name for name in absent if name not in fresh]
    if missing or left or wrong:
        parts = {"missing (as they are called here)": missing, "left over": left, "of another size": wrong}
        words = "; ".join(f"{what}: {shorten(keys) or 'nothing'}" for what, keys in parts.items())
        c = model.config
        raise RuntimeError(
            f"{where}: these are not the weights of this transformer of {c.blocks} blocks of {c.channels} channels: "
            f"{words}"
        )
    return found, Account(names, len(found), ignored, fresh)


def exported(state: dict[str, Tensor], names: Names, weights: Weights | None = "net") -> dict[str, Tensor]:
    """Our weights by the names of published files. weights: the prefix; None for none, as in diffusers' files."""
    theirs: dict[str, Tensor] = {}
    for ours, value in state.items():
        if not ours.endswith("_extra_state"):
            name = published(ours, names)
            theirs[name if weights is None or name.startswith("logvar.") else f"{weights}.{name}"] = value
    return theirs


def build(config: Config, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> DiT:
    """A model with weights that are not set: for `fit`."""
    with torch.device("meta"):
        model = DiT(config)
    return model.to_empty(device=device).to(dtype)


def load(
    path: Path,
    config: Config | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    weights: Weights = "net",
    lora_scale: float = 1.0,
) -> DiT:
    """A transformer with its weights, ready for inference: of a file, or a folder of *.safetensors, with published
    names, whose sizes `config` says; or of a folder of ours, which says them itself. The log-variance head, of training
    alone, is left out; adapters are added to their layers, `lora_scale` times. Raises FileNotFoundError,
    RuntimeError."""
    files = [path]
    if path.is_dir():
        settings = path / "config.json"
        values = json.loads(settings.read_bytes()) if settings.is_file() else {}
        if values and "_class_name" not in values:  # which is diffusers'
            config = configured(values, str(settings))
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise FileNotFoundError(f"{path}: there are no weights, *.safetensors")
    if config is None:
        raise RuntimeError(f"{path}: nothing says the sizes of its transformer: name its preset")
    model = build(dataclasses.replace(config, log_variance=False), device, dtype)
    state: dict[str, Any] = {}
    for file in files:
        state |= read(file)
    if lora.adapters(state):
        state = lora.merged(state, lora_scale)
    fit(model, state, str(path), weights)
    return model.eval().requires_grad_(False)


def configured(values: dict[str, Any], where: str) -> Config:
    known = {field.name for field in dataclasses.fields(Config)}
    if wrong := sorted(values.keys() - known):
        raise RuntimeError(f"{where}: {shorten(wrong)}: unknown; known of a transformer are {' '.join(sorted(known))}")
    return Config(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def save(state: dict[str, Tensor], config: Config, folder: Path) -> None:
    """A folder of ours that `load` reads. state: by our names."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().contiguous() for name, value in state.items() if not name.endswith("_extra_state")}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=1))
