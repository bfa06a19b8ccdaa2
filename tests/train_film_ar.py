"""A small autoregressive model of one film, on one GPU, in minutes, and what it must beat: a token guessed from the one
at the same place in the frame before.

First cut the film into its shots and train a small tokenizer of it (tests/train_film.py says how), then make tokens:

    hpc run FILE      with a stage {kind: prepare.tokens, tokenizer: OUT/dv-4x8x8/tokenizer, frames: 17,
                      size: [256, 448], windows: all, split: "9,1", hold_out: clip, resources: {gpus: 1}}

Then train, where the GPU is, once for each seed (they may run beside each other):

    python tests/train_film_ar.py film/tokens@v1 out --tokenizer OUT/dv-4x8x8/tokenizer --minutes 2 --seed 1

Shots are held out whole. On their windows, of which the first latent frame is given:

    nll         nats a token, teacher-forced, beside those of hpc.train.previous_frame, fitted to the training's windows
    PSNR        of the last frame as the model goes on greedily, against the tokenizer's own last frame, by quarters of
                the windows from the least to the most moved; beside that of a film that stands still

out/seed-N/ then has told.json with these, metrics.jsonl, model/ and greedy.webp; out/nll.svg the curves of all seeds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from hpc.data import storage
from hpc.models import quality, tokenizers
from hpc.models.ar import keys
from hpc.models.ar.generate import Decoder, Generator, Prompt
from hpc.models.ar.presets import PRESETS, Preset
from hpc.train import ar, page, pictures, ranks, token_data
from hpc.train.checkpoint import Checkpoints
from hpc.train.metrics import lines
from hpc.train.settings import TrainAr
from hpc.train.settings.ar import HeldOut
from hpc.train.settings.optimizer import Optimizer

TIMED = 20
"""Steps; the second half of them is timed."""
NAME = "ar-film"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="what prepare.tokens made: a folder")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", required=True, help="the folder of what made them")
    parser.add_argument("--minutes", type=float, default=2.0, help="of training")
    parser.add_argument("--steps", type=int, help="instead of minutes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--clips", type=int, default=64, help="held-out windows, at most")
    given = parser.parse_args()

    begun = time.monotonic()
    here = ranks.start()
    names = sorted(path.name for path in Path(given.data).glob("*.idx"))
    rows = [{end: storage.join(given.data, name.replace(".idx", end)) for end in (".bin", ".idx", ".parquet")}
            for name in names]  # fmt: skip
    tokenizer = tokenizers.load(given.tokenizer, device=here.device, dtype=torch.float32)
    shape = tuple(ar.meta_of(rows[0][".parquet"])["shape"])
    ids = -(-(tokenizer.vocabulary or 0) // 128) * 128
    PRESETS[NAME] = Preset(layers=given.layers, dim=given.dim, heads=given.heads, kv_heads=given.heads // 2,
                           head_dim=given.head_dim, ffn=given.dim * 8 // 3 // 128 * 128, vocab=ids, classes=ids,
                           shape=shape)  # fmt: skip
    settings = TrainAr(
        model=NAME, steps=TIMED, batch=given.batch, micro_batch=given.micro_batch, precision=given.precision,
        optimizer=Optimizer(rate=given.rate, warmup=TIMED, final=0.02, betas=(0.9, 0.95), weight_decay=0.1),
        validation=HeldOut(every=10**9, clips=given.clips), checkpoints=Checkpoints(every=10**9), seed=given.seed,
    )  # fmt: skip
    scratch = Path(tempfile.mkdtemp(prefix="train_film_ar."))
    steps = given.steps
    if not steps:
        ar.train(settings, rows, scratch / "timed", here, lambda: None)
        said = list(lines(scratch / "timed/metrics.jsonl"))[TIMED // 2 :]
        steps = max(TIMED + 1, round(given.minutes * 60 / (sum(line["seconds"] + line["waited"] for line in said)
                                                          / len(said))))  # fmt: skip
    print(f"{PRESETS[NAME].parameters:,} weights, {np.prod(shape):,} tokens a window: {steps} steps", flush=True)

    settings = msgspec.structs.replace(
        settings, steps=steps, optimizer=msgspec.structs.replace(settings.optimizer, warmup=min(100, steps // 5)),
        validation=msgspec.structs.replace(settings.validation, every=max(1, steps // 10)),
    )  # fmt: skip
    out = given.out / f"seed-{given.seed}"
    (out / "model").mkdir(parents=True, exist_ok=True)
    told = ar.train(settings, rows, scratch / "whole", here, lambda: None, weights=out / "model")
    shutil.copy(scratch / "whole/metrics.jsonl", out)
    said = [line for line in lines(out / "metrics.jsonl") if "validation_nll" in line]
    for line in said:
        print(f"step {line['step']:6}  loss {line['loss']:.4f}  held-out nll {line['validation_nll']:.4f}")
    best, rival = min(line["validation_nll"] for line in said), told["previous_frame_nll"]
    print(f"nll {said[-1]['validation_nll']:.4f} (best {best:.4f}), of the frame before {rival:.4f}: "
          f"{1 - said[-1]['validation_nll'] / rival:.1%} below", flush=True)  # fmt: skip

    held = ar.dataset(settings, rows, "valid")
    windows = [held[n].tokens for n in token_data.Batches(held, min(given.clips, len(held)), 0).order.batch(0).places]
    torch.cuda.empty_cache()
    quarters = continued(windows, settings, out, tokenizer, here.device)
    print("quarter  moved    model    still    (PSNR of the last frame, dB)")
    for number, row in enumerate(quarters):
        print(f"{number + 1:7}  {row['moved']:.4f}  {row['model']:7.2f}  {row['still']:7.2f}")
    told |= {"seed": given.seed, "nll": said[-1]["validation_nll"], "quarters": quarters}
    (out / "told.json").write_text(json.dumps(told, indent=1))
    curves(given.out)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{where}, {ranks.memory(here.device) / 2**30:.1f} GiB, {time.monotonic() - begun:.0f} s")
    shutil.rmtree(scratch)
    dist.destroy_process_group()


def curves(out: Path) -> None:
    """nll.svg of all seeds that are done, each step's held-out NLL beside that of the frame before."""
    rows: dict[int, dict[str, float]] = {}
    names = []
    for path in sorted(out.glob("seed-*/told.json")):
        name, told = path.parent.name.replace("-", " "), json.loads(path.read_text())
        names.append(name)
        for line in lines(path.parent / "metrics.jsonl"):
            if "validation_nll" in line:
                row = rows.setdefault(line["step"], {"step": line["step"], "frame before": told["previous_frame_nll"]})
                row[name] = line["validation_nll"]
    drawn = page.chart([*names, "frame before"], [rows[step] for step in sorted(rows)])
    style = "<style>text{font:11px sans-serif;fill:#888}.axis{stroke:#888}</style>"  # on a white or a black page
    (out / "nll.svg").write_text(drawn.replace(">", f">{style}", 1))


@torch.no_grad()
def continued(
    windows: list[Tensor], settings: TrainAr, out: Path, tokenizer: Any, device: torch.device
) -> list[dict[str, float]]:
    """Windows as the model goes on from their first latent frame, the likeliest token each time. moved: the mean
    absolute difference of the last from the first frame, of pixels from 0 to 1."""
    preset = settings.preset
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    model = Decoder(preset, keys.Published(out / "model/model.safetensors"), device, dtype)
    place = preset.shape[1] * preset.shape[2]
    made = Generator(model, len(windows), classes=tokenizer.vocabulary)([Prompt(ids[:place]) for ids in windows])
    rows, strips = [], []
    for real, ours in zip(windows, made, strict=True):
        video, ids = ([tokenizer.decode(one.view(1, *preset.shape).to(device).int())[0].float().clamp(-1, 1)
                       for one in (real, ours)])  # fmt: skip
        first, last, guess = video[None, :, :1], video[None, :, -1:], ids[None, :, -1:]
        moved = float((last - first).abs().mean()) / 2
        rows.append({"moved": moved, "model": float(quality.psnr(guess, last)),
                     "still": float(quality.psnr(first, last))})  # fmt: skip
        strips.append((moved, pictures.strip(video, ids, frames=4)))
    rows.sort(key=lambda row: row["moved"])
    strips.sort(key=lambda one: one[0])
    pictures.write([strips[len(strips) * n // 8][1] for n in (2, 4, 5, 6, 7)], out / "greedy.webp")
    parts = [[rows[n] for n in part] for part in np.array_split(np.arange(len(rows)), 4)]
    return [{name: sum(row[name] for row in part) / len(part) for name in part[0]} for part in parts if part]


if __name__ == "__main__":
    main()
