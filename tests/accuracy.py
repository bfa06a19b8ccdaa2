"""How well shots are found, by our detectors and PySceneDetect's: joins of pieces of a real film, at known frames.

    python tests/accuracy.py [FILM] [--joins 30] [--seed 7]      prints a markdown table; without FILM, the trailer

Pieces of PIECE frames are taken from within shots of the film: where none of the detectors, at a fraction of its
threshold, sees anything for some frames around. So what they take for cuts in the shots of this film is not measured;
some kinds have disturbances instead. Pieces of different shots are joined, a film of so many joins for each kind,
encoded with x264, and each detector sees the very same files. What it finds is the number of a shot's first frame.
A hard cut is at the first frame of the new shot. A gradual one goes from its first mixed frame to the first clean one
of the new shot, and one frame in there finds it. All others are false.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import PIL.Image
import scenedetect

from hpc.curate import changes, split
from hpc.curate.look import Look, Sizes
from hpc.curate.settings import Split
from hpc.data import video
from hpc.models import shots

TRAILER = Path(__file__).parent.parent / "jobs" / "quickstart" / "trailer_bbb.mp4"
WIDTH, HEIGHT, FPS = 384, 216, 24
PIECE = 72  # frames
AROUND = 12  # frames between a piece and anything that may be a cut
DOUBTFUL = 0.1, 13.5  # TransNetV2's probability, and the score of changes, of what may be a cut
DARK = 24.0  # mean brightness, of 255, of pieces that are left out: nothing is to be seen in a cut of black to black
NEAR, NEAR_GRADUAL = 1, 6  # frames
FADE, BLACK = 12, 6  # frames

Frames = npt.NDArray[np.uint8]  # [frames, HEIGHT, WIDTH, 3]
Make = Callable[[Frames, Frames], tuple[Frames, int]]
"""(a piece, the next) -> the frames of the transition between them, and how many of each piece go into it."""


class Piece(NamedTuple):
    shot: int
    path: Path


class Join(NamedTuple):
    begin: int
    end: int


class Found(NamedTuple):
    exact: int
    """Joins found at their frame, or within the transition."""
    near: int
    """...or not more than NEAR, NEAR_GRADUAL frames away."""
    false: int
    joins: int

    def words(self) -> str:
        """Recall exact, recall near, precision."""
        precision = self.near / max(1, self.near + self.false)
        return " / ".join(f"{100 * x:.0f}" for x in (self.exact / self.joins, self.near / self.joins, precision))


def cut(a: Frames, b: Frames) -> tuple[Frames, int]:
    return a[:0], 0


def dissolve(frames: int) -> Make:
    def make(a: Frames, b: Frames) -> tuple[Frames, int]:
        share = shares(frames)
        return np.rint(a[-frames:] * (1 - share) + b[:frames] * share).astype(np.uint8), frames

    return make


def fade(a: Frames, b: Frames) -> tuple[Frames, int]:
    """Through black."""
    share = shares(FADE)
    mixed = np.concatenate([a[-FADE:] * (1 - share), np.zeros((BLACK, *a.shape[1:])), b[:FADE] * share])
    return np.rint(mixed).astype(np.uint8), FADE


def shares(frames: int) -> npt.NDArray[np.float32]:
    """Of the new picture, in each frame of a transition: [frames, 1, 1, 1]."""
    return (np.arange(1, frames + 1, dtype=np.float32) / (frames + 1))[:, None, None, None]


def flash(piece: Frames) -> Frames:
    """White light for two frames, that fades in four."""
    out, middle = piece.copy(), len(piece) // 2
    for i, light in enumerate((0.9, 0.8, 0.5, 0.3, 0.15, 0.05)):
        out[middle + i] = np.rint(piece[middle + i] * (1 - light) + 255 * light)
    return out


def whip_pan(piece: Frames) -> Frames:
    """The middle half of the picture's width, and in ten frames from its left to its right end, with motion blur."""
    out, middle = piece.copy(), len(piece) // 2

    def window(picture: Frames, at: float) -> npt.NDArray[np.float32]:
        box = (at * WIDTH / 2, HEIGHT / 4, (at + 1) * WIDTH / 2, HEIGHT * 3 / 4)
        resized = PIL.Image.fromarray(picture).resize((WIDTH, HEIGHT), PIL.Image.Resampling.BICUBIC, box)
        return np.asarray(resized, np.float32)

    for i, picture in enumerate(piece):
        blur = [min(1.0, max(0.0, (i - middle + step) / 10)) for step in (0.0, 0.125, 0.25, 0.375)]
        out[i] = np.rint(np.mean([window(picture, at) for at in blur], 0))
    return out


def poor(piece: Frames) -> Frames:
    """As a poor copy of it shows it: MPEG-4 of half the size."""
    with tempfile.NamedTemporaryFile(suffix=".avi") as file:
        write(Path(file.name), [piece], "-vf", f"scale={WIDTH // 2}:-2", "-c:v", "mpeg4", "-q:v", "14", "-g", "12")
        raw = ["-vf", f"scale={WIDTH}:{HEIGHT}", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
        done = subprocess.run(["ffmpeg", "-v", "error", "-i", file.name, *raw], check=True, capture_output=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, HEIGHT, WIDTH, 3)[: len(piece)]


def every_other(change: Callable[[Frames], Frames]) -> Callable[[int, Frames], Frames]:
    return lambda i, piece: change(piece) if i % 2 else piece


KINDS: dict[str, tuple[Make, Callable[[int, Frames], Frames]]] = {
    "hard cut": (cut, lambda i, piece: piece),
    "hard cut, every second piece re-encoded": (cut, every_other(poor)),
    "hard cut, a flash in each piece": (cut, lambda i, piece: flash(piece)),
    "hard cut, a whip pan in each piece": (cut, lambda i, piece: whip_pan(piece)),
    "fade through black, 30 frames": (fade, lambda i, piece: piece),
    **{f"dissolve, {n} frames": (dissolve(n), lambda i, piece: piece) for n in (4, 8, 16, 24)},
}
"""Kind -> how two pieces are joined, and what is done to a piece before."""


def write(path: Path, chunks: Iterable[Frames], *options: str) -> None:
    head = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{WIDTH}x{HEIGHT}", "-r", str(FPS), "-i", "-"]
    command = ["ffmpeg", "-v", "error", "-y", *head, *options, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin
        for chunk in chunks:
            process.stdin.write(np.ascontiguousarray(chunk).data)
        process.stdin.close()
    assert process.returncode == 0, command


def doubtful(film: Path, model: shots.TransNetV2) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
    """Of each frame of a film: may a shot begin or end here? And its mean brightness."""
    sizes: Sizes = {}
    info, detector = video.probe(film), shots.Detector(model)
    measure = changes.Scores(info.width, info.height)
    probabilities, scores, bright = [], [], []
    for number, frame in video.Decoder(film):
        look = Look(number, frame, sizes)
        small = look.rgb(shots.WIDTH, shots.HEIGHT)
        probabilities.extend(detector.push(small))
        scores.append(measure.push(look))
        bright.append(float(small.mean()))
    probabilities.extend(detector.finish())
    probability, score = DOUBTFUL
    return (np.array(probabilities) > probability) | (np.array(scores) > score), np.array(bright)


def pieces(film: Path, model: shots.TransNetV2, length: int, most: int, seed: int, folder: Path) -> list[Piece]:
    """Up to `most` pieces, without overlap, of different shots as far as there are enough."""
    at_cut, bright = doubtful(film, model)
    bounds = np.flatnonzero(np.concatenate([[True], at_cut, [True]]))
    found = [
        (shot, first)
        for shot, (a, b) in enumerate(zip(bounds[:-1], bounds[1:] - 1, strict=True))
        for first in range(a + AROUND, b - AROUND - length + 1, length)
        if bright[first : first + length].min() > DARK
    ]
    order = np.random.default_rng(seed).permutation(len(found))
    chosen = sorted(found[i] for i in order[:most])
    assert len({shot for shot, _ in chosen}) > 2, f"{film} has too few shots of {length + 2 * AROUND} frames"
    made = []
    resize, frames = video.Resizer(WIDTH, HEIGHT), video.Decoder(film)
    numbered = iter(frames)
    for shot, first in chosen:
        picture = np.empty((length, HEIGHT, WIDTH, 3), np.uint8)
        for number, frame in numbered:
            if number >= first:
                picture[number - first] = resize(frame)
            if number == first + length - 1:
                break
        made.append(Piece(shot, folder / f"{first}.npy"))
        np.save(made[-1].path, picture)
    return made


def film_of(kind: str, pieces: list[Piece], joins: int, seed: int, path: Path) -> list[Join]:
    """Write a film of joins of one kind: hard cuts and transitions at the frames that are returned."""
    make, change = KINDS[kind]
    random = np.random.default_rng([seed, list(KINDS).index(kind)])
    order: list[Piece] = []
    while len(order) <= joins:  # no neighbours of one shot; every piece once, before any is there again
        for i in random.permutation(len(pieces)):
            if not order or pieces[i].shot != order[-1].shot:
                order.append(pieces[i])
    made: list[Join] = []

    def chunks() -> Iterator[Frames]:
        before, written = change(0, np.load(order[0].path)), 0
        for i, piece in enumerate(order[1 : joins + 1], 1):
            following = change(i, np.load(piece.path))
            mixed, overlap = make(before, following)
            begin = written + len(before) - overlap
            made.append(Join(begin, begin + len(mixed)))
            yield before[: len(before) - overlap]
            yield mixed
            before, written = following[overlap:], begin + len(mixed)
        yield before

    write(path, chunks(), "-c:v", "libx264", "-preset", "veryfast", "-crf", "20", "-pix_fmt", "yuv420p")
    return made


def ours(path: Path, model: shots.TransNetV2) -> dict[str, list[int]]:
    """Detector -> the first frame of each shot but the first."""
    info, sizes = video.probe(path), Sizes()
    labellers: dict[str, split.Labeller] = {
        "transnetv2": split.Shots(model, Split().cut_above, 0),
        "content": changes.Changes(info, False, Split(detector="content").cut_above, 0),
        "adaptive": changes.Changes(info, True, Split(detector="adaptive").cut_above, 0),
    }
    labels: dict[str, list[split.Label]] = {name: [] for name in labellers}
    for number, frame in video.Decoder(path):
        look = Look(number, frame, sizes)
        for name, labeller in labellers.items():
            labels[name] += labeller.push(look)
    for name, labeller in labellers.items():
        labels[name] += labeller.finish()
    return {name: [n for n, one in enumerate(found) if one is split.Label.START][1:] for name, found in labels.items()}


def theirs(path: Path) -> dict[str, list[int]]:
    detectors: dict[str, Any] = {
        "PySceneDetect content": scenedetect.ContentDetector(),
        "PySceneDetect adaptive": scenedetect.AdaptiveDetector(),
    }
    return {
        name: [scene[0].frame_num for scene in scenedetect.detect(str(path), detector)][1:]
        for name, detector in detectors.items()
    }


def compare(joins: list[Join], found: list[int]) -> Found:
    exact = sum(any(j.begin <= n <= j.end for n in found) for j in joins)
    near, left = 0, list(found)
    for begin, end in joins:
        slack = NEAR if begin == end else NEAR_GRADUAL
        hit = next((n for n in left if begin - slack <= n <= end + slack), None)
        if hit is not None:
            near += 1
            left.remove(hit)
    return Found(exact, near, len(left), len(joins))


def measure(
    film: Path, joins: int, seed: int, length: int = PIECE, kinds: Iterable[str] = tuple(KINDS), peers: bool = True
) -> dict[str, dict[str, Found]]:
    """Kind -> detector -> what it found."""
    model = shots.load_transnetv2()
    table: dict[str, dict[str, Found]] = {}
    with tempfile.TemporaryDirectory() as folder:
        material = pieces(film, model, length, joins + 1, seed, Path(folder))
        for kind in kinds:
            path = Path(folder) / "film.mp4"
            made = film_of(kind, material, joins, seed, path)
            found = ours(path, model) | (theirs(path) if peers else {})
            table[kind] = {detector: compare(made, numbers) for detector, numbers in found.items()}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", nargs="?", type=Path, default=TRAILER)
    parser.add_argument("--joins", type=int, default=30, help="of each kind")
    parser.add_argument("--seed", type=int, default=7)
    given = parser.parse_args()
    table = measure(given.film, given.joins, given.seed)
    detectors = list(next(iter(table.values())))
    print(f"{given.joins} joins of each kind, pieces of {PIECE} frames of {given.film.name}, seed {given.seed}:")
    print("% recall, at the very frame or within the transition / recall, at most "
          f"{NEAR} frame beside it ({NEAR_GRADUAL} beside a gradual one) / precision of the latter\n")  # fmt: skip
    print("| " + " | ".join(["joins", *detectors]) + " |")
    print("|---|" + "---:|" * len(detectors))
    total = {name: Found(*np.sum([row[name] for row in table.values()], 0).tolist()) for name in detectors}
    for kind, row in (*table.items(), ("all", total)):
        print("| " + " | ".join([kind, *(row[name].words() for name in detectors)]) + " |")


if __name__ == "__main__":
    main()
