"""prepare.tokens and prepare.latents by the real worker: on any number of array tasks, and killed in the middle."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
import yaml
from test_prepare import film

from hpc import validate
from hpc.batch.prepare import Prepared
from hpc.data import storage
from hpc.data.upstream import table
from hpc.models.tokenizers import cosmos, files, wan
from hpc.train import samples

FILMS = 8
SIZE = 1 << 17  # bytes of each


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of films, and a tokenizer."""
    folder = tmp_path_factory.mktemp("prepare")
    for i in range(FILMS):
        path = film(folder / f"in/{i}.mp4", 6 + 3 * i, seed=i)
        with path.open("ab") as file:  # a box that is free, so that all are as large, and tasks get as many
            file.write(struct.pack(">I4s", SIZE - path.stat().st_size, b"free"))
            file.truncate(SIZE)
    torch.manual_seed(0)
    dv = cosmos.CosmosDiscrete(cosmos.Config(channels=8, window=3))
    dv.encoder.quantise.weight.data *= 50
    files.save(dv, folder / "dv")
    return folder


def spec(place: Path, folder: Path, **stage: Any) -> Path:
    """Each film is a shard."""
    stage = {"kind": "prepare.tokens", "tokenizer": str(place / "dv"), "frames": 9, "size": [32, 64],
             "windows": "all", "precision": "float32", "resources": {"cpus": 1}} | stage  # fmt: skip
    file = folder / "t.yaml"
    file.write_text(yaml.safe_dump({
        "name": "t", "inputs": str(place / "in"), "output": "out", "stages": {"tokens": stage},
        "shards": {"size": "1KiB", "split_above": "1GiB"}, "env": {"OMP_NUM_THREADS": "1"}}))  # fmt: skip
    return file


def form(made: Prepared) -> None:
    runs.finish(runs.worker(made, "tokens", "barrier"))
    assert made.attempt
    for row in range(made.attempt.rows("tokens")):
        runs.finish(runs.worker(made, "tokens", row))


def test_two_tasks_and_eight_and_a_kill(place: Path, tmp_path: Path) -> None:
    """The data set is the same to the byte; of what was killed nothing is lost, nothing made twice."""
    outputs = []
    for cores in (2, 8):
        folder = tmp_path / str(cores)
        folder.mkdir()
        made = runs.planned(spec(place, folder), cores=cores)
        assert made.attempt and made.attempt.rows("inputs") == cores
        if cores == 2:
            process = runs.worker(made, "tokens-ids", 0)
            runs.until(lambda made=made: len(runs.said(made.run, "start", "tokens-ids")) >= 2)
            process.kill()
            process.communicate()
        for row in range(0, cores, 2):
            for process in [runs.worker(made, "tokens-ids", row), runs.worker(made, "tokens-ids", row + 1)]:
                runs.finish(process)
        starts = runs.said(made.run, "start", "tokens-ids")
        assert len(set(starts)) == FILMS and len(starts) == FILMS + (cores == 2), "what was in flight"
        form(made)
        storage.sweep(str(folder / "out"), 0)
        outputs.append(runs.objects(folder / "out"))
        assert runs.planned(folder / "t.yaml").attempt is None, "something is left to do"
    data = [{name: digest for name, digest in one.items() if name.endswith((".bin", ".idx"))} for one in outputs]
    assert data[0] == data[1] and len(data[0]) == FILMS + 2
    rows = table(str(tmp_path / "8/out/tokens@v1/000000.parquet")).to_pylist()
    assert sorted((Path(row["source"]).name, row["start"]) for row in rows) == [
        (f"{i}.mp4", start) for i in range(1, FILMS) for start in range(0, (6 + 3 * i) // 9 * 9, 9)]  # fmt: skip
    assert {row["split"] for row in rows} == {"train", "valid", "test"}
    [left] = table(str(tmp_path / "8/out/tokens-ids@v1/000000.parquet")).to_pylist()
    assert (left["why"], left["frames"], Path(left["source"]).name) == ("too-short", 6, "0.mp4")


def test_a_list_of_prompts_to_latents(place: Path, tmp_path: Path) -> None:
    """As Cosmos' autoregressive models have it: captions go along; another one takes the old sample's place."""
    torch.manual_seed(0)
    files.save(wan.WanVAE(wan.Config(channels=8)), tmp_path / "wan")
    stage = {"kind": "prepare.latents", "tokenizer": str(tmp_path / "wan"), "windows": "first"}
    file = spec(place, tmp_path, **stage)
    file.write_text(file.read_text().replace(str(place / "in"), str(tmp_path / "list.jsonl")))
    for version, prompt in ((1, "a cat"), (2, "a dog")):
        lines = [{"visual_input": str(place / "in/2.mp4"), "prompt": prompt}, {"visual_input": str(place / "in/3.mp4")}]
        (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
        made = runs.planned(file)
        runs.finish(runs.worker(made, "tokens-encode"))
        form(made)
        folder = tmp_path / f"out/tokens@v{version}"
        found = samples.listed(str(folder)).to_pylist()
        assert {Path(row["source"]).name: row["prompt"] for row in found} == {"2.mp4": prompt, "3.mp4": None}
        assert json.loads(samples.fetched(next(row for row in found if row["prompt"])["json"]))["caption"] == prompt
        assert validate.validate(str(folder), "latents").rules == {"no-caption": 1}
    assert len(list((tmp_path / "out/tokens-encode@v1").glob("*.tar"))) == 3, "only what changed is encoded again"
