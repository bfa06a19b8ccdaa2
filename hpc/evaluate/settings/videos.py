"""Settings of evaluate.videos, and of the two parts that it is made of: figures of shards, and of all together."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from hpc.data import vlm
from hpc.data.vlm import Vlm, Words
from hpc.data.work import Part

SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
I3D = "flateon/FVD-I3D-torchscript"
FILES = {"i3d": "i3d_torchscript.pt", "inception": "inception-2015-12-05.pt"}
"""Of the networks that are TorchScript archives: the names that their files are published by."""
IMPORT_PATH = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9][\w.-]*$")]


def is_place(where: str) -> bool:
    return where.startswith(("/", "~", "s3://"))


class Network(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What makes features of videos, whose distributions are compared."""

    network: str
    """perceptual: what a video looks like, 312 numbers that need no weights (hpc/models/perceptual.py): no FVD, and
    good for trying things out. i3d: of FVD; inception: of FID; both as the TorchScript archives that published figures
    are made with. Or an image model or a VideoMAE that transformers loads: a folder, or owner/name@revision on the
    Hugging Face hub. Or `package.module:make`, your own function; hpc/models/backbones.py says what it returns."""
    weights: str | None = None
    """Of i3d and inception: the path of the archive, or owner/name@revision on the hub that has it under the name it is
    published by. null: of i3d a copy on the hub; inception has none."""
    per_video: Annotated[int, Meta(ge=1, le=4096)] | None = None
    """How many features a video gives: pictures, or windows of as many frames as the network takes, evenly spaced.
    null: 16 pictures, 1 window from its beginning."""

    def __post_init__(self) -> None:
        if self.network not in ("perceptual", *FILES) and not (
            re.fullmatch(IMPORT_PATH, self.network) or vlm.MODEL.fullmatch(self.network)
        ):
            raise ValueError(f"network: {self.network!r} is none of perceptual, {', '.join(FILES)}, no path that "
                             "begins with / or ~, no owner/name@revision and no package.module:make")  # fmt: skip
        if self.weights is not None and self.network not in FILES:
            raise ValueError(f"weights: {self.network} takes none; {' and '.join(FILES)} do")
        if self.network == "inception" and self.weights is None:
            raise ValueError(f"weights: inception has none of its own: give the path of {FILES['inception']}, as "
                             "NVIDIA publishes it with stylegan2-ada-pytorch")  # fmt: skip

    @property
    def archive(self) -> str:
        return self.weights or I3D

    def models(self) -> dict[str, tuple[str, ...]]:
        if self.network == "perceptual" or re.fullmatch(IMPORT_PATH, self.network):
            return {}
        return {self.archive: (FILES[self.network],)} if self.network in FILES else {self.network: ()}


class Sampson(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Do frames that follow one another, and views of the same time, show one rigid scene?"""

    pairs: Annotated[int, Meta(ge=1, le=1000)] = 8
    """Frames of each video that are compared with the next one, and with those of other views."""
    views: str | None = None
    """How names of videos say what they show, "{scene}.{view}" or "{view}/{scene}": those of one scene are of the same
    time, by several cameras. null: each is a scene of its own, and there are no errors across views."""
    overlap: tuple[tuple[str, str], ...] = ()
    """Views that see the same: [[front, left], [front, right]]. (): each two."""

    def __post_init__(self) -> None:
        if self.views is not None and not all(self.views.count(part) == 1 for part in ("{scene}", "{view}")):
            raise ValueError(f"views: {self.views!r}: it has {{scene}} and {{view}} in it, each once")
        if self.overlap and self.views is None:
            raise ValueError("overlap: without `views` each video is alone")


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model is asked about each generated video."""

    ask: Words
    answer: Literal["yes-no", "score"] = "yes-no"
    """yes-no: the figure is the share of yes. score: a number, of which the figure is the mean."""
    low: float = 1.0
    high: float = 5.0
    """Of scores."""

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"high: {self.high} is not above low, {self.low}")


class Judge(Vlm, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A vision-language model that looks at the generated videos."""

    questions: Annotated[dict[Name, Question], Meta(min_length=1)]
    fps: Annotated[float, Meta(gt=0, le=60)] = 2.0
    """Frames a second that it sees, never fewer than 4."""
    most: Annotated[int, Meta(ge=4, le=1024)] = 32
    """Frames of a video that it sees, at most."""


class Measure(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Figures of each video, and sums of features: part of evaluate.videos."""

    KIND: ClassVar[str] = "evaluate.videos-measure"
    CODE: ClassVar[str] = "hpc.evaluate.measure"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".npz", ".parquet")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (".tar", *SUFFIXES)
    VERSION: ClassVar[int] = 2
    NEUTRAL: ClassVar[tuple[str, ...]] = ("tasks", *(f"vlm.{one}" for one in vlm.NEUTRAL))
    SECONDS_PER_GIB: ClassVar[float] = 2000.0

    real: str | None = None
    """Real videos: a folder or prefix of videos and tars, one such file, or the name of a stage in `needs` that makes
    clips or a data set. null: none; then there are neither PSNR, SSIM nor Fréchet distances. What is in a folder is
    looked up once: give another name to what has changed."""
    pairs: str | None = None
    """A .jsonl with a line {"generated": name, "real": name or path} for each pair; paths count from its folder. null:
    a generated video and a real one with the same name (uuid; of files the path without its suffix) are a pair. Where
    no name is in both, they are two sets without pairs."""
    quality: bool = True
    """PSNR and SSIM of pairs, of frames that both have; real ones are brought to the generated size, cut at edges."""
    skip: Annotated[int, Meta(ge=0)] = 0
    """Frames at the beginning of each pair that PSNR and SSIM leave out: those that the model was given."""
    frechet: dict[Name, Network] = msgspec.field(default_factory=lambda: {"perceptual": Network(network="perceptual")})
    """Fréchet distances by name, e.g. {fvd: {network: i3d}}. Real ones without a partner count as well; where videos
    go on from held-out clips (`held_out` of generate.*) and find these by name, those alone that were held out, too."""
    sampson: Sampson | None = Sampson()
    vlm: Judge | None = None
    """null: no model is asked."""
    seed: int = 0
    """Of RANSAC and of intervals."""
    per_shard: Annotated[int, Meta(ge=1, le=10_000)] = 16
    """Videos that a shard has."""
    tasks: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    """Array tasks that share the shards. null: by the size of the spec's inputs, and no more than those make shards:
    say it where these are prompts, of which one small file makes thousands of videos."""

    def __post_init__(self) -> None:
        for name in ("real", "pairs"):
            given = getattr(self, name)
            if given is not None and not is_place(given) and (name == "pairs" or not re.fullmatch(r"[\w-]+", given)):
                stage = " or is the name of a stage in `needs`" if name == "real" else ""
                words = f"a place begins with /, ~ or s3://, since jobs run elsewhere{stage}"
                raise ValueError(f"{name}: {given!r}: {words}")
        if self.pairs is not None and not self.pairs.endswith(".jsonl"):
            raise ValueError(f"pairs: {self.pairs!r} is no .jsonl")

    def models(self) -> dict[str, tuple[str, ...]]:
        wanted: dict[str, tuple[str, ...]] = {}
        for one in self.frechet.values():
            wanted |= one.models()
        return wanted | (self.vlm.models() if self.vlm else {})

    def unmet(self, kinds: Sequence[str]) -> str:
        if self.real is None or is_place(self.real) or kinds:
            return ""
        return f"real: {self.real!r} is no place that begins with /, ~ or s3://, and `needs` names no stage"


class Merge(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Figures of all videos with their intervals, and the page: part of evaluate.videos."""

    KIND: ClassVar[str] = "evaluate.videos-merge"
    PAGES: ClassVar[tuple[str, ...]] = ("page.html",)
    CODE: ClassVar[str] = "hpc.evaluate.merge"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet", ".json")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 3
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 60.0

    networks: dict[str, str] = {}
    seed: int = 0
    resamples: Annotated[int, Meta(ge=10, le=100_000)] = 1000
    level: Annotated[float, Meta(gt=0, lt=1)] = 0.95
    shown: Annotated[int, Meta(ge=0, le=500)] = 24


class Videos(Measure, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Generated videos (of the stage in `needs`, or the spec's inputs), beside real ones, in figures: PSNR and SSIM of
    pairs, Fréchet distances, Sampson errors, answers of a model, each with an interval; and a page to look at."""

    KIND: ClassVar[str] = "evaluate.videos"

    resamples: Annotated[int, Meta(ge=10, le=100_000)] = 1000
    """Draws with replacement for each interval; of Fréchet distances 50 at most, of groups of shards: these have an
    interval where there are more features than dimensions."""
    level: Annotated[float, Meta(gt=0, lt=1)] = 0.95
    """How often an interval shall hold the figure."""
    shown: Annotated[int, Meta(ge=0, le=500)] = 24
    """Videos on the page: the worst, those in the middle, and the best."""

    def parts(self) -> dict[str, Part]:
        measure = Measure(**{name: getattr(self, name) for name in Measure.__struct_fields__})
        networks = {name: one.network for name, one in self.frechet.items()}
        merge = Merge(networks=networks, seed=self.seed, resamples=self.resamples, level=self.level, shown=self.shown)
        return {"measure": Part(measure, ("",)), "": Part(merge, ("measure",), gpus=False)}
