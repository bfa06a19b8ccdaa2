"""evaluate.videos by the real worker: figures of films that are made here, what is missing, the page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import runs
import s3
import told as told_server
import torch
import transformers
import yaml

from hpc.batch.kinds import settings_of
from hpc.data import layers, storage, video
from hpc.data.work import BadInput, Work
from hpc.evaluate import frechet, measure, merge, pairs
from hpc.evaluate.films import Film
from hpc.evaluate.pairs import Place
from hpc.evaluate.settings.videos import Question
from hpc.models import backbones, vlm

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
    assert "no more than their 312 dimensions" in overall["Fréchet: perceptual"]["note"]
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


def test_what_a_stage_made_and_did_not_make(tmp_path: Path) -> None:
    """Tars and tables as generate.diffusion and curate.clips write them; pairs by name."""
    from hpc.generate.diffusion import SCHEMA

    whole = film(tmp_path / "one.mp4", pictures(1)).read_bytes()
    with layers.TarWriter(tmp_path / "g.tar") as tar:
        offset, size = tar.add("u1", {".mp4": whole}).members[".mp4"]
    layers.write_table(tmp_path / "g.parquet", [
        {"name": "u1", "mp4_offset": offset, "mp4_size": size}, {"name": "u2", "why": "bad-size"},
    ], {}, SCHEMA)  # fmt: skip
    told = (("u1", "keep", "new"), ("u2", "keep", "new"), ("u3", "static", "new"), ("u4", "keep", "old"))
    clips = [{"uuid": uuid, "verdict": verdict, "source": "s", "etag": etag, "cameras": None, "mp4_offset": offset,
              "mp4_size": size} for uuid, verdict, etag in told]  # fmt: skip
    layers.write_table(tmp_path / "c.parquet", clips, {})
    shutil.copy(tmp_path / "g.tar", tmp_path / "c.tar")
    needed = {name: [("000000", {end: str(tmp_path / f"{name}{end}") for end in (".tar", ".parquet")})]
              for name in ("g", "c")}  # fmt: skip
    settings = settings_of("evaluate.videos-measure", {"real": "c"})
    [some] = pairs.freeze(settings, needed, {("s", "old")})
    found = {one.name: one for one in msgspec.convert(some, list[pairs.Pair])}
    assert set(found) == {"u1", "u2"}, "what was dropped, and clips of inputs that were replaced, are none"
    assert found["u1"].generated == Place(str(tmp_path / "g.tar"), offset, size)
    assert found["u1"].real == Place(str(tmp_path / "c.tar"), offset, size)
    assert found["u2"].generated == Place(str(tmp_path / "g.tar"), why="not-made: bad-size")
    with pytest.raises(ValueError, match="no stage in `needs` beside that of the generated videos is called so"):
        next(pairs.freeze(msgspec.structs.replace(settings, real="x"), needed, set()))
    with pytest.raises(ValueError, match="of generated videos there is one stage"):
        next(pairs.freeze(msgspec.structs.replace(settings, real=None), needed, set()))


def test_what_was_held_out_is_measured_alone(tmp_path: Path) -> None:
    """Videos that go on from held-out clips: real ones that were trained on do not count, and the page says so."""
    from hpc.generate.diffusion import SCHEMA

    for name in ("world@v1", "videos@v1", "data@v1"):
        (tmp_path / name).mkdir()
    held = tmp_path / "world@v1/held_out.json"
    held.write_text(json.dumps({"by": "clip", "clips": ["u1", "u2", "u4"]}))

    def made(folder: Path, **seeds: int) -> dict[str, tuple[int, int]]:
        with layers.TarWriter(folder / "000000.tar") as tar:
            return {name: tar.add(name, {".mp4": film(folder / "one.mp4", pictures(seed)).read_bytes()}).members[".mp4"]
                    for name, seed in seeds.items()}  # fmt: skip

    places = made(tmp_path / "videos@v1", u1=11, u2=12)
    made(tmp_path / "data@v1", u1=1, u2=2, u3=3, u4=4)
    settings = settings_of("evaluate.videos", {"real": "data", "sampson": None}).parts()
    shard = {end: str(tmp_path / f"videos@v1/000000{end}") for end in (".tar", ".parquet")}
    data = [("000000", {".tar": str(tmp_path / "data@v1/000000.tar")})]

    def measured(**lists: str | None) -> tuple[set[str], dict[str, Any], str]:
        """(real ones without a partner, what is told, the page) of videos that go on from clips of these lists."""
        rows = [{"name": name, "mp4_offset": offset, "mp4_size": size, "held_out": lists[name]}
                for name, (offset, size) in places.items()]  # fmt: skip
        layers.write_table(tmp_path / "videos@v1/000000.parquet", rows, {}, SCHEMA)
        [some] = pairs.freeze(settings["measure"].settings, {"videos": [("000000", shard)], "data": data}, set())
        work = Work("000000", [], some, {}, tmp_path, "f", lambda: None, lambda *_: None, folder=str(tmp_path))
        first = measure.start(settings["measure"].settings)(work).objects
        work.rows = [list(map(str, first))]
        # the parts' tables would have one name here
        work.rows[0][1] = str(first[1].rename(tmp_path / "measured.parquet"))
        told = merge.start(settings[""].settings)(work).objects[1]
        alone = {one.name for one in msgspec.convert(some, list[pairs.Pair]) if one.generated is None}
        return alone, json.loads(told.read_text()), (tmp_path / "page.html").read_text()

    alone, told, page = measured(u1=str(held), u2=str(held))
    assert alone == {"u4"} and told["held_out"] == {str(held): 2} and told["pairs"] == 2
    [note] = [one["note"] for one in told["figures"] if one["name"] == "Fréchet: perceptual"]
    assert "of 2 generated and 3 real features" in note
    words = "<h1>videos@v1 beside data@v1, on clips that world@v1 held out</h1>"
    assert words in page
    report = merge.figures(lambda suffix: (tmp_path / f"000000{suffix}").open("rb"))
    assert report["of"] == "videos@v1 beside data@v1, on clips that world@v1 held out"
    alone, told, page = measured(u1=str(held), u2=None)
    assert alone == {"u3", "u4"} and "beside data@v1, 1 of 2 on clips that world@v1 held out</h1>" in page
    alone, told, page = measured(u1=None, u2=None)
    assert alone == {"u3", "u4"} and told["held_out"] == {} and "<h1>videos@v1 beside data@v1</h1>" in page


def test_a_video_that_was_cut_short_is_broken(tmp_path: Path) -> None:
    """Its head says how many frames there are."""
    path = film(tmp_path / "a.mp4", pictures(1, frames=40))
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + 4
    data[at + (len(data) - at) // 2 :] = bytes(len(data) - at - (len(data) - at) // 2)
    path.write_bytes(data)
    with pytest.raises(BadInput, match=r"a: \d+ of 40 frames can be decoded") as error:
        Film(Place(str(path)), "a")
    assert error.value.bad.reason == "damaged"
    with pytest.raises(BadInput, match="was there when the run was planned"):
        Film(Place(str(tmp_path / "b.mp4")), "b")
    whole = film(tmp_path / "c.mp4", pictures(1))
    with pytest.raises(BadInput) as error:
        Film(Place(str(whole), etag="another"), "c")
    assert error.value.bad.reason == "changed-since-planned"


def test_frames_of_the_same_times_are_compared(tmp_path: Path) -> None:
    """The real film has twice as many frames a second, and is larger; skipping leaves out what was given."""
    slow = film(tmp_path / "slow.mp4", pictures(1, frames=8)[::2], fps=8)
    fast = film(tmp_path / "fast.mp4", np.kron(pictures(1, frames=8), np.ones((1, 2, 2, 1), np.uint8)), fps=16)
    one, other = (Film(Place(str(path)), path.stem) for path in (slow, fast))
    found = measure.compared(one, other, 1, "cpu", lambda: None)
    assert found["compared"] == 3 and found["psnr"] > 28
    assert measure.compared(one, other, 4, "cpu", lambda: None) == {"compared": 0}
    still = film(tmp_path / "still.mp4", np.repeat(pictures(1)[:1], 8, 0), fps=16)
    assert measure.compared(one, Film(Place(str(still)), "s"), 1, "cpu", lambda: None)["psnr"] < found["psnr"] - 5


def test_too_few_and_of_different_sizes(tmp_path: Path) -> None:
    """One pair: a distance needs two, and the page says so. The real one is upright and larger, of a single
    frame; another generated one is too small to be one."""
    small = np.ascontiguousarray(pictures(1)[:, :16, :32])
    film(tmp_path / "films/generated/b.mp4", small[:, :8])
    film(tmp_path / "films/generated/a.mp4", small)
    film(tmp_path / "films/real/a.mp4", pictures(1, frames=1).transpose(0, 2, 1, 3))
    direct(tmp_path, tmp_path / "films/generated", real=str(tmp_path / "films/real"))
    found = figures(tmp_path)
    distance = found["Fréchet: perceptual"]
    assert distance["value"] is None
    assert distance["note"] == "of 1 generated and 1 real features by perceptual: two of each are the least"
    [page] = (tmp_path / "out").glob("scores@v*/page.html")
    assert "<td>Fréchet: perceptual<td>none<td>" in page.read_text()
    row = rows(tmp_path)["a"]
    assert (row["frames"], row["height"], row["width"], row["compared"]) == (FRAMES, 16, 32, 1)
    assert row["psnr"] > 5 and row["ssim"] < 1 and row["tse_pairs"] == 0 and row["real_tse_pairs"] is None
    assert told(tmp_path)["not_measured"]["b"] == "too-small: 32x8; 16 a side is the least"


def test_a_model_is_asked(films: Path, tmp_path: Path) -> None:
    with told_server.server({0: "Yes, it looks real.", 255: "no"}) as there:
        direct(tmp_path, films / "generated", sampson=None, frechet={}, vlm={
            "model": "m", "endpoint": {"url": there.url},
            "questions": {"real": {"ask": "Does it look real?"}, "score": {"ask": "How real?", "answer": "score"}},
        })  # fmt: skip
        assert there.prompts == {"Does it look real? Answer with yes or no.",
                                 "How real? Answer with one number from 1 to 5, and nothing else."}  # fmt: skip
    found = figures(tmp_path)
    grey = {name: row["answers"][0]["value"] for name, row in rows(tmp_path).items() if row["answers"]}
    assert len(grey) == 6 and found["model: real"]["value"] == pytest.approx(np.mean(list(grey.values())))
    assert found["model: score"]["value"] is None and "6 of 6 answers were not" in found["model: score"]["note"]
    assert found["model: real"]["n"] == 6
    [page] = (tmp_path / "out").glob("scores@v*/page.html")
    assert "real: <b>1</b>" in page.read_text()


@pytest.mark.parametrize(
    ("answer", "kind", "value"),
    [
        ("Yes.", "yes-no", 1), ("no, the hand has six fingers", "yes-no", 0), ("maybe", "yes-no", None),
        ("<think>no</think><answer>yes</answer>", "yes-no", 1), ("4", "score", 4), ("Score: 3.5.", "score", 3.5),
        ("4/5", "score", 4), ("2 out of 5", "score", 2), ("7", "score", None), ("between 2 and 3", "score", None),
        ("none", "score", None),
    ],
)  # fmt: skip
def test_answers_are_understood_or_not(answer: str, kind: Any, value: float | None) -> None:
    question = Question(ask="?", answer=kind)
    assert measure.understood(vlm.Answer(answer, "success"), "q", question) == value
    assert measure.understood(vlm.Answer(answer, "refused"), "q", question) is None


def test_on_s3(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.moto() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        for side in ("generated", "real"):
            for i in (0, 1):
                storage.put(f"s3://bucket/{side}/clip-{i}.mp4", films / side / f"clip-{i}.mp4")
        storage.put("s3://bucket/pairs.jsonl", b'{"generated": "clip-0", "real": "real/clip-1.mp4"}\n')
        uris = {entry.uri: entry.etag for entry in storage.listing("s3://bucket/generated")}
        settings = settings_of("evaluate.videos-measure", {"real": "s3://bucket/real"})
        [some] = pairs.freeze(settings, {"inputs": [("000000", uris)]}, set())
        assert [one[0] for one in some] == ["clip-0", "clip-1"]
        film = Film(msgspec.convert(some[0][2], Place), "clip-0")
        assert film.frames == FRAMES and film.sample([0, 3], 48, 64).shape == (2, 48, 64, 3)
        named = msgspec.structs.replace(settings, real=None, pairs="s3://bucket/pairs.jsonl")
        [some] = pairs.freeze(named, {"inputs": [("000000", uris)]}, set())
        assert some[0][2][0] == "s3://bucket/real/clip-1.mp4"


# Networks


class I3D(torch.nn.Module):
    """Takes what the published archive takes."""

    def forward(self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False) -> Any:
        assert not rescale and not resize and return_features and x.shape[1:] == (3, 16, 224, 224)
        return torch.nn.functional.pad(x.mean((2, 3, 4)), (0, 397))


class Inception(torch.nn.Module):
    def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert return_features and x.dtype == torch.uint8 and x.shape[1] == 3
        return torch.nn.functional.pad(x.float().mean((2, 3)), (0, 2045))


class Colours:
    dim, clip, whole, size = 3, 2, False, (8, 8)

    def __call__(self, pictures_NTHWC: torch.Tensor) -> torch.Tensor:
        return pictures_NTHWC.float().mean((1, 2, 3))


def colours(device: str) -> Colours:
    return Colours()


def test_archives_and_functions_are_networks(films: Path, tmp_path: Path) -> None:
    archives = {}
    for made in (I3D(), Inception()):
        archives[type(made).__name__.lower()] = tmp_path / f"{type(made).__name__}.pt"
        torch.jit.script(made).save(tmp_path / f"{type(made).__name__}.pt")
    direct(tmp_path, films / "generated", real=str(films / "real"), sampson=None, quality=False, shown=0, frechet={
        **{name: {"network": name, "weights": str(path)} for name, path in archives.items()},
        "mine": {"network": "test_evaluate:colours", "per_video": 4},
    })  # fmt: skip
    found = figures(tmp_path)
    assert set(found) == {"Fréchet: i3d", "Fréchet: inception", "Fréchet: mine"}
    counts = {name: re.findall(r"(\d+) generated and (\d+) real", one["note"])[0] for name, one in found.items()}
    assert counts == {"Fréchet: i3d": ("6", "7"), "Fréchet: inception": (str(6 * FRAMES), str(7 * FRAMES)),
                      "Fréchet: mine": ("24", "28")}  # fmt: skip
    assert found["Fréchet: i3d"]["low"] is None, "6 features of 400 dimensions"
    assert found["Fréchet: inception"]["band"] and not found["Fréchet: mine"]["band"]
    grey = [np.stack([Film(Place(str(path)), "f").sample(list(range(FRAMES)), HEIGHT, WIDTH) for path in
                      sorted((films / side).glob("*.mp4")) if (side, path.stem) != ("generated", "torn")])
            for side in ("generated", "real")]  # fmt: skip
    means = [np.float32(side.astype(np.float32).mean((2, 3))).reshape(-1, 3) for side in grey]
    known = frechet.of_moments(*(x for m in means for x in (m.mean(0, dtype=float), np.cov(m.T.astype(float)))))
    assert found["Fréchet: inception"]["value"] == pytest.approx(known, rel=1e-3)
    (tmp_path / "no.pt").write_bytes(b"no")
    with pytest.raises(RuntimeError, match=r"no.pt is no TorchScript archive"):
        backbones.load("i3d", (str(tmp_path / "no.pt"), "x"))
    with pytest.raises(TypeError, match="lacks dim, clip, whole, size"):
        backbones.load("collections:Counter", None)
    with pytest.raises(ValueError, match="importable here"):
        backbones.load("test_evaluate:missing", None)


def test_models_of_transformers_are_networks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    mae = transformers.VideoMAEConfig(image_size=32, patch_size=16, num_frames=4, tubelet_size=2, decoder_hidden_size=8,
                                      decoder_num_attention_heads=2, decoder_num_hidden_layers=1,
                                      decoder_intermediate_size=8, **sizes)  # fmt: skip
    transformers.VideoMAEForPreTraining(mae).save_pretrained(tmp_path / "mae")
    vit = transformers.Dinov2Config(image_size=28, patch_size=14, mlp_ratio=1, **sizes)
    transformers.Dinov2Model(vit).save_pretrained(tmp_path / "dino")
    rng = np.random.default_rng(0)
    for name, clip, side in (("mae", 4, 32), ("dino", 1, 28)):
        network = backbones.load(str(tmp_path / name), None)
        assert (network.dim, network.clip, network.size) == (16, clip, (side, side))
        pictures_NTHWC = torch.from_numpy(rng.integers(0, 256, (3, clip, side, side, 3), np.uint8))
        features = network(pictures_NTHWC)
        assert features.shape == (3, 16) and torch.allclose(features[1:2], network(pictures_NTHWC[1:2]), atol=1e-5)
        assert (features[0] - features[1]).abs().max() > 1e-3
    scaled = (pictures_NTHWC[:, 0].permute(0, 3, 1, 2) / 255 - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / (
        torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    )
    with torch.inference_mode():
        known = transformers.Dinov2Model.from_pretrained(tmp_path / "dino")(scaled).pooler_output
    assert torch.allclose(known, features, atol=1e-6)


def test_which_frames_a_network_sees() -> None:
    seen = backbones.observed
    colours = Colours()
    assert seen(colours, 9, None) == [[0, 1]] and seen(colours, 9, 3) == [[0, 1], [4, 5], [7, 8]]
    assert seen(colours, 1, 3) == [[0, 0]] and seen(colours, 3, 50) == [[0, 1], [1, 2]]
    [spread] = seen(backbones.Perceptual(), 320, 5)
    assert len(spread) == 32 and spread[0] == 5 and spread[-1] == 315


# Settings


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"real": "../x/y"}, "a place begins with /"),
        ({"pairs": "/x.csv"}, "is no .jsonl"),
        ({"frechet": {"a": {"network": "i4d"}}}, "none of perceptual, i3d, inception"),
        ({"frechet": {"a": {"network": "inception"}}}, "inception has none of its own"),
        ({"frechet": {"a": {"network": "perceptual", "weights": "/x"}}}, "perceptual takes none"),
        ({"sampson": {"views": "{scene}"}}, "each once"),
        ({"sampson": {"overlap": [["a", "b"]]}}, "without `views`"),
        ({"vlm": {"questions": {"q": {"ask": "?", "low": 5}}}}, "is not above low"),
    ],
)
def test_settings_that_do_not_go_together_say_so(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        settings_of("evaluate.videos", values)


def test_a_stage_that_is_not_needed_has_no_real_videos() -> None:
    settings = settings_of("evaluate.videos", {"real": "clips"})
    assert "`needs` names no stage" in settings.unmet([])
    assert settings.unmet(["generate.diffusion", "curate.clips"]) == ""
    assert settings_of("evaluate.videos", {"real": "/films"}).unmet([]) == ""


def test_models_are_named() -> None:
    networks = {"fvd": "i3d", "mae": "MCG-NJU/videomae-base", "p": "perceptual"}
    settings = settings_of("evaluate.videos", {
        "frechet": {name: {"network": network} for name, network in networks.items()},
        "vlm": {"questions": {"q": {"ask": "?"}}, "model": "a/b"},
    })  # fmt: skip
    assert settings.models() == {"flateon/FVD-I3D-torchscript": ("i3d_torchscript.pt",), "MCG-NJU/videomae-base": (),
                                 "a/b": ()}  # fmt: skip


def test_a_page_in_a_browser(done: Path, tmp_path: Path) -> None:
    [page] = (done / "out").glob("scores@v*/page.html")
    source = page.read_text()
    assert source.count("data:image/webp;base64,") == 6 and source.count("<span>real: real</span>") == 5
    assert "<h1>generated beside real</h1>" in source, "the names of their folders"
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
