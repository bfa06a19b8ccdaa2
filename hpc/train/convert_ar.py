"""convert.ar, and `hpc convert`: weights of autoregressive models from one form into another, each name accounted for.

    convert("training", "model.pt")         the newest checkpoint of a training, by any layout of ranks
    convert("training", "adapters.safetensors")     of a training of adapters: they alone
    convert("model.pt", "nemo", "ar-4b")    published weights, as NeMo reads them

    iter_000000500/  training/              checkpoints of train.ar, and their folder: from these only
    model.pt  *.safetensors                 published names in one file
    nemo/                                   a folder with weights/, a distributed checkpoint, and context/

Numbers stay as they are, to the last bit and in their type: there and back again is the same. What train.ar begins with
(`start`) is any of the last two lines. Checkpoints of adapters have no other weights: those are taken from where the
training took them, and what is written has the adapters added to them.

<output>/<stage>@v1/model.pt, config.json    what was asked for, and which model it is
<output>/<stage>@v1/000000.json              where it is, of which step
"""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from hpc.data import storage
from hpc.data.work import Made, Work
from hpc.models import lora
from hpc.models.ar import cpu, keys, nemo
from hpc.models.ar.presets import PRESETS, Preset, preset
from hpc.train.convert import found, identity, number
from hpc.train.convert import freeze as freeze
from hpc.train.settings.convert import ConvertAr

ADAPTERS = "adapters.safetensors"


def start(settings: ConvertAr) -> Callable[[Work], Made]:
    return functools.partial(process, settings)


def process(settings: ConvertAr, work: Work) -> Made:
    checkpoint = found(Path(work.rows[0]), settings.step)
    one = opened(checkpoint)
    tree = {}
    for form in settings.forms:
        for path in write(work.scratch / form, one):
            tree[storage.join(work.folder, str(path.relative_to(work.scratch)))] = path
    described = work.scratch / "config.json"
    described.write_text(describe(one))
    tree[storage.join(work.folder, "config.json")] = described
    told = {
        "stage": settings.KIND, "fingerprint": work.fingerprint, "step": number(checkpoint), "model": work.folder,
        "files": sorted(settings.forms), "parameters": one.preset.parameters,
    }  # fmt: skip
    out = work.scratch / f"{work.shard}.json"
    out.write_text(json.dumps(told, indent=1) + "\n")
    size = sum(path.stat().st_size for path in tree.values())
    counts = {"tensors": float(len(one.weights)), "bytes_out": float(size)}
    return Made([out], counts, tree=tree)


def convert(
    source: Path, to: Path, model: str | None = None, shape: tuple[int, int, int] | None = None
) -> dict[str, Any]:
    """Of `hpc convert` (hpc.train.convert)."""
    one = opened(found(source), model, shape)
    files = write(to, one)
    return {"model": one.name, "parameters": one.preset.parameters, "tensors": len(one.weights),
            "files": [str(path) for path in files]}  # fmt: skip


class Opened(NamedTuple):
    """A model, wherever it was."""

    name: str
    preset: Preset
    weights: Mapping[str, Tensor]
    """Under their published names."""
    adapters: Mapping[str, Tensor]
    """That are in them already; {} where there are none."""
    lora: dict[str, Any] | None
    """Rank and alpha of these."""
    context: Path | None
    """Of NeMo's, where there is one."""


def opened(path: Path, model: str | None = None, shape: tuple[int, int, int] | None = None) -> Opened:
    """Raises ValueError where it is not said which model it is, or it is another one; FileNotFoundError and ValueError
    where the weights that adapters were trained for are not to be had."""
    said = identity(path)
    if not said and (path.parent / "config.json").is_file():
        config = json.loads((path.parent / "config.json").read_text())
        said = {"model": config.get("preset"), "shape": config.get("shape")}
    name = model or said.get("model")
    if name is None:
        raise ValueError(f"{path} does not say which model it is: say `--model` and one of {', '.join(PRESETS)}")
    if model and said.get("model") not in (None, model):
        raise ValueError(f"{path} is of {said['model']}, not of {model}: leave `--model` out")
    shape_of = preset(name)
    if given := shape or said.get("shape"):
        shape_of = msgspec.structs.replace(shape_of, shape=tuple(given))
    source: Mapping[str, Tensor]
    adapters: Mapping[str, Tensor] = {}
    if said.get("lora"):
        size = said["lora"]
        adapters = nemo.Megatron(path, shape_of, size["rank"])
        source = lora.merged({**nemo.published(said["start"], shape_of), **adapters}, size["alpha"] / size["rank"])
    elif path.is_file():
        source = keys.Published(path)
    elif (path / "weights").is_dir():
        source = nemo.Nemo(path, shape_of)
    else:
        source = nemo.Megatron(path, shape_of)
    keys.account(keys.rules(shape_of), source, f"the weights of {name}, {path}")
    weights = {one: source[one] for one in source if keys.NOT_WEIGHTS not in one}
    # of a model for actions the start may have been one without
    began = said.get("start") if shape_of.action_dim is None else None
    context = nemo.context_of(str(path.resolve()), began or "")
    return Opened(name, shape_of, weights, adapters, said.get("lora"), context)


def write(to: Path, one: Opened) -> list[Path]:
    """By the name: .pt, .safetensors, or a folder as NeMo has it; adapters.safetensors: of adapters alone. Returns the
    files, which are there whole or not. Raises ValueError for another name, and for adapters where there are none."""
    part = to.with_name(f".{to.name}.part")
    source = one.weights
    if to.name == ADAPTERS:
        if not one.adapters:
            raise ValueError(f"{ADAPTERS}: this model was trained without `lora`: take another form")
        source = one.adapters
    if to.suffix == ".pt":
        torch.save({name: tensor.contiguous().clone() for name, tensor in source.items()}, part)
    elif to.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: tensor.contiguous().clone() for name, tensor in source.items()}, part)
    elif to.suffix:
        raise ValueError(f"{to.name}: known are names that end in .pt or .safetensors, and folders for NeMo")
    else:
        with alone():
            nemo.save(part, one.preset, source, one.context)
        if one.context is None:
            print(f"{to}: {nemo.MISSING}", file=sys.stderr)
    part.rename(to)
    return sorted(path for path in to.rglob("*") if path.is_file()) if to.is_dir() else [to]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """torch.distributed of one process, which megatron-core asks for where it writes a checkpoint."""
    begun = not dist.is_initialized()
    with cpu.stand_in():
        if begun:
            store = dist.TCPStore("127.0.0.1", 0, 1, True)
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield
        finally:
            if begun:
                dist.destroy_process_group()


def describe(one: Opened) -> str:
    """Which model it is, as JSON: what stands beside its weights."""
    said = {"preset": one.name, "shape": one.preset.shape, **msgspec.to_builtins(one.preset)}
    said |= {"lora": one.lora} if one.adapters else {}
    return json.dumps(said, indent=1) + "\n"
