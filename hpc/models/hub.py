"""Where the files of published models are: a path, or the cache of the Hugging Face hub.

A model is named by a path, or by owner/name@revision. What the cache has is taken from there without asking the hub, so
compute nodes need no network once `hpc models pull` ran where there is one.
"""

from __future__ import annotations

from pathlib import Path


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
