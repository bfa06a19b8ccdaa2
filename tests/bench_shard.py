"""What a data set costs to make and to read, beside `tar` and a plain reader of tars: the README's rows as markdown.

    python tests/bench_shard.py [FOLDER] [--clips 100] [--bytes 3000000] [--rounds 9]

The same clips (six seconds at 4 Mbit/s, of random bytes; metadata, embeddings of two captions) are packed by `tar -cf`,
from files named as the members are, and by curate.shard, from the tars and layers that the stages before leave behind.
Each round runs every contestant once, one after the other, on files that are in the page cache; a ratio is the median
of the rounds' ratios. What a worker does to publish a shard (copy, SHA-256, fsync) is a row of its own: tar does none.
Reading: webdataset on our tars, against Python's tarfile on the same ones, as streams, clip by clip.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import webdataset
from datasets import Clip

from hpc.batch import runner
from hpc.curate import shard, shard_members, shard_tree
from hpc.curate.settings import Shard, ShardMembers, ShardTree
from hpc.data import layers
from hpc.data.work import Made

GB = 1e9
FULL = 512 * 1024**2


@contextlib.contextmanager
def measured(out: dict[str, float]) -> Iterator[None]:
    """CPU seconds (user and system, children too) and wall seconds."""

    def used() -> float:
        both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(one.ru_utime + one.ru_stime for one in both)

    cpu, wall = used(), time.perf_counter()
    yield
    out |= {"cpu": used() - cpu, "wall": time.perf_counter() - wall}


def source(folder: Path, clips: int, size: int) -> dict[str, Any]:
    """Stages before, with random bytes for videos, in four shards."""
    videos = iter(os.urandom(size) for _ in range(clips))
    datasets.mp4 = lambda frames, fps: next(videos)
    datasets.WIDTH = 1024
    each = [Clip(frames=400) for _ in range(clips)]
    return datasets.publish(folder, [each[i::4] for i in range(4)])


def stage(folder: Path, code: Any, settings: Any, upstream: dict[str, Any], name: str) -> list[Made]:
    """A stage's shards, as its array makes them, without publishing."""
    process, made = code.start(settings), []
    for number, rows in enumerate(code.freeze(settings, upstream, set())):
        made.append(process(datasets.work(folder, f"{number:06}", rows, str(folder / name))))
    return made


def files_of(folder: Path, tars: list[Path]) -> None:
    """The members of these tars as files."""
    for path in tars:
        with path.open("rb") as file:
            for key, members in layers.read_tar(file):
                for suffix, data in members.items():
                    (folder / (key + suffix)).write_bytes(data)


def run(folder: Path, clips: int, size: int, rounds: int) -> None:
    upstream = source(folder, clips, size)
    members = stage(folder, shard_members, ShardMembers(layout="cosmos"), upstream, "members")
    both = {**upstream, "members": [(f"{i:06}", datasets.put_all(str(folder), "members", f"{i:06}", {
        path.name[6:]: path for path in made.objects})) for i, made in enumerate(members)]}  # fmt: skip
    bare = {"clips": upstream["clips"]}
    plain, tree = Shard(tar=FULL), ShardTree(tar=FULL)
    ours = [made.objects[0] for made in stage(folder, shard, plain, bare, "x")]
    trees = [path for made in stage(folder, shard_tree, tree, both, "x") for path in made.tree.values()]
    loose = {}
    for name, tars in (("plain", ours), ("tree", trees)):
        loose[name] = folder / f"loose-{name}"
        loose[name].mkdir()
        files_of(loose[name], tars)
    total = {"plain": sum(p.stat().st_size for p in ours), "tree": sum(p.stat().st_size for p in trees)}

    def tar(name: str) -> Callable[[Path], object]:
        return lambda out: subprocess.run(["tar", "-cf", out / "x.tar", "-C", loose[name], "."], check=True)

    def publish(out: Path) -> None:
        for i, path in enumerate(ours):
            shutil.copyfile(path, out / f"{i:06}.tar")
            runner.publish(str(out / "at"), f"{i:06}", (".tar",), Made([out / f"{i:06}.tar"], {}))

    def plain_reader(out: Path) -> int:
        def clips(path: Path) -> Iterator[dict[str, bytes]]:
            members: dict[str, bytes] = {}
            key = ""
            # as a stream, as anything that may come from an object store
            with path.open("rb") as stream, tarfile.open(fileobj=stream, mode="r|*") as file:
                for member in file:
                    name, _, suffix = member.name.partition(".")
                    if name != key and members:
                        yield members
                        members = {}
                    key, members[suffix] = name, file.extractfile(member).read()
            yield members

        return sum(len(data) for path in ours for members in clips(path) for data in members.values())

    def through_webdataset(out: Path) -> int:
        samples = webdataset.WebDataset([str(path) for path in ours], shardshuffle=False)
        return sum(len(value) for one in samples for name, value in one.items() if not name.startswith("__"))

    contestants: dict[str, tuple[Callable[[Path], object], int]] = {
        "tar, plain": (tar("plain"), total["plain"]),
        "shard, plain": (lambda out: stage(out, shard, plain, bare, "x"), total["plain"]),
        "publish, plain": (publish, total["plain"]),
        "tar, tree": (tar("tree"), total["tree"]),
        "shard, tree": (lambda out: stage(out, shard_tree, tree, both, "x"), total["tree"]),
        "members, tree": (
            lambda out: stage(out, shard_members, ShardMembers(layout="cosmos"), upstream, "members"), total["tree"]
        ),
        "tarfile": (plain_reader, total["plain"]),
        "webdataset": (through_webdataset, total["plain"]),
    }  # fmt: skip
    assert plain_reader(folder) == through_webdataset(folder)
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, (contestant, _size) in contestants.items():
            out = Path(tempfile.mkdtemp(dir=folder))
            facts: dict[str, float] = {}
            with measured(facts):
                contestant(out)
            seen[name].append(facts)
            shutil.rmtree(out)
    print(f"{clips} clips of {size} bytes, {rounds} rounds\n")
    print("| | GB/s | CPU s/GB | rate by the other's | CPU by the other's |\n|---|---|---|---|---|")
    against = {"shard, plain": "tar, plain", "shard, tree": "tar, tree", "webdataset": "tarfile"}
    for name, (_, size) in contestants.items():
        wall, cpu = (statistics.median(one[what] for one in seen[name]) for what in ("wall", "cpu"))
        ratios = ["", ""]
        if other := against.get(name):
            pairs = list(zip(seen[name], seen[other], strict=True))
            ratios = [f"{statistics.median(b['wall'] / a['wall'] for a, b in pairs):.2f}",
                      f"{statistics.median(a['cpu'] / b['cpu'] for a, b in pairs):.2f}"]  # fmt: skip
        print(f"| {name} | {size / GB / wall:.2f} | {cpu / (size / GB):.2f} | {ratios[0]} | {ratios[1]} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", help="to work in, on the disk that is to be measured")
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--bytes", type=int, default=3_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="bench-shard-") as folder:
        run(Path(folder), args.clips, args.bytes, args.rounds)


if __name__ == "__main__":
    main()
