"""Clips -> a layer of verdicts: a vision-language model says of each window whether something is wrong with it.

A clip is dropped if more than `max_share` of its windows have something against them (cosmos_curate 29f1358:
pipelines/common/semantic_filter_postprocess.py: windows whose answer says nothing count as windows, and what an answer
leaves out is a no). Answers, and what they were taken for, stay in the table.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence

from hpc.curate import judge
from hpc.curate.judge import Seen, Verdict
from hpc.curate.settings.judge import Semantic
from hpc.data.work import Made, Work
from hpc.models import vlm
from hpc.models.vlm import Engine


def start(settings: Semantic) -> Callable[[Work], Made]:
    """Raises as `vlm.engine` does."""
    return functools.partial(process, settings, vlm.engine(settings))


def process(settings: Semantic, engine: Engine, work: Work) -> Made:
    questions = settings.questions()
    decide = functools.partial(verdict, settings.max_share)
    return judge.ask(settings, engine, prompt(questions), list(questions), decide, work)


def prompt(questions: Mapping[str, str]) -> str:
    asked = "\n".join(f"{number}. {name}: {question}" for number, (name, question) in enumerate(questions.items(), 1))
    return (
        "Look at the whole video, from its first frame to its last, and answer each of these questions about it with "
        f"yes or no:\n{asked}\n\nAnswer with one JSON object and nothing else. Its keys are the names in front of the "
        f"questions, each value is \"yes\" or \"no\":\n{form(questions)}"
    )


def form(names: Mapping[str, str] | Sequence[str]) -> str:
    """The answer that is asked for, as JSON with the values left open."""
    return "{" + ", ".join(f'{json.dumps(name, ensure_ascii=False)}: "..."' for name in names) + "}"


def verdict(max_share: float, mine: list[Seen]) -> Verdict:
    """Of a clip of which one window at least was answered."""
    against = [one for one in mine if one.yes]
    share = len(against) / len(mine)
    return Verdict(list(dict.fromkeys(name for one in against for name in one.yes)) if share > max_share else [], share)
