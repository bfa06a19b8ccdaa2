"""Are the models that a spec begins with there, and are they the ones that its presets mean? Rows for `hpc check`.

    rows = examine(spec, cluster)

Looked at are paths on this machine: weights, tokenizers, text encoders, and whatever else settings name in `models()`;
not what another stage of the spec makes, nor what the Hugging Face cache has (`hpc models pull`). No weights are read:
names and shapes of tensors alone (hpc.models.headers), whose numbers of layers and channels are compared.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hpc.batch.cluster import Cluster
from hpc.batch.container import image_of
from hpc.batch.doctor import Row
from hpc.batch.spec import Spec, Stage
from hpc.models import dit_presets, headers, hub, tokenizer_files
from hpc.models.ar import presets
from hpc.models.ar.presets import Preset
from hpc.models.dit_presets import Config
from hpc.models.headers import Shape
from hpc.models.tokenizer_files import is_stage

NAMES = 12
"""That are shown of a folder."""
AR_WEIGHTS = ("model.safetensors", "model.pt")
NO_WEIGHTS = re.compile(r"_extra_state$|(^|\.)pos_embedder\.(seq|dim_)|(^|\.)accum_\w+$|\.lora_[AB]\.")
ADAPTER = re.compile(r"\.lora_[AB]\.")
Q = re.compile(r"blocks\.0\.self_attn\.q_proj\.(base_layer\.)?weight$|block0\.blocks\.0\.block\.attn\.to_q\.0\.weight$|"
               r"transformer_blocks\.0\.attn1\.to_q\.weight$")  # fmt: skip
TEXT = {"t5": ("t5", "mt5", "umt5"), "qwen2.5-vl": ("qwen2_5_vl",)}
"""`text` of a preset -> types of models, as their config.json calls them."""


def examine(spec: Spec, cluster: Cluster) -> Iterator[Row]:
    """A row for each model that is a path."""
    for stage in spec.stages.values():
        image = image_of(stage, cluster)
        for key, where, look in _named(stage):
            if not where.startswith(("/", "~")):
                continue
            what, path = f"{stage.name}: {key}", Path(where).expanduser()
            if not path.exists():
                words = f"there is no {where}{nearby(path)}"
                yield (
                    Row(what, "unknown", f"{words}; is it in the image {image}?")
                    if image
                    else Row(what, "bad", words, "mend the path, or put the model there: jobs run with what is on disk")
                )
                continue
            try:
                wrong, do = "", ""
                told = look(path)
            except (OSError, ValueError, KeyError) as error:
                told, (wrong, _, do) = "", str(error).partition(" -> ")
            yield Row(what, "bad", f"{where}: {wrong}", do) if wrong else Row(what, "ok", f"{where}: {told}")


def nearby(path: Path) -> str:
    """What there is instead of it, in words."""
    name, folder = path.name, path.parent
    while not folder.is_dir() and folder != folder.parent:
        name, folder = folder.name, folder.parent
    there = sorted(one.name + "/" * one.is_dir() for one in folder.iterdir())
    near = difflib.get_close_matches(name, [one.rstrip("/") for one in there], 1)
    hint = f": did you mean {folder / near[0]}?" if near else ""
    return f"{hint}; {folder} has {hub.shorten(there[:NAMES]) or 'nothing in it'}" + (
        f" and {len(there) - NAMES:,} more" if len(there) > NAMES else ""
    )


def _named(stage: Stage) -> Iterator[tuple[str, str, Callable[[Path], str]]]:
    """(setting, model, look at it) of all that a stage begins with."""
    s, kind = stage.settings, stage.kind
    done = set()
    for key, where, look in _special(s, kind):
        if where and not is_stage(where):
            done.add(where)
            yield key, where, look
    for where, files in getattr(s, "models", dict)().items():
        if where not in done:
            yield "models", where, lambda path, files=files: _plain(path, files)  # type: ignore[misc]


def _special(s: Any, kind: str) -> Iterator[tuple[str, str | None, Callable[[Path], str]]]:
    if kind == "train.ar":
        yield "start", s.start, lambda path: of_ar(path, s.preset, s.model, fresh_actions=True)
        yield "pictures.tokenizer", s.pictures.tokenizer, lambda path: of_tokenizer(path, True)
    elif kind.startswith("generate.ar") and hasattr(s, "weights"):
        yield "weights", s.weights, lambda path: of_ar(path, s.preset, s.model)
        yield "tokenizer", s.tokenizer, lambda path: of_tokenizer(path, True)
        if s.words:
            yield "text_encoder", s.text_encoder, lambda path: of_text(path, "t5", s.preset.context_dim)
    elif kind.startswith("generate.diffusion") and hasattr(s, "weights"):
        config = s.preset.config
        yield "weights", s.weights, lambda path: of_dit(path, config, s.model, s.average, own=True)
        yield "tokenizer", s.tokenizer, lambda path: of_tokenizer(path, False, config.latent_channels)
        if s.text_model != "none":
            yield "text_encoder", s.text_model, lambda path: of_text(path, s.preset.text, config.text_input)
    elif kind == "train.diffusion":
        if s.weights != "published":
            yield "weights", s.weights, lambda path: of_dit(path, s.config, s.model, s.average)
        yield "tokenizer", s.tokenizer, lambda path: of_tokenizer(path, False, s.config.latent_channels)
        if s.text.source == "encoder":
            yield "text.encoder", s.text_model, lambda path: of_text(path, s.preset.text, s.config.text_input)
    elif kind.startswith(("prepare.tokens", "prepare.latents")):
        yield "tokenizer", getattr(s, "tokenizer", None), lambda path: of_tokenizer(path, s.DISCRETE)
        yield "text_encoder", getattr(s, "text_encoder", None), lambda path: of_text(path, "t5", None)
    elif kind == "train.tokenizer" and isinstance(s.tokenizer, str):
        yield "tokenizer", s.tokenizer, lambda path: of_tokenizer(path, None)


# Each raises ValueError, "what is wrong -> what to do", and returns what is there


def of_ar(path: Path, preset: Preset, name: str, fresh_actions: bool = False) -> str:
    """fresh_actions: the MLP of actions may lack."""
    if path.is_dir() and (path / "weights").is_dir():
        found = _read(path / "weights", headers.stored)
        sizes = _sizes_stacked(found)
    else:
        if path.is_dir():
            file = next((path / one for one in AR_WEIGHTS if (path / one).is_file()), None)
            if file is None:
                raise ValueError(f"neither {' nor '.join(AR_WEIGHTS)} nor weights/ is in it{nearby(path / 'model.pt')}")
            path = file
        found = _read(path, headers.shapes)
        sizes = _sizes(found)
    if sizes is None:
        raise ValueError(_stranger(found, "an autoregressive model"))
    total = headers.count({one: shape for one, shape in found.items() if not NO_WEIGHTS.search(one)})
    wanted = [preset.parameters, *([preset.without_actions.parameters] if fresh_actions else [])]
    layers, channels, width = sizes
    words = f"{layers} layers of {channels:,} channels" + (f", told by texts of {width:,}" if width else "")
    if total in wanted:
        return words
    ours = f"{preset.layers} layers of {preset.dim:,} channels" + (
        f", told by texts of {preset.context_dim:,}" if preset.context_dim else ""
    )
    same = [one for one, other in presets.PRESETS.items() if other.parameters == total]
    raise ValueError(_other(words, total, ours, preset.parameters, name, same))


def of_dit(path: Path, config: Config, name: str, average: bool, own: bool = False) -> str:
    """own: a folder of ours says its sizes itself."""
    files = [path]
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise ValueError(f"there are no weights in it, *.safetensors{nearby(path / 'model.safetensors')}")
        beside = path / "config.json"
        said = _json(beside) if beside.is_file() else {}
        if own and said and "_class_name" not in said:
            known = Config.__dataclass_fields__
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in said.items() if k in known}
            config = Config(**given)
    found: dict[str, Shape] = {}
    for file in files:
        found |= _read(file, headers.shapes)
    prefixes = {one.partition(".")[0] for one in found} & {"net", "net_ema"}
    which = "net_ema" if average else "net"
    if prefixes and which not in prefixes:
        raise ValueError(f"it has no {which}. weights, only {' '.join(sorted(prefixes))} -> "
                         f"{'leave `average` out' if average else '`average: true`'}")  # fmt: skip
    mine = {one: shape for one, shape in found.items() if not prefixes or one.startswith(f"{which}.")}
    query = next((shape for one, shape in mine.items() if Q.search(one)), None)
    if query is None:
        raise ValueError(_stranger(found, "a diffusion transformer"))
    head = {one: shape for one, shape in found.items() if re.match(r"(net\.|net_ema\.)?(logvar|log_variance)\.", one)}
    total = headers.count({one: shape for one, shape in mine.items() if not NO_WEIGHTS.search(one)
                           and one not in head})  # fmt: skip
    wanted = _headless(config)
    blocks = len({block[1] for one in mine if (block := re.search(r"blocks\.(?:block)?(\d+)\.", one))})
    words = f"{blocks} blocks of {query[-1]:,} channels"
    if total == wanted:
        return words
    same = [one for one, other in dit_presets.PRESETS.items() if _headless(other.config) == total]
    ours = f"{config.blocks} blocks of {config.channels:,} channels"
    raise ValueError(_other(words, total, ours, wanted, name, same))


def of_tokenizer(path: Path, discrete: bool | None, channels: int | None = None) -> str:
    """discrete: makes it ids, or latents of so many channels?"""
    files = tokenizer_files.found(str(path))
    kind = ""
    if files[0].name == "config.json":
        said = _json(files[0])
        folder = files[0].parent
        ours = "tokenizer" in said
        kind = str(said.get("tokenizer") or said["_class_name"])
        latents = said.get("latent_channels" if kind != "AutoencoderKLWan" else "z_dim", 16)
        weights = folder / ("model.safetensors" if ours else "diffusion_pytorch_model.safetensors")
        if not weights.is_file():
            raise ValueError(f"its config.json is there, and no {weights.name}{nearby(weights)}")
        files = [weights]
        if discrete is not None and (kind == "cosmos-dv") != discrete:
            makes, wanted = ("latents", "ids") if discrete else ("ids", "latents")
            raise ValueError(f"a {kind}, which makes {makes}; {wanted} are wanted -> another tokenizer")
        if not discrete and channels is not None and kind != "cosmos-dv" and latents != channels:
            raise ValueError(f"a {kind} of {latents} channels; the model takes {channels} -> another tokenizer")
    for file in files:
        if file.suffix == ".safetensors":
            _read(file, headers.shapes)
        elif not file.stat().st_size or file.open("rb").read(len(headers.POINTER)) == headers.POINTER:
            raise ValueError(f"{file.name}: it is empty, or a pointer of Git LFS, not the file: git lfs pull")
    return kind or " ".join(file.name for file in files)


def of_text(path: Path, text: str, channels: int | None) -> str:
    """text: `text` of a preset. channels: that the model takes."""
    if missing := hub.absent(path):
        raise ValueError(f"there is no {missing}{nearby(Path(missing.split()[0]))}")
    said = _json(path / "config.json")
    kind = str(said.get("model_type"))
    if kind not in TEXT[text]:
        raise ValueError(f"a model of the type {kind!r}; {' or '.join(TEXT[text])} is wanted -> another text encoder")
    if text == "t5":
        width = said.get("d_model")
    else:
        language = said.get("text_config") or said
        width = language.get("num_hidden_layers", 0) * language.get("hidden_size", 0)
    if channels is not None and width and width != channels:
        raise ValueError(f"it makes texts of {width:,} channels; the model takes {channels:,} -> another text encoder")
    return f"{kind}, texts of {width:,} channels" if width else kind


def _plain(path: Path, files: tuple[str, ...]) -> str:
    """Of any other model: what it is loaded of is there."""
    missing = " ".join(str(path / name) for name in files if not (path / name).is_file()) if (
        files and path.is_dir()) else "" if files or path.is_file() else hub.absent(path)  # fmt: skip
    if missing:
        raise ValueError(f"there is no {missing}{nearby(Path(missing.split()[0]))}")
    return "is there"


# Words and numbers


def _read(path: Path, how: Callable[[Path], dict[str, Shape]]) -> dict[str, Shape]:
    try:
        return how(path)
    except FileNotFoundError as error:
        raise ValueError(f"there is no {error.filename}{nearby(Path(error.filename))}") from error
    except ValueError as error:
        raise ValueError(f"{path.name} cannot be read: {error} -> fetch or write it again") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path.name}: an object is expected, not {str(found)[:80]}")
    return found


def _sizes(found: dict[str, Shape]) -> tuple[int, int, int] | None:
    """Layers, channels, and channels of texts of an autoregressive model's published names."""
    layers = {one[1] for name in found if (one := re.match(r"model\.layers\.(\d+)\.attention\.wq\.weight$", name))}
    embedding = found.get("model.tok_embeddings.weight")
    if not layers or embedding is None:
        return None
    return len(layers), embedding[-1], found.get("model.layers.0.cross_attention.wk.weight", (0,))[-1]


def _sizes_stacked(found: dict[str, Shape]) -> tuple[int, int, int] | None:
    """The same of NeMo's, whose first dimension is the layer."""
    attention = found.get("module.decoder.layers.self_attention.linear_qkv.weight")
    if attention is None:
        return None
    return attention[0], attention[-1], found.get("module.decoder.layers.cross_attention.linear_kv.weight", (0,))[-1]


def _headless(config: Config) -> int:
    """Parameters without the head of training alone."""
    return dit_presets.parameters(config) - (dit_presets.FOURIER if config.log_variance else 0)


def _stranger(found: dict[str, Shape], wanted: str) -> str:
    if found and all(ADAPTER.search(name) for name in found):
        return ("it has adapters alone, without the weights that they are added to -> a file of the whole model: `hpc "
                "convert` writes one with its adapters added")  # fmt: skip
    kind = (", but those of a diffusion transformer" if any(Q.search(name) for name in found) else
            ", but those of an autoregressive model" if _sizes(found) else "")  # fmt: skip
    return (f"these are not the weights of {wanted}{kind}: {hub.shorten(sorted(found)[:4])} ... -> give the weights of "
            f"{wanted}")  # fmt: skip


def _other(words: str, total: int, ours: str, wanted: int, name: str, same: list[str]) -> str:
    size = lambda number: f"{number / 1e9:.3g}B parameters" if number >= 1e8 else f"{number:,} parameters"
    has = f", as {', '.join(same[:4])}" if same else ""
    near = "; the numbers of parameters differ" if words == ours else ""
    do = f"write `model: {same[0]}`, or give the weights of {name}" if same else f"give the weights of {name}"
    return f"{words}, {size(total)}{has}; {name} has {ours}, {size(wanted)}{near} -> {do}"
