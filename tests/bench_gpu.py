"""What curate.clips does on one GPU: the README's table.   python tests/bench_gpu.py [--quick] [FILM.mp4]

The video engines' ceiling by bare decoding, decoding with shot detection (frames are cut into clips that nobody
writes), and the stage itself on shards of copies of the film, decoded by the GPU and by the CPUs. Each by some workers,
processes of their own, with some lanes. Beside each figure what was busy, sampled by nvidia-smi: multiprocessors (sm)
and video engines (dec) in percent, and CPU cores.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import torch

from hpc.curate import clips, gpu, lanes, source, split
from hpc.curate.settings import Clips
from hpc.curate.settings.encode import Encode
from hpc.data import storage, video
from hpc.data.video import nvdec
from hpc.data.work import Item, Work

TRAILER = Path(__file__).parent.parent / "jobs" / "quickstart" / "trailer_bbb.mp4"


def looped(film: Path, path: Path, times: int) -> Path:
    """The film's pictures some times in a row, not encoded anew."""
    with av.open(str(path), "w") as out:
        shift = 0
        for _ in range(times):
            with av.open(str(film)) as container:
                stream = container.streams.video[0]
                if not shift:
                    target = out.add_stream_from_template(stream)
                end = 0
                for packet in container.demux(stream):
                    if packet.dts is not None:
                        end = max(end, packet.pts + packet.duration)
                        packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, target
                        out.mux(packet)
                shift += end
    return path


class Nowhere:
    """A clip that is cut, and not kept."""

    def __init__(self, number: int, pts: int, verdict: str) -> None:
        self.frames = 0

    def take(self, number: int, pts: int, end: int, look: object) -> None:
        self.frames += 1

    def close(self) -> None:
        pass


def bare(tools: source.Tools, film: Path, check: Callable[[], None]) -> float:
    """Decode, and look at nothing."""
    with av.open(str(film), hwaccel=nvdec.accelerator()) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return sum(1 for _ in container.decode(video=0))


def shots(tools: source.Tools, film: Path, check: Callable[[], None]) -> float:
    """Decode and cut."""
    info = video.probe(film)
    rules = tools.settings.split
    decoder = video.Decoder(film, nvdec=True)
    held, labeller = gpu.Held(info, decoder, tools.gpu_bytes), split.Shots(tools.model, rules.cut_above, 0)
    cutter = split.Cutter(info, rules, 0, (0, float("inf")), Nowhere)
    for number, frame in decoder:
        look = held.look(number, frame, {}, b"")
        cutter.push(look, labeller.push(look))
    cutter.finish(labeller.finish())
    return number + 1


def stage(tools: source.Tools, film: Path, copies: int) -> float:
    """A shard of the stage."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        entry = storage.stat(str(film))
        links = [scratch / f"{number}.mp4" for number in range(copies)]
        for link in links:
            link.symlink_to(film)
        items = [Item(str(link), entry.size, entry.etag) for link in links]
        made = clips.process(tools, Work("000000", items, [], {}, scratch, "", lambda: None, lambda *a: None))
    assert not made.bad, made.bad
    times = {name[5:]: made.counts[name] for name in sorted(made.counts) if name.startswith("time_")}
    print("   " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items()), file=sys.stderr)
    return made.counts["frames"]


def worker(what: str, count: str, film: str, copies: str) -> None:
    """One process: gets ready, says so, waits for its start, works, says how many frames that were."""
    settings = Clips(encode=Encode(encoder="copy")) if what == "copy" else Clips()
    tools = clips.start(settings).args[0]
    tools.lanes, tools.gpu_bytes = int(count), 0 if what == "cpu" else tools.gpu_bytes
    work = {"bare": bare, "shots": shots}.get(what)
    print("ready", flush=True)
    sys.stdin.readline()
    if work:
        films = [Path(film)] * int(copies)
        print(sum(lanes.in_order(films, functools.partial(work, tools), tools.lanes, lambda: None)), flush=True)
    else:
        print(stage(tools, Path(film), int(copies)), flush=True)


def measured(name: str, what: str, workers: int, count: int, film: Path, copies: int) -> float:
    """Prints and returns frames per second. copies: of the film, for each worker."""
    command = [sys.executable, __file__, "--worker", what, str(count), str(film), str(copies)]
    env = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // workers))}
    children = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
        for _ in range(workers)
    ]
    for child in children:
        assert child.stdout.readline() == "ready\n"
    sampler = subprocess.Popen(["nvidia-smi", "dmon", "-s", "um", "-d", "1"], stdout=subprocess.PIPE, text=True)
    begun, before = time.perf_counter(), os.times()
    for child in children:
        child.stdin.write("go\n")
        child.stdin.flush()
    frames = sum(float(child.stdout.readline()) for child in children)
    seconds = time.perf_counter() - begun
    for child in children:
        child.wait()
    sampler.terminate()
    cores = (sum(os.times()[2:4]) - sum(before[2:4])) / seconds
    rows = [line.split() for line in sampler.communicate()[0].splitlines() if re.match(r"\s+0\s", line)][1:-1]
    sm, dec, memory = (sum(int(row[i]) for row in rows if row[i].isdigit()) / max(1, len(rows)) for i in (1, 4, 7))
    label = f"{name}, {workers} x {count}"
    print(f"{label:42s} {frames / seconds:7.0f} frames/s  sm {sm:3.0f} %  dec {dec:3.0f} %  {cores:4.1f} cores"
          f"  {memory:6.0f} MiB  {seconds:5.1f} s", flush=True)  # fmt: skip
    return frames / seconds


def main() -> None:
    quick = "--quick" in sys.argv
    film = Path(next((a for a in sys.argv[1:] if not a.startswith("-")), TRAILER))
    print(f"{torch.cuda.get_device_name()}, {os.cpu_count()} CPUs; workers x lanes")
    with tempfile.TemporaryDirectory() as name:
        long = looped(film, Path(name) / "long.mp4", 4)
        times = 1 if quick else 2
        most = max(measured("bare decoding", "bare", p, n, long, 2 * n) for p, n in ((1, 12), (2, 8), (4, 4)))
        for p, n in ((1, 8), (2, 8), (4, 4)):
            rate = measured("decoding + shots", "shots", p, n, long, times * n)
            print(f"   {rate / most:.2f} of bare decoding", flush=True)
        measured("whole stage, copied", "copy", 4, 4, long, times * 4)
        for p, n in ((1, 8), (2, 8), (4, 4)):
            measured("whole stage, x264, NVDEC", "gpu", p, n, film, 2 * times * n)
        measured("whole stage, x264, CPU decoding", "cpu", 8, 2, film, 2 * times * 2)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        worker(*sys.argv[2:])
    else:
        main()
