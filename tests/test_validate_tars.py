"""Every rule of `hpc validate` for plain tars (webdataset, sessions)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from broken_sets import CLIPS, RIG, broken, found, good, retar, uuid

from hpc.data import layers, pickles

__all__ = ["broken", "good"]  # fixtures


@pytest.mark.parametrize("rule", ["no-tars", "tar", "duplicate", "member", "json", "pickle", "embeddings",
                                  "frame-count", "video", "members-differ"])  # fmt: skip
def test_webdataset(broken: Callable[[str], Path], rule: str) -> None:
    place = broken("webdataset")
    tar, id = place / "000000.tar", uuid(0, 1)
    only = lambda suffix, data: retar(tar, lambda key, m: m | {suffix: data} if key == id else m)
    expected = {(rule, f"000000.tar#{id}")}
    if rule == "no-tars":
        tar.rename(place / "x")
        expected = {(rule, "")}
    elif rule == "tar":
        tar.write_bytes(tar.read_bytes()[:-2000])
        expected = {(rule, "000000.tar")}
    elif rule == "duplicate":
        (place / "1.tar").write_bytes(tar.read_bytes())
        expected = {(rule, f"1.tar#{one.uuid}") for one in [*CLIPS[0], *CLIPS[1]]}
    elif rule in ("member", "members-differ"):
        drop = ".json" if rule == "member" else ".webp"
        retar(tar, lambda key, m: {s: d for s, d in m.items() if s != drop} if key == id else m)
        expected = {("members-differ", "")} | ({(rule, f"000000.tar#{id}")} if rule == "member" else set())
    elif rule == "json":
        only(".json", b"{")
        expected = {(rule, f"000000.tar#{id}.json")}
    elif rule in ("pickle", "embeddings"):
        only(".pickle", pickles.dumps([np.zeros((2, 4))] * 2) if rule == "embeddings" else b"x")
        expected = {(rule, f"000000.tar#{id}.pickle")}
    else:
        only(".mp4", datasets.mp4(50) if rule == "frame-count" else b"no video")
        expected = {(rule, f"000000.tar#{id}.mp4")}
    told = found(place, "webdataset")
    if rule == "tar":
        told = {one for one in told if one[0] == rule}
    assert told == expected


@pytest.mark.parametrize(
    "rule", ["session", "timestamps", "no-timestamps", "order", "count", "span", "camera-missing", "json"]
)
def test_sessions(broken: Callable[[str], Path], rule: str) -> None:
    place = broken("sessions")
    id = uuid(0, 0, RIG)
    tar = place / f"{id}.tar"
    name = f"{id}.tar#{id}.left"
    with tar.open("rb") as file:
        ((_, members),) = layers.read_tar(file)
    times = json.loads(members[".left.json"])
    only = lambda told: retar(tar, lambda key, m: m | {".left.json": json.dumps(told).encode()})
    expected = {("timestamps", f"{name}.json")}
    if rule == "session":
        tar.rename(place / "x.tar")
        expected = {(rule, f"x.tar#{id}")}
    elif rule == "timestamps":
        only([[1, 2]])
    elif rule == "no-timestamps":
        retar(tar, lambda key, m: {s: d for s, d in m.items() if s != ".left.json"})
        expected = {("timestamps", f"{name}.mp4")}
    elif rule == "order":
        only(times[::-1])
    elif rule == "count":
        only(times[:-1])
    elif rule == "span":
        only([one | {"timestamp": one["timestamp"] + 200} for one in times])
        expected = {(rule, f"{id}.tar#{id}")}
    elif rule == "camera-missing":
        retar(tar, lambda key, m: {s: d for s, d in m.items() if "left" not in s})
        expected = {(rule, f"{id}.tar")}
    else:
        retar(tar, lambda key, m: m | {".left.json": b"{"})
        expected = {(rule, f"{name}.json")}
    assert found(place, "sessions") == expected


def test_times_that_are_none(broken: Callable[[str], Path]) -> None:
    place, key = broken("sessions"), uuid(0, 0, RIG)
    with (place / f"{key}.tar").open("rb") as file:
        ((_, members),) = layers.read_tar(file)
    times = [one | {"timestamp": str(one["timestamp"])} for one in json.loads(members[".left.json"])]
    for wrong in (times, [*json.loads(members[".left.json"])[:-1], times[-1]], 5):
        retar(place / f"{key}.tar", lambda key, m, wrong=wrong: m | {".left.json": json.dumps(wrong).encode()})  # type: ignore[misc]
        assert found(place, "sessions") == {("timestamps", f"{key}.tar#{key}.left.json")}
