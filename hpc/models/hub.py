"""Where the files of published models are: a path, or the cache of the Hugging Face hub.

A model is named by a path, or by owner/name@revision. What the cache has is taken from there without asking the hub, so
compute nodes need no network once `hpc models pull` ran where there is one.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SMALL = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")
"""What transformers loads of a model beside its weights: configs, templates, tokenizers, code of its own."""
WEIGHTS = (r"model(-\d+(-of-\d+)?)?\.safetensors", r"[^/]*\.safetensors", r"pytorch_model(-\d+-of-\d+)?\.bin")
"""The first kind that a model has is taken, and no other: repositories have the same weights in several forms."""
INDICES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
NOT_WEIGHTS = "position_ids"  # a buffer that older files carry


class Offer(NamedTuple):
    """Files of a model, as the hub has them."""

    repository: str
    revision: str | None
    files: dict[str, int]
    """Name -> bytes."""


def shorten(words: list[str]) -> str:
    return " ".join(words[:12]) + (f" and {len(words) - 12} more" if len(words) > 12 else "")


def is_path(where: str) -> bool:
    return where.startswith(("/", "~"))


def parted(where: str) -> tuple[str, str | None]:
    """owner/name@revision -> (repository, revision, if one is given). Raises ValueError."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", where):
        raise ValueError(f"{where!r} is no model: give owner/name@revision as on the Hugging Face hub, or a path that "
                         "begins with / or ~")  # fmt: skip
    repository, _, revision = where.partition("@")
    return repository, revision or None


def located(where: str, *names: str) -> list[Path]:
    """Files of a model: a path (to the file itself, or to the folder that has them), or owner/name@revision on the
    Hugging Face hub. What its cache has is taken from there without asking the hub. Raises FileNotFoundError."""
    if is_path(where):
        path = Path(where).expanduser()
        paths = [path / name for name in names] if path.is_dir() else [path]
        if missing := [str(one) for one in paths if not one.is_file()]:
            raise FileNotFoundError(f"{where}: there is no {' '.join(missing)} on this machine")
        return paths
    import huggingface_hub

    repository, revision = parted(where)
    try:
        return [Path(huggingface_hub.hf_hub_download(repository, name, revision=revision)) for name in names]
    except (OSError, ValueError) as error:  # LocalEntryNotFoundError, and what the hub and the network answer with
        raise not_to_be_had(where, error) from error


def folder(where: str) -> Path:
    """The folder with all that transformers loads of a model: a path, or owner/name@revision on the Hugging Face hub
    (without a revision: its main branch). What its cache has is taken from there without asking the hub. Raises
    FileNotFoundError."""
    if is_path(where):
        path = Path(where).expanduser()
        if missing := absent(path):
            raise FileNotFoundError(f"{where}: there is no {missing} on this machine")
        return path
    return cached(where) or fetch(where, offered(where))


def cached(where: str, files: tuple[str, ...] = ()) -> Path | None:
    """The folder in the cache that has these files of a model, if it has them all; (): all that transformers loads."""
    import huggingface_hub

    repository, revision = parted(where)
    names = files or ("config.json",)
    found = [huggingface_hub.try_to_load_from_cache(repository, name, revision=revision) for name in names]
    if not all(isinstance(one, str) for one in found):
        return None
    path = Path(str(found[0])).parents[names[0].count("/")]
    return path if files or not absent(path) else None


def offered(where: str, files: tuple[str, ...] = ()) -> Offer:
    """What the hub has of these files; (): of what transformers loads. Raises FileNotFoundError where the hub cannot be
    asked, or lacks one of them."""
    import huggingface_hub

    repository, revision = parted(where)
    try:
        tree = huggingface_hub.HfApi().list_repo_tree(repository, revision=revision, recursive=bool(files))
        sizes = {one.path: one.size for one in tree if isinstance(one, huggingface_hub.hf_api.RepoFile)}
        names = files or chosen(sizes)
        if missing := [name for name in names if name not in sizes]:
            raise FileNotFoundError(f"it has no {' '.join(missing)}; it has {shorten(sorted(sizes))}")
    except Exception as error:  # of the HTTP library too, which are no OSError
        raise not_to_be_had(where, error) from error
    return Offer(repository, revision, {name: sizes[name] for name in names})


def fetch(where: str, offer: Offer) -> Path:
    """Bring these files into the cache, those that it lacks. Returns their folder. Raises FileNotFoundError."""
    import huggingface_hub

    names = [glob.escape(name) for name in offer.files]
    try:
        path = Path(huggingface_hub.snapshot_download(offer.repository, revision=offer.revision, allow_patterns=names))
        if missing := [name for name in offer.files if not (path / name).is_file()]:
            raise FileNotFoundError(f"there is no {' '.join(missing)}")
    except Exception as error:  # of the HTTP library too, which are no OSError
        raise not_to_be_had(where, error) from error
    return path


def chosen(names: Iterable[str]) -> list[str]:
    """Of the files of a repository those that transformers loads. Raises ValueError if there are no weights."""
    top = sorted(name for name in names if "/" not in name)
    for kind in WEIGHTS:
        if weights := [name for name in top if re.fullmatch(kind, name)]:
            return [name for name in top if name.endswith(SMALL) or name in weights]
    raise ValueError(f"it has no weights that transformers loads (*.safetensors, pytorch_model*.bin): {shorten(top)}")


def not_to_be_had(where: str, error: Exception) -> FileNotFoundError:
    import huggingface_hub

    words = (str(error).strip() or "no words").splitlines()[0]
    return FileNotFoundError(
        f"{where} is not in the cache ({huggingface_hub.constants.HF_HUB_CACHE}) and could not be fetched "
        f"({type(error).__name__}: {words}). Fetch it where there is a network, with "
        f"HF_HOME on a file system that the compute nodes have and set to the same there:\n"
        f"  hpc models pull {where}\n"
        "or copy its folder and give the path instead of the name"
    )


def absent(path: Path) -> str:
    """What a folder lacks of a model that transformers can load: its config, its weights, a file that an index of them
    names, or code that its config names; "" for nothing."""
    if not (path / "config.json").is_file():
        return str(path / "config.json")
    names: set[str] = set()
    if index := next((path / name for name in INDICES if (path / name).is_file()), None):
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    elif not [*path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")]:
        names = {"model.safetensors"}
    code = json.loads((path / "config.json").read_bytes()).get("auto_map") or {}
    names |= {f"{one.partition('.')[0]}.py" for one in code.values() if isinstance(one, str) and "--" not in one}
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
