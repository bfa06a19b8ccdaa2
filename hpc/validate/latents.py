"""Latents for diffusion models, as prepare.latents makes them and hpc.train.loader reads them: tars with a .safetensors
and a .json a sample."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from hpc.data import layers
from hpc.data.latents import SUFFIX, loads
from hpc.validate import Files, Report, as_json, expected

AGAIN = "Make the data set again (prepare.latents)"
FAR = 8.0
"""Normalised latents have a mean near 0 and a deviation near 1; farther off than this they are not normalised."""


def latents(files: Files, report: Report) -> None:
    names = files.named(after=".tar")
    if not names:
        report.add("", "no-tars", "there are no tars", "Give the folder of the data set")
    places: list[tuple[str, str, layers.Entry]] = []
    seen: set[str] = set()
    for name in names:
        try:
            with files.open(name) as file:
                for key, entry in layers.index(file):
                    places.append((name, key, entry))
                    if key in seen:
                        report.add(f"{name}#{key}", "duplicate", "the key is in the data set before", AGAIN)
                    seen.add(key)
        except layers.TornTar as error:
            report.add(name, "tar", str(error), "Write the tar again")
    shapes: Counter[tuple[Any, ...]] = Counter()
    quiet = 0

    def look(place: tuple[str, str, layers.Entry]) -> tuple[Report, tuple[Any, ...] | None, bool]:
        own = Report(report.consumer, report.folder, report.settings)
        shape, said = None, True
        with expected("#".join(place[:2]), "sample", own):
            shape, said = _sample(files, own, *place)
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


def _sample(
    files: Files, report: Report, tar: str, key: str, entry: layers.Entry
) -> tuple[tuple[Any, ...] | None, bool]:
    """((tokenizer, channels, frames, height, width), whether it has a caption); None of what cannot be read."""
    name = f"{tar}#{key}"
    if lacking := [suffix for suffix in (SUFFIX, ".json") if suffix not in entry.members]:
        report.add(name, "member", f"it has {' '.join(entry.members)}, and no {' '.join(lacking)}", AGAIN)
        return None, True
    with files.open(tar) as file:
        read = {}
        for suffix in (SUFFIX, ".json"):
            offset, size = entry.members[suffix]
            file.seek(offset)
            read[suffix] = file.read(size)
    about = as_json(f"{name}.json", read[".json"], report)
    try:
        found = loads(read[SUFFIX])
    except ValueError as error:
        report.add(f"{name}{SUFFIX}", "safetensors", str(error), AGAIN)
        return None, True
    if about is None:
        return None, True
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
