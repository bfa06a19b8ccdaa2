"""Cameras that recorded the same session at the same time: one of them is cut, the others follow with the same spans.

Times count from each camera's first frame. A clip has the files of all cameras, or it is dropped and says which one is
missing (or, with `missing_camera: keep`, has those that there are); filters, thumbnail, previews and sound are those of
the camera that decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from hpc.curate import clip, source, split
from hpc.curate.settings import Clips
from hpc.data import video
from hpc.data.work import Bad, BadInput, Item

MISSING = 1.5  # frames that may lack at both ends of a clip: cameras tick alike, but not at the same moment


class Part(msgspec.Struct, frozen=True):
    """What one camera saw of a clip."""

    path: Path
    row: dict[str, Any]


def decides(settings: Clips, items: Sequence[Item]) -> tuple[Item, list[Item]]:
    """The camera that is cut, and those that follow. Raises BadInput."""
    by_name = {item.camera: item for item in sorted(items, key=lambda item: item.camera)}
    first = settings.camera or next(iter(by_name))
    if first not in by_name:
        raise BadInput(items[0].session, "no-such-camera", f"camera: {first}; it has {', '.join(by_name)}")
    if settings.encode.encoder == "copy" and len(by_name) > 1:
        raise BadInput(items[0].session, "cannot-be-copied", "key frames of cameras are not at the same times")
    return by_name.pop(first), list(by_name.values())


def cut(
    tools: source.Tools,
    items: Sequence[Item],
    open_input: Callable[[Item], BinaryIO],
    scratch: Path,
    check: Callable[[], None],
    progress: Callable[[float, int, int], None],
) -> tuple[list[clip.Made], dict[str, float], list[Bad]]:
    """Cut one session: source.cut of the camera that decides, and what the others saw. Raises BadInput as that does;
    what is wrong with another camera costs the clips, and is told beside them."""
    bad = []
    item, others = decides(tools.settings, items)
    with open_input(item) as file:
        made, counts = source.cut(
            tools, item, "", file, scratch, check, lambda share, *rest: progress(share / len(items), *rest)
        )
    for done, other in enumerate(others, 1):
        clips = sum(bool(one.members) for one in made)
        progress(done / len(items), 0, clips)
        spans = [(one.row["start_seconds"], one.row["end_seconds"]) for one in made if one.members]
        try:
            with open_input(other) as file:
                watched: Any = source.Watched(other.uri, file, check)
                parts = follow(tools.settings, other, watched, spans, scratch)
            source.unchanged(other)
        except Exception as error:
            bad.append(source.refusal(other.uri, error))
            parts = [None] * len(spans)
        join(made, other, parts, tools.settings.missing_camera == "keep")
    return made, counts, bad


def follow(
    settings: Clips, item: Item, file: BinaryIO, spans: list[tuple[float, float]], scratch: Path
) -> list[Part | None]:
    """Encode what one camera saw in each of these spans, in seconds, rising; None where it did not see all of it.

    Raises BadInput.
    """
    info = video.probe(file)
    slack = split.slack(info) * float(info.time_base)
    parts: list[Part | None] = [None] * len(spans)
    encoder: video.Encoder | None = None
    at, began, ended = 0, 0.0, 0.0

    def finish() -> None:
        nonlocal encoder
        lacking = MISSING / float(info.fps) + slack
        if encoder and began <= spans[at][0] + lacking and ended >= spans[at][1] - lacking:
            encoder.close()
            parts[at] = Part(encoder.path, row(item, encoder))
        elif encoder:
            encoder.abandon()
        encoder = None

    for frame, end in with_ends(video.Decoder(file)):
        begins, ends = (float((pts - info.start_pts) * info.time_base) for pts in (frame.pts, end))
        while at < len(spans) and begins > spans[at][1] - slack:
            finish()
            at += 1
        if at == len(spans):
            break
        if begins < spans[at][0] - slack:
            continue
        if encoder is None:
            encoder = video.Encoder(scratch / f"{item.camera}-{at}.mp4", info, clip.coding(settings.encode))
            began = begins
        ended = ends
        encoder.write(frame, end - frame.pts)
    if encoder:
        finish()
    return parts


def with_ends(decoder: Iterable[tuple[int, video.Frame]]) -> Iterable[tuple[video.Frame, int]]:
    """Each frame, and when the next one is shown."""
    held = None
    for _, frame in decoder:
        if held is not None:
            yield held, frame.pts
        held = frame
    if held is not None:
        yield held, held.pts + held.duration


def row(item: Item, encoder: video.Encoder) -> dict[str, Any]:
    return {
        "camera": item.camera,
        "source": item.uri,
        "etag": item.etag,
        "width": encoder.width,
        "height": encoder.height,
        "num_frames": encoder.frames,
        "codec": encoder.codec,
        "bytes": encoder.path.stat().st_size,
        "digest": encoder.digest.hexdigest(),
    }


def join(made: list[clip.Made], item: Item, parts: list[Part | None], lacking: bool) -> None:
    """Put what a camera saw to the clips that are kept, in their order; what it did not see is dropped, or stays
    without it (`lacking`)."""
    for one, part in zip([one for one in made if one.members], parts, strict=True):
        if part is None and lacking:
            continue
        if part is None:
            clip.drop(one, "camera-missing", f"{item.camera} did not record all of it")
        else:
            one.row["cameras"] = [*one.row.get("cameras", []), part.row]
            one.members[f".{item.camera}.mp4"] = part.path
            one.members[".json"] = clip.described(one.row)
