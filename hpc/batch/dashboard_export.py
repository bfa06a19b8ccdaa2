"""The dashboard as it is now, in a folder that a browser opens without any server: `hpc dashboard runs --export page`.

    page/index.html  app/     the same page
    page/data/                what the server would have answered, as scripts: a page from a disk may load nothing else
    page/files/  media/       reports and stage pages; thumbnails, and videos as long as there is room

Of each run there are some clips, spread over its shards, and the log's ends of some failures of each class.
"""

from __future__ import annotations

import html
import json
import shutil
import time
from pathlib import Path
from typing import Any

from hpc.batch import masking
from hpc.batch.dashboard import Dashboard, Refused
from hpc.batch.dashboard_server import POLICY, WEB
from hpc.data import storage

CLIPS = 120
"""Of a run."""
LOGS = 5
"""Of each class of failures of a stage."""
VIDEOS = 1 << 30
"""Bytes of videos, over all runs."""
READING = 5.0
"""Seconds in which the tables of a run are read."""
ALONE = POLICY.replace("; frame-ancestors 'none'", "")
"""No <meta> may say who frames it."""
META = f'<meta http-equiv="Content-Security-Policy" content="{ALONE}">'


class Export:
    """A folder that is being filled."""

    def __init__(self, board: Dashboard, to: Path) -> None:
        self.board, self.to = board, to
        self.index: dict[str, str] = {}
        self.clips = self.files = self.videos = 0

    def data(self, key: str, value: Any) -> None:
        """What `ask(key)` of the page answers."""
        name = f"d{len(self.index)}" if key else "index"
        if key:
            self.index[key] = name
        text = json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")
        (self.to / "data" / f"{name}.js").write_text(f'hpcData("{name}",{text});\n')

    def copy(self, name: str, words: list[str]) -> str:
        """A file of a run, by the door that the server has; its address, "" where it is not to be had."""
        try:
            file, _, suffix = self.board.file(name, words)
        except (Refused, OSError):
            return ""
        self.files += 1
        address = f"files/{self.files}{suffix}"
        with file:
            if suffix in (".mp4", ".webp", ".png"):
                with (self.to / address).open("wb") as out:
                    shutil.copyfileobj(file, out)
            else:
                text = masking.masked(file.read().decode(errors="replace"), self.board.run(name).secrets)
                (self.to / address).write_text(text)
        return address

    def part(self, name: str, clip: dict[str, Any], kind: str) -> str:
        """A member of a tar."""
        size = clip["media"][kind][1]
        if kind == "mp4":
            if self.videos + size > VIDEOS:
                return ""
            self.videos += size
        try:
            file, offset, size, suffix = self.board.media(name, clip["stage"], clip["shard"], f"{clip['key']}.{kind}")
            with file:
                file.seek(offset)
                self.files += 1
                address = f"media/{self.files}{suffix}"
                (self.to / address).write_bytes(file.read(size))
                return address
        except (Refused, OSError, storage.StorageError):
            return ""

    def run(self, name: str) -> None:
        known = self.board.run(name)
        links = [link | {"address": address} for link in known.detail["links"]
                 if (address := self.copy(name, link["path"].split("/")))]  # fmt: skip
        self.data(f"run/{name}", known.detail | {"links": links})
        for group in known.detail["failed_shards"]:
            for one in group["shards"][:LOGS]:
                try:
                    found = self.board.log(name, group["stage"], one["shard"])
                except (Refused, OSError):
                    continue
                self.data(f"log/{name}/{group['stage']}/{one['shard']}", found)
        for stage, place in known.folders.items():
            if place.metrics:
                found = self.board.metrics(name, stage)
                for step in found["pictures"]:
                    step["addresses"] = {f: self.copy(name, ["pictures", stage, f]) for f in step["files"]}
                self.data(f"metrics/{name}/{stage}", found)
        self.gallery(name)

    def gallery(self, name: str) -> None:
        end = time.monotonic() + READING
        try:
            while True:
                found = self.board.clips(name, verdict="", limit=1 << 30)
                if not found["more"] or time.monotonic() > end:
                    break
        except (Refused, ImportError):  # no pyarrow on this machine
            return
        clips = found["page"]
        found["total"] = found["clips"]
        kept = clips[:: max(1, len(clips) // CLIPS)][:CLIPS]
        for clip in kept:
            clip["addresses"] = {kind: address for kind in clip["media"] if (address := self.part(name, clip, kind))}
        self.clips += len(kept)
        self.data(f"clips/{name}", found | {"page": kept, "clips": len(kept), "more": False})


def export(board: Dashboard, to: Path) -> dict[str, Any]:
    """Raises FileExistsError for a folder that has something in it."""
    if to.exists() and any(to.iterdir()):
        raise FileExistsError(f"{to} is not empty: give a new folder")
    for folder in ("app", "data", "files", "media"):
        (to / folder).mkdir(parents=True, exist_ok=True)
    for path in WEB.iterdir():
        if path.name != "index.html":
            shutil.copyfile(path, to / "app" / path.name)
    board.watch.read()
    made = Export(board, to)
    made.data("runs", board.watch.runs())
    for name in sorted(board.watch.known):
        made.run(name)
    made.data("", made.index)
    (to / "app" / "static.js").write_text(f"window.HPC_STATIC = {json.dumps({'at': time.time()})};\n")
    page = (WEB / "index.html").read_text()
    page = page.replace('<meta charset="utf-8">', f'<meta charset="utf-8">\n{META}')
    first = '<script src="app/base.js">'
    page = page.replace(first, f'<script src="app/static.js"></script>\n{first}')
    (to / "index.html").write_text(page.replace("<title>hpc</title>", f"<title>{html.escape(to.name)}</title>"))
    return {"page": str(to / "index.html"), "runs": len(board.watch.known), "clips": made.clips, "files": made.files}
