"""Trained weights of a diffusion transformer as files in the published forms, which the published code loads.

    predict1   iter_000001000_reg_model.pt, iter_000001000_ema_model.pt    trained last; their running average
    predict2   model.pt                                                   both, net. and net_ema.
               model_ema_fp32.pt, model_ema_bf16.pt                       the average alone, as net.

and beside them `ours/`, the average with config.json, for hpc.models.dit_files.load. What the published code computes
and keeps with its weights (rotary positions, counters) is there too, for those who load strictly.

cosmos_predict1 4ed35fa: utils/fsdp_checkpointer.py; cosmos_predict2.5 50369b8: scripts/convert_distcp_to_pt.py
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from hpc.models import dit_files
from hpc.models.dit_presets import PATCH, Config, Form

COUNTERS = ("accum_video_sample_counter", "accum_image_sample_counter", "accum_iteration", "accum_train_in_hours")


def kept(config: Config, form: Form, step: int) -> dict[str, Tensor]:
    """What the published code keeps beside weights, by its names without a prefix."""
    space = config.head_channels // 6 * 2
    time = config.head_channels - 2 * space
    longest = max(config.max_frames, config.max_height // PATCH, config.max_width // PATCH)
    found = {"pos_embedder.seq": torch.arange(longest, dtype=torch.float32)}
    if form == "predict2":
        found |= {
            "pos_embedder.dim_spatial_range": torch.arange(0, space, 2).float() / space,
            "pos_embedder.dim_temporal_range": torch.arange(0, time, 2).float() / time,
            **{name: torch.tensor(0) for name in COUNTERS[:2]},
            "accum_iteration": torch.tensor(step),
            "accum_train_in_hours": torch.tensor(0.0),
        }
    return found


def beside(config: Config, form: Form, step: int) -> dict[str, Tensor]:
    """The same by the names of a file that has both weights and average."""
    return {f"{prefix}.{name}": value for prefix in ("net", "net_ema")
            for name, value in kept(config, form, step).items()}  # fmt: skip


def file(name: str, config: Config, form: Form, step: int, weights: Mapping[str, Tensor],
         average: Mapping[str, Tensor] | None) -> dict[str, Tensor]:  # fmt: skip
    """What the file of a name has in it: _reg_model the weights; _ema_model, _ema_fp32 and _ema_bf16 the average, in
    its own type or this one; any other name both. Raises ValueError for an average that is not there."""
    same = kept(config, form, step)

    def named(state: Mapping[str, Tensor], prefix: dit_files.Weights = "net") -> dict[str, Tensor]:
        return dit_files.exported(dict(state), form, prefix) | {f"{prefix}.{n}": one.clone() for n, one in same.items()}

    stem = name.rpartition(".")[0]
    if stem.endswith("_reg_model"):
        return named(weights)
    if stem.endswith(("_ema_model", "_ema_fp32", "_ema_bf16")):
        if average is None:
            raise ValueError(f"{name}: there is no average of weights here: these have none")
        found = named(average)
        if stem.endswith("_model"):
            return found
        exact = {n: one.float() if one.is_floating_point() else one for n, one in found.items()}
        if stem.endswith("_fp32"):
            return exact
        return {n: one.bfloat16() if one.is_floating_point() else one for n, one in exact.items()}
    return named(weights) | (named(average, "net_ema") if average is not None else {})


def publish(
    folder: Path,
    config: Config,
    form: Form,
    step: int,
    weights: Mapping[str, Tensor],
    average: Mapping[str, Tensor] | None,
) -> list[Path]:
    """Writes the files into a folder, each whole or not at all. weights, average: by our names, on the CPU; what the
    average lacks (buffers) is as in the weights. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    mean = dict(weights) | dict(average) if average is not None else None
    if form == "predict1":
        names = [f"iter_{step:09}_reg_model.pt", f"iter_{step:09}_ema_model.pt"]
    else:
        names = ["model.pt", "model_ema_fp32.pt", "model_ema_bf16.pt"]
    names = names if mean is not None else names[:1]
    for name in names:
        write(folder / name, file(name, config, form, step, weights, mean))
    dit_files.save(dict(weights if mean is None else mean), config, folder / "ours")
    return [folder / name for name in names]


def write(path: Path, state: Mapping[str, Tensor]) -> None:
    """A .pt or .safetensors, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: value.contiguous().clone() for name, value in state.items()}, part)
    else:
        torch.save({name: value.contiguous() for name, value in state.items()}, part)
    part.replace(path)
