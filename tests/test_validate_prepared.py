"""What is wrong with tokens and latents is told before a GPU is allocated, file by file; what is right passes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import token_sets
import torch
from safetensors.torch import save
from token_sets import Window

from hpc import validate
from hpc.data import layers
from hpc.prepare.forms import megatron
from hpc.prepare.settings import Megatron
from hpc.validate import Report

SHAPE = (5, 16, 20)


def found(folder: Path, consumer: str, **more: Any) -> Report:
    return validate.validate(str(folder), consumer, **more)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve documents."""
    place = tmp_path_factory.mktemp("tokens")
    windows = [Window(f"c{i}", 9 * j, source=f"/{i}.mp4") for i in range(6) for j in range(2)]
    folder, _ = token_sets.form(place, Megatron(), token_sets.ids(place, [windows[:5], windows[5:]], SHAPE))
    return Path(folder)


@pytest.fixture
def copy(tokens: Path, tmp_path: Path) -> Path:
    shutil.copytree(tokens, tmp_path / "data")
    return tmp_path / "data"


def test_a_good_data_set_of_tokens(tokens: Path, copy: Path) -> None:
    for sample in (None, 3):
        report = found(tokens, "megatron-tokens", sample=sample)
        assert (report.errors, report.warnings, report.entries) == (0, 0, 12), report.problems
    (copy / "000000.parquet").unlink()
    for suffix in (".bin", ".idx"):  # as NVIDIA's script calls them
        (copy / f"000000{suffix}").rename(copy / suffix)
    report = found(copy, "megatron-tokens")
    assert (report.errors, report.entries) == (0, 12), report.problems


def ids(copy: Path) -> np.ndarray[Any, Any]:
    return np.fromfile(copy / "000000.bin", "<i4")


def too_large(copy: Path) -> None:
    some = ids(copy)
    some[1600 * 7 + 3] = 64_000
    some.tofile(copy / "000000.bin")


def rounded(copy: Path) -> None:
    torch.from_numpy(ids(copy)).to(torch.bfloat16).to(torch.int32).clamp(max=63_744).numpy().tofile(copy / "000000.bin")


def changed_index(change: Callable[[bytearray], None]) -> Callable[[Path], None]:
    def wreck(copy: Path) -> None:
        data = bytearray((copy / "000000.idx").read_bytes())
        change(data)
        (copy / "000000.idx").write_bytes(data)

    return wreck


def lengths(copy: Path) -> None:
    """The last document has half the ids of the others."""
    some = np.full(12, 1600, np.int64)
    some[-1] = 800
    megatron.write_index(copy / "000000.idx", some)
    ids(copy)[: some.sum()].tofile(copy / "000000.bin")


def few(copy: Path) -> None:
    megatron.write_index(copy / "000000.idx", np.full(2, 1600, np.int64))
    ids(copy)[:3200].tofile(copy / "000000.bin")
    (copy / "000000.parquet").unlink()


def table(change: Callable[[list[dict[str, Any]]], Any]) -> Callable[[Path], None]:
    def wreck(copy: Path) -> None:
        path = copy / "000000.parquet"
        rows, meta = layers.read_table(path).to_pylist(), layers.read_meta(path)
        change(rows)
        layers.write_table(path, rows, meta, megatron.COLUMNS)

    return wreck


@pytest.mark.parametrize(
    ("wreck", "rule", "words"),
    [
        (too_large, "ids", "id 64000 in document 7: the tokenizer has 0 to 63999"),
        (rounded, "bfloat16", "is one that bfloat16 holds"),
        (lambda copy: (copy / "000000.bin").unlink(), "missing", "the .bin is not"),
        (lambda copy: (copy / "000000.bin").write_bytes(b"1234"), "size", "it has 4 bytes, the .idx tells of 76,800"),
        (lambda copy: (copy / "000000.idx").write_bytes(b"MMIDIDX"), "index", "cut short"),
        (changed_index(lambda data: data.__setitem__(slice(0, 3), b"XXX")), "index", "no index of Megatron's"),
        (changed_index(lambda data: data.__setitem__(17, 7)), "dtype", "numbers are float32; ids are int32"),
        (changed_index(lambda data: data.__setitem__(-8, 11)), "documents", "one document of one sequence"),
        (changed_index(lambda data: data.__setitem__(34 + 48, 4)), "pointers", "one after the other"),
        (lengths, "length", r"documents 11 \(800 ids\) should have 1600 ids"),
        (few, "split", "of 2 documents, split 4,1,1, none is for test"),
        (table(lambda rows: rows.pop()), "table", "11 rows for 12 documents"),
        (table(lambda rows: rows[0].update(split="test")), "table", "its splits are not those of 4,1,1"),
        (table(lambda rows: [row.update(uuid="c1", start=0) for row in rows[:3]]), "duplicate", "c1 from frame 0 is "),
    ],
)  # fmt: skip
def test_what_is_wrong_with_tokens(copy: Path, wreck: Callable[[Path], Any], rule: str, words: str) -> None:

    wreck(copy)
    report = found(copy, "megatron-tokens")
    told = [one for one in report.problems if one.rule == rule]
    assert report.errors and told and re.search(words, told[0].what), report.problems
    assert all(one.do for one in told)


# Latents


Change = Callable[[dict[str, Any], dict[str, Any]], Any]


def sample(seed: int, change: Change = lambda about, more: None) -> dict[str, bytes]:
    about = {"uuid": f"{seed}", "start": 0, "num_frames": 9, "fps": 24.0, "height": 32, "width": 64,
             "shape": [3, 3, 4, 8], "inside": [0, 0, 64, 32], "caption": "words", "tokenizer": "tiny"}  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    more: dict[str, Any] = {"latents": torch.randn(3, 3, 4, 8, generator=generator).bfloat16()}
    change(about, more)
    return {".safetensors": more.pop("raw", None) or save(more), ".json": json.dumps(about).encode()}


def tars(folder: Path, *samples: dict[str, bytes]) -> Path:
    folder.mkdir()
    with layers.TarWriter(folder / "000000.tar") as tar:
        for number, members in enumerate(samples):
            tar.add(f"{number}_0", members)
    return folder


def test_good_latents(tmp_path: Path) -> None:
    report = found(tars(tmp_path / "x", *map(sample, range(4))), "latents")
    assert (report.errors, report.warnings, report.entries) == (0, 0, 4), report.problems
    report = found(tmp_path / "x", "latents", sample=2)
    assert (report.errors, report.entries) == (0, 2)


def put(**values: Any) -> Change:
    return lambda about, more: about.update(values)


def tensor(make: Callable[[], Any]) -> Change:
    return lambda about, more: more.update(latents=make())


@pytest.mark.parametrize(
    ("change", "rule", "words", "error"),
    [
        (put(shape=[3, 3, 8, 4]), "shape", "the .json says", True),
        (put(num_frames=10), "shape", "latents of 3x4x8 are not those of 10 frames of 32x64", True),
        (put(height=64), "shape", "are not those of", True),
        (put(inside=[0, 0, 65, 32]), "inside", "is not in 64x32", True),
        (put(fps=0), "fps", "0 frames a second", True),
        (put(tokenizer="other"), "tokenizers-differ", "3 channels of other; 3 channels of tiny", True),
        (put(caption=None), "no-caption", "1 samples have no caption", False),
        (lambda about, more: about.pop("inside"), "sample", "not what the reader expects: KeyError: 'inside'", True),
        (lambda about, more: more.update(raw=b"no tensor"), "safetensors", "is expected: ", True),
        (tensor(lambda: torch.randn(3, 96)), "safetensors", "F32[3, 96]", True),
        (lambda about, more: more.update(other=more.pop("latents")), "safetensors", "KeyError: 'latents'", True),
        (tensor(lambda: torch.full((3, 3, 4, 8), torch.inf)), "finite", "inf or nan", True),
        (tensor(lambda: torch.zeros(3, 3, 4, 8)), "constant", "all numbers are 0.0", False),
        (tensor(lambda: 20 * torch.randn(3, 3, 4, 8).half()), "normalised", "these are not normalised", False),
    ],
)
def test_what_is_wrong_with_latents(tmp_path: Path, change: Any, rule: str, words: str, error: bool) -> None:
    report = found(tars(tmp_path / "x", sample(0), sample(1, change)), "latents")
    told = [one for one in report.problems if one.rule == rule]
    assert told and words in told[0].what and told[0].error == error, report.problems
    assert report.rules.total() == 1


def test_tars_of_latents_that_are_no_tars(tmp_path: Path) -> None:
    folder = tars(tmp_path / "x", sample(0), {".json": b"{}"})
    shutil.copyfile(folder / "000000.tar", folder / "000001.tar")
    (folder / "000002.tar").write_bytes(b"\1" * 1024)
    report = found(folder, "latents")
    assert dict(report.rules) == {"duplicate": 2, "member": 2, "tar": 1}
    (tmp_path / "none").mkdir()
    (tmp_path / "none/x.txt").write_text("x")
    for consumer, rule in (("latents", "no-tars"), ("megatron-tokens", "no-index")):
        assert dict(found(tmp_path / "none", consumer).rules) == {rule: 1}
