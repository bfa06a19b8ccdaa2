"""One step of an autoregressive model on megatron-core: its ranks, model, gradients, optimizer, and what it saves.

    engine = Engine(preset, layout, compute, optimizer, weights)     # in every rank, after ranks.start()
    done = engine.step(microbatches, rate)                           # forward, backward, all reduced, weights moved
    engine.save(folder, reshard=True); engine.load(folder)

With adapters they alone are trained and saved: the model's own weights are those that it was given.

Losses are sums over the tokens of a step divided by their number in the whole batch, so that every layout gives the
same number. The distributed optimizer is used throughout: at one data-parallel rank it has all.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.strategies import filesystem_async
from megatron.core.dist_checkpointing.validation import StrictHandling
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import ChainedOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from hpc.kernels import choose
from hpc.models.ar import keys
from hpc.models.ar.loss import NO_LABEL, losses
from hpc.models.ar.model import ARModel, Backend, config
from hpc.models.ar.positions import zigzag
from hpc.models.ar.presets import Preset
from hpc.models.hub import shorten
from hpc.train.ar_optimizer import fused_step
from hpc.train.settings.ar import Kernels, Layout, Lora, Precision, Recompute
from hpc.train.settings.optimizer import Optimizer

FP8 = {"fp8-delayed": ("hybrid", "delayed"), "fp8-current": ("hybrid", "tensorwise"),
       "fp8-blockwise": ("e4m3", "blockwise")}  # fmt: skip
NOT_COMPARED = "_extra_state"  # transformer-engine's, of FP8: absent from checkpoints of other precisions


class Compute(msgspec.Struct, frozen=True, kw_only=True):
    """How each rank computes; nothing of it changes what a checkpoint is."""

    precision: Precision = "bf16"
    recompute: Recompute = "none"
    kernels: Kernels = "auto"
    backend: Backend = "local"
    deterministic: bool = False
    z_loss: float = 1e-4


class Microbatch(NamedTuple):
    """Whole sequences, in memory of the CPU; ranks that have the model together have the same ones."""

    tokens_BS: Tensor
    """int64; hpc.train.token_data makes them."""
    labels_BS: Tensor
    """int64; NO_LABEL where there is none."""
    mask_BS: Tensor
    """bool: where the cross entropy counts."""
    context_CBD: Tensor | None = None
    action_BA: Tensor | None = None


class Done(NamedTuple):
    """Of a step."""

    loss: float
    """Cross entropy and z-loss."""
    cross_entropy: float
    z_loss: float
    grad_norm: float
    moved: bool
    """False where gradients are not finite: nothing has changed then."""


class Writing:
    """Of a checkpoint, by a thread of this rank."""

    def __init__(self, request: Any) -> None:
        self.request, self.error = request, None
        self.buckets, self.results = [], None
        if request.async_fn is not None:
            _, buckets, self.results = request.async_fn_args
            self.buckets = [
                (path, key, (data, [(item, tensor.detach().to("cpu", copy=True)) for item, tensor in tensors]))
                for path, key, (data, tensors) in buckets
            ]
        self.thread = threading.Thread(target=self._write, name="checkpoint", daemon=True)
        self.thread.start()

    def _write(self) -> None:
        transforms = self.request.async_fn.args[0] if self.buckets else []
        made: queue.Queue[Any] = queue.Queue()
        for number, bucket in enumerate(self.buckets):
            counts: queue.Queue[int] = queue.Queue()
            counts.put(number)
            filesystem_async.FileSystemWriterAsync.write_preloaded_data(transforms, number, bucket, made, counts, True)
        found = dict(made.get() for _ in self.buckets)
        self.error = next((one for one in found.values() if isinstance(one, Exception)), None)
        if self.results is not None:
            self.results.put(found)

    def done(self) -> bool:
        return not self.thread.is_alive()

    def finish(self) -> None:
        """Waits for the thread, and then for all ranks, which call it together. Raises what went wrong here."""
        self.thread.join()
        if self.error is not None:
            raise self.error
        for finalize in self.request.finalize_fns:
            finalize()


def settings_of(preset: Preset, layout: Layout, compute: Compute) -> dict[str, Any]:
    """megatron-core's fields of a layout and of what is computed in."""
    dtype = torch.float32 if compute.precision == "fp32" else torch.bfloat16
    fields: dict[str, Any] = {
        "params_dtype": dtype,
        "tensor_model_parallel_size": layout.tensor,
        "sequence_parallel": layout.sequence and layout.tensor > 1,
        "pipeline_model_parallel_size": layout.pipeline,
        "context_parallel_size": layout.context,
        "deterministic_mode": compute.deterministic,
    }
    if compute.backend == "transformer_engine":
        fields["gradient_accumulation_fusion"] = True
    if compute.precision in FP8:
        fields["fp8"], fields["fp8_recipe"] = FP8[compute.precision]
    if compute.recompute == "full":
        fields |= {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1}
    elif compute.recompute == "selective":
        fields |= {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return fields


class Engine:
    """Of one rank. Every rank has one, and calls it at the same time."""

    def __init__(
        self, preset: Preset, layout: Layout, compute: Compute, optimizer: Optimizer, weights: Mapping[str, Tensor],
        lora: Lora | None = None,
    ) -> None:  # fmt: skip
        """weights: published ones, or keys.Initial; with adapters of `lora`, which alone are trained then."""
        self.preset, self.layout, self.compute, self.settings, self.lora = preset, layout, compute, optimizer, lora
        self.trained = keys.trained(preset, lora.rank if lora else 0)
        if not parallel_state.is_initialized():
            parallel_state.initialize_model_parallel(
                layout.tensor, layout.pipeline, context_parallel_size=layout.context
            )
        tensor_parallel.model_parallel_cuda_manual_seed(1234)  # nothing is drawn; sequence parallelism asks for it
        self.tp = parallel_state.get_tensor_model_parallel_group()
        self.cp = parallel_state.get_context_parallel_group()
        self.data_rank = parallel_state.get_data_parallel_rank()
        self.data_ranks = parallel_state.get_data_parallel_world_size()
        self.last = parallel_state.is_pipeline_last_stage()
        fields = settings_of(preset, layout, compute)
        if lora:
            fields["gradient_accumulation_fusion"] = False  # no linear of transformer-engine has a gradient to add
        self.config = config(preset, **fields)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = self._built(weights).to(self.device)
        ours = DistributedDataParallelConfig(
            use_distributed_optimizer=True, grad_reduce_in_fp32=True,
            overlap_grad_reduce=self.data_ranks * layout.context > 1,
        )  # fmt: skip
        self.ddp = DistributedDataParallel(self.config, ours, self.model)
        self.config.finalize_model_grads_func = finalize_model_grads
        if ours.overlap_grad_reduce:
            self.config.no_sync_func = self.ddp.no_sync
        self.optimizer = get_megatron_optimizer(
            OptimizerConfig(
                optimizer="adam", lr=optimizer.rate, weight_decay=optimizer.weight_decay, adam_eps=optimizer.eps,
                adam_beta1=optimizer.betas[0], adam_beta2=optimizer.betas[1], clip_grad=optimizer.clip,
                bf16=compute.precision != "fp32", params_dtype=self.config.params_dtype,
                use_distributed_optimizer=True,
            ),
            [self.ddp],
        )  # fmt: skip

        self.fused = (
            compute.precision != "fp32" and choose(compute.kernels, torch.empty(0, device=self.device)) == "fused"
        )

    def _built(self, weights: Mapping[str, Tensor]) -> torch.nn.Module:
        first, kind = parallel_state.is_pipeline_first_stage(), self.compute
        lora = (self.lora.rank, self.lora.alpha) if self.lora else None
        model = ARModel(self.preset, self.config, kind.backend, first, self.last, kind.kernels, lora)
        keys.fill(model, self.preset, weights, self.tp.rank(), self.tp.size(), lora[0] if lora else 0)
        return model

    # A step

    def step(self, microbatches: Sequence[Microbatch], rate: float) -> Done:
        """rate: the learning rate. microbatches: this data-parallel rank's, as many as the others'."""
        self.clear()
        ce, z = self.run(microbatches)
        norm, moved = self.update(rate)
        return Done(ce + z, ce, z, norm, moved)

    def clear(self) -> None:
        """No gradients, and none that was reduced."""
        self.ddp.zero_grad_buffer()
        self.optimizer.zero_grad()

    def run(self, microbatches: Sequence[Microbatch], backward: bool = True) -> tuple[float, float]:
        """(cross entropy, z-loss) of the whole batch. With backward the gradients are there, reduced over ranks; before
        each comes `clear`: megatron-core reduces a bucket once, when all of its gradients have come."""
        size, length = microbatches[0].tokens_BS.shape
        with torch.set_grad_enabled(backward):
            parts = get_forward_backward_func()(
                forward_step_func=self._forward,
                data_iterator=iter(microbatches),
                model=self.ddp,
                num_microbatches=len(microbatches),
                seq_length=length,
                micro_batch_size=size,
                forward_only=not backward,
            )
        sums = torch.zeros(2, device=self.device)
        if self.last:
            sums = torch.stack([part["both"] for part in parts]).mean(0)
        dist.all_reduce(sums)  # tensor-parallel ranks have the same; other pipeline stages have none
        ce, z = (sums / (self.tp.size() * self.data_ranks)).tolist()
        return ce, z

    def _forward(self, batches: Iterator[Microbatch], model: torch.nn.Module) -> tuple[Tensor, Callable]:
        batch = next(batches)
        part = lambda t: zigzag(t, self.cp.rank(), self.cp.size(), dim=1).to(self.device, non_blocking=True)
        told = (None if one is None else one.to(self.device, non_blocking=True)
                for one in (batch.context_CBD, batch.action_BA))  # fmt: skip
        out = model(part(batch.tokens_BS), *told)
        counted, labelled = int(batch.mask_BS.sum()), int((batch.labels_BS != NO_LABEL).sum())
        return out, partial(self._loss, part(batch.labels_BS), part(batch.mask_BS), counted, labelled)

    def _loss(
        self, labels_BS: Tensor, mask_BS: Tensor, counted: int, labelled: int, logits_SBV: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        group = self.tp if self.tp.size() > 1 else None
        ce_SB, z_SB = losses(logits_SBV, labels_BS.T, mask_BS.T, self.compute.z_loss, group, self.compute.kernels)
        ce, z = ce_SB.sum() / counted, z_SB.sum() / labelled
        return ce + z, {"both": torch.stack([ce, z]).detach()}

    @torch.no_grad()
    def update(self, rate: float) -> tuple[float, bool]:
        """(norm of the gradients over all weights, have the weights moved?)"""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
            group["weight_decay"] = self.settings.weight_decay * group["wd_mult"]  # norms have none
        self.optimizer.prepare_grads()
        norm = float(self.optimizer.get_grad_norm())
        if not math.isfinite(norm):
            return norm, False
        for one in self._optimizers():
            if self.fused:
                fused_step(one, self.settings, norm, self.compute.kernels)
            else:
                clip_grad_by_total_norm_fp32(one.get_parameters(), self.settings.clip, norm)
                one.step_with_ready_grads()
        return norm, True

    # What is saved

    def save(self, folder: Path, reshard: bool) -> Writing:
        """Begins to write every rank's part of megatron-core's distributed checkpoint; what is saved is copied before
        this returns, and all ranks call `finish` of what it returns later on. reshard: to be loaded with any layout;
        else with this one, and any number of data-parallel ranks."""
        # megatron-core's own queue is a process that outlives a rank which is killed; here a thread writes
        filesystem_async._results_queue = queue.Queue()  # type: ignore[assignment]
        return Writing(
            dist_checkpointing.save(self._sharded(reshard, loading=False), str(folder), async_sharded_save=True)
        )

    @torch.no_grad()
    def load(self, folder: Path, reshard: bool) -> None:
        """reshard: as it was saved. Raises ValueError naming what is missing or left over."""
        for one in self._optimizers():
            if isinstance(one.optimizer, torch.optim.Adam) and not one.optimizer.state:  # torch's wants them there
                one._init_optimizer_states_with_dummy_values()
        state, unused, absent = dist_checkpointing.load(
            self._sharded(reshard, loading=True), str(folder), strict=StrictHandling.RETURN_ALL
        )
        wrong = {"missing": absent, "left over": unused}
        wrong = {why: sorted(n for n in names if NOT_COMPARED not in n) for why, names in wrong.items()}
        if any(wrong.values()):
            words = "; ".join(f"{why}: {shorten(names) or 'nothing'}" for why, names in wrong.items())
            raise ValueError(f"{folder} is no checkpoint of this model: {words}")
        self.model.load_state_dict(state["model"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        for one in self._optimizers():
            for kept in one.optimizer.state.values():
                if isinstance(kept.get("step"), Tensor):  # torch's AdamW gets one tensor for all parameters
                    kept["step"] = kept["step"].clone()

    @torch.no_grad()
    def published(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor) of model.pt, on every rank's device, one after the other; all ranks go through all of them.
        Adapters are there as well, by the names of their own."""
        mine = keys.parameters(self.model, self.preset)
        for name, rule in (keys.rules(self.preset) | self.trained).items():
            part = mine.get(name)
            first = torch.tensor(dist.get_rank() if part is not None else dist.get_world_size(), device=self.device)
            dist.all_reduce(first, dist.ReduceOp.MIN)
            if part is not None:
                parts = [torch.empty_like(part) for _ in range(self.tp.size())]
                dist.all_gather(parts, part.detach().contiguous(), group=self.tp)
                whole = rule.together(parts).contiguous()
            else:
                shape = rule.joined(
                    [torch.empty(one, device="meta") for one in rule.shapes], self.preset.kv_heads
                ).shape
                whole = torch.empty(shape, dtype=self.config.params_dtype, device=self.device)
            dist.broadcast(whole, int(first))
            yield from zip(rule.sources, rule.parted(whole, self.preset.kv_heads), strict=True)

    def _sharded(self, reshard: bool, loading: bool) -> dict[str, Any]:
        group = parallel_state.get_data_parallel_group(with_context_parallel=True)
        metadata = {
            "distrib_optim_sharding_type": "fully_reshardable" if reshard else "dp_reshardable",
            "distrib_optim_fully_reshardable_mem_efficient": True,  # gathered in memory of the CPU, not of GPUs
            "dp_cp_group": group,
        }
        model = self.model.sharded_state_dict(metadata=metadata)
        frozen = {name for name, parameter in self.model.named_parameters() if not parameter.requires_grad}
        model = {name: one for name, one in model.items() if name not in frozen}
        optimizer = self.optimizer.sharded_state_dict(model, is_loading=loading, metadata=metadata)
        return {"model": model, "optimizer": optimizer}

    def _optimizers(self) -> list[Any]:
        one = self.optimizer
        return list(one.chained_optimizers) if isinstance(one, ChainedOptimizer) else [one]
