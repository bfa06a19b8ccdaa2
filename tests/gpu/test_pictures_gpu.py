"""On a GPU: sample videos, whose steps are CUDA graphs beside training's own memory, change neither losses nor weights,
and give their memory back.

python -m pytest -q -s tests/gpu/test_pictures_gpu.py

On a CPU, with HPC_TEST_ON_CPU=1, the same is tried in float32.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from ar_runs import run
from asked import skip_without_gpu
from test_training_pictures import place, rows, with_pictures

from hpc.models.ar import keys
from hpc.train.metrics import lines
from hpc.train.settings.ar import Pictures

skip_without_gpu(__name__)

__all__ = ["place"]  # the fixture
pytestmark = pytest.mark.filterwarnings("ignore")
GPU = torch.cuda.is_available()


def test_training_is_the_same_without_them(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `deterministic`, so that the GPU gives the same bits each time."""
    monkeypatch.setenv("NVTE_ALLOW_NONDETERMINISTIC_ALGO", "0")  # as hpc.train.ar's start has it
    given = {"precision": "bf16" if GPU else "fp32", "deterministic": True}
    samples = {"greedy": with_pictures(place, **given).pictures, "none": Pictures(clips=0),
               "drawn": Pictures(every=2, clips=2, temperature=1.0, tokenizer=str(place / "dv"))}  # fmt: skip
    said = {}
    for name, pictures in samples.items():
        run(1, tmp_path / name, msgspec.structs.replace(with_pictures(place, **given), pictures=pictures), rows(place))
        said[name] = list(lines(tmp_path / name / "metrics.jsonl"))
        assert len(said[name]) == 6
        weights = keys.Published(tmp_path / name / "model/model.safetensors")
        first = keys.Published(tmp_path / "greedy/model/model.safetensors")
        assert all(torch.equal(weights[one], first[one]) for one in first)
        assert [line["loss"] for line in said[name]] == [line["loss"] for line in said["greedy"]]
        made = [line for line in said[name] if "pictures_seconds" in line]
        assert [line["step"] for line in made] == {"greedy": [3, 6], "none": [], "drawn": [2, 4, 6]}[name]
        took = ", ".join(f"{line['pictures_seconds']:.2f}" for line in made)
        print(f"{name}: seconds of samples: {took or 'none'}; memory {said[name][-1]['memory_bytes'] / 2**20:.0f} MiB")

