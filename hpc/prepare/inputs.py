"""The clips that data is prepared of: those of a stage that a spec's stage needs, or of the spec's inputs.

    needs: clips            curate.clips, without what verdicts in `needs` drop; captions of a layer in `needs`
    needs: shard            plain tars of curate.shard; captions of `join: true`
    inputs: a folder of videos, tars of <key>.mp4 with <key>.json or .txt (webdataset), a .jsonl with a line
            {"visual_input": path, "prompt": text} a clip, as Cosmos' autoregressive models have it
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, BinaryIO

import msgspec
import numpy as np
import numpy.typing as npt

from hpc.data import layers, pickles, storage, upstream, video
from hpc.data.work import Bad, BadInput, Item, Work
from hpc.prepare.settings.frames import VIDEOS

CAPTIONS = ("uuid", "window", "start_frame", "end_frame", "caption")
OPTIONAL = ("status", "enhanced", "enhanced_status")
OF_CLIP = ("num_frames", "fps", "width", "height", "source", "etag", "cameras")


class Said(msgspec.Struct):
    """A caption, and the frames of the clip that it is about, both ends inclusive; `last` None: to the end."""

    first: int
    last: int | None
    words: str
    window: int = 0
    """Its number, by which a layer of embeddings calls it."""


class Clip(msgspec.Struct):
    uuid: str
    media: str
    """The file, and with "#" its name in it."""
    open: Callable[[], bytes | BinaryIO]
    source: str
    """The video that it was cut from; the file itself where nothing is known of one."""
    etag: str = ""
    cameras: list[dict[str, str]] = []
    """Of further files that it is made of: {"source", "etag"}."""
    captions: list[Said] = []
    frames: int = 0
    """0: not known yet, see `measured`."""
    fps: float = 0.0
    width: int = 0
    height: int = 0
    item: Item | None = None
    """Of the spec's inputs."""
    about: Callable[[], Mapping[str, Any]] | None = None
    """Reads the clip's .json, where it has one."""
    part: int = 0
    """Of a film that is planned as `parts` spans: the share of its windows that belongs here."""
    parts: int = 1
    vectors: Callable[[int], npt.NDArray[np.float16] | None] | None = None
    """Reads the embedding of a window's caption: float16 [tokens, width]; None where it has none."""
    refused: Bad | None = None
    """It cannot be read."""

    def said(self, frame: int) -> Said | None:
        """The caption of the window that a frame is in."""
        return next((one for one in self.captions
                     if one.first <= frame and (one.last is None or frame <= one.last)), None)  # fmt: skip

    def vector(self, frame: int) -> npt.NDArray[np.float16] | None:
        """Its embedding. Raises BadInput for what cannot be understood."""
        said = self.said(frame)
        if said is None or self.vectors is None:
            return None
        try:
            return self.vectors(said.window)
        except (ValueError, LookupError, TypeError) as error:
            raise BadInput(self.media, "no-embedding", f"that of window {said.window}: {error}") from error


def clips(work: Work) -> Iterator[Clip]:
    """All clips of a shard, in a fixed order. Raises ValueError where `needs` makes none, or two layers of captions."""
    if not work.upstream:
        for item in work.items:
            if item.uri.lower().endswith(VIDEOS):
                yield of_item(item)
            else:
                yield from of_inputs_tar(item)
    elif tars := [objects[".tar"] for objects in work.upstream.values() if set(objects) == {".tar"}]:
        yield from (of_tar(tars[0], key, entry) for key, entry in indexed(tars[0]))
    else:
        told, vectors = captions_of(work.upstream), embeddings_of(work.upstream)
        for one in upstream.clips(work, OF_CLIP):
            row = one.row
            yield Clip(
                one.uuid, f"{one.tar}#{one.uuid}.mp4", functools.partial(_range, one.tar, one.offset, one.size),
                row["source"], row["etag"], [_camera(camera) for camera in row["cameras"] or ()],
                told.get(one.uuid, []), row["num_frames"], row["fps"], row["width"], row["height"],
                vectors=functools.partial(vectors, one.uuid) if vectors else None,
            )  # fmt: skip


def of_item(item: Item) -> Clip:
    """A video of a folder or a list."""
    named = str(uuid.uuid5(uuid.NAMESPACE_URL, storage.public(item.uri)))
    captions = [Said(0, None, item.caption)] if item.caption else []
    return Clip(named, item.uri, functools.partial(storage.open, item.uri, item.version), item.uri, item.etag,
                captions=captions, item=item, part=item.part, parts=item.parts)  # fmt: skip


def of_inputs_tar(item: Item) -> Iterator[Clip]:
    """The clips of somebody's tar; of a key that is no uuid one is made of it and the tar's name."""
    try:
        found = indexed(item.uri, item.version)
        share = slice(item.part * len(found) // item.parts, (item.part + 1) * len(found) // item.parts)
        for key, entry in found[share]:
            clip = of_tar(item.uri, key, entry)
            clip.item, clip.etag = item, ""
            clip.cameras = [{"source": item.uri, "etag": item.etag}]  # so that it goes where the tar is replaced
            try:
                clip.uuid = str(uuid.UUID(key))
            except ValueError:
                clip.uuid = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{storage.public(item.uri)}#{key}"))
            yield clip
    except layers.TornTar as error:
        yield Clip("", item.uri, bytes, item.uri, item.etag, refused=Bad(item.uri, "torn-tar", str(error)))


def indexed(uri: str, etag: str | None = None) -> list[tuple[str, layers.Entry]]:
    with storage.open(uri, etag) as file:
        return [(key, entry) for key, entry in layers.index(file) if _video(entry)]


def _video(entry: layers.Entry) -> str | None:
    """The suffix of the video of a key."""
    return next((suffix for suffix in entry.members if suffix in VIDEOS), None)


def of_tar(uri: str, key: str, entry: layers.Entry) -> Clip:
    suffix = _video(entry)
    assert suffix
    clip = Clip(key, f"{uri}#{key}{suffix}", functools.partial(_range, uri, *entry.members[suffix]), f"{uri}#{key}")
    if place := entry.members.get(".json"):
        clip.about = lambda: json.loads(_range(uri, *place))
    elif text := entry.members.get(".txt"):
        clip.about = lambda: {"caption": _range(uri, *text).decode()}
    if pickled := entry.members.get(".pickle"):
        clip.vectors = lambda window: pickles.loads(_range(uri, *pickled))[window]
    return clip


def _range(uri: str, offset: int, size: int) -> bytes:
    return storage.read(uri, offset, offset + size)


def _camera(one: Mapping[str, Any]) -> dict[str, str]:
    return {"source": one["source"], "etag": one["etag"]}


def measured(clip: Clip, on: Callable[[Item], AbstractContextManager[None]] = lambda item: nullcontext()) -> Clip:
    """The clip with its frames, size and speed: as its .json says, or by looking at the video. Raises BadInput."""
    if clip.about is not None:
        try:
            _tell(clip, clip.about())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise BadInput(clip.media, "no-json", f"what is beside it cannot be understood: {error}") from error
    if not (clip.frames and clip.fps and clip.width and clip.height):
        with on(clip.item) if clip.item else nullcontext(), opened(clip) as file:
            info, clip.frames = video.measured(file)
        clip.fps, clip.width, clip.height = float(info.fps), info.width, info.height
    return clip


@contextlib.contextmanager
def opened(clip: Clip) -> Iterator[BinaryIO]:
    """Raises BadInput where it is gone, or another than was planned."""
    try:
        file = clip.open()
    except FileNotFoundError as error:
        raise BadInput(clip.media, "missing", "it was there when the run was planned") from error
    except storage.Changed as error:
        raise BadInput(clip.media, "changed-since-planned", str(error)) from error
    with io.BytesIO(file) if isinstance(file, bytes) else file as stream:
        yield stream


def _tell(clip: Clip, about: Mapping[str, Any]) -> None:
    """What a .json says: of curate.clips, with or without captions, or {"caption" or "prompt": text}."""
    if all(about.get(name) for name in OF_CLIP[:4]):
        clip.frames, clip.fps, clip.width, clip.height = (about[name] for name in OF_CLIP[:4])
    if about.get("source") and about.get("etag"):
        clip.source, clip.etag = about["source"], about["etag"]
        clip.cameras = clip.cameras + [_camera(one) for one in about.get("cameras") or ()]
    words = about.get("caption") or about.get("prompt")
    if "windows" in about:
        told = [one for one in about["windows"] if upstream.chosen(one)]  # those that a .pickle has embeddings of
        clip.captions = [Said(one["start_frame"], one["end_frame"], upstream.chosen(one), place)
                         for place, one in enumerate(told)]  # fmt: skip
    elif isinstance(words, str) and words.strip():
        clip.captions = [Said(0, None, words.strip())]


def captions_of(needed: Mapping[str, Mapping[str, str]]) -> dict[str, list[Said]]:
    """What the needed layer of captions says: uuid -> its windows in order. Raises ValueError for two of them."""
    layered = {}
    for name, objects in needed.items():
        if ".tar" not in objects and set(CAPTIONS) <= (has := upstream.columns_of(objects.get(".parquet"))):
            layered[name] = objects[".parquet"], [*CAPTIONS, *(c for c in OPTIONAL if c in has)]
    if len(layered) > 1:
        raise ValueError(f"`needs` names {len(layered)} stages that make captions: {', '.join(layered)}; keep one")
    found: dict[str, list[Said]] = {}
    for uri, columns in layered.values():
        for row in sorted(upstream.table(uri, columns).to_pylist(), key=lambda row: row["window"]):
            if words := upstream.chosen(row):
                said = Said(row["start_frame"], row["end_frame"], words, row["window"])
                found.setdefault(row["uuid"], []).append(said)
    return found


def embeddings_of(
    needed: Mapping[str, Mapping[str, str]],
) -> Callable[[str, int], npt.NDArray[np.float16] | None] | None:
    """(uuid, window) -> embedding, of the needed layer of them; None where there is none. Raises ValueError where they
    are not those of the captions that are taken here, and for two layers."""
    layered = [objects[".parquet"] for objects in needed.values()
               if ".tar" not in objects and {"window", "embedding"} <= upstream.columns_of(objects.get(".parquet"))]
    if not layered:
        return None
    if len(layered) > 1:
        raise ValueError(f"`needs` names {len(layered)} stages that embed captions; keep one of them")
    if (field := upstream.meta_of(layered[0]).get("field", "best")) != "best":
        raise ValueError(f"`needs` names embeddings of the field {field!r} of captions, and here `best` is taken: give "
                         "that stage `field: best`")  # fmt: skip
    table = upstream.table(layered[0], ["uuid", "window", "tokens", "embedding"])
    places = {pair: i for i, pair in enumerate(zip(*(table[c].to_pylist() for c in ("uuid", "window")), strict=True))}

    def read(uuid: str, window: int) -> npt.NDArray[np.float16] | None:
        if (i := places.get((uuid, window))) is None:
            return None
        return np.frombuffer(table["embedding"][i].as_buffer(), "<f2").reshape(table["tokens"][i].as_py(), -1)

    return read


def numbers(frames: int, stride: float, first: int, end: int) -> list[int]:
    """Frames of a source that the windows number `first` to `end` - 1 of `frames` take, side by side."""
    return [int(i * stride + 1e-6) for i in range(first * frames, end * frames)]


def windows(frames: int, stride: float, of: int) -> int:
    """How many windows of `frames` a clip of `of` frames has, side by side, taking each `stride`-th."""
    count = 0
    while int(((count + 1) * frames - 1) * stride + 1e-6) < of:
        count += 1
    return count


