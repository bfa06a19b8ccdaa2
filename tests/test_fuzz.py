"""Mutated real files through the whole clips stage: a right clip or a quarantine record, never a crash or a torn tar.

    HPC_TEST_FUZZ_SEED=123 pytest tests/test_fuzz.py           repeats a run
    HPC_TEST_FUZZ_FILES=20000 pytest tests/test_fuzz.py -s     a long one by hand
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

TRAILER = Path(__file__).parents[1] / "jobs" / "quickstart" / "trailer_bbb.mp4"
MUTANTS = Path(__file__).with_name("mutants.py")
SOUND = ["-c:a", "mp2", "-ac", "1", "-ar", "16000"]
FORMS = {
    "a.mp4": ["-c:v", "libx264", "-preset", "ultrafast", "-movflags", "+faststart", "-c:a", "aac"],
    "b.mov": ["-c:v", "mpeg4", "-q:v", "5", "-c:a", "pcm_s16le"],
    "c.mkv": ["-c:v", "libx264", "-preset", "ultrafast", "-g", "12", *SOUND],
    "d.ts": ["-c:v", "mpeg2video", "-q:v", "5", *SOUND],
    "e.avi": ["-c:v", "mjpeg", "-q:v", "8", *SOUND],
    "f.webm": ["-c:v", "libvpx", "-deadline", "realtime", "-b:v", "200k", "-an"],
    "g.gif": ["-r", "8", "-an"],
    "h.mp4": ["-c:v", "libx264", "-preset", "ultrafast", "-flags", "+ilme+ildct", "-x264-params", "tff=1", "-an"],
    "i.mp4": ["-c:v", "libx264", "-preset", "ultrafast", "-pix_fmt", "yuv420p10le", "-color_trc", "smpte2084",
              "-color_primaries", "bt2020", "-colorspace", "bt2020nc", "-movflags", "+faststart", "-an"],
    "j.mov": ["-c:v", "prores_ks", "-pix_fmt", "yuva444p10le", "-profile:v", "4", "-vf", "scale=65:37", "-an"],
    "k.mkv": ["-c:v", "ffv1", "-pix_fmt", "gray10le", "-field_order", "tt", "-an"],
    "l.mp4": ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=none", "-pix_fmt", "yuv422p10le",
              "-color_trc", "arib-std-b67", "-metadata:s:v", "rotate=90", "-an"],
    "m.ts": ["-c:v", "mpeg2video", "-flags", "+ilme+ildct", "-q:v", "5", "-pix_fmt", "yuv422p", "-an"],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("fuzz")
    cut = ["ffmpeg", "-v", "error", "-y", "-ss", "20", "-t", "3", "-i", TRAILER, "-vf", "scale=128:72"]
    for name, options in FORMS.items():
        subprocess.run([*cut, *options, made / name], check=True)
    return made


def run(folder: Path, seed: int, files: int) -> None:
    command = [sys.executable, MUTANTS, str(seed), str(files), folder]
    done = subprocess.run(command, capture_output=True, text=True)
    last = (done.stdout.splitlines() or ["nothing"])[-1]
    what = f"HPC_TEST_FUZZ_SEED={seed}, {files} files, last line: {last}"
    assert done.returncode == 0, f"{what}: exit {done.returncode}\n{done.stderr[-4000:]}"
    print(f"\n{what}")


def test_mutated_files(folder: Path) -> None:
    seed = int(os.environ.get("HPC_TEST_FUZZ_SEED", random.randrange(10**6)))
    run(folder, seed, int(os.environ.get("HPC_TEST_FUZZ_FILES", "60")))


@pytest.mark.long
def test_many_mutated_files(folder: Path) -> None:
    run(folder, random.randrange(10**6), 3000)
