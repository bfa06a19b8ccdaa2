"""Small tokenizers of one film, on one GPU, in minutes: what train.tokenizer makes of Big Buck Bunny at 256p.

First cut the film into its shots (here; any film will do):

    hpc run jobs/quickstart.yaml name=film inputs=bbb.mp4 output=film stages.clips.encode.short_side=256 \\
        stages.clips.encode.crf=21 stages.clips.split.min_clip=1.5s stages.clips.split.min_frames=36 \\
        stages.clips.split.crop=0.1s

Then train, where the GPU is (it needs torch, PyAV, pyarrow, msgspec, Pillow, safetensors):

    python tests/train_film.py film/shard@v1 out --tokenizer dv-4x8x8 --minutes 6 --piece 128 128 --compile
    torchrun --nproc-per-node 2 tests/train_film.py film/shard@v1 out        on several GPUs

A tenth of the shots is held out, each whole. The script times some steps first, and takes as many as fit the minutes.
out/<tokenizer>/ then has tokenizer/ (bfloat16, for hpc.models.tokenizers.load), metrics.jsonl, page.html and pictures/.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist

from hpc.models.tokenizers import files
from hpc.train import ranks, samples, tokenizer
from hpc.train.checkpoint import Checkpoints
from hpc.train.metrics import lines
from hpc.train.settings import TrainTokenizer
from hpc.train.settings.data import Shape, Validation
from hpc.train.settings.optimizer import Optimizer
from hpc.train.settings.tokenizer import Sizes

SIZES = {
    "dv-4x8x8": Sizes(family="cosmos-dv", temporal=4, spatial=8, channels=32, levels=(8, 8, 8, 5, 5, 5)),
    "dv-8x16x16": Sizes(family="cosmos-dv", temporal=8, spatial=16, channels=32, levels=(8, 8, 8, 5, 5, 5)),
    "cv-4x8x8": Sizes(family="cosmos-cv", temporal=4, spatial=8, channels=32, latent_channels=16),
}
TIMED = 40
"""Steps; the second half of them is timed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the tars of the shots: a folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", choices=SIZES, default="dv-4x8x8")
    parser.add_argument("--channels", type=int, help="of the first layer; 32 makes 6.9 million weights")
    parser.add_argument("--levels", type=int, nargs="+", help="of a discrete one, e.g. 8 5 5 5: its vocabulary")
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, without what comes before and after")
    parser.add_argument("--steps", type=int, help="instead of minutes")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--height", type=int, default=256)
    parser.add_argument("--width", type=int, default=448)
    parser.add_argument("--piece", type=int, nargs=2, help="height and width that are trained on of each clip")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()

    begun = time.monotonic()
    sizes = SIZES[given.tokenizer]
    more = {"channels": given.channels, "levels": tuple(given.levels or ()) or None}
    sizes = msgspec.structs.replace(sizes, **{name: value for name, value in more.items() if value})
    here, table = ranks.start(), samples.listed(given.data)
    settings = TrainTokenizer(
        tokenizer=sizes, steps=TIMED, in_memory=True, weights="bfloat16", compile=given.compile,
        piece=tuple(given.piece) if given.piece else None,
        shapes=(Shape(frames=given.frames, height=given.height, width=given.width, batch=given.batch),),
        optimizer=Optimizer(rate=given.rate, warmup=TIMED, final=0.02),
        validation=Validation(share=0.1, by="clip", every=10**9, clips=16), checkpoints=Checkpoints(every=10**9),
    )  # fmt: skip
    scratch = Path(tempfile.gettempdir(), "train_film")
    if here.rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    dist.barrier(group=here.words)
    tokenizer.train(settings, table, scratch / "timed", here, lambda: None)
    dist.barrier(group=here.words)
    said = list(lines(scratch / "timed/metrics.jsonl"))
    each = [line["seconds"] + line["waited"] for line in said[TIMED // 2 :]]
    steps = given.steps or max(TIMED + 1, round(given.minutes * 60 / (sum(each) / len(each))))
    waited = sum(line["waited"] for line in said[TIMED // 2 :])
    say = print if here.rank == 0 else lambda *words, **more: None
    say(f"{sum(each) / len(each):.3f} s a step (waiting {waited:.2f} s of {sum(each):.1f}): {steps} steps in "
        f"{steps * sum(each) / len(each) / 60:.1f} minutes; {time.monotonic() - begun:.0f} s so far")  # fmt: skip

    out = given.out / given.tokenizer
    settings = msgspec.structs.replace(
        settings, steps=steps, optimizer=msgspec.structs.replace(settings.optimizer, warmup=min(300, steps // 5)),
        validation=msgspec.structs.replace(settings.validation, every=max(1, steps // 12)),
    )  # fmt: skip
    folder, shown = scratch / "whole", Sometimes(say)
    trained, told = tokenizer.train(settings, table, folder, here, lambda: None, shown)
    if trained is None:
        return
    files.save(trained, out / "tokenizer")
    said = list(lines(folder / "metrics.jsonl"))
    told |= {"tokenizer": str(out / "tokenizer")}
    (out / "page.html").write_text(tokenizer.as_page(told, said, folder))
    (out / "told.json").write_text(json.dumps(told, indent=1))
    shutil.copy(folder / "metrics.jsonl", out)
    shutil.copytree(folder / "pictures", out / "pictures", dirs_exist_ok=True)
    for line in said:
        if "psnr" in line:
            ids = ""
            if "usage" in line:
                ids = f"ids used {line['ema_usage']:.1%}, perplexity {line['ema_perplexity']:.0f}"
            print(f"step {line['step']:6}  PSNR {line['psnr']:.2f} dB (mean of weights {line['ema_psnr']:.2f})  SSIM "
                  f"{line['ssim']:.4f} ({line['ema_ssim']:.4f})  {ids}")  # fmt: skip
    size = (out / "tokenizer/model.safetensors").stat().st_size
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{told['parameters']:,} weights, {size / 2**20:.1f} MiB; {steps} steps of {given.batch} clips on "
          f"{here.count} x {where}, {ranks.memory(here.device) / 2**30:.1f} GiB; {time.monotonic() - begun:.0f} s")


class Sometimes:
    """Says how far it is, some twenty times."""

    def __init__(self, say: Callable[..., None]) -> None:
        self.say, self.next = say, 0.0

    def __call__(self, share: float, words: str) -> None:
        if share >= self.next:
            self.say(words, flush=True)
            self.next = share + 1 / 20


if __name__ == "__main__":
    main()
