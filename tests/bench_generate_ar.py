"""What an id of an autoregressive model costs on one GPU, beside what its memory allows.

    python tests/bench_generate_ar.py [--model ar-4b] [--batch 1,8] [--given 2] [--steps 512] [--bandwidth 4.28e12]
                                      [--greedy] [--plain] [--whole] [--profile]

Random weights in bfloat16, prompts of `given` latent frames. Per batch: milliseconds to read the prompts, and of a step
at several places of the video, as a CUDA graph (--plain: without); ids a second over all videos together; and the least
time that a step can take, its weights and the keys and values of all places so far read once at `bandwidth` bytes a
second (4.28 TB/s: what a copy reaches on an H200), with the share of it that is reached. `read` counts the keys and
values that the step really looks at: whole stretches of 2,048 places. --whole makes videos to their end, too: seconds
for each. --profile prints the kernels of 20 steps.

Without a GPU: ar-tiny in float32, to see that it runs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from hpc.models.ar import keys
from hpc.models.ar.generate import GROW, PIECE, Decoder, Generator, Prompt
from hpc.models.ar.presets import Preset, preset

GPU = torch.cuda.is_available()


class Random(Mapping[str, Tensor]):
    """Weights that keep activations of about the same size, made when they are asked for."""

    def __init__(self, of: Preset) -> None:
        self.shapes = {n: s for rule in keys.rules(of).values() for n, s in zip(rule.sources, rule.shapes, strict=True)}

    def __getitem__(self, name: str) -> Tensor:
        shape, device = self.shapes[name], "cuda" if GPU else "cpu"
        if len(shape) == 1:
            return torch.ones(shape, device=device)
        return torch.randn(shape, device=device, dtype=torch.bfloat16) * shape[-1] ** -0.5

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def now() -> float:
    if GPU:
        torch.cuda.synchronize()
    return time.perf_counter()


def bytes_of(model: Decoder, batch: int, places: int) -> int:
    """That a step reads: weights, keys and values."""
    size = torch.finfo(model.dtype).bits // 8
    return model.bytes + 2 * len(model.layers) * batch * model.groups * places * model.preset.head_dim * size


def steps(made_by: Generator, first: int, count: int) -> float:
    """Seconds of a step, mean over `count` of them that follow the first `first` tokens."""
    made_by.place.fill_(first - 1)
    for place in range(first, first + 3):  # the first one of a length is recorded
        made_by.step(place)
    made_by.place.fill_(first - 1)
    begun = now()
    for place in range(first, first + count):
        made_by.step(place)
    return (now() - begun) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="ar-4b" if GPU else "ar-tiny")
    parser.add_argument("--batch", default="1,8" if GPU else "1,2")
    parser.add_argument("--given", type=int, default=2)
    parser.add_argument("--steps", type=int, default=512 if GPU else 8)
    parser.add_argument("--bandwidth", type=float, default=4.28e12)
    parser.add_argument("--greedy", action="store_true")
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    of, device = preset(args.model), torch.device("cuda" if GPU else "cpu")
    with torch.inference_mode():
        model = Decoder(of, Random(of), device, torch.bfloat16 if GPU else torch.float32)
        print(f"{args.model}, {of.parameters / 1e9:.2f} billion, {torch.cuda.get_device_name() if GPU else 'CPU'}, "
              f"{'greedy' if args.greedy else 'top-p 0.8'}, {'plain' if args.plain else 'recorded'}")  # fmt: skip
        print("batch  place  ms/step  ids/s  limit ms  of the limit  read GB  prompts ms")
        for batch in map(int, args.batch.split(",")):
            made_by = Generator(model, batch, 0.0 if args.greedy else 1.0, 0.8, record=not args.plain)
            given = args.given * of.shape[1] * of.shape[2]
            context = None if of.context_dim is None else torch.randn(512, of.context_dim)
            prompts = [Prompt(torch.randint(0, of.classes, (given,)), n, context) for n in range(batch)]
            made_by.begin(prompts, given)
            begun = now()
            made_by.begin(prompts, given)
            reading = now() - begun
            last = made_by.inputs - args.steps
            for place in (given + of.first + 1, (given + last) // 2, last):
                seconds = steps(made_by, place, args.steps)
                stretch = GROW * PIECE
                middle = place + args.steps // 2
                seen = min(-(-middle // stretch) * GROW, len(made_by.slots[0].keys)) * PIECE
                limit = bytes_of(model, batch, middle) / args.bandwidth
                read = bytes_of(model, batch, seen) / 1e9
                print(f"{batch:5}  {middle:5}  {seconds * 1e3:7.3f}  {batch / seconds:5.0f}  {limit * 1e3:8.3f}  "
                      f"{limit / seconds:12.1%}  {read:7.2f}  {reading * 1e3:10.1f}")  # fmt: skip
            if args.profile:
                kinds = [torch.profiler.ProfilerActivity.CUDA if GPU else torch.profiler.ProfilerActivity.CPU]
                with torch.profiler.profile(activities=kinds) as profile:
                    steps(made_by, last, 20 if GPU else args.steps)
                by = "self_cuda_time_total" if GPU else "self_cpu_time_total"
                print(profile.key_averages().table(sort_by=by, row_limit=25))
            if args.whole:
                begun = now()
                found = made_by(prompts)
                seconds = now() - begun
                new = batch * (of.video_tokens - given)
                assert torch.equal(found[:, :given], torch.stack([one.ids_N for one in prompts]))
                print(f"{batch:5} whole videos: {seconds:.1f} s together, {new / seconds:,.0f} ids/s")
            del made_by


if __name__ == "__main__":
    main()
