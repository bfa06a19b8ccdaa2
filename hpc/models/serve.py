"""A server that a stage starts beside itself, such as vLLM, and ends with itself.

What is known of vLLM is of its version 0.33.0 (tests/golden/vllm.json has its flags): it serves a model under the path
that it was given, listens on all addresses unless --host says otherwise, begins to listen when the model is there, and
answers at /health then. Nothing else has to be allowed: 999 pictures a prompt are (--limit-mm-per-prompt), and data
URLs need no --allowed-local-media-path.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from typing import IO

PATIENCE = 20.0  # seconds from SIGTERM to SIGKILL
READY = ("/health", "/v1/models")
KEPT = 1 << 16  # bytes of what it says
TAIL = 30  # lines of that which are told
TAKEN = re.compile(rb"address already in use|errno 98\b", re.IGNORECASE)
DIES_WITH_ITS_PARENT = (
    "import ctypes, os, signal, sys; ctypes.CDLL(None).prctl(1, signal.SIGTERM); os.execvp(sys.argv[1], sys.argv[1:])"
)


def claimed(port: int) -> socket.socket | None:
    """Keeps a port from other stages on this node until it is closed: a server may take minutes to listen, and so long
    the port is free. None for one that has been claimed. It is a name that ends with the process, no file."""
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0hpc-port-{port}")
    except OSError:
        claim.close()
        return None
    return claim


def port_of_its_own() -> tuple[int, socket.socket]:
    while True:
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            if claim := claimed(port := free.getsockname()[1]):
                return port, claim


class Server:
    """Starts it, and returns when it answers: /health or /v1/models, with 200.

    command: its words, with {model}, {port}, and what `words` has for others. It ends with this process, however that
    ends. Raises RuntimeError, with the last of what it said, for one that cannot start, ends before it answers, or does
    not answer for `patience` seconds. One that finds its port taken is started again, with another.
    """

    def __init__(
        self, command: Sequence[str], model: str, patience: float, words: Mapping[str, str] | None = None
    ) -> None:
        deadline = time.monotonic() + patience
        for last in (False, False, True):
            self._start(command, {"model": model, **(words or {})})
            try:
                return self._wait(deadline, patience)
            except RuntimeError:
                taken = self.process.poll() is not None and TAKEN.search(self.said)
                self.stop()
                if last or not taken:
                    raise
            except BaseException:
                self.stop()
                raise

    def _start(self, command: Sequence[str], words: Mapping[str, str]) -> None:
        self.port, self.claim = port_of_its_own()
        known = {**words, "port": str(self.port)}
        place = re.compile("{(" + "|".join(known) + ")}")  # other braces are those of JSON
        self.command = [place.sub(lambda match: known[match[1]], word) for word in command]
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.said = b""
        """The last of what it wrote: all of it would fill a disk."""
        self.process = subprocess.Popen(
            [sys.executable, "-c", DIES_WITH_ITS_PARENT, *self.command], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        self.listener = threading.Thread(target=self._listen, args=(self.process.stdout,), daemon=True)
        self.listener.start()
        atexit.register(self.stop)

    def _listen(self, pipe: IO[bytes]) -> None:
        with pipe:
            while words := os.read(pipe.fileno(), 1 << 16):
                self.said = (self.said + words)[-KEPT:]

    def _wait(self, deadline: float, patience: float) -> None:
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
        if self.process.poll() is not None:
            self.listener.join(5)  # not for ever: a process that it left behind may have the pipe
        lines = self.said.decode(errors="replace").rstrip().splitlines()[-TAIL:]
        return "\n".join([*lines, f"the server {' '.join(self.command)}"])

    def stop(self) -> None:
        """End it and what it started. May be called again."""
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
        self.claim.close()
