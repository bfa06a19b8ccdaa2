"""Captions of the kept clips of a shard: one for each window of 256 frames, from two frames a second.

Clips are read and decoded by threads ahead of the model, which takes windows of several clips in one batch. A window
that cannot be captioned has a row that says so; a clip too short for a window is counted.
"""

from __future__ import annotations

import functools
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from hpc.curate import prompts
from hpc.curate.settings import Caption
from hpc.curate.show import Window, plan, shown
from hpc.curate.windows import windows
from hpc.data import layers, upstream
from hpc.data.work import Made, Work
from hpc.models import vlm
from hpc.models.vlm import Answer, Engine, Request

SCHEMA = pa.schema(
    [
        ("uuid", pa.string()),
        ("window", pa.int32()),  # of the clip, from 0
        ("start_frame", pa.int32()),
        ("end_frame", pa.int32()),  # inclusive; both counted from the clip's first
        ("caption", pa.string()),
        ("status", pa.string()),  # "success", "truncated", "refused", "error"
        ("detail", pa.string()),
        ("prompt_tokens", pa.int32()),  # of all questions about the frames
        ("output_tokens", pa.int32()),
        ("enhanced", pa.string()),  # null: not asked for, or nothing to enhance
        ("enhanced_status", pa.string()),
    ]
)
TEXT = ("success", "truncated")
"""Statuses of captions that are one."""


def start(settings: Caption) -> Callable[[Work], Made]:
    """Raises as `vlm.engine` does, and RuntimeError for a model without eyes."""
    engine = vlm.Fixed(settings.text) if settings.text is not None else vlm.engine(settings)
    if not engine.sees:
        raise RuntimeError(f"{settings.model} is a language model, which takes no frames: name one that sees")
    enhancer = vlm.engine(settings.enhance) if settings.enhance is not None else None
    return functools.partial(process, settings, engine, enhancer)


def process(settings: Caption, engine: Engine, enhancer: Engine | None, work: Work) -> Made:
    clips = upstream.clips(work, ("num_frames", "fps", "width", "height"))
    planned = plan(clips, settings.window)
    asked: deque[Window] = deque()
    broken: dict[str, Answer] = {}
    second = settings.second and prompts.SECOND.get(settings.second, settings.second)

    def requests() -> Iterator[Request]:
        prompt = prompts.CAPTION.get(settings.prompt, settings.prompt)
        if settings.text is not None:  # no model, so no pictures
            asked.extend(planned)
            yield from [Request(None, 0.0, prompt)] * len(planned)
            return
        for window, frames, fps in shown(engine, planned, settings.fps, broken, work):
            asked.append(window)
            yield Request(frames, fps, prompt, settings.system)

    def again(request: Request, answer: Answer) -> Request | None:
        return request._replace(prompt=prompts.second(second, answer.text)) if answer.status in TEXT else None

    spent = dict(engine.spent)
    found: dict[tuple[str, int], list[Answer]] = {}
    for done, answers in enumerate(engine.stream(requests(), work.check, again if second else None), 1):
        window = asked.popleft()
        found[window.clip.uuid, window.number] = answers
        work.progress(done / len(planned), f"{done} of {len(planned)} windows")
    rows = [row(one, *found.get((one.clip.uuid, one.number)) or [broken[one.clip.uuid]]) for one in planned]
    counts = counted(rows) | {name: engine.spent[name] - spent[name] for name in spent}
    if enhancer is not None:
        counts |= enhance(settings, enhancer, rows, work)
    short = [clip.uuid for clip in clips if not windows(clip.row["num_frames"], settings.window)]
    path = work.scratch / f"{work.shard}.parquet"
    layers.write_table(path, rows, meta(settings, engine, enhancer, work, short), SCHEMA)
    return Made([path], {"clips": len(clips), "clips_without_window": len(short), **counts})


def row(window: Window, first: Answer, second: Answer | None = None) -> dict[str, Any]:
    """A second answer that is no caption leaves the first one standing, and says so."""
    best = second if second is not None and second.status in TEXT else first
    detail = best.detail
    if second is not None and best is first:
        detail = f"second question: {second.status}: {second.detail or second.text}"
    tokens = (first, second) if second is not None else (first,)
    return {
        "uuid": window.clip.uuid, "window": window.number, "start_frame": window.first, "end_frame": window.last,
        "caption": best.text, "status": best.status, "detail": detail,
        "prompt_tokens": sum(one.prompt_tokens for one in tokens),
        "output_tokens": sum(one.output_tokens for one in tokens),
    }  # fmt: skip


def enhance(settings: Caption, enhancer: Engine, rows: list[dict[str, Any]], work: Work) -> dict[str, float]:
    """Fills in `enhanced` where there is a caption; the counts of it."""
    assert settings.enhance is not None
    words = prompts.ENHANCE.get(settings.enhance.prompt, settings.enhance.prompt)
    told = [one for one in rows if one["status"] in TEXT]
    spent = enhancer.spent["caption_seconds"]
    counts = dict.fromkeys(("enhance_prompt_tokens", "enhance_output_tokens", "enhance_failures"), 0)
    for one, [answer] in zip(
        told, enhancer.stream((Request(None, 0.0, one["caption"], words) for one in told), work.check), strict=True
    ):
        one["enhanced"], one["enhanced_status"] = answer.text, answer.status
        counts["enhance_prompt_tokens"] += answer.prompt_tokens
        counts["enhance_output_tokens"] += answer.output_tokens
        counts["enhance_failures"] += answer.status not in TEXT
    return {**counts, "enhance_seconds": enhancer.spent["caption_seconds"] - spent}


def counted(rows: list[dict[str, Any]]) -> dict[str, float]:
    states = Counter(one["status"] for one in rows)
    return {
        "windows": len(rows), "truncated": states["truncated"], "refused": states["refused"], "errors": states["error"],
        "prompt_tokens": sum(one["prompt_tokens"] for one in rows),
        "output_tokens": sum(one["output_tokens"] for one in rows),
    }  # fmt: skip


def meta(settings: Caption, engine: Engine, enhancer: Engine | None, work: Work, short: list[str]) -> dict[str, Any]:
    enhancing = settings.enhance
    return {
        "stage": settings.KIND,
        "fingerprint": work.fingerprint,
        "model": engine.model,  # "" for a fixed text
        "revision": engine.revision,
        "variant": settings.prompt if settings.prompt in prompts.CAPTION else "",
        "prompt": "" if settings.text is not None else prompts.CAPTION.get(settings.prompt, settings.prompt),
        "system": settings.system,
        "second": settings.second and prompts.SECOND.get(settings.second, settings.second),
        "enhance": enhancer and enhancing and {
            "model": enhancer.model, "revision": enhancer.revision,
            "prompt": prompts.ENHANCE.get(enhancing.prompt, enhancing.prompt),
        },
        "window": settings.window,
        "fps": settings.fps,
        "max_tokens": settings.max_tokens,
        "temperature": settings.temperature,
        "without_window": short,
    }  # fmt: skip
