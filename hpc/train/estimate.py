"""What a training needs of each GPU, before one is allocated: memory, and the time of a step. Light: `hpc check` asks
on a login node.

    place = Place(ranks=8, gpu=gpu_types.named("h100"), per_node=8)
    found = settings.estimate(place)              # hpc.train.estimate_ar, hpc.train.estimate_diffusion
    found.total, found.memory, found.step
    less(settings, place, limit)                  # what to change so that it fits, with figures

A time is the sum of what cannot overlap: multiplications at the share of the peak that was measured on one H200
(README, "Autoregressive training"; tests/bench_dit.py), everything between them at the bandwidth of the
memory, the update, and messages that nothing hides. Waiting for data, encoding of videos and checkpoints are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from hpc.data.gpu_types import GIB, Gpu

MATMUL, MATMUL_FP8 = 0.66, 0.56
"""Shares of the peak (of FP8 its own, casts included) that matrix products of large models reach."""
CAUSAL, WHOLE = 0.405, 0.48
"""The same of attention in bfloat16, forward and backward, with heads of 128: causal, counted once; all to all."""
MOVED = 2.5
"""Bytes that are read or written outside of matrix products, for each byte that is kept for the way back."""
SUSTAINED = 0.89
"""Share of a memory's bandwidth that is reached: 4.28 of 4.8 TB/s."""
LINKED = 0.8
"""Share of what NVLink carries that collectives reach."""
FABRIC = 40e9
"""Bytes a second and GPU between nodes, where a preset does not say: one 400 Gbit/s adapter each."""
SLOWEST = 0.04
"""Share of its work that a GPU waits for the slowest of several: two H200s of one host took 0 to 9 % longer than one
did."""
UPDATE = 38.0
"""Bytes that a step of AdamW moves for each weight in bfloat16: 30 of hpc.kernels.adamw_ema, 4 to take the norm of
gradients, 4 to make them zero."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a training runs."""

    ranks: int
    gpu: Gpu | None = None
    """None: not known; there are no times then."""
    per_node: int = 8
    fabric: float = FABRIC
    """Bytes a second that each GPU sends to other nodes, where all of its node send."""
    latents: bool = False
    """The data set has latents: nothing is encoded."""

    @property
    def link(self) -> float:
        """Bytes a second that each GPU sends to others of its node."""
        return LINKED * self.gpu.link if self.gpu else FABRIC

    def between(self, ranks: int, neighbours: int = 1) -> float:
        """The same within a group of ranks, each `neighbours` after the one before. Those of a node send over all of
        the node's adapters that are theirs."""
        own = max(1, min(ranks, self.per_node // neighbours))
        return self.link if ranks * neighbours <= self.per_node else min(self.link, self.fabric * own)


class Estimate(msgspec.Struct, kw_only=True):
    """Of one GPU, the fullest one."""

    what: str
    """The model, and how it lies over the ranks."""
    memory: dict[str, float]
    """Bytes, by what they are for."""
    samples: str
    """That a step takes."""
    steps: int
    ranks: int
    flops: float
    """Of the model in a step, without what is computed again."""
    kept: float
    """Bytes of a checkpoint, of all ranks together."""
    times: dict[str, float] = {}
    """Seconds of a step, by what they are for; {} where the GPU is not known."""
    peak: float = 0.0
    """FLOP/s in bfloat16, of which MFU is a share."""

    @property
    def total(self) -> float:
        return sum(self.memory.values())

    @property
    def step(self) -> float:
        return sum(self.times.values())

    @property
    def mfu(self) -> float:
        return self.flops / self.ranks / self.step / self.peak

    def words(self) -> str:
        """What it takes: "weights 3.7, gradients 7.5"; GiB."""
        return ", ".join(f"{what} {size / GIB:.1f}" for what, size in self.memory.items())

    def time_words(self) -> str:
        if not self.times:
            return ""
        hours = self.steps * self.step / 3600
        least = 0.005 * self.step
        said = ", ".join(f"{what} {seconds:.2g} s" for what, seconds in self.times.items() if seconds > least)
        return (f"a step of {self.samples} about {self.step:.3g} s ({said}), {self.mfu:.0%} MFU; {self.steps:,} steps "
                f"about {hours:,.1f} h, {hours * self.ranks:,.0f} GPU-hours")  # fmt: skip


def busy(gpu: Gpu, matmuls: float, attention: float, kept: float, *, causal: bool, fp8: float = 0.0) -> float:
    """Seconds in which a GPU computes. FLOPs of matrix products (of those in FP8: fp8) and of attention; kept: bytes of
    activations. What has no FP8 multiplies in bfloat16."""
    rate = MATMUL_FP8 * gpu.fp8 if gpu.fp8 else MATMUL * gpu.bf16
    found = matmuls / (MATMUL * gpu.bf16) + fp8 / rate + attention / ((CAUSAL if causal else WHOLE) * gpu.bf16)
    return found + MOVED * kept / (SUSTAINED * gpu.bandwidth)


def less(settings: Any, place: Place, limit: float) -> str:
    """What would fit, with the figures: one change, or two where no single one does; on as few GPUs as can be, the
    fastest first. Where nothing does, what needs least."""
    now = settings.estimate(place)
    tried = [(words, other.estimate(there)) for words, other, there in _all(settings, place)]
    tried = [(words, one) for words, one in tried if one.total < now.total]
    tried.sort(key=lambda pair: (pair[1].ranks, pair[1].step, pair[1].total))
    fits = [pair for pair in tried if pair[1].total <= limit]
    fits = [pair for pair in fits if " and " not in pair[0]] or fits
    least = sorted(tried, key=lambda pair: pair[1].total)[:2]
    said = "; ".join(f"{one.total / GIB:.0f} GiB" + (f" and {one.step:.3g} s a step" if one.times else "")
                     + f" with {words}" for words, one in fits[:3] or least)  # fmt: skip
    if not said:
        return "Nothing that it is told needs less: take a smaller model"
    return f"It would be {said}" if fits else f"No two changes are enough, it would be {said}: take more GPUs"


def _all(settings: Any, place: Place) -> Iterator[tuple[str, Any, Place]]:
    """(what is changed, settings, where): each change by itself, and with one of another key."""
    ones = list(changes(settings, place))
    yield from ones
    key = lambda words: words.split(":")[0].split()[-1]
    for words, other, there in ones:
        for more, both, where in changes(other, there):
            if key(more) > key(words):  # each pair once
                yield f"{words} and {more}", both, where


def changes(settings: Any, place: Place) -> Iterator[tuple[str, Any, Place]]:
    """What the settings say could be otherwise, as far as so many ranks can share it; and more ranks."""
    for words, other, there in settings.alternatives(place):
        if possible(other, place.ranks):
            yield words, other, there
    for ranks in (2 * place.ranks, 4 * place.ranks):
        if possible(settings, ranks):
            yield f"{ranks} GPUs", settings, msgspec.structs.replace(place, ranks=ranks)


def possible(settings: Any, ranks: int) -> bool:
    """Can so many ranks share it, whatever their memory?"""
    try:
        msgspec.structs.replace(settings, gpu_memory=None).shared_by(ranks)
    except ValueError:
        return False
    return True


def refuse(settings: Any, place: Place, limit: float) -> None:
    """Raises ValueError where more than `limit` bytes of a GPU are needed."""
    found = settings.estimate(place)
    if found.total > limit:
        raise ValueError(f"gpu_memory: about {found.total / GIB:.0f} GiB a GPU are needed, of {limit / GIB:.0f}: "
                         f"{found.words()}. {less(settings, place, limit)}")  # fmt: skip
