"""`hpc dashboard FOLDER`: a web page of all runs under a folder, live while they go.

    hpc dashboard runs                          # http://127.0.0.1:8765/, for processes of the same user alone
    ssh -L 8765:127.0.0.1:8765 login            # ...and then http://127.0.0.1:8765/ on one's own machine
    hpc dashboard runs --host 0.0.0.0           # behind a random token, which is in the address that it prints
    hpc dashboard runs --export page/           # as it is now, as files (hpc.batch.dashboard_export)

It reads, and changes nothing. Files are served by name of run, stage and shard, never by path: reports of runs, objects
of shards that are done, pictures of trainings; what a link leads to elsewhere is refused. Whatever is shown has its
secrets masked. Nobody looking, nothing is read.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import hmac
import http.cookies
import io
import json
import os
import re
import secrets
import socket
import sys
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from hpc.batch import exporter, logs, masking, status, watch
from hpc.batch.curves import Curves
from hpc.batch.gallery import PAGE, Gallery, open_object
from hpc.batch.run import Run
from hpc.batch.watch import Known, Watch
from hpc.data import storage

WEB = exporter.DASHBOARDS / "web"
KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css; charset=utf-8", ".svg": "image/svg+xml",
         ".js": "text/javascript; charset=utf-8", ".json": "application/json", ".txt": "text/plain; charset=utf-8",
         ".csv": "text/plain; charset=utf-8", ".yaml": "text/plain; charset=utf-8", ".webp": "image/webp",
         ".sh": "text/plain; charset=utf-8", ".mp4": "video/mp4"}  # fmt: skip
POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; media-src 'self'; "
          "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")  # fmt: skip
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:; sandbox"
"""Pages that runs wrote stand alone; whatever is in them, it runs nothing."""
COOKIE = "hpc_dashboard"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOOKED, LINES, AFTER = 5000, 200, 5
"""Lines of a log's end in which a shard is looked for; that are shown; and of these, after the last word about it."""
GZIP_ABOVE = 2000
BLOCK = 1 << 20
PICTURE = re.compile(r"\d{1,12}(?:_\d{1,4}_[a-z_]{1,20})?\.(?:webp|mp4|png)")


class Refused(Exception):
    """An answer that is no page: its HTTP status, and why."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


class Dashboard:
    """What the server knows, and its answers as JSON values and open files."""

    def __init__(self, folder: Path) -> None:
        self.watch = Watch(folder)
        self.curves: dict[Path, Curves] = {}
        self.galleries: dict[str, tuple[str, Gallery]] = {}

    @contextlib.contextmanager
    def declared(self, known: Known) -> Iterator[None]:
        """With the environment that a run declares, by which its store is reached."""
        with self.watch.environment, exporter.own_environment():
            os.environ.update(known.env)
            yield

    def run(self, name: str) -> Known:
        try:
            return self.watch.known[name]
        except KeyError:
            raise Refused(404, f"no run {name[:80]!r} here") from None

    def place(self, name: str, stage: str) -> watch.StagePlace:
        try:
            return self.run(name).folders[stage]
        except KeyError:
            raise Refused(404, f"{name} has no stage {stage[:80]!r}") from None

    def log(self, name: str, stage: str, shard: str) -> dict[str, Any]:
        """The end of the log of the task that said the last word about a shard."""
        known, place = self.run(name), self.place(name, stage)
        if shard not in place.jobs:
            raise Refused(404, f"nothing was said about shard {shard[:80]!r} of {stage} yet")
        run = Run(self.watch.folder / name)
        path = logs.of_task(run, stage, place.jobs[shard])
        if path is None:
            return {"path": "", "lines": [], "job": place.jobs[shard], "after": 0}
        watch.inside(path, run.folder)
        lines = logs.tail(path, LOOKED)
        told = [i for i, line in enumerate(lines) if f"shard {shard}:" in line]  # a task has other shards after it
        end = min(len(lines), told[-1] + AFTER) if told else len(lines)
        shown = [masking.masked(line, known.secrets) for line in lines[max(0, end - LINES) : end]]
        return {"path": str(path.relative_to(run.folder)), "lines": shown, "job": place.jobs[shard],
                "after": len(lines) - end}  # fmt: skip

    def shard(self, name: str, stage: str, shard: str) -> dict[str, Any]:
        """All that is known of one shard; the run is read for it."""
        known = self.run(name)
        self.place(name, stage)
        with self.watch.environment, exporter.own_environment():
            gathered = status.gather(Run(self.watch.folder / name), ask_slurm=False, told=self.watch.told)
        fold = gathered.folds[stage]
        ended = fold.done.get(shard) or fold.failed.get(shard) or fold.stopped.get(shard)
        worker, record = fold.running.get(shard, (fold.where.get(shard), ended))
        found: dict[str, Any] = {"shard": shard, "stage": stage, "vanished": fold.kills.get(shard, 0)}
        if record:
            found |= {
                "said": record.state, "t": record.t, "seconds": record.seconds, "times": record.times,
                "counts": record.counts, "failure": record.failure, "detail": record.detail[:2000],
                "fraction": record.fraction, "memory": record.memory, "gpu": record.gpu,
                "bytes": sum(o.bytes for o in record.objects), "bad": len(record.bad),
            }  # fmt: skip
        if worker:
            found |= {"node": worker.node, "job": worker.job, "attempt": worker.attempt, "restart": worker.restart,
                      "run": worker.run}  # fmt: skip
        return masking.everywhere(found, known.secrets)

    def metrics(self, name: str, stage: str) -> dict[str, Any]:
        """The curves of a training, and which steps have pictures."""
        place = self.place(name, stage)
        if place.metrics is None:
            raise Refused(404, f"{stage} trains nothing")
        curves = self.curves.setdefault(place.metrics, Curves(place.metrics))
        shown: dict[int, list[str]] = {}
        if place.pictures:
            try:
                names = sorted(p.name for p in place.pictures.iterdir() if PICTURE.fullmatch(p.name))
            except OSError:
                names = []
            for one in names:
                shown.setdefault(int(re.split(r"[_.]", one)[0]), []).append(one)
        return curves.read() | {"pictures": [{"step": step, "files": files} for step, files in sorted(shown.items())]}

    def gallery(self, name: str) -> Gallery:
        known = self.run(name)
        version, gallery = self.galleries.get(name, ("", None))
        if gallery is None:
            gallery = Gallery(known.folders)
            self.galleries = dict(list(self.galleries.items())[-3:])
        elif version != known.version:
            gallery.update(known.folders)
        self.galleries[name] = (known.version, gallery)
        return gallery

    def clips(self, name: str, **wanted: Any) -> dict[str, Any]:
        known, gallery = self.run(name), self.gallery(name)
        if any("://" in place.folder for place in known.folders.values()):
            with self.declared(known):
                gallery.extend()
        else:
            gallery.extend()
        return masking.everywhere(gallery.search(**wanted), known.secrets)

    def media(self, name: str, stage: str, shard: str, member: str) -> tuple[BinaryIO | Far, int, int, str]:
        """(file, offset, size, suffix) of a member "<clip>.<kind>" of a shard's tar; kind: mp4, webp, preview."""
        known, place = self.run(name), self.place(name, stage)
        key, _, kind = member.rpartition(".")
        suffix = ".mp4" if kind == "mp4" else ".webp"
        try:
            if "://" not in place.folder:
                offset, size = self.gallery(name).clip(stage, shard, key).media[kind]
                return open_object(place, shard, ".tar"), offset, size, suffix
            with self.declared(known):
                offset, size = self.gallery(name).clip(stage, shard, key).media[kind]
        except KeyError:
            raise Refused(404, f"no {member[:80]!r} in shard {shard[:80]!r}") from None
        return Far(self, known, watch.objects(place, shard, ".tar")), offset, size, suffix

    def file(self, name: str, words: list[str]) -> tuple[BinaryIO, int, str]:
        """(file, size, suffix) of run/<report>, stage/<stage>/<page>, pictures/<stage>/<picture>."""
        self.run(name)
        folder = self.watch.folder / name
        match words:
            case ["run", file] if file in watch.FILES:
                number = Run(folder).attempts()[-1]
                path = folder / f"attempt-{number}" / file if file in watch.IN_ATTEMPT else folder / file
            case ["stage", stage, page] if page in watch.pages(place := self.place(name, stage)):
                folder = Path(place.folder)
                path = folder / page
            case ["pictures", stage, file] if PICTURE.fullmatch(file) and (p := self.place(name, stage).pictures):
                folder, path = p, p / file
            case _:
                raise Refused(404, f"no file {'/'.join(words)[:120]!r} of {name}")
        if not watch.regular(watch.inside(path, folder)):
            raise Refused(404, f"no file {'/'.join(words)[:120]!r} of {name}")
        return path.open("rb"), path.stat().st_size, path.suffix


class Far(io.RawIOBase):
    """An object of a store, read piece by piece, each with the environment of its run."""

    def __init__(self, board: Dashboard, known: Known, uri: str) -> None:
        self.board, self.known, self.uri, self.at = board, known, uri, 0

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = offset
        return offset

    def read(self, size: int = -1) -> bytes:
        with self.board.declared(self.known):
            data = storage.read(self.uri, self.at, self.at + size)
        self.at += len(data)
        return data


def answer(board: Dashboard, words: list[str], query: dict[str, str]) -> Any:
    """The JSON value of /api/<words>. Raises Refused, and whatever reading raises."""
    number = lambda key: float(query[key]) if query.get(key) else None
    match words:
        case ["runs"]:
            board.watch.scrape()
            return board.watch.runs()
        case ["run", name]:
            board.watch.scrape()
            return board.run(name).detail
        case ["log", name]:
            return board.log(name, query.get("stage", ""), query.get("shard", ""))
        case ["shard", name]:
            return board.shard(name, query.get("stage", ""), query.get("shard", ""))
        case ["metrics", name]:
            return board.metrics(name, query.get("stage", ""))
        case ["clips", name]:
            return board.clips(
                name, text=query.get("text", "")[:500], column=query.get("column", ""), low=number("low"),
                high=number("high"), verdict=query.get("verdict", "keep"), stage=query.get("stage", ""),
                sort=query.get("sort", ""),
                offset=max(0, int(query.get("offset") or 0)), limit=min(500, int(query.get("limit") or PAGE)),
            )  # fmt: skip
    raise Refused(404, f"nothing at /api/{'/'.join(words)[:80]}")


def serve(board: Dashboard, host: str, port: int) -> tuple[ThreadingHTTPServer, str]:
    """(server, address). Beyond this machine's loopback the address has a random token, without which nothing is
    answered; on it only processes of the same user are."""
    local = host in LOOPBACK
    token = "" if local else secrets.token_urlsafe(24)

    class Answer(_Answer):
        pass

    Answer.board, Answer.token, Answer.local = board, token, local

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):  # a browser that went away
                super().handle_error(request, client_address)

    server = Server((host, port), Answer)
    threading.Thread(target=board.watch.work, daemon=True).start()
    board.watch.wanted.set()
    name = f"[{host}]" if ":" in host else socket.getfqdn() if host in ("0.0.0.0", "::") else host  # noqa: S104  only compared
    return server, f"http://{name}:{server.server_port}/" + (f"?token={token}" if token else "")


class _Answer(BaseHTTPRequestHandler):
    board: Dashboard
    token: str
    local: bool
    protocol_version = "HTTP/1.1"
    timeout = 60
    server_version, sys_version = "hpc", ""

    def do_GET(self) -> None:
        self.begun = False
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        words = [urllib.parse.unquote(word) for word in url.path.split("/")[1:]]
        try:
            if not self.allowed(query):
                return
            if any(word in (".", "..") or "/" in word or "\0" in word for word in words):
                raise Refused(404, "no such place")
            self.route(words, query)
        except Refused as error:
            self.text(error.code, str(error))
        except (FileNotFoundError, NotADirectoryError):
            self.text(404, "it is not there (any more)")
        except PermissionError as error:
            self.text(403, masking.masked(str(error)))
        except (ValueError, KeyError) as error:
            self.text(400, masking.masked(f"{type(error).__name__}: {error}"[:500]))
        except ImportError as error:
            self.text(501, f"{error}: pip install '.[curate]' where the dashboard runs")
        except (storage.StorageError, OSError) as error:
            if isinstance(error, (ConnectionError, TimeoutError)) and not isinstance(error, storage.StorageError):
                raise
            self.text(502, masking.masked(f"{type(error).__name__}: {error}"[:500]))

    do_HEAD = do_GET

    def allowed(self, query: dict[str, str]) -> bool:
        """Of other hosts whoever has the token, of this one the same user."""
        if self.local:
            host = re.sub(r":\d+$", "", self.headers.get("Host", ""))
            if host.strip("[]") not in LOOPBACK:  # a name that somebody else's page made point here
                raise Refused(403, f"this is no {host[:80]!r}: use 127.0.0.1 or localhost")
            if not same_user(self.client_address, self.server.server_address):
                raise Refused(403, "this belongs to another user of this machine")
            return True
        given = http.cookies.SimpleCookie(self.headers.get("Cookie", "")).get(COOKIE)
        if given and hmac.compare_digest(given.value.encode(), self.token.encode()):
            return True
        if hmac.compare_digest(query.get("token", "").encode(), self.token.encode()):
            self.send_response(303)
            self.send_header("Location", ".")
            self.send_header("Set-Cookie", f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/")
            self.end_with(b"")
            return False
        raise Refused(401, "open the address with its token, as `hpc dashboard` printed it")

    def route(self, words: list[str], query: dict[str, str]) -> None:
        match words:
            case [""]:
                self.asset("index.html")
            case ["app", name]:
                self.asset(name)
            case ["api", *rest]:
                self.json(answer(self.board, rest, query))
            case ["media", run, stage, shard, member]:
                file, offset, size, suffix = self.board.media(run, stage, shard, member)
                self.part(file, offset, size, suffix, "private, max-age=86400, immutable")
            case ["files", run, *rest]:
                file, size, suffix = self.board.file(run, rest)
                if suffix in (".mp4", ".webp", ".png", ".html"):
                    self.part(file, 0, size, suffix, "private, no-cache")
                else:
                    known = self.board.run(run)
                    with file:
                        text = masking.masked(file.read(16 << 20).decode(errors="replace"), known.secrets)
                    self.send_response(200)
                    self.send_header("Content-Type", KINDS[".txt"])
                    self.end_with(text.encode())
            case _:
                raise Refused(404, "there is nothing here")

    def asset(self, name: str) -> None:
        if name not in {path.name for path in WEB.iterdir()}:
            raise Refused(404, "there is nothing here")
        self.tagged((WEB / name).read_bytes(), KINDS[Path(name).suffix])

    def json(self, value: Any) -> None:
        self.tagged(json.dumps(value, separators=(",", ":"), allow_nan=False).encode(), KINDS[".json"])

    def tagged(self, body: bytes, kind: str) -> None:
        """A body that a browser need not be sent twice."""
        tag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
        if self.headers.get("If-None-Match") == tag:
            self.send_response(304)
            self.send_header("ETag", tag)
            self.end_with(None)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("ETag", tag)
        self.send_header("Cache-Control", "no-cache")
        if len(body) > GZIP_ABOVE and "gzip" in self.headers.get("Accept-Encoding", ""):
            body = gzip.compress(body, 4)
            self.send_header("Content-Encoding", "gzip")
        self.end_with(body)

    def part(self, file: BinaryIO | Far, begin: int, size: int, suffix: str, cache: str) -> None:
        """All of a file's part, or the range of it that is asked for, so that videos play from anywhere."""
        with file:
            asked = self.headers.get("Range", "")
            first, last = 0, size - 1
            if asked:
                bounds = span(asked, size)
                if bounds is None:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{size}")
                    self.end_with(b"")
                    return
                first, last = bounds
            self.send_response(206 if asked else 200)
            if asked:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Type", KINDS.get(suffix, "application/octet-stream"))
            self.send_header("Cache-Control", cache)
            page = suffix == ".html"
            self.end_with(None, length=last - first + 1, policy=REPORT_POLICY if page else POLICY)
            if self.command == "HEAD":
                return
            file.seek(begin + first)
            left = last - first + 1
            while left and (block := file.read(min(BLOCK, left))):
                self.wfile.write(block)
                left -= len(block)
            if left:  # the tar is shorter than its table says: what was promised cannot be kept
                self.close_connection = True

    def text(self, code: int, words: str) -> None:
        if self.begun:  # of an answer that broke off nothing more can be said
            self.close_connection = True
            return
        self.send_response(code)
        self.send_header("Content-Type", KINDS[".txt"])
        self.end_with(f"{words}\n".encode())

    def end_with(self, body: bytes | None, length: int = 0, policy: str = POLICY) -> None:
        """The headers that every answer has, and its body."""
        self.send_header("Content-Security-Policy", policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        if body is not None or length:
            self.send_header("Content-Length", str(length if body is None else len(body)))
        self.end_headers()
        self.begun = True
        if body and self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass  # addresses have tokens in them


def span(asked: str, size: int) -> tuple[int, int] | None:
    """The first and last byte of "bytes=0-99", "bytes=100-", "bytes=-100"; None for what cannot be given."""
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.strip())
    if not found or not any(found.groups()) or not size:
        return None
    first, last = found.groups()
    if not first:
        return (max(0, size - int(last)), size - 1) if int(last) else None
    begin, end = int(first), min(int(last or size - 1), size - 1)
    return (begin, end) if begin <= end else None


def same_user(client: Any, server: Any, tables: Callable[[], str] | None = None) -> bool:
    """Does the other end of a connection on this machine belong to this process's user, or to root? A login node has
    many users, and its loopback is everybody's. Where the system does not tell (no /proc), yes.
    """
    read = tables or (lambda: "".join(Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")))
    try:
        lines = read().splitlines()
    except OSError:
        return True
    ends = _end(client), _end(server)
    for line in lines:
        words = line.split()
        if len(words) > 7 and (words[1], words[2]) == ends:
            return int(words[7]) in (os.geteuid(), 0)
    return False


def _end(address: Any) -> str:
    """An end of a connection as /proc/net/tcp has it: words of the address in the machine's order of bytes."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, address[0])
    words = [packed[i : i + 4] for i in range(0, len(packed), 4)]
    return "".join(f"{int.from_bytes(w, sys.byteorder):08X}" for w in words) + f":{address[1]:04X}"
