"""A shorter cut of jobs/pipeline-tiny.yaml on the real Slurm: a film, clips, a tokenizer and a diffusion model that are
trained on them, videos, figures, and the report with them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from conftest import Cluster

sys.path.insert(0, str(Path(__file__).parents[1]))

from test_pipeline import checked, shorter


def test_from_a_film_to_generated_videos(cluster: Cluster, tmp_path: Path) -> None:
    spec = shorter(tmp_path)
    (tmp_path / "jobs/clusters").mkdir()
    (tmp_path / "jobs/clusters/site.yaml").write_text("partition: main\n")

    def hpc(*words: str) -> str:
        return cluster.run(sys.executable, "-m", "hpc.cli", *words, cwd=tmp_path, timeout=120).stdout

    [facts] = json.loads(hpc("submit", str(spec), "--cluster", "site", "--json"))
    begun = time.monotonic()
    while left := [job for job in cluster.jobs_left() if job.split("_")[0] in facts["jobs"]]:
        assert time.monotonic() - begun < 600, left
        time.sleep(0.5)
    [run] = (tmp_path / "runs").iterdir()
    logs = "\n".join(f"==> {path}\n{path.read_text(errors='replace')[-2000:]}" for path in run.glob("logs/*/*.out"))
    assert json.loads(hpc("status", "pipeline-tiny", "--json"))["state"] == "done", logs
    assert "Training <span class=dim>of world: step 2 of 2" in checked(run, tmp_path / "out/pipeline-tiny",
                                                                      {"videos": ("scores", "world")})  # fmt: skip
    print(f"{time.monotonic() - begun:.0f} s")
