"""`hpc models pull` against a server that answers as the Hugging Face hub does: what is fetched, and used offline."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

from hpc.batch import models as pulling
from hpc.batch.yaml_lines import SpecErrors
from hpc.curate.settings import Clips
from hpc.curate.settings.filters import Aesthetic, Filters
from hpc.models import hub

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CONFIG = json.dumps({"model_type": "t5", "d_model": 8}).encode()
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
REPOSITORIES = {
    "owner/plain": {
        "config.json": CONFIG, "tokenizer.json": b"{}", "spiece.model": b"\x00" * 50, "README.md": b"# hello",
        "model.safetensors": b"s" * 3000, "pytorch_model.bin": b"p" * 3000, "tf_model.h5": b"t" * 3000,
        "flax_model.msgpack": b"f" * 10, "onnx/model.onnx": b"o" * 10, "onnx/config.json": b"{}",
    },
    "owner/shards": {
        "config.json": CONFIG, "model.safetensors.index.json": INDEX.encode(), "consolidated.safetensors": b"c" * 9,
        "model-00001-of-00002.safetensors": b"1" * 10, "model-00002-of-00002.safetensors": b"2" * 10,
    },
    "owner/old": {"config.json": CONFIG, "pytorch_model.bin": b"p" * 10, "training.bin": b"t", "spiece.model": b"m"},
    "owner/code": {
        "config.json": json.dumps({"auto_map": {"AutoModel": "modeling_x.X"}}).encode(), "modeling_x.py": b"class X: 0",
        "helper.py": b"1", "model.safetensors": b"s" * 10,
    },
    "owner/head": {"model.safetensors": b"h" * 5, "deep/head.pth": b"d" * 7, "notes.txt": b"n"},
    "owner/bare": {"weights.pt": b"w", "config.json": CONFIG},
}  # fmt: skip


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for: a revision's commit, its tree, and files with their ETags."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *words: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        self.server.asked.append(f"{self.command} {url.path}")  # type: ignore[attr-defined]
        parts = unquote(url.path).strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        owner, name, verb, revision, *rest = [*(parts[2:] if api else parts), "", "", ""][:5] + parts[
            (7 if api else 5) :
        ]
        files = REPOSITORIES.get(f"{owner}/{name}")
        if files is None:
            return self.answer(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", COMMIT):
            return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        if api and verb == "revision":
            return self.answer(200, json.dumps({"id": f"{owner}/{name}", "sha": COMMIT, "siblings": []}).encode())
        if api and verb == "tree":
            deep = parse_qs(url.query).get("recursive") == ["True"] or parse_qs(url.query).get("recursive") == ["true"]
            tree = [{"type": "file", "oid": "0" * 40, "size": len(data), "path": path}
                    for path, data in files.items() if deep or "/" not in path]  # fmt: skip
            folders = {path.partition("/")[0] for path in files if "/" in path}
            tree += [{"type": "directory", "oid": "1" * 40, "size": 0, "path": folder} for folder in sorted(folders)]
            return self.answer(200, json.dumps(tree).encode())
        data = files.get("/".join(rest).strip("/"))
        if verb != "resolve" or data is None:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        etag = f'"{hashlib.sha256(data).hexdigest()}"'
        self.answer(200, data, {"ETag": etag, "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"})

    def answer(self, code: int, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(data)), "Content-Type": "application/json",
                           **(headers or {})}.items():  # fmt: skip
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)


@pytest.fixture(scope="module")
def server() -> Iterator[ThreadingHTTPServer]:
    made = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    made.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=made.serve_forever, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def hpc(home: Path, server: ThreadingHTTPServer | None, *words: str, code: int = 0, **env: str) -> str:
    """The command, with a cache of its own; without a server it is told that there is no network."""
    there = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"} if server else {"HF_HUB_OFFLINE": "1"}
    env = {**os.environ, **there, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1", **env}
    done = subprocess.run([sys.executable, "-m", "hpc.cli", "models", "pull", *words], env=env, capture_output=True,
                          text=True, timeout=120)  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def names(home: Path, repository: str) -> set[str]:
    folder = home / "hub" / f"models--{repository.replace('/', '--')}" / "snapshots" / COMMIT
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


USES = """
import sys
from hpc.models import hub
print(*map(hub.folder, sys.argv[1:]), sep="\\n")
"""


def test_what_transformers_loads_is_fetched_once_and_found_offline(server: Any, tmp_path: Path) -> None:
    every = ["owner/plain@" + COMMIT, "owner/shards", "owner/old@main", "owner/code@" + COMMIT]
    said = hpc(tmp_path, server, *every)
    assert "owner/plain@" + COMMIT + ": 4 files, 3.0 KiB, fetched into" in said
    assert names(tmp_path, "owner/plain") == {"config.json", "tokenizer.json", "spiece.model", "model.safetensors"}
    assert names(tmp_path, "owner/shards") == set(REPOSITORIES["owner/shards"]) - {"consolidated.safetensors"}
    assert names(tmp_path, "owner/old") == {"config.json", "pytorch_model.bin", "spiece.model"}
    assert names(tmp_path, "owner/code") == set(REPOSITORIES["owner/code"])
    server.asked.clear()
    for gone in (server, None):  # nothing is asked again; nor needed
        said = hpc(tmp_path, gone, *every).splitlines()
        assert [line.partition(f": is here: {tmp_path}")[0] for line in said] == every
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    done = subprocess.run([sys.executable, "-c", USES, *every], env=env, capture_output=True, text=True, timeout=180)
    assert [line[-40:] for line in done.stdout.splitlines()] == [COMMIT] * 4, done.stderr
    assert server.asked == []


def test_an_interrupted_fetch_goes_on(server: Any, tmp_path: Path) -> None:
    hpc(tmp_path, server, "owner/shards@" + COMMIT)
    shard = next(tmp_path.rglob("model-00002-of-00002.safetensors"))
    shard.unlink()
    said = hpc(tmp_path, None, "owner/shards@" + COMMIT, code=1)
    assert "is not in the cache" in said and f"hpc models pull owner/shards@{COMMIT}" in said
    assert "fetched into" in hpc(tmp_path, server, "owner/shards@" + COMMIT) and shard.exists()


def test_a_list_fetches_nothing(server: Any, tmp_path: Path) -> None:
    lines = hpc(tmp_path, server, "--list", "owner/plain@" + COMMIT).splitlines()
    assert lines[0] == f"owner/plain@{COMMIT}: 4 files, 3.0 KiB, not in the cache"
    assert [line.split()[-1] for line in lines[1:]] == [
        "config.json", "model.safetensors", "spiece.model", "tokenizer.json",
    ]  # fmt: skip
    assert names(tmp_path, "owner/plain") == set()
    [told] = json.loads(hpc(tmp_path, server, "--list", "--json", "owner/old"))
    assert told["files"] == {"config.json": len(CONFIG), "pytorch_model.bin": 10, "spiece.model": 1}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("owner/bare", r"no weights that transformers loads \(\*.safetensors, pytorch_model\*.bin\): config.json"),
        ("owner/nobody", "RepositoryNotFoundError"),
        ("owner/plain@v9", "RevisionNotFoundError"),
        ("plain", "'plain' is no model: give owner/name@revision"),
        ("/nowhere/model", "there is no /nowhere/model/config.json on this machine"),
    ],
)
def test_what_cannot_be_had_is_said_and_the_others_are_fetched(
    server: Any, tmp_path: Path, model: str, words: str
) -> None:
    said = hpc(tmp_path, server, model, "owner/old", code=1)
    assert re.search(words, said), said
    assert "Traceback" not in said and names(tmp_path, "owner/old")


def spec(folder: Path, name: str = "s", **more: Any) -> Path:
    (folder / "in").mkdir(exist_ok=True)
    stages = {
        "clips": {"kind": "curate.clips", "filter": {"aesthetic": {
            "clip": f"owner/plain@{COMMIT}", "head": f"owner/head@{COMMIT}"}}},
        "embed": {"kind": "curate.embed", "needs": "clips", "model": f"owner/code@{COMMIT}"},
        "look": {"kind": "curate.embed", "needs": "clips", "model": "perceptual"},
        "caption": {"kind": "curate.caption", "needs": "clips", "text": "a film"},
        "words": {"kind": "curate.text_embed", "needs": "caption", "model": f"owner/old@{COMMIT}"},
    }  # fmt: skip
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({"name": name, "inputs": "in", "output": "out", "stages": stages, **more}))
    return file


def test_the_models_of_a_spec(server: Any, tmp_path: Path) -> None:
    file = spec(tmp_path)
    (tmp_path / "in").rmdir()  # inputs need not be here
    assert pulling.wanted([str(file)]) == {
        f"owner/plain@{COMMIT}": ("config.json", "preprocessor_config.json", "model.safetensors"),
        f"owner/head@{COMMIT}": ("model.safetensors",),
        f"owner/code@{COMMIT}": (),
        f"owner/old@{COMMIT}": (),
    }
    assert pulling.wanted([str(file), f"owner/head@{COMMIT}"])[f"owner/head@{COMMIT}"] == ()
    said = hpc(tmp_path / "cache", server, str(file), code=1)
    assert "it has no preprocessor_config.json; it has README.md config.json" in said
    assert names(tmp_path / "cache", "owner/head") == {"model.safetensors"}
    assert names(tmp_path / "cache", "owner/old") and names(tmp_path / "cache", "owner/code")


def test_jobs_and_pull_have_the_same_cache(server: Any, tmp_path: Path) -> None:
    file = spec(tmp_path, env={"HF_HOME": str(tmp_path / "jobs")})
    hpc(tmp_path / "mine", server, str(file), code=1)
    assert names(tmp_path / "jobs", "owner/old") and not names(tmp_path / "mine", "owner/old")
    other = spec(tmp_path, "other", env={"HF_HOME": str(tmp_path / "others")})
    said = hpc(tmp_path / "mine", server, str(file), str(other), code=2)
    assert "have different caches" in said and "one spec at a time" in said


def test_a_wrong_spec_says_where(tmp_path: Path) -> None:
    file = spec(tmp_path, stages={"embed": {"kind": "curate.embed", "needs": [], "model": "perceptul"}})
    with pytest.raises(SpecErrors, match=r"s\.yaml:"):
        pulling.wanted([str(file)])


def test_files_by_name_in_folders(server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import sys
from hpc.batch import models
named = {"owner/head": ("model.safetensors", "deep/head.pth")}
for again in range(2):
    print(*(one.lines() for one in models.pull(named)))
"""
    env = {**os.environ, "HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=180)
    first, second = done.stdout.splitlines()
    assert "2 files, 12 B, fetched into" in first and f"snapshots/{COMMIT}'" in second and "is here" in second
    assert names(tmp_path, "owner/head") == {"model.safetensors", "deep/head.pth"}


def test_without_filters_a_stage_of_clips_names_no_model() -> None:
    assert Clips().models() == {}
    assert Clips(filter=Filters(aesthetic=Aesthetic(mode="disable"))).models() == {}
    assert len(Clips(filter=Filters(aesthetic=Aesthetic())).models()) == 2


def test_which_weights() -> None:
    assert hub.chosen(["config.json", "other.safetensors", "model.fp16.safetensors"]) == [
        "config.json", "model.fp16.safetensors", "other.safetensors",
    ]  # fmt: skip
    assert hub.chosen(["model-00001-of-00001.safetensors", "x/model.safetensors", "pytorch_model.bin"]) == [
        "model-00001-of-00001.safetensors"
    ]
