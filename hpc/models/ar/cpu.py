"""megatron-core on a machine without a GPU: for laptops and tests, over gloo. Does nothing where there is CUDA.

    with cpu.stand_in():
        ...                              build models and train

megatron-core 0.16 asks for "cuda" in pipeline schedules, optimizers and checkpoints by name. Meanwhile such words mean
the CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode


class _CudaMeansCpu(TorchFunctionMode):
    """device="cuda", Tensor.cuda() and pin_memory of every torch function; and Tensor.type(), by whose words the
    distributed optimizer sorts parameters."""

    def __torch_function__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.cuda:
            return args[0]
        if function is torch.Tensor.type and len(args) == 1 and not kwargs:
            return function(*args).replace("torch.", "torch.cuda.", 1)
        if _is_cuda(kwargs.get("device")):
            kwargs["device"] = "cpu"
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        if function is torch.Tensor.to:
            args = tuple("cpu" if _is_cuda(one) else one for one in args)
        return function(*args, **kwargs)


def _is_cuda(device: Any) -> bool:
    return str(device).startswith("cuda") if isinstance(device, (str, torch.device)) else False


@contextlib.contextmanager
def stand_in() -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        if not torch.cuda.is_available():
            for patch in _patches():
                stack.enter_context(patch)
            stack.enter_context(_CudaMeansCpu())
        yield


def _patches() -> Iterator[Any]:
    of_cuda = {  # a function for each: torch.compile takes no object under two names
        "current_device": lambda: torch.device("cpu"),
        "synchronize": lambda *args, **kwargs: None,
        "empty_cache": lambda *args, **kwargs: None,
        "set_device": lambda *args, **kwargs: None,
        "manual_seed": lambda seed: torch.manual_seed(seed),
        "get_rng_state": lambda *args, **kwargs: torch.get_rng_state(),
        "set_rng_state": lambda state, *args, **kwargs: torch.set_rng_state(state),
    }
    yield from (mock.patch.object(torch.cuda, name, value) for name, value in of_cuda.items())

    from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
    from megatron.core.tensor_parallel import random

    for name in ("get", "set"):
        yield mock.patch.object(random, f"_{name}_cuda_rng_state", of_cuda[f"{name}_rng_state"])
    # torch's AdamW, which stands in for apex's and transformer-engine's FusedAdam, keeps the step of every parameter as
    # a tensor. It is set with the groups of parameters; loaders of states would copy what is not there, or a dummy's.
    theirs = DistributedOptimizer._set_main_param_and_optimizer_states

    def ours(self: Any, parameter: Any, tensors: dict[str, Any]) -> None:
        group, place = self.model_param_group_index_map[parameter]
        state = self.optimizer.state[self.optimizer.param_groups[group]["params"][place]]
        theirs(self, parameter, {**tensors, **{key: value for key, value in state.items() if key == "step"}})

    yield mock.patch.object(DistributedOptimizer, "_set_main_param_and_optimizer_states", ours)
