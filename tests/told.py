"""A server that speaks chat completions, and answers as told about the pictures that it is shown; films of plain grey.

    with told.server({20: "yes", 200: "no"}) as there:      # grey of the first frame -> what it says
        ask(there.url)
"""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image


class Server(http.server.ThreadingHTTPServer):
    def __init__(self, answers: dict[int, str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.prompts = answers, set[str]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        parts = asked["messages"][-1]["content"]
        pictures = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        first = PIL.Image.open(io.BytesIO(base64.b64decode(pictures[0].partition(",")[2])))
        grey = float(np.asarray(first.convert("L")).mean())
        self.server.prompts.add(parts[-1]["text"])
        nearest = min(self.server.answers, key=lambda known: abs(known - grey))
        choice = {"message": {"role": "assistant", "content": self.server.answers[nearest]}, "finish_reason": "stop"}
        body = json.dumps({"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: Any) -> None:
        pass


@contextlib.contextmanager
def server(answers: dict[int, str]) -> Iterator[Server]:
    with Server(answers) as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield made
        finally:
            made.shutdown()
            thread.join()


def film(path: Path, greys: list[int]) -> bytes:
    with contextlib.closing(av.open(str(path), "w")) as out:
        stream = out.add_stream("libx264", 8, options={"preset": "ultrafast", "crf": "1"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for grey in [grey for grey in greys for _ in range(16)] or [0, 0, 0]:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 96, 3), grey, np.uint8), "rgb24")))
        out.mux(stream.encode(None))
    return path.read_bytes()
