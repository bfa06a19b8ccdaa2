"""Latents for diffusion models, as prepare.latents makes them and hpc.train.loader reads them: tars with a .safetensors
and a .json a sample."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from hpc.data import layers, storage
from hpc.data.latents import SUFFIX, loads
from hpc.validate import Files, Report, as_json, expected
from hpc.validate.folders import shown, unpickled

AGAIN = "Make the data set again (prepare.latents)"


class Place(NamedTuple):
    """A sample."""

    tar: str
    uri: str
    """Of the tar."""
    key: str
    members: dict[str, tuple[int, int]]
    """Suffix -> (offset, size)."""


FAR = 8.0
"""Normalised latents have a mean near 0 and a deviation near 1; farther off than this they are not normalised."""


def latents(files: Files, report: Report) -> None:
    names, places = files.named(after=".tar"), list[Place]()
    for name in names:
        try:
            with files.open(name) as file:
                places += [Place(name, files.uri(name), key, entry.members) for key, entry in layers.index(file)]
        except layers.TornTar as error:
            report.add(name, "tar", str(error), "Write the tar again")
    lists = [] if names else files.named(after=".parquet")
    for name in lists:
        with expected(name, "list", report), files.open(name) as file:
            names = ["offset", "size", "json_offset", "json_size", "pickle_offset", "pickle_size"]
            for tar, key, *place in zip(
                *layers.read_table(file, ["tar", "key", *names]).to_pydict().values(), strict=True
            ):
                members = {SUFFIX: (place[0], place[1]), ".json": (place[2], place[3])}
                members |= {".pickle": (place[4], place[5])} if place[5] else {}
                places.append(Place(tar.rpartition("/")[2], tar, key, members))
    if not names and not lists:
        report.add("", "no-tars", "there are no tars, and no list of samples", "Give the folder of the data set")
    seen: set[str] = set()
    for one in places:
        if one.key in seen:
            report.add(f"{one.tar}#{one.key}", "duplicate", "the key is in the data set before", AGAIN)
        seen.add(one.key)
    shapes: Counter[tuple[Any, ...]] = Counter()
    quiet = 0

    def look(place: Place) -> tuple[Report, tuple[Any, ...] | None, bool]:
        own = Report(report.consumer, report.folder, report.settings)
        shape, said = None, True
        with expected(f"{place.tar}#{place.key}", "sample", own):
            shape, said = _sample(own, place)
        return own, shape, said

    for own, shape, said in layers.map_ahead(look, report.pick("samples", places)):
        report.entries += 1
        for one in own.problems:
            report.add(one.file, one.rule, one.what, one.do, one.error)
        if shape is not None:
            shapes[shape] += 1
            quiet += not said
    kinds = {(tokenizer, channels) for tokenizer, channels, *_ in shapes}
    if len(kinds) > 1:
        words = "; ".join(f"{channels} channels of {tokenizer}" for tokenizer, channels in sorted(kinds))
        report.add("", "tokenizers-differ", f"one model cannot learn from all of them: {words}",
                   "Keep the latents of one tokenizer in a data set")  # fmt: skip
    if quiet:
        do = "Add the stage of captions to `needs` and prepare again, or train without text"
        report.add("", "no-caption", f"{quiet} samples have no caption", do, error=False)


def _sample(report: Report, place: Place) -> tuple[tuple[Any, ...] | None, bool]:
    """((tokenizer, channels, frames, height, width), whether it has a caption); None of what cannot be read."""
    name = f"{place.tar}#{place.key}"
    if lacking := [suffix for suffix in (SUFFIX, ".json") if suffix not in place.members]:
        report.add(name, "member", f"it has {' '.join(place.members)}, and no {' '.join(lacking)}", AGAIN)
        return None, True
    try:
        read = {suffix: storage.read(place.uri, at, at + size) for suffix, (at, size) in place.members.items()}
    except FileNotFoundError:
        report.add(name, "missing", f"{place.uri} is not there", "Give the folder of the tars, or list them again")
        return None, True
    about = as_json(f"{name}.json", read[".json"], report)
    try:
        found = loads(read[SUFFIX])
    except ValueError as error:
        report.add(f"{name}{SUFFIX}", "safetensors", str(error), AGAIN)
        return None, True
    if about is None:
        return None, True
    if ".pickle" in read:
        vectors = unpickled(f"{name}.pickle", read[".pickle"], report)
        if vectors is not None and not (isinstance(vectors, list) and len(vectors) == 1 and vectors[0].ndim == 2):
            what = f"a list with one array [tokens, width] should be there; it is {shown(vectors)}"
            report.add(f"{name}.pickle", "embedding", what, AGAIN)
    channels, t, h, w = found.shape
    frames, height, width = (about[field] for field in ("num_frames", "height", "width"))
    spatial = height // h
    if list(found.shape) != list(about["shape"]):
        report.add(name, "shape", f"the latents are {list(found.shape)}, the .json says {about['shape']}", AGAIN)
    elif (h * spatial, w * spatial) != (height, width) or (frames - 1) % max(1, t - 1) or (t == 1) != (frames == 1):
        what = f"latents of {t}x{h}x{w} are not those of {frames} frames of {height}x{width}"
        report.add(name, "shape", what, AGAIN)
    left, top, right, bottom = about["inside"]
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        report.add(name, "inside", f"the picture's place, {about['inside']}, is not in {width}x{height}", AGAIN)
    if not about["fps"] > 0:
        report.add(name, "fps", f"{about['fps']} frames a second", AGAIN)
    if not np.isfinite(found).all():
        report.add(name, "finite", "there are numbers that are none (inf or nan)", "Prepare again in float32")
    elif found.std() == 0:
        report.add(name, "constant", f"all numbers are {found.flat[0]}", "Look at the clip", error=False)
    elif abs(found.mean()) > FAR or not 1 / FAR < found.std() < FAR:
        what = f"mean {found.mean():.3g}, deviation {found.std():.3g}: these are not normalised"
        report.add(name, "normalised", what, "Give the tokenizer its mean and std, and prepare again", error=False)
    return (about["tokenizer"], channels, frames, height, width), bool(about.get("caption"))
