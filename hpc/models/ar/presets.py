"""The autoregressive models by name, and the arithmetic of their size: parameters, tokens, floating-point operations.

    preset("ar-4b").parameters        4,014,088,192

Shapes are those of Cosmos-1.0-Autoregressive (NVIDIA/Cosmos 71f19b0: autoregressive/nemo/cosmos.py,
cosmos_video2world.py, configs/base/model_config.py; cosmos_predict1 4ed35fa: autoregressive/configs/base). Light: the
login node counts with it.
"""

from __future__ import annotations

import difflib
import math

import msgspec

CONTEXT_TOKENS = 512
"""Tokens of a prompt's T5 embedding that the video2world models attend to; none is masked."""
ACTION = 7
"""Numbers of an action, as hpc.data.tokens.action has them."""


class Yarn(msgspec.Struct, frozen=True):
    """Rotary frequencies stretched for a latent shape larger than the one that the model was first trained on: below
    `slow` turns over the original length an axis' frequency is divided by `scale`, above `fast` it stays.

    Upstream computes YaRN's attention temperature for these models and never applies it (cosmos_predict1 4ed35fa:
    autoregressive/modules/embedding.py, RotaryPositionEmbeddingPytorchV2); nor do we.
    """

    original: tuple[int, int, int]
    scale: float = 2.0
    fast: float = 4.0
    slow: float = 1.0


class Preset(msgspec.Struct, frozen=True, kw_only=True):
    """One model: a decoder of SwiGLU layers with RMSNorm, grouped queries, per-head RMSNorm of q and k, and 3D RoPE."""

    layers: int
    dim: int
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    ffn: int = 14336
    vocab: int = 64_000
    """Rows of the embedding: video tokens, and what else may stand in the input."""
    classes: int = 64_000
    """Columns of the logits: video tokens."""
    shape: tuple[int, int, int] = (5, 40, 64)
    """Latent frames, rows, columns: 33 frames of 640 x 1024 in the tokens of DV8x16x16."""
    rope_base: float = 500_000.0
    yarn: Yarn | None = None
    context_dim: int | None = None
    """Width of a prompt's embedding, for models that attend to one in every layer. Such models begin with the token
    `bov`, add absolute positions before every layer, and are padded to a multiple of 64."""
    action_dim: int | None = None
    """Numbers of an action, for models that attend to one in the place of a prompt: an MLP makes an embedding of it.
    They are padded to a multiple of 128 (NVIDIA/Cosmos 71f19b0: autoregressive/nemo/cosmos_action_control.py)."""
    norm_eps: float = 1e-5

    bov: int = 64_000
    """Begin of video, where there is a context."""
    pad: int = 64_002

    @property
    def video_tokens(self) -> int:
        return math.prod(self.shape)

    @property
    def first(self) -> int:
        """Position of the first video token: after `bov`, where there is one."""
        return int(self.context_dim is not None)

    @property
    def length(self) -> int:
        """Tokens of a sequence."""
        multiple = 64 if self.action_dim is None else 128
        return self.video_tokens if self.context_dim is None else -(-(self.video_tokens + 1) // multiple) * multiple

    @property
    def without_actions(self) -> Preset:
        """The video2world model that it is trained from."""
        return msgspec.structs.replace(self, action_dim=None)

    @property
    def context_tokens(self) -> int:
        """That each token attends to, besides those of the video; an action is one."""
        return 0 if self.context_dim is None else CONTEXT_TOKENS if self.action_dim is None else 1

    @property
    def parameters(self) -> int:
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = self.dim * (2 * q + 2 * kv + 3 * self.ffn + 2) + 2 * self.head_dim
        if self.context_dim is not None:
            layer += self.dim * (2 * q + 1) + 2 * self.context_dim * kv + 2 * self.head_dim
        return self.layers * layer + self.dim * (self.vocab + self.classes + 1) + self.mlp_parameters

    @property
    def mlp_parameters(self) -> int:
        """Of what makes an embedding of an action."""
        if self.action_dim is None or self.context_dim is None:
            return 0
        return (self.action_dim + 1) * (self.context_dim // 4) + (self.context_dim // 4 + 1) * self.context_dim

    @property
    def widths(self) -> int:
        """Inputs and outputs of all linear layers of the decoder, of each published tensor: adapters of rank r have r
        times as many parameters."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = 7 * self.dim + 2 * q + 2 * kv + 3 * self.ffn
        if self.context_dim is not None:
            layer += 2 * self.dim + 2 * q + 2 * self.context_dim + 2 * kv
        return self.layers * layer

    def flops(self, recomputed: float = 0.0, lora_rank: int = 0) -> float:
        """Floating-point operations of one sequence, forward and backward: 6 for each weight that a token meets, and
        causal attention counted once: half of length^2, with 3 times its forward for both passes. This is the
        convention of every TFLOP/s and MFU that hpc reports; recomputation does not count as work, unless asked for:
        recomputed is the share of the layers' forward that is done twice. lora_rank: of adapters, with which no other
        weight has a gradient, 4 operations for each."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        layer = self.length * self.dim * (2 * q + 2 * kv + 3 * self.ffn) * 2.0
        attention = 2.0 * self.length**2 * q  # q k' and p v, each 2 * length^2 * q / 2
        if self.context_dim is not None:
            layer += self.length * self.dim * 2 * q * 2.0 + self.context_tokens * self.context_dim * 2 * kv * 2.0
            attention += 4.0 * self.length * self.context_tokens * q
        output = self.length * self.dim * self.classes * 2.0
        frozen = self.layers * layer + output if lora_rank else 0.0
        whole = (3 + recomputed) * self.layers * (layer + attention) + 3 * output
        return whole - frozen + 6.0 * self.length * lora_rank * self.widths


_WORLD = {"vocab": 64_064, "context_dim": 1024}
_ACTION = _WORLD | {"action_dim": ACTION, "shape": (2, 30, 40)}
_BIG = {"layers": 40, "dim": 5120, "yarn": Yarn((3, 40, 64))}
_TINY = {"layers": 4, "dim": 64, "heads": 16, "head_dim": 16, "ffn": 128, "shape": (5, 8, 8)}

PRESETS: dict[str, Preset] = {
    "ar-4b": Preset(layers=16, dim=4096),
    "ar-12b": Preset(**_BIG),
    "ar-5b-video2world": Preset(layers=16, dim=4096, **_WORLD),
    "ar-13b-video2world": Preset(**_BIG, **_WORLD),
    # Of a frame, 480 x 640, and an action: the next frame. Trained from the video2world models.
    "ar-5b-action": Preset(layers=16, dim=4096, **_ACTION),
    "ar-13b-action": Preset(**_BIG, **_ACTION),
    # For laptops and tests: every part of the large ones, and all of their tokens. 33 frames of 128 x 128.
    "ar-tiny": Preset(**_TINY, yarn=Yarn((3, 8, 8))),
    "ar-tiny-video2world": Preset(**_TINY, **_WORLD),
    "ar-tiny-action": Preset(**(_TINY | _ACTION | {"shape": (2, 8, 8)})),
}


def preset(name: str) -> Preset:
    """Raises ValueError, which names the presets."""
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"{name!r} is no autoregressive model; {hint}there are {', '.join(PRESETS)}")
    return PRESETS[name]
