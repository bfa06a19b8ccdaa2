"""What files of prompts say, in the published inference formats; one line of JSON for each video to make.

    Predict2.5    {"inference_type": "video2world", "samples": {name: {"prompt" or "prompt_path", "input_path"?}},
                   "seed"?, "guidance"?, "negative_prompt"?, "num_output_frames"?, "resolution"?: "704,1280"}
                  or, as later versions have it, such an object for each sample, with "name"; or a list of them
    Predict2      [{"input_video": path, "prompt": text, "output_video": name}, ...]
    Predict1      a .jsonl with a line {"prompt": text, "visual_input"?: path} for each; of autoregressive models
                  without prompts {"visual_input": path}; of models for actions {"visual_input": path, "actions": ...}:
                  [[7 numbers], ...], an .npy of them, or a Bridge annotation, each a path

Paths count from the file's folder. A .jsonl that begins with a `visual_input` and is the spec's `inputs` itself is a
list of those pictures and videos, each with its prompt. What cannot be understood in a file is named, with its line,
and the rest is made; names by number count it, so that they stay when it is mended. `hpc check` names it before (of a
file that `prompts` names also `hpc submit`, which starts nothing then). cosmos_predict2.5 50369b8:
config.py; cosmos_predict2 661da47: examples/video2world.py; cosmos_predict1 4ed35fa: diffusion/inference/
"""

from __future__ import annotations

import difflib
import functools
import io
import json
import posixpath
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import msgspec
import numpy as np

from hpc.data import storage, upstream
from hpc.data.tokens.action import ended
from hpc.data.work import Bad, BadInput, Made, Work
from hpc.generate.settings.ar import ArPrompts
from hpc.generate.settings.diffusion import Prompts
from hpc.generate.settings.videos import PICTURES, VIDEOS, Count, Guidance, Seed, Side, Steps, Videos

GIVEN = {"text2world": 0, "image2world": 1, "video2world": 2}
"""Latent frames that a video goes on from."""
COMMON = ("inference_type", "seed", "guidance", "negative_prompt", "num_output_frames", "resolution", "num_steps")
ONE = ("name", "output_video", "output_image", "prompt", "prompt_path", "input_path", "input_video", "visual_input")
MEDIA = ("input_path", "input_video", "visual_input")
ACTIONS = "actions"
KEYS = {"frames": "num_output_frames", "steps": "num_steps", "size": "resolution"}
"""Fields of a Request -> what files call them, where that is another word."""
LONGEST = 120
"""Characters of a name: with what is added a file's may have 255 bytes."""
TOLD = 100
"""Lines that are named of a file, at most: where all are wrong they are so in the same way."""


class Request(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A video to make. None: as the stage's settings say."""

    name: str
    prompt: str
    source: str
    """The file that asks for it, and its etag."""
    etag: str
    media: str = ""
    """A picture or video to go on from."""
    media_etag: str = ""
    media_offset: int = 0
    media_size: int = -1
    """Bytes of it, where it is in a tar; -1: the file is it."""
    given: int = 0
    """Latent frames of it."""
    held_out: str = ""
    """The list of a training's held-out clips, with the one that is gone on from."""
    beginning: bool = False
    """Its first frames are given, not its last ones."""
    seed: Seed | None = None
    guidance: Guidance | None = None
    negative_prompt: str | None = None
    frames: Count | None = None
    steps: Steps | None = None
    size: tuple[Side, Side] | None = None
    actions: list[list[float]] | None = None
    """[frames - 1, 7]: from each frame to the next, of hpc.data.tokens.action."""
    why: Bad | None = None
    """It cannot be made: what is wrong with what its file says."""


def start(settings: Prompts | ArPrompts) -> Callable[[Work], Made]:
    return functools.partial(process, wordless=settings.wordless)


def process(work: Work, wordless: bool = False) -> Made:
    """Make one shard. wordless: pictures and videos are prompts without words, too."""
    bad: list[Bad] = []
    found: list[Request] = []
    counts = {"files": 0, "prompts": 0, "media_without_prompt": 0}
    for item in work.items:
        work.check()
        counts["files"] += 1
        try:
            with work.on(item):
                if item.uri.lower().endswith((".json", ".jsonl")):
                    there = requests(storage.read(item.uri, etag=item.version), item.uri, item.etag, wordless)
                    found += (one for one in there if one.why is None)
                    bad += (one.why for one in there if one.why is not None)
                elif item.caption or (wordless and item.uri.lower().endswith((*PICTURES, *VIDEOS))):
                    values = {"prompt": item.caption or None, "visual_input": item.uri}
                    found.append(request(values, item.uri, item.etag, "", wordless=wordless))
                else:  # of a folder: a file of prompts may name it
                    counts["media_without_prompt"] += 1
        except BadInput as error:
            bad.append(error.bad)
        except storage.Changed as error:
            bad.append(Bad(item.uri, "changed-since-planned", str(error)))
    counts["prompts"] = len(found)
    path = work.scratch / f"{work.shard}.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(one) + b"\n" for one in found))
    return Made([path], counts, bad)


def of_shard(uri: str, superseded: set[tuple[str, str]]) -> Iterator[Request]:
    """What `process` wrote, less what comes from files that were replaced since."""
    for line in storage.read(uri).splitlines():
        one = msgspec.json.decode(line, type=Request)
        if (one.source, one.etag) not in superseded:
            yield one


def of_clips(
    shards: Iterable[tuple[str, Mapping[str, str]]], superseded: set[tuple[str, str]], settings: Videos,
    held_out: tuple[str, set[str]] | None,
) -> list[Request]:  # fmt: skip
    """Of a stage that makes clips or a plain data set: each goes on from a clip's first frames, with its caption where
    it lies beside it, and is called as the clip. held_out: of hpc.data.upstream, the clips that may be gone on from;
    None: all. Raises ValueError for another kind of stage, and where it has none of them."""
    clips = [one for one in upstream.located(shards, superseded, VIDEOS) if not one.why]
    uri, held = held_out or ("", set())
    if held_out is not None:
        there, clips = clips, [one for one in clips if one.name in held]
        if not clips:
            first = f", such as {there[0].name}" if there else ""
            raise ValueError(f"held_out: none of the {len(held):,} clips that {settings.held_out} held out, such as "
                             f"{min(held)}, is among the {len(there):,} of {settings.prompts}{first}: name the stage "
                             "whose clips it was trained on")  # fmt: skip
    if settings.limit is not None:
        clips = spread(clips, settings.limit)
    return [Request(name=one.name, prompt=_caption(one), source=one.uri, etag="", media=one.uri,
                    media_offset=one.offset, media_size=one.size, given=settings.given, beginning=True, held_out=uri)
            for one in clips]  # fmt: skip


def _caption(clip: upstream.Located) -> str:
    """The first one, of the .json beside a clip; "" where there is none."""
    if clip.beside is None:
        return ""
    offset, size = clip.beside
    told = json.loads(storage.read(clip.uri, offset, offset + size))
    windows = [upstream.chosen(one) for one in told.get("windows") or ()]
    return next((words for words in [*windows, told.get("caption") or ""] if words), "").strip()


def spread(found: list[Any], most: int) -> list[Any]:
    """So many of them, evenly over all, in their order."""
    return [found[i * len(found) // most] for i in range(most)] if len(found) > most else found


def planned(found: Iterable[Request], per_shard: int) -> Iterator[list[Any]]:
    """Rows of shards, so many requests each, in their order. A name that several have gets a number. Raises ValueError
    where there is not one."""
    names: Counter[str] = Counter()
    rows: list[Any] = []
    for one in found:
        one.name = re.sub(r"[^\w-]+", "_", one.name).strip("_") or "video"
        names[one.name] += 1
        if names[one.name] > 1:
            one.name = f"{one.name}_{names[one.name]}"
            names[one.name] += 1
        rows.append(msgspec.to_builtins(one))
        if len(rows) == per_shard:
            yield rows
            rows = []
    if not names:
        raise ValueError("there is not one prompt: the inputs are no files of prompts, or all were refused; "
                         "hpc/generate/prompts.py says what they look like")  # fmt: skip
    if rows:
        yield rows


def of_file(uri: str, wordless: bool = False) -> list[Request]:
    """Of the file that `prompts` names. Raises ValueError where it is not there, or nothing in it can be made."""
    if (there := storage.stat(uri)) is None:
        raise ValueError(f"prompts: there is no {uri}")
    try:
        found = requests(storage.read(uri, etag=there.etag), uri, there.etag, wordless)
    except BadInput as error:
        raise ValueError(f"prompts: {error}") from error
    if found and all(one.why for one in found):
        raise ValueError("prompts: " + refusals(uri, found))
    return found


def refusals(uri: str, found: list[Request]) -> str:
    """Which of them cannot be made and why, a line each; "" where all can."""
    bad = [one.why for one in found if one.why is not None]
    if not bad:
        return ""
    lines = [f"  {one.detail}" if one.reason == "no-prompt" else f"  {one.reason}: {one.detail}" for one in bad[:TOLD]]
    more = [f"  and {len(bad) - TOLD:,} more"] if len(bad) > TOLD else []
    return "\n".join([f"{uri}: {len(bad):,} of {len(found):,} cannot be made:", *lines, *more])


def requests(data: bytes, uri: str, etag: str, wordless: bool = False) -> list[Request]:
    """Of a file of prompts; what cannot be understood in it says why. wordless: a picture or a video to go on from is
    enough. Raises BadInput for what is no such file at all."""
    stem = PurePosixPath(uri).stem
    try:
        text = data.decode("utf-8-sig")
        if uri.lower().endswith(".jsonl"):
            lines = enumerate(text.split("\n"), 1)
            each: list[tuple[str, Any]] = [(f"line {number}", _line(line)) for number, line in lines if line.strip()]
        elif isinstance(whole := json.loads(text), list):
            each = [(f"entry {number}", one) for number, one in enumerate(whole, 1)]
        elif isinstance(whole, dict) and isinstance(whole.get("samples"), dict):
            common = {key: value for key, value in whole.items() if key != "samples"}
            _known(common, COMMON, uri, "")
            each = [(f"sample {name}", common | {"name": name} | one if isinstance(one, dict) else one)
                    for name, one in whole["samples"].items()]  # fmt: skip
        else:
            each = [("", whole)]
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError
        raise BadInput(uri, "no-json", str(error)) from error
    found = []
    for number, (where, one) in enumerate(each, 1):
        name = f"{stem}_{number:06}" if len(each) > 1 else stem
        try:
            if isinstance(one, ValueError):
                raise BadInput(uri, "no-json", _at(where, str(one))) from one
            found.append(request(one, uri, etag, name, where, wordless))
        except BadInput as error:
            found.append(Request(name=name, prompt="", source=uri, etag=etag, why=error.bad))
    return found


def _line(line: str) -> Any:
    """What it says, or why it says nothing."""
    try:
        return json.loads(line)
    except ValueError as error:
        return error


def request(values: Any, uri: str, etag: str, name: str, where: str = "", wordless: bool = False) -> Request:
    """Of one object. Raises BadInput."""
    if not isinstance(values, dict):
        _refuse(uri, where, values)
    _known(values, (*COMMON, *ONE, *([ACTIONS] if wordless else [])), uri, where)
    folder = uri.rpartition("/")[0]
    actions = _actions(values[ACTIONS], folder, uri, where) if values.get(ACTIONS) is not None else None
    prompt = values.get("prompt")
    for key in ("prompt", "prompt_path", *MEDIA):
        if values.get(key) is not None and not isinstance(values[key], str):
            words = f"{key}: {json.dumps(values[key])[:80]}: text is expected" + " and one path" * (key != "prompt")
            raise BadInput(uri, "no-prompt", _at(where, words))
    if len(given_ := [key for key in MEDIA if values.get(key)]) > 1:
        raise BadInput(uri, "no-prompt", _at(where, f"{' and '.join(given_)}: one of them is gone on from: leave one"))
    media = values[given_[0]] if given_ else ""
    if media.startswith("~") or ("://" in media and not re.match(r"s3://[^/]+/.", media)):
        words = f"{media}: a path, or s3://bucket/key: ~ and other addresses are not followed"
        raise BadInput(uri, "missing-media", _at(where, words))
    try:
        if values.get("prompt_path"):
            prompt = storage.read(_joined(folder, values["prompt_path"])).decode().strip()
        media = _joined(folder, media) if media else ""
        there = storage.stat(media) if media else None
    except (FileNotFoundError, IsADirectoryError, UnicodeDecodeError, TypeError, AttributeError) as error:
        raise BadInput(uri, "no-prompt", _at(where, str(error))) from error
    if media and there is None:
        raise BadInput(uri, "missing-media", _at(where, f"there is no {media}: paths count from this file's folder"))
    if media and not media.lower().endswith((*PICTURES, *VIDEOS)):
        words = f"{media} is neither a picture ({' '.join(PICTURES)}) nor a video ({' '.join(VIDEOS)})"
        raise BadInput(uri, "missing-media", _at(where, words))
    if wordless and media and not prompt:
        prompt = ""
    elif not isinstance(prompt, str) or not prompt.strip():
        raise BadInput(uri, "no-prompt", _at(where, "it has neither a prompt nor a prompt_path with words"))
    kind = values.get("inference_type")
    if kind is not None and kind not in tuple(GIVEN):
        raise BadInput(uri, "no-prompt", _at(where, f"inference_type: {kind!r}; known are {', '.join(GIVEN)}"))
    given = GIVEN[kind] if kind else 0 if not media else 1 if media.lower().endswith(PICTURES) else 2
    if given and not media:
        raise BadInput(uri, "missing-media", _at(where, f"{kind} goes on from something: give an input_path"))
    try:
        saved = values.get("output_video") or values.get("output_image") or ""
        own = values.get("name") or PurePosixPath(saved).stem or name
        if isinstance(own, str) and len(own) > LONGEST:
            raise ValueError(f"name: {own[:40]}...: {len(own):,} characters; a file's name may have {LONGEST}")
        return msgspec.convert(
            {
                "name": own or PurePosixPath(media).stem, "prompt": prompt.strip(), "source": uri, "etag": etag,
                "media": media if given else "", "media_etag": there.etag if there and given else "", "given": given,
                "seed": values.get("seed"), "guidance": values.get("guidance"), "steps": values.get("num_steps"),
                "negative_prompt": values.get("negative_prompt"), "frames": values.get("num_output_frames"),
                "size": _size(values.get("resolution")), "actions": actions, "beginning": actions is not None,
            },
            Request,
        )  # fmt: skip
    except msgspec.ValidationError as error:
        raise BadInput(uri, "no-prompt", _at(where, _refusal(str(error), values))) from error
    except (ValueError, TypeError) as error:
        raise BadInput(uri, "no-prompt", _at(where, str(error))) from error


def _refusal(words: str, values: Mapping[str, Any]) -> str:
    """What msgspec says of a Request, by the key of the file, with what is there: `seed: -1: expected int >= 0`."""
    said, _, field = words.replace("`", "").replace(" | null", "").partition(" - at $.")
    field = field.partition("[")[0]
    key = KEYS.get(field, field)
    given = f"{json.dumps(values[key])[:80]}: " if key in values else ""
    return f"{key}: {given}{said[:1].lower()}{said[1:]}" if key else said


def _actions(found: Any, folder: str, uri: str, where: str) -> list[list[float]]:
    """Raises BadInput."""
    try:
        if isinstance(found, str):
            data = storage.read(_joined(folder, found))
            found = np.load(io.BytesIO(data), allow_pickle=False) if found.endswith(".npy") else json.loads(data)
            found = found["action"] if isinstance(found, dict) else found
        return ended(found)[:-1].tolist()
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise BadInput(uri, "actions", _at(where, f"`actions`: {error}")) from error


def _size(resolution: Any) -> list[int] | None:
    """Of "704,1280"; "none" is the model's own. Raises ValueError."""
    if resolution in (None, "none"):
        return None
    sides = str(resolution).split(",")
    if len(sides) != 2 or not all(side.strip().isdigit() for side in sides):
        raise ValueError(f'resolution: {resolution!r}; write height and width, "704,1280", or "none"')
    return [int(side) for side in sides]


def _joined(folder: str, path: str) -> str:
    if storage.is_s3(path) or path.startswith("/"):
        return path
    if storage.is_s3(folder):
        return storage.join(folder, path)
    return posixpath.normpath(f"{folder}/{path}")


def _known(values: Mapping[str, Any], known: tuple[str, ...], uri: str, where: str) -> None:
    if wrong := [key for key in values if key not in known]:
        near = difflib.get_close_matches(wrong[0], known, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        words = f"unknown: {', '.join(wrong)}{hint}; known are {', '.join(known)}"
        raise BadInput(uri, "no-prompt", _at(where, words))


def _refuse(uri: str, where: str, value: Any) -> Any:
    raise BadInput(uri, "no-prompt", _at(where, f"{json.dumps(value)[:80]} is no object with a prompt"))


def _at(where: str, words: str) -> str:
    return f"{where}: {words}" if where else words
