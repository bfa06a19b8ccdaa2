"""What readers find in a data set that curate.shard has made: ours, webdataset's own, and `hpc validate`."""

from __future__ import annotations

import io
import re

import webdataset

from hpc import validate
from hpc.data import layers, storage

BIN = "v0/resolution_720/aspect_ratio_16_9"


def files(folder: str) -> dict[str, bytes]:
    """What a reader looks at, by name; not the stage's own tables."""
    names = {entry.uri.removeprefix(folder + "/"): entry.uri for entry in storage.listing(folder)}
    own = re.compile(r"\d{6}\.parquet|left-out\.parquet")
    return {name: storage.read(uri) for name, uri in names.items() if not own.fullmatch(name)}


def tar(data: bytes) -> dict[str, dict[str, bytes]]:
    """What our reader and webdataset's see in a tar: the same."""
    ours = dict(layers.read_tar(io.BytesIO(data)))
    with webdataset.tariterators.tarfile.open(fileobj=io.BytesIO(data)) as file:
        parts = webdataset.tariterators.group_by_keys(
            {"fname": one.name, "data": file.extractfile(one).read(), "__url__": ""} for one in file
        )
        theirs = {
            sample["__key__"]: {f".{name}": data for name, data in sample.items() if not name.startswith("__")}
            for sample in parts
        }
    assert ours == theirs
    return ours


def lost(folder: str, name: str = "left-out.parquet") -> dict[str, str]:
    """What is not in a data set, and why."""
    with storage.open(f"{folder}/{name}") as file:
        table = layers.read_table(file)
    assert all(table["detail"].to_pylist()) and not table["path"].drop_null()
    return dict(zip(*(table[name].to_pylist() for name in ("key", "why")), strict=True))


def good(folder: str, consumer: str, **more: int) -> validate.Report:
    report = validate.validate(folder, consumer, **more)
    assert not report.errors, list(validate.lines(report))
    return report
