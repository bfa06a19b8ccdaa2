"""The VAE of Wan2.1, which Cosmos-Predict2 and 2.5 use: 4x8x8, 16 latent channels.

Wan team, "Wan: Open and Advanced Large-Scale Video Generative Models", 2025, https://arxiv.org/abs/2503.20314, section
4.1; the arithmetic is that of Wan2.1 9737cba: wan/modules/vae.py. The published code encodes 1 + 4 + 4 + ... frames and
decodes one latent frame at a time, each with what the convolutions kept of the ones before. What that computes, for
frames in portions of any size, is:

* a convolution (3, 3, 3) has two frames of zeros before the first frame;
* halving frames: the first stays as it is, and frame t > 0 is made of 2t-2, 2t-1, 2t;
* doubling frames: the first stays as it is, and a convolution of the others, with two frames of zeros before the second
  (not the first, which it never sees), makes two of each.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise, starmap

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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

MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
        0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)  # fmt: skip
STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
       3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)  # fmt: skip
"""Of each latent channel, as WanVAE has them."""


@dataclass(frozen=True)
class Config:
    """The sizes of a tokenizer of this family."""

    channels: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """Channels at each resolution are so many times `channels`."""
    blocks: int = 2
    """Residual blocks at each resolution of the encoder; the decoder has one more."""
    halves_frames: tuple[bool, ...] = (False, True, True)
    """Whether the encoder halves the frames, too, where it halves the pixels; the decoder doubles them in reverse."""
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    def __post_init__(self) -> None:
        if len(self.halves_frames) != len(self.multipliers) - 1:
            raise ValueError(
                f"{len(self.multipliers)} multipliers have {len(self.multipliers) - 1} steps between them; "
                f"halves_frames has {len(self.halves_frames)}"
            )
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means and {len(self.std)} stds: one each for every latent channel")


class RMSNorm(nn.Module):
    """Each pixel's channels divided by their root mean square.

    The published code divides by max(norm, 1e-12), which for sums of squares is this epsilon under the root.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        size = x_BTHWC.shape[-1]
        return F.rms_norm(x_BTHWC, (size,), self.weight, eps=1e-24 / size)


class CausalConv(nn.Conv3d):
    """A convolution (3, 3, 3) that looks back, with zeros before the first frame."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(inside, outside, 3, padding=(0, 1, 1))

    def forward(self, x_BTHWC: Tensor, past: Past) -> Tensor:
        B, _, H, W, C = x_BTHWC.shape
        x = past.before(x_BTHWC, 2, x_BTHWC.new_zeros(B, 2, H, W, C))
        return super().forward(x.permute(0, 4, 1, 2, 3)).permute(0, 2, 3, 4, 1)


def block(inside: int, outside: int) -> ResBlock:
    return ResBlock(inside, outside, RMSNorm, CausalConv)


class Attention(nn.Module):
    """One head over the pixels of each frame; added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = RMSNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        return x_BTHWC + self.out(over_pixels(*self.qkv(self.norm(x_BTHWC)).chunk(3, dim=-1)))


class Mid(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block1 = block(channels, channels)
        self.attention = Attention(channels)
        self.block2 = block(channels, channels)

    def forward(self, x_BTHWC: Tensor, past: Past) -> Tensor:
        return self.block2(self.attention(self.block1(x_BTHWC, past)), past)


class Down(nn.Module):
    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.space = nn.Conv2d(channels, channels, 3, stride=2)
        self.time = TimeConv(channels, channels, stride=2) if time else None

    def forward(self, x_BTHWC: Tensor, past: Past) -> Tensor:
        x = over_frames(self.space, F.pad(x_BTHWC, (0, 0, 0, 1, 0, 1)))  # zeros to the right and below
        if not self.time:
            return x
        x = past.before(x, 1, x[:, :0])
        later = self.time.windows(x) if x.shape[1] > 1 else x[:, :0]
        return torch.cat([x[:, :1], later], dim=1) if past.start else later


class Up(nn.Module):
    """Half as many channels, too."""

    def __init__(self, channels: int, time: bool) -> None:
        super().__init__()
        self.time = TimeConv(channels, 2 * channels) if time else None
        self.space = nn.Conv2d(channels, channels // 2, 3, padding=1)

    def forward(self, x_BTHWC: Tensor, past: Past) -> Tensor:
        x = x_BTHWC
        if self.time:
            first, later = x.split([1, x.shape[1] - 1], dim=1) if past.start else (x[:, :0], x)
            later = past.before(later, 2, torch.zeros_like(x[:, :1]).expand(-1, 2, -1, -1, -1))
            if later.shape[1] > 2:  # channels of the two frames that each becomes lie behind each other
                pairs = self.time.windows(later).unflatten(-1, (2, -1))
                first = torch.cat([first, pairs.permute(0, 1, 4, 2, 3, 5).flatten(1, 2)], dim=1)
            x = first
        return over_frames(self.space, twice_as_large(x))


class Encoder(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width = c.channels
        self.conv_in = CausalConv(3, width)
        self.scales = nn.ModuleList()
        for i, multiplier in enumerate(c.multipliers):
            widths = [width] + [width := c.channels * multiplier] * c.blocks
            resample = Down(width, c.halves_frames[i]) if i < len(c.halves_frames) else None
            self.scales.append(Scale(starmap(block, pairwise(widths)), resample))
        self.mid = Mid(width)
        self.norm_out = RMSNorm(width)
        self.conv_out = CausalConv(width, 2 * len(c.mean))
        self.moments = nn.Linear(2 * len(c.mean), 2 * len(c.mean))

    def forward(self, video_BCTHW: Tensor, kept: Kept) -> tuple[Tensor, Kept]:
        """Returns the posterior's means and log variances [B, 2 x C, t, h, w], and what the next step needs."""
        past = Past(kept)
        x = self.conv_in(video_BCTHW.permute(0, 2, 3, 4, 1).contiguous(), past)
        for scale in self.scales:
            x = scale(x, past)
        x = F.silu(self.norm_out(self.mid(x, past)))
        return self.moments(self.conv_out(x, past)).permute(0, 4, 1, 2, 3), past.new


class Decoder(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        width = c.channels * c.multipliers[-1]
        self.from_latent = nn.Linear(len(c.mean), len(c.mean))
        self.conv_in = CausalConv(len(c.mean), width)
        self.mid = Mid(width)
        self.scales = nn.ModuleList()
        doubles = c.halves_frames[::-1]
        for i, multiplier in enumerate(reversed(c.multipliers)):
            widths = [width] + [width := c.channels * multiplier] * (c.blocks + 1)
            resample = Up(width, doubles[i]) if i < len(doubles) else None
            self.scales.append(Scale(starmap(block, pairwise(widths)), resample))
            width = width // 2 if resample else width
        self.norm_out = RMSNorm(width)
        self.conv_out = CausalConv(width, 3)

    def forward(self, z_BCTHW: Tensor, kept: Kept) -> tuple[Tensor, Kept]:
        """Returns the video [B, 3, T, H, W], and what the next step of a stream needs."""
        past = Past(kept)
        x = self.conv_in(self.from_latent(z_BCTHW.permute(0, 2, 3, 4, 1)), past)
        x = self.mid(x, past)
        for scale in self.scales:
            x = scale(x, past)
        return self.conv_out(F.silu(self.norm_out(x)), past).permute(0, 4, 1, 2, 3), past.new


class WanVAE(CausalTokenizer):
    """Latents are (posterior's mean - mean) / std, float32 [B, C, t, h, w]."""

    kind = "Wan2.1 VAE"

    def __init__(self, config: Config = Config()) -> None:
        super().__init__()
        self.config = config
        self.temporal = 2 ** sum(config.halves_frames)
        self.spatial = 2 ** len(config.halves_frames)
        self.latent_channels = len(config.mean)
        self.encoder, self.decoder = Encoder(config), Decoder(config)

    def statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and std, float32 [C, 1, 1, 1]."""
        mean, std = (torch.tensor(values, device=like.device) for values in (self.config.mean, self.config.std))
        return mean[:, None, None, None], std[:, None, None, None]

    def latents_of(self, z_BCTHW: Tensor, start: int) -> Tensor:
        mean, std = self.statistics(z_BCTHW)
        return (z_BCTHW[:, : self.latent_channels].float() - mean) / std

    def z_of(self, latents: Tensor, start: int) -> Tensor:
        mean, std = self.statistics(latents)
        return (latents.float() * std + mean).to(next(self.parameters()))
