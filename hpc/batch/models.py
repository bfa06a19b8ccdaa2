"""The models that specs name, brought into the Hugging Face cache before a job needs them: `hpc models pull`.

    for model in pull(wanted(["jobs/full.yaml", "google-t5/t5-11b"])): ...

Settings say which models they name by their method `models` (hpc/curate/settings/__init__.py).
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from hpc.batch.cluster import load_cluster
from hpc.batch.spec import load
from hpc.data import units

SPECS = (".yaml", ".yml")
CACHE = ("HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT")
"""Variables that say where the cache and the hub are; read when huggingface_hub is imported."""


class Model(msgspec.Struct):
    """What became of a model."""

    model: str
    """A path, or owner/name@revision."""
    folder: str = ""
    """Where its files are; "" if they are not here."""
    files: dict[str, int] = {}
    """Name -> bytes, of what the hub was asked for."""
    problem: str = ""
    """For a person: why it cannot be had."""

    def lines(self) -> list[str]:
        if self.problem:
            return [f"{self.model}: {self.problem}"]
        size = f"{len(self.files)} files, {units.size(sum(self.files.values()))}"
        if not self.folder:
            return [f"{self.model}: {size}, not in the cache",
                    *(f"  {units.size(many):>9}  {name}" for name, many in self.files.items())]  # fmt: skip
        return [f"{self.model}: {f'{size}, fetched into' if self.files else 'is here:'} {self.folder}"]


def wanted(names: Sequence[str], cluster: str | None = None) -> dict[str, tuple[str, ...]]:
    """Model -> its files, as settings name them, of specs (*.yaml) and of models by name. The environment that specs
    and their clusters set for jobs becomes ours. Raises SpecErrors, and ValueError for two specs with two caches."""
    found: dict[str, tuple[str, ...]] = {}
    caches: dict[tuple[str | None, ...], str] = {}
    for name in names:
        if not name.endswith(SPECS):
            found[name] = ()
            continue
        for spec in load(name, (), cluster, check_paths=False):
            env = load_cluster(spec.cluster, spec.path).env | spec.env
            caches.setdefault(tuple(env.get(key) for key in CACHE), name)
            os.environ.update(env)
            for stage in spec.stages.values():
                for model, files in getattr(stage.settings, "models", dict)().items():
                    both = found.get(model, files)
                    found[model] = tuple(dict.fromkeys((*both, *files))) if both and files else ()
    if len(caches) > 1:
        raise ValueError(f"{' and '.join(caches.values())} have different caches ({', '.join(CACHE)} in their env): "
                         "pull their models one spec at a time")  # fmt: skip
    return found


def pull(named: Mapping[str, tuple[str, ...]], fetch: bool = True) -> Iterator[Model]:
    """Each model, after it was brought into the cache; fetch=False: only looked up. One that cannot be had says so.
    Raises ValueError without huggingface_hub."""
    from hpc.models import hub

    if importlib.util.find_spec("huggingface_hub") is None:
        raise ValueError("pulling models needs huggingface_hub, which is not installed here: "
                         "pip install 'hpc[curate-models]', or run this where it is")  # fmt: skip
    for model, files in named.items():
        found = Model(model)
        try:
            if hub.is_path(model):
                found.folder = str(Path(model).expanduser())
                hub.located(model, *files) if files else hub.folder(model)
            elif folder := hub.cached(model, files):
                found.folder = str(folder)
            else:
                offer = hub.offered(model, files)
                found.files = offer.files
                found.folder = str(hub.fetch(model, offer)) if fetch else ""
        except (FileNotFoundError, ValueError) as error:
            found.problem = str(error)
        yield found
