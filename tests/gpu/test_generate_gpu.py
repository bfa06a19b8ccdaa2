"""Two GPUs that share a video's frames make what one makes, before it is encoded: frames of random tiny models, in
float32 to a grey level, in bfloat16 on average.

    python -m pytest -q -s tests/gpu/test_generate_gpu.py           on a CPU, over gloo, with HPC_TEST_ON_CPU=1
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from asked import skip_without_gpu
from forks import together
from test_generate import film, models

from hpc.data import storage
from hpc.generate import diffusion, prompts
from hpc.generate.settings import Diffusion

skip_without_gpu(__name__)

__all__ = ["models"]  # the fixture
GPU = torch.cuda.is_available()
RANKS = 2
ASKED = {"words": {"prompt": "Rain."}, "goes_on": {"prompt": "Cars.", "given": 2}}
FARTHEST = {"float32": (1.0, 0.05), "bfloat16": (255.0, 3.0)}
"""At most, and on average, in grey levels of 255."""


def make(settings: Diffusion, media: Path, out: Path) -> None:
    maker = diffusion.Maker(settings)
    etag = storage.stat(str(media)).etag
    for name, words in ASKED.items():
        more = {"media": str(media), "media_etag": etag} if "given" in words else {}
        frames = maker.make(prompts.Request(name=name, source="s", etag="e", **words, **more))
        if maker.ranks.rank == 0:
            np.save(out / f"{name}.npy", frames)


@pytest.mark.skipif(GPU and torch.cuda.device_count() < RANKS, reason=f"needs {RANKS} GPUs")
@pytest.mark.parametrize("precision", FARTHEST)
def test_two_that_share_frames_make_what_one_makes(tmp_path: Path, models: dict[str, Any], precision: str) -> None:
    media = film(tmp_path / "street.mp4")
    group = []
    for context in (1, RANKS):
        (tmp_path / str(context)).mkdir()
        settings = Diffusion(**models | {"frames": 13, "context": context, "precision": precision, "guidance": 2.0})
        group += together(context, make, settings, media, tmp_path / str(context))
    for one in group:
        one.join(300)
        assert one.exitcode == 0
    for name in ASKED:
        alone, shared = (np.load(tmp_path / f"{context}/{name}.npy").astype(float) for context in (1, RANKS))
        far = np.abs(alone - shared)
        print(f"{precision} {name}: apart by {far.max():.0f} at most, {far.mean():.4f} on average, "
              f"in quarters {', '.join(f'{part.mean():.4f}' for part in np.array_split(far, 4))}")  # fmt: skip
        most, mean = FARTHEST[precision]
        assert alone.std() > 5 and far.max() <= most and far.mean() <= mean
