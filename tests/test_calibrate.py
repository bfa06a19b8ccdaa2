"""What a person sees of the filters: the report's histograms, and thresholds from a run's own scores."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import runs
import specs
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import Page, metrics

from hpc.batch import charts, report, status
from hpc.batch.run import Run
from hpc.curate import clip, filters, scores
from hpc.curate.settings.filters import FILTERS, SCORES, Black, Duration, Filter, Filters, Motion, Resolution
from hpc.data import layers
from hpc.data.units import Seconds

TRAILER = Path(__file__).parents[1] / "jobs" / "quickstart" / "trailer_bbb.mp4"
NAMED = Filters(
    resolution=Resolution(min_width=640),
    black=Black(mode="score-only", level=0.2),
    duration=Duration(),
    motion=Motion(),
)


def tables(folder: Path, rows: list[dict[str, Any]], shards: int = 1) -> scores.Shards:
    """Published shards of clips that have these columns."""
    found: scores.Shards = {}
    for n in range(shards):
        path = folder / f"{n:06}.parquet"
        layers.write_table(path, [row(n, k) | r for k, r in enumerate(rows) if k % shards == n], {}, clip.SCHEMA)
        found[path.stem] = lambda suffix, path=path: path.with_suffix(suffix).open("rb")
    return found


def row(shard: int, number: int) -> dict[str, Any]:
    return {"uuid": f"{shard}-{number}", "source": "/in/a.mp4", "member": "", "verdict": "keep", "start_seconds": 1.5,
            "end_seconds": 4.0, "webp_offset": 1024, "webp_size": 99}  # fmt: skip


def many(count: int = 400) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    return [
        {
            "resolution_width": float(random.choice([320, 1280, 1920], p=[0.05, 0.8, 0.15])),
            "resolution_height": 720.0, "resolution_aspect": 1.78, "duration_seconds": random.uniform(2, 60),
            "black_share": float(random.choice([0, 0.1, 1], p=[0.8, 0.15, 0.05])),
            "motion_vectors_global": float(10 ** random.normal(-2.5, 0.5)), "motion_vectors_patch": 0.0,
        }
        for _ in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("kind", FILTERS.values(), ids=FILTERS)
def test_every_filter_can_be_calibrated(kind: type[Filter]) -> None:
    """The settings behind its limits are found, and moving one moves that limit and no other."""
    one = kind()
    found = scores.settings_of(one)
    assert found and {column for column, _ in found} <= kind.SCORES.keys()
    for (column, side), setting in found.items():
        other = (getattr(one, setting) or 0.0) + (0.5, -0.5)[side] * 1e-3
        moved = msgspec.structs.replace(one, **{setting: other}).limits()
        before = {column: scores.ALL for column in kind.SCORES} | one.limits()
        different = [(c, s) for c, pair in moved.items() for s in (0, 1) if pair[s] != before[c][s]]
        assert different == [(column, side)] and moved[column][side] == other


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1e-6, 3e-5, 0.1, 0.25, 0.2500001, 1.0, 7.0, 12345.678]), min_size=1, max_size=60),
       st.sampled_from([0, 1]), st.sampled_from([0.5, 0.8, 0.9, 0.95]))  # fmt: skip
def test_a_threshold_is_the_strictest_that_keeps_enough(numbers: list[float], side: int, share: float) -> None:
    known = np.sort(np.array(numbers))
    value = scores.threshold(known, side, share)
    kept = lambda limit: np.mean(known >= limit) if side == 0 else np.mean(known <= limit)
    cuts = [c for c in known if share - 1e-9 <= kept(c) < 1]
    if value is None:
        assert not cuts
    else:
        assert kept(value) == min(map(kept, cuts)) == pytest.approx(scores.share_kept(known, side, value))
    loosest = scores.loosest(known, side)
    assert kept(loosest) == 1


def test_rounding_is_short() -> None:
    assert scores.rounded(0.000123456, 0.000131) == 0.00013
    assert scores.rounded(0.0, 1.0) == 0.5 and scores.rounded(1.0, 0.0) == 0.5
    assert scores.rounded(640.0, 1280.0) == 1000.0
    assert scores.written(1e-6, 0.0) == "0.000001" and scores.written(2.5, Seconds(2)) == "2.5s"


@pytest.mark.parametrize("heap", ["normal", "uniform", "exponential", "few"])
@pytest.mark.parametrize("seed", range(5))
def test_one_heap_has_no_gap(heap: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    numbers = {"normal": random.normal(5, 1, 2000), "uniform": random.uniform(0, 10, 300),
               "exponential": random.exponential(1, 1000), "few": random.normal(5, 1, 40)}  # fmt: skip
    assert scores.gap(np.sort(numbers[heap]), SCORES["duration_seconds"]) is None


def test_a_gap_lies_between_two_heaps() -> None:
    random = np.random.default_rng(0)
    two = np.sort(np.r_[random.normal(2, 0.3, 60), random.normal(8, 1.5, 900)])
    assert 2.8 < scores.gap(two, SCORES["duration_seconds"]) < 4.5
    log = np.sort(np.r_[np.zeros(80), 10 ** random.normal(-2.5, 0.4, 500)])  # standing pictures, and what moves
    assert 1e-5 < scores.gap(log, SCORES["motion_vectors_global"]) < 1e-3
    assert scores.gap(np.zeros(500), SCORES["black_share"]) is None


def test_histograms(tmp_path: Path) -> None:
    rows = [{"black_share": v} for v in (0.0, 0.0, 0.3, 0.5, 1.0)] + [{"black_share": None}]
    rows += [{"black_share": 0.9, "verdict": "black"}, {"black_share": 0.7, "verdict": "short"}]
    [one] = scores.summary(Filters(black=Black()), tables(tmp_path, rows, 2)).histograms
    assert (one.measured, one.clips, one.median, one.mode) == (6, 7, 0.4, "enable"), (
        "what the split dropped is not seen"
    )
    assert {n: count for n, count in enumerate(one.bins) if count} == {0: 2, 14: 1, 24: 1, 43: 1, 47: 1}
    [limit] = one.limits
    assert (limit.setting, limit.side, limit.now, limit.keeps) == ("max_share", "max", 0.5, pytest.approx(4 / 6))
    assert charts.keeps(limit) == "keeps 66.7 % at max 0.5"
    score = SCORES["motion_vectors_global"]
    assert scores.counted(np.array([0.0, 1e-9, 1e-5, 1e-3, 0.1, 9.0]), score, 4) == [3, 0, 1, 2], (
        "the ends hold the rest"
    )


def test_a_sample_of_the_shards(tmp_path: Path) -> None:
    [one] = tables(tmp_path, many(3)).values()
    opened: list[int] = []

    def opener(number: int) -> Callable[[str], io.BufferedReader]:
        return lambda suffix: (opened.append(number), one(suffix))[1]

    made = scores.summary(NAMED, {f"{n:06}": opener(n) for n in range(1001)})
    assert (made.sampled.shards, made.sampled.of, made.sampled.clips) == (200, 1001, 600)
    assert np.diff(sorted(opened)).min() == 5 and np.diff(sorted(opened)).max() <= 6, "spread over the run"


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    shards = tables(tmp_path, many(60), 4)
    (tmp_path / "000001.parquet").write_bytes(b"no parquet")
    (tmp_path / "000002.parquet").unlink()
    made = scores.summary(NAMED, shards).sampled
    assert (made.shards, made.of, made.clips) == (2, 4, 30)
    assert [text.split(":")[0] for text in made.unreadable] == ["000001.parquet", "000002.parquet"]
    gone = {f"{n}": shards["000002"] for n in range(300)}
    made = scores.summary(NAMED, gone).sampled
    assert made.shards == made.clips == 0 and len(made.unreadable) == scores.GIVE_UP, "a storage out of reach: at once"
    with pytest.raises(
        ValueError, match=r"^0 clips with scores, in 0 of 300 .* takes 50; .* cannot be read: 0.parquet"
    ):
        scores.calibrate(NAMED, gone, 0.9)


def test_a_calibration_keeps_what_it_says(tmp_path: Path) -> None:
    rows = many()
    found = scores.calibrate(NAMED, tables(tmp_path, rows, 3), 0.9)
    assert (found.sampled.clips, found.sampled.shards) == (400, 3)
    by = {f"{p.limit.filter}.{p.limit.setting}": p for p in found.proposals}
    for name, p in by.items():
        assert p.keeps >= 0.9, name
        if p.value is not None:
            values = np.array([r.get(p.limit.column, np.nan) for r in rows])
            kept = values >= p.value if p.limit.side == "min" else values <= p.value
            assert p.keeps == pytest.approx(kept[~np.isnan(values)].mean())
            side = [one.score for one in p.dropped]
            assert all(s < p.value for s in side) if p.limit.side == "min" else all(s > p.value for s in side)
            distances = [abs(one.score - p.value) for one in p.kept]
            assert distances == sorted(distances) and len(p.kept) == scores.EXAMPLES
    assert by["resolution.min_width"].text == "800" and by["duration.min"].text.endswith("s")
    assert by["resolution.min_height"].value is None, "all have the same, and the present limit keeps them"
    assert by["motion.min_vectors_patch"].text == "0", "the present limit drops all of them"
    assert by["motion.min_pixels_global"].value is None and by["motion.min_pixels_global"].limit.keeps == 1
    assert by["black.max_share"].text == "0.6" and by["black.max_share"].keeps > 0.93

    pasted = msgspec.convert(yaml.safe_load(found.yaml)["filter"], Filters, dec_hook=lambda kind, v: kind.parse(v))
    assert pasted.black.level == 0.2 and pasted.black.mode == "enable"
    dropped = sum(bool(filters.judge(pasted, {k: v for k, v in r.items() if v is not None})[0]) for r in rows)
    assert found.keeps == pytest.approx(1 - dropped / 400) and 0.5 < found.keeps < 0.9
    enabled = msgspec.structs.replace(NAMED, black=Black(level=0.2))
    dropped = sum(bool(filters.judge(enabled, r)[0]) for r in rows)
    assert found.keeps_now == pytest.approx(1 - dropped / 400) == 0


def test_the_block_is_a_spec(tmp_path: Path) -> None:
    block = scores.calibrate(NAMED, tables(tmp_path, many()), 0.9).yaml.replace("\n", "\n    ")
    made = specs.one(tmp_path, f"{specs.SPEC.partition('  clips:')[0]}  clips:\n    kind: curate.clips\n    {block}")
    assert made.stages["clips"].settings.filter.resolution.min_width == 800


def test_too_few_clips(tmp_path: Path) -> None:
    shards = tables(tmp_path, many(49))
    with pytest.raises(
        ValueError, match=r"^49 clips .* in 1 of 1 shards, are too few to tell .* keeps 0.9: it takes 50"
    ):
        scores.calibrate(NAMED, shards, 0.9)
    assert scores.calibrate(NAMED, shards, 0.8).sampled.clips == 49
    with pytest.raises(ValueError, match="names no filter"):
        scores.calibrate(Filters(), shards, 0.9)
    assert scores.summary(Filters(), shards) is None


# A whole run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The trailer's first 40 s as 80 clips, with one filter that drops and two that do not."""
    place = tmp_path_factory.mktemp("calibrate")
    (place / "in").mkdir()
    subprocess.run(["ffmpeg", "-v", "error", "-i", TRAILER, "-t", "40", "-vf", "scale=320:-2", "-an",
                    place / "in" / "<b>'&\".mp4"], check=True)  # fmt: skip
    clips = {
        "kind": "curate.clips", "resources": {"cpus": 1}, "encode": {"preset": "ultrafast", "crf": 40.0},
        "split": {"detector": "stride", "stride": "500ms", "min_clip": "400ms"},
        "filter": {"black": {"max_share": 0.4}, "blur": {"mode": "score-only"}, "resolution": {"mode": "score-only"}},
    }  # fmt: skip
    file = runs.spec(place, {}, {"clips": clips}, shards={"size": "1GiB"})
    return runs.go(file).run


def test_the_report(run: Run) -> None:
    facts = json.loads(run.report("json").read_bytes())
    counts = facts["status"]["stages"][0]["counts"]
    assert counts["clips"] + counts["dropped_black"] == 80 and counts["dropped_black"] == counts["dropped"] > 3
    summary = facts["scores"]["clips"]
    assert summary["sampled"] == {"shards": 1, "of": 1, "clips": 80, "unreadable": []}
    shown = {h["column"]: h for h in summary["histograms"]}
    columns = ["resolution_width", "resolution_height", "resolution_aspect", "black_share", "blur_sharpness"]
    assert list(shown) == columns
    [limit] = shown["black_share"]["limits"]
    assert limit["keeps"] == pytest.approx(counts["clips"] / 80) and sum(shown["black_share"]["bins"]) == 80

    text = run.report("txt").read_text()
    assert f"{counts['dropped']:.0f} dropped ({counts['dropped']:.0f} black)" in text
    assert "scores of 80 clips, from 1 of 1 shards" in text
    assert re.search(r"black_share +0 \|█[ ▁-█]{23}\| 1 +keeps [\d.]+ % at max 0.4\n", text)
    assert re.search(r"blur_sharpness .* keeps [\d.]+ % at min [\d.]+, .*score-only\n", text)
    assert re.search(r"work [\d.]+ s \(.*encode [\d.]+.*\), publish .* a worker \d+ frames/s, [\d.]+ x realtime", text)

    source = run.report("html").read_text()
    page = Page(source)
    assert page.wrong == []
    tags = [tag for tag, _ in page.elements]
    assert tags.count("svg") == 5 and not {"script", "use", "a", "foreignobject"} & set(tags)
    assert f"kept {counts['clips']:.0f} (" in page.text and f"black {counts['dropped']:.0f} (" in page.text
    assert "keeps 100 % at min 256" in page.text and "encode" in page.text

    found = metrics(run.report("prom").read_text())
    label = f'cluster="local",run="{run.id}",stage="clips"'
    verdicts = {v: found["hpc_run_clips"][f'{label},verdict="{v}"'] for v in ("keep", "black")}
    assert verdicts == {"keep": counts["clips"], "black": counts["dropped"]}
    assert found["hpc_run_limit_keeps_ratio"][f'{label},score="black_share",limit="max"'] == pytest.approx(
        limit["keeps"]
    )
    assert found["hpc_run_spent_seconds_total"][f'{label},on="encode"'] > 0


def test_a_report_when_the_tables_are_gone(run: Run, tmp_path: Path) -> None:
    gathered = status.gather(run, ask_slurm=False)
    gathered.stages["clips"].folder = str(tmp_path)
    sampled = report.scores(gathered)["clips"].sampled
    assert sampled.shards == sampled.clips == 0 and "000000.parquet: " in sampled.unreadable[0]


def test_calibrate(run: Run) -> None:
    """On the command line, as JSON, and as a page with the clips on both sides of each threshold."""
    said = runs.hpc("calibrate", run.id, "--keep", "0.8", cwd=run.folder.parents[1]).stdout
    assert "80 clips with scores, from 1 of 1 shards; each threshold is to keep 80 %" in said
    block = yaml.safe_load(said[said.index("\nfilter:") : said.index("\n# the clips")])["filter"]
    made = runs.facts("calibrate", run.folder, "--stage", "clips", "--keep", "0.8")
    assert made["stage"] == "clips" and yaml.safe_load(made["calibration"]["yaml"])["filter"] == block
    blur = next(p for p in made["calibration"]["proposals"] if p["limit"]["filter"] == "blur")
    assert block["blur"] == {"min_sharpness": blur["value"]} and 0.8 <= blur["keeps"] < 0.85
    nearest = blur["dropped"][0]
    assert f"  dropped  {nearest['uuid']}  {nearest['source']}  " in said and nearest["score"] < blur["value"]

    page = Page(Path(made["page"]).read_text())
    assert page.wrong == [] and "proposed: keeps" in page.text and "<b>'&\".mp4" in page.text
    pictures = [a["src"] for tag, a in page.elements if tag == "img"]
    assert len(pictures) >= 12 and all(p.startswith("data:image/webp;base64,UklGR") for p in pictures)

    words = runs.hpc("calibrate", run.folder, "--keep", "0.99", code=2).stderr
    assert words.startswith("hpc calibrate: 80 clips with scores") and "it takes 500" in words
    assert "--keep 1: a share" in runs.hpc("calibrate", run.folder, "--keep", "1", code=2).stderr
    assert "no stage x; " in runs.hpc("calibrate", run.folder, "--stage", "x", code=2).stderr


def test_in_a_browser(run: Run, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        assert os.environ.get("CI") != "true", "chromium is not installed"
        pytest.skip("chromium is not installed")
    for form in ("report.html", "calibrate.html"):
        done = subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-sync",
             f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--window-size=500,900",
             "--dump-dom", (run.folder / form).as_uri()],
            capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        assert "CONSOLE" not in done.stderr, done.stderr
        assert done.stdout.count("<rect ") > 10 and done.stdout.count("</svg>") == done.stdout.count("<svg ")
