"""Cosmos-Tokenize1: the discrete DV8x16x16 and the continuous CV8x8x8, causal video tokenizers.

NVIDIA et al., "Cosmos World Foundation Model Platform for Physical AI", 2025, https://arxiv.org/abs/2501.03575, section
4; the arithmetic is that of cosmos_predict1 4ed35fa: tokenizer/modules/layers3d.py (EncoderFactorized,
DecoderFactorized) and tokenizer/networks/configs.py. A video is patched by Haar wavelets (haar.py: 4 frames of 4x4
pixels are one), then goes through residual blocks at falling resolutions. Convolutions and attention are factorised:
over space, then over time, where they look back only.

              encoder                                             decoder
    patch -> conv_in -> scales (blocks, down) -> mid        conv_in -> mid -> scales (blocks, up)
          -> norm, conv_out -> quantise                           -> norm, conv_out -> unpatch

Attention over time sees the last `window` latent frames. The published code has no such limit, and needs memory that
grows with the video; 16 latent frames are the 121 frames that the published CV8x8x8 was trained on, and up to there it
is the same arithmetic. window=None lifts the limit.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, starmap

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpc.models.tokenizers import haar
from hpc.models.tokenizers.causal import (
    CausalTokenizer,
    Kept,
    Past,
    ResBlock,
    Scale,
    TimeConv,
    over_frames,
    over_pixels,
    twice_as_large,
)
from hpc.models.tokenizers.fsq import FSQ


@dataclass(frozen=True)
class Config:
    """The sizes of a tokenizer of this family."""

    temporal: int = 8
    spatial: int = 16
    levels: tuple[int, ...] = (8, 8, 8, 5, 5, 5)
    """Of a discrete tokenizer's FSQ: one latent channel each. () is a continuous one."""
    latent_channels: int = 6
    channels: int = 128
    multipliers: tuple[int, ...] = (2, 4, 4)
    """Channels at each resolution are so many times `channels`."""
    blocks: int = 2
    """Residual blocks at each resolution of the encoder; the decoder has one more."""
    patch: int = 4
    z_channels: int = 16
    window: int | None = 16
    mean: tuple[tuple[float, ...], ...] = ()
    """Of a continuous one's latents: for each channel, for each latent frame. () is 0."""
    std: tuple[tuple[float, ...], ...] = ()
    """The same; () is 1."""

    def __post_init__(self) -> None:
        for name in ("temporal", "spatial", "patch"):
            if (value := getattr(self, name)) < 1 or value & (value - 1):
                raise ValueError(f"{name} is {value}: it is a power of two")
        halvings = len(self.multipliers) - 1
        for name in ("temporal", "spatial"):
            value = getattr(self, name)
            if not self.patch <= value <= self.patch << halvings:
                raise ValueError(
                    f"{name} compression is {value}: patches of {self.patch} and {len(self.multipliers)} multipliers "
                    f"make {self.patch} to {self.patch << halvings}"
                )
        for name in ("mean", "std"):
            lengths = {len(of_channel) for of_channel in getattr(self, name)}
            if lengths and (len(getattr(self, name)) != self.latent_channels or len(lengths) > 1 or 0 in lengths):
                raise ValueError(f"{name}: as many rows as latent channels ({self.latent_channels}), of one length")
        if self.levels and len(self.levels) != self.latent_channels:
            raise ValueError(f"{len(self.levels)} levels for {self.latent_channels} latent channels: they are one each")

    def halvings(self, compression: int) -> int:
        """How often the network halves what patching has left."""
        return (compression // self.patch).bit_length() - 1


DV8x16x16 = Config()
CV8x8x8 = Config(spatial=8, levels=(), latent_channels=16)


class FrameNorm(nn.Module):
    """GroupNorm of one group over each frame by itself, so that none sees another. In float32 at least.

    By var_mean, since F.group_norm gives each frame to one block of threads: a handful for a whole GPU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        x = x_BTHWC.to(torch.promote_types(x_BTHWC.dtype, torch.float32))
        var, mean = torch.var_mean(x, dim=(2, 3, 4), keepdim=True, correction=0)
        scale = torch.rsqrt(var + 1e-6) * self.weight
        return torch.addcmul(self.bias - mean * scale, x, scale).to(x_BTHWC.dtype)


class SpaceTimeConv(nn.Module):
    """A convolution over space, kernel (1, 3, 3), then one over time, kernel (3, 1, 1)."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.space = nn.Conv2d(inside, outside, 3, padding=1)
        self.time = TimeConv(outside, outside)

    def forward(self, x_BTHWC: Tensor, past: Past) -> Tensor:
        return self.time(over_frames(self.space, x_BTHWC), past)


def block(inside: int, outside: int) -> ResBlock:
    return ResBlock(inside, outside, FrameNorm, SpaceTimeConv)


class Attention(nn.Module):
    """One head over the pixels of each frame, or over the frames of each pixel; added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = FrameNorm(channels)
        self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, channels)

    def over_space(self, x_BTHWC: Tensor) -> Tensor:
        h = self.norm(x_BTHWC)
        return x_BTHWC + self.out(over_pixels(self.q(h), self.k(h), self.v(h)))

    def over_time(self, x_BTHWC: Tensor, past: Past, window: int | None) -> Tensor:
        """Causal: a frame sees itself and the window - 1 before it, of which a stream keeps keys and values."""
        h = self.norm(x_BTHWC)
        k, v = (past.before(x, window and window - 1, x[:, :0]) for x in (self.k(h), self.v(h)))
        # [batch, pixels, frames, channels]: to attention, pixels are heads
        q, k, v = (x.flatten(2, 3).transpose(1, 2) for x in (self.q(h), k, v))
        T, S = q.shape[2], k.shape[2]
        if T == S and (window is None or T <= window):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
            y = F.scaled_dot_product_attention(q, k, v, seen if window is None else seen.triu(S - T - window + 1))
        return x_BTHWC + self.out(y.transpose(1, 2).reshape(x_BTHWC.shape))


class Mid(nn.Module):
    """At the lowest resolution: the only attention."""

    def __init__(self, channels: int, window: int | None) -> None:
        super().__init__()
        self.block1 = block(channels, channels)
        self.space = Attention(channels)
        self.time = Attention(channels)
        self.block2 = block(channels, channels)
        self.window = window

    def forward(self, x_BTHWC: Tensor, past: Past) -> Tensor:
        x = self.space.over_space(self.block1(x_BTHWC, past))
        return self.block2(self.time.over_time(x, past, self.window), past)


class Down(nn.Module):
    """Half as many pixels along each edge, half as many frames: a convolution and a mean, added."""

    def __init__(self, channels: int, space: bool, time: bool) -> None:
        super().__init__()
        self.space = nn.Conv2d(channels, channels, 3, stride=2) if space else None
        self.time = TimeConv(channels, channels, stride=2) if time else None
        self.point = nn.Linear(channels, channels)

    def forward(self, x_BTHWC: Tensor, past: Past) -> Tensor:
        x = x_BTHWC
        if self.space:
            mean = F.avg_pool2d(x.flatten(0, 1).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
            conv = over_frames(self.space, F.pad(x, (0, 0, 0, 1, 0, 1)))  # zeros to the right and below
            x = conv + mean.unflatten(0, conv.shape[:2])
        if self.time:
            # Frame t of the result is made of frames 2t-2, 2t-1, 2t; the first stands for the two before it.
            x = past.before(x, 1, x[:, :1].expand(-1, 2, -1, -1, -1))
            x = self.time.windows(x) + (x[:, 1::2] + x[:, 2::2]) / 2
        return self.point(x)


class Up(nn.Module):
    """Twice as many frames (but the first, which stays one) and pixels: repeated, and a convolution of that added."""

    def __init__(self, channels: int, space: bool, time: bool) -> None:
        super().__init__()
        self.time = TimeConv(channels, channels) if time else None
        self.space = nn.Conv2d(channels, channels, 3, padding=1) if space else None
        self.point = nn.Linear(channels, channels)

    def forward(self, x_BTHWC: Tensor, past: Past) -> Tensor:
        x = x_BTHWC
        if self.time:
            x = x.repeat_interleave(2, dim=1)[:, int(past.start) :]
            x = self.time(x, past) + x
        if self.space:
            x = twice_as_large(x)
            x = over_frames(self.space, x) + x
        return self.point(x)


class Encoder(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.patch = c.patch
        width, last = c.channels, len(c.multipliers) - 1
        self.conv_in = SpaceTimeConv(3 * c.patch**3, width)
        self.scales = nn.ModuleList()
        for i, multiplier in enumerate(c.multipliers):
            widths = [width] + [width := c.channels * multiplier] * c.blocks
            space, time = i < c.halvings(c.spatial), i < c.halvings(c.temporal)
            resample = Down(width, space, time) if i < last and (space or time) else None
            self.scales.append(Scale(starmap(block, pairwise(widths)), resample))
        self.mid = Mid(width, c.window)
        self.norm_out = FrameNorm(width)
        self.conv_out = SpaceTimeConv(width, c.z_channels)
        self.quantise = nn.Linear(c.z_channels, c.latent_channels)

    def forward(self, video_BCTHW: Tensor, kept: Kept) -> tuple[Tensor, Kept]:
        """Returns z [B, latent_channels, t, h, w], and what the next step of a stream needs."""
        past = Past(kept)
        x = haar.patch(video_BCTHW, self.patch, past.start).permute(0, 2, 3, 4, 1).contiguous()
        x = self.conv_in(x, past)
        for scale in self.scales:
            x = scale(x, past)
        x = F.silu(self.norm_out(self.mid(x, past)))
        return self.quantise(self.conv_out(x, past)).permute(0, 4, 1, 2, 3), past.new


class Decoder(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.patch = c.patch
        width, last = c.channels * c.multipliers[-1], len(c.multipliers) - 1
        downs, times = c.halvings(c.spatial), c.halvings(c.temporal)
        self.unquantise = nn.Linear(c.latent_channels, c.z_channels)
        self.conv_in = SpaceTimeConv(c.z_channels, width)
        self.mid = Mid(width, c.window)
        self.scales = nn.ModuleList()
        for i, multiplier in enumerate(reversed(c.multipliers)):
            widths = [width] + [width := c.channels * multiplier] * (c.blocks + 1)
            # Not the mirror image of the encoder: frames double after the first scale, pixels from where they must on.
            time = 0 < i < times + 1
            space = time or (i < downs and downs > times)
            resample = Up(width, space, time) if i < last and (space or time) else None
            self.scales.append(Scale(starmap(block, pairwise(widths)), resample))
        self.norm_out = FrameNorm(width)
        self.conv_out = SpaceTimeConv(width, 3 * c.patch**3)

    def forward(self, z_BCTHW: Tensor, kept: Kept) -> tuple[Tensor, Kept]:
        """Returns the video [B, 3, T, H, W], and what the next step of a stream needs."""
        past = Past(kept)
        x = self.conv_in(self.unquantise(z_BCTHW.permute(0, 2, 3, 4, 1)), past)
        x = self.mid(x, past)
        for scale in self.scales:
            x = scale(x, past)
        x = self.conv_out(F.silu(self.norm_out(x)), past)
        return haar.unpatch(x.permute(0, 4, 1, 2, 3), self.patch, past.start), past.new


class Cosmos(CausalTokenizer):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.temporal, self.spatial, self.latent_channels = config.temporal, config.spatial, config.latent_channels
        self.encoder, self.decoder = Encoder(config), Decoder(config)


class CosmosDiscrete(Cosmos):
    """Latents are ids, int32 [B, t, h, w]."""

    kind = "Cosmos DV"

    def __init__(self, config: Config = DV8x16x16) -> None:
        super().__init__(config)
        self.fsq = FSQ(config.levels)
        self.vocabulary = self.fsq.size

    def latents_of(self, z_BCTHW: Tensor, start: int) -> Tensor:
        return self.fsq(z_BCTHW)[1]

    def z_of(self, latents: Tensor, start: int) -> Tensor:
        return self.fsq.codes(latents.to(self.fsq.basis.device)).to(next(self.parameters()))


class CosmosContinuous(Cosmos):
    """Latents are (z - mean) / std, float32 [B, C, t, h, w], with a mean and std for each channel and latent frame.

    The published statistics are of 16 latent frames (121 frames); those after them are normalised like the last. In
    float32, where the published code rounds them to bfloat16.
    """

    kind = "Cosmos CV"

    def __init__(self, config: Config = CV8x8x8) -> None:
        super().__init__(config)

    def statistics(self, like_BCTHW: Tensor, start: int) -> tuple[Tensor, Tensor]:
        """Mean and std of these latent frames, float32 [C, T, 1, 1]."""
        frames = range(start, start + like_BCTHW.shape[2])
        mean_CF = self.config.mean or ((0.0,),) * self.latent_channels
        std_CF = self.config.std or ((1.0,),) * self.latent_channels
        mean, std = (
            torch.tensor([[of_frame[min(f, len(of_frame) - 1)] for f in frames] for of_frame in table])
            for table in (mean_CF, std_CF)
        )
        return mean[:, :, None, None].to(like_BCTHW.device), std[:, :, None, None].to(like_BCTHW.device)

    def latents_of(self, z_BCTHW: Tensor, start: int) -> Tensor:
        mean, std = self.statistics(z_BCTHW, start)
        return (z_BCTHW.float() - mean) / std

    def z_of(self, latents: Tensor, start: int) -> Tensor:
        mean, std = self.statistics(latents, start)
        return (latents.float() * std + mean).to(next(self.parameters()))
