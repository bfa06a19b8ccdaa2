"""Figures of each video, and what can be added up of its features: the map part of evaluate.videos.

A shard is <shard>.parquet with a row of SCHEMA for each generated video, also for those that are not there, and
<shard>.npz with hpc.evaluate.frechet's statistics of each network, <network>/<generated or real>/<field>. Each video is
measured by itself, so nothing depends on which others are in its shard but the order of sums.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import re
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import torch

from hpc.data import layers
from hpc.data.work import Bad, BadInput, Made, Work
from hpc.evaluate import pairs, sampson
from hpc.evaluate.films import Film
from hpc.evaluate.frechet import Statistics
from hpc.evaluate.pairs import Pair
from hpc.evaluate.settings.videos import FILES, Judge, Measure, Question, Sampson
from hpc.models import backbones, quality, vlm
from hpc.models.answers import answers
from hpc.models.backbones import Backbone

freeze = pairs.freeze
TOGETHER = 8  # frames whose PSNR and SSIM are computed at once: SSIM of 720p takes 0.3 GB for them
BATCH = 16  # pictures that a network takes at once
GREY = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
PLACE = pa.struct([("uri", pa.string()), ("offset", pa.int64()), ("size", pa.int64())])
SIDE = [("tse", pa.float64()), ("tse_mean", pa.float64()), ("tse_pairs", pa.int32()), ("cse", pa.float64()),
        ("cse_mean", pa.float64()), ("cse_pairs", pa.int32())]  # fmt: skip
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("scene", pa.string()),
        ("view", pa.string()),
        ("generated", PLACE),
        ("real", PLACE),  # null where it has none
        ("held_out", pa.string()),  # the list of a training's held-out clips, with that which it goes on from
        ("why", pa.string()),  # the generated one is not measured; null for those that are
        ("real_why", pa.string()),
        ("frames", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("fps", pa.float64()),
        ("compared", pa.int32()),  # frames, with real ones
        ("psnr", pa.float64()),  # dB, mean over these
        ("ssim", pa.float64()),
        *SIDE,  # pixels; means of medians, of means, over pairs of frames or views; how many pairs had matches enough
        *((f"real_{name}", kind) for name, kind in SIDE),  # cse: in the row of a scene's first view
        ("answers", pa.list_(pa.struct([
            ("question", pa.string()),
            ("value", pa.float64()),  # 1 for yes, 0 for no, or the score; null for what cannot be understood
            ("status", pa.string()),
            ("answer", pa.string()),
        ]))),
    ]
)  # fmt: skip


class Entry:
    """A pair, its videos as far as they are there, and its row."""

    def __init__(self, pair: Pair, bad: list[Bad]) -> None:
        self.pair = pair
        self.films: dict[str, Film] = {}
        self.row: dict[str, Any] = {"name": pair.name, "scene": pair.scene, "view": pair.view}
        self.row["held_out"] = (pair.generated and pair.generated.held_out) or None
        for side, why in (("generated", "why"), ("real", "real_why")):
            place = getattr(pair, side)
            if place is None:
                continue
            self.row[side] = {"uri": place.uri, "offset": place.offset, "size": place.size}
            try:
                self.films[side] = Film(place, pair.name)
            except BadInput as error:
                bad.append(error.bad)
                self.row[why] = f"{error.bad.reason}: {error.bad.detail.removeprefix(f'{pair.name}: ')}"
        if film := self.films.get("generated"):
            self.row |= {"frames": film.frames, "height": film.info.height, "width": film.info.width, "fps": film.fps}


def start(settings: Measure) -> Callable[[Work], Made]:
    """Raises FileNotFoundError and RuntimeError where a model is not to be had or another one or without eyes,
    ModuleNotFoundError for packages that are not installed."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    networks = {}
    for name, one in settings.frechet.items():
        archive = (one.archive, FILES[one.network]) if one.network in FILES else None
        networks[name] = backbones.load(one.network, archive, device)
    if settings.sampson is not None:
        sampson.opencv().setNumThreads(1)  # a worker has its cores
    engine = vlm.engine(settings.vlm) if settings.vlm is not None else None
    if engine is not None and not engine.sees:
        raise RuntimeError(f"{engine.model} is a language model, which takes no frames: name one that sees")
    return functools.partial(process, settings, networks, engine, device)


def process(
    settings: Measure, networks: Mapping[str, Backbone], engine: vlm.Engine | None, device: str, work: Work
) -> Made:
    """Make one shard."""
    planned = msgspec.convert(work.rows, list[Pair])
    sums = {(name, side): Statistics(one.dim) for name, one in networks.items() for side in ("generated", "real")}
    bad: list[Bad] = []
    rows: list[dict[str, Any]] = []
    judge: list[tuple[Film, dict[str, Any]]] = []
    times: dict[str, float] = {}
    done = 0
    for _, group in itertools.groupby(enumerate(planned), lambda one: one[1].scene or one[0]):
        entries = []
        for _, pair in group:
            work.check()
            work.progress(0.9 * done / len(planned), f"video {done} of {len(planned)}")
            done += 1
            with spent(times, "decode"):
                entry = Entry(pair, bad)
            entries.append(entry)
            for side, film in entry.films.items():
                if side == "generated" or not pair.again:
                    for name, backbone in networks.items():
                        work.check()
                        with spent(times, "features"):
                            add(sums[name, side], backbone, film, settings.frechet[name].per_video)
            if settings.quality and len(entry.films) == 2:
                with spent(times, "quality"):
                    both = entry.films["generated"], entry.films["real"]
                    entry.row |= compared(*both, settings.skip, device, work.check)
        asked = [entry for entry in entries if entry.pair.generated is not None]
        if settings.sampson is not None:
            with spent(times, "sampson"):
                for side, prefix in (("generated", ""), ("real", "real_")):
                    geometry(asked, side, prefix, settings.sampson, settings.seed, work.check)
        rows += [entry.row for entry in asked]
        judge += [(entry.films["generated"], entry.row) for entry in asked if "generated" in entry.films]
    if settings.vlm is not None and engine is not None:
        with spent(times, "model"):
            judged(settings.vlm, engine, judge, work)
    npz, table = (work.scratch / f"{work.shard}{suffix}" for suffix in settings.OBJECTS)
    arrays = {f"{name}/{side}/{field}": array for (name, side), one in sums.items() for field, array in
              one.arrays().items()}  # fmt: skip
    np.savez(npz, **arrays)
    layers.write_table(table, rows, {"stage": settings.KIND, "fingerprint": work.fingerprint}, SCHEMA)
    counts = {"videos": len(rows), "measured": sum("why" not in row for row in rows),
              "pairs": sum("compared" in row for row in rows)}  # fmt: skip
    return Made([npz, table], {**counts, **times}, bad)


@contextlib.contextmanager
def spent(times: dict[str, float], what: str) -> Iterator[None]:
    """Count the seconds, for the report."""
    began = time.monotonic()
    try:
        yield
    finally:
        times[f"time_{what}"] = times.get(f"time_{what}", 0.0) + time.monotonic() - began


def add(sums: Statistics, backbone: Backbone, film: Film, count: int | None) -> None:
    """Add a video's features. Raises ValueError for a network that gives something else than it says."""
    height, width = backbone.size or (film.info.height, film.info.width)
    wanted = backbones.observed(backbone, film.frames, count)
    each = max(1, BATCH // backbone.clip)
    for at in range(0, len(wanted), each):
        windows = wanted[at : at + each]
        numbers = sorted({number for window in windows for number in window})
        pictures = torch.from_numpy(film.sample(numbers, height, width))
        place = {number: i for i, number in enumerate(numbers)}
        clips = torch.stack([pictures[[place[number] for number in window]] for window in windows])
        sums.add(backbone(clips).numpy())


def compared(generated: Film, real: Film, skip: int, device: str, check: Callable[[], None]) -> dict[str, Any]:
    """PSNR and SSIM, means over the frames that both have from `skip` on; of the real one those of the same times."""
    height, width = generated.info.height, generated.info.width
    rate = real.fps / generated.fps
    numbers = [i for i in range(skip, generated.frames) if round(i * rate) < real.frames]
    twins = (round(i * rate) for i in numbers)
    both = zip(generated.pictures(numbers, height, width), real.pictures(twins, height, width), strict=True)
    psnr, ssim, count = 0.0, 0.0, 0
    for some in _batches(both):
        check()
        one, other = (torch.from_numpy(np.stack(side)).to(device).permute(3, 0, 1, 2)[None] / 127.5 - 1
                      for side in zip(*some, strict=True))  # fmt: skip
        psnr += float(quality.psnr(one, other).double().sum())
        ssim += float(quality.ssim(one, other).double().sum()) if min(height, width) >= quality.WINDOW else 0.0
        count += len(some)
    if not count:
        return {"compared": 0}
    found = {"compared": count, "psnr": psnr / count}
    return found | ({"ssim": ssim / count} if min(height, width) >= quality.WINDOW else {})


def _batches(frames: Iterator[Any]) -> Iterator[list[Any]]:
    while some := list(itertools.islice(frames, TOGETHER)):
        yield some


def geometry(
    entries: Sequence[Entry], side: str, prefix: str, settings: Sampson, seed: int, check: Callable[[], None]
) -> None:
    """Sampson errors within each video of a scene, and across its views."""
    there = [entry for entry in entries if side in entry.films]
    if not there or min(entry.films[side].frames for entry in there) < 2:
        return
    last = min(entry.films[side].frames for entry in there) - 2
    starts = sorted({round(i * last / max(settings.pairs - 1, 1)) for i in range(settings.pairs)})
    views: dict[str, list[sampson.Described]] = {}
    for entry in there:
        film, found = entry.films[side], []
        looks: dict[int, sampson.Described] = {}
        height = min(film.info.height, sampson.HEIGHT)
        width = max(1, round(film.info.width * height / film.info.height))
        for begin in starts:
            check()
            new = [number for number in (begin, begin + 1) if number not in looks]
            for number, picture in zip(new, film.sample(new, height, width) if new else (), strict=True):
                looks[number] = sampson.described((picture @ GREY).round().astype(np.uint8))
            found.append(sampson.measured([sampson.matched(looks[begin], looks[begin + 1])], seed))
        entry.row |= summed(found, f"{prefix}tse")
        if entry.pair.scene:
            views[entry.pair.view] = [looks[begin] for begin in starts]
    if len(views) > 1:
        across = settings.overlap or tuple(itertools.combinations(sorted(views), 2))
        errors = []
        for a, b in across:
            check()
            if a in views and b in views:
                seen = [sampson.matched(*both) for both in zip(views[a], views[b], strict=True)]
                errors.append(sampson.measured(seen, seed))
        there[0].row |= summed(errors, f"{prefix}cse")


def summed(errors: Sequence[sampson.Error | None], name: str) -> dict[str, Any]:
    """Of pairs of pictures: the means of medians and of means, and how many had matches enough."""
    found = [one for one in errors if one is not None]
    if not found:
        return {f"{name}_pairs": 0}
    medians, means = (sum(getattr(one, what) for one in found) / len(found) for what in ("median", "mean"))
    return {name: medians, f"{name}_mean": means, f"{name}_pairs": len(found)}


def judged(settings: Judge, engine: vlm.Engine, films: Sequence[tuple[Film, dict[str, Any]]], work: Work) -> None:
    """Ask about each video, and write down what is answered."""
    asked: deque[tuple[dict[str, Any], str]] = deque()

    def requests() -> Iterator[vlm.Request]:
        for film, row in films:
            row["answers"] = []
            count = min(max(round(film.frames / film.fps * settings.fps), 4), settings.most, film.frames)
            numbers = [round(i * (film.frames - 1) / max(count - 1, 1)) for i in range(count)]
            height, width = engine.size(count, film.info.height, film.info.width)
            frames = film.sample(numbers, height, width)
            fps = film.fps * max(count - 1, 1) / max(film.frames - 1, 1)
            for name, question in settings.questions.items():
                asked.append((row, name))
                yield vlm.Request(frames, fps, prompt(question))

    total = len(films) * len(settings.questions)
    for done, [answer] in enumerate(engine.stream(requests(), work.check), 1):
        row, name = asked.popleft()
        value = understood(answer, name, settings.questions[name])
        row["answers"].append({"question": name, "value": value, "answer": answer.text or answer.detail,
                               "status": answer.status if value is None else "parsed"})  # fmt: skip
        work.progress(0.9 + 0.1 * done / total, f"{done} of {total} questions")


def prompt(question: Question) -> str:
    if question.answer == "yes-no":
        return f"{question.ask.strip()} Answer with yes or no."
    span = f"from {question.low:g} to {question.high:g}"
    return f"{question.ask.strip()} Answer with one number {span}, and nothing else."


def understood(answer: vlm.Answer, name: str, question: Question) -> float | None:
    """1 for yes, 0 for no, or the number; None for what is not plain. What a reasoning model thought does not count."""
    text = re.split(r"</think(?:ing)?>", answer.text)[-1]
    text = re.sub(r"</?answer>", "", text)
    if answer.status not in ("success", "truncated"):
        return None
    if question.answer == "yes-no":
        said = answers(text, [name])
        return None if said is None else float(said[name])
    numbers = {float(one) for one in re.findall(r"(?<![\w./-])-?\d+(?:\.\d+)?(?![\w/]|\.\d)", text)}
    of = re.search(r"(-?\d+(?:\.\d+)?)\s*(?:/|out of)\s*(\d+(?:\.\d+)?)", text)
    if of and float(of[2]) == question.high:  # 4/5, 4 out of 5
        numbers = {float(of[1])}
    inside = [one for one in numbers if question.low <= one <= question.high]
    return inside[0] if len(numbers) == 1 and inside else None
