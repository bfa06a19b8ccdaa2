"""Weights of autoregressive models as NeMo keeps them: nemo/weights, a distributed checkpoint of megatron-core's.

    keys.fill(model, preset, Nemo(Path("nemo"), preset))      from the folder with weights/, under published names
    save(Path("nemo"), preset, published)                     weights/ of anything with published names
    Megatron(Path("training/checkpoints/iter_000000500"), preset)      of a checkpoint of our own trainer
    published("nvidia/Cosmos-1.0-Autoregressive-4B", preset)           of any of these, and of files

Parameters of all layers lie in one tensor, the layer first (megatron-core's homogeneous layers), whole, however many
ranks wrote them; NeMo's names begin with "module." (NVIDIA/Cosmos 71f19b0: autoregressive/nemo). context/, which NeMo
writes beside it, names classes of its own: it is copied where one is known, that of the weights themselves or of those
that training began with, and never made. It says which model it is, nothing of a training, so that any of the same
model will do. NeMo's inference builds the model of context/io.json (general.py there; NeMo 2.2.1: nemo/lightning/io/
mixin.py, `load` with the subpath "model"); its post-training builds its own, and reads weights/ alone.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from hpc.models.ar import keys
from hpc.models.ar.presets import Preset
from hpc.models.hub import is_path, located, shorten

PREFIX = "module."
OPTIMIZER = "optimizer."  # its state, in a training's checkpoint
LAYER = re.compile(r"(decoder\.layers\.)(\d+)\.")


def stacked(table: Mapping[str, keys.Rule], prefix: str = PREFIX) -> dict[str, list[str]]:
    """Name in a checkpoint -> the parameters of the table that it holds: one for each layer."""
    found: dict[str, list[str]] = {}
    for name in table:
        found.setdefault(prefix + LAYER.sub(r"\1", name), []).append(name)
    return found


class Megatron(Mapping[str, Tensor]):
    """The weights in a checkpoint of a training, by any layout of ranks, under their published names. All of them are
    read into memory at once, in the type that they have there. lora_rank: of adapters; they are all that it has then.
    Raises FileNotFoundError, and ValueError that names what is missing, left over or of another shape."""

    prefix = ""

    def __init__(self, folder: Path, preset: Preset, lora_rank: int = 0) -> None:
        if not (folder / ".metadata").is_file():
            raise FileNotFoundError(f"{folder}: there is no distributed checkpoint here: it has no .metadata")
        self.preset, self.table = preset, keys.trained(preset, lora_rank)
        reader = dcp.FileSystemReader(folder)
        there = {
            name: one for name, one in reader.read_metadata().state_dict_metadata.items()
            if hasattr(one, "size") and keys.NOT_WEIGHTS not in name and not name.startswith(OPTIMIZER)
        }  # fmt: skip
        wanted = stacked(self.table, self.prefix)
        shapes = {}
        for name, parts in wanted.items():
            rule = self.table[parts[0]]
            one = rule.joined([torch.empty(shape, device="meta") for shape in rule.shapes], preset.kv_heads).shape
            shapes[name] = (len(parts), *one) if LAYER.search(parts[0]) else tuple(one)
        wrong = {
            "missing": sorted(wanted.keys() - there.keys()),
            "left over": sorted(there.keys() - wanted.keys()),
            "of another shape": [f"{name} {tuple(there[name].size)} for {shape}" for name, shape in shapes.items()
                                 if name in there and tuple(there[name].size) != shape],
        }  # fmt: skip
        if any(wrong.values()):
            words = "; ".join(f"{why}: {shorten(names) or 'nothing'}" for why, names in wrong.items())
            raise ValueError(f"{folder}: these are not the weights of {preset.layers} layers: {words}")
        self.whole = {name: torch.empty(shapes[name], dtype=there[name].properties.dtype) for name in wanted}
        dcp.load(self.whole, storage_reader=reader, no_dist=True)
        self.places = {source: (name, place) for name, rule in self.table.items()
                       for place, source in enumerate(rule.sources)}  # fmt: skip

    def __getitem__(self, name: str) -> Tensor:
        parameter, place = self.places[name]
        layer = LAYER.search(parameter)
        whole = self.whole[self.prefix + LAYER.sub(r"\1", parameter)]
        whole = whole[int(layer[2])] if layer else whole
        return self.table[parameter].parted(whole, self.preset.kv_heads)[place]

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class Nemo(Megatron):
    """The weights of NeMo's checkpoint, a folder with weights/."""

    prefix = PREFIX

    def __init__(self, folder: Path, preset: Preset) -> None:
        super().__init__(folder / "weights", preset)


def published(where: str, preset: Preset) -> Mapping[str, Tensor]:
    """Weights under their published names. where: a model.pt or .safetensors, a folder with weights/, or owner/name on
    the hub. Of a model for actions they may lack its MLP. Raises FileNotFoundError and ValueError."""
    folder = Path(where).expanduser()
    if not (is_path(where) and (folder / "weights").is_dir()):
        [path] = located(where, "model.pt")
        return keys.Published(path)
    there = dcp.FileSystemReader(folder / "weights").read_metadata().state_dict_metadata
    acts = any(keys.ACTION.removeprefix("model") in name for name in there)
    return Nemo(folder, preset if acts else preset.without_actions)


MISSING = (
    "it has no context/: neither this model nor what its training began with had one. NeMo's post-training reads "
    "weights/ alone; for its inference copy the folder nemo/context of the published model of the same size beside "
    "weights/: huggingface-cli download nvidia/Cosmos-1.0-Autoregressive-4B --include 'nemo/context/*' (or -12B, "
    "-5B-Video2World, -13B-Video2World)"
)
"""To be told where `context_of` finds none."""


def context_of(*places: str) -> Path | None:
    """The first context/ beside weights/ in one of these folders; what is no path is passed over."""
    folders = [Path(one).expanduser() for one in places if is_path(one)]
    return next((one / "context" for one in folders if (one / "weights").is_dir() and (one / "context").is_dir()), None)


def save(folder: Path, preset: Preset, source: Mapping[str, Tensor], context: Path | None = None) -> None:
    """context: a folder to lie beside weights/. Of one process, where torch.distributed is initialized: megatron-core
    asks for it. Raises ValueError for other tensors than the preset's."""
    from megatron.core import dist_checkpointing

    table = keys.rules(preset)
    keys.account(table, source, f"the published weights of {preset.layers} layers")
    state = {}
    for name, parts in stacked(table).items():
        tensors = [table[p].joined([source[one] for one in table[p].sources], preset.kv_heads) for p in parts]
        whole = torch.stack(tensors) if LAYER.search(parts[0]) else tensors[0]
        state[name] = dist_checkpointing.ShardedTensor.from_rank_offsets(name, whole.contiguous())
    (folder / "weights").mkdir(parents=True)
    if context is not None:
        shutil.copytree(context, folder / "context")
    dist_checkpointing.save(state, str(folder / "weights"))
