"""Settings of generate.diffusion, and of the two parts that it is made of: the prompts of all files, and videos."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from hpc.data.work import Part
from hpc.generate.settings.videos import PICTURES, VIDEOS, Count, Guidance, Side, Steps, Videos, together
from hpc.models.dit_presets import ENCODERS, Preset, preset, unfit
from hpc.models.tokenizer_files import compression, files_of, is_stage

Text = Annotated[str, Meta(pattern=r"^(none|[/~].*|[\w.-]+/[\w.-]+(@[\w./-]+)?)$")]
"""none, a path, or owner/name@revision on the Hugging Face hub."""
MODELS = ("train.diffusion", "convert.diffusion")
"""Kinds of stages that make such models."""


class Prompts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Files of prompts -> one line of JSON a video to make; hpc.generate.prompts says which files."""

    KIND: ClassVar[str] = "generate.diffusion-prompts"
    CODE: ClassVar[str] = "hpc.generate.prompts"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".jsonl",)
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = (".json", ".jsonl", *PICTURES, *VIDEOS)
    BESIDE: ClassVar[tuple[str, ...]] = (".txt",)
    """Of files that files of prompts name."""
    wordless: ClassVar[bool] = False
    VERSION: ClassVar[int] = 1
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 10.0


class Diffusion(Videos, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Prompts, and pictures or videos that they go on from -> videos, by a diffusion model; an array over prompts."""

    KIND: ClassVar[str] = "generate.diffusion"
    CODE: ClassVar[str] = "hpc.generate.diffusion"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    OBJECTS: ClassVar[tuple[str, ...]] = (".tar", ".parquet")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    VERSION: ClassVar[int] = 2
    NEUTRAL: ClassVar[tuple[str, ...]] = ("tasks",)
    SECONDS_PER_GIB: ClassVar[float] = 1e6

    model: str = "predict2.5-2b"
    """A preset of hpc/models/dit_presets.py, such as predict2.5-2b or predict1-7b-text2world, or the name of the
    published experiment that trained the weights."""
    weights: str | None = None
    """Of the model: the path of a model.pt, a .safetensors or a folder; or the name of a stage train.diffusion or
    convert.diffusion in `needs`, of which the running average is taken. null: those that were published, which `hpc
    models pull` fetches."""
    average: bool = False
    """Of a file that has both: the running average (net_ema.) rather than the weights trained last (net.)."""
    tokenizer: str | None = None
    """What makes videos of latents: owner/name@revision, a path, `package.module:make`, or the name of a
    stage train.tokenizer in `needs`. null: the model's own."""
    text_encoder: Text | None = None
    """A T5 for Predict1 and 2, a Qwen2.5-VL for Predict2.5; none, of a model that was trained without texts: prompts
    are names alone then. null: the one that the model was trained with."""
    context: Literal[1, 2, 4, 8, 16] = 1
    """GPUs that have the frames of a video together, so that it is there sooner: `resources: {workers: ...}` must be as
    many. It divides the heads of the model and the latent frames of each video."""

    frames: Count | None = None
    """Of a video; null: as many as in the model's training. A file of prompts may say otherwise, also of the next
    two."""
    size: tuple[Side, Side] | None = None
    """Height and width; null: those of the model's training."""
    negative_prompt: str | None = None
    """What to steer away from. null: no text, zeros, as where texts were left out in training."""
    guidance: Guidance | None = None
    """How far to go from the negative prompt: with + guidance (with - without); 0 asks for no text but the prompt, in
    half the time. null: what the model was shown with."""
    steps: Steps | None = None
    solver: Literal["multistep", "heun", "unipc", "euler"] | None = None
    schedule: Literal["karras", "karras-zero", "shifted", "flow-karras"] | None = None
    """Of noise levels. hpc/models/samplers.py explains both; null: as published."""
    fps: Annotated[float, Meta(gt=0, le=240)] | None = None
    """Of the video, which Predict1 is also told; null: that of the model's training."""
    precision: Literal["bfloat16", "float32"] = "bfloat16"
    """What the model and the tokenizer compute in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        known = self.preset
        if self.weights is None and not known.repository:
            raise ValueError(f"weights: {self.model} has no published weights: give the path of a file or folder, or "
                             "name a stage train.diffusion or convert.diffusion in `needs`")  # fmt: skip
        if self.weights is not None and not is_stage(self.weights) and not self.weights.startswith(("/", "~")):
            raise ValueError(f"weights: {self.weights!r}: a path begins with / or ~, since jobs run elsewhere")
        if self.tokenizer is None and not known.tokenizer:
            raise ValueError(f"tokenizer: {self.model} has none of its own: name one")
        if self.text_encoder is None and not known.repository:
            raise ValueError(f"text_encoder: {self.model} has none of its own: name one, or `none`")
        if self.text_encoder == "none" and self.guidance:
            raise ValueError(f"guidance: {self.guidance:g}: without texts nothing can be steered away from: make it 0")
        if known.config.heads % self.context:
            raise ValueError(f"context: {known.config.heads} heads / {self.context}: ranks must have equal parts")
        files_of(self.video_tokenizer)
        for side in self.size or ():
            if side % 16:
                raise ValueError(f"size: {side}: a model's tokens are 16 pixels wide: make it {side - side % 16} or "
                                 f"{side - side % 16 + 16}")  # fmt: skip
        if found := compression(self.video_tokenizer):
            self.fits(*found)
        if words := unfit(self.solver or known.solver, self.schedule or known.schedule, known.objective):
            raise ValueError(f"schedule: {words}")

    def fits(self, temporal: int, spatial: int) -> None:
        """Raises ValueError where no such video is made of latents that stand for so many frames and pixels."""
        c, frames, (height, width) = self.preset.config, self.frames or 1, self.size or (0, 0)
        if rest := (frames - 1) % temporal:
            near = f"{frames - rest} or {frames - rest + temporal}"
            raise ValueError(f"frames: {frames}: a latent frame stands for {temporal}: make it {near}")
        most = 1 + (c.max_frames - 1) * temporal, spatial * c.max_height, spatial * c.max_width
        if frames > most[0] or height > most[1] or width > most[2]:
            what, given = ("frames", str(frames)) if frames > most[0] else ("size", f"{height} x {width}")
            limit = f"{most[0]} frames of {most[1]} x {most[2]}"
            raise ValueError(f"{what}: {given}: {self.model} makes {limit} at most")

    @property
    def preset(self) -> Preset:
        """Raises ValueError."""
        try:
            return preset(self.model)
        except ValueError as error:
            raise ValueError(f"model: {error}") from error

    @property
    def video_tokenizer(self) -> str:
        return self.tokenizer or self.preset.tokenizer

    @property
    def wordless(self) -> bool:
        """Is a picture or a video a prompt by itself?"""
        return self.text_model == "none"

    @property
    def text_model(self) -> str:
        return self.text_encoder or ENCODERS[self.preset.text]

    def wired(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        found = self.named(self.tokenizer)
        if self.weights is not None and is_stage(self.weights):
            found["weights"] = (self.weights, MODELS)
        return found

    def unmet(self, kinds: Sequence[str]) -> str:
        if unused := self.unused(kinds, ()):
            return (f"nothing is taken from {', '.join(unused)}: name its stage as `weights`, `tokenizer` or `prompts`,"
                    " or leave it out")  # fmt: skip
        if self.place is not None and not kinds:
            return "`prompts` is for specs with other inputs: write it as the spec's `inputs`"
        return ""

    def parts(self) -> dict[str, Part]:
        main = self if self.context == 1 else DiffusionRanks(**{f: getattr(self, f) for f in self.__struct_fields__})
        return self.split(main, Prompts())

    def models(self) -> dict[str, tuple[str, ...]]:
        known = self.preset
        wanted: dict[str, tuple[str, ...]] = {} if self.text_model == "none" else {self.text_model: ()}
        if files := files_of(self.video_tokenizer):
            wanted[self.video_tokenizer] = files
        if self.weights is None:
            wanted[known.repository] = (*wanted.get(known.repository, ()), known.file)
        return wanted


class DiffusionRanks(Diffusion, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """generate.diffusion by ranks that share the frames of each video."""

    KIND: ClassVar[str] = "generate.diffusion-ranks"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "gang")

    def shared_by(self, ranks: int) -> None:
        """Raises ValueError where so many ranks are not those that have a video together."""
        together(f"context: {self.context} GPUs have a video together", self.context, ranks)
