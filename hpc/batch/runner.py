"""The process that runs a stage: shards come in as JSON lines, results go out as JSON lines. Child of the worker.

A process of its own, so that a crash in a decoder or the out-of-memory killer takes one shard with it and not the
worker, which notes it and goes on. It publishes what the stage made; the worker writes the record.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from hpc.batch import failure, gang, gpus, jsons, masking, twins
from hpc.batch.heartbeat import NODE, Heart
from hpc.batch.run import StagePlan
from hpc.batch.spec import settings_of
from hpc.data import storage
from hpc.data.work import SAVED, Bad, Item, Made, Object, Stopped, Work


class Setup(msgspec.Struct):
    """First line in."""

    stage: StagePlan
    upstream: dict[str, tuple[str, tuple[str, ...]]]
    """Needed stage -> (its folder, its object suffixes)."""
    scratch: str
    progress_every: float
    failures: str = ""
    """Of a gang: the file in which ranks say why they failed."""
    saves: str = ""
    """...and the folder in which they say what their newest checkpoint is, in a file for each shard."""
    ranks: str = ""
    """...and the one of their heartbeats."""
    twins: str = ""
    """Where tasks meet that make the same shard (hpc.batch.twins); "" where none does."""
    me: str = ""
    """What this task is called there."""


class Order(msgspec.Struct):
    """Every further line in: a shard to make."""

    shard: str
    items: list[Any]
    without: list[int] = []
    """Places of those that killed the process twice."""
    alone: bool = False
    """The process died on it: one item at a time."""


class Reply(msgspec.Struct, omit_defaults=True):
    """Every line out."""

    what: str
    """ready, unable (the stage does not start), on (what items), progress, done, failed, stopped"""
    shard: str = ""
    times: dict[str, float] = {}
    objects: list[Object] = []
    counts: dict[str, float] = {}
    bad: list[Bad] = []
    failure: str = ""
    detail: str = ""
    fraction: float = 0.0
    gpu: dict[str, float] = {}
    memory: float = 0.0
    """As in a record."""
    items: list[int] = []
    """Which of the order's are being worked on."""


def main() -> None:
    gang.end_with_parent()
    channel = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever a library prints goes to the log, not into the channel
    masking.install()
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda signum, frame: stopping.append(signum))
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the worker decides what a warning from Slurm means...
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    rank = 0
    heart: Heart | None = None

    def send(reply: Reply) -> None:
        if rank == 0:
            channel.write(msgspec.json.encode(reply) + b"\n")

    def check() -> None:
        if heart:
            heart.beat()
        if stopping:
            raise Stopped

    setup = jsons.decode(sys.stdin.buffer.readline(), Setup)
    stage = setup.stage
    if setup.failures:
        rank = int(os.environ["RANK"])
        signal.signal(signal.SIGUSR2, lambda signum, frame: stopping.append(signum))  # ...and passes it on to ranks
        os.environ.setdefault("TORCH_NCCL_ENABLE_TIMING", "1")  # by which a heart knows who waits for whom
        patience, tell = stage.resources.patience, functools.partial(hang, setup.failures)
        heart = Heart(Path(setup.ranks), rank, int(os.environ["WORLD_SIZE"]), setup.progress_every / 3,
                      float(patience) if patience else None, tell)  # fmt: skip
    begun = time.monotonic()
    settings = settings_of(stage.kind, stage.settings)
    try:
        process = importlib.import_module(settings.CODE).start(settings)
    except Exception as error:
        words = f"{type(error).__name__}: {str(error)[:1500]}"
        send(Reply("unable", failure=failure.of_exception(error), detail=words))
        raise
    send(Reply("ready", times={"start": time.monotonic() - begun}))
    look = gpus.watch() if stage.resources.gpus else gpus.nothing

    for line in sys.stdin.buffer:
        order = msgspec.json.decode(line, type=Order)
        if stopping:
            send(Reply("stopped", order.shard))
            break
        if setup.saves:
            os.environ[SAVED] = str(saved(setup.saves, order.shard))
        scratch = Path(setup.scratch) / f"{order.shard}.{rank}"
        look(True)
        try:
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            reply = _one(order, setup, process, scratch, check, send, look, heart, publishes=rank == 0)
        except Stopped:
            reply = Reply("stopped", order.shard)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # torch's CheckpointException is no Exception
            traceback.print_exc()
            last = traceback.extract_tb(error.__traceback__)[-1]
            words = f"{type(error).__name__}: {str(error)[:1500]} ({Path(last.filename).name}:{last.lineno})"
            if setup.failures:
                sys.stderr.flush()
                node = os.environ.get(NODE, "")
                gang.leave(setup.failures, rank, failure.of_exception(error), words, node)
            reply = Reply("failed", order.shard, failure=failure.of_exception(error), detail=words)
        reply.gpu, reply.memory = look(), held()
        shutil.rmtree(scratch, ignore_errors=True)
        send(reply)


def hang(failures: str, rank: int, node: str, words: str, stacks: str) -> NoReturn:
    """The end of a gang of which no rank gets on: rank is the one that others wait for."""
    sys.stderr.write(f"{words}\n{stacks}")
    sys.stderr.flush()
    gang.leave(failures, rank, "hang", words, node)


def held() -> float:
    """Bytes: the most that this process has held, and its largest child (Linux counts in KiB)."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return 1024.0 * sum(resource.getrusage(who).ru_maxrss for who in both)


def saved(folder: str, shard: str) -> Path:
    """Where it is said what the newest checkpoint of a shard is."""
    return Path(folder, f"{shard}.checkpoint")


def _one(order: Order, setup: Setup, process: Any, scratch: Path, check: Any, send: Any, look: Any, heart: Heart | None,
         *, publishes: bool) -> Reply:  # fmt: skip
    """Make one shard and publish it."""
    stage = setup.stage
    own = stage.domain == "inputs"
    upstream = {
        name: {suffix: storage.join(folder, order.shard + suffix) for suffix in suffixes}
        for name, (folder, suffixes) in setup.upstream.items()
    }
    for name, needed in upstream.items():
        last = list(needed.values())[-1]  # published last: if it is there, all of them are
        if storage.stat(last) is None:
            return Reply("failed", order.shard, failure="upstream", detail=f"{name} has no shard {order.shard}: {last}")
    begun = time.monotonic()
    items = [msgspec.convert(i, Item) for i in order.items] if own else []
    work = Work(
        shard=order.shard,
        items=[item for place, item in enumerate(items) if place not in order.without],
        rows=[] if own else order.items,
        upstream=upstream, folder=stage.folder, scratch=scratch, fingerprint=stage.fingerprint, check=check,
        progress=_reporter(send, look, order.shard, setup.progress_every, heart),
        on=_teller(send, order.shard, items), alone=order.alone,
    )  # fmt: skip
    with heart.watched() if heart else contextlib.nullcontext():
        made: Made = process(work)
    crashed = [Bad(items[place].uri, "crash", "the process died on it, twice: see the log") for place in order.without]
    worked = time.monotonic()
    if setup.twins:
        twins.enter(Path(setup.twins), order.shard, setup.me, twins.last(stage, order.shard), check)
    objects = publish(stage.folder, order.shard, stage.objects, made) if publishes else []
    times = {"work": worked - begun, "publish": time.monotonic() - worked}
    return Reply("done", order.shard, times=times, objects=objects, counts=made.counts, bad=made.bad + crashed)


def publish(folder: str, shard: str, suffixes: tuple[str, ...], made: Made) -> list[Object]:
    """Publish a shard's files in order, those of its tree first, each exclusively.

    If the last one is there already, the shard is complete (a killed worker got that far, or a twin was quicker): it is
    taken as it stands, since others may have read it. If only earlier ones are, the bytes decide: the same are adopted;
    others, which only a stage that is not deterministic makes, are replaced, so that objects of two makings never mix.

    Not so a file of the tree that another shard of the stage made. While a shard with a tree is being published there
    is `.publishing-<shard>` in the folder; without it, what is there with other bytes is not this shard's. Raises
    ValueError then. Files in folders of other stages are replaced: an index, say.
    """
    names = [p.name for p in made.objects]
    if names != [shard + s for s in suffixes]:
        raise ValueError(f"the stage made {names}, its settings promise {[shard + s for s in suffixes]}")
    output = folder.rpartition("/")[0] + "/"
    if astray := [uri for uri in made.tree if not uri.startswith(output) or "/../" in uri]:
        raise ValueError(f"the stage made files outside of the output, {output}: {astray[:3]}")
    paths = [*made.tree.values(), *made.objects]
    uris = [*made.tree, *(storage.join(folder, name) for name in names)]
    if storage.stat(uris[-1]) is not None and all(storage.stat(uri) for uri in uris):
        return [_look(uri) for uri in uris]
    mark = storage.join(folder, f".publishing-{shard}")
    first = bool(made.tree) and storage.put_new(mark, shard.encode())
    out, replaced, twin, strange = [], False, False, ""
    for uri, path in zip(uris, paths, strict=True):
        digest, size = storage.sha256(str(path))
        out.append(Object(uri, size, digest))
        if not storage.put_new(uri, path) and _look(uri).sha256 != digest:
            if twin := uri == uris[-1] and not replaced:
                break  # it finished just now
            if first and uri in made.tree and uri.startswith(f"{folder}/") and storage.stat(uris[-1]) is None:
                strange = uri
                break
            storage.put(uri, path)
            replaced = True
    if made.tree:  # not where storage failed, or the process was killed: what is there may be this shard's then
        storage.delete(mark)
    if strange:
        raise ValueError(f"{strange} is there with other bytes than those of shard {shard}: another shard of this "
                         "stage made a file of the same name")  # fmt: skip
    return [_look(uri) for uri in uris] if twin else out


def _look(uri: str) -> Object:
    digest, size = storage.sha256(uri)
    return Object(uri, size, digest)


def _teller(send: Any, shard: str, items: list[Item]) -> Any:
    """Work.on: the worker must know what a process is on, since a dead one tells no more."""
    places = {item: place for place, item in enumerate(items)}
    lock = threading.Lock()
    now: list[int] = []

    @contextlib.contextmanager
    def on(item: Item) -> Iterator[None]:
        place = places[item]
        tell(now.append, place)
        try:
            yield
        finally:
            tell(now.remove, place)

    def tell(change: Callable[[int], None], place: int) -> None:
        with lock:
            change(place)
            send(Reply("on", shard, items=sorted(set(now))))

    return on


def _reporter(send: Any, look: Any, shard: str, every: float, heart: Heart | None) -> Any:
    last = [time.monotonic()]

    def progress(fraction: float, words: str = "") -> None:
        if heart:
            heart.mine.words = masking.masked(words)
        now = time.monotonic()
        if now - last[0] >= every:
            last[0] = now
            send(Reply("progress", shard, fraction=round(fraction, 3), detail=words, gpu=look(), memory=held()))

    return progress


if __name__ == "__main__":
    main()
