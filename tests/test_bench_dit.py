"""The benchmark of training steps of diffusion transformers runs without a GPU, at small sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path


def test_rows_take_turns_and_one_that_fails_stops_no_other(tmp_path: Path) -> None:
    bench = Path(__file__).with_name("bench_dit.py")
    rows = "eager,fp8-dpa,bf16,bf16-cast-again,bf16-plain-gelu"  # no transformer-engine without a GPU
    only = ["--only", rows, "--rounds", "2", "--steps", "1"]
    done = subprocess.run(
        [sys.executable, str(bench), "--tiny", *only, "--profile", "--out", str(tmp_path / "rows.json")],
        env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    eager, failed, ours, *others = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert "transformer_engine" in failed["failed"] and "fp8-dpa failed" in done.stdout
    assert eager["steps"] == ours["steps"] == 2 and 0 < ours["forward_backward_seconds"] < ours["step_seconds"]
    assert all(row["losses"] == eager["losses"] for row in (ours, *others)) and len(others) == 2
    assert "profile of bf16" in done.stdout and "matmul" in done.stdout
