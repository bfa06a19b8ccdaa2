"""Data sets as their readers see them: each reader's own rules, applied to a folder or an s3:// prefix.

    report = validate.validate("out/shard@v1", "predict2.5-webdataset")

One file here for each reader, or family of them, with the commit that its rules come from. A rule has a word; a data
set breaks it in a file, and the problem says which, what was found, what the reader would do, and what to do about it.
Nothing of a data set is run: pickles are read by hpc.data.pickles, videos by their index. tests/consumers.py holds the
rules against the readers' own code.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import msgspec

from hpc.data import layers, storage, video

T = TypeVar("T")
KEPT = 1000
"""Problems of one rule that are kept; the others are counted."""


class Problem(msgspec.Struct, frozen=True):
    file: str
    """Relative to the data set; of something in a tar with "#" and its name."""
    rule: str
    what: str
    """What was found, and what becomes of it."""
    do: str
    error: bool = True
    """False: the reader takes it, but probably not as meant."""


class Settings(msgspec.Struct, frozen=True):
    num_frames: int = 93
    """That the training takes of a video."""
    sample: int | None = None
    """Look at so many entries, at most; null: at all."""


class Report(msgspec.Struct):
    """What was found in a data set."""

    consumer: str
    folder: str
    settings: Settings
    files: int = 0
    entries: int = 0
    """Videos, or keys of tars, that were looked at."""
    sampled: dict[str, tuple[int, int]] = {}
    """Of a data set of which a sample was looked at: what -> (how many, of how many). Rules about names are applied to
    all files, those about contents to the sample."""
    rules: Counter[str] = msgspec.field(default_factory=Counter)
    """How often each was broken."""
    errors: int = 0
    warnings: int = 0
    problems: list[Problem] = []

    def pick(self, what: str, items: Sequence[T], most: int | None = None) -> list[T]:
        """The items, or a sample of them: `most`, or as many as the settings say, one from each of so many equal
        stretches. The same for the same number of items."""
        if self.settings.sample is None:
            return list(items)
        count = len(items)
        some, chance = min(self.settings.sample if most is None else most, count), random.Random(count)
        looked, there = self.sampled.get(what, (0, 0))
        self.sampled[what] = looked + some, there + count
        return [items[chance.randrange(i * count // some, (i + 1) * count // some)] for i in range(some)]

    def add(self, file: str, rule: str, what: str, do: str, error: bool = True) -> None:
        self.rules[rule] += 1
        self.errors += error
        self.warnings += not error
        if self.rules[rule] <= KEPT:
            self.problems.append(Problem(file, rule, what, do, error))


class Files:
    """The files of a data set, by name."""

    def __init__(self, folder: str) -> None:
        self.folder = folder.rstrip("/") if storage.is_s3(folder) else str(Path(folder).absolute())
        self.sizes = {
            entry.uri.removeprefix(self.folder).lstrip("/"): entry.size for entry in storage.listing(self.folder)
        }

    def named(self, before: str = "", after: str = "") -> list[str]:
        return [name for name in self.sizes if name.startswith(before) and name.endswith(after)]

    def uri(self, name: str) -> str:
        return storage.join(self.folder, name)

    def open(self, name: str) -> BinaryIO:
        return storage.open(self.uri(name))

    def read(self, name: str) -> bytes:
        return storage.read(self.uri(name))

    def json(self, name: str, report: Report) -> Any:
        """The value in a JSON file; None, with a problem, where there is none."""
        if name not in self.sizes:
            report.add(name, "missing", "the reader opens this file first; it is not there", "Write the data set again")
            return None
        return as_json(name, self.read(name), report)


def as_json(name: str, data: bytes, report: Report) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        report.add(name, "json", f"it is not JSON: {error}", "Write it again")
        return None


@contextlib.contextmanager
def expected(name: str, rule: str, report: Report) -> Iterator[None]:
    """Around what takes the values of a file as its reader does: one of another shape, such as a window without its
    frames, is that file's problem, and the others are looked at."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        what = f"its values are not what the reader expects: {type(error).__name__}: {error}"
        report.add(name, rule, what, "Make the data set again")


class Slice(io.RawIOBase):
    """A part of a file as a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self.file, self.offset, self.size, self.at = file, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.at

    def seek(self, offset: int, whence: int = 0) -> int:
        self.at = max(0, offset + (0, self.at, self.size)[whence])
        return self.at

    def readinto(self, buffer: Any) -> int:
        self.file.seek(self.offset + self.at)
        data = self.file.read(max(0, min(len(buffer), self.size - self.at)))
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def count(file: Any) -> int | str:
    """How many frames a video has, by its index; words where it cannot be told."""
    try:
        found = video.index(file)
    except Exception as error:  # libav has many words for it
        return f"it cannot be opened: {error}"
    return found.frames if found is not None and found.frames else "it has no frame that decoding could begin with"


def frames(name: str, found: int | str, report: Report) -> int | None:
    """What `count` found of a video; None, with a problem, for words."""
    if isinstance(found, str):
        report.add(name, "video", found, "Encode this clip again")
        return None
    return found


def counts(files: Files, names: Iterable[str]) -> Iterator[tuple[str, int | str]]:
    """(name, what `count` finds) of each video, several at a time."""

    def one(name: str) -> tuple[str, int | str]:
        with files.open(name) as file:
            return name, count(file)

    return layers.map_ahead(one, names)


def counts_in(
    files: Files, tar: str, entries: Iterable[tuple[str, layers.Entry]]
) -> Iterator[tuple[str, layers.Entry, dict[str, int | str]]]:
    """(key, entry, {suffix: what `count` finds}) of the keys of a tar, with their .mp4, several at a time."""

    def one(found: tuple[str, layers.Entry]) -> tuple[str, layers.Entry, dict[str, int | str]]:
        key, entry = found
        with files.open(tar) as file:  # of its own: the others read elsewhere
            return key, entry, {
                suffix: count(io.BufferedReader(Slice(file, *place)))
                for suffix, place in entry.members.items()
                if suffix.endswith(".mp4")
            }  # fmt: skip

    return layers.map_ahead(one, entries)


def validate(folder: str, consumer: str, num_frames: int = 93, sample: int | None = None) -> Report:
    """Apply the rules of a reader (one of CONSUMERS), to all of a data set or to a sample of so many entries. Raises
    ValueError for another one, or a folder without files."""
    if consumer not in (known := consumers()):
        raise ValueError(f"--as {consumer}: the rules are known of {', '.join(known)}")
    if sample is not None and sample < 1:
        raise ValueError(f"--sample {sample}: give how many entries to look at, 1 at least; without it all are")
    files = Files(folder)
    if not files.sizes and not storage.stat(files.uri(".idx")):  # NVIDIA's tokens are in hidden files alone
        raise ValueError(f"{folder}: there are no files; give the folder or prefix of a data set")
    report = Report(consumer, folder, Settings(num_frames, sample), len(files.sizes))
    known[consumer](files, report)
    return report


def consumers() -> dict[str, Callable[[Files, Report], None]]:
    from hpc.validate import curator, folders, indexed, latents, plain, robots, tokens, trees  # they need this module

    return {
        "webdataset": plain.webdataset,
        "sessions": plain.sessions,
        "cosmos": trees.cosmos,
        "cosmos-frames": trees.cosmos_frames,
        "predict2.5-webdataset": trees.predict,
        "cosmos-curate": curator.curator,
        "predict2": folders.predict2,
        "predict2.5": folders.predict25,
        "predict2-multiview": folders.multiview,
        "megatron-tokens": indexed.megatron,
        "latents": latents.latents,
        "video2world-tokens": tokens.video2world,
        "instruction-tokens": tokens.instruction,
        "action-tokens": tokens.actions,
        "bridge": robots.films,
    }


def lines(report: Report, most: int = 20) -> Iterator[str]:
    """For a person: the problems, rule by rule, and whether it will do."""
    for rule, some in itertools.groupby(sorted(report.problems, key=lambda one: (not one.error, one.rule)), key=_rule):
        found = list(some)
        count = report.rules[rule]
        yield f"{'error' if found[0].error else 'warning'}: {rule} ({count:,} time{'s' * (count != 1)})"
        for one in found[:most]:
            yield f"  {one.file}: {one.what}"
        if count > most:
            yield f"  ... and {count - most:,} more (--json lists {KEPT:,} of each rule)"
        yield from dict.fromkeys(f"  -> {one.do}" for one in found)
    verdict = "will not do" if report.errors else "will do"
    told = ", ".join(f"{n:,} of {of:,} {what}" for what, (n, of) in report.sampled.items())
    sampled = f", as far as a sample tells ({told})" if told else ""
    yield (f"{report.folder}: {report.files:,} files, {report.entries:,} entries, {report.errors:,} errors, "
           f"{report.warnings:,} warnings: {verdict} for {report.consumer}{sampled}")  # fmt: skip


def _rule(problem: Problem) -> str:
    return problem.rule
