"""Films of robots and what they did, as the Bridge data set has them:

    videos/train/5873/rgb.mp4      a trajectory, here of 16 frames
    videos/train/5873/state.npy    [16, n]: where the arm is, and more
    annotation/train/5873.json     {"texts": ["flip pot upright"], "action": [15 times 7], "state": [16 times 7],
                                    "continuous_gripper_state": [16], "videos": [{"video_path": ...}]}

As IRASim publishes it, and read by NVIDIA/Cosmos 71f19b0: nemo/post_training/action_control/prepare_dataset.py.
"""

from __future__ import annotations

import io
import json
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hpc.data import storage
from hpc.data.work import BadInput

SPLITS = ("train", "val", "test")
VIDEO = "rgb.mp4"


class Place(NamedTuple):
    """Where a trajectory lies."""

    root: str
    split: str
    id: str

    @property
    def video(self) -> str:
        return f"{self.root}/videos/{self.split}/{self.id}/{VIDEO}"

    @property
    def state(self) -> str:
        return f"{self.root}/videos/{self.split}/{self.id}/state.npy"

    @property
    def annotation(self) -> str:
        return f"{self.root}/annotation/{self.split}/{self.id}.json"


class Trajectory(NamedTuple):
    actions: npt.NDArray[np.float32]
    """[frames - 1, 7]: from each frame to the next."""
    state: npt.NDArray[np.float32]
    """[frames, n]"""
    gripper: npt.NDArray[np.float32]
    """[frames]"""
    text: str
    """What the robot is told."""


def placed(video: str) -> Place | None:
    """Of a film; None of one that lies elsewhere than a Bridge data set has it."""
    root, *rest = video.rsplit("/", 4)
    if len(rest) != 4 or rest[0] != "videos" or rest[1] not in SPLITS or rest[3] != VIDEO:
        return None
    return Place(root, rest[1], rest[2])


def read(place: Place, frames: int) -> Trajectory:
    """Raises BadInput where something is missing, or is not of as many frames as the film."""
    said = annotation(place)
    try:
        state = np.load(io.BytesIO(storage.read(place.state)), allow_pickle=False)
        actions = np.asarray(said["action"], np.float32).reshape(-1, 7)
        gripper = np.asarray(said["continuous_gripper_state"], np.float32)
        text = text_of(said)
    except FileNotFoundError:
        raise BadInput(place.video, "no-state", f"there is no {place.state}") from None
    except (LookupError, TypeError, ValueError) as error:
        raise BadInput(place.video, "annotation", f"{place.annotation}, or {place.state}: {error!r}") from error
    found = {"action": len(actions) + 1, "state.npy": len(state), "continuous_gripper_state": len(gripper)}
    if wrong := [f"{name} is of {count}" for name, count in found.items() if count != frames]:
        detail = f"{place.annotation}: {', '.join(wrong)} frames, the film has {frames}"
        raise BadInput(place.video, "annotation", detail)
    if state.ndim != 2 or gripper.ndim != 1 or not all(np.isfinite(one).all() for one in (actions, state, gripper)):
        shapes = f"state {list(state.shape)}, gripper {list(gripper.shape)}"
        raise BadInput(place.video, "annotation", f"{place.annotation}: {shapes}, or numbers that are not finite")
    return Trajectory(actions, state.astype(np.float32), gripper, text)


def annotation(place: Place) -> dict[str, Any]:
    """Raises BadInput."""
    try:
        said = json.loads(storage.read(place.annotation))
    except FileNotFoundError:
        raise BadInput(place.video, "no-annotation", f"there is no {place.annotation}") from None
    except ValueError as error:
        raise BadInput(place.video, "annotation", f"{place.annotation} is not JSON: {error}") from error
    if not isinstance(said, dict):
        raise BadInput(place.video, "annotation", f"{place.annotation} holds a {type(said).__name__}, not an object")
    return said


def text_of(said: dict[str, Any]) -> str:
    """What the robot is told; "" for nothing."""
    texts = said.get("texts") or [""]
    return str(texts[0]).strip()
