"""The dashboard: what it says is what happened, it gives away nothing else, and a real browser shows it."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import figures
import pytest
import runs
import s3
import shown

from hpc.batch import dashboard_server as server
from hpc.batch import masking, slurm, watch
from hpc.batch.curves import MOST, Curves
from hpc.batch.gallery import Gallery, spread
from hpc.batch.run import Run

SHOTS = os.environ.get("HPC_TEST_SCREENSHOTS")
"""A folder for pictures of the pages."""


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "available", lambda: False)


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return shown.film(tmp_path_factory.mktemp("film"))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """With 199 others beside it."""
    folder = tmp_path_factory.mktemp("large")
    run = shown.large(folder)
    small = figures.site(tmp_path_factory.mktemp("small"))
    shown.many(small, 199, run.folder.parent)
    return run


@contextlib.contextmanager
def served(folder: Path, *words: str, **env: str) -> Iterator[str]:
    """`hpc dashboard` as a process; its address."""
    command = [sys.executable, "-m", "hpc.cli", "dashboard", str(folder), "--port", "0", *words]
    process = subprocess.Popen(command, env=runs.environment(**env), stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def address(film: Run) -> Iterator[str]:
    with served(film.folder.parent, WORDS_KEY=shown.SECRET) as at:
        until_known(at, film.id)
        yield at


def until_known(at: str, name: str) -> None:
    runs.until(lambda: name in {r["run"] for r in get(at, "api/runs")[2]["runs"]})


def get(at: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], Any]:
    """(status, headers, body: JSON where it is some)."""
    parts = urllib.parse.urlsplit(at)
    link = http.client.HTTPConnection(parts.hostname or "", parts.port or 0, timeout=180)
    link.request(method, f"/{path}", headers={k.replace("_", "-"): v for k, v in headers.items()})
    answer = link.getresponse()
    body: Any = answer.read()
    said = {k.lower(): v for k, v in answer.getheaders()}
    link.close()
    if said.get("content-type", "").startswith("application/json"):
        body = json.loads(body)
    return answer.status, said, body


# What it says


def test_a_run(film: Run, address: str) -> None:
    code, _, found = get(address, f"api/run/{film.id}")
    assert code == 200 and found["state"] == "failed" and found["quarantined"] == 1
    clips, words, train = found["stages"]
    assert clips["cells"]["state"] == "dddddd" and clips["clips"] >= 6
    assert sorted(words["cells"]["state"]) == list("ddddff") and words["failures"] == {"code": 1, "memory": 1}
    assert train["training"]["step"] == 400 and train["cells"]["state"] == "w"
    assert {(g["class"], g["count"]) for g in found["failed_shards"]} == {("code", 1), ("memory", 1)}
    assert found["quarantine"][0]["reason"] == "not-a-video"
    assert [link["path"] for link in found["links"]][:1] == ["run/report.html"]
    [summary] = get(address, "api/runs")[2]["runs"]
    assert summary["run"] == film.id and summary["failed"] == 2 and "cells" not in json.dumps(summary)


def test_a_shard_and_the_end_of_its_log(film: Run, address: str) -> None:
    found = get(address, f"api/run/{film.id}")[2]
    [shard] = next(g for g in found["failed_shards"] if g["class"] == "code")["shards"]
    said = get(address, f"api/shard/{film.id}?stage=words&shard={shard['shard']}")[2]
    assert said["failure"] == "code" and said["attempt"] == 1 and "no words for <img" in said["detail"]
    log = get(address, f"api/log/{film.id}?stage=words&shard={shard['shard']}")[2]
    assert log["path"] == "logs/words/1_0_log.out" and any("RuntimeError: no words" in line for line in log["lines"])
    assert any(shard["shard"] in line for line in log["lines"][-5:]) and log["after"] > 5, "others came after it"
    assert get(address, f"api/log/{film.id}?stage=words&shard=999999")[0] == 404


def test_clips_by_words_and_scores(film: Run, address: str) -> None:
    found = get(address, f"api/clips/{film.id}")[2]
    assert found["looked"] == found["of"] == 6 and not found["more"] and found["found"] == found["verdicts"]["keep"]
    assert len(found["page"]) == found["found"] and "blur_sharpness" in found["scores"]
    some = get(address, f"api/clips/{film.id}?text=RABBIT+meadow")[2]
    assert 0 < some["found"] < found["found"] and all("a rabbit" in c["caption"] for c in some["page"])
    values = sorted(c["scores"]["blur_sharpness"] for c in found["page"])
    middle = values[len(values) // 2]
    sharp = get(address, f"api/clips/{film.id}?column=blur_sharpness&low={middle}&sort=-blur_sharpness&limit=2")[2]
    assert sharp["found"] == sum(v >= middle for v in values) and sum(sharp["bins"]) == len(values)
    assert [c["scores"]["blur_sharpness"] for c in sharp["page"]] == values[::-1][:2]
    gone = get(address, f"api/clips/{film.id}?verdict=short")[2]
    assert all(c["verdict"] == "short" and not c["media"] for c in gone["page"])


def test_a_video_in_parts(film: Run, address: str) -> None:
    clip = get(address, f"api/clips/{film.id}")[2]["page"][0]
    path = f"media/{film.id}/clips/{clip['shard']}/{clip['key']}.mp4"
    code, said, whole = get(address, path)
    assert (code, said["content-type"], said["accept-ranges"]) == (200, "video/mp4", "bytes")
    assert len(whole) == clip["media"]["mp4"][1] and whole[4:8] == b"ftyp"
    size = len(whole)
    for asked, first, last in (("bytes=0-99", 0, 99), ("bytes=100-", 100, size - 1), ("bytes=-7", size - 7, size - 1),
                               (f"bytes=5-{size + 9}", 5, size - 1)):  # fmt: skip
        code, said, body = get(address, path, Range=asked)
        assert code == 206 and said["content-range"] == f"bytes {first}-{last}/{size}"
        assert body == whole[first : last + 1]
    for asked in (f"bytes={size}-", "bytes=9-5", "bytes=-0", "bytes=0-1,5-6", "lines=1-2"):
        assert get(address, path, Range=asked)[0] == 416, asked
    code, said, body = get(address, path, "HEAD")
    assert code == 200 and said["content-length"] == str(size) and body == b""
    code, said, picture = get(address, path.replace(".mp4", ".webp"))
    assert said["content-type"] == "image/webp" and picture[:4] == b"RIFF"


def test_a_video_that_breaks_off(film: Run, address: str) -> None:
    """Of a tar that was cut short less comes than was promised, and nothing else in its place."""
    clip = get(address, f"api/clips/{film.id}")[2]["page"][0]
    tar = film.folder.parents[1] / "out" / "clips@v1" / f"{clip['shard']}.tar"
    whole, (offset, size) = tar.read_bytes(), clip["media"]["mp4"]
    tar.chmod(0o600)
    tar.write_bytes(whole[: offset + size // 2])
    with pytest.raises(http.client.IncompleteRead) as error:
        get(address, f"media/{film.id}/clips/{clip['shard']}/{clip['key']}.mp4")
    assert error.value.partial == whole[offset : offset + size // 2]
    tar.write_bytes(whole)


def test_curves_and_samples(film: Run, address: str) -> None:
    found = get(address, f"api/metrics/{film.id}?stage=train")[2]
    assert found["step"] == 400 and len(found["curves"]["loss"]) == 400
    assert [p["step"] for p in found["pictures"]] == [100, 200, 300, 400]
    assert found["pictures"][0]["files"] == ["000000100.webp", "000000100_0_ema.mp4", "000000100_0_regular.mp4"]
    code, said, body = get(address, f"files/{film.id}/pictures/train/000000100_0_ema.mp4", Range="bytes=4-7")
    assert (code, said["content-type"], body) == (206, "video/mp4", b"ftyp")


def test_curves_stay_short_and_keep_their_spikes(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    line = lambda step, loss: json.dumps({"step": step, "time": 1e9 + step, "loss": loss}) + "\n"
    file.write_text("".join(line(s, 99.0 if s == 7777 else 1 / s) for s in range(1, 20_001)))
    curves = Curves(file)
    found = curves.read()["curves"]["loss"]
    assert MOST <= len(found) <= 2 * MOST and max(p[3] for p in found) == 99 and found[-1][0] == 20_000
    with file.open("a") as out:
        out.write(line(20_001, 0.5) + '{"step": 20002, "loss": "nan"}\n{"step": 20003, "lo')
    said = curves.read()
    assert said["step"] == 20_002 and said["odd"] == {"loss": 1} and said["curves"]["loss"][-1][0] == 20_001
    file.write_text(line(5, 0.25))  # it goes on from a checkpoint: later steps are taken back
    assert curves.read()["curves"] == {"loss": [[5, 0.25, 0.25, 0.25]]}


def test_shards_are_read_evenly() -> None:
    order = spread([f"{i:06}" for i in range(1000)])
    assert len(set(order)) == 1000
    first = sorted(map(int, order[:10]))
    assert max(b - a for a, b in itertools.pairwise(first)) < 300


def test_figures_of_an_evaluation(film: Run) -> None:
    file = film.report("json")
    before = file.read_bytes()
    row = {"name": "psnr", "value": 31.5, "low": 30.0, "high": 33.0, "n": 8, "unit": "dB", "better": "higher"}
    file.write_text(json.dumps(json.loads(before) | {"figures": {"words": {"of": "a and b", "rows": [row]}}}))
    here = watch.Watch(film.folder.parent)
    here.read()
    file.write_bytes(before)
    assert here.known[film.id].detail["stages"][1]["figures"] == {"of": "a and b", "rows": [row]}


def test_clips_on_s3(tmp_path: Path) -> None:
    """Tables and videos of a store, reached with what the run declares; without its credentials it says so."""
    (tmp_path / "in").mkdir()
    shown.cut(9, 4, tmp_path / "in" / "one.mp4", 320)
    with s3.moto() as server:
        keys = {name: server.env[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        env = {name: value for name, value in server.env.items() if name not in keys}
        spec = tmp_path / "far.yaml"
        clips = {"kind": "curate.clips", "split": {"detector": "content", "min_clip": "500ms", "min_frames": 8},
                 "encode": {"preset": "ultrafast"}, "resources": {"cpus": 1}}  # fmt: skip
        spec.write_text(json.dumps({"name": "far", "inputs": "in", "output": "s3://bucket/far", "env": env,
                                    "secrets": list(keys), "stages": {"clips": clips}}))  # fmt: skip
        runs.hpc("run", spec, env=runs.environment(**keys, OMP_NUM_THREADS="1"))
        [run] = map(Run, (tmp_path / "runs").iterdir())
        with served(run.folder.parent, **keys) as at:
            until_known(at, run.id)
            [*clips] = get(at, f"api/clips/{run.id}")[2]["page"]
            assert clips
            path = f"media/{run.id}/clips/{clips[0]['shard']}/{clips[0]['key']}.mp4"
            code, said, body = get(at, path, Range="bytes=4-7")
            assert (code, body, said["content-type"]) == (206, b"ftyp", "video/mp4")
            assert len(get(at, path)[2]) == clips[0]["media"]["mp4"][1]
        with served(run.folder.parent, AWS_EC2_METADATA_DISABLED="true") as at:
            until_known(at, run.id)
            found = get(at, f"api/clips/{run.id}")[2]
            assert found["clips"] == 0 and found["problems"] and get(at, path)[0] in (404, 502)
            assert get(at, f"api/run/{run.id}")[2]["state"] == "done", "what the records say is known all the same"


# What it gives away


SECRETS = ("s3cr3t-that-nobody-sees", "hunter22", "AKIAABCDEFGHIJKLMNOP", "verysecretvalue")


def test_secrets_are_masked(film: Run, address: str, tmp_path: Path) -> None:
    said = f"a {SECRETS[0]}; s3://me:{SECRETS[1]}@host/x {SECRETS[2]} AWS_SECRET_ACCESS_KEY={SECRETS[3]}"
    text = masking.masked(said)
    assert SECRETS[0] in text and not [s for s in SECRETS[1:] if s in text]
    plain = "tokenizer: DV8x16x16, tokens 32000, keys: 5, secret"
    assert masking.masked(plain) == plain
    log = next(film.logs("words").glob("*.out"))
    text = log.read_text()
    assert "password=***" in text and shown.SECRET not in text, "the stage printed it, and the worker masks"
    log.write_text(text.replace("password=***", f"password={shown.SECRET}"))  # as a program would that is not Python
    for shard in range(6):
        said = json.dumps(get(address, f"api/log/{film.id}?stage=words&shard={shard:06}")[2])
        assert shown.SECRET not in said
    assert "password=***" in said
    page = tmp_path / "page"
    runs.hpc("dashboard", film.folder.parent, "--export", page, cwd=tmp_path,
             env=runs.environment(WORDS_KEY=shown.SECRET))  # fmt: skip
    assert not [p for p in page.rglob("*") if p.is_file() and shown.SECRET.encode() in p.read_bytes()]


def test_nothing_else_is_served(film: Run, address: str) -> None:
    name, out = film.id, film.folder.parents[1] / "out"
    clip = get(address, f"api/clips/{name}")[2]["page"][0]
    (film.folder.parents[1] / "secret.txt").write_text("nobody's business")
    outside = urllib.parse.quote(str(film.folder.parents[1] / "secret.txt"), safe="")
    for path in (
        "../secret.txt", "%2e%2e/secret.txt", "app/../../cli.py", "app/%2e%2e%2f__init__.py", f"files/{name}/run/../x",
        f"files/{name}/run/plan.json", f"files/{name}/run/attempt-1/plan.json", f"files/{name}/run/{outside}",
        f"files/{name}/run/..%2f..%2fsecret.txt", f"files/{name}/stage/clips/000000.tar",
        f"files/{name}/stage/x/y.html", f"files/{name}/pictures/train/..%2fmetrics.jsonl",
        f"files/{name}/pictures/clips/000000100.webp", f"media/{name}/clips/..%2f..%2f000000/x.mp4",
        f"media/{name}/clips/000000/{clip['key']}.json",
        f"media/{name}/clips/999999/{clip['key']}.mp4", f"media/{name}/words/000000/{clip['key']}.mp4", "api/run/..",
        f"api/log/{name}?stage=..%2f..&shard=x", f"api/log/{name}?stage=clips&shard=..%2f..%2fx", "api/run/nobody", "x",
        f"api/metrics/{name}?stage=clips", "app/index.html/x", "app/nothing.js", f"files/{name}", "//etc/passwd",
    ):  # fmt: skip
        code, _, body = get(address, path)
        assert code == 404 and len(body) < 300 and b"business" not in body, (path, code, body)
    assert get(address, "api/runs", "POST")[0] == 501
    for link, path in ((film.folder / "calibrate.html", f"files/{name}/run/calibrate.html"),
                       (out / "clips@v1" / "page.html", f"files/{name}/stage/clips/page.html")):  # fmt: skip
        link.symlink_to(film.folder.parents[1] / "secret.txt")
        code, _, body = get(address, path)
        assert code in (403, 404) and b"business" not in body, path
        link.unlink()
    tar = out / "clips@v1" / f"{clip['shard']}.tar"
    tar.rename(film.folder.parents[1] / "elsewhere.tar")
    tar.symlink_to(film.folder.parents[1] / "elsewhere.tar")
    code, _, body = get(address, f"media/{name}/clips/{clip['shard']}/{clip['key']}.mp4")
    assert code == 403 and b"a link that leads out of" in body
    tar.unlink()
    (film.folder.parents[1] / "elsewhere.tar").rename(tar)
    assert get(address, f"media/{name}/clips/{clip['shard']}/{clip['key']}.mp4")[0] == 200


def test_a_run_folder_that_is_a_link(film: Run, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "guest-1234").symlink_to(film.folder)
    here = watch.Watch(tmp_path / "runs")
    here.read()
    assert not here.known and "a link that leads out of" in here.problems["guest-1234"]
    assert here.runs()["problems"][0]["run"] == "guest-1234"


def test_headers(film: Run, address: str) -> None:
    for path in ("", "api/runs", "app/main.js", "x", f"files/{film.id}/run/report.txt"):
        _, said, _ = get(address, path)
        policy = said["content-security-policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy and "//" not in policy, path
        assert said["x-content-type-options"] == "nosniff" and said["referrer-policy"] == "no-referrer"
    _, said, body = get(address, f"files/{film.id}/run/report.html")
    assert "sandbox" in said["content-security-policy"] and b"<h1>" in body
    _, said, _ = get(address, f"files/{film.id}/run/report.json")
    assert said["content-type"].startswith("text/plain")
    _, said, _ = get(address, "api/runs")
    assert get(address, "api/runs", If_None_Match=said["etag"])[0] in (200, 304)
    script = get(address, "app/main.js")
    assert get(address, "app/main.js", If_None_Match=script[1]["etag"])[0] == 304


def test_no_other_host_and_no_other_user(film: Run, address: str) -> None:
    assert get(address, "api/runs", Host="evil.example:80")[0] == 403, "a name that was made to point here"
    assert get(address, "api/runs", Host="localhost:9")[0] == 200, "an ssh tunnel"
    port = urllib.parse.urlsplit(address).port
    ask = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}/api/runs').status)"
    own = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True)
    assert own.stdout == "200\n"
    if os.geteuid() == 0:  # who else can become another user
        python = shutil.which("python3", path="/usr/bin") or sys.executable
        other = subprocess.run([python, "-c", ask], capture_output=True, text=True, user=65534, cwd="/")
        assert other.returncode and "403" in other.stderr, other
    line = "  0: 0100007F:{:04X} 0100007F:{:04X} 01 00000000:00000000 00:00000000 00000000 {:>5} 0 1"
    peer, here = ("127.0.0.1", 40000), ("127.0.0.1", 8765)
    owner = lambda uid: server.same_user(peer, here, lambda: line.format(40000, 8765, uid))
    assert owner(os.geteuid()) and owner(0) and not owner(os.geteuid() + 1)
    assert not server.same_user(peer, here, lambda: line.format(8765, 40000, os.geteuid())), "its own end"
    other = ("127.0.0.2", 40000)
    assert not server.same_user(other, here, lambda: line.format(40000, 8765, os.geteuid())), "somebody else's"


def test_a_token_beyond_loopback(film: Run) -> None:
    with served(film.folder.parent, "--host", "0.0.0.0") as printed:
        token = urllib.parse.parse_qs(urllib.parse.urlsplit(printed).query)["token"][0]
        at = f"http://127.0.0.1:{urllib.parse.urlsplit(printed).port}"
        assert len(token) >= 32
        for path in ("", "api/runs", "app/main.js", "?token=", f"?token={token[:-1]}", "api/runs?token=é"):
            assert get(at, urllib.parse.quote(path, safe="?=/"))[0] == 401, path
        assert get(at, "api/runs", Cookie=f"{server.COOKIE}={token}x")[0] == 401
        code, said, _ = get(at, f"?token={token}")
        assert code == 303 and said["location"] == "." and token in said["set-cookie"]
        assert "HttpOnly" in said["set-cookie"] and "SameSite=Strict" in said["set-cookie"]
        assert get(at, "api/runs", Cookie=said["set-cookie"].partition(";")[0])[0] == 200
    with served(film.folder.parent, "--host", "0.0.0.0") as again:
        assert token not in again, "another one each time"


# How much


def test_ten_thousand_shards_and_two_hundred_runs(large: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = [slurm.Task(*slurm.split_id(i), state=state, reason=why, node=node, raw_job=raw, live=True)
             for i, state, why, node, raw in (line.split("|") for line in shown.queue().splitlines())]  # fmt: skip
    monkeypatch.setattr(slurm, "available", lambda: True)
    monkeypatch.setattr(slurm, "queue", lambda jobs: tasks)
    here = watch.Watch(large.folder.parent)
    begun = time.process_time()
    here.read()
    first = time.process_time() - begun
    begun = time.process_time()
    here.read()
    again = time.process_time() - begun
    print(f"200 runs, 10,000 shards in one: read anew in {first:.2f} s of CPU, looked at again in {again:.3f} s")
    assert len(here.known) == 200 and not here.problems and again < 0.5
    row = here.runs()["runs"][0]
    assert row["run"] == large.id and row["state"] == "running" and row["running"] == 80 and row["gpus"] == 80
    assert row["reasons"] == {"JobArrayTaskLimit": 1038, "Resources": 1037}
    echo = here.known[large.id].detail["stages"][0]
    cells = echo["cells"]
    assert cells["ids"] is None and cells["first"] == "000000"
    assert {len(cells[key]) for key in ("state", "attempt", "again", "reason", "seconds")} == {10_000}
    assert cells["state"].count("q") == 2500 == sum(c != "." for c in cells["reason"])
    assert cells["state"].count("r") == 40 and cells["state"].count("d") == echo["done"] > 7000
    assert cells["attempt"].count("1") == echo["done"] + 40 + echo["failed"] == 10_000 - cells["attempt"].count(".")
    assert len(json.dumps(here.known[large.id].detail)) < 400_000


def test_a_scrape_does_not_wear_out_the_file_system(film: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    here = watch.Watch(film.folder.parent)
    here.read()
    looked = []
    monkeypatch.setattr(watch.exporter.Exporter, "scrape", lambda self: looked.append(1))
    here.scrape()
    assert not looked, "read a moment ago"
    here.read_at -= 3
    here.scrape()
    assert looked == [1]
    here.took = 1.0
    here.scrape()
    assert looked == [1], "a look that takes a second is taken every twenty"


def test_a_gallery_of_thousands(film: Run) -> None:
    here = watch.Watch(film.folder.parent)
    here.read()
    gallery = Gallery(here.known[film.id].folders)
    gallery.extend(budget=0)
    assert gallery.search()["looked"] == 0 and gallery.search()["more"]
    gallery.extend(budget=20)
    clip = next(c for c in gallery.clips.values() if "rabbit" in c.caption)
    for i in range(30_000):
        gallery.clips["clips", f"x{i}", "k"] = clip
    begun = time.process_time()
    found = gallery.search("rabbit", "blur_sharpness", 0.0, 9.0, sort="-blur_sharpness")
    assert time.process_time() - begun < 1.5 and len(found["page"]) == 60


# In a browser


def film_page(page: browser.Page, at: str, film: Run, tab: str = "") -> None:
    page.open(f"{at}#/run/{urllib.parse.quote(film.id)}{tab}")


def shoot(page: browser.Page, tmp_path: Path, name: str) -> None:
    time.sleep(0.3)
    page.shot(Path(SHOTS or tmp_path) / f"{name}.png")


def test_in_a_browser(film: Run, address: str, tmp_path: Path) -> None:
    with browser.opened(tmp_path) as page:
        page.open(address)
        page.until("document.querySelectorAll('.runs tbody tr').length === 1")
        assert "failed 1" in page.text() and film.id in page.text()
        page.key("j", "Enter")
        page.until("document.querySelector('canvas.heat')")
        shoot(page, tmp_path, "film")
        label = page.tell("document.querySelector('canvas.heat').getAttribute('aria-label')")
        assert label.startswith("6 shards: ") and "2 failed" in label and "4 done" in label
        page.tell("document.querySelector('canvas.heat').focus()")
        page.key("ArrowRight", "ArrowRight", "ArrowLeft", "Enter")
        page.until("document.querySelector('#drawer dl').innerText.includes('local')")
        page.key("Escape")
        page.until("document.querySelector('#drawer').hidden")
        page.key("2")
        page.until("document.body.innerText.includes('not-a-video')")
        assert "no words for <img src=x onerror=alert(1)> this clip" in page.text()
        shoot(page, tmp_path, "failures")
        page.key("j", "Enter")
        page.until("document.querySelector('#drawer pre')?.innerText.includes('Error')")
        assert shown.SECRET not in page.text()
        shoot(page, tmp_path, "log")
        page.key("Escape", "3")
        page.until("document.querySelectorAll('.card img').length > 5")
        page.until("[...document.querySelectorAll('.card img')].every(i => i.naturalWidth > 0)")
        everything = page.tell("document.querySelectorAll('.card').length")
        shoot(page, tmp_path, "clips")
        page.key("/", *"rabbit")
        page.until(f"document.querySelectorAll('.card').length < {everything}")
        assert page.tell("[...document.querySelectorAll('.card .caption')].every(c => c.innerText.includes('rabbit'))")
        page.key("Enter", "Enter")
        page.until("document.querySelector('video')?.currentTime > 0.1")
        assert page.tell("document.querySelector('video').videoWidth") == 480
        shoot(page, tmp_path, "playing")
        page.key("Escape", "4")
        page.open(f"{address}#/run/{film.id}/training")
        page.until("document.querySelectorAll('.chart polyline').length > 4")
        assert "held_out" in page.text()
        page.until("[...document.querySelectorAll('.videos video')].some(v => v.videoWidth === 192)")
        shoot(page, tmp_path, "training")
        page.open(f"{address}#/run/{film.id}/files")
        page.until("document.body.innerText.includes('Asked for and used')")
        shoot(page, tmp_path, "files")
        page.key("?")
        page.until("document.querySelector('dialog').open")
        assert page.complaints == []
        hosts = {urllib.parse.urlsplit(a).netloc for a in page.asked if a.startswith("http")}
        assert hosts == {urllib.parse.urlsplit(address).netloc}, "no other host"


def test_on_a_phone_and_in_the_dark(film: Run, address: str, tmp_path: Path) -> None:
    with browser.opened(tmp_path) as page:
        for name, sizes in (("phone", (390, 844, True, False)), ("phone-dark", (390, 844, True, True)),
                            ("dark", (1440, 900, False, True))):  # fmt: skip
            page.size(*sizes)
            for tab, there in (("", "canvas.heat"), ("/failures", ".class"), ("/clips", ".card"), ("/files", "dl")):
                film_page(page, address, film, tab)
                page.until(f"document.querySelector('{there}')")
                assert page.tell("document.documentElement.scrollWidth <= innerWidth"), f"{name}{tab} scrolls sideways"
                shoot(page, tmp_path, f"{name}{tab.replace('/', '-')}")
            page.open(address)
            page.until("document.querySelector('.runs tbody tr')")
            assert page.tell("document.documentElement.scrollWidth <= innerWidth")
            dark = page.tell("getComputedStyle(document.documentElement).backgroundColor")
            assert (dark == "rgb(17, 22, 28)") == sizes[3]
            shoot(page, tmp_path, f"{name}-list")
        page.click("#theme")
        page.click("#theme")
        page.until("getComputedStyle(document.documentElement).backgroundColor === 'rgb(255, 255, 255)'")
        assert page.complaints == []


def test_many_runs_in_a_browser(large: Run, tmp_path: Path) -> None:
    fake = runs.Slurm(tmp_path / "slurm")
    fake.answers(squeue=shown.queue())
    with served(large.folder.parent, PATH=fake.path) as at, browser.opened(tmp_path) as page:
        runs.until(lambda: len(get(at, "api/runs")[2]["runs"]) == 200, 60)
        page.open(at)
        page.until("document.querySelectorAll('.runs tbody tr').length === 200")
        shoot(page, tmp_path, "many")
        page.key("/", *"twin0001")
        page.until("document.querySelectorAll('.runs tbody tr').length === 1")
        page.open(f"{at}#/run/{large.id}")
        page.until("document.querySelector('canvas.heat')")
        took = page.tell("(() => { const c = document.querySelector('canvas.heat'), t = performance.now();"
                         " for (let i = 0; i < 5; i++) c.dispatchEvent(new Event('theme'));"
                         " return (performance.now() - t) / 5; })()")  # fmt: skip
        print(f"10,000 shards drawn in {took:.1f} ms")
        assert took < 150
        shoot(page, tmp_path, "large")
        label = page.tell("document.querySelector('canvas.heat').getAttribute('aria-label')")
        assert label.startswith("10000 shards: 40 running, ") and "2500 queued" in label
        page.click(".segment button:nth-child(3)")
        assert "JobArrayTaskLimit" in page.tell("document.querySelector('.legend').innerText")
        shoot(page, tmp_path, "large-reasons")
        page.click(".segment button:nth-child(4)")
        assert "median" in page.tell("document.querySelector('.legend').innerText")
        shoot(page, tmp_path, "large-time")
        assert page.complaints == []
    assert len(fake.calls("squeue")) == 1, "once a minute for all runs, whoever looks"


def test_live(tmp_path: Path) -> None:
    """A page that is open sees what workers write, without a reload."""
    spec = runs.spec(tmp_path, runs.numbered(3), {"echo": runs.ECHO})
    made = runs.planned(spec)
    with served(made.run.folder.parent) as at, browser.opened(tmp_path) as page:
        until_known(at, made.run.id)
        film_page(page, at, made.run)
        page.until("document.querySelector('canvas.heat')?.getAttribute('aria-label').includes('3 waiting')")
        runs.finish(runs.worker(made))
        page.until("document.querySelector('canvas.heat').getAttribute('aria-label').includes('3 done')", 30)
        page.until("document.querySelector('.state.done')")
        assert page.complaints == []


def test_exported(film: Run, tmp_path: Path) -> None:
    """The same page from a disk: no server, no other host, nothing forbidden by its policy."""
    place = tmp_path / "page"
    said = runs.facts("dashboard", film.folder.parent, "--export", place, cwd=tmp_path)
    assert said["runs"] == 1 and said["clips"] > 5
    assert "is not empty" in runs.hpc("dashboard", film.folder.parent, "--export", place, cwd=tmp_path, code=2).stderr
    with browser.opened(tmp_path) as page:
        page.open((place / "index.html").as_uri())
        page.until("document.querySelector('.runs tbody tr td')")
        assert "as of" in page.text()
        page.key("j", "Enter")
        page.until("document.querySelector('canvas.heat')")
        page.key("2", "j")
        page.until("document.querySelector('.class')")
        page.key("j", "Enter")
        page.until("document.querySelector('#drawer pre')?.innerText.includes('Error')")
        page.key("Escape", "3")
        page.until("[...document.querySelectorAll('.card img')].filter(i => i.naturalWidth > 0).length > 3")
        page.key("/", *"rabbit")
        page.until("[...document.querySelectorAll('.card .caption')].every(c => c.innerText.includes('rabbit'))")
        page.key("Enter", "Enter")
        page.until("document.querySelector('video')?.videoWidth === 480")
        page.open(f"{(place / 'index.html').as_uri()}#/run/{film.id}/training")
        page.until("document.querySelectorAll('.chart polyline').length > 4")
        page.until("[...document.querySelectorAll('.videos video')].some(v => v.videoWidth === 192)")
        shoot(page, tmp_path, "exported")
        assert page.complaints == [] and not [a for a in page.asked if not a.startswith(("file:", "data:"))]
