"""Tokens in Megatron's IndexedDataset: <prefix>.bin and .idx, and the table of documents that hpc writes beside them.

megatron-core 0.16.1: datasets/indexed_dataset.py, gpt_dataset.py, blended_megatron_dataset_builder.py. Cosmos' 4B and
12B models take one clip a document (NVIDIA/Cosmos 71f19b0: nemo/post_training/general.py).
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from hpc.data import layers, storage
from hpc.data.tokens import VOCABULARY
from hpc.data.tokens.indexed import Index, index
from hpc.prepare.documents import splits
from hpc.validate import Files, Report, expected

AGAIN = "Make the data set again (prepare.tokens)"
PIECE = 2**22  # ids that are looked at at a time
TELLING = 1000  # ids above 512 that tell whether they went through bfloat16


def megatron(files: Files, report: Report) -> None:
    names = files.named(after=".idx")
    if not names and storage.stat(files.uri(".idx")):
        names = [".idx"]  # NVIDIA's script gives the prefix "folder/"
    if not names:
        report.add("", "no-index", "there is no .idx", "Give the folder of the data set: that of the stage, <stage>@vN")
    for name in names:
        try:
            found = index(files.read(name))
        except ValueError as error:
            report.add(name, "index", str(error), AGAIN)
            continue
        stem = name.removesuffix(".idx")
        meta: dict[str, Any] = {}
        with expected(f"{stem}.parquet", "table", report):
            meta = _table(files, report, stem, found)
        report.entries += len(found.documents) - 1
        _index(report, name, found, meta)
        _ids(files, report, stem, found, meta.get("vocabulary", VOCABULARY))


def _index(report: Report, name: str, found: Index, meta: dict[str, Any]) -> None:
    lengths, documents = found.lengths.astype(np.int64), len(found.documents) - 1
    if found.dtype != np.dtype("<i4"):
        report.add(name, "dtype", f"numbers are {found.dtype}; ids are int32, code 4", AGAIN)
    if not documents:
        report.add(name, "empty", "it has not one document", "Look into the tables of ids: they say why clips were "
                   "left out")  # fmt: skip
        return
    if found.documents.tolist() != list(range(documents + 1)) or documents != len(lengths):
        what = f"{documents} documents of {len(lengths)} sequences; a clip is one document of one sequence"
        report.add(name, "documents", what, AGAIN)
    if (found.places != (np.cumsum(lengths) - lengths) * found.dtype.itemsize).any():
        report.add(name, "pointers", "documents do not lie one after the other in the .bin", AGAIN)
    sizes, counts = np.unique(lengths, return_counts=True)
    usual = int(np.prod(meta["shape"])) if meta.get("shape") else int(sizes[counts.argmax()])
    if odd := [(i, int(n)) for i, n in enumerate(lengths.tolist()) if n != usual][:3]:
        what = f"documents {', '.join(f'{i} ({n} ids)' for i, n in odd)} should have {usual} ids, as the others: " \
               "Megatron cuts what it trains on from all documents one after the other, and clips would begin anywhere"
        report.add(name, "length", what, AGAIN)
    split = meta.get("split", "4,1,1")
    shares = [float(one) for one in split.split(",")]
    for (part, places), share in zip(splits(documents, split).items(), shares, strict=False):
        if share and not places:
            what = f"of {documents} documents, split {split}, none is for {part}: Megatron stops there"
            report.add(name, "split", what, "Prepare more clips, or give another split, e.g. 1,1,1 or 1,0,0")


def _ids(files: Files, report: Report, stem: str, found: Index, vocabulary: int) -> None:
    """Of all documents, or of a sample of them."""
    name, size = f"{stem}.bin", found.dtype.itemsize
    entry = storage.stat(files.uri(name))
    if entry is None:
        report.add(name, "missing", "the .idx is there, the .bin is not", AGAIN)
        return
    total = int(found.lengths.sum(dtype=np.int64)) * size
    if entry.size != total:
        report.add(name, "size", f"it has {entry.size:,} bytes, the .idx tells of {total:,}", AGAIN)
        return
    if found.dtype.kind not in "iu":
        return
    sampled = report.settings.sample is not None
    ranges = [(int(at), int(at) + int(n) * size) for at, n in zip(found.places, found.lengths, strict=True)]
    if sampled:
        ranges = report.pick("documents", ranges)
    else:
        ranges = [(at, min(at + PIECE * size, total)) for at in range(0, total, PIECE * size)]
    telling, held = 0, True
    for (begin, _), data in layers.map_ahead(lambda r: (r, storage.read(files.uri(name), *r)), ranges):
        ids = np.frombuffer(data, found.dtype)
        if len(ids) and (ids.min() < 0 or ids.max() >= vocabulary):
            first = int(np.argmax((ids < 0) | (ids >= vocabulary)))
            place = int(np.searchsorted(found.places, begin + first * size, "right")) - 1
            what = (f"id {ids[first]} in document {place}: the tokenizer has 0 to {vocabulary - 1}, the model's output "
                    "layer no more")  # fmt: skip
            report.add(name, "ids", what, AGAIN)
        large = ids[ids > 512].astype(np.int64)
        telling += len(large)
        step = np.left_shift(1, np.frexp(large)[1].astype(np.int64) - 8)  # bfloat16 has eight binary digits
        held = held and not (large % step).any()
    if held and telling >= TELLING:
        what = f"each of {telling:,} ids above 512 is one that bfloat16 holds: they were rounded, and most are lost"
        report.add(name, "bfloat16", what, "Keep ids in int32 from the tokenizer on: make the data set again")


def _table(files: Files, report: Report, stem: str, found: Index) -> dict[str, Any]:
    """What the table says of the data set; {} where there is none, as in data sets of others."""
    name = f"{stem}.parquet"
    if name not in files.sizes:
        return {}
    with files.open(name) as file:
        meta = layers.read_meta(file)
        table = layers.read_table(file, ["document", "split", "uuid", "start"])
    rows = table.to_pydict()
    count = len(found.documents) - 1
    if rows["document"] != list(range(count)):
        report.add(name, "table", f"it has {len(table)} rows for {count} documents, or not in their order", AGAIN)
        return meta
    expected_splits = [part for part, places in splits(count, meta["split"]).items() for _ in places]
    if rows["split"] != expected_splits:
        report.add(name, "table", f"its splits are not those of {meta['split']}", AGAIN)
    [((uuid, start), times)] = Counter(zip(rows["uuid"], rows["start"], strict=True)).most_common(1) or [(("", 0), 0)]
    if times > 1:
        report.add(name, "duplicate", f"clip {uuid} from frame {start} is there {times} times", AGAIN)
    return meta
