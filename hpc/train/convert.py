"""`hpc convert`, and what stages of the kinds convert.* share: weights of a model from one form into another, by
whatever of the suite trains it; hpc.train.convert_ar and hpc.train.convert_diffusion say which forms there are.

    convert("training", "model.pt")                            the newest checkpoint of a training
    convert("training/checkpoints/iter_000000500", "model.pt") this one, also while training goes on
    convert("model.pt", "nemo", "ar-4b")                       a file that does not say which model it is
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpc.data import storage
from hpc.models import dit_presets
from hpc.models.ar import presets
from hpc.train.checkpoint import COMPLETE, called, complete

FACTS = "training.json"
SHAPE = tuple[int, int, int]


def freeze(
    settings: Any, upstream: dict[str, list[tuple[str, dict[str, str]]]], superseded: set[tuple[str, str]]
) -> Iterator[list[Any]]:
    """One shard: the folder of the training. Raises ValueError where it is not there."""
    [[(_, objects)]] = upstream.values()
    told = json.loads(storage.read(objects[".json"]))
    folder = told["settings"]["folder"]
    if folder:
        yield [str(Path(folder).expanduser() / told["fingerprint"])]
    else:
        yield [storage.join(told["model"].rpartition("/")[0], "training")]


def convert(source: str, to: str, model: str | None = None, shape: SHAPE | None = None) -> dict[str, Any]:
    """source, to: paths. model: of files that do not say it themselves; shape: of its latents, of autoregressive
    models. Raises FileExistsError, FileNotFoundError and ValueError, which say what to do."""
    path, target = Path(source).expanduser(), Path(to).expanduser()
    if target.exists():
        raise FileExistsError(f"{target} is there already: give another name, or remove it")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target.parent}: there is no such folder to write {target.name} into: mkdir -p it")
    if shape is not None and (len(shape) != 3 or min(shape) < 1):
        raise ValueError(f"shape: {','.join(map(str, shape))}: latent frames, rows and columns are expected: 5,40,64")
    if model is not None and model not in presets.PRESETS:
        known = [*presets.PRESETS, *dit_presets.PRESETS, *dit_presets.EXPERIMENTS]
        if model not in known:
            near = difflib.get_close_matches(model, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ValueError(f"{model!r} is no model that is known here: {hint}there are "
                             f"{', '.join([*presets.PRESETS, *dit_presets.PRESETS])}")  # fmt: skip
    if diffuses(found(path), model):
        from hpc.train import convert_diffusion

        return convert_diffusion.convert(path, target, model)
    from hpc.train import convert_ar

    return convert_ar.convert(path, target, model, shape)


def diffuses(path: Path, model: str | None) -> bool:
    """Is this a diffusion model? Raises ValueError where nobody says which model it is."""
    said = identity(path)
    beside = (path if path.is_dir() else path.parent) / "config.json"
    config = json.loads(beside.read_text()) if beside.is_file() else {}
    name = model or said.get("model") or config.get("preset")
    if name is None and "adaln_rank" not in config:
        known = ", ".join([*presets.PRESETS, *dit_presets.PRESETS])
        raise ValueError(f"{path} does not say which model it is: say `--model` and one of {known}")
    return name not in presets.PRESETS


def found(path: Path, step: int | None = None) -> Path:
    """The checkpoint of a training, or the path itself. Raises FileNotFoundError."""
    checkpoints = next((one for one in (path / "checkpoints", path) if one.is_dir() and any(one.glob("iter_*"))), None)
    if checkpoints is None:
        if not path.exists():
            raise FileNotFoundError(f"there is no {path} on this machine")
        return path
    steps = complete(checkpoints)
    if not steps or (step is not None and step not in steps):
        have = ", ".join(map(str, steps)) or "none"
        raise FileNotFoundError(f"{checkpoints}: there is no complete checkpoint of step {step}; there are: {have}"
                                if step else f"{checkpoints}: there is no complete checkpoint")  # fmt: skip
    return checkpoints / called(step or steps[-1])


def identity(checkpoint: Path) -> dict[str, Any]:
    """The settings that decided on a training, of its checkpoint; {} of what is none. Raises ValueError for one that is
    not complete."""
    if not (checkpoint / FACTS).is_file():
        return {}
    if not (checkpoint / COMPLETE).exists():
        raise ValueError(f"{checkpoint} is no complete checkpoint: the job died while it was written")
    return dict(json.loads((checkpoint / FACTS).read_text())["identity"])


def number(checkpoint: Path) -> int:
    return int(json.loads((checkpoint / FACTS).read_text())["step"])
