"""Checkpoints count when they are whole, metrics say every step once, and a warning to one rank is heard by all."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from forks import FORKS
from torch.distributed.checkpoint.api import CheckpointException

from hpc.data.storage import StorageError
from hpc.data.units import Seconds
from hpc.data.work import Stopped
from hpc.train.agree import agreed
from hpc.train.checkpoint import ALONE, COMPLETE, Checkpoints, Keeper, Ranks, Resumed, complete
from hpc.train.metrics import Metrics, lines


def keeper(folder: Path, ranks: Ranks = ALONE, **policy: Any) -> Keeper:
    return Keeper(folder, Checkpoints(**policy), {"seed": 1, "model": "small"}, ranks)


def write(text: str) -> Any:
    return lambda folder: (folder / "state").write_text(text)


# Checkpoints


def test_the_newest_ones_stay(tmp_path: Path) -> None:
    one = keeper(tmp_path, keep=2, keep_every=20)
    assert one.newest() is None
    for step in range(5, 55, 5):
        made = one.save(step, write(str(step)), {"loss": 0.5})
        assert made.name == f"iter_{step:09}"
    removed = tmp_path / "iter_000000035.part"  # as a killed one leaves it that is half removed
    removed.mkdir()
    (removed / COMPLETE).touch()
    assert complete(tmp_path) == [20, 40, 45, 50]
    assert (tmp_path / "latest_checkpoint.txt").read_text() == "iter_000000050"
    step, folder = keeper(tmp_path).newest()  # type: ignore[misc]
    assert step == 50 and (folder / "state").read_text() == "50"
    assert json.loads((folder / "training.json").read_text())["loss"] == 0.5
    before = (folder / "state").stat().st_mtime_ns
    one.save(50, write("again"))
    assert (folder / "state").stat().st_mtime_ns == before, "what is complete is not written again"


def test_when_one_is_due(tmp_path: Path) -> None:
    one = keeper(tmp_path, every=10, at_least=Seconds(1000))
    assert [step for step in range(1, 36) if one.due(step, 35)] == [10, 20, 30, 35]
    one.last_time -= 1001
    assert one.due(11, 35)
    one.save(11, write(""))
    assert not one.due(12, 35)
    with pytest.raises(ValueError, match="keep: 0 must be 1 or more"):
        Checkpoints(keep=0)


def _save_until_killed(folder: Path) -> None:
    one, step = keeper(folder, keep=2), 0
    while True:
        step += 1
        one.save(step, lambda to, step=step: [(to / f"{i}").write_text(str(step)) for i in range(40)])  # type: ignore


def test_killed_at_any_moment_the_newest_complete_one_is_whole(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("fork")
    for round_ in range(8):
        process = spawn.Process(target=_save_until_killed, args=(tmp_path,))
        process.start()
        while not complete(tmp_path):  # however busy the machine is
            time.sleep(0.01)
        time.sleep(0.15 + 0.013 * round_)
        process.kill()
        process.join()
        one = keeper(tmp_path)
        assert not list(tmp_path.glob("*.part"))
        step, folder = one.newest()  # type: ignore[misc]
        assert {(folder / f"{i}").read_text() for i in range(40)} == {str(step)}


def test_a_rank_that_fails_leaves_no_checkpoint(tmp_path: Path) -> None:
    meet = threading.Barrier(2, timeout=60)
    errors = []

    def rank(number: int) -> None:
        def put(folder: Path) -> None:
            if number == 1:
                meet.abort()
                raise OSError("disk full")
            (folder / "0").touch()

        try:
            keeper(tmp_path, Ranks(number, 2, lambda: meet.wait())).save(10, put)  # type: ignore[arg-type]
        except Exception as error:
            errors.append(type(error))

    threads = [threading.Thread(target=rank, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(errors) == 2 and complete(tmp_path) == [] and keeper(tmp_path).newest() is None


def test_a_full_disk_is_told_of(tmp_path: Path) -> None:
    """torch makes other errors of it, and one that is no Exception."""

    def full(folder: Path) -> None:
        try:
            Path("/dev/full").write_text("x")
        finally:
            raise RuntimeError("unexpected pos 704 vs 598")

    def by_torch(folder: Path) -> None:
        (folder / "__0_0.distcp").symlink_to("/dev/full")
        dcp.save({"x": torch.ones(9)}, checkpoint_id=folder, no_dist=True)

    for put, theirs in ((full, RuntimeError), (by_torch, CheckpointException)):
        with pytest.raises(theirs):
            put(tmp_path)
        with pytest.raises(StorageError, match=r"could not be written: No space left on device\. The file"):
            keeper(tmp_path / "kept").save(10, put)
    with pytest.raises(IndexError):
        keeper(tmp_path / "kept").save(10, lambda folder: [][1])


def test_a_damaged_one_is_told_of(tmp_path: Path) -> None:
    one = keeper(tmp_path)
    for step in (5, 10):
        one.save(step, lambda to: [(to / name).write_text("12345") for name in "ab"])  # type: ignore[func-returns-value]
    (tmp_path / "iter_000000010/a").write_text("123")
    words = r"iter_000000010 is damaged: a has 3 of 5 bytes. Remove the folder to go on from iter_000000005"
    with pytest.raises(Resumed, match=words):
        keeper(tmp_path).newest()
    (tmp_path / "iter_000000010/b").unlink()
    with pytest.raises(Resumed, match="a has 3 of 5 bytes, and 1 more files"):
        keeper(tmp_path).newest()
    shutil.rmtree(tmp_path / "iter_000000010")
    assert keeper(tmp_path).newest() == (5, tmp_path / "iter_000000005")


def test_another_training_is_not_continued(tmp_path: Path) -> None:
    keeper(tmp_path).save(5, write("x"))
    other = Keeper(tmp_path, Checkpoints(), {"seed": 2, "model": "small", "batch": 8})
    with pytest.raises(Resumed, match=r"of another training: batch: None there, 8 now; seed: 1 there, 2 now"):
        other.newest()


# Metrics


def test_every_step_stands_there_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with Metrics(path) as metrics:
        for step in range(1, 8):
            metrics.step(step, loss=1 / step)
    with path.open("a") as file:
        file.write('{"step":8,"lo')
    with Metrics(path, resumed=5) as metrics:
        metrics.step(6, loss=float("nan"), waited=0.25)
    said = list(lines(path))
    assert [line["step"] for line in said] == [1, 2, 3, 4, 5, 6]
    assert said[-1]["loss"] == "nan" and said[-1]["waited"] == 0.25 and "time" in said[0]


# Decisions of all ranks


def _rank(rank: int, file: str, warned: int, out: Any) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    told = []
    for step in range(4):

        def check(step: int = step) -> None:
            if step >= 2 and rank == warned:
                raise Stopped

        told.append(agreed(check, also=step == 1 and rank == 0))
    out.put((rank, told))
    dist.destroy_process_group()


@pytest.mark.parametrize("warned", [0, 1])
def test_a_warning_to_one_rank_is_heard_by_all_at_the_same_step(tmp_path: Path, warned: int) -> None:
    out = FORKS.Queue()
    ranks = [FORKS.Process(target=_rank, args=(n, str(tmp_path / "meet"), warned, out)) for n in range(2)]
    for process in ranks:
        process.start()
    told = dict(out.get(timeout=180) for _ in ranks)
    for process in ranks:
        process.join()
    assert told[0] == told[1] == [(False, False), (False, True), (True, False), (True, False)]
    assert agreed(lambda: None) == (False, False), "and alone"
