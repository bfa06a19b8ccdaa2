"""evaluate.videos by the real worker: figures of films that are made here, what is missing, the page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import runs
import yaml

from hpc.batch.kinds import settings_of
from hpc.data import layers, storage, video
from hpc.data.work import Work
from hpc.evaluate import measure, merge

HEIGHT, WIDTH, FRAMES, FILMS = 96, 128, 9, 5
pytest.importorskip("cv2")


def pictures(seed: int, noise: float = 0.0, frames: int = FRAMES, shift: int = 2) -> np.ndarray:
    """A grey pattern that moves to the left, the same for a seed, with noise on it."""
    rng = np.random.default_rng(seed)
    small = rng.uniform(40, 215, (HEIGHT // 8, (WIDTH + shift * frames) // 8 + 1))
    large = np.kron(small, np.ones((8, 8)))
    film = np.stack([large[:, shift * i : shift * i + WIDTH] for i in range(frames)])
    noisy = film + np.random.default_rng(seed + 1000).normal(0, noise, film.shape)
    return np.repeat(noisy.round().clip(0, 255).astype(np.uint8)[..., None], 3, axis=-1)


def film(path: Path, frames: np.ndarray, fps: float = 16, crf: float = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    video.write(path, frames, fps, video.Coding(crf=crf))
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """generated/ and real/: five pairs with more and more noise, one that is broken, one with no real one."""
    folder = tmp_path_factory.mktemp("films")
    for i in range(FILMS):
        film(folder / f"real/clip-{i}.mp4", pictures(i))
        film(folder / f"generated/clip-{i}.mp4", pictures(i, noise=4.0 * (i + 1)))
    film(folder / "real/other.mp4", pictures(50))
    film(folder / "real/torn.mp4", pictures(60))
    film(folder / "generated/alone.mp4", pictures(70))
    whole = film(folder / "torn.mp4", pictures(60)).read_bytes()
    (folder / "generated/torn.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "pairs.jsonl").write_text("".join(
        json.dumps({"generated": f"clip-{i}", "real": f"real/clip-{i}.mp4"}) + "\n" for i in (0, 1, 9)
    ))  # fmt: skip
    return folder


def spec(folder: Path, films: Path, **more: Any) -> Path:
    folder.mkdir(exist_ok=True)
    stage = {"kind": "evaluate.videos", "real": str(films / "real"), "per_shard": 4, "sampson": {"pairs": 2},
             "resources": {"cpus": 1}, **more}  # fmt: skip
    keys = {"name": "e", "inputs": str(films / "generated"), "output": "out", "stages": {"scores": stage}}
    path = folder / "e.yaml"
    path.write_text(yaml.safe_dump(keys))
    return path


def told(folder: Path) -> dict[str, Any]:
    [path] = (folder / "out").glob("scores@v*/000000.json")
    return json.loads(path.read_text())


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in told(folder)["figures"]}


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    [path] = (folder / "out").glob("scores@v*/000000.parquet")
    return {row["name"]: row for row in layers.read_table(path).to_pylist()}


def direct(folder: Path, inputs: Path, **values: Any) -> Path:
    """The stage without its worker: the barriers' plans and all shards, into folder/out."""
    settings = settings_of("evaluate.videos", values)
    parts = {name: part.settings for name, part in settings.parts().items()}
    uris = {entry.uri: entry.etag for entry in storage.listing(str(inputs))}
    makers = {"scores-measure": (measure, parts["measure"]), "scores": (merge, parts[""])}
    needed: dict[str, Any] = {"inputs": [("000000", uris)]}
    for name, (module, one) in makers.items():
        to = folder / f"out/{name}@v1"
        to.mkdir(parents=True)
        process = module.start(one)
        shards = [(f"{i:06}", rows) for i, rows in enumerate(module.freeze(one, needed, set()))]
        for shard, some in shards:
            process(Work(shard, [], some, {}, to, "f", lambda: None, lambda *_: None, folder=str(to)))
        needed = {name: [(shard, {suffix: str(to / f"{shard}{suffix}") for suffix in one.OBJECTS})
                         for shard, _ in shards]}  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def done(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("done")
    runs.go(spec(folder, films))
    return folder


# The stage


def test_known_noise_is_known_in_the_figures(done: Path) -> None:
    found = rows(done)
    for i in range(FILMS):
        row = found[f"clip-{i}"]
        assert row["psnr"] == pytest.approx(20 * np.log10(255 / (4.0 * (i + 1))), abs=0.5), "of noise of 4 (i + 1)"
        assert row["compared"] == FRAMES and 0 < row["ssim"] < 1 and row["tse_pairs"] == 2
        assert row["real_tse"] < 1, "a pattern that moves as one"
    ssims = [found[f"clip-{i}"]["ssim"] for i in range(FILMS)]
    assert ssims == sorted(ssims, reverse=True)
    overall = figures(done)
    assert overall["PSNR"]["value"] == pytest.approx(np.mean([found[f"clip-{i}"]["psnr"] for i in range(FILMS)]))
    assert overall["PSNR"]["low"] < overall["PSNR"]["value"] < overall["PSNR"]["high"]
    assert overall["Fréchet: perceptual"]["value"] > 0 and "perceptual" in overall["Fréchet: perceptual"]["note"]
    assert "6 generated and 7 real features" in overall["Fréchet: perceptual"]["note"]
    assert "fewer than their 312 dimensions" in overall["Fréchet: perceptual"]["note"]
    assert overall["TSE of the real ones"]["band"] == "" and overall["TSE"]["band"].startswith("below")


def test_what_is_broken_or_alone_is_named(done: Path) -> None:
    summary, found = told(done), rows(done)
    assert set(found) == {*(f"clip-{i}" for i in range(FILMS)), "torn", "alone"}
    assert (summary["videos"], summary["measured"], summary["pairs"]) == (7, 6, 5)
    assert list(summary["not_measured"]) == ["torn"] and found["torn"]["psnr"] is None
    assert list(summary["without_real"]) == ["alone"] and "no real video is called alone" in found["alone"]["real_why"]
    quarantined = "".join(path.read_text() for path in (done / "runs").rglob("records/*/*.jsonl"))
    assert "torn.mp4" in quarantined and "no-pair" in quarantined
    [page] = (done / "out").glob("scores@v*/page.html")
    assert "<h2>Not measured</h2>" in page.read_text() and "<code>torn</code>" in page.read_text()


def test_two_tasks_and_one_give_the_same_bits(films: Path, done: Path, tmp_path: Path) -> None:
    made = runs.go(spec(tmp_path, films, tasks=2))
    assert made.attempt and made.attempt.rows("scores-measure") == 2, "two tasks"
    one, two = runs.objects(done / "out"), runs.objects(tmp_path / "out")
    measured = [name for name in one if name.endswith((".npz", ".parquet", ".json"))]
    assert len(measured) == 2 * 2 + 2 and {name: one[name] for name in measured} == {n: two[n] for n in measured}
    assert figures(done) == figures(tmp_path)
    assert runs.planned(tmp_path / "e.yaml").attempt is None, "nothing is left to do"


def test_equal_sets_have_no_distance_and_no_error(films: Path, tmp_path: Path) -> None:
    for side in ("generated", "real"):
        shutil.copytree(films / "real", tmp_path / "films" / side)
    direct(tmp_path, tmp_path / "films/generated", real=str(tmp_path / "films/real"), sampson=None)
    found = figures(tmp_path)
    assert found["Fréchet: perceptual"]["value"] == 0
    assert found["PSNR"]["value"] == 100 and found["SSIM"]["value"] == pytest.approx(1, abs=1e-6)
    assert "TSE" not in found


def test_a_manifest_says_what_belongs_together_and_what_is_missing(films: Path, tmp_path: Path) -> None:
    direct(tmp_path, films / "generated", pairs=str(films / "pairs.jsonl"), sampson=None, frechet={})
    found = rows(tmp_path)
    assert {name for name, row in found.items() if row["psnr"] is not None} == {"clip-0", "clip-1"}
    assert told(tmp_path)["not_measured"]["clip-9"].startswith("missing: ")
    assert "pairs.jsonl:3 names it" in found["clip-9"]["why"]
    assert set(figures(tmp_path)) == {"PSNR", "SSIM"}


def test_a_tar_of_generated_videos_and_views_of_a_scene(tmp_path: Path) -> None:
    """The second view is the first one moved aside, so one matrix fits; of the other scene the views are two films."""
    (tmp_path / "films/generated").mkdir(parents=True)
    views = {"good": {".left.mp4": (1, 0), ".right.mp4": (1, 16)}, "bad": {".left.mp4": (2, 0), ".right.mp4": (3, 0)}}
    with layers.TarWriter(tmp_path / "films/generated/all.tar") as tar:
        for key, members in views.items():
            made = {suffix: film(tmp_path / "one.mp4", pictures(seed, frames=20)[shift // 2 :][:FRAMES]).read_bytes()
                    for suffix, (seed, shift) in members.items()}  # fmt: skip
            tar.add(key, made)
    direct(tmp_path, tmp_path / "films", per_shard=1, sampson={"pairs": 2, "views": "{scene}.{view}"}, frechet={})
    found = rows(tmp_path)
    assert [(row["scene"], row["view"]) for row in found.values()] == [
        ("bad", "left"), ("bad", "right"), ("good", "left"), ("good", "right")
    ]  # fmt: skip
    assert found["good.left"]["cse"] < 1 and found["good.left"]["cse_pairs"] == 1
    assert not found["bad.left"]["cse_pairs"] or found["bad.left"]["cse_mean"] > 5
    assert len(list((tmp_path / "out").glob("scores-measure@v1/*.npz"))) == 2, "scenes stay whole"


def test_a_page_in_a_browser(done: Path, tmp_path: Path) -> None:
    [page] = (done / "out").glob("scores@v*/page.html")
    assert page.read_text().count("data:image/webp;base64,") == 6 and page.read_text().count("<span>real</span>") == 5
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        assert os.environ.get("CI") != "true", "chromium is not installed"
        pytest.skip("chromium is not installed")
    ran = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--window-size=900,900", "--dump-dom",
         page.as_uri()],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert "CONSOLE" not in ran.stderr, ran.stderr
    assert ran.stdout.count("<figure") == 6 and ran.stdout.count("</svg>") == len(re.findall("<svg ", ran.stdout)) > 3
