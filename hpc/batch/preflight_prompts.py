"""What is wrong with the files of prompts of a spec, every line of it at once, before anything is started.

    rows = examine(spec, entries)           # of `hpc check`; entries: the spec's inputs, as they were found
    refuse(spec)                            # of `hpc submit` and `hpc run`: raises ValueError

A file that `prompts` names must be right as a whole: who mistypes a key has done so in every line. Of files that are
inputs, of which there may be thousands, what is wrong is named and the rest is made. A file that is not there yet is
looked at when its stage begins: what is wrong in it then is a video that could not be made, and the others are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from hpc.batch.doctor import Row
from hpc.batch.spec import Spec, Stage
from hpc.data import storage
from hpc.data.storage import Entry
from hpc.data.work import BadInput

MOST = 200
"""Files of inputs that are looked at."""
SUFFIXES = (".json", ".jsonl")


def examine(spec: Spec, entries: Iterable[Entry]) -> Iterator[Row]:
    """A row for each stage with a file of prompts, and for each file of inputs that is wrong."""
    files = [one.uri for one in entries if one.uri.lower().endswith(SUFFIXES)]
    for stage in spec.stages.values():
        if not hasattr(stage.settings, "wordless"):
            continue
        place = getattr(stage.settings, "place", None)
        for uri in [place] if place else files[:MOST] if not stage.needs else ():
            yield from _of_file(stage, uri, named=place is not None)


def refuse(spec: Spec) -> None:
    """Raises ValueError with all that is wrong in the files that `prompts` names, as far as they are there."""
    rows = [row for row in examine(spec, ()) if row.verdict == "bad"]
    if rows:
        raise ValueError("\n".join(f"{row.what}: {row.found}\n  -> {row.next}" for row in rows))


def _of_file(stage: Stage, uri: str, named: bool) -> Iterator[Row]:
    what = f"{stage.name}: prompts"
    try:
        from hpc.generate import prompts
    except ModuleNotFoundError as error:
        yield Row(what, "unknown", f"{uri}: {error.name} is not installed here")
        return
    look = "hpc/generate/prompts.py says what such files look like"
    try:
        there = storage.stat(uri)
        if there is None:
            yield Row(what, "warn", f"there is no {uri} yet: it must be there when this stage begins")
            return
        found = prompts.requests(storage.read(uri), uri, there.etag, stage.settings.wordless)
    except BadInput as error:
        yield Row(what, "bad" if named else "warn", str(error), look)
        return
    except (OSError, storage.StorageError) as error:
        yield Row(what, "unknown", f"{uri}: {error}")
        return
    wrong = [one for one in found if one.why is not None]
    if not found:
        yield Row(what, "bad" if named else "warn", f"{uri} has not one prompt in it", look)
    elif wrong:
        words = prompts.refusals(uri, found)
        yield Row(what, "bad" if named or len(wrong) == len(found) else "warn", words,
                  f"mend these lines; {look}" if named else f"the others are made; {look}")  # fmt: skip
    elif named:
        yield Row(what, "ok", f"{len(found):,} in {uri}")
