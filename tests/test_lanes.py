"""Lanes: jobs side by side give what they give one after the other, in the same order, and end together."""

from __future__ import annotations

import random
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpc.curate import clips, filters, lanes, source
from hpc.curate.settings import Clips
from hpc.curate.settings.encode import Encode
from hpc.curate.settings.split import Split
from hpc.data import layers, storage
from hpc.data.units import Seconds
from hpc.data.work import Item, Made, Stopped, Work

TRAILER = Path(__file__).parent.parent / "jobs" / "quickstart" / "trailer_bbb.mp4"
SETTINGS = Clips(
    split=Split(detector="stride", stride=Seconds(1.0), min_clip=Seconds(0.5)),
    encode=Encode(preset="ultrafast", crf=40.0, threads=1),
)


def go_on() -> None:
    pass


@pytest.mark.parametrize("count", [1, 4])
def test_order(count: int) -> None:
    chance = random.Random(7)
    waits = [chance.uniform(0, 0.02) for _ in range(40)]
    active, most = set(), []

    def work(job: int, check: Callable[[], None]) -> int:
        active.add(job)
        most.append(len(active))
        time.sleep(waits[job])
        active.remove(job)
        return job * job

    assert list(lanes.in_order(range(40), work, count, go_on)) == [job * job for job in range(40)]
    assert max(most) == count


def test_nothing_is_taken_up_far_ahead() -> None:
    taken = []

    def jobs() -> object:
        for job in range(100):
            taken.append(job)
            yield job

    done = lanes.in_order(jobs(), lambda job, check: job, 3, go_on)
    assert [next(done) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) <= 5 + lanes.AHEAD * 3
    done.close()


def test_the_first_error_ends_all() -> None:
    begun = threading.Barrier(3)
    stopped = []

    def work(job: int, check: Callable[[], None]) -> int:
        begun.wait()
        if job == 2:
            raise OSError("disk full")
        try:
            while True:
                check()
                time.sleep(0.001)
        except Stopped:
            stopped.append(job)
            raise

    with pytest.raises(OSError, match="disk full"):
        list(lanes.in_order(range(20), work, 3, go_on))
    assert sorted(stopped) == [0, 1]
    assert not [t for t in threading.enumerate() if t.name.startswith("lane")]


def test_whoever_takes_the_results_may_fail_too() -> None:
    over = []

    def work(job: int, check: Callable[[], None]) -> int:
        try:
            while job:
                check()
                time.sleep(0.001)
        except Stopped:
            over.append(job)
            raise
        return job

    done = lanes.in_order(range(20), work, 4, go_on)
    assert next(done) == 0
    done.close()
    assert set(over) <= {1, 2, 3, 4} and len(over) >= 3
    assert not [t for t in threading.enumerate() if t.name.startswith("lane")]


def test_progress_is_of_all_lanes() -> None:
    told: list[float] = []
    progress = lanes.Progress(lambda share, words: told.append(share))
    progress(0, 0.1, "")
    progress(1, 0.2, "")
    progress(0, 0.5, "")
    assert told == pytest.approx([0.1, 0.3, 0.7])


class Stage:
    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, 0

    def __call__(self, count: int, items: list[Item], check: Callable[[], None] = go_on) -> Made:
        self.runs += 1
        self.scratch = self.folder / f"{self.runs}"
        self.scratch.mkdir()
        self.progress: list[float] = []
        tools = source.Tools(SETTINGS, None, filters.start(SETTINGS.filter), count)
        report = lambda share, words: self.progress.append(share)
        return clips.process(tools, Work("000007", items, [], {}, self.scratch, "abc", check, report))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    """Five films of different lengths in seconds, two of them in a tar, and one that is none."""
    folder = tmp_path_factory.mktemp("films")
    films = []
    for number, seconds in enumerate((3, 1, 2, 1, 2)):
        films.append(folder / f"{number}.mp4")
        part = ["-ss", f"{5 * number}", "-t", f"{seconds}", "-i", TRAILER, "-vf", "scale=160:90", "-an", films[-1]]
        subprocess.run(["ffmpeg", "-v", "error", "-y", *part], check=True, timeout=180)
    bad, packed = folder / "bad.mp4", folder / "packed.tar"
    bad.write_bytes(b"this is no film")
    with tarfile.open(packed, "w") as tar:
        for path in (films[3], bad, films[4]):
            tar.add(path, path.name)
    entries = [storage.stat(str(path)) for path in (films[0], bad, films[1], packed, films[2])]
    return [Item(entry.uri, entry.size, entry.etag) for entry in entries if entry]


def test_the_same_bytes_with_any_number(stage: Stage, inputs: list[Item]) -> None:
    one = stage(1, inputs)
    assert [bad.uri.rpartition("/")[2] for bad in one.bad] == ["bad.mp4", "packed.tar#bad.mp4"]
    assert one.counts["inputs"] == 5 and one.counts["clips"] == 9
    for count in (2, 4):
        many = stage(count, inputs)
        assert [path.read_bytes() for path in many.objects] == [path.read_bytes() for path in one.objects]
        assert many.bad == one.bad
        timeless = [{k: v for k, v in made.counts.items() if not k.startswith("time_")} for made in (one, many)]
        assert timeless[0] == timeless[1]
        assert stage.progress[-1] == pytest.approx(1.0, abs=0.3) and max(stage.progress) <= 1
        assert sorted(path.name for path in stage.scratch.iterdir()) == ["000007.parquet", "000007.tar"]


def test_an_input_that_is_gone(stage: Stage, inputs: list[Item]) -> None:
    gone = Item(inputs[0].uri + ".gone.mp4", 5, "etag")
    made = stage(3, [gone, *inputs[:3]])
    assert [(bad.uri == gone.uri, bad.reason) for bad in made.bad] == [(True, "missing"), (False, "not-a-video")]
    assert {row["source"] for row in layers.read_table(made.objects[1]).to_pylist()} == {inputs[0].uri, inputs[2].uri}


def test_it_stops_at_once(stage: Stage, inputs: list[Item]) -> None:
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls > 100:
            raise Stopped

    with pytest.raises(Stopped):
        stage(4, inputs * 3, check)
    assert calls < 130
    assert not [t for t in threading.enumerate() if t.name.startswith("lane")]
