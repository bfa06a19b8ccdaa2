"""The figures of a shard on a GPU are those of the CPU, but for rounding; without one this is a run on the CPU.

python -m pytest -q tests/gpu/test_evaluate_gpu.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import transformers

from hpc.batch.kinds import settings_of
from hpc.data import layers, video
from hpc.data.work import Work
from hpc.evaluate import frechet, measure
from hpc.evaluate.frechet import FIELDS, Statistics
from hpc.evaluate.pairs import Pair, Place
from hpc.models import backbones

DEVICES = ("cpu", "cuda" if torch.cuda.is_available() else "cpu")


def test_figures_of_a_gpu_and_of_a_cpu(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(3):
        frames = np.kron(rng.integers(0, 255, (8, 9, 16, 3)), np.ones((1, 8, 8, 1))).astype(np.uint8)
        for side, noise in (("generated", 20), ("real", 0)):
            noisy = (frames + rng.normal(0, noise, frames.shape)).clip(0, 255).astype(np.uint8)
            video.write(tmp_path / f"{side}-{i}.mp4", noisy, 16, video.Coding(crf=4))
        rows.append(Pair(f"v{i}", *(Place(str(tmp_path / f"{side}-{i}.mp4")) for side in ("generated", "real"))))
    torch.manual_seed(0)
    config = transformers.VideoMAEConfig(image_size=32, patch_size=16, num_frames=4, hidden_size=16,
                                         num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)  # fmt: skip
    transformers.VideoMAEModel(config).save_pretrained(tmp_path / "mae")
    settings = settings_of("evaluate.videos-measure", {
        "sampson": None, "frechet": {"mae": {"network": str(tmp_path / "mae"), "per_video": 3}},
    })  # fmt: skip
    figures: list[Any] = []
    for number, device in enumerate(DEVICES):
        folder = tmp_path / f"made-{number}"
        folder.mkdir()
        networks = {"mae": backbones.load(str(tmp_path / "mae"), None, device)}
        work = Work("000000", [], msgspec.to_builtins(rows), {}, folder, "f", lambda: None, lambda *_: None)
        npz, table = measure.process(settings, networks, None, device, work).objects
        arrays = np.load(npz)
        one, other = (Statistics.of_arrays({field: arrays[f"mae/{side}/{field}"] for field in FIELDS})
                      for side in ("generated", "real"))  # fmt: skip
        assert one.n == other.n == 9
        found = layers.read_table(table)
        figures.append([*found["psnr"].to_pylist(), *found["ssim"].to_pylist(), frechet.distance(one, other)])
    assert figures[1] == pytest.approx(figures[0], rel=2e-3), "TF32 in the network's convolution on GPUs"
    assert figures[1][:6] == pytest.approx(figures[0][:6], rel=1e-5)
    assert figures[0][-1] > 0 and 15 < figures[0][0] < 40
