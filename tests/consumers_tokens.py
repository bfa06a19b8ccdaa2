"""NVIDIA's own readers of token data sets on ours: what they take is what we wrote, and what `hpc validate` says. Run
by hand, like tests/consumers.py.

    git clone https://github.com/NVIDIA/Cosmos && git -C Cosmos checkout 71f19b0
    pip install '.[curate,test]' einops
    python tests/consumers_tokens.py Cosmos

Theirs: nemo/post_training/video2world_dataset.py, action_control/{action_control_dataset,action_control_ar_dataset,
prepare_dataset}.py, and modules/embedding.py. What they import of NeMo, torchvision and others is stood in for.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

import av
import numpy as np
import token_sets
import torch
from consumers import package, stand_in
from token_sets import Window

from hpc import validate
from hpc.data import layers
from hpc.data.tokens import action, video2world
from hpc.prepare import bridge
from hpc.prepare.settings import Action, Video2World
from hpc.train import token_data

BASE = "cosmos1.models.autoregressive.nemo"
POST = f"{BASE}.post_training"


def open_clone(clone: Path) -> None:
    sys.path.insert(0, str(clone))
    package(clone, "cosmos1", "cosmos1.models", "cosmos1.models.autoregressive", BASE, POST, f"{POST}.action_control",
            "cosmos1.models.autoregressive.modules", "cosmos1.models.autoregressive.tokenizer")  # fmt: skip
    for name in ("nemo", "nemo.collections", "nemo.collections.llm", "nemo.collections.llm.gpt",
                 "nemo.collections.llm.gpt.data", "nemo.core", "nemo.core.classes", "pooch", "typer"):  # fmt: skip
        stand_in(name)
    sys.modules["typer"].run = lambda function: None  # type: ignore[attr-defined]
    stand_in("nemo.collections.llm.gpt.data.mock", MockDataModule=object)
    stand_in("nemo.core.classes.dataset", Dataset=torch.utils.data.Dataset)
    stand_in(f"{BASE}.cosmos", CosmosConfig=object)
    stand_in("cosmos1.models.autoregressive.tokenizer.discrete_video", DiscreteVideoFSQJITTokenizer=None)
    stand_in("torchvision", io=types.SimpleNamespace(read_video=read_video))


def read_video(path: str, pts_unit: str = "pts") -> tuple[torch.Tensor, None, None]:
    """In place of torchvision's."""
    with av.open(path) as file:
        frames = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    return torch.from_numpy(np.stack(frames)), None, None


def config(latent: tuple[int, ...], multiple: int) -> Any:
    return types.SimpleNamespace(hidden_size=96, latent_shape=list(latent), pad_to_multiple_of=multiple)


def of_video2world(folder: Path) -> None:
    windows = [Window(f"clip-{i}", 0, "words", f"/films/{i}.mp4") for i in range(9)]
    stages = token_sets.ids(folder, [windows[:5], windows[5:]], video2world.LATENT)
    stages |= token_sets.embeddings(folder, [[(one.uuid, 0, 0, 255) for one in some] for some in
                                             (windows[:5], windows[5:])])  # fmt: skip
    place, _ = token_sets.form(folder, Video2World(), stages)
    theirs = importlib.import_module(f"{POST}.video2world_dataset")
    kept = total = 0
    for split, count in video2world.sizes(place).items():
        found = theirs.CosmosVideo2WorldDataset(place, config(video2world.LATENT, video2world.MULTIPLE), split)
        ours = token_data.Video2World(place, split)
        assert len(found) == len(ours) == count > 0
        for i in range(count):
            one, mine = found[i], ours[i]
            video, prompt = video2world.read(place, split, i)
            half = torch.from_numpy(video).to(torch.bfloat16).to(torch.int64)
            assert torch.equal(one["tokens"], half[:-1]) and torch.equal(one["labels"], half[1:])
            assert torch.equal(one["loss_mask"].bool(), mine.loss_mask) and one["abs_pos_embed"].shape[0] == 12_864
            assert torch.equal(one["context"], torch.from_numpy(prompt).to(torch.bfloat16))
            assert torch.equal(mine.tokens, torch.from_numpy(video[:-1]))
            kept, total = kept + int((one["tokens"] == mine.tokens)[1:-63].sum()), total + 12_800
    report = validate.validate(place, "video2world-tokens")
    assert not report.problems and report.entries == 9, report.problems
    print(f"video2world: 9 samples are taken; of {total:,} ids {kept:,} are still themselves behind its bfloat16, and "
          f"all of them in hpc.train ({kept / total:.1%})")  # fmt: skip


def of_action(clone: Path, folder: Path) -> None:
    """The 20 trajectories of the Bridge data set that the repository has."""
    root = clone / "cosmos1/models/autoregressive/assets/bridge"
    report = validate.validate(str(root), "bridge")
    assert not report.problems, report.problems[:3]
    theirs = importlib.import_module(f"{POST}.action_control.prepare_dataset")
    windows = []
    for film in sorted(root.rglob("rgb.mp4")):
        window = Window(f"uuid-{film.parent.name}", source=str(film))
        windows += token_sets.frames(window, len(read_video(str(film))[0]))
    stages = token_sets.ids(folder, [windows], (1, *action.LATENT), frames=1)
    place, _ = token_sets.form(folder, Action(), stages, "actions")
    data = importlib.import_module(f"{POST}.action_control.action_control_ar_dataset")
    pairs = 0
    for split in bridge.SPLITS:
        said = theirs.get_annotations(root, split, 10, 0)
        for name, key in ((action.ACTIONS, "action"), (action.STATE, "state"),
                          (action.GRIPPER, "continuous_gripper_state")):  # fmt: skip
            made = torch.load(f"{place}/{split}/{name}", weights_only=True)
            assert torch.equal(made.nan_to_num(9), said[key].nan_to_num(9)), (split, name)
        films = theirs.VideoDataset(root, split)
        assert sum(len(films[i]) for i in range(len(films))) == len(made), "a row for each frame"
        sizes = config((2, *action.LATENT), action.MULTIPLE)
        found = data.ActionControlARDataset(sizes, f"{place}/{split}", split=split)
        ours = token_data.Action(f"{place}/{split}")
        assert len(found) == len(ours) > 0
        order = found._base_ds.valid_actions_indices.tolist()
        for i, row in enumerate(order):
            one, mine = found[i], ours[int(np.searchsorted(ours.pairs.rows, row))]
            assert torch.equal(one["tokens"], mine.tokens) and one["tokens"].shape == (2_432,)
            assert torch.equal(one["loss_mask"].bool(), mine.loss_mask)
            assert torch.equal(one["labels"][mine.loss_mask], mine.labels[mine.loss_mask])
            assert torch.equal(one["action"], mine.action.to(torch.bfloat16))
        pairs += len(found)
    report = validate.validate(place, "action-tokens")
    assert not report.errors, report.problems
    names = [row["id"] for path in Path(place).glob("*.parquet") for row in layers.read_table(path).to_pylist()]
    print(f"action: {len(names)} trajectories, {pairs} pairs: theirs and ours are the same, ids, actions and masks")


def main(clone: Path) -> None:
    open_clone(clone)
    with tempfile.TemporaryDirectory() as folder:
        of_video2world(Path(folder))
        of_action(clone, Path(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
