"""A film of four hours, planned as spans, in one array task limited to ten minutes: requeues carry it to its end."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Cluster

TRAILER = Path(__file__).parents[2] / "jobs" / "quickstart" / "trailer_bbb.mp4"
LOOPS = 262  # x 55.1 s


@pytest.mark.long
def test_four_hours_with_a_limit_of_ten_minutes(cluster: Cluster, tmp_path: Path) -> None:
    short, film = tmp_path / "short.mp4", tmp_path / "film.mp4"
    ffmpeg = ["ffmpeg", "-v", "error", "-y"]
    small = ["-vf", "fps=6,scale=128:72", "-an", "-c:v", "libx264", "-preset", "ultrafast"]
    subprocess.run([*ffmpeg, "-i", TRAILER, *small, short], check=True)
    subprocess.run([*ffmpeg, "-stream_loop", str(LOOPS - 1), "-i", short, "-c", "copy", film], check=True)
    count = ["ffprobe", "-v", "error", "-count_packets", "-show_entries", "stream=nb_read_packets", "-of", "csv=p=0"]
    frames = int(subprocess.run([*count, film], check=True, capture_output=True, text=True).stdout)
    span = film.stat().st_size // 24
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "site.yaml").write_text("partition: main\n")
    (tmp_path / "film.yaml").write_text(
        f"name: film\ninputs: film.mp4\noutput: out\ncluster: site\n"
        f"shards: {{size: {span}B, split_above: {span}B, task: 8h}}\n"
        "stages:\n  clips: {kind: curate.clips, resources: {time: 10m}, split: {min_frames: 6, min_clip: 1s}}\n"
    )

    def hpc(*words: str) -> str:
        command = [sys.executable, "-m", "hpc.cli", *words]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120).stdout

    [facts] = json.loads(hpc("submit", "film.yaml", "--json"))
    jobs = facts["jobs"]
    begun = time.monotonic()
    requeues = 0
    while left := [job for job in cluster.jobs_left() if job.split("_")[0] in jobs]:
        assert time.monotonic() - begun < 3000, left
        for job in left:
            shown = cluster.run("squeue", "--noheader", "--format=%T %r", f"--jobs={job}", check=False).stdout.strip()
            if shown == "PENDING BeginTime":
                requeues += 1
                cluster.release_requeue(job)
        time.sleep(5)
    status = json.loads(hpc("status", "film", "--json"))
    assert status["state"] == "done" and requeues > 0, (status, requeues)
    counts = status["stages"][0]["counts"]
    assert counts["frames"] == frames
    assert counts["video_seconds"] == pytest.approx(frames / 6, abs=1)
    tables = [pq.read_table(p).to_pylist() for p in sorted((tmp_path / "out" / "clips@v1").glob("*.parquet"))]
    clips = [row for table in tables for row in table]
    assert max(Counter(row["uuid"] for row in clips).values()) == 1
    # shots follow on one another: none is missing at a span's end, none is there twice
    spans = sorted((row["start_frame"], row["end_frame"]) for row in clips)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
    assert len(clips) >= 10 * LOOPS
    print(f"{requeues} requeues, {time.monotonic() - begun:.0f} s, {len(clips)} shots")
