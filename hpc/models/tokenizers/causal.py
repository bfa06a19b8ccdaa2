"""What causal video tokenizers share: layers that look back in time only, and streams of any length.

Tensors are laid out [batch, frames, height, width, channels] inside (suffix _BTHWC), contiguous: a pixel's channels
beside each other is what tensor cores read, so a 1x1x1 convolution is a plain matmul, one over space a 2D convolution
of batch x frames pictures, one over time a 2D convolution of pictures of frames x pixels, all on views. Outside they
are [batch, channels, frames, height, width] (_BCTHW), as videos and latents are everywhere.

A layer that looks back needs the last frames of what it saw before. `Past` hands them out:

    latents, _ = encoder(video, None)                 # a whole video: nothing before it, nothing kept
    latents, kept = encoder(first_frames, ())         # the start of a stream
    latents, kept = encoder(more_frames, kept)        # and so on, any number of times

Both give the same numbers, because a layer computes the same windows of frames either way. What is kept is bounded:
two frames a convolution, `window` frames an attention over time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Kept = Sequence[Tensor] | None
"""What the layers of a network keep of a stream: None for a whole video, () at the start of a stream."""


class Past:
    """Frames before those that a network is given, for its layers in the order in which they run.

    Every layer that looks back calls `before` in each step, so its place in that order is its name.
    """

    def __init__(self, kept: Kept) -> None:
        self.streams = kept is not None
        self.kept = kept or None
        self.new: list[Tensor] = []

    @property
    def start(self) -> bool:
        """Whether the first frame given is the first of the video."""
        return self.kept is None

    def before(self, x_BT: Tensor, frames: int | None, first: Tensor) -> Tensor:
        """`x_BT` [batch, frames, ...] with the frames before it in front: those that were kept, which are the last
        `frames` (None: all); at the start of a video `first`."""
        before = first if self.kept is None else self.kept[len(self.new)]
        whole_BT = torch.cat([before, x_BT], dim=1) if before.shape[1] else x_BT
        if self.streams:  # a copy: a view would keep all frames in memory
            skip = 0 if frames is None else max(whole_BT.shape[1] - frames, 0)
            self.new.append(whole_BT[:, skip:].clone())
        return whole_BT


def over_frames(conv: nn.Conv2d, x_BTHWC: Tensor) -> Tensor:
    """A 2D convolution of each frame. The permuted views are what PyTorch calls channels_last: nothing is copied."""
    y = conv(x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2))
    return y.permute(0, 2, 3, 1).unflatten(0, x_BTHWC.shape[:2])


def twice_as_large(x_BTHWC: Tensor) -> Tensor:
    """Each pixel four times, as nearest-neighbour scaling by 2 does."""
    B, T, H, W, C = x_BTHWC.shape
    return x_BTHWC[:, :, :, None, :, None].expand(B, T, H, 2, W, 2, C).reshape(B, T, 2 * H, 2 * W, C)


class TimeConv(nn.Conv2d):
    """A causal convolution over time alone, kernel (3, 1, 1): frame t is made of t-2, t-1 and t."""

    def __init__(self, inside: int, outside: int, stride: int = 1) -> None:
        super().__init__(inside, outside, kernel_size=(3, 1), stride=(stride, 1))

    def windows(self, x_BTHWC: Tensor) -> Tensor:
        """Of frames that have the two before them in front. A 2D convolution over frames x pixels, on a view."""
        y = super().forward(x_BTHWC.flatten(2, 3).permute(0, 3, 1, 2))
        return y.permute(0, 2, 3, 1).unflatten(2, x_BTHWC.shape[2:4])

    def forward(self, x_BTHWC: Tensor, past: Past) -> Tensor:
        """The first frame stands for those before it."""
        return self.windows(past.before(x_BTHWC, 2, x_BTHWC[:, :1].expand(-1, 2, -1, -1, -1)))


def over_pixels(q_BTHWC: Tensor, k_BTHWC: Tensor, v_BTHWC: Tensor) -> Tensor:
    """Attention of one head over the pixels of each frame."""
    # [batch x frames, one head, pixels, channels]
    q, k, v = (x.flatten(0, 1).flatten(1, 2)[:, None] for x in (q_BTHWC, k_BTHWC, v_BTHWC))
    return F.scaled_dot_product_attention(q, k, v).reshape(q_BTHWC.shape)


class ResBlock(nn.Module):
    """Norm, SiLU and a causal convolution, twice; added to the input."""

    def __init__(
        self, inside: int, outside: int, norm: Callable[[int], nn.Module], conv: Callable[[int, int], nn.Module]
    ) -> None:
        super().__init__()
        self.norm1 = norm(inside)
        self.conv1 = conv(inside, outside)
        self.norm2 = norm(outside)
        self.conv2 = conv(outside, outside)
        self.shortcut = nn.Linear(inside, outside) if inside != outside else nn.Identity()

    def forward(self, x_BTHWC: Tensor, past: Past) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x_BTHWC)), past)
        return self.shortcut(x_BTHWC) + self.conv2(F.silu(self.norm2(h)), past)


class Scale(nn.Module):
    """The blocks at one resolution, and the way to the next."""

    def __init__(self, blocks: Iterable[nn.Module], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.resample = resample

    def forward(self, x_BTHWC: Tensor, past: Past) -> Tensor:
        for block in self.blocks:
            x_BTHWC = block(x_BTHWC, past)
        return self.resample(x_BTHWC, past) if self.resample else x_BTHWC


def regroup(chunks: Iterable[Tensor], step: int) -> Iterator[Tensor]:
    """Frames [batch, channels, frames, height, width] in other portions: the first has 1 + k x step of them, later ones
    k x step. Raises ValueError where the video does not have 1 + k x step frames."""
    rest: Tensor | None = None
    seen = 0
    for chunk in chunks:
        frames = chunk if rest is None else torch.cat([rest, chunk], dim=2)
        first = int(not seen)  # the one frame more
        more = frames.shape[2] - first
        ready = first + more // step * step if more >= 0 else 0
        if ready:
            yield frames[:, :, :ready]
        seen += ready
        rest = frames[:, :, ready:].clone() if ready < frames.shape[2] else None  # of a view, all would stay in memory
    left = 0 if rest is None else rest.shape[2]
    if not seen or left:
        raise ValueError(refusal(seen + left, step))


def refusal(frames: int, step: int) -> str:
    """What is said of a video that has not 1 + k x step frames."""
    return (
        f"a video of {frames} frames: this tokenizer takes 1 + k x {step} of them (1, {1 + step}, {1 + 2 * step}, "
        "...); cut the video, or repeat its last frame"
    )


def channels_last(module: nn.Module) -> None:
    """Lays out the weights of convolutions as the views that these layers make of their input: else a GPU does so in
    each call."""
    for weight in module.parameters():
        if weight.ndim in (4, 5):
            layout = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
            weight.data = weight.data.contiguous(memory_format=layout)


class CausalTokenizer(nn.Module):
    """What the tokenizers here have in common: an encoder and a decoder that stream, and what lies between them.

    encoder: (video [B, 3, T, H, W], Kept) -> (z, Kept); decoder: (z, Kept) -> (video, Kept).
    `latents_of` makes of z what the world sees: ids, or normalised latents; `z_of` takes it back. `start` is how many
    latent frames of the video came before. Whoever trains one calls the networks: a CosmosDiscrete's `fsq` makes codes
    with a gradient of z, a WanVAE's encoder returns the posterior's means and log variances.
    """

    temporal: int
    """Frames a latent frame stands for; the first stands for one."""
    spatial: int
    """Pixels along an edge of what a latent pixel stands for."""
    latent_channels: int
    vocabulary: int | None = None
    """How many ids there are, of a discrete tokenizer."""
    encoder: nn.Module
    decoder: nn.Module
    kind: ClassVar[str]

    def latents_of(self, z_BCTHW: Tensor, start: int) -> Tensor:
        raise NotImplementedError

    def z_of(self, latents: Tensor, start: int) -> Tensor:
        raise NotImplementedError

    def latent_frames(self, frames: int) -> int:
        """How many latent frames a video of so many frames has. Raises ValueError where it is not 1 + k x temporal."""
        if frames < 1 or (frames - 1) % self.temporal:
            raise ValueError(refusal(frames, self.temporal))
        return 1 + (frames - 1) // self.temporal

    def pixel_frames(self, latent_frames: int) -> int:
        return 1 + (latent_frames - 1) * self.temporal

    def checked(self, video_BCTHW: Tensor) -> Tensor:
        """In the type of the weights, and where they are. Raises ValueError where it cannot be encoded."""
        shape = tuple(video_BCTHW.shape)
        if video_BCTHW.ndim != 5 or shape[1] != 3 or not video_BCTHW.is_floating_point():
            raise ValueError(
                f"{self.kind} encodes floats from -1 to 1, [batch, 3, frames, height, width]; this is "
                f"{str(video_BCTHW.dtype).removeprefix('torch.')} {list(shape)}"
            )
        if shape[3] % self.spatial or shape[4] % self.spatial or 0 in shape:
            raise ValueError(
                f"frames of {shape[4]}x{shape[3]}: {self.kind} takes widths and heights that {self.spatial} divides; "
                "resize, crop or pad them"
            )
        return video_BCTHW.to(next(self.parameters()))

    def encode(self, video_BCTHW: Tensor) -> Tensor:
        """video: floats [B, 3, T, H, W] from -1 to 1. Returns ids int32 [B, t, h, w], or latents
        float32 [B, C, t, h, w]."""
        self.latent_frames(video_BCTHW.shape[2])
        return self.latents_of(self.encoder(self.checked(video_BCTHW), None)[0], 0)

    def decode(self, latents: Tensor) -> Tensor:
        """What `encode` returns, back. Returns [B, 3, T, H, W], about -1 to 1: whoever makes pixels of it clamps it."""
        return self.decoder(self.z_of(latents, 0), None)[0]

    @torch.no_grad()
    def encode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """The latents of a video that comes in chunks of any numbers of frames, as `encode` has them (dimension -3 is
        time in both), in memory that does not grow with its length. Raises ValueError at the end of a video that does
        not have 1 + k x temporal frames."""
        kept: Kept = ()
        start = 0
        for frames in regroup(chunks, self.temporal):
            z, kept = self.encoder(self.checked(frames), kept)
            yield self.latents_of(z, start)
            start += z.shape[2]

    @torch.no_grad()
    def decode_stream(self, chunks: Iterable[Tensor]) -> Iterator[Tensor]:
        """The video of latents that come in chunks of any numbers of latent frames."""
        kept: Kept = ()
        start = 0
        for latents in chunks:
            if not latents.shape[-3]:
                continue
            video, kept = self.decoder(self.z_of(latents, start), kept)
            yield video
            start += latents.shape[-3]
