"""Clips and their prompts for the 5B and 13B models, which generate video from text and a first frame:

    train_video_0.pt    int32 [12,865]: BOV, the ids of a clip in raster order (time, height, width), 64 PAD
    train_prompt_0.pt   float16 [512, 1024]: the T5 embedding of its prompt, zeros behind its last token
    train_video_1.pt    ... and so on, and of the splits test and val
    metadata.json       {"train_samples": 4, "test_samples": 1, "val_samples": 1}

NVIDIA/Cosmos 71f19b0: nemo/post_training/video2world_prepare_dataset.py, video2world_dataset.py. With instructions for
prompts it is the data set of instruction control too: the model and its reader are the same (models/POST_TRAINING.md).
12,800 ids are 33 frames of 640x1024; others are as long as their latents are, padded to a multiple of 64.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from hpc.data import storage, tensors
from hpc.data.tokens import BOV, CALLED, PAD, VOCABULARY, padded

MULTIPLE = 64
"""Of the length of inputs."""
LATENT = (5, 40, 64)
"""Time, height and width of what the published models were trained on."""
TOKENS, WIDTH = 512, 1024
"""Of a prompt's embedding."""
METADATA = "metadata.json"


def names(split: str, index: int) -> tuple[str, str]:
    """Of a sample's files: its video, its prompt."""
    return f"{split}_video_{index}.pt", f"{split}_prompt_{index}.pt"


def sequence(ids: npt.ArrayLike) -> npt.NDArray[np.int32]:
    """BOV, ids, PAD: what a file holds. Raises ValueError for numbers that are no ids."""
    flat = np.asarray(ids).reshape(-1)
    if flat.dtype.kind not in "iu" or (flat.size and not 0 <= flat.min() <= flat.max() < VOCABULARY):
        what = f"{flat.dtype} from {flat.min()} to {flat.max()}" if flat.size else str(flat.dtype)
        raise ValueError(f"ids are whole numbers from 0 to {VOCABULARY - 1:,}; these are {what}")
    tail = np.full(padded(flat.size, MULTIPLE), PAD)
    return np.concatenate([[BOV], flat, tail]).astype(np.int32)


def embedding(found: npt.NDArray[Any] | None) -> npt.NDArray[np.float16]:
    """[tokens, 1024] -> float16 [512, 1024]; zeros for None, which stands for no words. Raises ValueError for one of
    another width, or longer."""
    out = np.zeros((TOKENS, WIDTH), np.float16)
    if found is not None:
        if found.ndim != 2 or found.shape[1] != WIDTH or not 0 < len(found) <= TOKENS:
            raise ValueError(f"an embedding of {list(found.shape)}; [1 to {TOKENS}, {WIDTH}] is expected: embed with "
                             "T5-XXL (google-t5/t5-11b), at most 512 tokens")  # fmt: skip
        out[: len(found)] = found
    return out


def video(ids: npt.ArrayLike) -> bytes:
    """A sample's first file."""
    return tensors.dumps(sequence(ids))


def prompt(found: npt.NDArray[Any] | None) -> bytes:
    """A sample's second file."""
    return tensors.dumps(embedding(found))


def metadata(counts: Mapping[str, int]) -> bytes:
    """Of the samples of each split."""
    return json.dumps({f"{split}_samples": counts.get(split, 0) for split in CALLED.values()}).encode()


def read(folder: str, split: str, index: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """A sample of a data set: what its files hold, int64 [length] and float32 [512, 1024]. Raises FileNotFoundError,
    and ValueError naming a file that holds something else."""
    found = []
    for name in names(split, index):
        try:
            found.append(tensors.loads(storage.read(storage.join(folder, name))))
        except ValueError as error:
            raise ValueError(f"{storage.join(folder, name)}: {error}") from error
    ids, words = found
    if ids.dtype.kind != "i" or ids.ndim != 1 or words.shape != (TOKENS, WIDTH):
        shown = f"{ids.dtype}{list(ids.shape)} and {words.dtype}{list(words.shape)}"
        wanted = f"integers [length] and floats [{TOKENS}, {WIDTH}] are expected"
        raise ValueError(f"{folder}: {' and '.join(names(split, index))} hold {shown}; {wanted}: hpc validate {folder} "
                         "--as video2world-tokens tells of all that is wrong")  # fmt: skip
    return ids.astype(np.int64), words.astype(np.float32)


def sizes(folder: str) -> dict[str, int]:
    """Samples of each split, by metadata.json."""
    told = json.loads(storage.read(storage.join(folder, METADATA)))
    return {split: int(told[f"{split}_samples"]) for split in CALLED.values()}
