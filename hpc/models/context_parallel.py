"""A video's latent frames over several ranks: each has some of the frames, and all of the weights.

Everything in a DiT but self-attention looks at a token, or at a token and the text. For self-attention ranks exchange
heads for frames and back (Jacobs et al., "DeepSpeed Ulysses", 2023, https://arxiv.org/abs/2309.14509): each attends
all frames with its share of the heads. So the number of ranks divides the heads and the latent frames.

    share_frames(model, group)                     # once
    x = part(x_BCTHW, group)                       # of latents, noise and given frames: this rank's
    condition = condition._replace(first_frame=first_frame(frames, group), ...)

Losses are means over the rank's own frames, all ranks have as many: the mean over ranks is the mean over the video, and
gradients are averaged over these ranks as they are over those of data parallelism. Draws are made for the whole video
before it is split.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpc.models.attention import attend
from hpc.models.dit import DiT


def share_frames(model: DiT, group: dist.ProcessGroup) -> None:
    """Self-attention goes over the frames of all ranks of the group from now on. Raises ValueError."""
    ranks = dist.get_world_size(group)
    if model.config.heads % ranks:
        raise ValueError(f"{ranks} ranks share a video's frames, but {model.config.heads} heads of attention are not a "
                         "multiple of that")  # fmt: skip

    def over_ranks(q_BSHD: Tensor, k_BSHD: Tensor, v_BSHD: Tensor) -> Tensor:
        q, k, v = (_Exchange.apply(x, group, 2, 1) for x in (q_BSHD, k_BSHD, v_BSHD))
        return _Exchange.apply(attend(q, k, v), group, 1, 2)

    for block in model.blocks:
        block.self_attn.attend = over_ranks


def part(x: Tensor, group: dist.ProcessGroup, dim: int = 2) -> Tensor:
    """This rank's share of the frames. Raises ValueError."""
    ranks = dist.get_world_size(group)
    if x.shape[dim] % ranks:
        raise ValueError(f"{x.shape[dim]} latent frames cannot be shared by {ranks} ranks: make them a multiple")
    return x.chunk(ranks, dim)[dist.get_rank(group)].contiguous()


def first_frame(frames: int, group: dist.ProcessGroup) -> int:
    """The place of this rank's first, of so many latent frames in all."""
    return frames // dist.get_world_size(group) * dist.get_rank(group)


def whole(x: Tensor, group: dist.ProcessGroup, dim: int = 2) -> Tensor:
    """All ranks' shares, on each; without gradients."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
    dist.all_gather(parts, x.contiguous(), group)
    return torch.cat(parts, dim)


def _exchange(x: Tensor, group: dist.ProcessGroup, cut: int, join: int) -> Tensor:
    """Each rank cuts its tensor along `cut` and joins what it gets along `join`, in the order of the ranks."""
    ranks = dist.get_world_size(group)
    out = torch.stack(x.chunk(ranks, cut))  # contiguous: the first dimension is whom it is for
    got = torch.empty_like(out)
    dist.all_to_all_single(got, out, group=group)
    return torch.cat(got.unbind(0), join)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, cut: int, join: int) -> Tensor:
        ctx.of = group, join, cut
        return _exchange(x, group, cut, join)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grads[0], *ctx.of), None, None, None
