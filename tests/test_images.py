"""Images: what lock.py writes is what a real registry and a real pip answered; sbatch/image.sbatch makes them once.

The registry is Debian's docker-registry, on this machine. Where enroot is installed, image.sbatch makes real images, by
digest from that registry too; elsewhere it goes as far as enroot itself.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.server
import io
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = "application/vnd.docker.container.image.v1+json"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"  # of OCI's, this registry denies enroot's first HEAD
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
ENROOT = shutil.which("enroot")


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def send(url: str, data: bytes, kind: str, method: str = "PUT") -> Any:
    request = urllib.request.Request(url, data, {"Content-Type": kind}, method=method)
    return urllib.request.urlopen(request, timeout=180)


class Registry:
    def __init__(self, host: str) -> None:
        self.host = host

    def push(self, image: str, tag: str, files: dict[str, str]) -> str:
        """An image of one layer: busybox, and text files. Its digest."""
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w") as tar:
            for folder in ("bin", "etc", "usr", "usr/local", "usr/local/bin", "tmp", "proc", "sys", "dev", "run", "src",
                           "root"):  # fmt: skip
                one = tarfile.TarInfo(folder)
                one.type, one.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(one)
            tar.add(os.path.realpath(busybox()), "bin/busybox")
            for name in ("sh", "cat", "mkdir", "cp", "env"):
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
            for name, text in files.items():
                one = tarfile.TarInfo(name)
                one.size = len(text)
                tar.addfile(one, io.BytesIO(text.encode()))
        plain, layer = raw.getvalue(), gzip.compress(raw.getvalue(), mtime=0)
        config = json.dumps({"architecture": "amd64", "os": "linux", "config": {"Env": ["PATH=/bin:/usr/local/bin"]},
                             "rootfs": {"type": "layers", "diff_ids": [sha256(plain)]}}).encode()  # fmt: skip
        for blob in (layer, config):
            with send(f"http://{self.host}/v2/{image}/blobs/uploads/", b"", "text/plain", "POST") as answer:
                place = answer.headers["Location"]
            send(f"{place}&digest={sha256(blob)}", blob, "application/octet-stream").close()
        manifest = json.dumps({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {"mediaType": CONFIG, "digest": sha256(config), "size": len(config)},
            "layers": [{"mediaType": LAYER, "digest": sha256(layer), "size": len(layer)}],
        }).encode()  # fmt: skip
        send(f"http://{self.host}/v2/{image}/manifests/{tag}", manifest, MANIFEST).close()
        return sha256(manifest)


def busybox() -> str:
    found = shutil.which("busybox")
    if not found:
        pytest.skip("busybox is not installed (Debian: busybox-static)")
    return found


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    program = shutil.which("docker-registry")
    if not program:
        pytest.skip("docker-registry is not installed (a package of Debian)")
    folder = tmp_path_factory.mktemp("registry")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    (folder / "config.yml").write_text(
        f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '{host}'}}\n"
    )
    with (folder / "log").open("w") as log:
        process = subprocess.Popen([program, "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"http://{host}/v2/", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                time.sleep(0.05)
        yield Registry(host)
    finally:
        process.terminate()
        process.wait(60)


def lock(folder: Path, *words: str, code: int = 0, **env: str) -> str:
    command = [sys.executable, ROOT / "containers/lock.py", *words, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | env)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_digests_are_those_that_the_registry_returned(tmp_path: Path, registry: Registry) -> None:
    first = registry.push("team/base", "1.0", {"etc/a": "a"})
    other = registry.push("team/base", "2.0", {"etc/a": "b"})
    (tmp_path / "images.txt").write_text(f"# words\ncurate {registry.host}/team/base:1.0\n"
                                         f"train {registry.host}/team/base:2.0\n")  # fmt: skip
    lock(tmp_path, "bases", "--plain-http")
    made = (tmp_path / "images.lock").read_text().splitlines()[1:]
    assert made == [f"curate {registry.host} team/base {first}", f"train {registry.host} team/base {other}"]
    moved = registry.push("team/base", "1.0", {"etc/a": "c"})
    assert moved != first
    lock(tmp_path, "bases", "--plain-http")
    assert (tmp_path / "images.lock").read_text().splitlines()[1].endswith(moved)


@pytest.mark.parametrize(("line", "said"), [
    ("curate HOST/team/none:1.0", "404"),
    ("curate HOST/team/base@sha256:00", "write NAME REGISTRY/IMAGE:TAG"),
    ("curate 127.0.0.1:1/team/base:1.0", "where the registry can be reached"),
])  # fmt: skip
def test_what_no_registry_returned_is_not_written(tmp_path: Path, registry: Registry, line: str, said: str) -> None:
    registry.push("team/base", "1.0", {})
    (tmp_path / "images.txt").write_text(f"good {registry.host}/team/base:1.0\n{line.replace('HOST', registry.host)}\n")
    (tmp_path / "images.lock").write_text("as it was\n")
    assert said in lock(tmp_path, "bases", "--plain-http", code=1)
    assert (tmp_path / "images.lock").read_text() == "as it was\n"


class Guarded(http.server.BaseHTTPRequestHandler):
    """A registry that wants a bearer token, and one that sends other bytes than it says ("/lies/")."""

    def do_GET(self) -> None:
        if self.path.startswith("/token"):
            login = base64.b64decode((self.headers.get("Authorization") or "Basic ").partition(" ")[2]).decode()
            body = json.dumps({"token": f"{login}-{self.path.count('repository')}"}).encode()
            self.answer(200, body)
        elif self.headers.get("Authorization") != "Bearer me:word-1":
            where = f"http://{self.headers['Host']}/token"
            challenge = f'Bearer realm="{where}",service="here",scope="repository:a/b:pull"'
            self.answer(401, b"", {"WWW-Authenticate": challenge})
        else:
            digest = sha256(b"{}") if "lies" not in self.path else sha256(b"{ }")
            self.answer(200, b"{}", {"Docker-Content-Digest": digest})

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def guarded() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_registry_with_a_login(tmp_path: Path, guarded: str) -> None:
    (tmp_path / "images.txt").write_text(f"x {guarded}/a/b:1\n")
    login = {"REGISTRY_USER": "me", "REGISTRY_PASSWORD": "word"}
    assert "word" not in lock(tmp_path, "bases", "--plain-http", **login)
    assert (tmp_path / "images.lock").read_text().splitlines()[1] == f"x {guarded} a/b {sha256(b'{}')}"
    assert "REGISTRY_USER" in lock(tmp_path, "bases", "--plain-http", code=1)


def test_a_digest_that_is_not_of_the_bytes_is_refused(tmp_path: Path, guarded: str) -> None:
    (tmp_path / "images.txt").write_text(f"x {guarded}/lies/b:1\n")
    said = lock(tmp_path, "bases", "--plain-http", code=1, REGISTRY_USER="me", REGISTRY_PASSWORD="word")
    assert "something between changed it" in said and not (tmp_path / "images.lock").exists()


def wheel(folder: Path, name: str, needs: str = "") -> str:
    """A wheel with nothing in it, in a package index of files; its sha256."""
    place = folder / "simple" / name
    place.mkdir(parents=True)
    file = place / f"{name}-1.0-py3-none-any.whl"
    require = f"Requires-Dist: {needs}\n" if needs else ""
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{require}")
        made.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        made.writestr(f"{name}-1.0.dist-info/RECORD", "")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    (place / "index.html").write_text(f'<a href="{file.name}#sha256={digest}">{file.name}</a>')
    return digest


def test_packages_are_locked_with_all_they_need(tmp_path: Path) -> None:
    inner, outer = wheel(tmp_path, "hpcinner"), wheel(tmp_path, "hpcouter", "hpcinner>=1")
    (tmp_path / "x.txt").write_text("# words\nhpcouter>=1,<2\n")
    none = {"PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": "", "PIP_CONFIG_FILE": os.devnull}
    lock(tmp_path, "packages", "x", "--index", (tmp_path / "simple").as_uri(), **none)
    assert (tmp_path / "x.lock").read_text().splitlines()[1:] == [
        f"hpcinner==1.0 --hash=sha256:{inner}", f"hpcouter==1.0 --hash=sha256:{outer}"
    ]  # fmt: skip
    (tmp_path / "x.txt").write_text("hpcouter>=2\n")
    assert "could not resolve" in lock(tmp_path, "packages", "x", "--index", (tmp_path / "simple").as_uri(), code=1,
                                       **none)  # fmt: skip
    assert "hpcouter==1.0" in (tmp_path / "x.lock").read_text()


def test_what_is_listed_can_be_locked() -> None:
    """Of the repository's own lists: names as lock.py reads them, and every package of pyproject.toml."""
    import tomllib

    listed = (ROOT / "containers/curate.txt").read_text() + (ROOT / "containers/train.txt").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for wanted in (*project["dependencies"], *extras["curate"], *extras["curate-models"], *extras["train"]):
        assert wanted in listed.splitlines(), f"containers/: {wanted} is in pyproject.toml, and not here"


# sbatch/image.sbatch


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository whose recipe is a small one."""
    folder = tmp_path / "checkout"
    for name in ("containers", "hpc", "kernels", "sbatch"):
        (folder / name).mkdir(parents=True)
    (folder / "hpc/a.py").write_text("a = 1\n")
    recipe = 'set -eu\ncat "$2/hpc/a.py" >/etc/made-of\necho "$1" >>/etc/made-of\n'
    (folder / "containers/install.sh").write_text(recipe)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    mksquashfs = shutil.which("mksquashfs")
    if not mksquashfs:
        pytest.skip("mksquashfs is not installed (Debian: squashfs-tools)")
    root = tmp_path / "rootfs"
    for folder in ("bin", "etc", "usr", "tmp", "proc", "sys", "dev", "run", "src", "root", "var"):
        (root / folder).mkdir(parents=True)
    shutil.copy(busybox(), root / "bin/busybox")
    for name in ("sh", "cat", "env"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/environment").write_text("PATH=/bin\n")
    subprocess.run([mksquashfs, root, tmp_path / "base.sqsh", "-noappend", "-all-root", "-quiet"], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return tmp_path / "base.sqsh"


def make(checkout: Path, *words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", ROOT / "sbatch/image.sbatch", *map(str, words)]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=120, env=os.environ | env)


def without_enroot(folder: Path) -> str:
    """A PATH that has all but enroot."""
    (folder / "bin").mkdir()
    for place in ("/usr/bin", "/bin"):
        for file in Path(place).iterdir():
            if file.name != "enroot" and not (folder / "bin" / file.name).exists():
                (folder / "bin" / file.name).symlink_to(file)
    return str(folder / "bin")


def test_without_enroot_it_says_so_and_leaves_nothing(checkout: Path, base: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    done = make(checkout, "small", images, base, PATH=without_enroot(tmp_path))
    assert done.returncode == 1 and "enroot: not found on" in done.stderr and "containers/Dockerfile" in done.stderr
    assert [p.name for p in images.iterdir()] == [".small.lock"]


@pytest.mark.parametrize(("words", "said"), [
    (["small"], "sbatch sbatch/image.sbatch NAME FOLDER"),
    (["small", "IMAGES"], "small: not in"),
    (["small", "IMAGES", "/nowhere.sqsh"], "not a squashfs image"),
    (["locked", "IMAGES"], "locked.lock is missing"),
])  # fmt: skip
def test_what_is_missing_is_said(checkout: Path, tmp_path: Path, words: list[str], said: str) -> None:
    (checkout / "containers/locked.txt").write_text("hpcouter\n")
    (checkout / "containers/images.lock").write_text("other h i sha256:0\n")
    done = make(checkout, *(word.replace("IMAGES", str(tmp_path / "images")) for word in words))
    assert done.returncode == 2 and said in done.stderr


def test_outside_of_a_repository(tmp_path: Path) -> None:
    done = make(tmp_path, "small", tmp_path / "images")
    assert done.returncode == 2 and "submit this from the repository's folder" in done.stderr


def read(image: Path, name: str) -> str:
    return subprocess.run(["unsquashfs", "-cat", image, name], check=True, capture_output=True, text=True).stdout


@pytest.mark.skipif(not ENROOT, reason="enroot is not installed")
def test_an_image_is_made_once_and_again_when_its_recipe_changes(checkout: Path, base: Path, tmp_path: Path) -> None:
    images = tmp_path / "images"
    several = [subprocess.Popen(["bash", ROOT / "sbatch/image.sbatch", "small", images, base], cwd=checkout, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(3)]  # fmt: skip
    said = [process.communicate(timeout=120) for process in several]
    assert [process.returncode for process in several] == [0, 0, 0], said
    assert sorted("is made" in out for out, _ in said) == [False, False, True]
    assert read(images / "small.sqsh", "etc/made-of") == "a = 1\nsmall\n"
    noted = json.loads((images / "small.sqsh.json").read_text())
    assert noted["digest"] == sha256(base.read_bytes()) and noted["recipe"] in str((images / "small.sqsh").readlink())
    (checkout / "hpc/a.py").write_text("a = 2\n")
    assert make(checkout, "small", images, base).returncode == 0
    assert read(images / "small.sqsh", "etc/made-of") == "a = 2\nsmall\n"
    assert len(list(images.glob("small-*.sqsh"))) == 2, "the older one may be in use"


@pytest.mark.skipif(not ENROOT, reason="enroot is not installed")
def test_a_recipe_that_fails_leaves_no_image(checkout: Path, base: Path, tmp_path: Path) -> None:
    (checkout / "containers/install.sh").write_text("echo no; exit 3\n")
    done = make(checkout, "small", tmp_path / "images", base)
    assert done.returncode == 3
    assert [p.name for p in (tmp_path / "images").iterdir()] == [".small.lock"]


@pytest.mark.skipif(not ENROOT, reason="enroot is not installed")
def test_the_base_is_imported_by_its_digest(checkout: Path, registry: Registry, tmp_path: Path) -> None:
    registry.push("team/small", "1.0", {"etc/version": "one"})
    (checkout / "containers/images.txt").write_text(f"small {registry.host}/team/small:1.0\n")
    lock(checkout / "containers", "bases", "--plain-http")
    registry.push("team/small", "1.0", {"etc/version": "two"})  # the tag has moved since
    done = make(checkout, "small", tmp_path / "images", ENROOT_ALLOW_HTTP="yes",
                ENROOT_CACHE_PATH=str(tmp_path / "cache"))  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert read(tmp_path / "images/small.sqsh", "etc/version") == "one"
    assert read(tmp_path / "images/small.sqsh", "etc/made-of") == "a = 1\nsmall\n"
