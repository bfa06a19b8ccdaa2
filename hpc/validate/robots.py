"""The Bridge data set: films of robots, what they did, and what they were told.

NVIDIA/Cosmos 71f19b0: nemo/post_training/action_control/prepare_dataset.py. cosmos_predict1 4ed35fa and
cosmos_predict2.5 af689d4: Dataset_3D, in dataset_3D.py and action/datasets/dataset_local.py.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from hpc.data.tokens import action
from hpc.prepare import bridge
from hpc.validate import Files, Report, as_json, counts, expected, frames

KEYS = ("action", "state", "continuous_gripper_state")
LEAVE_OUT = "Write it again, or leave the trajectory out"


def films(files: Files, report: Report) -> None:
    """videos/<split>/<id>/rgb.mp4 and state.npy, annotation/<split>/<id>.json."""
    names = [name for name in files.named("videos/", f"/{bridge.VIDEO}") if bridge.placed(f"./{name}")]
    told = {name for name in files.named("annotation/", ".json") if name.count("/") == 2}
    if not names:
        report.add("videos/", "no-films", f"there is no videos/<{'|'.join(bridge.SPLITS)}>/<id>/{bridge.VIDEO}",
                   "Give the folder that has videos/ and annotation/ in it")  # fmt: skip
        return
    for split in bridge.SPLITS:
        if not files.named(f"videos/{split}/", f"/{bridge.VIDEO}"):
            report.add(f"videos/{split}/", "missing-split", "the trainer of actions wants train, val and test",
                       "Move some trajectories, with their annotations, to it", error=False)  # fmt: skip
    report.entries = len(names)
    for name, found in counts(files, report.pick("films", names)):
        place = bridge.placed(f"./{name}")
        assert place is not None, name
        length = frames(name, found, report)
        if length is not None:
            if length < 2:
                report.add(name, "too-short", f"{length} frame: there is no pair in it", LEAVE_OUT, error=False)
            _trajectory(files, report, place, length)
        if not place.id.isdecimal() or str(int(place.id)) != place.id:
            report.add(name, "id", f"{place.id!r}: NeMo's script wants whole numbers, without zeros in front",
                       "Rename the folder and the annotation; prepare.tokens takes any name", error=False)  # fmt: skip
    wanted = {_relative(bridge.placed(f"./{name}")) for name in names}
    for name in sorted(told - wanted):
        report.add(name, "orphan", "there is no film for it: Predict's readers list annotations, and fail to open it",
                   "Take it away")  # fmt: skip


def _relative(place: bridge.Place | None) -> str:
    return place.annotation.removeprefix("./") if place else ""


def _trajectory(files: Files, report: Report, place: bridge.Place, length: int) -> None:
    name = _relative(place)
    if name not in files.sizes:
        report.add(name, "missing", "a film without what was done in it", LEAVE_OUT)
        return
    said = as_json(name, files.read(name), report)
    if said is None:
        return
    if not isinstance(said, dict) or (lacking := [key for key in KEYS if key not in said]):
        what = f"it lacks {', '.join(lacking)}" if isinstance(said, dict) else "an object is expected"
        report.add(name, "annotation", what, LEAVE_OUT)
        return
    with expected(name, "annotation", report):
        _arrays(name, said, length, report)
    with expected(name, "text", report):
        if not bridge.text_of(said):
            report.add(name, "text", "the robot is told nothing (texts): instruction control passes over it",
                       "Write what it is told", error=False)  # fmt: skip
    with expected(name, "video-path", report):
        if (path := said["videos"][0]["video_path"]) not in files.sizes:
            report.add(name, "video-path", f"videos[0].video_path is {path}, which Predict opens; it is not there",
                       "Write the film's own path, from the folder of the data set")  # fmt: skip
    if not {"episode_id", "original_path"} & said.keys():
        report.add(name, "episode", "it has neither episode_id nor original_path: Predict1's reader drops it",
                   "Write an episode_id", error=False)  # fmt: skip
    _state(files, report, place, length)


def _arrays(name: str, said: dict[str, Any], length: int, report: Report) -> None:
    actions, state, gripper = (np.asarray(said[key], np.float64) for key in KEYS)
    actions = actions.reshape(-1, action.ACTION) if not actions.size else actions
    shapes = {"action": (actions, (length - 1, action.ACTION)), "state": (state, (length, max(6, state.shape[-1]))),
              "continuous_gripper_state": (gripper, (length,))}  # fmt: skip
    for key, (array, shape) in shapes.items():
        if array.shape != shape:
            report.add(name, key, f"{key} is {list(array.shape)}; a film of {length} frames has {list(shape)}: what "
                       "follows is one off, or fails", LEAVE_OUT)  # fmt: skip
        elif not np.isfinite(array).all():
            report.add(name, key, f"{key} has numbers that are not finite: the loss will not be either", LEAVE_OUT)


def _state(files: Files, report: Report, place: bridge.Place, length: int) -> None:
    name = place.state.removeprefix("./")
    if name not in files.sizes:
        report.add(name, "state-npy", "it is not there: NeMo's script and prepare.tokens open it", LEAVE_OUT)
        return
    try:
        found = np.load(io.BytesIO(files.read(name)), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        report.add(name, "state-npy", f"it cannot be read: {error}", LEAVE_OUT)
        return
    if found.ndim != 2 or len(found) != length or found.dtype.kind != "f" or not np.isfinite(found).all():
        what = f"{found.dtype}{list(found.shape)}; finite floats [{length}, n] are expected, a row for each frame"
        report.add(name, "state-npy", what, LEAVE_OUT)
