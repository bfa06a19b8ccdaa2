"""jobs/pipeline-tiny.yaml: from a film to generated videos and their evaluation, and what its report shows of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from hpc.batch import launch
from hpc.batch.cluster import load_cluster
from hpc.batch.kinds import settings_of
from hpc.batch.spec import load
from hpc.data import layers, video
from hpc.generate import diffusion
from hpc.prepare import encode

JOBS = Path(__file__).parents[1] / "jobs"
DIFFUSION = ("clips", "data", "vae", "latents", "world", "videos", "scores")
"""The stages of one of the two models."""


def shorter(folder: Path, stages: tuple[str, ...] = DIFFUSION, steps: int = 2) -> Path:
    """The spec with some of its stages, and trainings of a few steps, beside the film's first half."""
    (folder / "jobs/quickstart").mkdir(parents=True)
    film = "quickstart/trailer_bbb.mp4"
    ffmpeg = ["ffmpeg", "-v", "error", "-i", JOBS / film, "-t", "32", "-c", "copy", folder / "jobs" / film]
    subprocess.run(ffmpeg, check=True)
    spec = yaml.safe_load((JOBS / "pipeline-tiny.yaml").read_text())
    spec["stages"] = {name: stage for name, stage in spec["stages"].items() if name in stages}
    if "captions" not in stages:
        spec["stages"]["data"] |= {"needs": "clips", "join": False}
    if "videos" in stages and "world-weights" not in stages:
        spec["stages"]["videos"] |= {"needs": ["world", "vae", "data"], "weights": "world"}
    for stage in spec["stages"].values():
        if stage["kind"].startswith("train."):
            stage |= {"steps": steps, "optimizer": {"rate": 1e-3, "warmup": 0}, "readers": 0}
            stage["checkpoints"] = {"every": steps}
        stage["resources"] = {"cpus": 1, "memory": "1500MiB"}
    spec["stages"].get("videos", {}).update({"limit": 3, "steps": 2})
    path = folder / "jobs/pipeline-tiny.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def checked(run: Path, output: Path, generated: dict[str, tuple[str, str]], caption: str = "") -> str:
    """The report's page, after a look at what it says. generated: stage with videos -> (stage that evaluates them,
    stage whose held-out clips they go on from). caption: of all clips, and so of what goes on from them."""
    source = (run / "report.html").read_text()
    told = json.loads((run / "report.json").read_text())
    assert told["status"]["state"] == "done" and told["notes"] == []
    for name, (scores, training) in generated.items():
        held = output / f"{training}@v1/held_out.json"
        unseen = set(json.loads(held.read_text())["clips"])
        rows = [row for path in output.glob(f"{name}@v1/*.parquet") for row in layers.read_table(path).to_pylist()]
        assert rows and all(row["why"] is None for row in rows)
        for row in rows:
            [tar] = output.glob(f"{name}@v1/000000.tar")
            data = tar.read_bytes()
            mp4 = data[row["mp4_offset"] : row["mp4_offset"] + row["mp4_size"]]
            info, frames = video.measured(mp4)
            assert (frames, info.width, info.height, info.fps) == (9, 80, 48, 12) and row["given"] == 1
            assert row["prompt"] == caption, "of the clip"
            assert row["name"] in unseen and row["held_out"] == str(held)
            assert f"<figcaption>{row['name']}" in source, "the page shows it"
        compared = f"{name}@v1 beside data@v1, on clips that {training}@v1 held out"
        assert f"Evaluation <span class=dim>{scores}: {compared}</span>" in source
        figures = {one["name"]: one for one in told["figures"][scores]["rows"]}
        assert figures["PSNR"]["n"] == figures["SSIM"]["n"] == len(rows) and 5 < figures["PSNR"]["value"] < 40
        assert figures["Fréchet: perceptual"]["value"] > 0
        assert f"{figures['PSNR']['value']:.4g} dB" in source
        page = (output / f"{scores}@v1/page.html").read_text()
        assert f"<h1>{compared}</h1>" in page
        assert page.count(f"<span>generated: {name}@v1</span><span>real: data@v1</span>") == len(rows)
    links = re.findall(r"<a href='([^']+)'>", source)
    assert links and all(not link.startswith("/") and (run / link).is_file() for link in links), "files beside the run"
    return source


@pytest.mark.long
def test_the_whole_chain_in_fifteen_minutes(tmp_path: Path) -> None:
    shutil.copytree(JOBS, tmp_path / "jobs")
    begun = time.monotonic()
    command = [sys.executable, "-m", "hpc.cli", "run", "jobs/pipeline-tiny.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - begun < 900
    [run] = (tmp_path / "runs").iterdir()
    output = tmp_path / "out/pipeline-tiny"
    source = checked(run, output, {"ar-videos": ("ar-scores", "ar"), "videos": ("scores", "world")},
                     "A scene of an animated film.")  # fmt: skip
    for stage in ("ids", "vae", "ar", "world"):
        assert f"Training <span class=dim>of {stage}: step " in source
    assert source.count("<polyline") >= 12, "curves"
    losses = [json.loads(line)["loss"] for line in (output / "ids@v1/000000.jsonl").read_text().splitlines()]
    assert sum(losses[-10:]) < 0.75 * sum(losses[:10]), "it learns"
    assert (output / "weights@v1/model.pt").is_file() and (output / "world-weights@v1/model/model.pt").is_file()
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0 and "nothing to do" in again.stdout


@pytest.mark.parametrize(
    ("stage", "change", "words"),
    [
        ("videos", {"weights": "wrld"}, "'wrld': no such stage in `needs`: did you mean world?"),
        ("latents", {"tokenizer": "clips", "needs": ["data", "clips"]},
         "clips is curate.clips, and here stands one of train.tokenizer"),
        ("videos", {"weights": None}, "tiny-predict2 has no published weights"),
        ("videos", {"guidance": 2.0}, "without texts nothing can be steered away from"),
        ("videos", {"prompts": "prompts.jsonl"}, "a path begins with / or ~"),
        ("videos", {"needs": ["world", "vae", "data", "latents"]}, "nothing is taken from prepare.latents"),
        ("videos", {"context": 4}, "context: 2 heads / 4: ranks must have equal parts"),
        ("videos", {"context": 2}, "context: 2 GPUs have a video together, and there are 1 ranks (workers)"),
    ],
)  # fmt: skip
def test_stages_that_do_not_fit_are_told_with_the_line(
    stage: str, change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    path = shorter(tmp_path)
    spec = yaml.safe_load(path.read_text())
    spec["stages"][stage] |= change
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    command = [sys.executable, "-m", "hpc.cli", "check", str(path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert done.returncode == 2 and words in done.stderr, done.stderr
    assert re.search(rf"(pipeline-tiny.yaml:\d+|hpc check): stages\.{stage}", done.stderr)


def test_clips_wait_for_the_tokenizer_that_is_trained(tmp_path: Path) -> None:
    """Behind a barrier: a shard for each of theirs, with layers over it, and where the tokenizer is."""
    told = tmp_path / "000000.json"
    told.write_text(json.dumps({"tokenizer": "/out/vae@v1/tokenizer"}))
    settings = settings_of("prepare.latents", {"tokenizer": "vae"}).parts()["encode"].settings
    assert settings.PHASES == ("barrier", "map") and settings.models() == {}
    vae = [("000000", {".json": str(told)})]
    clips = [(shard, {".tar": f"{shard}.tar"}) for shard in ("000000", "000001")]
    words = [(shard, {".parquet": f"{shard}.parquet"}) for shard in ("000000", "000001")]
    rows = list(encode.freeze(settings, {"vae": vae, "clips": clips, "words": words}, set()))
    needed = {"clips": {".tar": "000001.tar"}, "words": {".parquet": "000001.parquet"}}
    assert rows[1] == ["/out/vae@v1/tokenizer", needed]
    with pytest.raises(ValueError, match="clips, words have different shards"):
        list(encode.freeze(settings, {"vae": vae, "clips": clips, "words": words[:1]}, set()))
    with pytest.raises(ValueError, match="it names no stage with clips"):
        list(encode.freeze(settings, {"vae": vae}, set()))
    told.write_text('{"model": "/out/ar@v1/model"}')
    with pytest.raises(ValueError, match="names no tokenizer: the stage in `needs` trains something else"):
        list(encode.freeze(settings, {"vae": vae, "clips": clips}, set()))


def test_a_training_says_what_its_videos_are_made_by(tmp_path: Path) -> None:
    told = {"model": "/out/world@v1/model", "settings": {"model": "tiny-predict2", "text": {"source": "none"},
                                                         "objective": {"high": 0.1, "given_level": None}}}  # fmt: skip
    (tmp_path / "000000.json").write_text(json.dumps(told))
    values = {"model": "tiny-predict2", "weights": "world", "tokenizer": "vae", "text_encoder": "none"}
    of = lambda **more: diffusion.of_training(
        settings_of("generate.diffusion", values | more), "world", str(tmp_path / "000000.json")
    )
    assert of() == {"weights": "/out/world@v1/model/ours", "objective": {"high": 0.1}}
    with pytest.raises(ValueError, match="world has trained tiny-predict2, and this is tiny-predict1: write `model: t"):
        of(model="tiny-predict1")
    with pytest.raises(ValueError, match="text_encoder: world was trained with no texts: write none here"):
        of(text_encoder="/models/t5")


def test_ranks_that_have_videos_together_are_an_array_as_well(tmp_path: Path) -> None:
    """`tasks` of them: each task has `context` ranks."""
    path = shorter(tmp_path)
    [spec] = load(path, ["stages.videos.context=2", "stages.videos.resources.workers=2", "stages.videos.tasks=5"])
    made = launch.plan(spec, load_cluster("local", path), tmp_path / "runs", on_slurm=False, command=["test"])
    assert made.plan
    assert (made.plan.stage("videos").kind, made.plan.stage("videos").width) == ("generate.diffusion-ranks", 5)
    assert made.plan.stage("world").width == 1
