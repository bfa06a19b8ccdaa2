"""What a stage is given and what it gives back: the contract between the worker and every stage.

A stage is a module with one function:

    def start(settings) -> Callable[[Work], Made]

`start` runs once per worker process (load models, open readers here); what it returns runs once per shard. A stage
writes files into `work.scratch` and nowhere else. The worker publishes them, exactly once, and records them, so no
stage ever deals with atomicity, retries or resume. Light on purpose: standard library and msgspec only.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

SAVED = "HPC_CHECKPOINT_FILE"
"""Environment variable, where ranks make a shard together: a file into which the first one writes the name of each
checkpoint once it is complete (hpc.train.checkpoint does). Ranks that are started some times without a new one fail."""


class Part(NamedTuple):
    """One of the stages that a stage of a spec is made of: its settings have `parts() -> dict[str, Part]`, in order.

    The part named "" is the one that other stages need; the others are called <stage>-<part>.
    """

    settings: Any
    needs: tuple[str, ...]
    """Other parts by name, "." for the one named ""; "" stands for what the stage of the spec needs."""
    gpus: bool = True
    """Does it get the stage's GPUs?"""


SAID = "+caption-"


class Item(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One input of a shard, frozen when it was planned."""

    uri: str
    """Absolute path, or s3://bucket/key."""
    size: int
    """Bytes."""
    etag: str
    """What changes when the bytes do: "mtime_ns-size" for files, the ETag for objects; SAID and a digest follow where a
    list has a caption for it, which may change, too."""
    part: int = 0
    """An input longer than a shard is planned as `parts` spans; this is span number `part`, counted from 0."""
    parts: int = 1
    session: str = ""
    """Videos of several cameras that recorded at the same time have the same one, and are in the same shard."""
    camera: str = ""
    """Its name within the session."""
    caption: str = ""
    """What a list of inputs says of it: {"visual_input": ..., "prompt": ...}."""

    @property
    def version(self) -> str:
        """What the storage calls these bytes: the etag without what a list's caption adds to it."""
        return self.etag.partition(SAID)[0]


class Object(msgspec.Struct, frozen=True):
    """One published file of a shard."""

    uri: str
    bytes: int
    sha256: str


class Bad(msgspec.Struct, frozen=True):
    """An input that can never work. It is recorded (quarantined) and not tried again."""

    uri: str
    reason: str
    """A machine-readable word, e.g. "no-video-stream", "empty-file", "changed-since-planned"."""
    detail: str = ""
    """For a person: what was found."""


class BadInput(Exception):
    """Raised by a stage (or by hpc.data.video) for one input; the stage catches it per item and adds a Bad."""

    def __init__(self, uri: str, reason: str, detail: str = "") -> None:
        super().__init__(f"{uri}: {reason}: {detail}")
        self.bad = Bad(uri, reason, detail)


class Stopped(Exception):
    """Raised by `Work.check()` when the worker was told to stop: leave at once, nothing will be published."""


class Work(msgspec.Struct):
    """One shard to make."""

    shard: str
    """Six digits, e.g. "000042"; the stem of every object's name."""
    items: list[Item]
    """The inputs of the shard (first map stages). Empty for shards that a barrier planned."""
    rows: list[Any]
    """What the stage's barrier planned for this shard, as plain JSON values. Empty for other shards."""
    upstream: dict[str, dict[str, str]]
    """For `needs`: stage name -> {suffix: uri} of the same shard, e.g. {"clips": {".tar": "s3://..."}}."""
    scratch: Path
    """An empty folder on node-local disk, removed afterwards."""
    fingerprint: str
    """Of the stage's settings and everything upstream; goes into the metadata of the objects."""
    check: Callable[[], None]
    """Call it often (each frame or so): raises Stopped when the worker must leave. Costs nothing."""
    progress: Callable[[float, str], None]
    """progress(fraction of this shard 0..1, a few words): throttled by the worker."""
    on: Callable[[Item], AbstractContextManager[None]] = lambda item: nullcontext()
    """`with work.on(item):` around the work on an item. If the process dies twice on the same one (a crash of a
    decoder), the shard is made without it, and it is quarantined, reason "crash"."""
    alone: bool = False
    """The process died on this shard before: work on one item at a time, so that it shows which one does it."""
    folder: str = ""
    """Where the shard's objects will be: the version folder of the stage in the output."""


class Made(msgspec.Struct):
    """One finished shard."""

    objects: list[Path]
    """Files in scratch, named <shard><suffix>, in the order to publish; suffixes as in the settings' OBJECTS."""
    counts: dict[str, float]
    """Summed in the report: {"clips": 12, "video_seconds": 55.0, "frames": 1320, ...}."""
    bad: list[Bad] = []
    tree: dict[str, Path] = {}
    """Further files, for readers that expect names of their own: uri, under the run's output -> file in scratch. They
    are published before the objects; no two shards of a run may make the same one."""
