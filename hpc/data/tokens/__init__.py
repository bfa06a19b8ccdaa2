"""Token data sets on disk, a file here for each form: what it is called, how a sample is written and how it is read.

Written by hpc.prepare, read by hpc.train and checked by hpc.validate. Ids are int32 or int64 wherever they are:
bfloat16 holds 1,274 of the 64,000 exactly, so that a data set that passed through it is noise.
"""

from __future__ import annotations

VOCABULARY = 64_000
"""Ids of the tokenizer DV8x16x16: 0 to 63,999. The models' output layer knows these alone."""
BOV, PAD = 64_000, 64_002
"""Begin of video; padding. Ids of the 5B and 13B models' input alone."""
CALLED = {"train": "train", "valid": "test", "test": "val"}
"""What NeMo's data sets of Cosmos call the parts of a split string such as 4,1,1: the trainer validates on "test", and
keeps "val" for the end (NVIDIA/Cosmos 71f19b0: video2world_prepare_dataset.py, video2world_dataset.py)."""


def padded(ids: int, multiple: int) -> int:
    """How many PAD follow a begin of video and so many ids: inputs and labels, a token apart, are then each a multiple
    long. padded(12_800, 64) -> 64, padded(2_400, 128) -> 32."""
    return multiple - ids % multiple
