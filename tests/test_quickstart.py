"""The main job, end to end, on the film trailer that the repository carries: as README says, here and on Slurm."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import webdataset
from conftest import Cluster

JOBS = Path(__file__).parents[1] / "jobs"


def hpc(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hpc.cli", *words], cwd=folder, capture_output=True, text=True, timeout=400
    )


def checkout(folder: Path) -> Path:
    """jobs/ where a test may write beside it."""
    shutil.copytree(JOBS, folder / "jobs")
    return folder


def samples(output: Path) -> dict[str, str]:
    """{clip id: digest of its video} of the data set, as webdataset reads it."""
    tars = sorted(str(p) for p in (output / "shard@v1").glob("*.tar"))
    found = {}
    for sample in webdataset.WebDataset(tars, shardshuffle=False):
        about = json.loads(sample["json"])
        assert about["uuid"] == sample["__key__"] and sample["mp4"][4:8] == b"ftyp" and sample["webp"][8:12] == b"WEBP"
        found[sample["__key__"]] = hashlib.sha256(sample["mp4"]).hexdigest()
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = checkout(tmp_path_factory.mktemp("quickstart"))
    done = hpc(folder, "run", "jobs/quickstart.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout


def test_it_makes_a_data_set_of_the_trailers_shots(here: tuple[Path, str]) -> None:
    folder, said = here
    found = samples(folder / "out" / "quickstart")
    assert len(found) == 10 and "10 clips, 6 dropped" in said
    table = json.loads(hpc(folder, "status", "quickstart", "--json").stdout)
    assert table["state"] == "done"
    assert table["stages"][0]["counts"]["frames"] == 1323


def test_the_second_time_it_does_nothing_and_says_so(here: tuple[Path, str]) -> None:
    folder, _ = here
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}
    again = hpc(folder, "run", "jobs/quickstart.yaml")
    assert again.returncode == 0 and "nothing to do" in again.stdout
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()} == before


def test_the_page_shows_its_clips(here: tuple[Path, str]) -> None:
    folder, _ = here
    [page] = folder.glob("runs/*/report.html")
    text = page.read_text()
    assert text.count("data:image/webp;base64,") == 10 and "://" not in text


def test_the_same_spec_on_slurm_gives_the_same_clips(
    here: tuple[Path, str], cluster: Cluster, tmp_path: Path
) -> None:
    folder = checkout(tmp_path)
    # The clips are named after where their video is: here it must be the same one.
    spec = folder / "jobs" / "quickstart.yaml"
    spec.write_text(spec.read_text().replace("inputs: quickstart", f"inputs: {here[0]}/jobs/quickstart"))
    (folder / "jobs" / "clusters" / "site.yaml").write_text("partition: main\n")
    done = hpc(folder, "submit", "jobs/quickstart.yaml", "--cluster", "site", "--json")
    assert done.returncode == 0, done.stderr
    [facts] = json.loads(done.stdout)
    cluster.wait(facts["jobs"], timeout=300)
    assert json.loads(hpc(folder, "status", "quickstart", "--json").stdout)["state"] == "done"
    assert samples(folder / "out" / "quickstart") == samples(here[0] / "out" / "quickstart")
    [page] = folder.glob("runs/*/report.html")
    assert page.read_text().count("data:image/webp;base64,") == 10
