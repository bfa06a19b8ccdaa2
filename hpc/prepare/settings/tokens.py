"""Settings of prepare.tokens, and of the two parts that it is made of: the ids of all windows, encoded once, and the
form that a trainer wants them in. Another form of the same ids encodes nothing again."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from hpc.data.units import Bytes
from hpc.data.work import Part
from hpc.prepare.settings.frames import Frames

Split = Annotated[str, Meta(pattern=r"^\d+(\.\d+)?(,\d+(\.\d+)?){0,2}$")]
HoldOut = Literal["source", "clip"]
Model = Annotated[str, Meta(pattern=r"^([/~].*|[\w.-]+/[\w.-]+(@[\w./-]+)?)$")]
"""A path, or owner/name@revision on the Hugging Face hub."""


class TokensIds(Frames, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Windows of clips as ids, in the order of the clips; hpc.prepare.documents says what a shard holds."""

    DISCRETE: ClassVar[bool] = True
    KIND: ClassVar[str] = "prepare.tokens-ids"
    CODE: ClassVar[str] = "hpc.prepare.tokens"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".bin", ".parquet")
    VERSION: ClassVar[int] = 1


class TokensTrained(TokensIds, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The same by a tokenizer that another stage trains: behind a barrier that waits for it."""

    KIND: ClassVar[str] = "prepare.tokens-trained"
    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")


class Form(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all forms have; each is a stage of its own behind a barrier, over the shards of ids."""

    PHASES: ClassVar[tuple[str, ...]] = ("barrier", "map")
    INPUT_SUFFIXES: ClassVar[tuple[str, ...]] = ()
    NEUTRAL: ClassVar[tuple[str, ...]] = ()
    SECONDS_PER_GIB: ClassVar[float] = 5.0

    split: Split = "4,1,1"
    hold_out: HoldOut = "source"


class Megatron(Form, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Megatron's IndexedDataset."""

    KIND: ClassVar[str] = "prepare.tokens-megatron"
    CODE: ClassVar[str] = "hpc.prepare.forms.megatron"
    OBJECTS: ClassVar[tuple[str, ...]] = (".bin", ".idx", ".parquet")
    VERSION: ClassVar[int] = 1

    file: Bytes = Bytes(64 * 1024**3)


class Video2World(Form, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A file with ids and a file with a prompt's embedding for each window."""

    KIND: ClassVar[str] = "prepare.tokens-video2world"
    CODE: ClassVar[str] = "hpc.prepare.forms.video2world"
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)
    VERSION: ClassVar[int] = 1

    text_encoder: Model | None = None
    text_precision: Literal["float32", "bfloat16"] = "float32"


class Instruction(Video2World, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The same, with what a robot is told for prompts."""

    KIND: ClassVar[str] = "prepare.tokens-instruction"
    CODE: ClassVar[str] = "hpc.prepare.forms.instruction"


class Action(Form, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Frames of robots and what they did from one to the next."""

    KIND: ClassVar[str] = "prepare.tokens-action"
    CODE: ClassVar[str] = "hpc.prepare.forms.action"
    OBJECTS: ClassVar[tuple[str, ...]] = (".parquet",)
    VERSION: ClassVar[int] = 1


class Tokens(Frames, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Clips -> ids of a discrete video tokenizer, in the form that a trainer of autoregressive models reads."""

    DISCRETE: ClassVar[bool] = True
    KIND: ClassVar[str] = "prepare.tokens"

    form: Literal["megatron", "video2world", "instruction", "action"] = "megatron"
    """megatron: an IndexedDataset (.bin, .idx), one document a window. video2world: two files a window, its ids and the
    embedding of its caption. instruction: the same, of what a robot is told: instructions/<video>.json beside videos/,
    or the annotation of a Bridge data set. action: pairs of frames and what was done between them, of a Bridge data
    set; `frames: 1, windows: all`."""
    split: Split = "4,1,1"
    """Shares of training, validation and test. Documents are in a fixed, shuffled order; the first are for training."""
    hold_out: HoldOut = "source"
    """What is shuffled as one. source: all clips of a video are in the same split, but for one video at each border.
    clip: each clip for itself."""
    file: Bytes = Bytes(64 * 1024**3)
    """A .bin is closed when the next document would make it larger than this: a data set that is larger has several,
    each with its own .idx, and each is split. One worker needs so much scratch space."""

    text_encoder: Model | None = None
    """Of video2world and instruction: a T5 that embeds the words, such as google-t5/t5-11b@revision or a folder. null:
    the embeddings of a stage curate.text_embed in `needs` are taken, or those in plain tars of curate.shard."""
    text_precision: Literal["float32", "bfloat16"] = "float32"
    """What it computes in; 19 GiB for T5-XXL in float32. Embeddings are float16."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.form == "action" and (self.frames, self.windows, self.fps) != (1, "all", None):
            raise ValueError("form: action is made of single frames, all of them: set `frames: 1` and `windows: all`, "
                             "and leave `fps` out")  # fmt: skip
        if self.form == "instruction" and self.text_encoder is None:
            raise ValueError("form: instruction embeds what is beside the videos: name a text_encoder, e.g. "
                             "google-t5/t5-11b@90f37703b3334dfe9d2b009bfcbfbf1ac9d28ea3")  # fmt: skip
        if self.text_encoder is not None and self.form not in ("video2world", "instruction"):
            raise ValueError(f"text_encoder: form: {self.form} has no words; leave it out, or choose form: video2world")
        if not float(re.split(",", self.split)[0]) > 0:
            raise ValueError(f"split: {self.split!r} leaves nothing to train on: write three shares, e.g. 4,1,1")

    def parts(self) -> dict[str, Part]:
        trained = TokensTrained if self.wired() else TokensIds
        ids = trained(**{name: getattr(self, name) for name in Frames.__struct_fields__})
        form: Form
        if self.form == "megatron":
            form = Megatron(split=self.split, hold_out=self.hold_out, file=self.file)
        elif self.form == "action":
            form = Action(split=self.split, hold_out=self.hold_out)
        else:
            kind = Instruction if self.form == "instruction" else Video2World
            form = kind(split=self.split, hold_out=self.hold_out, text_encoder=self.text_encoder,
                        text_precision=self.text_precision)  # fmt: skip
        return {"ids": Part(ids, ("",)), "": Part(form, ("", "ids"), gpus=self.text_encoder is not None)}

    def unmet(self, kinds: Sequence[str]) -> str:
        """What is lacking among the kinds of the stages in `needs`, before anything is encoded; "" for nothing."""
        mine = any(":" in kind for kind in kinds)  # a stage of one's own may make embeddings
        if self.form != "video2world" or self.text_encoder or mine or {"curate.text_embed", "curate.shard"} & {*kinds}:
            return ""
        return ("form: video2world wants embeddings of captions: add a stage curate.text_embed (and its captions) to "
                "`needs`, or name a text_encoder, e.g. google-t5/t5-11b@90f37703b3334dfe9d2b009bfcbfbf1ac9d28ea3")

    def models(self) -> dict[str, tuple[str, ...]]:
        return super().models() | ({self.text_encoder: ()} if self.text_encoder else {})
