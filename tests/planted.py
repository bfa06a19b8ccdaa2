"""How well duplicates are found: clips of a film beside copies of them that were changed in one way each.

    python tests/planted.py FILM [--clips 200]

The film's own shots are the hard negatives: neighbours of one scene look alike, and are no copies. For each kind of
copy and eps: recall, of the copies, which were found (it or its original goes), and precision, of the clips that go,
which went for their own copy. Shots by TransNetV2, vectors of the model `perceptual`, decisions of the stage itself.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from dedups import decided, embedded, run

from hpc.curate import clips
from hpc.curate.settings import Clips, Dedup, Embed, Encode, Split
from hpc.data import layers, storage, video
from hpc.data.units import Seconds
from hpc.data.work import Item, Work
from hpc.models import embed

KINDS = {
    "re-encoded, 360p, crf 34": ["-vf", "scale=-2:360", "-crf", "34"],
    "cropped to 90%": ["-vf", "crop=iw*0.9:ih*0.9", "-crf", "26"],
    "1.25 times as fast": ["-vf", "setpts=PTS/1.25", "-r", "24", "-crf", "26"],
    "mirrored": ["-vf", "hflip", "-crf", "26"],
    "0.25 s cut off in front": ["-ss", "0.25", "-crf", "26"],
    "brighter": ["-vf", "eq=brightness=0.05:contrast=1.08", "-crf", "26"],
    "mirrored, cropped, 360p": ["-vf", "hflip,crop=iw*0.95:ih*0.95,scale=-2:360", "-crf", "30"],
}
SWEEP = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2)


def cut(film: Path, folder: Path, split: Split, most: int | None = None) -> dict[str, Path]:
    """uuid -> file of each clip of the film."""
    entry = storage.stat(str(film))
    assert entry
    folder.mkdir(parents=True)
    settings = Clips(split=split, encode=Encode(short_side=360, preset="veryfast", crf=20.0))
    item = Item(entry.uri, entry.size, entry.etag)
    made = clips.start(settings)(Work("0", [item], [], {}, folder, "f", lambda: None, lambda share, words: None))
    out = {}
    with made.objects[0].open("rb") as file:
        for key, members in layers.read_tar(file):
            if most is None or len(out) < most:
                out[key] = folder / f"{key}.mp4"
                out[key].write_bytes(members[".mp4"])
    return out


def copy(source: Path, target: Path, options: list[str]) -> None:
    before = options[:2] if options[0] == "-ss" else []
    command = ["ffmpeg", "-v", "error", "-y", *before, "-i", source, "-an", "-c:v", "libx264", "-preset", "veryfast",
               "-threads", "1", *options[len(before) :], target]  # fmt: skip
    subprocess.run(command, check=True, timeout=120)


def vectors(files: list[Path]) -> np.ndarray:
    """Of the model `perceptual`, [clips, D]."""
    model = embed.open_embedder(Embed(model="perceptual"))
    out = []
    for path in files:
        data = path.read_bytes()
        info = video.probe(path)
        frames = sum(1 for _ in video.Decoder(path))
        out.append(model.prepare(video.sample(data, model.times(frames), *model.size(info.width, info.height))))
    return np.concatenate([model.embed([one]) for one in out])


def measure(
    folder: Path, originals: dict[str, Path], found: np.ndarray, kind: str, sweep: tuple[float, ...]
) -> list[dict[str, Any]]:
    """For each eps: {"eps", "recall", "precision", "copies", "gone"}. found: vectors of the originals."""
    place = folder / kind.replace(" ", "-")
    place.mkdir(parents=True)
    copies = {f"{uuid}-copy": place / f"{uuid}.mp4" for uuid in originals}
    for source, target in zip(originals.values(), copies.values(), strict=True):
        copy(source, target, KINDS[kind])
    both = np.concatenate([found, vectors(list(copies.values()))])
    near = gone(place, [*originals, *copies], both, max(sweep))
    own = lambda uuid: uuid.removesuffix("-copy")
    out = []
    for eps in sweep:
        pairs = {uuid: other for uuid, (other, score) in near.items() if score >= 1 - eps}
        right = sum(own(uuid) == own(other) for uuid, other in pairs.items())
        caught = sum(bool({uuid, f"{uuid}-copy"} & pairs.keys()) for uuid in originals)
        out.append({"eps": eps, "recall": caught / len(originals), "precision": right / max(1, len(pairs)),
                    "copies": len(originals), "gone": len(pairs)})  # fmt: skip
    return out


def gone(folder: Path, uuids: list[str], found: np.ndarray, eps: float) -> dict[str, tuple[str, float]]:
    """uuid -> (the clip for which it goes, their cosine)."""
    settings = Dedup(eps=eps, sweep=(), pairs=0)
    decisions = decided(run(folder / "run", settings, embedded(folder / "in", found, uuids, 2)))
    return {uuid: (other, score) for uuid, (other, score, _) in decisions.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", type=Path)
    parser.add_argument("--clips", type=int, help="of the film, at most")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # short ones, too: more of them, and harder
        split = Split(min_clip=Seconds(1.0), min_frames=24, crop=Seconds(0.1))
        originals = cut(words.film, Path(folder) / "cut", split, words.clips)
        heads = " | ".join(f"eps {eps:g}" for eps in SWEEP)
        print(f"{len(originals)} clips of {words.film.name}: recall / precision\n\n| copies | {heads} |")
        print("|---|" + "---|" * len(SWEEP))
        found = vectors(list(originals.values()))
        for kind in KINDS:
            cells = measure(Path(folder), originals, found, kind, SWEEP)
            row = " | ".join(f"{cell['recall']:.3f} / {cell['precision']:.3f}" for cell in cells)
            print(f"| {kind} | {row} |", flush=True)
        alone = gone(Path(folder) / "alone", list(originals), found, max(SWEEP))
        row = " | ".join(str(sum(score >= 1 - eps for _, score in alone.values())) for eps in SWEEP)
        print(f"| clips of the film alone that go | {row} |")


if __name__ == "__main__":
    main()
