"""Settings of generate.ar: prompts, pictures and videos -> videos, by an autoregressive model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from hpc.data.work import Part
from hpc.generate.settings.videos import PICTURES, VIDEOS, Count, Model, Videos, together
from hpc.models.ar import presets
from hpc.models.ar.presets import Preset
from hpc.models.dit_presets import ENCODERS
from hpc.models.tokenizer_files import files_of

MODELS = ("train.ar", "convert.ar")
"""Kinds of stages that make such models."""


class ArPrompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As Prompts; what has no words is a prompt as well, where there is a picture or a video to go on from."""

    KIND: ClassVar[str] = "generate.ar-prompts"
    CODE: ClassVar[str] = "hpc.generate.prompts"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".jsonl",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (".json", ".jsonl", *PICTURES, *VIDEOS)
    BESIDE: ClassVar[tuple[str, ...]] = (".txt", ".npy")
    """Of files that files of prompts name."""
    wordless: ClassVar[bool] = True
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 10.0


class Ar(Videos, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Pictures and videos to go on from, and prompts -> videos, by an autoregressive model; an array over prompts."""

    KIND: ClassVar[str] = "generate.ar"
    CODE: ClassVar[str] = "hpc.generate.ar"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".tar", ".parquet")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 2
    NEUTRAL: ClassVar[tuple[str, ...]] = ("tasks",)
    SECONDS_PER_GIB: ClassVar[float] = 1e6

    model: str = "ar-4b"
    """ar-4b and ar-12b go on from pictures and videos; ar-5b-video2world and ar-13b-video2world from prompts, too, or
    instructions. ar-5b-action and ar-13b-action make a frame for each action of a prompt: of a picture, or the first
    frame of a video, then of the frame before."""
    shape: tuple[Count, Count, Count] | None = None
    """Latent frames, rows and columns of every video; null: those of the model, [5, 40, 64] of the large ones."""
    weights: Model | None = None
    """Of the model: the path of a model.pt or .safetensors, of a folder with model.safetensors or model.pt, or
    owner/name on the Hugging Face hub, whose model.pt is taken, such as nvidia/Cosmos-Predict1-4B. null: of the stage
    train.ar or convert.ar in `needs`."""
    tokenizer: str = "nvidia/Cosmos-Tokenize1-DV8x16x16-720p"
    """What made the ids that the model was trained on; or the name of a stage train.tokenizer in `needs`."""
    text_encoder: Model = ENCODERS["t5"]
    """A T5, for the models that take prompts."""

    temperature: Annotated[float, Meta(ge=0, le=100)] = 1.0
    """Logits are divided by it; 0: always the likeliest id."""
    top_p: Annotated[float, Meta(gt=0, le=1)] = 0.8
    """Ids are drawn from the likeliest that together have this probability."""
    batch: Annotated[int, Meta(ge=1, le=256)] = 8
    """Videos that are made at the same time. Steps are always computed for so many, so that a video does not depend on
    the others; with another number a last bit may differ, and with it what is drawn."""
    tensor: Literal[1, 2, 4, 8] = 1
    """GPUs that have the model together, for models too large for one: `resources: {workers: ...}` must be as many."""
    fps: Annotated[float, Meta(gt=0, le=240)] = 25.0
    """Of the mp4."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """What the model and the tokenizer compute in."""
    per_shard: Annotated[int, Meta(ge=1, le=10_000)] = 32
    """Videos that a shard has: what is lost where a worker is stopped in the middle."""

    def __post_init__(self) -> None:
        super().__post_init__()
        try:
            given = self.preset
        except ValueError as error:
            raise ValueError(f"model: {error}") from error
        files_of(self.tokenizer)
        for count, what in ((given.kv_heads, "heads of keys"), (given.classes, "classes")):
            if count % self.tensor:
                raise ValueError(f"tensor: {count} {what} / {self.tensor}: ranks must have equal parts")
        if self.acts and self.prompts is not None and self.place is None:
            raise ValueError(f"prompts: clips of {self.prompts} do not say what is done: give a file with `actions`")
        if self.given >= given.shape[0] and not self.acts:
            raise ValueError(f"given: {self.given} of {given.shape[0]} latent frames leave nothing to make")

    @property
    def preset(self) -> Preset:
        chosen = presets.preset(self.model)
        return chosen if self.shape is None else msgspec.structs.replace(chosen, shape=self.shape)

    @property
    def words(self) -> bool:
        """Does the model read prompts?"""
        return self.preset.context_dim is not None and not self.acts

    @property
    def wordless(self) -> bool:
        """Is a picture or a video a prompt by itself?"""
        return not self.words

    @property
    def acts(self) -> bool:
        """Is it told what is done?"""
        return self.preset.action_dim is not None

    def clash(self, needed: Mapping[str, Any]) -> str:
        """What in the settings of stages in `needs` does not go with these; "" for nothing."""
        models = [name for name, other in needed.items() if other.KIND in MODELS]
        if self.weights is None and len(self.makers(models)) != 1:
            return "one stage train.ar or convert.ar must make the model, or `weights` must say where it is"
        if self.weights is not None and (unused := [name for name in models if name != self.held_out]):
            return f"`weights` says where the model is: take {needed[unused[0]].KIND} away, or `weights`"
        for name in self.makers(models) if self.weights is None else ():
            other = needed[name]
            if other.KIND == "train.ar" and (other.model, other.preset.shape) != (self.model, self.preset.shape):
                theirs, ours = list(other.preset.shape), list(self.preset.shape)
                return (f"{name} trains {other.model} on latents {theirs}, and this is {self.model} on {ours}: write "
                        f"`model: {other.model}` and `shape: {theirs}`")  # fmt: skip
        return super().clash(needed)

    def makers(self, models: Sequence[str]) -> Sequence[str]:
        """Of stages in `needs` that make models the one that is meant: what `held_out` names is it where no other
        is."""
        return [name for name in models if name != self.held_out] or models

    def unmet(self, kinds: Sequence[str]) -> str:
        if unused := self.unused(kinds, MODELS):
            return f"generate.ar takes a model from {' or '.join(MODELS)}, and nothing from {', '.join(unused)}"
        if self.place is not None and not kinds:
            return "`prompts` is for specs with other inputs: write it as the spec's `inputs`"
        return ""

    def wired(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        return self.named(self.tokenizer)

    def parts(self) -> dict[str, Part]:
        main = self if self.tensor == 1 else ArRanks(**{f: getattr(self, f) for f in self.__struct_fields__})
        return self.split(main, ArPrompts())

    def models(self) -> dict[str, tuple[str, ...]]:
        wanted: dict[str, tuple[str, ...]] = {self.text_encoder: ()} if self.words else {}
        if files := files_of(self.tokenizer):
            wanted[self.tokenizer] = files
        if self.weights is not None and not self.weights.startswith(("/", "~")):
            wanted[self.weights] = ("model.pt",)
        return wanted


class ArRanks(Ar, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """generate.ar by tensor-parallel ranks."""

    KIND: ClassVar[str] = "generate.ar-ranks"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "gang")

    def shared_by(self, ranks: int) -> None:
        """Raises ValueError where so many ranks are not those that have the model together."""
        together(f"tensor: {self.tensor} GPUs have the model together", self.tensor, ranks)
