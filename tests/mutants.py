"""Make mutants of the videos in a folder and cut them:   python tests/mutants.py SEED FILES FOLDER

Exits with an error, or by a signal, at the first one that is handled wrongly; the last line printed says which.
"""

from __future__ import annotations

import faulthandler
import random
import shutil
import sys
from pathlib import Path

import pyarrow.parquet

from hpc.curate import clips
from hpc.curate.settings import Clips, Encode, Split, Thumbnail
from hpc.data import layers, storage
from hpc.data.units import Seconds
from hpc.data.work import Item, Work

SECONDS_PER_FILE = 120  # on a machine with other work, too


def mutate(data: bytes, chance: random.Random) -> bytes:
    data = bytearray(data)  # type: ignore
    for _ in range(chance.choice([1, 1, 2, 5])):
        kind, at = chance.choice("flip flip flip zero splice cut insert".split()), chance.randrange(len(data))
        # the beginnings and ends of files hold what is read first: strike there as often as anywhere else
        near = chance.randrange(400)
        at = chance.choice([at, min(len(data) - 1, near), max(0, len(data) - 1 - near)])
        size = chance.choice([1, 4, 16, 200, 4000])
        if kind == "flip":
            for i in range(at, min(len(data), at + size)):
                data[i] ^= 1 << chance.randrange(8)
        elif kind == "zero":
            data[at : at + size] = bytes(len(data[at : at + size]))
        elif kind == "splice":
            other = chance.randrange(len(data))
            data[at : at + size] = data[other : other + size]
        elif kind == "cut":
            del data[at : at + size * chance.choice([1, 100])]
        else:
            data[at:at] = chance.randbytes(size)
        if not data:
            break
    return bytes(data)


def main(seed: int, count: int, folder: Path) -> None:
    split = Split(detector="stride", stride=Seconds(1), min_clip=Seconds(0.5))
    process = clips.start(
        Clips(split=split, encode=Encode(preset="ultrafast", threads=1), thumbnail=Thumbnail(height=36))
    )
    sources = sorted(folder.glob("?.*"))
    outcomes: dict[str, int] = {}
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        source = chance.choice(sources)
        file = folder / ("mutant" + source.suffix)
        file.write_bytes(mutate(source.read_bytes(), chance))
        print(f"{number} {source.name}", flush=True)  # the last line says which one it was
        faulthandler.dump_traceback_later(SECONDS_PER_FILE, exit=True)
        scratch = folder / "scratch"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir()
        entry = storage.stat(str(file))
        parts = chance.choice([1, 1, 1, 3])
        items = [Item(entry.uri, entry.size, entry.etag, chance.randrange(parts), parts)]
        made = process(Work("000000", items, [], {}, scratch, "f", lambda: None, lambda *_: None))
        tar, table = made.objects
        rows = pyarrow.parquet.read_table(table).to_pylist()
        with tar.open("rb") as opened:
            keys = [key for key, members in layers.read_tar(opened) if set(members) == {".mp4", ".json", ".webp"}]
        assert keys == [row["uuid"] for row in rows if row["verdict"] == "keep"], (keys, rows)
        assert rows or made.bad or parts > 1 or made.counts["frames"] >= 0
        for bad in made.bad:
            assert bad.reason and bad.reason == bad.reason.lower() and " " not in bad.reason, bad
        outcome = made.bad[0].reason if made.bad else "clips" if keys else "no clips"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    print("outcomes", outcomes)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
