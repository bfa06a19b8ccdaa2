"""TensorBoard and Weights & Biases get what metrics.jsonl gets, each step once, whatever stopped in between."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator
from wandb.proto import wandb_internal_pb2

from hpc.train import pictures, trackers
from hpc.train.metrics import Metrics, lines


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def train(folder: Path, names: tuple[str, ...], begin: int, end: int) -> None:
    """Steps from `begin` on; every fourth has a picture and a video."""
    with Metrics(folder / "metrics.jsonl", begin, 2, names, {"batch": 8, "metrics": names}) as told:
        for step in range(begin + 1, end + 1):
            if step % 4 == 0:
                moving = torch.linspace(-1, 1, 5)[None, :, None, None].expand(3, -1, 32, 400).clone()
                moving[:, :, :, : 10 * step] = 1
                files = [folder / f"pictures/{step:09}.webp", folder / f"pictures/{step:09}_0_ema.mp4"]
                pictures.write([pictures.strip(moving)], files[0])
                pictures.play(moving, 8.0, files[1])
                told.show(step, files)
            told.step(step, loss=math.nan if step == 3 else 1 / step, samples=8)


def records(folder: Path) -> Iterator[Any]:
    """Of the one offline run there: a LevelDB log with a head of 7 bytes, in blocks of 32 KiB, whose chunks have a
    checksum, a length and a kind (whole, first, middle, last)."""
    [path] = folder.glob("wandb/offline-run-*/*.wandb")
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def history(folder: Path) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for record in records(folder):
        if record.WhichOneof("record_type") == "history":
            said: dict[str, Any] = {}
            for item in record.history.item:
                name, *inner = item.nested_key or [item.key]
                value = json.loads(item.value_json)
                said[name] = said.get(name, {}) | {inner[0]: value} if inner else value
            assert said["_step"] not in found, "once"
            found[said["_step"]] = said
    return found


def test_tensorboard_reads_each_step_once(tmp_path: Path) -> None:
    train(tmp_path, ("tensorboard",), 0, 6)
    train(tmp_path, ("tensorboard",), 3, 9)
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    found = EventAccumulator(str(tmp_path / "tensorboard"), {IMAGES: 0}).Reload()
    loss = found.Scalars("loss")
    assert [one.step for one in loss] == list(range(1, 10)) and math.isnan(loss[2].value)
    assert [one.value for one in loss[3:]] == pytest.approx([1 / step for step in range(4, 10)])
    assert [one.step for one in found.Scalars("gpu_hours")] == list(range(1, 10))
    assert found.Tags()["images"] == ["pictures", "video_0_ema"]
    assert [one.step for one in found.Images("pictures")] == [one.step for one in found.Images("video_0_ema")] == [4, 8]
    (tmp_path / "x.png").write_bytes(found.Images("pictures")[1].encoded_image_string)
    still = np.asarray(PIL.Image.open(tmp_path / "x.png"))
    assert still.shape == (32, 1200, 3) and still[0, 0, 0] > 250 > 5 > still[0, 100, 0]
    (tmp_path / "x.gif").write_bytes(found.Images("video_0_ema")[1].encoded_image_string)
    with PIL.Image.open(tmp_path / "x.gif") as moving:
        assert (moving.size, moving.n_frames, moving.info["duration"]) == ((320, 26), 5, 120)
        assert moving.convert("RGB").getpixel((300, 10))[0] < 20


def test_wandb_without_a_network_has_each_step_once(tmp_path: Path) -> None:
    """Stopped after 6 steps, gone on from the third: one folder has all of it, with the pictures."""
    train(tmp_path, ("wandb",), 0, 6)
    first = history(tmp_path)
    train(tmp_path, ("wandb",), 3, 9)
    found = history(tmp_path)
    assert sorted(first) == list(range(1, 7)) and sorted(found) == list(range(1, 10))
    said = list(lines(tmp_path / "metrics.jsonl"))
    assert [found[line["step"]]["gpu_hours"] for line in said] == [line["gpu_hours"] for line in said]
    assert found[9]["loss"] == 1 / 9 and [step for step in found if "pictures" in found[step]] == [4, 8]
    [folder] = tmp_path.glob("wandb/offline-run-*/files")
    assert all((folder / found[8][name]["path"]).is_file() for name in ("pictures", "video_0_ema"))
    assert found[8]["video_0_ema"]["_type"] == "video-file"
    run = next(record.run for record in records(tmp_path) if record.WhichOneof("record_type") == "run")
    assert run.run_id == (tmp_path / "wandb/id").read_text() and run.project == "hpc"
    assert {item.key: json.loads(item.value_json) for item in run.config.update}["batch"] == 8


def test_pictures_come_back_with_the_steps(tmp_path: Path) -> None:
    train(tmp_path, ("wandb",), 0, 5)
    train(tmp_path, ("wandb",), 4, 6)
    found = history(tmp_path)
    assert sorted(found) == [1, 2, 3, 4, 5, 6] and "video_0_ema" in found[4]
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1


def test_a_server_that_is_not_there_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    train(tmp_path, ("wandb",), 0, 3)
    assert "for `wandb sync`" in caplog.text and sorted(history(tmp_path)) == [1, 2, 3]
    for path in tmp_path.rglob("*"):
        assert path.is_dir() or b"0123456789" * 4 not in path.read_bytes(), f"the key stands in {path}"


def test_one_that_fails_is_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Metrics(tmp_path / "metrics.jsonl", trackers=["tensorboard"]) as told:
        told.step(1, loss=1.0)
        told.trackers[0].file.close()
        told.show(2, [tmp_path / "none.webp"])
        told.step(2, loss=0.5)
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1, 2] and told.trackers == []
    assert [one.message for one in caplog.records] == ["metrics: TensorBoard is told nothing any more"]


def test_a_package_that_is_not_there_is_said_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None if name == "wandb" else name)
    with pytest.raises(ValueError, match=r"metrics: wandb: .* pip install '.\[wandb\]', or leave it out"):
        Metrics(tmp_path / "metrics.jsonl", trackers=["tensorboard", "wandb"])
    assert not (tmp_path / "tensorboard").exists()


def test_names(tmp_path: Path) -> None:
    assert trackers.named(tmp_path / "out/ar@v1/training") == "out/ar@v1"
    assert trackers.named(tmp_path / "scratch/7f3a91c2") == "scratch/7f3a91c2"


def test_gpu_hours_count_lost_steps(tmp_path: Path) -> None:
    train(tmp_path, (), 0, 6)
    lost = list(lines(tmp_path / "metrics.jsonl"))[-1]["gpu_hours"]
    train(tmp_path, (), 3, 4)
    found = [line["gpu_hours"] for line in lines(tmp_path / "metrics.jsonl")]
    assert found == sorted(found) and found[2] < lost < found[3]
