"""What a spec may say of all stages that generate videos: of what they are made, and how they are kept."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from hpc.data.work import Part
from hpc.models.tokenizer_files import is_stage

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VIDEOS = (".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi")
CLIPS = ("curate.clips", "curate.shard")
"""Kinds of stages whose clips can be gone on from."""
TRAININGS = ("train.ar", "train.diffusion")
"""...and of those that say which clips they held out."""
Count = Annotated[int, Meta(ge=1)]
Seed = Annotated[int, Meta(ge=0, lt=2**32)]
Side = Annotated[int, Meta(ge=16, le=8192)]
Guidance = Annotated[float, Meta(ge=0, le=100)]
Steps = Annotated[int, Meta(ge=1, le=1000)]
Model = Annotated[str, Meta(pattern=r"^([/~].*|[\w.-]+/[\w.-]+(@[\w./-]+)?)$")]
"""A path, or owner/name@revision on the Hugging Face hub."""


class Videos(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    prompts: str | None = None
    """A file of prompts, a path that all nodes see or s3://...: hpc/generate/prompts.py says what it looks like. Or the
    name of a stage in `needs` that makes clips or a plain data set: each clip's first frames are gone on from, and the
    video is called as the clip, so that evaluate.videos finds the pair. null: the spec's inputs are such files."""
    held_out: str | None = None
    """The name of a stage train.ar or train.diffusion in `needs`: of the clips of `prompts` those alone are gone on
    from that it held out, of which its model has seen nothing. null: all of them."""
    limit: Count | None = None
    """Take so many of the prompts, evenly spread; null: all."""
    given: Count = 2
    """Latent frames of a video that are gone on from, where its prompt says nothing else: 2 are 9 frames where a latent
    frame stands for 8, 5 where it stands for 4. Of a picture it is always one."""
    seed: Seed = 1
    """Of all draws, which are the same on every machine. A file of prompts may give each video its own."""
    crf: Annotated[float, Meta(ge=0, le=51)] = 17.0
    """Of the mp4: H.264, lower is better."""
    per_shard: Annotated[int, Meta(ge=1, le=10_000)] = 4
    """Videos that a shard has: what is lost where a worker is stopped in the middle."""
    tasks: Annotated[int, Meta(ge=1, le=10_000)] | None = None
    """Array tasks that share the videos. null: by the size of the spec's inputs, and no more than those make shards:
    say it where one small file of prompts makes thousands of videos. Where several GPUs have a video or a model
    together each task has so many; null is one task then."""

    @property
    def place(self) -> str | None:
        """Of the file of prompts."""
        if self.prompts is None or is_stage(self.prompts):
            return None
        return os.path.expanduser(self.prompts)  # noqa: PTH111  s3://, whose slashes a Path would not keep

    @property
    def files(self) -> tuple[str, ...]:
        return () if self.place is None else (self.place,)

    def __post_init__(self) -> None:
        if self.place is not None and not self.place.startswith(("/", "s3://")):
            raise ValueError(f"prompts: {self.prompts!r}: a path begins with / or ~, since jobs run elsewhere; a stage "
                             "in `needs` is named as it is")  # fmt: skip
        if self.held_out is not None and (self.prompts is None or self.place is not None):
            raise ValueError(f"held_out: {self.held_out}: it chooses among the clips of a stage: name that as "
                             "`prompts`")  # fmt: skip

    def named(self, tokenizer: str | None) -> dict[str, tuple[str, tuple[str, ...]]]:
        """Settings that name stages in `needs`."""
        found: dict[str, tuple[str, tuple[str, ...]]] = {}
        if self.prompts is not None and self.place is None:
            found["prompts"] = (self.prompts, CLIPS)
        if tokenizer is not None and is_stage(tokenizer):
            found["tokenizer"] = (tokenizer, ("train.tokenizer",))
        if self.held_out is not None:
            found["held_out"] = (self.held_out, TRAININGS)
        return found

    def clash(self, needed: Mapping[str, Any]) -> str:
        """What in the settings of stages in `needs` does not go with these; "" for nothing."""
        other = needed.get(self.held_out or "")
        if other is not None and other.KIND == "train.diffusion" and not other.validation.share:
            return f"held_out: {self.held_out} holds nothing out: give it a `validation: {{share: ...}}` above 0"
        return ""

    def unused(self, kinds: Sequence[str], models: Sequence[str]) -> list[str]:
        """Kinds in `needs` that no setting makes use of; models: those that make one."""
        wired = self.wired()
        known = [*models, *(kind for _, allowed in wired.values() for kind in allowed)]
        return [kind for kind in kinds if kind not in known and not (":" in kind and wired)]

    def wired(self) -> dict[str, tuple[str, tuple[str, ...]]]:
        return self.named(None)

    def split(self, main: Any, prompts: Any) -> dict[str, Part]:
        """The parts: `prompts` reads the spec's inputs where no others are named."""
        if self.prompts is not None:
            return {"": Part(main, ("",))}
        return {"prompts": Part(prompts, (), gpus=False), "": Part(main, ("prompts", ""))}


def together(what: str, count: int, ranks: int) -> None:
    """Raises ValueError where so many ranks are not those that have something together."""
    if ranks != count:
        raise ValueError(f"{what}, and there are {ranks} ranks (workers): write `resources: {{workers: {count}, gpus: "
                         "1}`")  # fmt: skip
