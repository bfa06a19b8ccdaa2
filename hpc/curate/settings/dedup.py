"""Settings of curate.dedup, and of the parts that it is made of."""

from __future__ import annotations

from typing import Annotated, ClassVar

import msgspec
from msgspec import Meta

from hpc.data.work import Part

Eps = Annotated[float, Meta(ge=1e-4, le=0.5)]


class _Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 5.0


class DedupFit(_Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Copies by digest; centroids of a sample of the embeddings."""

    KIND: ClassVar[str] = "curate.dedup-fit"
    CODE: ClassVar[str] = "hpc.curate.dedup.fit"
    OBJECTS: ClassVar[tuple[str, ...]] = (".copies.parquet", ".centroids.npy")

    n_clusters: Annotated[int, Meta(ge=1)] | None = None
    max_iter: Annotated[int, Meta(ge=1)] = 100
    seed: int = 42
    sample: Annotated[int, Meta(ge=1)] = 10_000_000
    horizon: Eps = 0.03
    """The largest eps that will be asked about."""


class DedupAssign(_Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Embeddings, sorted by cluster."""

    KIND: ClassVar[str] = "curate.dedup-assign"
    CODE: ClassVar[str] = "hpc.curate.dedup.assign"
    OBJECTS: ClassVar[tuple[str, ...]] = (".vectors.f32", ".rows.parquet")

    horizon: Eps = 0.03


class DedupPrune(_Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Each row's nearest one among those before it."""

    KIND: ClassVar[str] = "curate.dedup-prune"
    CODE: ClassVar[str] = "hpc.curate.dedup.prune"
    OBJECTS: ClassVar[tuple[str, ...]] = (".guests.parquet", ".scores.parquet")

    horizon: Eps = 0.03


class DedupMerge(_Part, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Decisions, tables, summary, pairs."""

    KIND: ClassVar[str] = "curate.dedup-merge"
    CODE: ClassVar[str] = "hpc.curate.dedup.merge"
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)

    eps: Eps = 0.01
    sweep: tuple[Eps, ...] = ()
    pairs: int = 200


class Dedup(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Finds duplicates: copies by the digests of their coded pictures, where `needs` names the clips stage, and near
    ones by cosine, where it names one that makes embeddings. Of duplicates one stays."""

    KIND: ClassVar[str] = "curate.dedup"

    eps: Eps = 0.01
    """A clip goes if the cosine of its embedding with that of another, which stays or went before, is 1 - eps or more.
    Cosmos-Curate has 0.01, for Cosmos-Embed1. With `perceptual`, 0.07 finds cropped, faster and mirrored copies too."""
    sweep: tuple[Eps, ...] = (0.001, 0.003, 0.01, 0.03)
    """Further values, each with its row in the summary, and pairs on the page. The largest of all decides how far
    clusters look over their borders: what it costs grows with it."""
    n_clusters: Annotated[int, Meta(ge=1)] | None = None
    """null: the square root of the number of clips, halved while a clip would be a guest in more than 8 clusters. A
    clip is compared with the n/k others of its cluster and with k centroids, which together is least for some k near
    the root."""
    max_iter: Annotated[int, Meta(ge=1)] = 100
    """Rounds of k-means, at most."""
    sample: Annotated[int, Meta(ge=1)] = 10_000_000
    """Clips whose vectors are read for k-means, at most: of more, those of some shards, which chance chooses. Of these
    256 for each cluster are looked at, and 2 GiB at most. All vectors are compared, whatever this is."""
    seed: int = 42
    pairs: Annotated[int, Meta(ge=0, le=5000)] = 200
    """How many pairs the page shows."""

    def parts(self) -> dict[str, Part]:
        horizon = max(self.eps, *self.sweep) if self.sweep else self.eps
        fit = DedupFit(n_clusters=self.n_clusters, max_iter=self.max_iter, seed=self.seed, sample=self.sample,
                       horizon=horizon)  # fmt: skip
        merge = DedupMerge(eps=self.eps, sweep=self.sweep, pairs=self.pairs)
        return {
            "fit": Part(fit, ("",)),
            "assign": Part(DedupAssign(horizon=horizon), ("", "fit")),
            "prune": Part(DedupPrune(horizon=horizon), ("assign",)),
            "": Part(merge, ("", "fit", "assign", "prune"), gpus=False),
        }
