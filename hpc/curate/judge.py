"""Questions of yes or no about the windows of a shard's clips, put to a vision-language model.

What curate.semantic and curate.classify have in common: a stage adds its prompt, and what it makes of the answers.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from hpc.curate.settings.judge import Classify, Semantic, listed
from hpc.curate.show import Window, plan, shown
from hpc.data import layers, upstream
from hpc.data.upstream import KEEP
from hpc.data.work import Made, Work
from hpc.models.answers import answers
from hpc.models.vlm import Answer, Engine, Request

UNPARSABLE = "unparsable"
FOUND = {"curate.semantic": "criteria", "curate.classify": "labels"}
"""Kind -> the column with what was answered with yes."""
SCHEMA = pa.schema(
    [
        ("uuid", pa.string()),
        ("verdict", pa.string()),  # "keep", "semantic" or "classify"
        ("reasons", pa.list_(pa.string())),  # what speaks against the clip, whatever the verdict
        ("found", pa.list_(pa.string())),  # "criteria", "labels": answered with yes for one window at least
        ("share", pa.float32()),  # of the windows, that have something against them
        ("windows", pa.int32()),
        ("unparsed", pa.int32()),  # windows whose answer says nothing
        ("seen", pa.list_(pa.struct([  # one for each window
            ("start_frame", pa.int32()),
            ("end_frame", pa.int32()),  # inclusive; both counted from the clip's first
            ("status", pa.string()),  # "parsed", "unparsed", "refused", "error"
            ("yes", pa.list_(pa.string())),
            ("answer", pa.string()),  # as the model gave it
        ]))),
    ]
)  # fmt: skip


class Seen(NamedTuple):
    """What was answered about a window."""

    window: Window
    answer: Answer
    said: dict[str, bool] | None
    """Name -> yes? None if nothing can be made of the answer."""

    @property
    def yes(self) -> list[str]:
        return [name for name, yes in (self.said or {}).items() if yes]


class Verdict(NamedTuple):
    reasons: list[str]
    """Against the clip; none: it stays."""
    share: float
    """Of the windows, that have something against them."""


def ask(
    settings: Semantic | Classify,
    engine: Engine,
    prompt: str,
    names: Sequence[str],
    decide: Callable[[list[Seen]], Verdict],
    work: Work,
) -> Made:
    """<shard>.parquet with a row for each clip. A clip of which nothing can be told (no window, no picture, no answer
    that can be understood) is judged by `settings.unparsable`, the others by `decide`."""
    clips = upstream.clips(work, ("num_frames", "fps", "width", "height"))
    planned = plan(clips, settings.window)
    asked: deque[Window] = deque()
    broken: dict[str, Answer] = {}

    def requests() -> Iterator[Request]:
        for window, frames, fps in shown(engine, planned, settings.fps, broken, work):
            asked.append(window)
            yield Request(frames, fps, prompt)

    spent = dict(engine.spent)
    seen: dict[str, list[Seen]] = {clip.uuid: [] for clip in clips}
    for done, [answer] in enumerate(engine.stream(requests(), work.check), 1):
        window = asked.popleft()
        seen[window.clip.uuid].append(Seen(window, answer, answers(answer.text, names)))
        work.progress(done / len(planned), f"{done} of {len(planned)} windows")
    for window in planned:
        if window.clip.uuid in broken:
            seen[window.clip.uuid].append(Seen(window, broken[window.clip.uuid], None))
    rows = []
    for uuid, mine in seen.items():
        told = any(one.said for one in mine)
        verdict = decide(mine) if told else Verdict([UNPARSABLE], 0.0)
        drop = bool(verdict.reasons) and settings.mode == "enable" and (told or settings.unparsable == "drop")
        rows.append(row(settings.KIND, uuid, mine, verdict, drop))
    path = work.scratch / f"{work.shard}.parquet"
    meta = {"stage": settings.KIND, "fingerprint": work.fingerprint, "model": engine.model, "revision": engine.revision,
            "prompt": prompt, "names": list(names), "max_share": settings.max_share, "window": settings.window,
            "fps": settings.fps}  # fmt: skip
    if isinstance(settings, Classify):
        meta |= {"allow": list(listed(settings.allow)), "block": list(listed(settings.block))}
    schema = SCHEMA.set(3, SCHEMA.field("found").with_name(FOUND[settings.KIND]))
    layers.write_table(path, rows, meta, schema)
    tokens = [one.answer for mine in seen.values() for one in mine]
    return Made([path], counted(rows) | {
        "prompt_tokens": sum(one.prompt_tokens for one in tokens),
        "output_tokens": sum(one.output_tokens for one in tokens),
        **{name: engine.spent[name] - spent[name] for name in spent},
    })  # fmt: skip


def row(kind: str, uuid: str, mine: list[Seen], verdict: Verdict, drop: bool) -> dict[str, Any]:
    return {
        "uuid": uuid, "verdict": kind.removeprefix("curate.") if drop else KEEP, "reasons": verdict.reasons,
        "share": verdict.share, FOUND[kind]: list(dict.fromkeys(name for one in mine for name in one.yes)),
        "windows": len(mine), "unparsed": sum(one.said is None for one in mine),
        "seen": [
            {"start_frame": one.window.first, "end_frame": one.window.last, "status": status(one), "yes": one.yes,
             "answer": one.answer.text or one.answer.detail}
            for one in mine
        ],
    }  # fmt: skip


def status(one: Seen) -> str:
    if one.said is not None:
        return "parsed"
    return one.answer.status if one.answer.status in ("error", "refused") else "unparsed"


def counted(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """For the report: clips that stay, those dropped by the first of their reasons, and what was not understood."""
    gone = [one for one in rows if one["verdict"] != KEEP]
    why = Counter(one["reasons"][0] for one in gone)
    states = Counter(seen["status"] for one in rows for seen in one["seen"])
    return {
        "clips": len(rows) - len(gone), "dropped": len(gone), **{f"dropped_{word}": n for word, n in why.items()},
        "windows": sum(one["windows"] for one in rows), "unparsed_windows": states["unparsed"],
        "refused": states["refused"], "errors": states["error"],
        "clips_not_judged": sum(one["windows"] == one["unparsed"] for one in rows),
    }  # fmt: skip
