"""A server that a stage starts beside itself, such as vLLM, and ends with itself."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Sequence
from pathlib import Path

PATIENCE = 20.0  # seconds from SIGTERM to SIGKILL
READY = ("/health", "/v1/models")
TAIL = 30  # lines of its log that are told
DIES_WITH_ITS_PARENT = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); os.execvp(sys.argv[1], sys.argv[1:])"
)


class Server:
    """Starts it, and returns when it answers: /health or /v1/models, with 200.

    command: its words, with {model} and {port}. It ends with this process, however that ends. Raises RuntimeError, with
    the end of its log, for one that cannot start, ends before it answers, or does not answer for `patience` seconds.
    """

    def __init__(self, command: Sequence[str], model: str, patience: float) -> None:
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.command = [word.replace("{model}", model).replace("{port}", str(self.port)) for word in command]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        handle, name = tempfile.mkstemp(prefix="hpc-server-", suffix=".log")
        self.log = Path(name)
        with os.fdopen(handle, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", DIES_WITH_ITS_PARENT, *self.command], stdin=subprocess.DEVNULL, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip
        atexit.register(self.stop)
        try:
            self._wait(patience)
        except BaseException:
            self.stop()
            raise

    def _wait(self, patience: float) -> None:
        deadline = time.monotonic() + patience
        ask = urllib.request.build_opener(urllib.request.ProxyHandler({})).open
        while True:
            self.check()
            for path in READY:  # one of the two: `transformers serve` fails at its models without a cache of them
                with contextlib.suppress(OSError), ask(f"http://127.0.0.1:{self.port}{path}", timeout=5) as response:
                    if response.status == 200:
                        return
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self._told()} does not answer after {patience:.0f} s")
            time.sleep(0.2)

    def check(self) -> None:
        """Raises RuntimeError if it has ended."""
        if (status := self.process.poll()) is not None:
            raise RuntimeError(f"{self._told()} ended with status {status}")

    def _told(self) -> str:
        with contextlib.suppress(OSError), self.log.open(errors="replace") as file:
            lines = "".join(deque(file, TAIL)).rstrip()
            return f"{lines}\nthe server {' '.join(self.command)}"
        return f"the server {' '.join(self.command)}"

    def stop(self) -> None:
        """End it and what it started, and forget its log. May be called again."""
        atexit.unregister(self.stop)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pass
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.unlink(missing_ok=True)
