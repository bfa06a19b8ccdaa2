"""Where the files of published models are: a path, or the cache of the Hugging Face hub.

A model is named by a path, or by owner/name@revision. What the cache has is taken from there without asking the hub, so
compute nodes need no network once `hpc models pull` ran where there is one.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LOADED = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
"""What transformers loads of a model: configs, tokenizer, templates, weights."""
NOT_WEIGHTS = "position_ids"  # a buffer that older files carry


def shorten(words: list[str]) -> str:
    return " ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "")


def located(where: str, *names: str) -> list[Path]:
    """Files of a model: a path (to the file itself, or to the folder that has them), or owner/name@revision on the
    Hugging Face hub. What its cache has is taken from there without asking the hub. Raises FileNotFoundError."""
    if where.startswith(("/", "~")):
        path = Path(where).expanduser()
        paths = [path / name for name in names] if path.is_dir() else [path]
        if missing := [str(one) for one in paths if not one.is_file()]:
            raise FileNotFoundError(f"{where}: there is no {' '.join(missing)} on this machine")
        return paths
    import huggingface_hub

    repository, _, revision = where.partition("@")
    try:
        return [Path(huggingface_hub.hf_hub_download(repository, name, revision=revision)) for name in names]
    except (OSError, ValueError) as error:  # LocalEntryNotFoundError, and what the hub and the network answer with
        raise FileNotFoundError(
            f"{where} is not in the cache ({huggingface_hub.constants.HF_HUB_CACHE}) and could not be fetched "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). Fetch it where there is a network, with "
            f"HF_HOME on a file system that the compute nodes have and set to the same there:\n"
            f"  hf download {repository} {' '.join(names)} --revision {revision}\n"
            "or copy its folder and give the path instead of the name"
        ) from error


def folder(where: str, patterns: tuple[str, ...] = LOADED) -> Path:
    """The folder with all files of a model that have these names: a path, or owner/name@revision on the Hugging Face
    hub (without a revision: its main branch). What its cache has is taken from there without asking the hub. Raises
    FileNotFoundError."""
    if where.startswith(("/", "~")):
        path = Path(where).expanduser()
        if missing := absent(path):
            raise FileNotFoundError(f"{where}: there is no {missing} on this machine")
        return path
    import huggingface_hub

    repository, _, revision = where.partition("@")
    try:
        fetch = functools.partial(huggingface_hub.snapshot_download, repository, revision=revision or None)
        with contextlib.suppress(OSError, ValueError):  # LocalEntryNotFoundError: then it is fetched
            if not absent(cached := Path(fetch(local_files_only=True))):
                return cached
        if not (missing := absent(path := Path(fetch(allow_patterns=list(patterns))))):
            return path
        raise FileNotFoundError(f"there is no {missing}")
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{where} is not in the cache ({huggingface_hub.constants.HF_HUB_CACHE}) and could not be fetched "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}). Fetch it where there is a network, with "
            f"HF_HOME on a file system that the compute nodes have and set to the same there:\n"
            f"  hf download {repository}{f' --revision {revision}' if revision else ''}\n"
            "or copy its folder and give the path instead of the name"
        ) from error


def absent(path: Path) -> str:
    """What a folder lacks of a model that transformers can load: its config, its weights, or a file that an index of
    them names; "" for nothing."""
    if not (path / "config.json").is_file():
        return str(path / "config.json")
    indices = list(path.glob("*.safetensors.index.json"))
    if not indices and not [*path.glob("*.safetensors"), *path.glob("*.bin")]:
        return str(path / "model.safetensors")
    names = {name for index in indices for name in json.loads(index.read_bytes())["weight_map"].values()}
    return " ".join(str(path / name) for name in sorted(names) if not (path / name).is_file())


def accounted(folder: Path, found: Mapping[str, Any], other: tuple[str, ...] = ()) -> None:
    """Check what transformers' `output_loading_info` tells of a model. Raises RuntimeError unless every weight of the
    model was in the files, and nothing else but keys that begin with `other`, and old buffers."""
    unused = [key for key in found["unexpected_keys"] if not key.startswith(other) and not key.endswith(NOT_WEIGHTS)]
    wrong = {
        "missing": sorted(found["missing_keys"]),
        "left over": sorted(unused),
        "of another size": sorted(key for key, *_ in found["mismatched_keys"]),
    }
    if any(wrong.values()):
        words = "; ".join(f"{what}: {shorten(keys) or 'nothing'}" for what, keys in wrong.items())
        raise RuntimeError(f"{folder}: these are not the weights of the model in its config.json: {words}")
