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
from typing import Literal

import torch
from torch import Tensor

from hpc.models import dit_files
from hpc.models.dit_presets import PATCH, Config

COUNTERS = ("accum_video_sample_counter", "accum_image_sample_counter", "accum_iteration", "accum_train_in_hours")


def kept(config: Config, form: Literal["predict1", "predict2"], step: int) -> dict[str, Tensor]:
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


def publish(
    folder: Path,
    config: Config,
    form: Literal["predict1", "predict2"],
    step: int,
    weights: Mapping[str, Tensor],
    average: Mapping[str, Tensor] | None,
) -> list[Path]:
    """Writes the files into a folder, each whole or not at all. weights, average: by our names, on the CPU; what the
    average lacks (buffers) is as in the weights. Returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    mean = dict(weights) | dict(average) if average is not None else None
    beside = kept(config, form, step)

    def named(state: Mapping[str, Tensor], prefix: dit_files.Weights = "net") -> dict[str, Tensor]:
        same = {f"{prefix}.{name}": value.clone() for name, value in beside.items()}
        return dit_files.exported(dict(state), form, prefix) | same

    files: dict[str, dict[str, Tensor]] = {}
    if form == "predict1":
        files[f"iter_{step:09}_reg_model.pt"] = named(weights)
        if mean is not None:
            files[f"iter_{step:09}_ema_model.pt"] = named(mean)
    else:
        files["model.pt"] = named(weights) | (named(mean, "net_ema") if mean is not None else {})
        if mean is not None:
            exact = {name: value.float() if value.is_floating_point() else value for name, value in named(mean).items()}
            files["model_ema_fp32.pt"] = exact
            files["model_ema_bf16.pt"] = {
                name: value.bfloat16() if value.dtype == torch.float32 else value for name, value in exact.items()
            }
    for name, state in files.items():
        part = folder / f".{name}.{os.getpid()}"
        torch.save({key: value.contiguous() for key, value in state.items()}, part)
        part.replace(folder / name)
    dit_files.save(dict(weights if mean is None else mean), config, folder / "ours")
    return [folder / name for name in files]
