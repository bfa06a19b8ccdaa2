"""Ranks of trainings as processes of tests: what all of them import is imported once, and each is forked from there."""

from __future__ import annotations

import multiprocessing

import torch

# Not on GPUs: with transformer-engine megatron-core's import begins CUDA, which a forked process cannot go on with
METHOD = "spawn" if torch.cuda.is_available() else "forkserver"
FORKS = multiprocessing.get_context(METHOD)
FORKS.set_forkserver_preload(["hpc.train.ar", "hpc.train.diffusion", "hpc.train.tokenizer"])
