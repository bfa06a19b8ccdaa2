"""The report of a run in which much went wrong: complete in every form, and safe to open whatever inputs are called."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import runs
from PIL import Image

from hpc.batch import counts, outcome, page, report, status
from hpc.batch import metrics as prometheus
from hpc.batch.run import Run

EVIL = ["<script>alert(1)</script>.txt", "&lt;b&gt; \"q\" 'x' onload=alert(1).txt", "--> ]]> {{7*7}} ${x} é日本.txt",
        "line\nbreak\ttab.txt"]  # fmt: skip
OPTIONAL_END = {"html", "head", "body", "p", "tr", "td", "th", "li", "figcaption"}
VOID = {"meta", "br", "img", "link", "hr", "col"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = tmp_path_factory.mktemp("report") / "a <b>&'\" place"
    place.mkdir()
    texts = {EVIL[0]: "bad <i>x</i> &", EVIL[1]: "fail", EVIL[2]: "bad '\">", EVIL[3]: "oom"}
    texts |= {f"{i}.txt": f"text {i}" for i in range(4)}
    pair = {"kind": "pair:Pair", "resources": {"cpus": 1}}
    spec = runs.spec(place, texts, {"pair": pair, "echo": runs.ECHO, "join": runs.JOIN | {"required": 0.9}})
    return runs.go(spec).run


@pytest.fixture(scope="module")
def made(run: Run) -> dict:
    return json.loads(run.report("json").read_bytes())


def test_json(run: Run, made: dict) -> None:
    assert [(s["stage"], s["done"], s["failed"], s["shards"]) for s in made["status"]["stages"]] == [
        ("pair", 8, 0, 8), ("echo", 6, 2, 8), ("join", 0, 0, 0)]  # fmt: skip
    assert made["status"]["state"] == "failed" and made["status"]["attempt"] == 1
    assert sorted((f["stage"], f["failure"], f["remedy"]) for f in made["failures"]) == [
        ("echo", "code", "look at the log; `hpc retry` tries again"),
        ("echo", "memory", "again, with twice the memory"),
    ]
    found = {q["uri"].partition("/in/")[2]: (q["reason"], q["detail"]) for q in made["quarantined"]}
    assert found == {EVIL[0]: ("no-good", "bad <i>x</i> &"), EVIL[2]: ("no-good", "bad '\">")}
    assert made["provenance"]["spec_hash"] == run.id.rpartition("-")[2]
    times = {t["stage"]: t for t in made["times"]}
    assert times["echo"]["shards"] == 6 and times["echo"]["start"] > 0 and times["echo"]["requested_seconds"] == 14400
    assert sum(made["nodes"].values()) == 14 and list(made["nodes"]) == [os.uname().nodename]
    assert made["status"]["stages"][0]["counts"] == {"texts": 8, "clips": 8, "video_seconds": 20, "bytes_out": 32768}
    assert f"next: hpc logs {run.id} --failed; hpc retry {run.id}" in made["advice"]


def test_text(run: Run) -> None:
    text = run.report("txt").read_text()
    assert text.startswith(f"{run.id}  attempt 1  failed  {run.folder}\n")
    assert "6/8 shards; 2 failed (" in text and "2 inputs quarantined" in text
    assert "failed: echo 00000" in text and f"on {os.uname().nodename}: code: RuntimeError: told to fail" in text
    assert "8 texts, 8 clips, 0:20 of video, 32.0 KiB out" in text
    assert "1 shard failed (memory): again, with twice the memory" in text
    for name in EVIL[0], EVIL[2]:
        assert f"quarantined: {run.folder.parents[1]}/in/{name}: no-good" in text


SAMPLE = re.compile(r'([a-z_]+)\{((?:[a-z_]+="(?:[^"\\\n]|\\[\\"n])*",?)*)\} (\S+)$')


def metrics(text: str) -> dict[str, dict[str, float]]:
    """Prometheus' text format, strictly: name -> labels -> value."""
    found: dict[str, dict[str, float]] = {}
    told: dict[str, set[str]] = {}
    assert text.endswith("\n")
    for line in text[:-1].split("\n"):
        if line.startswith("# "):
            _, word, name, rest = line.split(" ", 3)
            assert word in ("HELP", "TYPE") and word not in told.setdefault(name, set()) and name not in found, line
            assert word == "HELP" or rest in ("gauge", "counter")
            told[name].add(word)
            continue
        sample = SAMPLE.match(line)
        assert sample, f"not a sample: {line}"
        name, labels, value = sample.groups()
        assert told[name] == {"HELP", "TYPE"} and labels not in found.setdefault(name, {}), line
        found[name][labels] = float(value)
    return found


def test_prometheus(run: Run) -> None:
    found = metrics(run.report("prom").read_text())
    label = f'cluster="local",run="{run.id}",stage="echo"'
    shards = {state: found["hpc_run_shards"][f'{label},state="{state}"'] for state in ("done", "failed", "missing")}
    assert shards == {"done": 6, "failed": 2, "missing": 0}
    assert found["hpc_run_quarantined_inputs"][label] == 2
    assert found["hpc_run_video_seconds_total"] == {f'cluster="local",run="{run.id}",stage="pair"': 20}
    assert found["hpc_run_last_progress_timestamp_seconds"][label] > 1.7e9
    assert found["hpc_run_state"] == {f'cluster="local",run="{run.id}",state="failed"': 1}
    assert found["hpc_run_failed_shards"] == {f'{label},class="code"': 1, f'{label},class="memory"': 1}
    assert found["hpc_run_memory_peak_bytes"][label] > 1e6 < found["hpc_run_bytes_written_total"][label] * 1e5
    assert sum(map(len, found.values())) < 70, "labels stay few: nothing by shard, job or node"


def test_prometheus_escapes(run: Run) -> None:
    facts = report.build(run, status.gather(run, ask_slurm=False))
    facts.account.user = 'a"b\\c\nd'
    found = metrics(prometheus.text([prometheus.of(facts)]))
    assert 'user="a\\"b\\\\c\\nd"' in next(iter(found["hpc_run_info"]))


class Page(HTMLParser):
    """Elements with their attributes, text, and what is wrong with the nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        self.wrong += [f"<{tag}> is not closed" for tag in self.open if tag not in OPTIONAL_END]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if len(dict(attrs)) < len(attrs):
            self.wrong.append(f"<{tag}> has an attribute twice")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open[-1] != tag and self.open[-1] in OPTIONAL_END:
            self.open.pop()
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> at {self.getpos()} closes nothing")

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""


def test_html(run: Run, made: dict) -> None:
    source = run.report("html").read_text()
    found = Page(source)
    assert found.wrong == []
    tags = {tag for tag, _ in found.elements}
    assert not tags & {"script", "iframe", "object", "embed", "link", "form", "base", "use", "foreignobject", "a"}
    for tag, attributes in found.elements:
        assert not [name for name in attributes if name.startswith("on")], (tag, attributes)
        for name in ("src", "href", "action", "srcset", "data", "poster"):
            assert name not in attributes or str(attributes[name]).startswith("data:image/webp;base64,"), attributes
    style = source[source.index("<style>") : source.index("</style>")]
    assert "url(" not in style and "@import" not in style and "//" not in style
    for name in EVIL[0], EVIL[2]:
        assert f"/in/{name}" in found.text
    for detail in "bad <i>x</i> &", "bad '\">":
        assert detail in found.text
    assert str(run.folder) in found.text and run.id in found.text
    assert [tag for tag, _ in found.elements].count("img") == 8 * 3, "three of each shard"
    assert "clip <img src=x onerror=alert(1)> '\"0" in found.text
    for words in ("Failures", "Quarantined inputs", "Where the time went", "look at the log", "8 clips"):
        assert words in found.text


def test_a_page_of_thousands_stays_small(run: Run) -> None:
    facts = report.build(run, status.gather(run, ask_slurm=False))
    facts.failures *= 2000
    facts.quarantined *= 2000
    source = page.page(facts, outcome.Outcome([], {}, {}, {}, []))
    assert len(source) < 500_000 and "7600 more rows in report.json" in source
    assert Page(source).wrong == []


def test_in_a_browser(run: Run, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not browser:
        assert os.environ.get("CI") != "true", "chromium is not installed"
        pytest.skip("chromium is not installed")
    picture = Path(os.environ.get("HPC_TEST_SCREENSHOT", tmp_path / "page.png"))
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", "--window-size=1200,2000",
         "--hide-scrollbars", f"--screenshot={picture}", run.report("html").as_uri()],
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert picture.exists(), done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    with Image.open(picture) as image:
        assert image.size == (1200, 2000)
        colours = image.convert("RGB").getcolors(1 << 24)
        assert colours and len(colours) > 50, "the page is empty"


def test_counts_in_words() -> None:
    found = {"clips": 12, "dropped": 3, "dropped_short": 1, "dropped_motion": 2, "bytes_out": 2048, "time_decode": 9.5,
             "video_seconds": 61, "time_cut": 0.1, "inputs": 1, "frames": 0}  # fmt: skip
    words = ["12 clips", "3 dropped (2 motion, 1 short)", "2.0 KiB out", "1:01 of video", "1 input"]
    assert counts.words(found) == words
    assert counts.group(found, "time") == {"decode": 9.5, "cut": 0.1}


def test_where_the_time_went(run: Run) -> None:
    """What work was spent on stands beside start, publish and rest, and the rates are of whole workers."""
    gathered = status.gather(run, ask_slurm=False)
    for record in gathered.folds["pair"].done.values():
        record.times |= {"work": 10.0}
        record.counts |= {"time_decode": 6.0, "time_cut": 1.5, "frames": 500.0}
    facts = report.build(run, gathered)
    time = next(t for t in facts.times if t.stage == "pair")
    assert time.spent == {"decode": 48.0, "cut": 12.0, "other": 20.0}
    total = time.start + time.work + time.publish + time.rest
    assert time.frames_per_second == pytest.approx(4000 / total) and time.realtime == pytest.approx(20 / total)
    text = report.text(facts)
    assert "work 80.0 s (decode 48.0, cut 12.0, other 20.0), publish" in text and "x realtime" in text
    assert "time decode" not in text
    source = page.page(facts, outcome.Outcome([], {}, {}, {}, []))
    assert "decode 48.0 s (" in source and "x realtime" in source and Page(source).wrong == []
    label = f'cluster="local",run="{run.id}",stage="pair",on='
    spent = metrics(prometheus.text([prometheus.of(facts)]))["hpc_run_spent_seconds_total"]
    assert spent[f'{label}"decode"'] == 48 and spent[f'{label}"other"'] == 20 and f'{label}"work"' not in spent


def test_a_report_without_the_stages_code(run: Run) -> None:
    """On a login node where a stage of one's own cannot be imported all but its thumbnails is there."""
    done = runs.hpc("report", run.folder, cwd=run.folder, env=runs.environment(PYTHONPATH=""), code=1)
    assert "6/8 shards; 2 failed" in done.stdout and "Traceback" not in done.stderr
    source = run.report("html").read_text()
    assert "pair: no pictures, figures, pages: ValueError: pair:Pair cannot be imported" in source
    assert "<img" not in source
    assert "no scores: ValueError: pair:Pair cannot be imported" in source


def test_a_run_that_has_not_begun(tmp_path: Path) -> None:
    spec = runs.spec(tmp_path, runs.numbered(2), {"echo": runs.ECHO, "join": runs.JOIN})
    run = runs.planned(spec).run
    facts = report.write(run, status.gather(run, ask_slurm=False))
    assert facts.status.state == "incomplete" and facts.wall_seconds == 0
    assert f"some shards are missing: hpc retry {run.id}" in run.report("txt").read_text()
    assert Page(run.report("html").read_text()).wrong == []
    metrics(run.report("prom").read_text())


def test_a_run_that_is_done(tmp_path: Path) -> None:
    run = runs.go(runs.spec(tmp_path, runs.numbered(12))).run
    text = run.report("txt").read_text()
    assert text.splitlines()[0].split()[3] == "done" and "100.0%  12/12 shards" in text
    assert "stages.echo.resources.time is 4:00:00, the longest task took 0:0" in text, "ask for what is needed"
    assert "hpc retry" not in text
    assert Page(run.report("html").read_text()).wrong == []
