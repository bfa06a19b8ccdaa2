"""The diffusion transformer of Cosmos-Predict1, 2 and 2.5: noisy latents, a noise level and a text -> what to denoise.

One network with its differences as configuration:

                      Predict1             Predict2 and 2.5
    learned positions yes, in every block  no
    rotary positions  time follows fps     time does not; picture axes stretched
    text              T5, 1024 channels    the same; in 2.5 all layers of Qwen2.5-VL, projected to 1024
    noise level       ln(sigma) / 4        t, or 1000 t times timestep_scale; each latent frame may have its own
    log-variance      a head of its own    no

A block is self-attention, cross-attention and an MLP, each of a LayerNorm without weights that the noise level shifts,
scales and gates (adaLN): from SiLU(embedding) by a low-rank pair of its own, plus what all share. Queries and keys have
an RMSNorm for each head. Nothing has a bias but the projection of texts.

A text has no mask: the published models read all 512 tokens, and learned to. Embeddings of T5 are zeros after the
prompt's end, those of Qwen2.5-VL have its padding tokens.

bfloat16 weights and activations, float32 where rounding would show: norms, rotary positions, the embedding of the noise
level, what it modulates with, and the last layer (Predict2.5 was trained so, "use_wan_fp32_strategy"; the others in
bfloat16, which this rounds less).

What stands between a block's parts (gated residual, norm, modulation; norms of heads and their rotation; GELU) is
written out in torch's operators, and there are kernels of the same (hpc.kernels): `kernels` says which compute.

cosmos_predict1 4ed35fa: diffusion/training/networks/general_dit.py, general_dit_lvg.py, module/blocks.py
cosmos_predict2 661da47: models/text2image_dit.py; cosmos_predict2.5 50369b8: networks/minimal_v4_dit.py
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpc.kernels import choose, gated, gelu, modulate, qk_norm_rope
from hpc.kernels.e4m3 import Wrap
from hpc.models.attention import attend
from hpc.models.dit_presets import FOURIER, MLP, PATCH, Config

FPS = 24.0
"""Frames a second at which rotary positions count latent frames, where they follow the frame rate."""
EPS = 1e-6

Linear = Callable[[int, int], nn.Module]
Quantizing = Callable[[Tensor], Wrap | None]
"""Of hidden states, whose shape and type count: what makes the input of linear layers of them in FP8, if such layers
take it now."""


class Output(NamedTuple):
    latents_BCTHW: Tensor
    """float32: what the objective makes of it says hpc.models.diffusion."""
    log_variance_B: Tensor | None
    """Of a network that has such a head: of its error at this noise level."""


def linear(inside: int, outside: int) -> nn.Module:
    return nn.Linear(inside, outside, bias=False)


def modulated(x_BTND: Tensor, shift_BT1D: Tensor, scale_BT1D: Tensor) -> Tensor:
    """LayerNorm(x) (1 + scale) + shift, in float32, of x's type. N: the tokens of a frame."""
    normal = F.layer_norm(x_BTND.float(), x_BTND.shape[-1:], eps=EPS)
    return torch.addcmul(shift_BT1D, normal, 1 + scale_BT1D).to(x_BTND.dtype)


def joined(x_BTND: Tensor, gate_BT1D: Tensor, y_BSD: Tensor) -> Tensor:
    """x + gate y."""
    return torch.addcmul(x_BTND, gate_BT1D.to(x_BTND.dtype), y_BSD.reshape(x_BTND.shape))


class Joints:
    """What stands between a block's parts, by torch's operators or by kernels.

    quantizing: see Quantizing; the modulated then are in FP8 where layers take them so.
    """

    def __init__(self, kernels: str = "auto", quantizing: Quantizing | None = None) -> None:
        self.kernels, self.quantizing = kernels, quantizing

    def fused(self, x: Tensor) -> bool:
        return choose(self.kernels, x) == "fused"

    def modulated(self, x_BTND: Tensor, shift_BT1D: Tensor, scale_BT1D: Tensor) -> tuple[Tensor, Tensor]:
        """(x to go on with, the input of a block's part [B, S, D])."""
        if not self.fused(x_BTND):
            return x_BTND, modulated(x_BTND, shift_BT1D, scale_BT1D).flatten(1, 2)
        x_GLD, shift_GD, scale_GD = grouped(x_BTND, shift_BT1D), rows(shift_BT1D), rows(scale_BT1D)
        if self.quantizing and (wrap := self.quantizing(x_BTND.flatten(1, 2))):
            z_GLD, out = modulate.modulate_fp8(x_GLD, shift_GD, scale_GD, wrap=wrap, eps=EPS, kernels="fused")
            return z_GLD.view(x_BTND.shape), out
        z_GLD, out_GLD = modulate.modulate(x_GLD, shift_GD, scale_GD, eps=EPS, kernels="fused")
        return z_GLD.view(x_BTND.shape), out_GLD.view(len(x_BTND), -1, x_BTND.shape[-1])

    def joined(self, x_BTND: Tensor, gate_BT1D: Tensor, y_BSD: Tensor) -> Tensor:
        if not self.fused(x_BTND):
            return joined(x_BTND, gate_BT1D, y_BSD)
        x_GLD = grouped(x_BTND, gate_BT1D)
        return gated.gated(x_GLD, y_BSD.view(x_GLD.shape), rows(gate_BT1D), kernels="fused").view(x_BTND.shape)

    def joined_modulated(
        self, x_BTND: Tensor, gate_BT1D: Tensor, y_BSD: Tensor, shift_BT1D: Tensor, scale_BT1D: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(x + gate y, that modulated [B, S, D])."""
        if not self.fused(x_BTND):
            z_BTND = joined(x_BTND, gate_BT1D, y_BSD)
            return z_BTND, modulated(z_BTND, shift_BT1D, scale_BT1D).flatten(1, 2)
        x_GLD = grouped(x_BTND, gate_BT1D)
        given = x_GLD, y_BSD.view(x_GLD.shape), rows(gate_BT1D), rows(shift_BT1D), rows(scale_BT1D)
        if self.quantizing and (wrap := self.quantizing(x_BTND.flatten(1, 2))):
            z_GLD, out = modulate.gated_modulate_fp8(*given, wrap=wrap, eps=EPS, kernels="fused")
            return z_GLD.view(x_BTND.shape), out
        z_GLD, out_GLD = modulate.gated_modulate(*given, eps=EPS, kernels="fused")
        return z_GLD.view(x_BTND.shape), out_GLD.view(len(x_BTND), -1, x_BTND.shape[-1])


    def activated(self, x_BSF: Tensor) -> Tensor:
        """Between the layers of an MLP."""
        if not self.fused(x_BSF):
            return F.gelu(x_BSF)
        if self.quantizing and (wrap := self.quantizing(x_BSF)):
            return gelu.gelu_fp8(x_BSF, wrap=wrap, kernels="fused")
        return gelu.gelu(x_BSF, kernels="fused")


def grouped(x_BTND: Tensor, vector_BT1D: Tensor) -> Tensor:
    """[groups, tokens, D]: a group of tokens has one shift, scale and gate."""
    return x_BTND.reshape(vector_BT1D.shape[0] * vector_BT1D.shape[1], -1, x_BTND.shape[-1])


def rows(vector_BT1D: Tensor) -> Tensor:
    return vector_BT1D.reshape(-1, vector_BT1D.shape[-1])


def float32(layer: nn.Module, x: Tensor) -> Tensor:
    """A linear layer without bias, computed in float32 whatever its weights are."""
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.float(), layer.weight.float())


def rotated(x_BSHD: Tensor, cos_BS1D: Tensor, sin_BS1D: Tensor) -> Tensor:
    """Rotary positions (Su et al., "RoFormer", 2021, https://arxiv.org/abs/2104.09864): channel i and i + D/2 are a
    pair that is turned. In float32."""
    x = x_BSHD.float()
    first, second = x.chunk(2, dim=-1)
    return x * cos_BS1D + torch.cat([-second, first], dim=-1) * sin_BS1D


def was_read(x: Tensor) -> None:
    """By its last layer on the way forward. What kernels write in FP8 lies by rows, for that way, and transposed, for
    the one back: its rows can go, a byte for each number that a block keeps."""
    if (update := getattr(x, "update_usage", None)) is not None:
        update(rowwise_usage=False, columnwise_usage=True)


class RMSNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """In float32, of which type it is returned."""
        return F.rms_norm(x.float(), x.shape[-1:], self.weight.float(), EPS)


class Attention(nn.Module):
    """Of tokens to each other, or to a text."""

    def __init__(self, c: Config, text: bool, linear: Linear, kernels: str = "auto") -> None:
        super().__init__()
        self.heads, self.kernels = c.heads, kernels
        self.attend = attend  # hpc.models.context_parallel puts its own here
        inside = c.text_channels if text else c.channels
        self.q_proj = linear(c.channels, c.channels)
        self.k_proj = linear(inside, c.channels)
        self.v_proj = linear(inside, c.channels)
        self.output_proj = linear(c.channels, c.channels)
        self.q_norm = RMSNorm(c.head_channels)
        self.k_norm = RMSNorm(c.head_channels)

    def forward(self, x_BSD: Tensor, text_BLE: Tensor | None, rope: tuple[Tensor, Tensor] | None) -> Tensor:
        from_BLE = x_BSD if text_BLE is None else text_BLE
        projected = self.q_proj(x_BSD), self.k_proj(from_BLE), self.v_proj(from_BLE)
        was_read(x_BSD)
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in projected)
        q, k = self.normed(q, k, rope)
        return self.output_proj(self.attend(q, k, v).flatten(-2))

    def normed(self, q_BSHD: Tensor, k_BLHD: Tensor, rope: tuple[Tensor, Tensor] | None) -> tuple[Tensor, Tensor]:
        """Each head by its norm, and turned; of their own type."""
        of_q, of_k = self.q_norm.weight, self.k_norm.weight
        if choose(self.kernels, q_BSHD) == "fused":
            if rope is None:
                head_norm = functools.partial(qk_norm_rope.head_norm, eps=EPS, kernels="fused")
                return head_norm(q_BSHD, of_q), head_norm(k_BLHD, of_k)
            cos, sin = (table[:, :, 0, : table.shape[-1] // 2] for table in rope)
            cos, sin = (cos[0], sin[0]) if len(cos) == 1 else (cos, sin)
            return qk_norm_rope.qk_norm_rope(
                q_BSHD, k_BLHD, of_q, of_k, cos, sin, eps=EPS, layout="bshd", kernels="fused"
            )
        q, k = self.q_norm(q_BSHD), self.k_norm(k_BLHD)
        if rope is not None:
            q, k = rotated(q, *rope), rotated(k, *rope)
        return q.to(q_BSHD.dtype), k.to(k_BLHD.dtype)


class Feedforward(nn.Module):
    def __init__(self, c: Config, linear: Linear, joints: Joints) -> None:
        super().__init__()
        self.joints = joints
        self.layer1 = linear(c.channels, MLP * c.channels)
        self.layer2 = linear(MLP * c.channels, c.channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer1(x)
        was_read(x)
        h = self.joints.activated(h)
        y = self.layer2(h)
        was_read(h)
        return y


class Modulation(nn.Sequential):
    """The embedding of the noise level -> shift, scale and perhaps gate, each [B, T, 1, D], in float32."""

    def __init__(self, c: Config, parts: int) -> None:
        # the first has no weights: published files count it
        super().__init__(nn.SiLU(), linear(c.channels, c.adaln_rank), linear(c.adaln_rank, parts * c.channels))
        self.parts = parts

    def forward(self, level_BTD: Tensor, shared_BT3D: Tensor) -> tuple[Tensor, ...]:
        own = float32(self[2], float32(self[1], F.silu(level_BTD)))
        return (own + shared_BT3D[..., : own.shape[-1]]).unsqueeze(2).chunk(self.parts, dim=-1)


class Block(nn.Module):
    def __init__(
        self, c: Config, linear: Linear, kernels: str = "auto", quantizing: Quantizing | None = None
    ) -> None:
        super().__init__()
        self.self_attn = Attention(c, False, linear, kernels)
        self.cross_attn = Attention(c, True, linear, kernels)
        self.joints = Joints(kernels, quantizing)
        self.mlp = Feedforward(c, linear, self.joints)
        self.adaln_modulation_self_attn = Modulation(c, 3)
        self.adaln_modulation_cross_attn = Modulation(c, 3)
        self.adaln_modulation_mlp = Modulation(c, 3)

    def forward(
        self,
        x_BTND: Tensor,
        level_BTD: Tensor,
        shared_BT3D: Tensor,
        text_BLE: Tensor,
        rope: tuple[Tensor, Tensor],
        positions_1TND: Tensor | None,
    ) -> Tensor:
        """T of the noise level is 1 where all frames have the same. Tokens are the latent pixels of all frames."""
        x = x_BTND if positions_1TND is None else x_BTND + positions_1TND
        shift, scale, gate = self.adaln_modulation_self_attn(level_BTD, shared_BT3D)
        x, h = self.joints.modulated(x, shift, scale)
        y = self.self_attn(h, None, rope)
        shift, scale, next_gate = self.adaln_modulation_cross_attn(level_BTD, shared_BT3D)
        x, h = self.joints.joined_modulated(x, gate, y, shift, scale)
        y, gate = self.cross_attn(h, text_BLE, None), next_gate
        shift, scale, next_gate = self.adaln_modulation_mlp(level_BTD, shared_BT3D)
        x, h = self.joints.joined_modulated(x, gate, y, shift, scale)
        return self.joints.joined(x, next_gate, self.mlp(h))


class LearnedPositions(nn.Module):
    """A vector for each place along each axis; their sum, divided by its root mean square, is added in every block."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.pos_emb_t = nn.Parameter(torch.empty(c.max_frames, c.channels))
        self.pos_emb_h = nn.Parameter(torch.empty(c.max_height // PATCH, c.channels))
        self.pos_emb_w = nn.Parameter(torch.empty(c.max_width // PATCH, c.channels))

    def forward(self, first: int, frames: int, height: int, width: int) -> Tensor:
        """[1, frames, height x width, D], in float32; the first frame's place is `first`."""
        t, h, w = self.pos_emb_t[first : first + frames], self.pos_emb_h[:height], self.pos_emb_w[:width]
        x_THWD = t[:, None, None].float() + h[None, :, None].float() + w[None, None].float()
        norm = torch.linalg.vector_norm(x_THWD, dim=-1, keepdim=True) / math.sqrt(x_THWD.shape[-1])
        return (x_THWD / (norm + EPS)).flatten(1, 2)[None]


class LogVariance(nn.Module):
    """Random Fourier features of a noise level -> the logarithm of the variance of the error there (Kendall, Gal,
    Cipolla, "Multi-task learning using uncertainty", 2018, https://arxiv.org/abs/1705.07115; in Karras et al.,
    "Analyzing and improving the training dynamics of diffusion models", 2024, https://arxiv.org/abs/2312.02696)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.empty(FOURIER))
        self.register_buffer("phases", torch.empty(FOURIER))
        self.out = linear(FOURIER, 1)

    def forward(self, level_B: Tensor) -> Tensor:
        features = torch.cos(torch.outer(level_B.float(), self.freqs.float()) + self.phases.float())
        return float32(self.out, math.sqrt(2) * features).squeeze(-1)


class LevelEmbedding(nn.Module):
    """A noise level -> its sinusoids, and of them what all blocks share of their modulation."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.channels = c.channels
        self.linear_1 = linear(c.channels, c.channels)
        self.linear_2 = linear(c.channels, 3 * c.channels)

    def forward(self, level_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Returns [B, T, D] and [B, T, 3 D], in float32."""
        half = self.channels // 2
        frequencies = torch.exp(-math.log(10000) / half * torch.arange(half, device=level_BT.device))
        angles = level_BT.float()[..., None] * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return waves, float32(self.linear_2, F.silu(float32(self.linear_1, waves)))


class LastLayer(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.linear = linear(c.channels, PATCH * PATCH * c.latent_channels)
        self.adaln_modulation = Modulation(c, 2)

    def forward(self, x_BTND: Tensor, level_BTD: Tensor, shared_BT3D: Tensor) -> Tensor:
        return float32(self.linear, modulated(x_BTND.float(), *self.adaln_modulation(level_BTD, shared_BT3D)))


class DiT(nn.Module):
    """linear: makes the layers that nearly all multiplications are in, those of the blocks' attention and MLP, of
    (channels inside, outside); without bias. The rest are torch's own, in float32. kernels: auto, torch or fused, see
    hpc.kernels.choose; quantizing: of such layers in FP8."""

    def __init__(
        self, config: Config, linear: Linear = linear, kernels: str = "auto", quantizing: Quantizing | None = None
    ) -> None:
        super().__init__()
        c = self.config = config
        if c.channels % c.heads or c.head_channels % 2 or c.head_channels < 12:
            raise ValueError(f"{c.channels} channels in {c.heads} heads: a head needs an even number, 12 or more")
        inside = c.latent_channels + c.condition_mask + 1  # and the mask of padding
        self.x_embedder = nn.Linear(PATCH * PATCH * inside, c.channels, bias=False)
        self.t_embedder = LevelEmbedding(c)
        self.t_embedding_norm = RMSNorm(c.channels)
        self.extra_pos_embedder = LearnedPositions(c) if c.learned_positions else None
        self.crossattn_proj = nn.Linear(c.text_projection, c.text_channels) if c.text_projection else None
        self.blocks = nn.ModuleList(Block(c, linear, kernels, quantizing) for _ in range(c.blocks))
        self.final_layer = LastLayer(c)
        self.log_variance = LogVariance() if c.log_variance else None
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal of 1 / sqrt(inputs), cut at three of them; zeros where a noise level modulates, so that every block
        starts as the identity. As cosmos_predict2 has it. Does nothing on the meta device."""

        def normal(weight: Tensor, inside: int) -> None:
            std = 1 / math.sqrt(inside)
            nn.init.trunc_normal_(weight, std=std, a=-3 * std, b=3 * std, generator=generator)

        if self.x_embedder.weight.is_meta:
            return
        for module in self.modules():
            if isinstance(module, RMSNorm):
                nn.init.ones_(module.weight)
            elif isinstance(module, LearnedPositions):
                for parameter in module.parameters():
                    normal(parameter, self.config.channels)
            elif isinstance(module, LogVariance):  # the same for all, as in Predict2.5's code: they are no weights
                fixed = torch.Generator("cpu").manual_seed(0)
                module.freqs.copy_(2 * math.pi * torch.randn(FOURIER, generator=fixed, device="cpu"))
                module.phases.copy_(2 * math.pi * torch.rand(FOURIER, generator=fixed, device="cpu"))
            elif (weight := getattr(module, "weight", None)) is not None:  # linear layers, of whichever kind
                normal(weight, weight.shape[-1])
                if getattr(module, "bias", None) is not None and module.bias.numel():
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Modulation):
                nn.init.zeros_(module[2].weight)

    def rope(
        self, first: int, frames: int, height: int, width: int, fps_B: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Cosines and sines [B or 1, frames x height x width, 1, head channels] in float32: of a head's channels about
        a third is for each of time, height and width. fps_B: of the video, where positions follow it."""
        c = self.config
        device = self.x_embedder.weight.device
        space = c.head_channels // 6 * 2
        sizes = (c.head_channels - 2 * space, space, space)

        def frequencies(size: int, stretch: float) -> Tensor:
            base = 10000 * stretch ** (size / (size - 2))
            return 1 / base ** (torch.arange(0, size, 2, device=device, dtype=torch.float32) / size)

        times_BT = torch.arange(first, first + frames, device=device, dtype=torch.float32)[None]
        if c.rope_fps and fps_B is not None:
            times_BT = times_BT / fps_B.to(device, torch.float32)[:, None] * FPS
        of_t, of_h, of_w = (frequencies(size, stretch) for size, stretch in zip(sizes, c.rope_stretch, strict=True))
        t = (times_BT[..., None] * of_t)[:, :, None, None]
        h = (torch.arange(height, device=device)[:, None] * of_h)[None, None, :, None]
        w = (torch.arange(width, device=device)[:, None] * of_w)[None, None, None]
        size = (len(times_BT), frames, height, width, -1)
        half = torch.cat([t.expand(size), h.expand(size), w.expand(size)], dim=-1).flatten(1, 3)[:, :, None]
        angles = torch.cat([half, half], dim=-1)
        return angles.cos(), angles.sin()

    def forward(
        self,
        x_BCTHW: Tensor,
        level_B: Tensor,
        text_BLE: Tensor,
        given_BT: Tensor | None = None,
        fps_B: Tensor | None = None,
        padding_BHW: Tensor | None = None,
        first_frame: int = 0,
    ) -> Output:
        """
        x_BCTHW: latents as hpc.models.diffusion scales them; height and width are even.
        level_B: the noise level as the network takes it; [B, T] where latent frames have different ones.
        given_BT: 1 where a latent frame is given, 0 where it is to be made; None: none is given.
        fps_B: frames a second of the video; None: 24.
        padding_BHW: 1 where pixels are padding, of any size; None: nowhere.
        first_frame: the place of the first of these latent frames in the video, where ranks share it.
        """
        c = self.config
        B, _, T, H, W = x_BCTHW.shape
        if H % PATCH or W % PATCH or first_frame + T > c.max_frames or H > c.max_height or W > c.max_width:
            raise ValueError(
                f"latents of {first_frame + T} frames of {H} x {W}: height and width must be even, and at most "
                f"{c.max_frames} frames of {c.max_height} x {c.max_width}"
            )
        if text_BLE.shape[-1] != c.text_input:
            raise ValueError(f"a text of {text_BLE.shape[-1]} channels; this network takes {c.text_input}")
        height, width = H // PATCH, W // PATCH
        dtype = self.x_embedder.weight.dtype
        planes = [x_BCTHW.to(dtype)]
        if c.condition_mask:
            given = torch.zeros(B, T, device=x_BCTHW.device) if given_BT is None else given_BT
            planes.append(given.to(dtype)[:, None, :, None, None].expand(B, 1, T, H, W))
        padding = x_BCTHW.new_zeros(B, 1, H, W) if padding_BHW is None else padding_BHW[:, None].to(x_BCTHW.dtype)
        padding = F.interpolate(padding, size=(H, W), mode="nearest")
        planes.append(padding.to(dtype)[:, :, None].expand(B, 1, T, H, W))
        patches = torch.cat(planes, dim=1).unflatten(4, (width, PATCH)).unflatten(3, (height, PATCH))
        x_BTND = self.x_embedder(patches.permute(0, 2, 3, 5, 1, 4, 6).reshape(B, T, height * width, -1))

        level_BT = (level_B if level_B.ndim == 2 else level_B[:, None]).float() * c.timestep_scale
        waves_BTD, shared_BT3D = self.t_embedder(level_BT)
        level_BTD = self.t_embedding_norm(waves_BTD)
        text_BLE = text_BLE.to(dtype)
        if self.crossattn_proj is not None:
            text_BLE = F.gelu(self.crossattn_proj(text_BLE))
        rope = self.rope(first_frame, T, height, width, fps_B)
        positions = None
        if self.extra_pos_embedder is not None:
            positions = self.extra_pos_embedder(first_frame, T, height, width).to(dtype)
        for block in self.blocks:
            x_BTND = block(x_BTND, level_BTD, shared_BT3D, text_BLE, rope, positions)
        out = self.final_layer(x_BTND, level_BTD, shared_BT3D)  # of each token: y, x, channel
        out = out.unflatten(-1, (PATCH, PATCH, c.latent_channels)).unflatten(2, (height, width))
        latents_BCTHW = out.permute(0, 6, 1, 2, 4, 3, 5).reshape(B, c.latent_channels, T, H, W)
        return Output(latents_BCTHW, None if self.log_variance is None else self.log_variance(level_BT[:, 0]))
