"""Token data sets for autoregressive models: video2world, with instructions for prompts, and actions.

NVIDIA/Cosmos 71f19b0: nemo/post_training/video2world_dataset.py, action_control/action_control_dataset.py,
action_control_ar_dataset.py. Files are read by hpc.data.tensors, which runs nothing. The tables that hpc writes beside
them, of samples and of trajectories, are held against them where they are there.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hpc.data import layers, tensors
from hpc.data.tokens import BOV, CALLED, PAD, VOCABULARY, action, padded
from hpc.data.tokens import video2world as form
from hpc.validate import Files, Report, expected

Array = npt.NDArray[Any]

SPLITS = tuple(CALLED.values())
IDS, FLOATS = ("int32", "int64"), ("float16", "bfloat16", "float32", "float64")
AGAIN = "Make the data set again (prepare.tokens)"
HALF = 257
"""The first id that bfloat16 does not hold."""
PIECE = 4096  # frames that are looked at at a time
SAMPLES = ["split", "index", "prompt", "prompt_tokens"]
"""Columns of a table of samples."""


class Seen(NamedTuple):
    """Of a sample whose files can be read."""

    digest: bytes
    """Of its ids."""
    tokens: int
    """Of its prompt: rows that are not zero."""


def video2world(files: Files, report: Report) -> None:
    told = files.json(form.METADATA, report)
    counts = _counts(told, report) if told is not None else {}
    samples = [(split, index) for split, count in counts.items() for index in range(count)]
    report.entries = len(samples)
    counted = {name for one in samples for name in form.names(*one)}
    for name in sorted(set(files.named(after=".pt")) - counted):
        report.add(name, "not-counted", f"{form.METADATA} does not count it: it is never opened",
                   "Count it, or take it away", error=False)  # fmt: skip
    ids, rows = math.prod(_latent(files, report)), _table(files, report)

    def look(one: tuple[str, int]) -> tuple[tuple[str, int], Report, Seen | None]:
        found = Report(report.consumer, report.folder, report.settings)  # of its own: others look at the same time
        return one, found, _sample(files, found, *one, ids)

    digests: dict[bytes, tuple[str, int]] = {}
    for one, found, seen in layers.map_ahead(look, report.pick("samples", samples)):
        for problem in found.problems:
            report.add(problem.file, problem.rule, problem.what, problem.do, problem.error)
        video, prompt = form.names(*one)
        row = rows.get(one)
        if rows and row is None:
            report.add(video, "table", "no table of samples has it: files of two data sets are mixed", AGAIN)
        if seen is None:
            continue
        if (other := digests.setdefault(seen.digest, one))[0] != one[0]:
            report.add(video, "leak", f"its ids are those of {form.names(*other)[0]}: what is held out is trained on",
                       "Hold out by source, and leave copies out (curate.dedup)", error=False)  # fmt: skip
        if row is not None and row["prompt_tokens"] != seen.tokens:
            words = f"{row['prompt']!r:.80} has {row['prompt_tokens']}"
            report.add(prompt, "prompt-tokens", f"{seen.tokens} tokens; {words}: it is another sample's", AGAIN)


def instruction(files: Files, report: Report) -> None:
    """As video2world; and each sample has an instruction, of one length wherever it is the same."""
    video2world(files, report)
    rows = _table(files, report)
    if not rows:
        report.add("", "no-instructions", "no table says which instruction each sample has: they are not looked at",
                   "Keep the .parquet files of prepare.tokens beside the samples", error=False)  # fmt: skip
    lengths: dict[str, int] = {}
    for (split, index), row in rows.items():
        name, words = form.names(split, index)[1], (row["prompt"] or "").strip()
        if not words:
            report.add(name, "instruction", "it is the embedding of no words: the robot is told nothing",
                       "Write its instruction, or leave the video out")  # fmt: skip
        elif lengths.setdefault(words, row["prompt_tokens"]) != row["prompt_tokens"]:
            what = f"{words!r:.80} is embedded as {row['prompt_tokens']} tokens, and as {lengths[words]} elsewhere"
            report.add(name, "instruction-tokens", what, "Embed all instructions with one encoder")


def _counts(told: Any, report: Report) -> dict[str, int]:
    counts = {}
    for split in SPLITS:
        key = f"{split}_samples"
        count = told.get(key) if isinstance(told, dict) else None
        if type(count) is not int or count < 0:
            what = f"{key} is {count!r}; the reader takes it for the length of the split"
            report.add(form.METADATA, "metadata", what, "Write how many samples each of train, test and val has")
            continue
        counts[split] = count
        if not count:
            why = {"train": "there is nothing to train on", "test": "the trainer validates on it", "val": "for the end"}
            report.add(form.METADATA, "empty-split", f"{key} is 0: {why[split]}", "Give more clips, or shares that "
                       "leave some for it", error=split == "train")  # fmt: skip
    return counts


def _latent(files: Files, report: Report) -> tuple[int, ...]:
    """Time, height and width of all samples' ids, by a table beside them; the published models' where there is none."""
    for name in files.named(after=".parquet"):
        with expected(name, "table", report), files.open(name) as file:
            shape = tuple(layers.read_meta(file)["shape"])
            if shape != form.LATENT:
                length = math.prod(shape) + padded(math.prod(shape), form.MULTIPLE)
                what = f"{length:,} inputs, for {' x '.join(map(str, shape))} ids; NeMo's trainer asserts 12,864"
                report.add(name, "latent", what, "Train with train.ar; or prepare 33 frames of 640 x 1024 with a "
                           "tokenizer of 8 x 16 x 16", error=False)  # fmt: skip
            return shape
    return form.LATENT


def _table(files: Files, report: Report) -> dict[tuple[str, int], dict[str, Any]]:
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for name in files.named(after=".parquet"):
        with expected(name, "table", report), files.open(name) as file:
            rows |= {(row["split"], row["index"]): row for row in layers.read_table(file, SAMPLES).to_pylist()}
    return rows


def _sample(files: Files, report: Report, split: str, index: int, ids: int) -> Seen | None:
    """None, with problems, where a file is not what it should be at all."""
    video, prompt = form.names(split, index)
    first, second = _read(files, report, video), _read(files, report, prompt)
    if first is None or second is None:
        return None
    (video_dtype, numbers), (prompt_dtype, rows) = first, second
    good = _typed(video, video_dtype, IDS, report) and _typed(prompt, prompt_dtype, FLOATS, report)
    if numbers.ndim != 1:
        report.add(video, "shape", f"{list(numbers.shape)}; a sequence of numbers is expected", AGAIN)
    if rows.shape != (form.TOKENS, form.WIDTH):
        what = f"{list(rows.shape)}; the reader makes batches of [{form.TOKENS}, {form.WIDTH}]"
        report.add(prompt, "prompt-shape", what, "Embed with T5-XXL, and pad with zeros to 512 tokens")
    if not good or numbers.ndim != 1 or rows.shape != (form.TOKENS, form.WIDTH):
        return None
    _sequence(video, numbers, ids, report)
    return Seen(hashlib.blake2b(numbers.tobytes(), digest_size=16).digest(), _prompt(prompt, rows, report))


def _sequence(name: str, numbers: Array, ids: int, report: Report) -> None:
    """BOV, ids, PAD."""
    tail = padded(ids, form.MULTIPLE)
    if len(numbers) != 1 + ids + tail:
        wanted = f"{1 + ids + tail:,} are expected: begin of video, {ids:,} ids, {tail} of padding"
        report.add(name, "length", f"{len(numbers):,} numbers; {wanted}", AGAIN)
        return
    if numbers[0] != BOV:
        report.add(name, "begin", f"it begins with {numbers[0]}; {BOV} begins a video", AGAIN)
    if (numbers[1 + ids :] != PAD).any():
        found = sorted(set(numbers[1 + ids :].tolist()))[:4]
        report.add(name, "padding", f"behind the ids are {found}; {tail} times {PAD} is expected", AGAIN)
    _ids(name, numbers[1 : 1 + ids], report)


def _ids(name: str, ids: Array, report: Report) -> None:
    if ids.size > 8 and ids.max() >= HALF and (ids.astype(np.float32).view(np.uint32) & 0xFFFF == 0).all():
        what = f"all {ids.size:,} ids are of the 1,274 that bfloat16 holds: they were rounded to it, and are noise"
        report.add(name, "bfloat16", what, AGAIN)
    elif ids.min() < 0 or ids.max() >= VOCABULARY:
        what = f"ids from {ids.min()} to {ids.max()}; the models' output layer has 0 to {VOCABULARY - 1:,}"
        report.add(name, "ids", what, "Make it again, with the tokenizer that the model was trained with")


def _prompt(name: str, rows: Array, report: Report) -> int:
    """How many of its rows are not zero."""
    if not np.isfinite(rows).all():
        report.add(name, "prompt-finite", "it has numbers that are not finite: the loss will not be either",
                   "Embed it again, in float32")  # fmt: skip
    some = rows.any(1)
    if not some.any():
        report.add(name, "no-prompt", "it is all zeros: the model is told nothing", "Caption the clip", error=False)
    elif not some[: some.sum()].all():
        what = f"rows of zeros lie before row {int(np.flatnonzero(some)[-1])}: padding is not behind the words"
        report.add(name, "prompt-gap", what, "Embed it again", error=False)
    return int(some.sum())


def _read(files: Files, report: Report, name: str) -> tuple[str, Array] | None:
    """(type of its numbers, the tensor); None, with a problem, where there is none."""
    if name not in files.sizes:
        report.add(name, "missing", "it is counted, and not there: the reader fails when its turn comes", AGAIN)
        return None
    try:
        with files.open(name) as file:
            where = tensors.header(file)
            return where.dtype, tensors.read(file, where)
    except ValueError as error:
        report.add(name, "tensor", str(error), "Write it again with torch.save, a plain tensor")
        return None


def _typed(name: str, dtype: str, wanted: tuple[str, ...], report: Report) -> bool:
    if dtype in wanted:
        return True
    why = ": bfloat16 holds 1,274 of the 64,000 ids" if dtype == "bfloat16" else ""
    report.add(name, "dtype", f"it holds {dtype}{why}; {' or '.join(wanted)} is expected", AGAIN)
    return False


def actions(files: Files, report: Report) -> None:
    """Pairs of frames, and what was done between them."""
    ends = _ends(files, report)
    for split in SPLITS:
        if not files.named(f"{split}/", ".pt"):
            report.add(f"{split}/", "missing-split", "the trainer opens train/, test/ and val/ when it starts",
                       "Prepare this split of the data set, too")  # fmt: skip
            continue
        found = {name: _header(files, report, f"{split}/{name}") for name in action.FILES}
        frames, done = found[action.FRAMES], found[action.ACTIONS]
        if frames is None or done is None:
            continue
        name = f"{split}/{action.FRAMES}"
        good = _typed(name, frames.dtype, IDS, report)
        good &= _typed(f"{split}/{action.ACTIONS}", done.dtype, FLOATS, report)
        if len(frames.shape) != 4 or frames.shape[1] != 1 or 0 in frames.shape or not frames.contiguous:
            report.add(name, "shape", f"{frames}; ids [frames, 1, height, width] are expected", AGAIN)
            good = False
        elif frames.shape[2:] != action.LATENT:
            ids = 2 * math.prod(frames.shape[2:])
            what = f"{ids + padded(ids, action.MULTIPLE):,} inputs, for two frames of {ids // 2:,} ids"
            report.add(name, "latent", f"{what}; NeMo's trainer asserts 2,432", "Train with train.ar; or prepare "
                       "frames of 480 x 640 with a tokenizer of 16 x 16", error=False)  # fmt: skip
        if len(done.shape) != 2 or done.shape[1] != action.ACTION or not done.contiguous:
            report.add(f"{split}/{action.ACTIONS}", "shape", f"{done}; [frames, {action.ACTION}] is expected", AGAIN)
            good = False
        for other, where in found.items():
            if where is not None and where.shape[:1] != frames.shape[:1]:
                what = f"{where}, and {action.FRAMES} {frames}: from the first difference on rows are of other frames"
                report.add(f"{split}/{other}", "rows", what, AGAIN)
                good = False
        if good:
            _frames(files, report, name, frames)
            _actions(files, report, split, done, ends.get(split))


def _header(files: Files, report: Report, name: str) -> tensors.Header | None:
    needed = name.endswith((action.FRAMES, action.ACTIONS))
    if name not in files.sizes:
        what = "the reader opens it first; it is not there" if needed else "it is not there; the trainer does without"
        report.add(name, "missing", what, AGAIN, error=needed)
        return None
    try:
        with files.open(name) as file:
            return tensors.header(file)
    except ValueError as error:
        report.add(name, "tensor", str(error), "Write it again with torch.save, a plain tensor")
        return None


def _frames(files: Files, report: Report, name: str, where: tensors.Header) -> None:
    with files.open(name) as file:
        for first in report.pick("pieces of frames", range(0, where.shape[0], PIECE)):
            before = report.errors
            _ids(f"{name}#{first}", tensors.read(file, where, first, min(first + PIECE, where.shape[0])), report)
            if report.errors > before:
                return  # one is enough to make them all again


def _actions(files: Files, report: Report, split: str, where: tensors.Header, ends: list[int] | None) -> None:
    name = f"{split}/{action.ACTIONS}"
    with files.open(name) as file:
        done = tensors.read(file, where)
    last = np.isnan(done).all(1)
    report.entries += int((~last).sum())
    for row in np.flatnonzero(~last & ~np.isfinite(done).all(1)).tolist():
        report.add(f"{name}#{row}", "action", f"{done[row].tolist()}: the loss will not be a number", "Leave the "
                   "trajectory out, or write all of its actions")  # fmt: skip
    if not len(last) or not last[-1]:
        report.add(name, "last", "the last frame has an action, and no frame comes after it: the reader fails",
                   "End each trajectory with a row of NaN")  # fmt: skip
    if last.all():
        report.add(name, "no-pairs", "no frame has an action: there is nothing to train on", AGAIN)
    if ends is not None and ends != np.flatnonzero(last).tolist():
        report.add(name, "trajectories", f"{int(last.sum())} trajectories end by rows of NaN, by the table beside it "
                   f"{len(ends)}, and not all in the same places", AGAIN)  # fmt: skip


def _ends(files: Files, report: Report) -> dict[str, list[int]]:
    """The last row of each trajectory, by the tables beside the files; nothing without them."""
    ends: dict[str, list[int]] = {}
    for name in files.named(after=".parquet"):
        with expected(name, "table", report), files.open(name) as file:
            for row in layers.read_table(file, ["split", "first", "frames"]).to_pylist():
                ends.setdefault(row["split"], []).append(row["first"] + row["frames"] - 1)
    return ends
