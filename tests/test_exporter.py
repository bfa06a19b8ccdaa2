"""All runs under a folder as metrics: right, cheap however many there are, safe to scrape while they go."""

from __future__ import annotations

import json
import os
import time
import urllib.error
from pathlib import Path

import figures
import pytest
import runs
from test_report import metrics

from hpc.batch import exporter, slurm, training
from hpc.batch.run import Run


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process: a cluster that is there for other tests knows nothing of these runs."""
    monkeypatch.setattr(slurm, "available", lambda: False)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return figures.site(tmp_path_factory.mktemp("site"))


@pytest.fixture(scope="module")
def found(film: Run) -> dict[str, dict[str, float]]:
    fake = figures.slurm(film.folder.parents[1])
    with figures.exporter(film.folder.parent, PATH=fake.path) as address:
        for _ in range(3):
            page = figures.get(address)
    assert len(fake.calls("squeue")) == 1 and not fake.calls("sacct"), "once a minute, however often it is scraped"
    return metrics("".join(line + "\n" for line in page.splitlines() if "hpc_exporter_" not in line))


def test_figures_of_a_run(film: Run, found: dict[str, dict[str, float]]) -> None:
    at = f'cluster="local",run="{film.id}"'
    value = lambda name, labels="": found[f"hpc_{name}"][f"{at}{labels}"]
    pair, echo, train = (f',stage="{name}"' for name in ("pair", "echo", "train"))
    assert value("run_state", ',state="running"') == 1 and value("run_attempts") == 1
    assert value("run_shards", f'{pair},state="done"') == 6 and value("run_shards", f'{echo},state="failed"') == 2
    assert [value("run_failed_shards", f'{echo},class="{why}"') for why in ("code", "memory")] == [1, 1]
    assert value("run_pending_tasks", f'{echo},reason="Priority"') == 4
    assert value("run_tasks", f'{echo},state="running"') == 1
    assert value("run_gpu_utilization_ratio", pair) == pytest.approx(0.8)
    assert value("run_gpu_seconds_total", pair) == pytest.approx(3600, abs=60)
    assert value("run_gpu_energy_joules_total", pair) == pytest.approx(500 * value("run_gpu_seconds_total", pair))
    gpu_cost = 3600 * value("run_gpu_seconds_total", pair) / 3600
    assert value("run_cost_total") == pytest.approx(gpu_cost, rel=0.01), "of echo, which has no GPU, the cores count"
    assert value("run_memory_requested_bytes", pair) == 8 << 30 > value("run_memory_peak_bytes", pair) > 1 << 20
    assert value("run_clips", f'{pair},verdict="black"') == 6 and value("run_frames_total", pair) == 1440
    assert value("train_step", train) == 30 and value("train_steps", train) == 20
    assert value("train_loss", train) == pytest.approx(8 / 30**0.5)
    assert value("train_tokens_per_second", train) == 16_000 and value("train_samples_per_second", train) == 16
    assert value("train_mfu_ratio", train) == pytest.approx(0.41)
    assert value("train_data_wait_ratio", train) == pytest.approx(0.05)
    assert value("train_skipped_steps_total", train) == 2 and value("train_checkpoint_stall_ratio", train) == 0
    assert value("train_z_loss", train) == 0.01 and value("train_tokens_per_second_per_gpu", train) == 4_000
    assert value("train_tflops_per_gpu", train) == 405 and value("train_gpu_seconds_total", train) > 0
    assert value("train_validation_loss", train) == pytest.approx(8.5 / 30**0.5)
    used = {name for samples in found.values() for labels in samples for name in _names(labels)}
    few = "cluster run stage state user account spec git_sha class reason verdict on"
    assert used <= set(few.split()), "no job, shard or node"


def _names(labels: str) -> list[str]:
    return [part.partition("=")[0] for part in labels.split('",') if part]


def test_a_thousand_runs(film: Run, tmp_path: Path) -> None:
    """Read once, then looked at: a scrape of a thousand runs stays under a second, and reads what has changed."""
    place = tmp_path / "runs"
    place.mkdir()
    figures.copies(film, 999, place)
    (place / "no-run").mkdir()
    (place / "notes.txt").write_text("no run either")
    here = exporter.Exporter(place, days=30)
    begun = time.monotonic()
    page = here.read()
    print(f"read anew: {time.monotonic() - begun:.2f} s")
    assert "hpc_exporter_runs 999\n" in page and "hpc_exporter_read_runs 999\n" in page
    [twin] = place.glob("twin0007-*")
    with next((twin / "records" / "echo").iterdir()).open("a") as file:
        file.write("\n")
    for one in here.seen.values():
        one.took, one.at = 0.0, time.time() - 3600  # rested
    begun = time.monotonic()
    page = here.read()
    took = time.monotonic() - begun
    print(f"scraped: {took:.2f} s")
    assert "hpc_exporter_read_runs 1\n" in page and took < 1.0
    assert "hpc_exporter_read_runs 0\n" in here.read(), "too soon to read it again, and nothing changed"


def test_runs_that_are_no_use(film: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "runs"
    place.mkdir()
    broken = place / "broken-1234" / "attempt-1"
    broken.mkdir(parents=True)
    (broken / "plan.json").write_text("{")
    here = exporter.Exporter(place, days=30)
    for _ in range(2):
        page = here.read()
        assert "hpc_exporter_unreadable_runs 1\n" in page and "hpc_exporter_runs 0\n" in page
    assert capsys.readouterr().err.count("\n") == 1, "complained of once"
    old = time.time() - 31 * 86400
    for path in (broken, broken / "plan.json"):
        os.utime(path, (old, old))
    assert "hpc_exporter_unreadable_runs 0\n" in here.read(), "too old to be of interest"


def test_a_run_in_the_making_is_looked_at_again(film: Run, tmp_path: Path) -> None:
    """What a trainer writes outside of the run folder counts, and so does the silence of workers."""
    here = exporter.Exporter(film.folder.parent, days=30)
    assert "hpc_exporter_read_runs 1\n" in here.read() and "hpc_exporter_read_runs 0\n" in here.read()
    [seen] = here.seen.values()
    with figures.Metrics(seen.files[0], 30) as told:
        figures.learn(told, 31)
    seen.at -= 3600
    assert f'hpc_train_step{{cluster="local",run="{film.id}",stage="train"}} 31\n' in here.read()
    [seen] = here.seen.values()
    assert seen.state == "failed"
    seen.at -= 3600
    assert "hpc_exporter_read_runs 0\n" in here.read()
    seen.state = "running"
    assert "hpc_exporter_read_runs 1\n" in here.read()


def test_the_environment_of_a_run_stays_its_own(film: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = film.latest().folder / "plan.json"
    before = plan.read_text()
    plan.write_text(json.dumps(json.loads(before) | {"env": {"HPC_TEST_DECLARED": "1"}}))
    try:
        exporter.Exporter(film.folder.parent, 30).read()
    finally:
        plan.write_text(before)
    assert "HPC_TEST_DECLARED" not in os.environ


def test_the_textfile(film: Run, tmp_path: Path) -> None:
    file = tmp_path / "hpc.prom"
    said = runs.facts("exporter", film.folder.parent, "--textfile", file, cwd=tmp_path)
    assert said == {"file": str(file), "runs": 1}
    assert f'run="{film.id}"' in file.read_text() and file.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in tmp_path.iterdir()] == ["hpc.prom"], "nothing temporary is left"


def test_other_paths(film: Run) -> None:
    with figures.exporter(film.folder.parent) as address:
        assert address.startswith("http://127.0.0.1:"), "loopback alone"
        assert "/metrics" in figures.get(address.replace("/metrics", "/"))
        with pytest.raises(urllib.error.HTTPError, match="404"):
            figures.get(address.replace("/metrics", "/../../etc/passwd"))


def test_dashboards_are_copied(tmp_path: Path) -> None:
    runs.hpc("exporter", "--dashboards", tmp_path / "d", cwd=tmp_path)
    assert sorted(p.name for p in (tmp_path / "d").iterdir()) == ["alerts.yaml", "hpc-run.json", "hpc-runs.json"]


def test_the_end_of_a_long_training(tmp_path: Path) -> None:
    """Only the end of the file is read; torn lines, words for numbers and strange lines do not disturb."""
    file = tmp_path / "metrics.jsonl"
    line = {"step": 0, "time": 1.0, "loss": 2.0, "seconds": 1.0, "waited": 1.0, "samples": 4, "pad": "x" * 300}
    file.write_text("".join(json.dumps(line | {"step": n}) + "\n" for n in range(5000))
                    + '[1]\n{"loss": 1}\n' + json.dumps(line | {"step": 5000, "loss": "nan"}) + '\n{"step": 5001, "lo')
    lines = training.tail(file)
    assert lines[-1]["step"] == 5000 and len(lines) < 300
    assert training.tail(tmp_path / "none") == []
