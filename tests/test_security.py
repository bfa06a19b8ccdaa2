"""Specs, tars, pickles, captions and names are what others wrote: nothing of them runs, escapes, or shows a secret."""

from __future__ import annotations

import ast
import collections
import contextlib
import html
import html.parser
import http.server
import io
import json
import os
import pickle
import random
import stat
import subprocess
import sys
import tarfile
import threading
import urllib.parse
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import runs

from hpc.batch import finale
from hpc.batch.run import Run
from hpc.curate import clips
from hpc.data import pickles, storage
from hpc.data.vlm import Endpoint, Vlm
from hpc.data.work import Item
from hpc.models import endpoint
from hpc.models.vlm import Request

ROOT = Path(__file__).parents[1]

SECRETS = {
    "MY_KEY": "Zq8-plain-endpoint-key",
    "ODD": "pa\"ss'w\\ö<rd>&7/%x",
    "HOOK": "https://127.0.0.1:9/T0000/B0000/zXcVbNmAsDfG",
    "AWS_ACCESS_KEY_ID": "AKIAPLANTED0000000QQ",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYPLANTED",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzPLANTED//////////",
    "HF_TOKEN": "hf_plantedplantedplanted",
}  # the AWS keys and the last one stand in no spec
PASSWORD = "hunter2planted"  # of an address, which no variable has


def forms(value: str) -> set[str]:
    """How a value stands in text, JSON, addresses and pages."""
    return {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], html.escape(value),
            urllib.parse.quote(value), urllib.parse.quote(value, safe=""), repr(value)[1:-1]}  # fmt: skip


def found(text: str) -> list[str]:
    """Names of the planted secrets that stand in it."""
    planted = SECRETS | {"password": PASSWORD}
    return [name for name, value in planted.items() if any(form in text for form in forms(value))]


def test_no_secret_stands_in_a_run_folder_or_in_what_the_commands_say(tmp_path: Path) -> None:
    stages = {"leak": {"kind": "stages:Leak", "resources": {"cpus": 1}, "variables": list(SECRETS)}}
    names = ["MY_KEY", "ODD", "HOOK"]
    file = runs.spec(tmp_path, {"a.txt": "a", "fail.txt": "b", "unknown.txt": "c"}, stages, secrets=names,
                     notify={"webhook": "HOOK"})  # fmt: skip
    env = runs.environment(**SECRETS, ADDRESS=f"https://someone:{PASSWORD}@example.org/a")
    made = runs.hpc("run", file, env=env, code=None)
    assert "leak" in made.stdout and made.returncode == 1
    [run] = (tmp_path / "runs").iterdir()
    said = {"run": made.stdout + made.stderr}
    for place, words in (("with the secrets", env), ("without", runs.environment())):
        for command in (["status", run.name], ["logs", run.name], ["logs", run.name, "--failed", "--lines", "500"],
                        ["report", run.name], ["report", "--since", "1d"], ["report", run.name, "--json"],
                        ["status", run.name, "--json"], ["logs", run.name, "--json"], ["top", "--json"],
                        ["exporter", "--textfile", "metrics.prom"], ["dashboard", "--export", f"page {place}"],
                        ["retry", run.name], ["check", file], ["plan", file]):  # fmt: skip
            done = runs.hpc(*command, cwd=tmp_path, env=words, code=None)
            assert "Traceback" not in done.stderr, done.stderr
            said[f"{place}: {' '.join(map(str, command))}"] = done.stdout + done.stderr
            if "--json" in command:
                assert json.loads(done.stdout)
    where = {name: leaked for name, text in said.items() if (leaked := found(text))}
    files = [path for path in tmp_path.rglob("*") if path.is_file() and "in" not in path.parts]
    where |= {str(path): leaked for path in files if (leaked := found(path.read_bytes().decode(errors="replace")))}
    assert not where
    log = max((path.read_text() for path in (run / "logs" / "leak").iterdir()), key=len)
    assert "MY_KEY=***" in log and "someone:***@example.org" in log and "it is ***" in log  # the stage did say it
    records = "".join(path.read_text() for path in (run / "records" / "leak").iterdir())
    assert "refused by the server" in records and "answered to" in records
    assert "refused by the server" in said[f"with the secrets: report {run.name}"]
    for folder in (run, *run.glob("attempt-*")):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_an_address_with_a_password_is_refused_without_saying_it(tmp_path: Path) -> None:
    for uri in (f"https://someone:{PASSWORD}@example.org/in", f"s3://someone:{PASSWORD}@bucket/in", "file:///etc"):
        file = runs.spec(tmp_path, {"a.txt": "a"})
        for command in ("check", "plan", "run"):
            done = runs.hpc(command, file, f"inputs={uri}", code=2)
            assert "only paths and s3://bucket/prefix are understood" in done.stderr
            assert PASSWORD not in done.stdout + done.stderr


class Evil:
    """Unpickled by Python, it would make a file."""

    def __init__(self, file: Path) -> None:
        self.file = str(file)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.file,)


def test_pickles_call_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    evil = Evil(made)
    nested = [{"a": [np.ones(3, np.float16), (1, evil)]}, evil]
    for protocol in range(6):
        for value in (evil, [evil], {"k": evil}, nested, os.system, np.array([evil], object)):
            data = pickle.dumps(value, protocol)
            with pytest.raises(pickles.Refused):
                pickles.loads(data)
    named = b"cos\nmkdir\n(S'%s'\ntR." % str(made).encode()
    for data in (named, b"(S'x'\nios\nsystem\n.", b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
                 b"\x80\x02\x82\x01.", b"Pid\n.", b"]r\xff\xff\xff\x7f" + b"."):  # fmt: skip
        with contextlib.suppress(pickles.Refused):  # the last names a place far away, and is a list
            assert pickles.loads(data) == []
    assert not made.exists()
    pickle.loads(named)
    assert made.exists(), "the pickle is one that does harm"


def test_damaged_pickles_are_refused_or_read() -> None:
    draw = random.Random(0)
    whole = pickles.dumps([{"a": np.arange(12.0).reshape(3, 4)}, {"b": np.zeros(5)}])
    for _ in range(3000):
        data = bytearray(whole)
        for _ in range(draw.randrange(1, 6)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        with contextlib.suppress(pickles.Refused):  # and by nothing else
            pickles.loads(bytes(data[: draw.randrange(len(data) + 1)] if draw.random() < 0.2 else data))


def zipped(file: Path, data: bytes) -> Path:
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("a/data.pkl", data)
        out.writestr("a/byteorder", "little")
        out.writestr("a/data/0", bytes(16))
    return file


FAR = b"\x80\x02}r\xf0\xff\xff\x7f."  # a place of the memo for which C's unpickler takes 32 GiB
WIDE = (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
        b"X\x03\x00\x00\x00cpuK\x04tQK\x00J\x00\x00\x00\x40\x85K\x00\x85\x89NtR.")  # fmt: skip
"""A tensor of 2**30 numbers that are all the same one."""


def test_archives_of_tensors_call_nothing_and_take_no_memory(tmp_path: Path) -> None:
    made = tmp_path / "made"
    for name, data in {"evil": pickle.dumps(Evil(made), 2), "far": FAR, "wide": WIDE}.items():
        file = zipped(tmp_path / f"{name}.pt", data)
        code = ("import resource, sys, pathlib\n"
                "from hpc.data import tensors\n"
                "from hpc.models.tokenizers import torchscript\n"
                "file = pathlib.Path(sys.argv[1])\n"
                "room = int(open('/proc/self/statm').read().split()[0]) * 4096 + (1 << 30)\n"
                "resource.setrlimit(resource.RLIMIT_AS, (room, room))\n"
                "for read in (lambda: tensors.header(file.open('rb')), lambda: torchscript.read_torchscript(file)):\n"
                "    try:\n"
                "        print('read', read())\n"
                "    except (ValueError, RuntimeError) as error:\n"
                "        assert 'memory' not in str(error), error\n"
                "        print('refused', error)\n")  # fmt: skip
        done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and "refused" in done.stdout, f"{name}: {done.stdout}{done.stderr}"
    assert not made.exists()


def test_weights_and_arrays_are_loaded_without_objects() -> None:
    """Wherever code loads what may hold objects it says that it wants none."""
    files = [file for folder in ("hpc", "kernels") for file in (ROOT / folder).rglob("*.py")]
    calls = [(file.name, node) for file in files for node in ast.walk(ast.parse(file.read_text()))
             if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]  # fmt: skip
    seen = collections.Counter()
    for name, call in calls:
        words = ast.unparse(call.func)
        given = {key.arg: ast.unparse(key.value) for key in call.keywords}
        seen[words] += 1
        if words == "torch.load":
            assert given.get("weights_only") == "True", name
        assert given.get("allow_pickle", "False") == "False" and given.get("shell", "False") == "False", name
        refused = {"pickle.load", "pickle.loads", "yaml.unsafe_load", "yaml.full_load", "os.system", "marshal.loads"}
        assert words not in refused and not words.endswith(".extractall"), f"{name}: {words}"
        if words in ("yaml.load", "yaml.compose"):
            assert "Safe" in ast.unparse(call) or "_Loader" in ast.unparse(call), name
    assert seen["torch.load"] >= 5 and seen["yaml.load"] and seen["np.load"]


def test_only_regular_members_of_tars_are_videos(tmp_path: Path) -> None:
    file = tmp_path / "in.tar"
    kinds = {"link": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "device": tarfile.CHRTYPE, "fifo": tarfile.FIFOTYPE,
             "folder": tarfile.DIRTYPE, "sparse": tarfile.GNUTYPE_SPARSE}  # fmt: skip
    with tarfile.open(file, "w", format=tarfile.GNU_FORMAT) as out:
        for name, kind in kinds.items():
            info = tarfile.TarInfo(f"{name}.mp4")
            info.type, info.linkname = kind, "/etc/passwd"
            if name != "sparse":
                out.addfile(info)
        for name in ("../../up.mp4", "/abs.mp4", "good.mp4"):
            info = tarfile.TarInfo(name)
            info.size = 3
            out.addfile(info, io.BytesIO(b"abc"))
    found, bad = clips.videos_in_tar(Item(str(file), file.stat().st_size, storage.stat(str(file)).etag))
    assert [member.name for member in found] == ["/abs.mp4", "good.mp4"] and bad is None  # read, never written by name


def test_an_endpoint_that_sends_elsewhere_gets_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str | None] = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{server.server_port}/other")
            self.end_headers()

        def do_GET(self) -> None:
            asked.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("KEY", "sk-planted-planted-planted")
        url = f"http://127.0.0.1:{server.server_port}/v1"
        settings = Vlm(model="m", endpoint=Endpoint(url=url, key="KEY", retries=0))
        answer = endpoint.open_endpoint(settings).ask(Request(None, 1.0, "hello"))
        server.shutdown()
    assert "HTTP 302" in answer.detail and not asked


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/v1", "gopher://a/", "http://me:word@a/v1", "data:,x"])
def test_addresses_of_other_kinds_are_refused(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"url": url}, Endpoint)
    if not url.startswith("http"):
        monkeypatch.setenv("HOOK", url)
        monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("opened"))
        finale.notify(Run(tmp_path), Any, "HOOK")  # no report is looked at
        said = capsys.readouterr().err
        assert "no webhook call" in said and url not in said


def test_a_spec_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    for text in (bomb, "a: " + "[" * 5000 + "]" * 5000, "a: !!python/object/apply:os.system ['touch made']"):
        (tmp_path / "bomb.yaml").write_text(text)
        done = runs.hpc("check", tmp_path / "bomb.yaml", code=2, timeout=180)
        assert "Traceback" not in done.stderr and not (tmp_path / "made").exists()


class Scripts(html.parser.HTMLParser):
    """The elements of a page that would run, and attributes that do."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [tag] if tag in ("script", "iframe", "object", "embed", "base") else []
        self.found += [name for name, value in attrs
                       if name.startswith("on") or (value or "").strip().lower().startswith("javascript:")]  # fmt: skip


def test_names_and_errors_stay_text_in_pages(tmp_path: Path) -> None:
    name = "<script>alert(1)<'\"&>.txt"
    stages = {"leak": {"kind": "stages:Leak", "resources": {"cpus": 1}, "variables": ["BAD"]}}
    hostile = {name.replace("/", ""): "a", "$(touch pwned)\nx.txt": "b", "-rf.txt": "c", "<b>fail.txt": "d"}
    file = runs.spec(tmp_path, hostile, stages)
    bad = "<script>alert(2)</script><img src=x onerror=alert(3)>'\""
    runs.hpc("run", file, env=runs.environment(BAD=bad), code=None)
    [run] = (tmp_path / "runs").iterdir()
    page = (run / "report.html").read_text()
    seen = Scripts()
    seen.feed(page)
    assert not seen.found and html.escape("<script>alert(2)</script>") in page
    assert "Content-Security-Policy" in page and "script-src" not in page
    assert not list(tmp_path.rglob("pwned"))
    assert subprocess.run(["bash", "-n", run / "attempt-1/submit.sh"]).returncode == 0
