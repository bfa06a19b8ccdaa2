"""Tokens of videos -> an autoregressive model: which one, how it lies over the ranks, what it computes in."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

import msgspec
from msgspec import Meta

from hpc.data.units import Bytes
from hpc.models.ar.presets import PRESETS, Preset
from hpc.models.tokenizer_files import compression, files_of, is_stage
from hpc.train import estimate_ar
from hpc.train.checkpoint import Checkpoints
from hpc.train.estimate import Estimate, Place, refuse
from hpc.train.metrics import Trackers
from hpc.train.settings.optimizer import Optimizer

Model = Literal[
    "ar-4b", "ar-12b", "ar-5b-video2world", "ar-13b-video2world", "ar-5b-action", "ar-13b-action",
    "ar-tiny", "ar-tiny-video2world", "ar-tiny-action",
]  # fmt: skip
Precision = Literal["fp32", "bf16", "fp8-delayed", "fp8-current", "fp8-blockwise"]
Recompute = Literal["none", "selective", "full"]
Kernels = Literal["auto", "torch", "fused"]
Count = Annotated[int, Meta(ge=1)]
EIGHT = 8
"""Tokens: transformer-engine's layers take whole multiples of so many in FP8 (2.11, utils.assert_dim_for_fp8_exec)."""


class Layout(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Over how many ranks each thing is split; what is left of the ranks are data-parallel, each with samples of its
    own and a part of the optimizer."""

    tensor: Count = 1
    """Heads, the feed-forward's width and the vocabulary. Ranks of one node."""
    sequence: bool = True
    """With `tensor`: norms and sums between are split by tokens, which saves memory and costs nothing."""
    pipeline: Count = 1
    """Layers, as stages one after another."""
    context: Count = 1
    """Tokens of each sequence."""

    @property
    def ranks(self) -> int:
        """That together have the model once."""
        return self.tensor * self.pipeline * self.context

    def problems(self, model: Preset, precision: Precision, micro_batch: int) -> list[str]:
        """Why a model cannot lie so, with the arithmetic."""
        found = []
        for what, count in (("heads of keys", model.kv_heads), ("heads", model.heads), ("columns of the feed-forward",
                            model.ffn), ("ids", model.vocab), ("classes", model.classes)):  # fmt: skip
            if count % self.tensor:
                found.append(_uneven("tensor", count, what, self.tensor))
        if model.layers % self.pipeline:
            found.append(_uneven("pipeline", model.layers, "layers", self.pipeline))
        elif self.pipeline > 1 and model.action_dim is not None:
            found.append(f"pipeline: {self.pipeline} stages: all layers attend to what one MLP makes of an action, and "
                         "one stage must have all of them; take `tensor`")  # fmt: skip
        if self.context > 1 and model.length % (2 * self.context):
            found.append(f"context: {model.length:,} tokens are cut into 2 x {self.context} pieces of "
                         f"{model.length / 2 / self.context:g}: whole numbers are needed")  # fmt: skip
        elif self.sequence and self.tensor > 1 and model.length // self.context % self.tensor:
            found.append(_uneven("tensor", model.length // self.context, "tokens", self.tensor)
                         + ", or say `sequence: false`")  # fmt: skip
        apart = self.tensor if self.sequence else 1
        each = model.length // self.context // apart
        if precision.startswith("fp8") and micro_batch * each % EIGHT:
            found.append(f"{precision} takes tokens by {EIGHT}, and a rank has micro_batch {micro_batch} x "
                         f"{model.length:,} / context {self.context} / tensor {apart} = {micro_batch * each:,}: make "
                         f"`micro_batch` {EIGHT // math.gcd(each, EIGHT)}"
                         + ", or say `sequence: false`" * (apart > 1))  # fmt: skip
        return found


def forms(model: Preset) -> tuple[str, ...]:
    """Of prepare.tokens, that a model is trained on."""
    if model.action_dim is not None:
        return ("action",)
    return ("megatron",) if model.context_dim is None else ("video2world", "instruction")


def unlike(model: Preset, found: tuple[int, ...]) -> str:
    """Of tokens in another shape than the model's."""
    return (f"shape: clips of these tokens are {list(found)} (latent frames, rows, columns), the model's are "
            f"{list(model.shape)}: write `shape: {list(found)}`, or make other tokens")  # fmt: skip


def _uneven(field: str, count: int, what: str, ranks: int) -> str:
    divisors = [n for n in range(1, min(count, 64) + 1) if count % n == 0]
    near = sorted(sorted(divisors, key=lambda n: (abs(n - ranks), n))[:2])
    return (f"{field}: {count:,} {what} / {ranks} = {count / ranks:.6g}: ranks must have equal parts; "
            f"{' or '.join(map(str, near))} would do")  # fmt: skip


class Lora(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Low-rank adapters to all linear layers, which alone are trained; they are added to the weights in the end."""

    rank: Count = 32
    alpha: Annotated[float, Meta(gt=0)] = 32.0
    """What an adapter gives is scaled by alpha / rank."""


class HeldOut(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is measured on clips that training never sees: those that the tokens' `split` keeps for validation."""

    every: Count = 500
    """Steps from one time to the next; the last step is measured, too."""
    clips: Annotated[int, Meta(ge=0)] = 16
    """At most, the same ones each time; 0: none."""


class Pictures(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Held-out clips that the model goes on with while it trains, as pictures and videos; all in one batch, by the
    ranks that are tensor-parallel with the first, while the others wait. It costs the time of generating one video,
    and, of the memory that activations leave between steps, as much as the weights in `precision` (of a pipeline: of
    all its stages), keys and values, and the tokenizer."""

    every: Count = 5000
    """Steps from one time to the next, and after the last step."""
    clips: Annotated[int, Meta(ge=0)] = 2
    """0: none."""
    temperature: Annotated[float, Meta(ge=0)] = 0.0
    """0: the likeliest id each time; else ids are drawn, for each clip with a seed of its own."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.8
    """Ids are drawn among the likeliest that together have this probability."""
    tokenizer: str | None = None
    """What makes videos of ids: owner/name@revision, a path, or `package.module:make`. null: the one that the data set
    names, and no videos where that is not to be had."""


class TrainAr(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A data set of tokens -> an autoregressive model, trained on all ranks together."""

    KIND: ClassVar[str] = "train.ar"
    CODE: ClassVar[str] = "hpc.train.ar"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "gang")
    OBJECTS: ClassVar[tuple[str, ...]] = (".jsonl", ".html", ".json")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = (
        "checkpoints",
        "metrics",
        "pictures",
        "validation",
        "folder",
        "layout",
        "micro_batch",
        "recompute",
        "kernels",
        "reshard",
        "gpu_memory",
        "readers",
    )
    SECONDS_PER_GIB: ClassVar[float] = 1.0

    model: Model = "ar-4b"
    """What it is trained on is tokens of prepare.tokens: ar-4b and ar-12b on `form: megatron`, the video2world ones on
    `form: video2world`, or `instruction` of robots that are told something, the action ones on `form: action`. The tiny
    ones are for trying things out."""
    steps: Count
    """Steps of training in all."""
    batch: Count
    """Sequences a step takes, over all ranks together."""
    shape: tuple[Count, Count, Count] | None = None
    """Latent frames, rows and columns of every clip; null: those of the model, [5, 40, 64] of the large ones."""
    start: str | None = None
    """Published weights to begin with: a model.pt or .safetensors, NeMo's folder `nemo` (with weights/), or owner/name
    on the Hugging Face hub, whose model.pt is taken; null: random weights. Of the models for actions those of
    video2world models, too: then their MLP alone begins at random."""
    lora: Lora | None = None
    """Train adapters to the weights of `start`, and nothing else; null: train all weights."""
    condition: Annotated[int, Meta(ge=0)] = 1
    """Latent frames at the beginning that are given, not learned: their tokens do not count in the loss."""
    z_loss: Annotated[float, Meta(ge=0)] = 1e-4
    """Weight of the squared logarithm of the softmax's sum, which keeps logits from drifting away."""
    layout: Layout = Layout()
    micro_batch: Count = 1
    """Sequences that a rank computes at a time; gradients of the others are added up."""
    precision: Precision = "bf16"
    """bf16: weights and activations, gradients and optimizer in float32. fp8: matmuls of the layers, scaled by the
    largest numbers of the steps before (delayed), of the tensor itself (current), or of blocks of it (blockwise).
    fp8 needs GPUs and transformer-engine; fp32 is for tests."""
    recompute: Recompute = "none"
    """What is computed again on the way back, to save memory: nothing, attention, or each layer whole."""
    kernels: Kernels = "auto"
    """auto: fused kernels where there is a GPU. torch: none of them. fused: an error where they cannot run."""
    optimizer: Optimizer = Optimizer(rate=5e-5, betas=(0.9, 0.95), weight_decay=0.1)
    validation: HeldOut = HeldOut()
    pictures: Pictures = Pictures()
    checkpoints: Checkpoints = Checkpoints()
    metrics: Trackers = ()
    """Where metrics, pictures and videos go beside metrics.jsonl: tensorboard, wandb; hpc/train/trackers.py says which
    folders, names and environment variables are meant."""
    reshard: bool = False
    """Every checkpoint can be continued with another layout; costs a gathering of the optimizer. Else only the last one
    can, and the others by any number of data-parallel ranks."""
    seed: int = 1
    """Of the first weights and the order of clips."""
    gpu_memory: Bytes | None = None
    """Of one GPU, e.g. 80GiB: a layout that is estimated to need more is an error, which says what would need less.
    null: that of the cluster preset's `gpu_type`, for `hpc check` alone."""
    readers: Annotated[int, Meta(ge=0)] = 1
    """Processes of each rank that read tokens; 0: the rank itself, between steps."""
    deterministic: bool = False
    """On GPUs take only algorithms that give the same bits each time, slower ones: without a GPU they always do."""
    folder: str | None = None
    """Where checkpoints are while it trains, a folder that all nodes see; null: `training` beside the output. Outputs
    on S3 need one."""

    def models(self) -> dict[str, tuple[str, ...]]:
        found = {self.start: ("model.pt",)} if self.start and not self.start.startswith(("/", "~")) else {}
        return found | ({name: files_of(name)} if (name := self.pictures.tokenizer) else {})

    def __post_init__(self) -> None:
        if name := self.pictures.tokenizer:
            if is_stage(name) or name.startswith("."):
                raise ValueError(f"pictures: tokenizer: {name!r}: a path begins with / or ~, since jobs run elsewhere; "
                                 "one that a stage has trained is named by its data set")  # fmt: skip
            files_of(name)
        if self.condition >= self.preset.shape[0]:
            raise ValueError(
                f"condition: {self.condition} of {self.preset.shape[0]} latent frames leave nothing to learn"
            )
        if self.preset.action_dim is not None and (self.preset.shape[0], self.condition) != (2, 1):
            raise ValueError(f"shape and condition: {self.model} makes of a frame the next one: `shape: [2, rows, "
                             "columns]` and `condition: 1`")  # fmt: skip
        if self.lora and self.start is None:
            raise ValueError("lora: adapters to random weights teach nothing: say what training begins with, `start`")
        if problems := self.layout.problems(self.preset, self.precision, self.micro_batch):
            raise ValueError(f"layout: {problems[0]}")

    def clash(self, needed: Mapping[str, Any]) -> str:
        """What in the settings of stages in `needs` does not go with these; "" for nothing."""
        for name, other in needed.items():
            if other.KIND == "prepare.tokens" and other.form not in self.forms:
                fits = ", ".join(one for one in get_args(Model) if other.form in forms(PRESETS[one]))
                return (f"{name} makes tokens of `form: {other.form}`, for {fits}; {self.model} is trained on `form: "
                        f"{'` or `form: '.join(self.forms)}`")  # fmt: skip
            if other.KIND == "prepare.tokens" and (known := compression(other.tokenizer)):
                frames = 2 if other.form == "action" else (other.frames - 1) // known[0] + 1
                found = (frames, *(side // known[1] for side in other.size))
                if found != self.preset.shape:
                    return f"{name}: {unlike(self.preset, found)}"
        return ""

    @property
    def forms(self) -> tuple[str, ...]:
        return forms(self.preset)

    @property
    def flops(self) -> float:
        """Of a sequence, forward and backward: see hpc.models.ar.presets."""
        return self.preset.flops(lora_rank=self.lora.rank if self.lora else 0)

    @property
    def moving(self) -> int:
        """Parameters that are trained."""
        p = self.preset
        return self.lora.rank * p.widths + p.mlp_parameters if self.lora else p.parameters

    @property
    def preset(self) -> Preset:
        chosen = PRESETS[self.model]
        return chosen if self.shape is None else msgspec.structs.replace(chosen, shape=self.shape)

    def shared_by(self, ranks: int) -> None:
        """Raises ValueError where so many ranks cannot have this layout and batch."""
        if ranks % self.layout.ranks:
            one = self.layout
            product = f"tensor {one.tensor} x pipeline {one.pipeline} x context {one.context} = {one.ranks}"
            raise ValueError(f"layout: {product}; {ranks} ranks (nodes x workers) are no multiple of it")
        data = ranks // self.layout.ranks
        if self.batch % (data * self.micro_batch):
            near = data * self.micro_batch
            wanted = " or ".join(str(n) for n in (self.batch // near * near, -(-self.batch // near) * near) if n)
            raise ValueError(f"batch: {self.batch} sequences / ({data} data-parallel ranks x {self.micro_batch} at "
                             f"a time) = {self.batch / near:.4g}: make it {wanted}")  # fmt: skip
        if self.gpu_memory is not None:
            refuse(self, Place(ranks=ranks), self.gpu_memory)

    def estimate(self, place: Place) -> Estimate:
        return estimate_ar.estimate(self, place)

    def alternatives(self, place: Place) -> Iterator[tuple[str, TrainAr, Place]]:
        return estimate_ar.alternatives(self, place)
