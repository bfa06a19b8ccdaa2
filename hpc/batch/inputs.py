"""What a spec's `inputs` mean: a folder, a glob, a list file, an s3:// prefix, tars, or an earlier stage's output.

All of them become entries (uri, size, etag), sorted by uri, each once. Nothing is opened: a login node lists, it does
not probe.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath

import msgspec

from hpc.batch import ledger
from hpc.batch.spec import Inputs
from hpc.data import storage
from hpc.data.work import SAID

LISTS = (".txt", ".jsonl")


class InputError(Exception):
    """The inputs of a spec can't be used: which, why, what to do."""


class Listing(msgspec.Struct):
    entries: list[storage.Entry]
    weights: dict[str, float]
    """uri -> work in bytes, for inputs whose length is known (a list file gives seconds)."""
    ignored: dict[str, int]
    """Suffix -> how many files were left out because the stage doesn't read such files."""
    sessions: dict[str, tuple[str, str]]
    """uri -> (session, camera), of inputs that have `group_by`."""
    captions: dict[str, str]
    """uri -> what a list file says of it."""


class Listed(msgspec.Struct):
    """A line of a .jsonl list. size and etag save one look at the storage each. Lists of Cosmos' autoregressive models
    have `visual_input` for the uri, and a `prompt`."""

    uri: str = ""
    visual_input: str = ""
    prompt: str = ""
    seconds: float = 0.0
    size: int = -1
    etag: str = ""


LISTED = '{"uri": ..., "seconds"?, "size"?, "etag"?} or {"visual_input": ..., "prompt"?}'
BYTES_PER_SECOND = 1 << 20
"""The weight of a second of video whose length is known: 8 Mbit/s."""


def resolve(inputs: Iterable[Inputs], suffixes: tuple[str, ...], beside: tuple[str, ...] = ()) -> Listing:
    """List everything. beside: suffixes of files that stages find beside their inputs by themselves. Raises InputError,
    naming every missing input at once."""
    out: dict[str, storage.Entry] = {}
    weights: dict[str, float] = {}
    ignored: dict[str, int] = {}
    sessions: dict[str, tuple[str, str]] = {}
    captions: dict[str, str] = {}
    for one in inputs:
        entries = sorted(_entries(one, suffixes, weights, captions), key=lambda e: e.uri)
        is_folder = len(entries) != 1 or entries[0].uri != one.uri
        if one.match is not None:
            base = _base(one.uri) + "/"
            kept = [e for e in entries if fnmatch.fnmatchcase(e.uri.removeprefix(base), one.match)]
        elif is_folder:
            kept = [e for e in entries if e.uri.lower().endswith(suffixes)]
            for e in entries if len(kept) < len(entries) else ():
                if not e.uri.lower().endswith(suffixes + beside):
                    suffix = PurePosixPath(e.uri).suffix.lower() or "(none)"
                    ignored[suffix] = ignored.get(suffix, 0) + 1
        else:
            kept = entries
        if one.group_by is not None:
            kept = _in_sessions(one, one.group_by, kept, sessions)
        for e in kept[: one.limit] if one.group_by is None else kept:
            out.setdefault(e.uri, e)
    if not out:
        where = ", ".join(i.uri for i in inputs)
        seen = "".join(f"; ignored {n} x {s}" for s, n in sorted(ignored.items()))
        raise InputError(f"no inputs found in {where}{seen}. Files are taken by suffix: {' '.join(suffixes)}")
    return Listing([out[uri] for uri in sorted(out)], weights, ignored, sessions,
                   {uri: words for uri, words in captions.items() if words})  # fmt: skip


def _in_sessions(
    one: Inputs, group_by: str, entries: list[storage.Entry], sessions: dict[str, tuple[str, str]]
) -> list[storage.Entry]:
    """The entries of the first `limit` sessions, which are noted. Raises InputError for a file that is in none, and for
    two files of the same camera."""
    *words, last = re.split(r"({session}|{camera})", group_by)
    regex = "".join({"{session}": "(?P<session>.+)", "{camera}": "(?P<camera>[^/]+?)"}.get(word) or re.escape(word)
                    for word in words)  # fmt: skip
    suffixed = "." in last  # of those that the stage reads, in either case, as without group_by
    pattern = re.compile(f"{regex}(?i:{re.escape(last)})" if suffixed else regex + re.escape(last))
    base = _base(one.uri)
    found: dict[str, dict[str, storage.Entry]] = {}
    strangers = []
    for e in entries:
        path = e.uri.removeprefix(base + "/")
        match = pattern.fullmatch(path if suffixed else path.removesuffix(PurePosixPath(path).suffix))
        if match is None:
            strangers.append(path)
            continue
        cameras = found.setdefault(f"{base}/{match['session']}", {})
        if match["camera"] in cameras:
            raise InputError(f"{e.uri} and {cameras[match['camera']].uri} are the same camera of the same session")
        cameras[match["camera"]] = e
    if strangers:
        raise InputError(
            f"{base}: {len(strangers)} files do not fit group_by: {group_by!r}, e.g. {strangers[0]}; "
            "leave them out by `match`, or give them an entry of `inputs` of their own"
        )
    kept = []
    for session in sorted(found)[: one.limit]:
        for camera, e in found[session].items():
            sessions[e.uri] = session, camera
            kept.append(e)
    return kept


def _entries(
    one: Inputs, suffixes: tuple[str, ...], weights: dict[str, float], captions: dict[str, str]
) -> Iterator[storage.Entry]:
    uri = one.uri
    if _is_pattern(uri):
        pattern = _glob(uri)  # lists from the last folder that is certain; ** crosses folders, * does not
        yield from (e for e in storage.listing(_base(uri)) if pattern.fullmatch(e.uri))
    elif uri.endswith(LISTS) and not (uri.endswith(suffixes) and _of_prompts(uri)):
        yield from _list_file(uri, weights, captions)
    elif uri.endswith(LISTS):
        yield from filter(None, [storage.stat(uri)])
    elif not storage.is_s3(uri) and Path(uri).is_file():
        yield from storage.listing(uri)
    elif (info := ledger.info_of(uri)) is not None:
        yield from _earlier(uri, info)
    else:
        if not storage.is_s3(uri) and (Path(uri) / "attempt-1" / "plan.json").is_file():
            raise InputError(f"{uri} is a run folder: name one of its outputs instead, a folder like <output>/clips@v1")
        if not storage.is_s3(uri) and not Path(uri).exists():
            raise InputError(f"{uri}: no such file or folder")
        yield from storage.listing(uri)


def _is_pattern(uri: str) -> bool:
    """Unless there is a file or folder of this very name."""
    return bool(re.search(r"[*?\[]", uri)) and next(storage.listing(uri), None) is None


def _base(uri: str) -> str:
    """The folder that `match` counts from: the inputs', the list's, or the last one before a pattern begins."""
    if _is_pattern(uri):
        return re.split(r"[*?\[]", uri)[0].rpartition("/")[0] or "/"
    if uri.endswith(LISTS) or (not storage.is_s3(uri) and Path(uri).is_file()):
        return uri.rpartition("/")[0]
    return uri.rstrip("/")


def _glob(pattern: str) -> re.Pattern[str]:
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    out = ""
    for i, part in enumerate(re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern)):
        if i % 2 and part[0] == "[":
            inner = re.sub(r"([\\\[&~|^])", r"\\\1", part[1:-1].removeprefix("!"))
            out += f"[{'^/' if part[1] == '!' else ''}{inner}]"
        else:
            out += known[part] if i % 2 else re.escape(part)
    try:
        return re.compile(out, re.DOTALL)
    except re.error as error:
        raise InputError(f"{pattern}: not a pattern: {error}") from None


def _list_file(uri: str, weights: dict[str, float], captions: dict[str, str]) -> Iterator[storage.Entry]:
    """One path or s3:// URI a line (.txt; # starts a comment line), or one JSON object a line (.jsonl)."""
    try:
        text = storage.read(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{uri}: not a list of paths: {error}") from None
    base = "" if storage.is_s3(uri) else str(Path(uri).parent)
    problems = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or (uri.endswith(".txt") and line.startswith("#")):
            continue
        try:
            listed = msgspec.json.decode(line, type=Listed) if uri.endswith(".jsonl") else Listed(line)
        except msgspec.DecodeError as error:
            problems.append(f"{uri}:{number}: {error}; allowed: {LISTED}")
            continue
        if bool(listed.uri) == bool(listed.visual_input):
            problems.append(f"{uri}:{number}: it names no file, or two; allowed: {LISTED}")
            continue
        named = listed.uri or listed.visual_input
        path = named if storage.is_s3(named) else os.path.normpath(Path(base, named))
        if captions.setdefault(path, listed.prompt) != listed.prompt:
            problems.append(f"{uri}:{number}: {path} has another prompt in a line before: keep one of them")
        if listed.seconds > 0:
            weights[path] = listed.seconds * BYTES_PER_SECOND
        if listed.size >= 0 and listed.etag:
            yield _said(storage.Entry(path, listed.size, listed.etag), listed.prompt)
        elif (entry := storage.stat(path)) is not None:
            yield _said(entry, listed.prompt)
        else:
            problems.append(f"{uri}:{number}: {path}: no such file or object")
    if problems:
        more = f"\n... and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise InputError("\n".join(problems[:20]) + more)


def _of_prompts(uri: str) -> bool:
    """Is a .jsonl, which the stage reads, no list? One begins with a line that names a file."""
    first = next((line for line in storage.read(uri).decode("utf-8-sig", "replace").split("\n") if line.strip()), "")
    try:
        listed = msgspec.json.decode(first, type=Listed)
    except msgspec.DecodeError:
        return True
    return not listed.uri and not listed.visual_input


def _said(entry: storage.Entry, prompt: str) -> storage.Entry:
    """An input with another prompt is another one: what was made of it with the old one is not taken for done."""
    if not prompt:
        return entry
    digest = hashlib.blake2b(prompt.encode(), digest_size=6).hexdigest()
    return msgspec.structs.replace(entry, etag=f"{entry.etag}{SAID}{digest}")


def _earlier(folder: str, info: ledger.StageInfo) -> Iterator[storage.Entry]:
    """The finished shards of an earlier stage's output folder: those whose objects are all there."""
    there: dict[str, dict[str, storage.Entry]] = {}
    for e in storage.listing(folder):
        suffix = next((x for x in info.objects if e.uri.endswith(x)), "")
        if suffix and not PurePosixPath(e.uri).name.startswith("_"):
            there.setdefault(e.uri.removesuffix(suffix), {})[suffix] = e
    yield from (found[info.objects[0]] for found in there.values() if len(found) == len(info.objects))
