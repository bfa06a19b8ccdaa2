"""Attention, by the fastest kernel that PyTorch has for the device; loud where that is a slow one.

On a GPU attention is most of a step (85 % of one at 84,480 tokens), and PyTorch falls back to a slow kernel without a
word where a fast one does not take the tensors. Here the order is cuDNN, FlashAttention, the memory-efficient one, and
whoever gets a slow one is told so, once for each kind of tensors. PyTorch's FlashAttention is the second version: on an
H200 it is half as fast as cuDNN, and counts as slow.
"""

from __future__ import annotations

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

ORDER = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def fast(device: torch.device) -> list[SDPBackend]:
    """None slower than another by much."""
    return ORDER[:1] if torch.cuda.get_device_capability(device) >= (9, 0) else ORDER[:2]


def attend(q_BSHD: Tensor, k_BLHD: Tensor, v_BLHD: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v of every head, all to all: there is no mask. Returns [B, S, H, D], of v's type."""
    q_BHSD, k_BHLD, v_BHLD = (x.transpose(1, 2) for x in (q_BSHD, k_BLHD, v_BLHD))
    if q_BSHD.device.type != "cuda":
        return F.scaled_dot_product_attention(q_BHSD, k_BHLD, v_BHLD).transpose(1, 2)
    if not torch.compiler.is_compiling():
        backend(q_BSHD.device, q_BSHD.dtype, q_BSHD.shape[-1])
    with sdpa_kernel(ORDER, set_priority=True):
        return F.scaled_dot_product_attention(q_BHSD, k_BHLD, v_BHLD).transpose(1, 2)


@functools.cache
def backend(device: torch.device, dtype: torch.dtype, head_channels: int) -> str:
    """Which kernel such tensors get there, by PyTorch's name of it. Warns unless it is one of the fast ones."""
    if device.type != "cuda":
        return "CPU"
    # 64 tokens of one head: whether a kernel takes tensors depends on their type and channels, not on how many
    q = torch.empty(1, 1, 64, head_channels, dtype=dtype, device=device, requires_grad=True)
    for kind in ORDER:
        try:
            with sdpa_kernel(kind), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the reasons of those that cannot
                F.scaled_dot_product_attention(q, q, q)
        except RuntimeError:
            continue
        break
    if kind not in fast(device):
        words = f"{str(dtype).removeprefix('torch.')} with {head_channels} channels a head"
        warnings.warn(
            f"attention of {words} runs on PyTorch's {kind.name} kernel on {torch.cuda.get_device_name(device)}, where "
            f"{' and '.join(one.name for one in fast(device))} would be two to ten times as fast: they take bfloat16 "
            "or float16 with a multiple of 8 channels, 128 at most. Set the precision to bf16, or another number of "
            "heads; with those, this PyTorch's cuDNN is too old or does not load (torch.backends.cudnn.version())",
            stacklevel=2,
        )
    return str(kind.name)
