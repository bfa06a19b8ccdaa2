"""Models that answer a prompt about some frames, or a prompt alone: what they are asked, and what comes back.

    ask = engine(settings)                                       # hpc.data.vlm.Engine
    [answer] = ask([Request(frames, 2.0, "Describe the video.")])
    for [answer] in ask.stream(requests, work.check): ...        # requests as they come, answers in their order

Three engines have this shape: hpc.models.vlm_local (transformers, on this machine's GPU), hpc.models.endpoint (anything
that speaks OpenAI's chat completions, also a server that it starts beside itself) and `Fixed`, one text for all.
"""

from __future__ import annotations

import abc
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

Item = TypeVar("Item")

REFUSAL = re.compile(
    r"\W*(i'm (very |really |so )?(sorry|afraid)|i am (very |really |so )?(sorry|afraid)|sorry,|my apologies"
    r"|i apologi[sz]e|i cannot|i can't|i can not|i won't|i will not|i'm unable|i am unable|i'm not able|i am not able"
    r"|unfortunately,? i|as an ai\b|as a language model|抱歉|很抱歉|对不起|我无法|无法提供)",
    re.IGNORECASE,
)
"""How models begin when they refuse. They have been seen to use curly apostrophes, which are made straight first."""


class Request(NamedTuple):
    """A question."""

    frames: npt.NDArray[np.uint8] | None
    """[T, H, W, 3], RGB, in the order in which they are shown; None to ask about nothing but the prompt."""
    fps: float
    """Of the frames, as given here: 2.0 says that they are half a second apart."""
    prompt: str
    system: str = ""
    """The system message; "": the model's own, if its chat template has one."""


class Answer(NamedTuple):
    text: str
    """Without white space around it; "" where there is none."""
    status: str
    """"success", "truncated" (max_tokens ended it), "refused", or "error" (no text)."""
    prompt_tokens: int = 0
    output_tokens: int = 0
    detail: str = ""
    """Why there is an error, for a person."""


Then = Callable[[Request, Answer], Request | None]
"""What to ask after an answer, with the same frames; None for nothing."""


class Engine(abc.ABC):
    """ask(requests) -> answers in their order. One request that fails is an answer with status "error"."""

    model: str
    """As it was named."""
    revision: str = ""
    """The hub's commit, where it is known."""
    sees = True
    """Does it take frames?"""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {"data_wait_seconds": 0.0, "caption_seconds": 0.0}
        """Seconds so far in which the model waited for requests, and in which it worked."""

    def __call__(self, requests: Sequence[Request]) -> list[Answer]:
        return [answer for [answer] in self.stream(requests)]

    @abc.abstractmethod
    def stream(
        self, requests: Iterable[Request], check: Callable[[], None] = lambda: None, then: Then | None = None
    ) -> Iterator[list[Answer]]:
        """[answer] of each request, in their order; [answer, answer] where `then` asked again.

        Requests are taken from another thread, a few batches ahead. check() is called often and may raise.
        """

    def size(self, frames: int, height: int, width: int) -> tuple[int, int]:
        """(height, width) in which the model looks at so many frames of this size: others are resized."""
        return height, width


class Fixed(Engine):
    """The same answer to everything."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.model, self.text = "", text

    def stream(
        self, requests: Iterable[Request], check: Callable[[], None] = lambda: None, then: Then | None = None
    ) -> Iterator[list[Answer]]:
        for _ in requests:
            check()
            yield [Answer(self.text, "success")]


def engine(settings: Any) -> Engine:
    """Open what the settings (hpc.data.vlm.Engine) name. Raises ModuleNotFoundError without transformers,
    FileNotFoundError where a model is not to be had, RuntimeError for a server that does not start."""
    if settings.endpoint is not None or settings.serve is not None:
        from hpc.models import endpoint

        return endpoint.open_endpoint(settings)
    from hpc.models import vlm_local

    return vlm_local.open_local(settings)


def judged(text: str, ended: bool, prompt_tokens: int, output_tokens: int) -> Answer:
    """The answer of a text. ended: by the model itself, not by the limit of tokens."""
    text = text.strip()
    if not text:
        limit = "" if ended else ", and reached the limit of tokens"
        return Answer("", "error", prompt_tokens, output_tokens, f"the model said nothing{limit}")
    refused = REFUSAL.match(text.replace("\u2019", "'"))
    status = "refused" if refused else "success" if ended else "truncated"
    return Answer(text, status, prompt_tokens, output_tokens)


def failed(error: BaseException) -> Answer:
    words = str(error).strip() or "no words"
    return Answer("", "error", detail=f"{type(error).__name__}: {words}"[:2000])


def ahead(items: Iterable[Item], depth: int) -> Iterator[Item]:
    """The items, taken from their iterator by a thread, no more than `depth` before they are asked for. What the
    iterator raises is raised here. Ending early ends the thread with the item that it is at."""
    waiting: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(last: bool, what: Any) -> None:
        while not stop.is_set():
            try:
                return waiting.put((last, what), timeout=0.1)
            except queue.Full:
                continue

    def take() -> None:
        iterator = iter(items)
        try:
            for item in iterator:
                put(False, item)
                if stop.is_set():
                    break
            put(True, None)
        except BaseException as error:
            put(True, error)
        finally:
            getattr(iterator, "close", lambda: None)()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    try:
        while True:
            last, what = waiting.get()
            if last and what is not None:
                raise what
            if last:
                return
            yield what
    finally:
        stop.set()
        thread.join()
