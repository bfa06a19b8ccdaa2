"""Stages for tests of the batch machinery: no video, no models, quick. Named in specs as stages:Echo and so on."""

from __future__ import annotations

from typing import ClassVar

import msgspec

from hpc.data.work import Part


class Echo(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Reads its inputs and writes what it read, in order; misbehaves as told by the names of the inputs."""

    KIND: ClassVar[str] = "stages:Echo"
    CODE: ClassVar[str] = "stages.echo"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".jsonl",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (".txt", ".mp4")
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ("seconds", "flags", "lanes")
    SECONDS_PER_GIB: ClassVar[float] = 1.0

    seconds: float = 0.0
    """Work this long per shard, in small steps."""
    prompt: str = ""
    flags: str = ""
    """A folder where inputs' misbehaviour is counted, so that a second try can do better."""
    lanes: int = 1
    """Inputs worked on at the same time, in threads."""


class Note(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A layer over Echo: one line a shard."""

    KIND: ClassVar[str] = "stages:Note"
    CODE: ClassVar[str] = "stages.note"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".note",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 1.0

    prompt: str = "what is this?"


class Tar(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Takes a tar as it is, for stages that need a data set."""

    KIND: ClassVar[str] = "stages:Tar"
    CODE: ClassVar[str] = "stages.tar"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".tar",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (".tar",)
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 1.0


class Ids(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Makes tokens out of nothing, as prepare.tokens leaves them: ids that count up, which can be learned."""

    KIND: ClassVar[str] = "stages:Ids"
    CODE: ClassVar[str] = "stages.ids"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".bin", ".idx", ".parquet")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (".txt",)
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 1.0

    shape: tuple[int, int, int] = (3, 4, 4)
    clips: int = 6
    """Of a shard; all but the last are for training."""


class Join(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A barrier over Echo: lines are dealt to shards of `lines` lines."""

    KIND: ClassVar[str] = "stages:Join"
    CODE: ClassVar[str] = "stages.join"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".txt",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 1.0

    lines: int = 3
    files: tuple[str, ...] = ()
    """Read by nobody, but a change of them counts."""


class Look(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Writes down the environment that it runs in."""

    KIND: ClassVar[str] = "stages:Look"
    CODE: ClassVar[str] = "stages.look"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".json",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (".txt",)
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ("flags",)
    SECONDS_PER_GIB: ClassVar[float] = 1.0

    together: int = 0
    """Shards that must be in the making at the same time before any of them goes on."""
    flags: str = ""
    """A folder, needed for `together`."""


class Leak(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Prints its environment and secrets, and fails with them in its error."""

    KIND: ClassVar[str] = "stages:Leak"
    CODE: ClassVar[str] = "stages.leak"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".jsonl",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (".txt",)
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 1.0

    variables: tuple[str, ...] = ()
    """Names of those whose values it knows for secrets."""


class Count(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of Tale: how many lines Echo has."""

    KIND: ClassVar[str] = "stages:Count"
    CODE: ClassVar[str] = "stages.count"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".json",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 1.0


class Tell(Count, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The last part of Tale: each of Echo's shards as a file of its own name, with the count."""

    KIND: ClassVar[str] = "stages:Tell"
    CODE: ClassVar[str] = "stages.tell"
    OBJECTS: ClassVar[tuple[str, ...]] = (".txt",)

    end: str = "."
    where: str = "tale"


class Tale(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A stage made of two, behind shards of its own and those of others."""

    KIND: ClassVar[str] = "stages:Tale"

    end: str = "."
    where: str = "tale"

    def parts(self) -> dict[str, Part]:
        return {"count": Part(Count(), ("",), gpus=False),
                "": Part(Tell(end=self.end, where=self.where), ("", "count"))}  # fmt: skip


class Gang(Count, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A training, as far as the batch machinery sees: ranks that count together, with checkpoints."""

    KIND: ClassVar[str] = "stages:Gang"
    CODE: ClassVar[str] = "stages.gang"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "gang")
    NEUTRAL: ClassVar[tuple[str, ...]] = ("seconds", "flags")

    steps: int = 20
    seconds: float = 0.02
    """Of a step."""
    flags: str = ""
    """A folder. A file "fail-<rank>", "kill-<rank>", "hang-<rank>" or "stop-<rank>" there is taken away, and the rank
    does that; "doom-<rank>" and "slow-<rank>" stay."""
