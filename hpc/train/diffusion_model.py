"""A diffusion transformer as it is trained: its weights spread over the ranks, its blocks in bf16 or FP8, recomputed.

    model = build(settings, here)               # on no device yet: shapes alone
    begin(model, settings, here)                # weights, from rank 0; or those of a checkpoint are read into it
    with computing(settings, here.device): loss = of.loss(model, ...)

FP8 is transformer-engine's: float32 weights spread over the ranks, gathered in bf16, and cast by te.Linear in each
forward pass. Kernels of norms and modulation write FP8 with its transpose themselves, by the largest number of each
tensor, so that no layer casts what it is given by them. What is computed again on the way back enters FP8 anew, since
the way back is outside of it.
(TransformerEngine 2.11, fd91bae^: pytorch/module/linear.py, distributed.py, quantization.py)
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
    noop_context_fn,
)

from hpc.kernels.e4m3 import Wrap
from hpc.models import attention, diffusion, dit, dit_files, dit_publish, hub, lora
from hpc.models.diffusion import Objective
from hpc.models.dit import DiT
from hpc.train import fsdp
from hpc.train.randomness import generator, key
from hpc.train.ranks import Here
from hpc.train.settings import TrainDiffusion
from hpc.train.settings.diffusion import Recompute

ATTENTION = ("_scaled_dot_product_cudnn_attention", "_scaled_dot_product_flash_attention",
             "_scaled_dot_product_efficient_attention", "_scaled_dot_product_flash_attention_for_cpu")  # fmt: skip
KEPT = {"attention": ATTENTION, "matmuls": (*ATTENTION, "mm", "addmm", "bmm")}
"""What recompute leaves: PyTorch's names of operators."""


def objective(settings: TrainDiffusion) -> Objective:
    known = settings.preset
    of = diffusion.OBJECTIVES[known.objective](**(known.settings | settings.objective.given))
    return of if settings.config.condition_mask else dataclasses.replace(of, given_frames=(1.0,))


def build(settings: TrainDiffusion, here: Here) -> DiT:
    """Its weights lie on this rank's device, with no values yet. Raises RuntimeError for FP8 without
    transformer-engine."""
    model = network(settings, here.device)
    dtype = torch.float32 if settings.precision == "fp32" else torch.bfloat16
    attention.backend(here.device, dtype, settings.config.head_channels)  # warns here, before anything is computed
    for block, again in zip(model.blocks, settings.policies, strict=True):
        if again != "none":
            block.forward = recomputed(block.forward, again, settings, here.device)
        if settings.compile:
            block.compile()
    exact = settings.precision == "fp32" or here.device.type == "cpu"
    policy = MixedPrecisionPolicy(
        param_dtype=None if exact else torch.bfloat16, reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # noise levels and rotary positions stay float32
    )  # fmt: skip
    shard = settings.mesh.sharded(here.count)
    fsdp.shard([*model.blocks, model], fsdp.mesh(here.device, shard), policy)
    if shard == 1 or here.count == 1:
        fsdp.keep_gathered(model)
    return model.to_empty(device=here.device).train()


def network(settings: TrainDiffusion, device: torch.device) -> DiT:
    """As it computes on such a device, of one rank; on none yet. Raises RuntimeError as `build` does."""
    with torch.device("meta"):
        model = DiT(settings.config, linear_of(settings, device), settings.kernels, quantizing(settings, device))
        adapted(model, settings)
    return model


def begin(model: DiT, settings: TrainDiffusion, here: Here) -> None:
    """Gives it the weights that training begins with: rank 0 has them all in its memory, the others their part."""
    state = first(settings).state_dict() if here.rank == 0 else {}
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def first(settings: TrainDiffusion) -> DiT:
    """The weights that training begins with, float32, on the CPU. Raises FileNotFoundError and RuntimeError where they
    are not to be had or are others."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key(settings.seed, "weights") >> 1)
        if settings.weights is None:
            model = DiT(settings.config)
        else:
            # the head that published files lack needs values; others are all read
            model = DiT(settings.config) if settings.config.log_variance else dit_files.build(settings.config)
            read(model, settings)
        adapted(model, settings)
    return model


def read(model: DiT, settings: TrainDiffusion) -> None:
    if settings.weights == "published":
        paths = hub.located(settings.preset.repository, settings.preset.file)
    else:
        path = Path(str(settings.weights)).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"weights: there is no {path} on this machine")
        paths = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    state: dict[str, Any] = {}
    for path in paths:
        state |= dit_files.read(path)
    if lora.adapters(state):
        state = lora.merged(state)
    which = "net_ema" if settings.average else "net"
    account = dit_files.fit(model, state, str(settings.weights), which, lack=("log_variance.",))
    said = {"read": account.read, **account.ignored, "fresh": len(account.fresh)}
    logging.getLogger(__name__).warning("weights of %s: %s", settings.weights, json.dumps(said))


def adapted(model: DiT, settings: TrainDiffusion) -> None:
    if one := settings.lora:
        random = None if model.x_embedder.weight.is_meta else generator("cpu", settings.seed, "adapters")
        lora.adapt(model, one.rank, one.alpha, one.targets or lora.TARGETS, random)


# FP8, and what is computed again


def linear_of(settings: TrainDiffusion, device: torch.device) -> dit.Linear:
    if not in_fp8(settings, device):
        if settings.precision.startswith("fp8"):
            logging.getLogger(__name__).warning("precision: %s needs a GPU: all is float32 here", settings.precision)
        return dit.linear
    try:
        import transformer_engine.pytorch as te
        from transformer_engine.pytorch.distributed import in_fp8_activation_recompute_phase
    except ModuleNotFoundError as error:
        raise RuntimeError(f"precision: {settings.precision} needs transformer-engine, and {error.name} is not "
                           "installed here: pip install 'transformer-engine[pytorch]', or take bf16"
                           ) from error  # fmt: skip

    class Linear(te.Linear):  # type: ignore[misc]
        # FP8's own state is made anew in each step, or (delayed) within some: it is no weight, and in no checkpoint
        get_extra_state = nn.Module.get_extra_state
        set_extra_state = nn.Module.set_extra_state

        def get_weight_workspace(self, *, quantizer: Any, **given: Any) -> Any:
            # te.checkpoint counts what both passes keep. Of a weight whose input takes no gradient (a text) the first
            # keeps the transpose too, the second would not, and all that is kept after it would be taken for another's
            if in_fp8_activation_recompute_phase():
                quantizer.set_usage(columnwise=True)
            return super().get_weight_workspace(quantizer=quantizer, **given)

    return lambda inside, outside: Linear(inside, outside, bias=False, params_dtype=torch.float32, device="meta")


def quantizing(settings: TrainDiffusion, device: torch.device) -> dit.Quantizing | None:
    """Kernels' output in FP8 as te.Linear takes it. None where it takes another kind: with blockwise scales, or as what
    adapters take too."""
    if not in_fp8(settings, device) or settings.precision == "fp8-blockwise" or settings.lora:
        return None
    from transformer_engine.pytorch.quantization import FP8GlobalStateManager
    from transformer_engine.pytorch.tensor.float8_tensor import Float8CurrentScalingQuantizer, Float8Tensor
    from transformer_engine_torch import DType

    quantizer = Float8CurrentScalingQuantizer(DType.kFloat8E4M3, device)

    def of(x_BSD: Tensor) -> Wrap | None:
        if x_BSD.dtype != torch.bfloat16 or not FP8GlobalStateManager.is_fp8_enabled():
            return None
        b, s, d = x_BSD.shape
        return lambda found: Float8Tensor(
            shape=(b, s, d), dtype=torch.bfloat16, data=found.rows_ND.view(torch.uint8).view(b, s, d),
            fp8_scale_inv=found.scale_inv, fp8_dtype=DType.kFloat8E4M3,
            data_transpose=found.columns_DN.view(torch.uint8).view(d, b, s), quantizer=quantizer,
        )  # fmt: skip

    return of


def in_fp8(settings: TrainDiffusion, device: torch.device) -> bool:
    return settings.precision.startswith("fp8") and device.type == "cuda"


def computing(settings: TrainDiffusion, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Around a forward pass."""
    if not in_fp8(settings, device):
        return contextlib.nullcontext()
    import transformer_engine.pytorch as te

    return te.autocast(enabled=True, recipe=recipe(settings.precision))


@functools.cache
def recipe(precision: str) -> Any:
    from transformer_engine.common import recipe as recipes

    if precision == "fp8-delayed":
        return recipes.DelayedScaling(
            fp8_format=recipes.Format.HYBRID, amax_history_len=16, amax_compute_algo="max"
        )  # fmt: skip
    if precision == "fp8-blockwise":
        return recipes.Float8BlockScaling()
    return recipes.Float8CurrentScaling(fp8_format=recipes.Format.HYBRID)


def recomputed(
    forward: Callable[..., Tensor], again: Recompute, settings: TrainDiffusion, device: torch.device
) -> Callable[..., Tensor]:
    """A block's forward pass that keeps less, and does it again on the way back."""
    contexts: Callable[[], tuple[Any, Any]] = noop_context_fn
    if kept := KEPT.get(again):
        contexts = functools.partial(create_selective_checkpoint_contexts, functools.partial(policy, kept))
    options: dict[str, Any] = {"context_fn": contexts}
    run: Callable[..., Any] = checkpoint
    if settings.precision == "fp8-delayed" and in_fp8(settings, device):
        import transformer_engine.pytorch as te

        # of the second pass, its own knows which scales the first one had, and counts no largest numbers twice
        run, inside = te.checkpoint, forward

        def nested() -> tuple[Any, Any]:
            # Leaving FP8 is taken for the end of a step, where histories of largest numbers move on, and ranks meet:
            # not in each block's second pass, which would leave of 16 steps the last one
            first, second = contexts()
            return first, both(te.autocast(enabled=False), second)

        options["context_fn"] = nested
    else:
        options["preserve_rng_state"] = False

        def inside(*x: Any) -> Tensor:
            with computing(settings, device):
                return forward(*x)

    def twice(*x: Any) -> Tensor:
        return run(inside, *x, use_reentrant=False, **options) if torch.is_grad_enabled() else inside(*x)

    return twice


@contextlib.contextmanager
def both(
    outer: contextlib.AbstractContextManager[Any], inner: contextlib.AbstractContextManager[Any]
) -> Iterator[None]:
    with outer, inner:
        yield


def policy(kept: tuple[str, ...], context: Any, operator: Any, *given: Any, **more: Any) -> CheckpointPolicy:
    name = getattr(operator, "overloadpacket", operator)
    found = getattr(name, "__name__", "") in kept
    return CheckpointPolicy.MUST_SAVE if found else CheckpointPolicy.PREFER_RECOMPUTE


# What is left in the end


def publish(model: DiT, means: list[dict[str, Tensor]], settings: TrainDiffusion, step: int, folder: Path,
            here: Here) -> None:  # fmt: skip
    """Rank 0 writes the files of hpc.models.dit_publish; of a second mean and more, a folder ema_2 and so on, as ours.
    Adapters are added to their layers, and are beside as adapters.safetensors. Every rank calls it."""
    from safetensors.torch import save_file

    weights = fsdp.whole(dict(model.named_parameters()) | dict(model.named_buffers()))
    averages = [fsdp.whole(mean) for mean in means]
    if here.rank:
        return
    folder.mkdir(parents=True, exist_ok=True)
    states = [weights, *(weights | one for one in averages)]
    if one := settings.lora:
        save_file({name: value.contiguous() for name, value in lora.adapters(states[1]).items()},
                  folder / "adapters.safetensors")  # fmt: skip
        states = [lora.merged(state, one.alpha / one.rank) for state in states]
    dit_publish.publish(folder, settings.config, settings.preset.form, step, states[0], states[1])
    for number, state in enumerate(states[2:], 2):
        dit_files.save(state, settings.config, folder / f"ema_{number}")
