"""Trainings of a tiny diffusion model: data, settings, ranks in processes of their own, curves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from forks import together

from hpc.data import layers, pickles
from hpc.data.latents import SUFFIX, dumps
from hpc.train import diffusion, ranks
from hpc.train.checkpoint import Checkpoints
from hpc.train.samples import listed
from hpc.train.settings import TrainDiffusion
from hpc.train.settings.data import Shape, Validation
from hpc.train.settings.diffusion import AdamW
from hpc.train.settings.optimizer import Mean

SHAPE = {"frames": 13, "height": 64, "width": 48}
LATENT = (16, 4, 8, 6)


def settings(**more: Any) -> TrainDiffusion:
    return TrainDiffusion(**{
        "model": "tiny-predict2", "shapes": (Shape(**SHAPE, batch=4),), "steps": 8, "readers": 0,
        "validation": Validation(share=0.25, by="clip", every=4, clips=3), "checkpoints": Checkpoints(every=3),
        "optimizer": AdamW(rate=3e-3, warmup=2, weight_decay=0.01), "ema": (Mean(width=0.1), Mean(rate=0.5)), **more,
    })  # fmt: skip


def write_latents(path: Path, texts: Mapping[str, bytes | None] = {}) -> None:
    """A tar of twelve clips' latents with embeddings of their captions, as prepare.latents has them. texts: of some
    clips another pickle, or none."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[: LATENT[2], : LATENT[3]]
    with layers.TarWriter(path) as out:
        for number in range(12):
            waves = [[np.sin(rows + channel + number + frame) + np.cos(columns * (number % 3 + 1) - frame)
                      for frame in range(LATENT[1])] for channel in range(LATENT[0])]  # fmt: skip
            said = {"num_frames": 13, "fps": 24.0, "height": 64, "width": 48, "inside": [0, 0, 48, 64],
                    "caption": f"wave {number}", "source": "film.mp4"}  # fmt: skip
            text = random.standard_normal((5, 32)).astype(np.float16)
            data = texts.get(f"c{number:02}", pickles.dumps([text]))
            out.add(f"c{number:02}", {SUFFIX: dumps(np.array(waves, np.float32)), ".json": json.dumps(said).encode(),
                                      **({} if data is None else {".pickle": data})})  # fmt: skip


@pytest.fixture(scope="module")
def tar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latents") / "000000.tar"
    write_latents(path)
    return path


@pytest.fixture(scope="module")
def here() -> Iterator[ranks.Here]:
    torch.set_num_threads(1)
    yield ranks.start()
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def alone(tar: Path, here: ranks.Here, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One rank, never stopped: once for all modules."""
    folder = tmp_path_factory.getbasetemp() / "diffusion-alone"
    if not folder.exists():
        diffusion.train(settings(), listed([str(tar)]), folder, here, lambda: None, weights=folder / "model")
    return folder


def _train(layouts: dict[str, dict[str, Any]], tar: Path, folder: Path) -> None:
    here = ranks.start()
    for name, more in layouts.items():
        to = folder / name
        diffusion.train(settings(**more), listed([str(tar)]), to, here, lambda: None, weights=to / "model")
    dist.barrier()
    dist.destroy_process_group()


def spread(layouts: dict[str, dict[str, Any]], tar: Path, folder: Path) -> None:
    """Two ranks in processes of their own train each of the settings, in a folder of its own, never stopped."""
    for one in together(2, _train, layouts, tar, folder):
        one.join(180)
        assert one.exitcode == 0


def near(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    assert [line["step"] for line in one] == [line["step"] for line in other]
    for a, b in zip(one, other, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            assert value == pytest.approx(b[name], rel=2e-4, abs=1e-5), (a["step"], name)
