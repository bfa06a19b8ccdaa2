"""Frames of robots and what they did from one to the next, for models that are given a frame and an action:

    train/tokenized-frames.pt   int32 [frames, 1, height, width]: the ids of each frame by itself, of all trajectories
    train/actions.pt            float32 [frames, 7]: from a frame to the next; NaN for the last one of a trajectory
    train/state.pt              float32 [frames, n]: where the arm is
    train/gripper.pt            float32 [frames]
    test/ val/                  alike

NVIDIA/Cosmos 71f19b0: nemo/post_training/action_control/prepare_dataset.py, action_control_dataset.py. Its trainer
reads $HF_HOME/assets/cosmos/action-control/autoregressive/bridge/<split>, validates on "test", and takes frames of
480x640 alone: 30 x 40 ids.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hpc.data import storage, tensors
from hpc.data.tokens import BOV, PAD, padded

MULTIPLE = 128
"""Of the length of inputs."""
LATENT = (30, 40)
"""Height and width of a frame's ids, for NeMo's trainer."""
ACTION = 7
"""Displacement x y z, rotation roll pitch yaw, and whether the gripper closes."""
FRAMES, ACTIONS, STATE, GRIPPER = "tokenized-frames.pt", "actions.pt", "state.pt", "gripper.pt"
FILES = (FRAMES, ACTIONS, STATE, GRIPPER)


class Pair(NamedTuple):
    """A frame, the next one, and what was done between them."""

    current: npt.NDArray[np.int64]
    """[height * width]"""
    next: npt.NDArray[np.int64]
    action: npt.NDArray[np.float32]
    """[7]"""


def ended(actions: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """The actions of a trajectory, [frames - 1, 7] -> [frames, 7]: the last frame has none, which NaN stands for.
    Raises ValueError for others, and for numbers that are not finite."""
    found = np.asarray(actions, np.float32).reshape(-1, ACTION) if np.size(actions) == 0 else np.asarray(actions)
    if found.ndim != 2 or found.shape[1] != ACTION or not np.isfinite(found).all():
        raise ValueError(f"actions of {list(found.shape)}; [frames - 1, {ACTION}] of finite numbers are expected")
    return np.concatenate([found, np.full((1, ACTION), np.nan)]).astype(np.float32)


def sequence(pair: Pair) -> npt.NDArray[np.int64]:
    """BOV, a frame, the next one, PAD."""
    both = np.concatenate([pair.current, pair.next])
    return np.concatenate([[BOV], both, np.full(padded(both.size, MULTIPLE), PAD)]).astype(np.int64)


class Pairs:
    """All pairs of a split, in the order of its frames. Holds the actions; frames are read one pair at a time.

    Raises FileNotFoundError, and ValueError naming a file that holds something else.
    """

    def __init__(self, folder: str) -> None:
        self.uri = storage.join(folder, FRAMES)
        self.where = self._header(FRAMES, folder)
        with storage.open(storage.join(folder, ACTIONS)) as file:
            self.actions = tensors.read(file, self._header(ACTIONS, folder))
        frames, *latent = self.where.shape
        if self.where.dtype not in ("int32", "int64") or len(latent) != 3 or self.actions.shape != (frames, ACTION):
            raise ValueError(f"{folder}: {FRAMES} has {self.where}, {ACTIONS} {list(self.actions.shape)}; integers "
                             f"[frames, 1, height, width] and [frames, {ACTION}] are expected (hpc validate --as "
                             "action-tokens)")  # fmt: skip
        self.latent = (2, latent[1], latent[2])
        """Time, height and width of a pair's ids."""
        self.rows = np.flatnonzero(~np.isnan(self.actions).all(1))

    def _header(self, name: str, folder: str) -> tensors.Header:
        with storage.open(storage.join(folder, name)) as file:
            try:
                return tensors.header(file)
            except ValueError as error:
                raise ValueError(f"{storage.join(folder, name)}: {error}") from error

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, place: int) -> Pair:
        row = int(self.rows[place])
        data = storage.read(self.uri, *tensors.span(self.where, row, row + 2))
        both = tensors.numbers(self.where, data).astype(np.int64).reshape(2, -1)
        return Pair(both[0], both[1], self.actions[row])
