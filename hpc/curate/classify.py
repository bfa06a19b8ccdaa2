"""Clips -> a layer of verdicts: a vision-language model says of what kinds each clip is, and lists say which stay.

With `allow`, a clip stays if one of its windows at least is of an allowed kind; with `block`, it goes if more than
`max_share` of its windows are of a blocked one. Without lists every clip stays, and the table says what it is.
(cosmos_curate 29f1358: pipelines/common/semantic_filter_postprocess.py.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from hpc.curate import judge, semantic
from hpc.curate.judge import Seen, Verdict
from hpc.curate.settings.judge import Classify, listed
from hpc.data.work import Made, Work
from hpc.models import vlm
from hpc.models.vlm import Engine

NOT_ALLOWED = "none of the allowed kinds"


def start(settings: Classify) -> Callable[[Work], Made]:
    """Raises as `vlm.engine` does."""
    return functools.partial(process, settings, vlm.engine(settings))


def process(settings: Classify, engine: Engine, work: Work) -> Made:
    labels = listed(settings.labels)
    decide = functools.partial(verdict, listed(settings.allow), listed(settings.block), settings.max_share)
    return judge.ask(settings, engine, prompt(labels), labels, decide, work)


def prompt(labels: Sequence[str]) -> str:
    kinds = "\n".join(f"{number}. {label}" for number, label in enumerate(labels, 1))
    return (
        "What kind of video is this? Say of each of these kinds whether the video is of it; it may be of several, or "
        f"of none:\n{kinds}\n\nAnswer with one JSON object and nothing else. Its keys are the names of the kinds, each "
        f"value is \"yes\" or \"no\":\n{semantic.form(labels)}"
    )


def verdict(allow: Sequence[str], block: Sequence[str], max_share: float, mine: list[Seen]) -> Verdict:
    """Of a clip of which one window at least was answered."""
    against = [one for one in mine if set(one.yes) & set(block)]
    share = len(against) / len(mine)
    if allow and not any(set(one.yes) & set(allow) for one in mine):
        return Verdict([NOT_ALLOWED], share)
    found = {name for one in against for name in one.yes} if share > max_share else set()
    return Verdict([label for label in block if label in found], share)
