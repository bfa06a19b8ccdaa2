"""Videos or latents, and texts -> a diffusion model: which, from what weights, what it learns from, and how."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import msgspec
from msgspec import Meta

from hpc.data.units import Bytes
from hpc.models.dit_presets import ENCODERS, PATCH, Config, Preset, preset
from hpc.models.tokenizer_files import compression, files_of, is_stage
from hpc.train import estimate_diffusion
from hpc.train.checkpoint import Checkpoints
from hpc.train.estimate import Estimate, Place, refuse
from hpc.train.metrics import Trackers
from hpc.train.settings.data import Decode, Fit, Shape, Validation
from hpc.train.settings.optimizer import Cycle, Mean, Optimizer
from hpc.train.settings.tokenizer import unfit

Count = Annotated[int, Meta(ge=1)]
Precision = Literal["bf16", "fp8-current", "fp8-delayed", "fp8-blockwise", "fp32"]
Recompute = Literal["none", "matmuls", "attention", "blocks"]
FP8_TOKENS = 16
"""Rows of a matrix in FP8 are a multiple of this."""


class Mesh(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How ranks share a model: dp_replicate x dp_shard x cp of them."""

    dp_replicate: Count = 1
    """Groups that have all weights each. 2 or more: HSDP, e.g. one group a node, of fast links."""
    dp_shard: Count | None = None
    """Ranks of a group with different videos; weights, gradients and optimizer are spread over these (and over cp).
    null: all that are left."""
    cp: Count = 1
    """Ranks that share the frames of each video; it divides the heads and the latent frames."""

    def sharded(self, ranks: int) -> int:
        """Over how many ranks weights are spread. Raises ValueError."""
        fixed = self.dp_replicate * self.cp
        if ranks % fixed or (self.dp_shard and self.dp_shard * fixed != ranks):
            shard = self.dp_shard or "any"
            raise ValueError(f"mesh: dp_replicate {self.dp_replicate} x dp_shard {shard} x cp {self.cp} are not {ranks}"
                             " ranks (nodes x workers)")  # fmt: skip
        return ranks // self.dp_replicate


class Lora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Low-rank adapters, which alone are trained; they are added to the weights in the end."""

    rank: Count = 32
    alpha: Annotated[float, Meta(gt=0)] = 32.0
    """What an adapter gives is scaled by alpha / rank."""
    targets: tuple[str, ...] | None = None
    """Ends of the names of layers that get one; null: q_proj, k_proj, v_proj, output_proj, mlp.layer1, mlp.layer2."""


class Text(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the model is told of a video."""

    source: Literal["pickles", "encoder", "none"] = "pickles"
    """pickles: embeddings beside the videos, as t5_xxl/*.pickle or in tars. encoder: captions, encoded while it trains,
    as Predict2.5 has it. none: nothing; videos alone."""
    encoder: Annotated[str, Meta(pattern=r"^([/~].*|[\w.-]+/[\w.-]+(@[\w./-]+)?)$")] | None = None
    """A path, or owner/name@revision on the Hugging Face hub; null: the one that the model was trained with."""
    dropout: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """Share of samples without a text, zeros, so that guidance can steer away from it."""


class Objective(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of the model's objective is otherwise than published; hpc/models/diffusion.py explains each."""

    given_frames: tuple[Annotated[float, Meta(ge=0)], ...] | None = None
    """Shares of samples with 0, 1, 2, ... given latent frames, e.g. [0.5, 0.25, 0.25]."""
    shift: Annotated[float, Meta(gt=0)] | None = None
    high: Annotated[float, Meta(ge=0, le=1)] | None = None
    given_level: float | None = None
    loss_scale: Annotated[float, Meta(gt=0)] | None = None
    multiplier: Annotated[float, Meta(gt=0)] | None = None
    latent_scale: Annotated[float, Meta(gt=0)] | None = None

    OF: ClassVar[dict[str, tuple[str, ...]]] = {
        "edm": ("given_frames", "multiplier", "latent_scale"),
        "flow": ("given_frames", "shift", "high", "given_level", "loss_scale", "latent_scale"),
        "sigma-flow": ("given_frames", "high", "given_level", "loss_scale", "multiplier", "latent_scale"),
    }

    @property
    def given(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in found.items() if value is not None}


class Sizes(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of the model's sizes is otherwise than published; null: as it is."""

    channels: Count | None = None
    blocks: Count | None = None
    heads: Count | None = None
    adaln_rank: Count | None = None
    latent_channels: Count | None = None
    text_channels: Count | None = None
    text_projection: Count | None = None
    max_frames: Count | None = None
    max_height: Count | None = None
    max_width: Count | None = None

    @property
    def given(self) -> dict[str, Any]:
        found = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in found.items() if value is not None}


class Pictures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Videos that are made while it trains, by the weights and by their first mean; of held-out clips' texts and
    given frames."""

    every: Count = 5000
    """Steps."""
    clips: Annotated[int, Meta(ge=0)] = 1
    """0: none."""
    steps: Count = 20
    """Of the solver."""
    guidance: Annotated[float, Meta(ge=0)] | None = None
    """null: as published; without texts there is none."""


class AdamW(Optimizer, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """AdamW, with the schedule of the published models besides."""

    cycle: Cycle | None = None
    """Instead of warmup, decay and final: as Predict2 and 2.5 have it."""


class Latent(NamedTuple):
    """Sizes of a shape's latents."""

    frames: int
    height: int
    width: int

    @property
    def tokens(self) -> int:
        return self.frames * (self.height // PATCH) * (self.width // PATCH)


class TrainDiffusion(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A data set of videos, or of their latents -> a diffusion model, trained on all ranks together. It needs the stage
    that makes the data set; without `needs` the spec's inputs are it: tars, videos, or a folder with videos/, metas/
    and t5_xxl/."""

    KIND: ClassVar[str] = "train.diffusion"
    CODE: ClassVar[str] = "hpc.train.diffusion"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "gang")
    OBJECTS: ClassVar[tuple[str, ...]] = (".jsonl", ".html", ".json")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (".tar", ".mp4", ".mov", ".mkv", ".webm", ".avi")
    BESIDE: ClassVar[tuple[str, ...]] = (".txt", ".json", ".pickle")
    """Of files that are read beside the inputs, and not told as ignored."""
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = (
        "checkpoints", "folder", "readers", "micro_batch", "compile", "recompute", "spared", "mesh", "gpu_memory",
        "pictures", "kernels", "metrics",
    )  # fmt: skip
    SECONDS_PER_GIB: ClassVar[float] = 1.0

    model: str = "predict2.5-2b"
    """A preset of hpc/models/dit_presets.py, such as predict2.5-2b or predict1-7b-text2world, or the name of the
    published experiment."""
    sizes: Sizes = Sizes()
    objective: Objective = Objective()
    weights: str | None = None
    """Where to begin: `published`, the path of a model.pt, a .safetensors or a folder; null: random weights."""
    average: bool = False
    """Of a file that has both: begin with the running average (net_ema.)."""
    shapes: Annotated[tuple[Shape, ...], Meta(min_length=1)]
    """Frames, height and width that clips are brought to (latents: that they were made of), and the batch, over all
    ranks; a step takes one of the shapes."""
    steps: Count
    """Steps of training in all."""
    fit: Fit = "crop"
    """How a picture of another aspect ratio is brought to a shape: crop, pad or stretch."""
    tokenizer: str | None = None
    """What makes latents of videos, and videos of latents: owner/name@revision, a path, `package.module:make`, or the
    name of a stage train.tokenizer in `needs`. null: the model's own."""
    text: Text = Text()
    mesh: Mesh = Mesh()
    precision: Precision = "bf16"
    """bf16: weights are gathered and matrices multiplied in bfloat16; weights, gradients' sums, moments and means stay
    float32. fp8: multiplications of the blocks in FP8 besides, by transformer-engine, scaled by the largest number of
    each tensor (current), of blocks of it (blockwise), or of the steps before (delayed: its history is not in
    checkpoints). Without a GPU all is float32."""
    recompute: Recompute = "none"
    """What of a block is computed again on the way back: nothing; all but matmuls and attention; all but attention; all
    of it."""
    spared: dict[Recompute, Count] = {}
    """Blocks, the first ones, that compute less again than that, as far as memory reaches: {matmuls: 16}, {none: 8}."""
    micro_batch: Count | None = None
    """Samples that a rank computes at a time; gradients of the others are added up. Null: its whole share at once."""
    compile: bool = False
    """torch.compile of each block: a slow first step of each shape, then faster ones."""
    kernels: Literal["auto", "torch", "fused"] = "auto"
    """Of what stands between a block's matmuls and attention, and of the update. auto: fused where there is a GPU.
    torch: PyTorch's operators; weights, moments and means one by one. fused: an error where it cannot run."""
    lora: Lora | None = None
    optimizer: AdamW = AdamW(rate=2**-14.5, warmup=100, betas=(0.9, 0.999), weight_decay=1e-3)
    ema: Annotated[tuple[Mean, ...], Meta(min_length=1)] = (Mean(width=0.1),)
    """Means of weights, each with its own width or rate; the first is what is published as the average."""
    validation: Validation = Validation()
    """Of held-out clips the error at fixed noise levels with fixed noise, of the weights and of their first mean."""
    pictures: Pictures = Pictures()
    checkpoints: Checkpoints = Checkpoints()
    metrics: Trackers = ()
    """Where metrics, pictures and videos go beside metrics.jsonl: tensorboard, wandb; hpc/train/trackers.py says which
    folders, names and environment variables are meant."""
    seed: int = 1
    """Of the first weights, the order of clips, and all draws."""
    deterministic: bool = False
    """On GPUs take only algorithms that give the same bits each time, slower ones: without a GPU they always do."""
    decode: Decode = "cpu"
    """Who decodes clips: cpu, gpu (its video engines; frames then stay on the GPU), or auto, gpu where there is one.
    Held-out clips are decoded by CPUs, so that what is measured on them never depends on it. Latents are only read."""
    readers: Annotated[int, Meta(ge=0)] = 1
    """Processes of each rank that decode; 0: the rank itself, between steps. Unused where a GPU decodes."""
    gpu_memory: Bytes | None = None
    """Of one GPU, e.g. 80GiB: settings that are estimated to need more are an error, which says what would need less.
    null: that of the cluster preset's `gpu_type`, for `hpc check` alone."""
    folder: str | None = None
    """Where checkpoints are while it trains, a folder that all nodes see; null: `training` beside the output. Outputs
    on S3 need one."""

    @property
    def preset(self) -> Preset:
        """Raises ValueError."""
        try:
            return preset(self.model)
        except ValueError as error:
            raise ValueError(f"model: {error}") from error

    @property
    def config(self) -> Config:
        return dataclasses.replace(self.preset.config, **self.sizes.given)

    @property
    def video_tokenizer(self) -> str:
        """"" of models without one of their own, where none is given."""
        return self.tokenizer or self.preset.tokenizer

    @property
    def text_model(self) -> str:
        return self.text.encoder or ENCODERS[self.preset.text]

    @property
    def policies(self) -> list[Recompute]:
        """`recompute` of each block."""
        first = [policy for policy, blocks in self.spared.items() for _ in range(blocks)]
        return first + [self.recompute] * (self.config.blocks - len(first))

    def models(self) -> dict[str, tuple[str, ...]]:
        known = self.preset
        wanted: dict[str, tuple[str, ...]] = {}
        if self.text.source == "encoder":
            wanted[self.text_model] = ()
        if self.video_tokenizer and (files := files_of(self.video_tokenizer)):
            wanted[self.video_tokenizer] = files
        if self.weights == "published":
            wanted[known.repository] = (*wanted.get(known.repository, ()), known.file)
        return wanted

    def wired(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        return {"tokenizer": (str(self.tokenizer), ("train.tokenizer",))} if is_stage(self.tokenizer) else {}

    @property
    def compression(self) -> tuple[int, int] | None:
        """Frames, and pixels along an edge, that a latent stands for; None where only files can tell."""
        return compression(self.video_tokenizer)

    def latents(self, compression: tuple[int, int]) -> list[Latent]:
        """Of the shapes."""
        t, s = compression
        return [Latent(1 + (one.frames - 1) // t, one.height // s, one.width // s) for one in self.shapes]

    def __post_init__(self) -> None:
        known, c = self.preset, self.config
        if self.weights == "published" and not known.repository:
            raise ValueError(f"weights: {self.model} has none that were published: give a path, or null")
        if self.weights not in (None, "published") and not str(self.weights).startswith(("/", "~")):
            raise ValueError(f"weights: {self.weights!r}: `published`, or a path that begins with / or ~, since jobs "
                             "run elsewhere")  # fmt: skip
        if self.lora and self.weights is None:
            raise ValueError("lora: adapters to random weights teach nothing: give `weights`")
        if c.channels % c.heads or c.head_channels % 2 or c.head_channels < 12:
            raise ValueError(f"sizes: {c.channels} channels / {c.heads} heads = {c.channels / c.heads:g}: a head needs "
                             "an even number, 12 or more")  # fmt: skip
        if self.video_tokenizer:
            files_of(self.video_tokenizer)
        allowed = Objective.OF[known.objective]
        if wrong := [name for name in self.objective.given if name not in allowed]:
            raise ValueError(f"objective: {wrong[0]}: {self.model} is trained as {known.objective}, which has "
                             f"{', '.join(allowed)}")  # fmt: skip
        shares = self.objective.given_frames
        if shares is not None and not sum(shares):
            raise ValueError(f"objective: given_frames: {list(shares)}: the shares are all 0")
        if shares is not None and any(shares[1:]) and not c.condition_mask:
            raise ValueError(f"objective: given_frames: {list(shares)}: {self.model} takes none: make it [1]")
        if self.compression:
            unfit(self.shapes, *self.compression)
            for number, one in enumerate(self.latents(self.compression)):
                fits(c, one, number)
        policies = self.policies
        if len(policies) != c.blocks:
            raise ValueError(f"spared: {self.spared}: {len(policies)} blocks in all; there are {c.blocks}")
        if not self.optimizer.cycle and self.optimizer.warmup > self.steps:
            words = f"the rate would still be rising at the last of {self.steps} steps"
            raise ValueError(f"optimizer: warmup of {self.optimizer.warmup} steps: {words}")
        if self.folder is not None and not self.folder.startswith(("/", "~")):
            raise ValueError(f"folder: {self.folder!r} must begin with / or ~: a folder that all nodes see")

    def shared_by(self, ranks: int) -> None:
        """Raises ValueError where so many ranks cannot train together."""
        self.mesh.sharded(ranks)
        cp, data = self.mesh.cp, ranks // self.mesh.cp
        if self.config.heads % cp:
            raise ValueError(f"mesh: cp: {self.config.heads} heads / {cp} = {self.config.heads / cp:.4g}: ranks that "
                             "share a video have equally many heads each")  # fmt: skip
        for number, shape in enumerate(self.shapes):
            if shape.batch % data:
                near = [n for n in (shape.batch // data * data, -(-shape.batch // data) * data) if n]
                raise ValueError(f"shapes: {number}.batch: {shape.batch} samples / ({ranks} ranks / cp {cp} = {data})"
                                 f" = {shape.batch / data:.4g}: make it {' or '.join(map(str, near))}")  # fmt: skip
            share = shape.batch // data
            if self.micro_batch and share % self.micro_batch:
                raise ValueError(f"micro_batch: each of {data} data-parallel ranks has {shape.batch} / {data} = {share}"
                                 f" samples of shapes.{number}, no multiple of {self.micro_batch}")  # fmt: skip
            if self.compression:
                self.divided(number, self.latents(self.compression)[number])
        if self.gpu_memory is not None and self.compression:
            refuse(self, Place(ranks=ranks, latents=True), self.gpu_memory)

    def estimate(self, place: Place) -> Estimate:
        return estimate_diffusion.estimate(self, place)

    def alternatives(self, place: Place) -> Iterator[tuple[str, TrainDiffusion, Place]]:
        return estimate_diffusion.alternatives(self, place)

    def divided(self, number: int, one: Latent) -> None:
        """Raises ValueError where the frames of a shape cannot be shared, or FP8 cannot take its tokens."""
        cp = self.mesh.cp
        if one.frames % cp:
            raise ValueError(f"mesh: cp: {one.frames} latent frames of shapes.{number} / {cp} = {one.frames / cp:.4g}: "
                             "ranks that share a video have equally many frames each")  # fmt: skip
        rows = one.tokens // cp
        if self.precision.startswith("fp8") and rows % FP8_TOKENS:
            raise ValueError(f"precision: {self.precision}: {rows} tokens of a sample of shapes.{number} / {FP8_TOKENS}"
                             f" = {rows / FP8_TOKENS:.6g}: FP8 takes multiples of {FP8_TOKENS}")  # fmt: skip


def fits(c: Config, one: Latent, number: int) -> None:
    """Raises ValueError where a network cannot take a shape's latents."""
    if one.height % PATCH or one.width % PATCH or one.frames > c.max_frames or one.height > c.max_height or (
        one.width > c.max_width
    ):  # fmt: skip
        raise ValueError(f"shapes: {number}: latents of {one.frames} x {one.height} x {one.width}: height and width "
                         f"must be even, and at most {c.max_frames} x {c.max_height} x {c.max_width}")  # fmt: skip
