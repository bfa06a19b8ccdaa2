"""What weights are called in published files, and what they are called here.

Rules are applied one after the other, each to what the one before has left: (pattern, replacement).

Cosmos-Tokenize1's TorchScript files, encoder.jit and decoder.jit: cosmos_predict1 4ed35fa: tokenizer/networks/
Wan2.1_VAE.pth, and tokenizer.pth of Cosmos-Predict2 and 2.5: Wan2.1 9737cba: wan/modules/vae.py
diffusers 0.42.1: autoencoder_kl_cosmos.py, autoencoder_kl_wan.py
"""

from __future__ import annotations

import re
from collections.abc import Callable

from hpc.models.tokenizers import cosmos, wan

Rules = list[tuple[str, str | Callable[[re.Match[str]], str]]]


def renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def cosmos_published(c: cosmos.Config) -> Rules:
    """decoder.up counts from the finest resolution; scales are in the order in which they run."""
    return [
        (r"^encoder\.down\.(\d+)\.", r"encoder.scales.\1."),
        (r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.scales.{len(c.multipliers) - 1 - int(m[1])}."),
        (r"\.downsample\.conv1\.", ".resample.space."),
        (r"\.downsample\.conv2\.", ".resample.time."),
        (r"\.upsample\.conv1\.", ".resample.time."),
        (r"\.upsample\.conv2\.", ".resample.space."),
        (r"\.(down|up)sample\.conv3\.", ".resample.point."),
        (r"\.block\.", ".blocks."),
        (r"\.mid\.block_", ".mid.block"),
        (r"\.attn_1\.0\.", ".space."),
        (r"\.attn_1\.1\.", ".time."),
        (r"\.proj_out\.", ".out."),
        (r"\.nin_shortcut\.", ".shortcut."),
        (r"\.(norm\w*)\.norm\.", r".\1."),
        (r"\.(conv1|conv2|conv_in|conv_out)\.0\.", r".\1.space."),
        (r"\.(conv1|conv2|conv_in|conv_out)\.1\.", r".\1.time."),
        (r"^quant_conv\.", "encoder.quantise."),
        (r"^post_quant_conv\.", "decoder.unquantise."),
        (r"\.conv3d\.", "."),
    ]


COSMOS_DIFFUSERS: Rules = [
    (r"\.(down|up)_blocks\.(\d+)\.", r".scales.\2."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block2."),
    (r"\.mid_block\.attentions\.0\.", ".mid.space."),
    (r"\.mid_block\.temp_attentions\.0\.", ".mid.time."),
    (r"\.resnets\.", ".blocks."),
    (r"\.downsamplers\.0\.conv1\.", ".resample.space."),
    (r"\.downsamplers\.0\.conv2\.", ".resample.time."),
    (r"\.upsamplers\.0\.conv1\.", ".resample.time."),
    (r"\.upsamplers\.0\.conv2\.", ".resample.space."),
    (r"\.(down|up)samplers\.0\.conv3\.", ".resample.point."),
    (r"\.to_([qkv])\.", r".\1."),
    (r"\.to_out\.0\.", ".out."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.conv_s\.", ".space."),
    (r"\.conv_t\.", ".time."),
    (r"\.(norm\w*)\.norm\.", r".\1."),
    (r"^quant_conv\.", "encoder.quantise."),
    (r"^post_quant_conv\.", "decoder.unquantise."),
]


def counted(side: str, blocks: int) -> Callable[[re.Match[str]], str]:
    """Where all blocks of a side are numbered through, those of each scale followed by the way to the next."""

    def place(match: re.Match[str]) -> str:
        scale, block = divmod(int(match[1]), blocks + 1)
        return f"{side}.scales.{scale}." + (f"blocks.{block}." if block < blocks else "resample.")

    return place


def wan_published(c: wan.Config) -> Rules:
    return [
        (r"^conv1\.", "encoder.moments."),
        (r"^conv2\.", "decoder.from_latent."),
        (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
        (r"^encoder\.downsamples\.(\d+)\.", counted("encoder", c.blocks)),
        (r"^decoder\.upsamples\.(\d+)\.", counted("decoder", c.blocks + 1)),
        (r"\.middle\.0\.", ".mid.block1."),
        (r"\.middle\.1\.", ".mid.attention."),
        (r"\.middle\.2\.", ".mid.block2."),
        (r"\.head\.0\.", ".norm_out."),
        (r"\.head\.2\.", ".conv_out."),
        (r"\.residual\.0\.", ".norm1."),
        (r"\.residual\.2\.", ".conv1."),
        (r"\.residual\.3\.", ".norm2."),
        (r"\.residual\.6\.", ".conv2."),
        (r"\.resample\.resample\.1\.", ".resample.space."),
        (r"\.time_conv\.", ".time."),
        (r"\.to_qkv\.", ".qkv."),
        (r"\.proj\.", ".out."),
        (r"\.gamma$", ".weight"),
    ]


def wan_diffusers(c: wan.Config) -> Rules:
    return [
        (r"^quant_conv\.", "encoder.moments."),
        (r"^post_quant_conv\.", "decoder.from_latent."),
        (r"^encoder\.down_blocks\.(\d+)\.", counted("encoder", c.blocks)),
        (r"^decoder\.up_blocks\.(\d+)\.resnets\.", r"decoder.scales.\1.blocks."),
        (r"^decoder\.up_blocks\.(\d+)\.upsamplers\.0\.", r"decoder.scales.\1.resample."),
        (r"\.mid_block\.resnets\.0\.", ".mid.block1."),
        (r"\.mid_block\.attentions\.0\.", ".mid.attention."),
        (r"\.mid_block\.resnets\.1\.", ".mid.block2."),
        (r"\.conv_shortcut\.", ".shortcut."),
        (r"\.resample\.resample\.1\.", ".resample.space."),
        (r"\.time_conv\.", ".time."),
        (r"\.to_qkv\.", ".qkv."),
        (r"\.proj\.", ".out."),
        (r"\.gamma$", ".weight"),
    ]
