"""The engine on a server: anything that speaks OpenAI's chat completions, such as vLLM, SGLang, `transformers serve` or
a provider.

Frames go as JPEGs in data URLs: as image_url parts after a line that says how far they are apart, or as one video_url
part of the type "video/jpeg", which vLLM takes as a video (0.33.0: multimodal/media/video.py): its first 32 frames, a
second apart, unless --media-io-kwargs says otherwise, as it does in `serve`.

A try that fails for a moment is made again, later each time. What is wrong with one request is its answer; what is
wrong with all is raised: no such key or model, or a server that refuses whatever it is asked. So is an outage that
outlasts the tries, as a ConnectionError: the shard is made again then, not published with holes.
"""

from __future__ import annotations

import base64
import email.utils
import functools
import http.client
import io
import json
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import PIL.Image

from hpc.models import hub, qwen_vl
from hpc.models.serve import Server
from hpc.models.vlm import Answer, Engine, Request, Then, ahead, failed, judged

FACTOR = 28  # pixels: the sides of frames are multiples, as Qwen2.5-VL's are
AGAIN = {408, 409, 425, 429, 500, 502, 503, 504, 529}
OF_ALL = {401, 402, 403, 404, 405, 429}
"""Statuses that other requests would get too."""
BROKEN = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)
LONGEST = 60.0  # seconds between two tries
ALIKE = 8  # answers: if a shard's first ones are all the same refusal, it is about what all requests have in common
REFUSED = re.compile(r"Refused: HTTP \d+")
COMMIT = re.compile(r"@[0-9a-f]{40}$")


MOST = 64 << 20
"""Bytes of an answer."""


class Stay(urllib.request.HTTPRedirectHandler):
    """Follows nothing: a server that sends elsewhere would have the key sent there."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Refused(RuntimeError):
    """The server says no to this request, and would again."""


class Outage(ConnectionError):
    """The server gave no answer, however often it was asked."""


def open_endpoint(settings: Any) -> Endpoint:
    """settings: hpc.data.vlm.Vlm. Raises RuntimeError without the key, or for a server that does
    not start, FileNotFoundError for a model that is not to be had."""
    remote = settings.endpoint or settings.serve
    key = ""
    if remote.key is not None and not (key := os.environ.get(remote.key, "")):
        raise RuntimeError(f"the environment has no {remote.key}, the endpoint's key: name it in the spec's `secrets`")
    server = None
    url, model = getattr(remote, "url", ""), COMMIT.sub("", settings.model)
    if settings.serve is not None:
        model = str(hub.folder(settings.model))
        shown = {"fps": f"{getattr(settings, 'fps', 2.0):g}"}  # a language model is shown none
        server = Server(settings.serve.command, model, settings.serve.start, shown)
        url = server.url
    made = Endpoint(url, model, key, settings, remote, server)
    made.model = settings.model
    if server is not None and "/snapshots/" in model:
        made.revision = model.rpartition("/")[2]
    return made


class Endpoint(Engine):
    def __init__(self, url: str, model: str, key: str, settings: Any, remote: Any, server: Server | None) -> None:
        """url: up to /v1. model: as the server calls it. settings, remote: of hpc.data.vlm."""
        super().__init__()
        self.url, self.name, self.key = url.rstrip("/") + "/chat/completions", model, key
        self.settings, self.remote, self.server = settings, remote, server
        self.limit = "max_tokens"
        """What the server calls it: newer models of OpenAI want max_completion_tokens."""
        self.works = False
        """Has it answered anything yet?"""
        # A server on this machine is not behind a proxy.
        proxies = urllib.request.ProxyHandler({}) if server is not None else urllib.request.ProxyHandler()
        self.open = urllib.request.build_opener(proxies, Stay).open

    def size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        return qwen_vl.frame_size(frames, height, width, FACTOR, self.settings.frame_tokens)

    def stream(
        self, requests: Iterable[Request], check: Callable[[], None] = lambda: None, then: Then | None = None
    ) -> Iterator[list[Answer]]:
        stop, todo = threading.Event(), queue.SimpleQueue[Any]()
        ask = functools.partial(self._both, then, stop)
        threads = [threading.Thread(target=work, args=(todo, ask), daemon=True) for _ in range(self.remote.concurrency)]
        for thread in threads:
            thread.start()
        waiting: deque[queue.SimpleQueue[Any]] = deque()
        first: list[Answer] = []

        def next_answers() -> list[Answer]:
            while True:
                check()
                try:
                    found = waiting[0].get(timeout=0.2)
                except queue.Empty:
                    continue
                waiting.popleft()
                if isinstance(found, BaseException):
                    raise found
                if len(first) < ALIKE:
                    first.append(found[0])
                    if len(first) == ALIKE:
                        self._look(first)
                return found

        began = since = time.monotonic()
        idle = 0.0
        feed = ahead(requests, self.remote.concurrency)
        try:
            for request in feed:
                idle += time.monotonic() - since
                waiting.append(queue.SimpleQueue())
                todo.put((request, waiting[-1]))
                while len(waiting) >= 2 * self.remote.concurrency or (waiting and not waiting[0].empty()):
                    yield next_answers()
                check()
                since = time.monotonic()
            while waiting:
                yield next_answers()
            if len(first) < ALIKE and not self.works:
                self._look(first)
        finally:
            stop.set()
            for _ in threads:
                todo.put(None)
            feed.close()
            self.spent["data_wait_seconds"] += idle
            self.spent["caption_seconds"] += time.monotonic() - began - idle

    def _look(self, first: Sequence[Answer]) -> None:
        """Raises RuntimeError if the first answers of a shard are all the same refusal."""
        kinds = {match[0] if (match := REFUSED.match(one.detail)) else "" for one in first}
        if len(kinds) == 1 and "" not in kinds:
            raise RuntimeError(f"{self.url} refuses all that {self.name} is asked ({len(first)} requests), so it is "
                               f"not about the clips: {first[0].detail}")  # fmt: skip
        self.works = self.works or bool(first)

    def _both(self, then: Then | None, stop: threading.Event, request: Request) -> list[Answer]:
        first = self.ask(request, stop)
        again = then(request, first) if then is not None else None
        return [first] if again is None else [first, self.ask(again, stop)]

    def ask(self, request: Request, stop: threading.Event | None = None) -> Answer:
        """Raises RuntimeError for what is wrong with the key or the model, Outage (a ConnectionError) for a server that
        is not there or not well. `stop` ends it between tries."""
        try:
            content = self.content(request)
        except (ValueError, TypeError) as error:
            return failed(error)
        messages = [{"role": "system", "content": request.system}] if request.system else []
        messages.append({"role": "user", "content": content})
        body = {"model": self.name, "messages": messages, "temperature": self.settings.temperature}
        try:
            return said(self._post(body, stop or threading.Event()))
        except Refused as error:
            return failed(error)

    def content(self, request: Request) -> Any:
        text = {"type": "text", "text": request.prompt}
        if request.frames is None:
            return request.prompt
        if request.frames.ndim != 4 or request.frames.shape[3] != 3 or not request.frames.size:
            raise ValueError(f"frames are uint8 [T, H, W, 3], not {request.frames.shape}")
        pictures = [jpeg(frame, self.remote.quality) for frame in request.frames]
        if self.remote.send == "video":
            return [{"type": "video_url", "video_url": {"url": f"data:video/jpeg;base64,{','.join(pictures)}"}}, text]
        apart = f"{len(pictures)} frames of one video, {1 / request.fps:.3g} s apart, in order:"
        urls = [{"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{one}"}} for one in pictures]
        return [{"type": "text", "text": apart}, *urls, text]

    def _post(self, body: dict[str, Any], stop: threading.Event) -> Any:
        """The server's answer to one question, with as many tries as the settings say."""
        headers = {"Content-Type": "application/json", "User-Agent": "hpc"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        words, number = "", 0
        while not stop.is_set():
            limit = self.limit  # of this try: another thread may change it meanwhile
            data = json.dumps(body | {limit: self.settings.max_tokens}).encode()
            pause, last = min(2.0**number, LONGEST), number == self.remote.retries
            try:
                sent = urllib.request.Request(self.url, data, headers, method="POST")
                with self.open(sent, timeout=float(self.remote.timeout)) as response:
                    if len(answer := response.read(MOST + 1)) > MOST:
                        raise Refused(f"an answer of more than {MOST:,} bytes")
                    return json.loads(answer)
            except urllib.error.HTTPError as error:
                words = f"HTTP {error.code}: {error.read(2000).decode(errors='replace').strip() or error.reason}"
                words = words.replace(self.key, "***") if self.key else words  # some repeat it in their errors
                if error.code == 400 and limit == "max_tokens" and "max_completion_tokens" in words:
                    self.limit = "max_completion_tokens"
                    continue  # which is no further try
                if error.code in OF_ALL and (last or error.code not in AGAIN):
                    raise RuntimeError(f"{self.url} answers for {self.name}: {words}") from None
                if error.code not in AGAIN:
                    raise Refused(words) from None
                if last:
                    raise Outage(f"{self.url} does not answer for {self.name}: {words}") from None
                pause = max(pause, asked_to_wait(error.headers.get("Retry-After")))
            except (*BROKEN, ValueError, RecursionError) as error:  # the last: JSON that is nested too deep
                words = f"{type(error).__name__}: {error}"
                if self.server is not None:
                    self.server.check()  # if it has died, its own words say more
                if last:
                    raise Outage(f"{self.url} does not answer for {self.name}: {words}") from None
            stop.wait(min(pause, LONGEST))
            number += 1
        raise RuntimeError(f"{self.url}: stopped: {words}")


def work(todo: queue.SimpleQueue[Any], ask: Callable[[Request], list[Answer]]) -> None:
    """A thread's work: questions, until there is a None."""
    for request, place in iter(todo.get, None):
        try:
            place.put(ask(request))
        except BaseException as error:
            place.put(error)


def jpeg(frame: Any, quality: int) -> str:
    """uint8 [H, W, 3] -> base64."""
    out = io.BytesIO()
    PIL.Image.fromarray(frame).save(out, "jpeg", quality=quality)
    return base64.b64encode(out.getvalue()).decode()


def asked_to_wait(header: str | None) -> float:
    """Seconds that a Retry-After asks for: a number, or a date."""
    if not header:
        return 0.0
    try:
        return float(header)
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


def said(response: Any) -> Answer:
    """What a chat completion says."""
    try:
        choice = response["choices"][0]
        message, reason = choice["message"], choice.get("finish_reason")
        usage = response.get("usage") or {}
        tokens = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
        refusal, content = message.get("refusal"), message.get("content")
    except (KeyError, IndexError, TypeError, AttributeError, ValueError):
        return Answer("", "error", detail=f"not a chat completion: {json.dumps(response)[:500]}")
    if isinstance(content, list):  # of parts
        content = "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    if refusal or reason == "content_filter":
        return Answer(str(refusal or content or "").strip(), "refused", *tokens, f"finish_reason {reason}")
    if not isinstance(content, str):
        return Answer("", "error", *tokens, f"the server sent no text, finish_reason {reason}")
    return judged(content, reason != "length", *tokens)
