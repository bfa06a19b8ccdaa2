"""A small diffusion model of one film, on one GPU, in minutes, and what it must beat: a twin that is shown no frames.

First cut the film into its shots and train a small tokenizer of it (tests/train_film.py says how), then make latents,
here or where the GPU is:

    hpc run FILE      with a stage {kind: prepare.latents, tokenizer: OUT/cv-4x8x8/tokenizer, frames: 17, fps: null,
                      size: [256, 448], windows: all, resources: {gpus: 1}}

Then train, where the GPU is:

    python tests/train_film_diffusion.py film/latents@v1 out --tokenizer OUT/cv-4x8x8/tokenizer --minutes 4

Two networks of the same size (at most 8 million weights) are trained for the same steps on the same latents in the same
order: one with the first or the first two latent frames given, one with none. Shots are held out whole. On their
latents, with the same noise for all, told for each noise level, over the frames after the first:

    given       the mean squared error of the velocity where the first frame is given
    twin        of the twin, which sees noise alone
    shuffled    of the first network, given the first frame of another shot
    regular     as `given`, by the weights of the last step rather than by their mean

out/ then has told.json with these, given/ and twin/ with model/ and metrics.jsonl, and given/pictures.
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
import pyarrow as pa
import torch
import torch.distributed as dist

from hpc.models import dit_files
from hpc.models.diffusion import Condition
from hpc.models.dit_presets import parameters
from hpc.train import diffusion, ranks, samples
from hpc.train import diffusion_measure as measure
from hpc.train.checkpoint import Checkpoints
from hpc.train.diffusion_input import Inputs
from hpc.train.diffusion_model import objective
from hpc.train.metrics import lines
from hpc.train.settings import TrainDiffusion
from hpc.train.settings.data import Shape, Validation
from hpc.train.settings.diffusion import AdamW, Objective, Pictures, Sizes, Text

TIMED = 40
"""Steps; the second half of them is timed."""
GIVEN = {"given": (0.0, 0.5, 0.5), "twin": (1.0,)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the latents: a folder of what prepare.latents made, or of tars")
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", help="the folder of what made them, for pictures")
    parser.add_argument("--minutes", type=float, default=4.0, help="of training, of each of the two")
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--rank", type=int, default=64, help="of what noise levels modulate with")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--clips", type=int, default=64, help="held-out ones, at most")
    parser.add_argument("--readers", type=int, default=4)
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()

    begun = time.monotonic()
    here, table = ranks.start(), by_shot(samples.listed(given.data))
    settings = settings_of(table, TIMED, batch=given.batch, channels=given.channels, blocks=given.blocks,
                           heads=given.heads, rank=given.rank, rate=given.rate, clips=given.clips,
                           tokenizer=given.tokenizer, readers=given.readers, compile=given.compile)  # fmt: skip
    count = parameters(settings.config)
    if count > 8e6:
        parser.error(f"{count:,} weights are more than 8 million: fewer channels or blocks")
    say = print if here.rank == 0 else lambda *words, **more: None
    scratch = Path(tempfile.gettempdir(), "train_film_diffusion")
    if here.rank == 0:
        shutil.rmtree(scratch, ignore_errors=True)
    dist.barrier(group=here.words)
    diffusion.train(settings, table, scratch / "timed", here, lambda: None)
    dist.barrier(group=here.words)
    said = list(lines(scratch / "timed/metrics.jsonl"))[TIMED // 2 :]
    each = sum(line["seconds"] + line["waited"] for line in said) / len(said)
    steps = max(TIMED + 1, round(given.minutes * 60 / each))
    waited = sum(line["waited"] for line in said) / len(said) / each
    say(f"{count:,} weights; {each:.4f} s a step, {waited:.1%} of it waiting for data: {steps} steps in "
        f"{given.minutes:g} minutes", flush=True)  # fmt: skip

    told: dict[str, Any] = {"weights": count, "steps": steps, "batch": given.batch, "waited": waited}
    for name, shares in GIVEN.items():
        one = msgspec.structs.replace(
            settings, steps=steps, objective=Objective(given_frames=shares),
            optimizer=msgspec.structs.replace(settings.optimizer, warmup=min(300, steps // 5)),
            validation=msgspec.structs.replace(settings.validation, every=max(1, steps // 8)),
            pictures=Pictures(every=10**9, clips=4 if name == "given" and given.tokenizer else 0, steps=30),
        )  # fmt: skip
        folder = scratch / name
        found = diffusion.train(one, table, folder, here, lambda: None, weights=given.out / name / "model")
        if here.rank == 0:
            shutil.copy(folder / "metrics.jsonl", given.out / name)
            (given.out / name / "page.html").write_text(diffusion.as_page({**found, "model": name},
                                                        list(lines(folder / "metrics.jsonl")), folder))  # fmt: skip
            if (folder / "pictures").exists():
                shutil.copytree(folder / "pictures", given.out / name / "pictures", dirs_exist_ok=True)
            told[name] = {"seconds": found["seconds"], "clips": found["clips"], "last": found["last"]}
            say(f"{name}: {json.dumps(told[name])}", flush=True)
    if here.rank == 0:
        told["errors"] = compared(settings, table, given.out, here)
        (given.out / "told.json").write_text(json.dumps(told, indent=1))
        print("level   given    twin     shuffled regular")
        for level, row in told["errors"].items():
            print(f"{level:5}  " + "  ".join(f"{row[name]:.5f}" for name in ("given", "twin", "shuffled", "regular")))
        better = all(row["given"] < row["twin"] and row["given"] < row["shuffled"] for row in told["errors"].values())
        where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
        print(f"{'better' if better else 'NOT better'} than both at every level; {where}, "
              f"{ranks.memory(here.device) / 2**30:.1f} GiB, {time.monotonic() - begun:.0f} s")  # fmt: skip
    dist.destroy_process_group()


def settings_of(
    table: pa.Table, steps: int, *, batch: int, channels: int, blocks: int, heads: int, rank: int, rate: float,
    clips: int, **more: Any,
) -> TrainDiffusion:  # fmt: skip
    """Of a small model of such latents."""
    row = table.slice(0, 1).to_pylist()[0]
    return TrainDiffusion(
        model="tiny-predict2.5", steps=steps, text=Text(source="none"),
        shapes=(Shape(frames=row["frames"], height=row["height"], width=row["width"], batch=batch),),
        sizes=Sizes(channels=channels, blocks=blocks, heads=heads, adaln_rank=rank,
                    latent_channels=samples_channels(row), max_height=128, max_width=128),
        optimizer=AdamW(rate=rate, warmup=min(300, steps // 5), final=0.02, betas=(0.9, 0.99), weight_decay=1e-3),
        validation=Validation(share=0.1, by="source", every=10**9, clips=clips),
        pictures=Pictures(every=10**9, clips=0), checkpoints=Checkpoints(every=10**9), **more,
    )  # fmt: skip


def by_shot(table: pa.Table) -> pa.Table:
    """With shots as sources: windows of one shot are held out together, or not."""
    shots = [key.rpartition("_")[0] or key for key in table["key"].to_pylist()]
    return table.set_column(table.schema.get_field_index("source"), "source", pa.array(shots))


def samples_channels(row: dict[str, Any]) -> int:
    from hpc.data import latents

    return int(latents.loads(samples.fetched(row["media"])).shape[0])


@torch.no_grad()
def compared(settings: TrainDiffusion, table: pa.Table, out: Path, here: ranks.Here) -> dict[str, dict[str, float]]:
    """Level -> what of it the docstring above says, means over held-out clips and frames."""
    of = objective(settings)
    _, held = samples.held_out(table, settings.validation.share, "source")
    inputs = Inputs(settings, of, table, here.device)
    clips = measure.clips(settings, held, inputs, 0, 1)
    seen = [inputs.of(clip.frames, clip.inside, clip.fps, clip.more) for clip in clips]
    shots = [clip.key.rpartition("_")[0] or clip.key for clip in clips]
    others = [next((i for i in (*range(n + 1, len(clips)), *range(n)) if shots[i] != shots[n]), n)
              for n in range(len(clips))]  # fmt: skip
    exact = {"device": here.device, "dtype": torch.float32}
    models = {"given": dit_files.load(out / "given/model/ours", **exact),
              "twin": dit_files.load(out / "twin/model/ours", **exact),
              "regular": dit_files.load(out / "given/model/model.pt", settings.config, **exact)}  # fmt: skip
    models["shuffled"] = models["given"]
    found: dict[str, dict[str, float]] = {}
    for level in measure.LEVELS:
        sums = dict.fromkeys(models, 0.0)
        for n, (clip, one) in enumerate(zip(clips, seen, strict=True)):
            drawn = measure.noise("noise", clip.key, one.x0_BCTHW.shape, here.device)
            for name, model in models.items():
                mask = torch.zeros(1, one.x0_BCTHW.shape[2], device=here.device)
                mask[:, 0] = float(name != "twin")
                latents = seen[others[n]].x0_BCTHW if name == "shuffled" else one.x0_BCTHW
                c = Condition(one.text_BLE, mask, latents, one.fps_B, one.padding_BHW)
                sums[name] += float(measure.errors(of, model, one.x0_BCTHW, c, drawn, drawn, level)[:, 1:].mean())
        found[f"{level:g}"] = {name: value / len(clips) for name, value in sums.items()}
    return found


if __name__ == "__main__":
    main()
