"""What `hpc check` estimates of AR-4B and DiT-2B beside what steps of them hold and take on a GPU: tests/memory.py.

    python -m pytest -q tests/gpu/test_memory_gpu.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpc.data.gpu_types import GIB, named

if not torch.cuda.is_available():
    pytest.skip("needs a GPU; on a CPU tests/test_estimate.py runs the same script", allow_module_level=True)
pytest.importorskip("transformer_engine.pytorch")

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("words", [["--only", "ar", "--recompute", "none,full"],
                                   ["--only", "dit"]], ids=["ar-4b", "dit-2b at 480p"])  # fmt: skip
def test_estimates_are_near(words: list[str]) -> None:
    env = os.environ | {"PYTHONPATH": f"{TESTS.parent}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, str(TESTS / "memory.py"), *words, "--json"], env=env, text=True,
                          capture_output=True, timeout=900)  # fmt: skip
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    gpu = named(torch.cuda.get_device_name())
    assert len(rows) >= (4 if gpu and gpu.memory > 130 * GIB else 1), done.stdout + done.stderr[-2000:]
    for row in rows:
        print(row["what"], row["gib"], row["gib_estimated"], row["seconds"], row["seconds_estimated"])
        assert row["parameters"] == row["parameters_estimated"]
        assert row["gib_estimated"] == pytest.approx(row["gib"], rel=0.07), row
        if gpu:
            assert row["seconds_estimated"] == pytest.approx(row["seconds"], rel=0.25), row
