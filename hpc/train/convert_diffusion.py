"""convert.diffusion, and `hpc convert` of diffusion models: weights from one form into another, no name left over.

    convert(Path("training"), Path("model"))                  all that train.diffusion leaves, of a checkpoint
    convert(Path("training"), Path("model_ema_bf16.pt"))      one of its files
    convert(Path("model.pt"), Path("iter_000000500"), "predict2.5-2b")     a distributed checkpoint again

From: training/ or a checkpoint of it; another trainer's distributed checkpoint, iter_000000500/model/.metadata; a .pt
or .safetensors with published names, of either generation or diffusers'; a folder of ours (ours/).

To, by the name:
    *_reg_model.pt               the weights trained last
    *_ema_model.pt               their first mean, in its own type; *_ema_fp32.pt, *_ema_bf16.pt: in this one
    any other .pt                both, as net. and net_ema.
    .safetensors                 the same, by the same names
    iter_*                       a distributed checkpoint, with both in model/, where the published trainers begin
    any other folder             all files of hpc.models.dit_publish; of further means ours, in ema_2 and so on

Numbers stay as they are, to the last bit, but for the types that names say. Adapters are added to their layers.

<output>/<stage>@v1/model/       as train.diffusion leaves it in the end
<output>/<stage>@v1/000000.json  where it is, of which step, and how it was trained, as generate.diffusion asks

cosmos_predict2.5 50369b8: scripts/convert_distcp_to_pt.py; cosmos_predict2 661da47: scripts/convert_distcp.py
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from hpc.data import storage
from hpc.data.work import Made, Work
from hpc.models import dit_files, dit_presets, dit_publish, lora
from hpc.models.dit import DiT
from hpc.models.dit_files import NOT_WEIGHTS
from hpc.models.dit_presets import Config, Form
from hpc.models.hub import shorten
from hpc.train.convert import found, identity, number
from hpc.train.convert import freeze as freeze
from hpc.train.diffusion_model import adapted
from hpc.train.saver import prefix, save
from hpc.train.settings import ConvertDiffusion, TrainDiffusion

METADATA = ".metadata"
TRIES = 3
"""Of the newest checkpoint, while training removes old ones."""


class Opened(NamedTuple):
    """A model, wherever it was."""

    name: str
    config: Config
    form: Form
    step: int
    """0: nobody says."""
    weights: dict[str, Tensor]
    """By our names, on the CPU, all of them; so are the means."""
    means: list[dict[str, Tensor]]
    adapters: dict[str, Tensor]
    """Of the first mean, which are in the weights and means already."""


def start(settings: ConvertDiffusion) -> Callable[[Work], Made]:
    return functools.partial(process, settings)


def process(settings: ConvertDiffusion, work: Work) -> Made:
    checkpoint = found(Path(work.rows[0]), settings.step)
    one = opened(checkpoint)
    files = write(work.scratch / "model", one)
    tree = {storage.join(work.folder, str(path.relative_to(work.scratch))): path for path in files}
    told = {
        "stage": settings.KIND, "fingerprint": work.fingerprint, "step": number(checkpoint),
        "model": storage.join(work.folder, "model"), "parameters": dit_presets.parameters(one.config),
        "settings": {name: value for name, value in identity(checkpoint).items() if name != "data"},
    }  # fmt: skip
    out = work.scratch / f"{work.shard}.json"
    out.write_text(json.dumps(told, indent=1) + "\n")
    counts = {"tensors": float(len(one.weights)), "bytes_out": float(sum(path.stat().st_size for path in files))}
    return Made([out], counts, tree=tree)


def convert(source: Path, to: Path, model: str | None = None) -> dict[str, Any]:
    """Of `hpc convert` (hpc.train.convert)."""
    for _ in range(TRIES):
        try:
            path = found(source)
            one = opened(path, model)
            break
        except FileNotFoundError:
            if path == source or path.exists():
                raise
        except RuntimeError as error:  # of hpc.models.dit_files
            raise ValueError(str(error)) from error
    else:
        raise FileNotFoundError(f"{source}: each checkpoint was removed while it was read: let the training keep more "
                                "of them (checkpoints: {keep: 3})")  # fmt: skip
    files = write(to, one)
    return {"model": one.name, "parameters": dit_presets.parameters(one.config), "step": one.step,
            "tensors": len(one.weights), "files": [str(path) for path in files]}  # fmt: skip


# From


def opened(path: Path, model: str | None = None) -> Opened:
    """Raises FileNotFoundError, ValueError and RuntimeError where it is not there, nobody says which model it is, or it
    is another one."""
    if said := identity(path):
        if model and model != said["model"]:
            raise ValueError(f"{path} is of {said['model']}, not of {model}: leave `--model` out")
        return of_training(path, said)
    state = read(path)
    step = int(next((value for name, value in state.items() if name.endswith("accum_iteration")), 0))
    beside = path / "config.json"
    values = json.loads(beside.read_text()) if beside.is_file() else {}
    if model is None and "adaln_rank" not in values:
        raise ValueError(f"{path} does not say which model it is: say `--model` and one of "
                         f"{', '.join(dit_presets.PRESETS)}")  # fmt: skip
    config = dit_presets.preset(model).config if model else dit_files.configured(values, str(beside))
    head = any("logvar." in name or name.startswith("log_variance.") for name in state)
    config = dataclasses.replace(config, log_variance=head)
    if lora.adapters(state):
        state = lora.merged(state)
    names = dit_files.guess(state, str(path))
    form: Form = "predict1" if names == "predict1" or config.learned_positions else "predict2"
    there = [one for one in ("net", "net_ema") if any(name.startswith(f"{one}.") for name in state)]
    shape = skeleton(config)
    parts = [dict(dit_files.placed(shape, state, str(path), which, ("log_variance.",))[0])  # type: ignore[arg-type]
             for which in there or ["net"]]  # fmt: skip
    for part in parts[1:]:
        part |= {name: value for name, value in parts[0].items() if name not in part}
    return Opened(model or "", config, form, step, parts[0], parts[1:], {})


def of_training(checkpoint: Path, said: dict[str, Any]) -> Opened:
    """Of a checkpoint of train.diffusion. Raises as `opened`."""
    try:
        settings = msgspec.convert({name: value for name, value in said.items() if name != "data"}, TrainDiffusion)
    except msgspec.ValidationError as error:
        raise ValueError(f"{checkpoint} is of another version of hpc, or of no diffusion model: {error}") from error
    model, form = skeleton(settings.config, settings), settings.preset.form
    state, where = read(checkpoint), str(checkpoint / "model")
    parts: list[dict[str, Tensor]] = []
    for which in map(prefix, range(1 + len(settings.ema))):
        part = {name.removeprefix(f"{which}."): state.pop(name) for name in list(state) if name.startswith(f"{which}.")}
        if parts:  # of what is trained alone: the rest is as in the weights
            own = {dit_files.published(name, form): one.requires_grad for name, one in model.named_parameters()}
            trained = {name for name, given in own.items() if given}
            mine = {name for name in part if not any(re.search(sign, name) for sign in NOT_WEIGHTS.values())}
            if wrong := sorted(mine ^ trained):
                raise ValueError(f"{where}: {which}. has not the weights that are trained: {shorten(wrong)}")
            part = {dit_files.published(name, form): value for name, value in parts[0].items()} | part
        parts.append(dit_files.placed(model, part, f"{where}, {which}.")[0])
    if state:
        raise ValueError(f"{where}: left over: {shorten(sorted(state))}")
    adapters = {}
    if one := settings.lora:
        adapters = lora.adapters(parts[1])
        parts = [lora.merged(part, one.alpha / one.rank) for part in parts]
    return Opened(settings.model, settings.config, form, number(checkpoint), parts[0], parts[1:], adapters)


def skeleton(config: Config, settings: TrainDiffusion | None = None) -> DiT:
    """Names and sizes, without values."""
    with torch.device("meta"):
        model = DiT(config)
        if settings:
            adapted(model, settings)
    return model


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of any form, by the names they have there."""
    folder = next((one for one in (path / "model", path) if (one / METADATA).is_file()), None)
    if folder:
        return whole(folder)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"{path}: there are no weights: neither model/{METADATA} nor *.safetensors")
    state: dict[str, Tensor] = {}
    for file in files:
        state |= {name: value for name, value in dit_files.read(file).items() if isinstance(value, Tensor)}
    return state


def whole(folder: Path) -> dict[str, Tensor]:
    """The tensors of a distributed checkpoint, by however many ranks. Raises FileNotFoundError where it is removed
    meanwhile."""
    try:
        reader = dcp.FileSystemReader(folder)
        there = reader.read_metadata().state_dict_metadata
        state = {name: torch.empty(one.size, dtype=one.properties.dtype) for name, one in there.items()
                 if hasattr(one, "properties")}  # fmt: skip
        with warnings.catch_warnings():  # that it is one process
            warnings.simplefilter("ignore")
            dcp.load(state, storage_reader=reader, no_dist=True)
    except (OSError, CheckpointException) as error:
        if folder.exists():
            raise
        raise FileNotFoundError(f"{folder} was removed while it was read: take a newer one") from error
    return state


# To


def write(to: Path, one: Opened) -> list[Path]:
    """Returns the files, which are there whole or not. Raises ValueError for a name of no form."""
    mean = one.means[0] if one.means else None
    if to.suffix in (".pt", ".safetensors"):
        dit_publish.write(to, dit_publish.file(to.name, one.config, one.form, one.step, one.weights, mean))
        return [to]
    if to.suffix:
        raise ValueError(f"{to.name}: known are names that end in .pt or .safetensors, and folders")
    part = to.with_name(f".{to.name}.part")
    part.mkdir(parents=True)
    if to.name.startswith("iter_"):
        states = {"net": one.weights} | ({"net_ema": mean} if mean is not None else {})
        model = {f"{which}.{dit_files.published(name, one.form)}": value
                 for which, state in states.items() for name, value in state.items()}  # fmt: skip
        same = dit_publish.beside(one.config, one.form, one.step)
        model |= {name: value for name, value in same.items() if name.partition(".")[0] in states}
        save({"model": model}, part)
    else:
        dit_publish.publish(part, one.config, one.form, one.step, one.weights, mean)
        for number_, state in enumerate(one.means[1:], 2):
            dit_files.save(state, one.config, part / f"ema_{number_}")
        if one.adapters:
            dit_publish.write(part / "adapters.safetensors", one.adapters)
    part.rename(to)
    return sorted(path for path in to.rglob("*") if path.is_file())
