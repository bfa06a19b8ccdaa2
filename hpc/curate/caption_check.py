"""What can be told of a caption by itself, and beside the others of its shard: the first part of curate.caption_qa.

<shard>.parquet has a row for each window: the flags that are known by now, a hash of its words and its length (for what
can be told of all captions only), its language, and how well it fits its clip.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from hpc.curate.language import language
from hpc.curate.settings.caption_qa import CaptionCheck
from hpc.curate.settings.embed import NAMES
from hpc.data import layers, storage, upstream
from hpc.data.work import Made, Work
from hpc.models.vlm import REFUSAL

SCHEMA = pa.schema(
    [
        ("uuid", pa.string()),
        ("window", pa.int32()),
        ("hash", pa.uint64()),  # of the words; 0: there are none
        ("words", pa.int32()),  # letters, of scripts without spaces
        ("language", pa.string()),  # "": cannot be told
        ("fit", pa.float32()),  # cosine of caption and clip; null: not looked at
        ("worse_than", pa.float32()),  # share of other clips of the shard that the caption fits better
        ("flags", pa.list_(pa.string())),
        ("detail", pa.string()),
    ]
)
CAPTIONS = ("uuid", "window", "caption", "status")
EMBEDDINGS = ("uuid", "embedding")
NOTHING = {"", "none", "null", "n a", "no caption", "caption", "description", "video"}
"""Captions that say nothing, as `normal` has them."""
UNSPACED = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\u0e00-\u0e7f]")  # kana, Han, Thai
APART = re.compile(rf"{UNSPACED.pattern}|(?:(?!{UNSPACED.pattern}).)+")
OTHERS = 256  # clips that a caption is compared with
FEWEST = 8  # clips in a shard, below which nothing is told by comparing
SHIFTS = (-3, -2, -1, 1, 2, 3)
SURE = 4.0  # standard errors by which captions must fit another clip better, to be taken for that clip's
LONGEST = 40  # words of a phrase that comes again at once
Vectors = npt.NDArray[np.float32]


def start(settings: CaptionCheck) -> Callable[[Work], Made]:
    """Raises as `open_text_tower` does."""
    tower = None
    if settings.match is not None:
        from hpc.models.text_tower import open_text_tower

        where = NAMES.get(settings.match, settings.match)
        tower = open_text_tower(where, settings.trust_remote_code or where != settings.match)
    return functools.partial(process, settings, tower)


def process(settings: CaptionCheck, tower: Callable[[Sequence[str]], Vectors] | None, work: Work) -> Made:
    """Raises ValueError where `needs` names no captions, no embeddings of the model that `match` names, or two of
    those."""
    captions = work.upstream[upstream.stage_with(work.upstream, CAPTIONS, "captions")][".parquet"]
    columns = [*CAPTIONS, "detail", *([] if settings.field == "caption" else ["enhanced", "enhanced_status"])]
    rows = upstream.table(captions, columns).to_pylist()
    out = []
    for done, row in enumerate(rows):
        if done % 256 == 0:
            work.check()
            work.progress(done / len(rows), f"{done} of {len(rows)} captions")
        text, status = row["caption"], row["status"]
        if settings.field == "enhanced":
            text, status = row["enhanced"] or "", row["enhanced_status"] or "error"
        found = checked(text, status, row["detail"], settings.language)
        out.append({"uuid": row["uuid"], "window": row["window"], **found})
    meta: dict[str, Any] = {"stage": settings.KIND, "fingerprint": work.fingerprint, "shift": 0}
    if tower is not None:
        texts = [row["caption"] if settings.field == "caption" else row["enhanced"] or "" for row in rows]
        meta["shift"] = matched(settings, tower, texts, out, work)
    path = work.scratch / f"{work.shard}.parquet"
    layers.write_table(path, out, meta, SCHEMA)
    flags = Counter(flag for row in out for flag in row["flags"])
    return Made([path], {"windows": len(out), **{f"{flag}_captions": n for flag, n in flags.items()}})


def checked(text: str, status: str, detail: str, expected: str | None) -> dict[str, Any]:
    """What can be told of one caption."""
    flags: dict[str, str] = {}
    words = normal(text)
    told, foreign = language(text)
    if status == "error":
        flags["error"] = detail
    elif words in NOTHING:
        flags["empty"] = ""
    elif status == "refused" or REFUSAL.match(text.replace("\u2019", "'")):
        flags["refused"] = ""
    if status == "truncated":
        flags["truncated"] = ""
    if not flags.keys() & {"error", "empty"}:
        if phrase := loop(text):
            flags["loop"] = phrase
        if expected is not None and ((told and told != expected) or (foreign and foreign != expected)):
            flags["language"] = told if told and told != expected else f"{foreign} in {told or 'an unknown one'}"
    said = bool(words) and status != "error"
    return {
        "hash": int.from_bytes(hashlib.blake2b(words.encode(), digest_size=8).digest()) or 1 if said else 0,
        "words": len(tokens(text)) if said else 0, "language": told, "flags": list(flags),
        "detail": "; ".join(f"{flag}: {why[:200]}" for flag, why in flags.items() if why),
    }  # fmt: skip


def normal(text: str) -> str:
    """The words alone: the same for captions that differ in case, spaces and punctuation."""
    return " ".join(re.findall(r"[^\W_]+", text.lower()))


def tokens(text: str) -> list[str]:
    """Words; of scripts without spaces, letters."""
    words = re.findall(r"[^\W_]+", text.lower())
    if text.isascii() or not UNSPACED.search(text):
        return words
    return [part for word in words for part in APART.findall(word)]


def loop(text: str) -> str:
    """A phrase that comes again and again, as where a model does not find its way out; "" if there is none.

    At once: three times or more, twelve words in all (six of one word). Or sentences of four words or more: three
    times; of ten words or more, twice, if that is two thirds of the text.
    """
    words = tokens(text)
    threes = list(zip(words, words[1:], words[2:], strict=False))
    if len(threes) - len(set(threes)) < 3:  # most captions; all that follows has that many
        return ""
    numbers: dict[str, int] = {}
    ids = np.array([numbers.setdefault(word, len(numbers)) for word in words])
    for period in range(1, min(LONGEST, len(ids) // 3) + 1):
        same = np.concatenate([[False], ids[period:] == ids[:-period], [False]])
        turns = np.flatnonzero(np.diff(same.astype(np.int8)))
        lengths = turns[1::2] - turns[::2]
        if len(lengths) and (most := int(lengths.max())) >= max(2 * period, (5 if period == 1 else 12 - period)):
            at = int(turns[::2][lengths.argmax()])
            return f"{' '.join(words[at : at + period])!r} {(most + period) // period} times"
    sentences = Counter(normal(one) for one in re.split(r"[.!?。！？\n]+", text))
    for sentence, times in sentences.most_common(5):
        long = len(tokens(sentence))
        if long >= 4 and (times >= 3 or (times == 2 and long >= 10 and 3 * long >= len(words))):
            return f"{sentence!r} {times} times"
    return ""


def matched(
    settings: CaptionCheck, tower: Callable[[Sequence[str]], Vectors], texts: Sequence[str], rows: list[dict[str, Any]],
    work: Work,
) -> int:  # fmt: skip
    """Fills in how well captions fit their clips, and flags those that do not; by how many places all are shifted."""
    uri = work.upstream[upstream.stage_with(work.upstream, EMBEDDINGS, "embeddings")][".parquet"]
    with storage.open(uri) as file:
        made_by = layers.read_meta(file)["model"]
        table = layers.read_table(file, ["uuid", "embedding"])
    if made_by not in (settings.match, NAMES.get(settings.match or "")):
        raise ValueError(f"match: the embeddings are those of {made_by!r}, so texts of {settings.match!r} are no match")
    place = {uuid: at for at, uuid in enumerate(table["uuid"].to_pylist())}
    usable = [at for at, row in enumerate(rows) if row["hash"] and row["uuid"] in place]
    if not usable or len(place) < FEWEST:
        return 0
    flat = table["embedding"].combine_chunks().flatten().to_numpy()
    clips = unit(flat.reshape(len(place), -1))
    captions = unit(np.concatenate([tower([texts[at] for at in usable[begin : begin + 256]])
                                    for begin in ticked(range(0, len(usable), 256), work)]))  # fmt: skip
    if captions.shape[1] != clips.shape[1]:
        raise ValueError(f"match: {settings.match!r} has vectors of {captions.shape[1]} numbers, and the embeddings of "
                         f"{made_by!r} have {clips.shape[1]}")  # fmt: skip
    mine = np.array([place[rows[at]["uuid"]] for at in usable])
    fits = np.einsum("nd,nd->n", captions, clips[mine])
    # What all captions, or all clips, have in common says nothing, and would make some clips fit every caption.
    captions, clips = unit(captions - captions.mean(0)), unit(clips - clips.mean(0))
    order = np.array(sorted(range(len(clips)), key=lambda at: hashlib.blake2b(str(at).encode()).digest()))
    others = np.sort(order[:OTHERS])
    theirs = captions @ clips[others].T
    own = np.einsum("nd,nd->n", captions, clips[mine])
    compared = others[None] != mine[:, None]
    worse = ((theirs > own[:, None]) & compared).sum(1) / np.maximum(compared.sum(1), 1)
    shift, better = shifted(captions, clips, mine, own)
    for at, fit, share, there in zip(usable, fits, worse, better, strict=True):
        row = rows[at]
        row["fit"], row["worse_than"] = float(fit), float(share)
        if shift and there:
            note(row, "shifted", f"fits the clip {abs(shift)} {'after' if shift > 0 else 'before'} better")
        elif share > settings.worse_than:
            note(row, "mismatched", f"fits {share:.0%} of other clips better than its own")
    return shift


def shifted(
    captions: Vectors, clips: Vectors, mine: npt.NDArray[np.int64], own: Vectors
) -> tuple[int, npt.NDArray[np.bool_]]:
    """By how many places captions belong to other clips (0: they don't), and which ones fit there better.

    Neighbours may be of one scene, so captions must fit the clip some places off better than their own by far: by SURE
    standard errors in the mean, and most of them.
    """
    best, found = 0.0, (0, np.zeros(len(mine), bool))
    for shift in SHIFTS:
        there = mine + shift
        known = (there >= 0) & (there < len(clips))
        if known.sum() < FEWEST:
            continue
        gain = np.where(known, np.einsum("nd,nd->n", captions, clips[np.clip(there, 0, len(clips) - 1)]) - own, 0.0)
        sure = gain[known].mean() / (gain[known].std(ddof=1) / np.sqrt(known.sum()) + 1e-12)
        if sure > max(SURE, best) and (gain[known] > 0).mean() > 0.7:
            best, found = sure, (shift, gain > 0)
    return found


def note(row: dict[str, Any], flag: str, why: str) -> None:
    row["flags"].append(flag)
    row["detail"] = "; ".join(filter(None, (row["detail"], f"{flag}: {why}")))


def unit(vectors: Vectors) -> Vectors:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)


def ticked(steps: range, work: Work) -> Any:
    for step in steps:
        work.check()
        yield step
