"""Pin what images are made of: asks registries for digests, and pip for hashes, and writes down what they answer.

    python3 containers/lock.py bases                 containers/images.txt -> images.lock: NAME REGISTRY IMAGE DIGEST
    python3 containers/lock.py packages train        containers/train.txt -> train.lock, to be run with the Python that
                                                     the image has: inside of its base, or beside one like it

Nothing is written that was not returned: when one question fails, the file stays as it was. The standard library alone.
Bearer tokens and anonymous reading are understood; a login comes from $REGISTRY_USER and $REGISTRY_PASSWORD.
Registry protocol: OCI distribution-spec 1.1, "Pulling manifests".
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
HUB = {"docker.io": "registry-1.docker.io"}
"""Registries whose name is not that of their server."""
ACCEPT = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in ("oci.image.index.v1", "docker.distribution.manifest.list.v2", "oci.image.manifest.v1",
                 "docker.distribution.manifest.v2")
)  # fmt: skip
BUILT = re.compile(r"^# built in the image, .*: ([\w.-]+)==([\w.]+)$", re.MULTILINE)
SIMPLE = "application/vnd.pypi.simple.v1+json"


def bases(source: Path, plain_http: bool = False) -> dict[str, tuple[str, str, str]]:
    """{name: (registry's server, image, digest)} of every line of images.txt."""
    found = {}
    for number, line in enumerate(source.read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = re.fullmatch(r"([a-z0-9-]+) ([^\s/]+)/([a-z0-9./_-]+):([\w.-]+)", line.strip())
        if not parts:
            sys.exit(f"{source}:{number}: {line!r}: write NAME REGISTRY/IMAGE:TAG")
        name, registry, image, tag = parts.groups()
        server = HUB.get(registry, registry)
        found[name] = server, image, digest(server, image, tag, plain_http)
        print(f"{name}: {registry}/{image}:{tag} is {found[name][2]}")
    return found


def digest(server: str, image: str, tag: str, plain_http: bool = False) -> str:
    """sha256:... of the manifest, or index, that the registry has under this tag: of the bytes that it sent."""
    url = f"{'http' if plain_http else 'https'}://{server}/v2/{image}/manifests/{tag}"
    headers = {"Accept": ACCEPT}
    try:
        try:
            answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
            headers["Authorization"] = token(error.headers.get("WWW-Authenticate", ""), server)
            answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=60)
        with answer:
            body, claimed = answer.read(), answer.headers.get("Docker-Content-Digest")
    except urllib.error.HTTPError as error:
        hint = {404: "is the tag right?", 401: "a login? set REGISTRY_USER and REGISTRY_PASSWORD"}.get(error.code, "")
        sys.exit(f"{url}: {error.code} {error.reason}; {hint}")
    except OSError as error:
        sys.exit(f"{url}: {error}: run this where the registry can be reached")
    own = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if claimed not in (None, own):
        sys.exit(f"{url}: the registry says {claimed}, but what it sent is {own}: something between changed it")
    return own


def token(challenge: str, server: str) -> str:
    """What goes into Authorization, for a WWW-Authenticate."""
    user, password = os.environ.get("REGISTRY_USER"), os.environ.get("REGISTRY_PASSWORD", "")
    basic = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode() if user else ""
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    if not challenge.lower().startswith("bearer") or "realm" not in fields:
        if basic:
            return basic
        sys.exit(f"{server} wants a login: set REGISTRY_USER and REGISTRY_PASSWORD")
    realm = fields.pop("realm")
    request = urllib.request.Request(f"{realm}?{urllib.parse.urlencode(fields)}")
    if basic:
        request.add_header("Authorization", basic)
    with urllib.request.urlopen(request, timeout=60) as answer:
        said = json.load(answer)
    return f"Bearer {said.get('token') or said['access_token']}"


def packages(source: Path, index: str) -> list[str]:
    """Lines for pip's --require-hashes: all that the file's packages need, as pip resolves it now and here."""
    with tempfile.NamedTemporaryFile(suffix=".json") as report:
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet",
                   "--only-binary=:all:", f"--index-url={index}", "--report", report.name,
                   "--requirement", str(source)]  # fmt: skip
        if subprocess.run(command).returncode:
            sys.exit(f"pip could not resolve {source}: see above")
        chosen = json.loads(Path(report.name).read_bytes())["install"]
    lines = []
    for one in sorted(chosen, key=lambda one: one["metadata"]["name"].lower()):
        name, version = one["metadata"]["name"], one["metadata"]["version"]
        hashes = one["download_info"].get("archive_info", {}).get("hashes", {})
        if "sha256" not in hashes:
            sys.exit(f"{name} {version}: the index gave no sha256 for it")
        lines.append(f"{name}=={version} --hash=sha256:{hashes['sha256']}")
    return lines


def built(source: Path, index: str) -> list[str]:
    """The same for packages that have no wheel, and are built in the image."""
    lines = []
    for name, version in BUILT.findall(source.read_text()):
        request = urllib.request.Request(f"{index.rstrip('/')}/{name}/", headers={"Accept": SIMPLE})
        with urllib.request.urlopen(request, timeout=60) as answer:
            files = json.load(answer)["files"]
        wanted = f"{name.replace('-', '_')}-{version}.tar.gz"
        [file] = [one for one in files if one["filename"].replace("-", "_") == wanted.replace("-", "_")] or [None]
        if file is None or "sha256" not in file["hashes"]:
            sys.exit(f"{name} {version}: {index} has no {wanted} with a sha256")
        lines.append(f"{name}=={version} --hash=sha256:{file['hashes']['sha256']}")
    return lines


def replace(path: Path, lines: list[str]) -> None:
    """All of it or nothing."""
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(f"{line}\n" for line in lines))
    part.rename(path)
    print(f"{path}: written; commit it")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("bases", "packages"))
    parser.add_argument("names", nargs="*", help="of images, for packages")
    parser.add_argument("--folder", type=Path, default=HERE)
    parser.add_argument("--index", default="https://pypi.org/simple", help="of packages (PEP 691)")
    parser.add_argument("--plain-http", action="store_true", help="of registries, for one on this machine")
    args = parser.parse_args()
    made = "# made by containers/lock.py: not to be edited by hand"
    if args.what == "bases":
        found = bases(args.folder / "images.txt", args.plain_http)
        replace(args.folder / "images.lock", [made, *(" ".join((name, *one)) for name, one in found.items())])
    for name in args.names if args.what == "packages" else ():
        source = args.folder / f"{name}.txt"
        replace(args.folder / f"{name}.lock", [made, *packages(source, args.index)])
        if rest := built(source, args.index):
            replace(args.folder / f"{name}-built.lock", [made, *rest])


if __name__ == "__main__":
    main()
