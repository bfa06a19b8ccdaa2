"""Which videos are evaluated, and which real one belongs to which generated one.

Generated videos are those of a stage in `needs` (tars with a table, as generate.diffusion and curate.clips make them,
or tars alone), or of the spec's inputs; real ones are those of a place or of another such stage. What is asked for and
not there is a pair all the same, with a word that says why: it is named, and never dropped.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from hpc.data import storage, upstream
from hpc.data.work import SAID
from hpc.evaluate.settings.videos import SUFFIXES, Measure, is_place

Shards = Sequence[tuple[str, Mapping[str, Any]]]
Superseded = set[tuple[str, str]]


class Place(msgspec.Struct, array_like=True, frozen=True):
    """Where a video lies."""

    uri: str
    offset: int = 0
    size: int = -1
    """Bytes in a tar; -1: the file is the video."""
    etag: str | None = None
    why: str = ""
    """It is not there: a word, and maybe more after a colon."""
    held_out: str = ""
    """Of a generated one: the list of a training's held-out clips, with the one that it goes on from."""


class Pair(msgspec.Struct, array_like=True):
    name: str
    generated: Place | None = None
    """None: it is a real one without a partner, of which features alone are taken."""
    real: Place | None = None
    scene: str = ""
    view: str = ""
    again: bool = False
    """The real one is in another pair too: its features count there."""


def freeze(settings: Measure, needed: Mapping[str, Shards], superseded: Superseded) -> Iterator[list[Any]]:
    """Rows of shards: pairs, `per_shard` each, the views of a scene together, in the order of names. Raises ValueError
    where there is not one generated video, and for what is named wrongly."""
    sources = dict(needed)
    if settings.real is None:
        real = {}
    elif is_place(settings.real):
        real = of_place(settings.real)
    elif settings.real in sources and len(sources) > 1:
        real = collected(of_stage(sources.pop(settings.real), superseded), settings.real)
    else:
        raise ValueError(f"real: {settings.real!r}: no stage in `needs` beside that of the generated videos is called "
                         f"so (it has {', '.join(needed)})")  # fmt: skip
    if len(sources) != 1:
        raise ValueError(f"`needs` names {', '.join(sources)}; of generated videos there is one stage, and with `real` "
                         "the name of another one")  # fmt: skip
    [(name, shards)] = sources.items()
    videos = of_inputs(shards) if name == "inputs" else of_stage(shards, superseded)
    pairs = paired(collected(videos, name), real, settings)
    yield from grouped(sorted(pairs, key=lambda one: (one.scene, one.view, one.name)), settings.per_shard)


def grouped(pairs: Iterable[Pair], most: int) -> Iterator[list[Any]]:
    """Each as many as fit, but whole scenes."""
    rows: list[Pair] = []
    scene: list[Pair] = []
    for one in [*pairs, None]:
        if one is None or (scene and (not one.scene or one.scene != scene[0].scene)):
            if rows and len(rows) + len(scene) > most:
                yield msgspec.to_builtins(rows)
                rows = []
            rows, scene = rows + scene, []
        if one is not None:
            scene.append(one)
    if rows:
        yield msgspec.to_builtins(rows)


def paired(generated: Mapping[str, Place], real: Mapping[str, Place], settings: Measure) -> list[Pair]:
    if not generated:
        raise ValueError("there is not one generated video")
    partner: dict[str, Place] = {}
    missing: dict[str, Place] = {}
    if settings.pairs is not None:
        partner, missing = of_manifest(settings.pairs, generated, real)
    elif generated.keys() & real.keys():  # else they are two sets, of which none belongs to another
        partner = {name: real[name] if name in real else Place("", why=f"no-pair: no real video is called {name}")
                   for name in generated}  # fmt: skip
    seen: set[Place] = set()
    pairs = []
    for name, place in [*generated.items(), *missing.items()]:
        other = partner.get(name)
        pairs.append(Pair(name, place, other, *scene_of(name, settings), again=other in seen))
        if other is not None:
            seen.add(other)
    alone = [name for name, place in real.items() if place not in seen]
    lists = {place.held_out for place in generated.values()}
    if settings.pairs is None and partner and "" not in lists:
        unseen = set.union(*map(upstream.listed, lists))
        alone = [name for name in alone if name in unseen]
    if settings.frechet:
        pairs += [Pair(name, None, real[name]) for name in alone]
    return pairs


def scene_of(name: str, settings: Measure) -> tuple[str, str]:
    """(scene, view); two times "" where a name says nothing of them."""
    if settings.sampson is None or settings.sampson.views is None:
        return "", ""
    pattern = re.escape(settings.sampson.views)
    for part in ("scene", "view"):
        pattern = pattern.replace(rf"\{{{part}\}}", f"(?P<{part}>.+)")
    found = re.fullmatch(pattern, name)
    return (found["scene"], found["view"]) if found else ("", "")


def collected(videos: Iterable[tuple[str, Place]], where: str) -> dict[str, Place]:
    """By name. Raises ValueError for two of one name."""
    found: dict[str, Place] = {}
    for name, place in videos:
        if name in found:
            raise ValueError(f"{where} has two videos called {name}: {found[name].uri} and {place.uri}; pairs are "
                             "found by name, so that each needs its own")  # fmt: skip
        found[name] = place
    return found


def of_stage(shards: Shards, superseded: Superseded) -> Iterator[tuple[str, Place]]:
    """As hpc.data.upstream finds them. Raises ValueError."""
    for one in upstream.located(shards, superseded, SUFFIXES):
        yield one.name, Place(one.uri, one.offset, one.size, why=one.why, held_out=one.held_out)


def of_tar(uri: str, etag: str) -> Iterator[tuple[str, Place]]:
    for one in upstream.of_tar(uri, SUFFIXES, etag):
        yield one.name, Place(one.uri, one.offset, one.size, None if one.why else etag, one.why)


def of_inputs(shards: Shards) -> Iterator[tuple[str, Place]]:
    """The spec's inputs: their names are what their paths have not in common."""
    etags = {uri: etag.partition(SAID)[0] for _, uris in shards for uri, etag in uris.items()}
    films = [uri for uri in etags if not uri.lower().endswith(".tar")]
    folder = posixpath.commonpath([uri.rpartition("/")[0] for uri in films]) if films else ""
    if any(storage.is_s3(uri) for uri in films):
        folder = folder.replace("s3:/", "s3://", 1)
    for uri, etag in sorted(etags.items()):
        if uri.lower().endswith(".tar"):
            yield from of_tar(uri, etag)
        else:
            yield stem(uri, folder), Place(uri, etag=etag)


def of_place(where: str) -> dict[str, Place]:
    """A folder or prefix of videos and tars, or one file. Raises ValueError where there is none."""
    where = str(storage.join(where)) if storage.is_s3(where) else posixpath.expanduser(where).rstrip("/")
    found: list[tuple[str, Place]] = []
    for entry in storage.listing(where):
        if entry.uri.lower().endswith(".tar"):
            found += of_tar(entry.uri, entry.etag)
        elif entry.uri.lower().endswith(SUFFIXES):
            found.append((stem(entry.uri, where if entry.uri != where else ""), Place(entry.uri, etag=entry.etag)))
    if not found:
        raise ValueError(f"real: there is no video (*{', *'.join(SUFFIXES)}, .tar) in {where}")
    return collected(found, where)


def stem(uri: str, folder: str) -> str:
    """The path below the folder, or the name alone, without its suffix."""
    below = uri[len(folder) + 1 :] if folder and uri.startswith(f"{folder}/") else uri.rpartition("/")[2]
    return posixpath.splitext(below)[0]


def of_manifest(
    where: str, generated: Mapping[str, Place], real: Mapping[str, Place]
) -> tuple[dict[str, Place], dict[str, Place]]:
    """(generated name -> its real one, generated videos that are named and not there). Raises ValueError for a line
    that is none."""
    path = where if storage.is_s3(where) else posixpath.expanduser(where)
    partner: dict[str, Place] = {}
    missing: dict[str, Place] = {}
    for number, line in enumerate(storage.read(path).decode().splitlines(), 1):
        if not line.strip():
            continue
        try:
            one = json.loads(line)
            name, other = one["generated"], one["real"]
            if not isinstance(name, str) or not isinstance(other, str):
                raise TypeError("names are text")
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f'{where}:{number}: {error}: write {{"generated": name, "real": name or path}}') from error
        if name not in generated and posixpath.splitext(name)[0] in generated:
            name = posixpath.splitext(name)[0]
        if name in partner:
            raise ValueError(f"{where}:{number}: {name} is paired twice")
        if name not in generated:
            missing[name] = Place("", why=f"missing: {where}:{number} names it")
        partner[name] = _named(other, path, real)
    return partner, missing


def _named(name: str, manifest: str, real: Mapping[str, Place]) -> Place:
    for key in (name, posixpath.splitext(name)[0]):
        if key in real:
            return real[key]
    folder = manifest.rpartition("/")[0]
    uri = name if storage.is_s3(name) or name.startswith("/") else f"{folder}/{name}"
    entry = storage.stat(uri)
    return Place(uri, etag=entry.etag) if entry else Place(uri, why=f"missing: there is no {uri}")
