"""`hpc dashboard FOLDER`: a web page of all runs under a folder, live while they go.

    hpc dashboard runs                          # http://127.0.0.1:8765/, for processes of the same user alone
    ssh -L 8765:127.0.0.1:8765 login            # ...and then http://127.0.0.1:8765/ on one's own machine
    hpc dashboard runs --host 0.0.0.0           # behind a random token, which is in the address that it prints
    hpc dashboard runs --export page/           # as it is now, as files (hpc.batch.dashboard_export)

What there is to see, hpc.batch.dashboard knows; this is who may ask for it, and how it is sent.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import http.cookies
import json
import os
import re
import secrets
import socket
import sys
import threading
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, BinaryIO

from hpc.batch import exporter, masking
from hpc.batch.dashboard import Dashboard, Far, Refused, answer
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
GZIP_ABOVE = 2000
BLOCK = 1 << 20


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
