"""Settings of prepare.tokens, and of the two parts that it is made of: the ids of all windows, encoded once, and the
form that a trainer wants them in. Another form of the same ids encodes nothing again."""

from __future__ import annotations

import re
from typing import Annotated, ClassVar, Literal

import msgspec
from msgspec import Meta

from hpc.data.units import Bytes
from hpc.data.work import Part
from hpc.prepare.settings.frames import Frames

Split = Annotated[str, Meta(pattern=r"^\d+(\.\d+)?(,\d+(\.\d+)?){0,2}$")]
HoldOut = Literal["source", "clip"]


class TokensIds(Frames, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Windows of clips as ids, in the order of the clips; hpc.prepare.documents says what a shard holds."""

    KIND: ClassVar[str] = "prepare.tokens-ids"
    CODE: ClassVar[str] = "hpc.prepare.tokens"
    PHASES: ClassVar[tuple[str, ...]] = ("map",)
    OBJECTS: ClassVar[tuple[str, ...]] = (".bin", ".parquet")
    VERSION: ClassVar[int] = 1


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


class Tokens(Frames, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Clips -> ids of a discrete video tokenizer, in the form that a trainer of autoregressive models reads."""

    KIND: ClassVar[str] = "prepare.tokens"

    form: Literal["megatron"] = "megatron"
    """megatron: an IndexedDataset (.bin, .idx), one document a window."""
    split: Split = "4,1,1"
    """Shares of training, validation and test. Documents are in a fixed, shuffled order; the first are for training."""
    hold_out: HoldOut = "source"
    """What is shuffled as one. source: all clips of a video are in the same split, but for one video at each border.
    clip: each clip for itself."""
    file: Bytes = Bytes(64 * 1024**3)
    """A .bin is closed when the next document would make it larger than this: a data set that is larger has several,
    each with its own .idx, and each is split. One worker needs so much scratch space."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not float(re.split(",", self.split)[0]) > 0:
            raise ValueError(f"split: {self.split!r} leaves nothing to train on: write three shares, e.g. 4,1,1")

    def parts(self) -> dict[str, Part]:
        ids = TokensIds(**{name: getattr(self, name) for name in Frames.__struct_fields__})
        form = Megatron(split=self.split, hold_out=self.hold_out, file=self.file)
        return {"ids": Part(ids, ("",)), "": Part(form, ("", "ids"), gpus=False)}
