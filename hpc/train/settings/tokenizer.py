"""Videos -> a video tokenizer: its sizes, what it learns from, and how."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import msgspec
from msgspec import Meta

from hpc.models.tokenizer_files import compression, files_of, is_path
from hpc.train.checkpoint import Checkpoints
from hpc.train.metrics import Trackers
from hpc.train.settings.data import Decode, Fit, Shape, Validation, undivided
from hpc.train.settings.optimizer import Mean, Optimizer

PATCH = 4
"""Of Cosmos' tokenizers: frames, and pixels along an edge, that wavelets make one of."""


class Family(NamedTuple):
    """What a family has where a spec says nothing: the sizes of what is published."""

    temporal: int
    spatial: int
    latent_channels: int
    channels: int
    multipliers: tuple[int, ...]
    levels: tuple[int, ...]


FAMILIES = {
    "cosmos-dv": Family(8, 16, 6, 128, (2, 4, 4), (8, 8, 8, 5, 5, 5)),
    "cosmos-cv": Family(8, 8, 16, 128, (2, 4, 4), ()),
    "wan": Family(4, 8, 16, 96, (1, 2, 4, 4), ()),
}


class Sizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A tokenizer that begins with random weights. What is left out is as published."""

    family: Literal["cosmos-dv", "cosmos-cv", "wan"]
    """cosmos-dv: ids (Cosmos-Tokenize1's DV). cosmos-cv: latents, without noise (its CV). wan: the VAE of Wan2.1,
    latents with a mean and a variance."""
    temporal: int | None = None
    """Frames a latent frame stands for; 8, of wan 4."""
    spatial: int | None = None
    """Pixels along an edge; 16 of cosmos-dv, else 8."""
    latent_channels: Annotated[int, Meta(ge=1)] | None = None
    """Of cosmos-cv and wan: 16."""
    levels: tuple[int, ...] | None = None
    """Of cosmos-dv: levels of each latent channel; their product is the vocabulary. [8, 8, 8, 5, 5, 5] makes 64,000,
    [8, 5, 5, 5] 1,000."""
    channels: Annotated[int, Meta(ge=1)] | None = None
    """Of the first layer: 128, of wan 96."""
    multipliers: tuple[int, ...] | None = None
    """Channels at each resolution are so many times `channels`: [2, 4, 4], of wan [1, 2, 4, 4]."""
    blocks: Annotated[int, Meta(ge=1)] = 2
    """Residual blocks at each resolution of the encoder; the decoder has one more."""

    def of(self, name: str) -> Any:
        """A size, as given or as published."""
        given = getattr(self, name)
        if given is None and name == "latent_channels" and self.levels is not None:
            return len(self.levels)
        return getattr(FAMILIES[self.family], name) if given is None else given

    def __post_init__(self) -> None:
        for name, only in (("levels", ("cosmos-dv",)), ("latent_channels", ("cosmos-cv", "wan"))):
            if getattr(self, name) is not None and self.family not in only:
                raise ValueError(f"{name}: {self.family} has none; of {' and '.join(only)}")
        if any(level < 2 for level in self.of("levels")):
            raise ValueError(f"levels: {list(self.of('levels'))}: each channel has 2 levels at least")
        scales = len(self.of("multipliers"))
        if not scales or any(one < 1 for one in self.of("multipliers")):
            raise ValueError("multipliers: whole numbers from 1 on, one for each resolution")
        for name in ("temporal", "spatial"):
            value = self.of(name)
            if self.family == "wan":
                most = 2 ** (scales - 1)
                fits, words = (1, most) if name == "temporal" else (most, most), f"{scales} multipliers halve"
            else:
                fits = PATCH, PATCH << scales - 1
                words = f"patches of {PATCH} and {scales} multipliers make"
            if value < 1 or value & (value - 1) or not fits[0] <= value <= fits[1]:
                span = " to ".join(dict.fromkeys(map(str, fits)))
                raise ValueError(f"{name}: {value} is no power of two from {span}: {words} so many")


class Perceptual(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Distance of what an image model sees in the frames: its hidden states, each pixel's scaled to length 1, squared
    differences. Like LPIPS (Zhang et al., 2018) without its learned weights, so not comparable with it."""

    model: str = "facebook/convnextv2-nano-22k-224"
    """An image model of transformers, with hidden states: a path, or owner/name@revision on the Hugging Face hub."""
    weight: Annotated[float, Meta(gt=0)] = 0.1
    frames: Annotated[int, Meta(ge=1)] = 2
    """Frames of each clip that are looked at, drawn anew in each step."""


class Loss(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is made small, beside the mean absolute difference of pixels (from -1 to 1), which has the weight 1."""

    kl: Annotated[float, Meta(ge=0)] = 1e-6
    """Of wan: weight of the divergence of the posterior from a normal distribution, nats for each latent number."""
    evenness: Annotated[float, Meta(ge=0)] = 0.0
    """Of cosmos-dv: weight of how far each channel's levels are from being used equally often within a clip, as a share
    of the entropy that they could have. FSQ seldom needs it."""
    perceptual: Perceptual | None = None


class TrainTokenizer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A data set of clips -> a video tokenizer, trained on all ranks together. It needs the stage that makes the data
    set; without `needs` the spec's inputs are the data set, tars or videos."""

    KIND: ClassVar[str] = "train.tokenizer"
    CODE: ClassVar[str] = "hpc.train.tokenizer"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "gang")
    OBJECTS: ClassVar[tuple[str, ...]] = (".jsonl", ".html", ".json")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (".tar", ".mp4", ".mov", ".mkv", ".webm", ".avi")
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = (
        "checkpoints", "metrics", "folder", "readers", "in_memory", "micro_batch", "compile",
    )  # fmt: skip
    SECONDS_PER_GIB: ClassVar[float] = 1.0

    tokenizer: str | Sizes
    """Sizes, to begin with random weights; or where to begin: the path of a tokenizer, or a published one, as
    owner/name@revision on the Hugging Face hub."""
    shapes: Annotated[tuple[Shape, ...], Meta(min_length=1)]
    """Frames, height and width that clips are brought to, and the batch; of several, each clip goes to the one that is
    nearest, and a step takes one of them."""
    steps: Annotated[int, Meta(ge=1)]
    """Steps of training in all."""
    fit: Fit = "crop"
    """How a picture of another aspect ratio is brought to a shape: crop, pad or stretch."""
    piece: tuple[Annotated[int, Meta(ge=1)], Annotated[int, Meta(ge=1)]] | None = None
    """Height and width of a piece of each clip's frames, which alone is trained on, at a place drawn for each sample:
    many small steps instead of few large ones. Held-out clips stay whole; null: all clips do."""
    loss: Loss = Loss()
    optimizer: Optimizer = Optimizer()
    ema: Mean = Mean(width=0.1)
    """The mean of weights, which is what is kept in the end."""
    validation: Validation = Validation()
    checkpoints: Checkpoints = Checkpoints()
    metrics: Trackers = ()
    """Where metrics, pictures and videos go beside metrics.jsonl: tensorboard, wandb; hpc/train/trackers.py says which
    folders, names and environment variables are meant."""
    seed: int = 1
    """Of the first weights, the order of clips, and all draws."""
    precision: Literal["bf16", "fp32"] = "bf16"
    """bf16: matmuls and convolutions in bfloat16 where a GPU does them (autocast); weights, moments, sums and losses
    are float32 either way. Without a GPU all is float32."""
    micro_batch: Annotated[int, Meta(ge=1)] | None = None
    """Samples that a rank computes at a time: a batch that does not fit into memory is made of several, whose gradients
    are added up. Null: its whole share at once."""
    compile: bool = False
    """torch.compile of encoder and decoder: a slow first step of each shape, then faster ones."""
    deterministic: bool = False
    """On GPUs take only algorithms that give the same bits each time, slower ones: without a GPU they always do. A run
    that goes on from a checkpoint is then equal to the last bit to one that was never stopped."""
    weights: Literal["float32", "bfloat16"] = "float32"
    """The type in which the tokenizer is kept in the end."""
    decode: Decode = "cpu"
    """Who decodes clips: cpu, gpu (its video engines; frames then stay on the GPU), or auto, gpu where there is one.
    Held-out clips are decoded by CPUs, so that what is measured on them never depends on it."""
    readers: Annotated[int, Meta(ge=0)] = 1
    """Processes of each rank that decode clips; 0: the rank itself, between steps. Unused where a GPU decodes."""
    in_memory: bool = False
    """For data sets of minutes: each clip is decoded once, when training starts, and every rank keeps all frames in
    memory, frames x height x width x 3 bytes; there are no readers then."""
    folder: str | None = None
    """Where checkpoints are while it trains, a folder that all nodes see; null: `training` beside the output. Outputs
    on S3 need one."""

    def models(self) -> dict[str, tuple[str, ...]]:
        found = {self.loss.perceptual.model: ()} if self.loss.perceptual else {}
        return found | ({self.tokenizer: files_of(self.tokenizer)} if isinstance(self.tokenizer, str) else {})

    @property
    def compression(self) -> tuple[int, int] | None:
        """Frames, and pixels along an edge, that a latent stands for; None where only files can tell."""
        if isinstance(self.tokenizer, Sizes):
            return self.tokenizer.of("temporal"), self.tokenizer.of("spatial")
        return compression(self.tokenizer)

    def __post_init__(self) -> None:
        if isinstance(self.tokenizer, str):
            try:
                files_of(self.tokenizer)
            except ValueError as error:
                raise ValueError(f"tokenizer: {error}") from error
        elif self.loss.evenness and self.tokenizer.family != "cosmos-dv":
            raise ValueError(f"loss: evenness is of cosmos-dv; {self.tokenizer.family} has no levels")
        if self.compression:
            unfit(self.shapes, *self.compression, self.piece)
        for number, shape in enumerate(self.shapes if self.piece else ()):
            if self.piece and (self.piece[0] > shape.height or self.piece[1] > shape.width):
                raise ValueError(f"piece: {list(self.piece)} is larger than the frames of shapes.{number}, "
                                 f"{[shape.height, shape.width]} (height, width)")  # fmt: skip
        if self.optimizer.warmup > self.steps:
            words = f"the rate would still be rising at the last of {self.steps} steps"
            raise ValueError(f"optimizer: warmup of {self.optimizer.warmup} steps: {words}")
        if self.in_memory and self.decode == "gpu":
            raise ValueError("decode: gpu: with `in_memory` each clip is decoded once, by CPUs: leave one of them out")
        if self.folder is not None and not is_path(self.folder):
            raise ValueError(f"folder: {self.folder!r} must begin with / or ~: a folder that all nodes see")

    def shared_by(self, ranks: int) -> None:
        """Raises ValueError where so many ranks cannot train together."""
        if words := undivided(self.shapes, ranks):
            raise ValueError(words)
        for number, shape in enumerate(self.shapes):
            share = shape.batch // ranks
            if self.micro_batch and share % self.micro_batch:
                raise ValueError(f"micro_batch: each of {ranks} ranks has {shape.batch} / {ranks} = {share} samples of "
                                 f"shapes.{number}, which are not a multiple of {self.micro_batch}")  # fmt: skip


def unfit(shapes: tuple[Shape, ...], temporal: int, spatial: int, piece: tuple[int, int] | None = None) -> None:
    """Raises ValueError naming a shape or a piece that a tokenizer with this compression cannot take, and what is
    near."""
    for number, shape in enumerate(shapes):
        if (shape.frames - 1) % temporal:
            down = 1 + (shape.frames - 1) // temporal * temporal
            raise ValueError(f"shapes: {number}.frames: {shape.frames} is not 1 + k x {temporal}: "
                             f"make it {down} or {down + temporal}")  # fmt: skip
    sides = [(f"shapes: {n}.{name}", side) for n, one in enumerate(shapes)
             for name, side in (("height", one.height), ("width", one.width))]  # fmt: skip
    for where, value in (*sides, *(("piece", side) for side in piece or ())):
        if value % spatial:
            near = sorted({max(1, math.floor(value / spatial)) * spatial, math.ceil(value / spatial) * spatial})
            raise ValueError(f"{where}: {value} / {spatial} = {value / spatial:.4g}: a latent stands for {spatial} "
                             f"pixels; make it {' or '.join(map(str, near))}")  # fmt: skip
