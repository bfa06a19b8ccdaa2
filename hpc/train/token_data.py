"""Token data sets as an autoregressive model is trained on them: inputs, labels a token ahead, and where they count.

    data = Clips(["out/tokens@v1/000000"], latent=(5, 40, 64))        # Megatron's .bin and .idx
    data = Video2World("out/tokens@v1", "train")                      # with prompts
    data = Action("out/tokens@v1/train")                              # a frame, an action, the next frame
    for batch in Batches(data, batch=64, seed=1).of_rank(rank, ranks, first_step=step, workers=4):
        batch.tokens, batch.labels, batch.loss_mask, batch.context, batch.action

Which samples a step takes is hpc.train.order's: a pure function of the step. A sample is one clip and nothing else: the
last input of a clip has no label, where GPTDataset of Megatron has it predict the first token of another clip. Ids are
int64 from the file to the model. What is masked needs no [L, L] tensor, since attention is causal and nothing more.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from hpc.data import storage
from hpc.data.tokens import VOCABULARY, action, indexed, padded, video2world
from hpc.models.ar.loss import NO_LABEL
from hpc.train.order import Bucket, Order
from hpc.train.stream import stream

Latent = tuple[int, int, int]
"""Time, height and width of a sample's ids."""


class Sample(msgspec.Struct):
    tokens: Tensor
    """int64 [L]: what the model sees."""
    labels: Tensor
    """int64 [L]: what follows each of them; NO_LABEL where that is no id of the video: PAD, or nothing."""
    loss_mask: Tensor
    """bool [L]: where the loss counts, of those with a label: not where latent frames that are given follow."""
    context: Tensor | None = None
    """float32 [512, 1024]: the embedding of its prompt."""
    context_mask: Tensor | None = None
    """bool [512]: its tokens; behind them the embedding is zero. Published models attend to all 512."""
    action: Tensor | None = None
    """float32 [7]"""


class Data(Protocol):
    """Samples by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Sample: ...


class Clips:
    """Documents of Megatron's IndexedDataset, one clip each.

    prefixes: paths or URIs without .bin and .idx. documents: those of a split (hpc.prepare writes a table beside the
    files that says which); None: all. given: latent frames that are not predicted but given.
    """

    def __init__(
        self, prefixes: Sequence[str], latent: Latent, documents: Sequence[int] | None = None, given: int = 0
    ) -> None:
        self.found, self.latent, self.given = indexed.Documents(prefixes), latent, given
        self.documents = range(len(self.found)) if documents is None else documents

    def __len__(self) -> int:
        return len(self.documents)

    def __getitem__(self, number: int) -> Sample:
        """Raises ValueError for a document of another length."""
        ids = self.found[self.documents[number]]
        if len(ids) != math.prod(self.latent):
            where = f"document {self.documents[number]} of {', '.join(self.found.prefixes[:3])}"
            raise ValueError(f"{where} has {len(ids):,} tokens; {_product(self.latent)} are expected")
        return sample(ids, [], [], self.latent, self.given)


class Video2World:
    """split: train, test or val, as files are called; Cosmos' own trainer validates on "test"."""

    def __init__(self, folder: str, split: str, latent: Latent = video2world.LATENT, given: int = 0) -> None:
        self.folder, self.split, self.latent, self.given = folder, split, latent, given
        self.count = video2world.sizes(folder)[split]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Sample:
        """Raises ValueError naming a file that holds something else."""
        video, prompt = video2world.read(self.folder, self.split, number)
        length = math.prod(self.latent)
        end = 1 + length
        if len(video) != end + padded(length, video2world.MULTIPLE):
            name = storage.join(self.folder, video2world.names(self.split, number)[0])
            raise ValueError(f"{name}: {len(video):,} numbers; a begin of video, {_product(self.latent)} ids and "
                             f"{padded(length, video2world.MULTIPLE)} of padding are expected")  # fmt: skip
        found = sample(video[1:end], video[:1], video[end:], self.latent, self.given)
        found.context = torch.from_numpy(prompt)
        found.context_mask = found.context.any(1)
        return found


class Action:
    """folder: of a split. The first frame is given, the next one predicted."""

    def __init__(self, folder: str) -> None:
        self.pairs = action.Pairs(folder)
        self.latent = self.pairs.latent

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, number: int) -> Sample:
        pair = self.pairs[number]
        whole = action.sequence(pair)
        end = 1 + 2 * len(pair.current)
        found = sample(whole[1:end], whole[:1], whole[end:], self.latent, given=1)
        found.action = torch.from_numpy(pair.action.astype(np.float32))
        return found


def _product(latent: Latent) -> str:
    return f"{' x '.join(map(str, latent))} = {math.prod(latent):,}"


def sample(
    ids: npt.NDArray[np.int64], before: npt.ArrayLike, after: npt.ArrayLike, latent: Latent, given: int
) -> Sample:
    """Of a clip's ids, with what stands before and after them. All but the last of these are inputs; with nothing after
    the ids, all of them are, and the last one has no label.

    Raises ValueError for a number that is no id: a model has no row for it.
    """
    before, after = np.asarray(before, np.int64), np.asarray(after, np.int64)
    if ids.min() < 0 or ids.max() >= VOCABULARY:
        raise ValueError(f"ids from {ids.min()} to {ids.max()}; 0 to {VOCABULARY - 1:,} are expected: the data set is "
                         "damaged, or of a tokenizer with more ids; `hpc validate` says where")  # fmt: skip
    whole = np.concatenate([before, ids, after if len(after) else [NO_LABEL]])
    place = np.arange(1, len(whole)) - len(before)
    """Of what follows each input, among the ids."""
    follows = (place >= 0) & (place < len(ids))
    labels = np.where(follows, whole[1:], NO_LABEL)
    mask = follows & (place >= given * latent[1] * latent[2])
    return Sample(torch.from_numpy(whole[:-1].copy()), torch.from_numpy(labels), torch.from_numpy(mask))


class Batch(msgspec.Struct):
    """A rank's share of a step; as Sample, with a first dimension more."""

    step: int
    tokens: Tensor
    labels: Tensor
    loss_mask: Tensor
    context: Tensor | None
    context_mask: Tensor | None
    action: Tensor | None
    samples: list[int]
    """The number of each among all that training has taken."""
    places: list[int]
    """In the data set."""
    waited: float = 0.0
    """Seconds that training waited for this batch."""


class Batches:
    """All steps of a training. Raises ValueError for a data set without samples."""

    def __init__(self, data: Data, batch: int, seed: int) -> None:
        """batch: samples of a step, over all ranks together."""
        self.data = data
        self.order = Order([Bucket(len(data), batch)], seed)

    def at(self, step: int, rank: int = 0, ranks: int = 1) -> Batch:
        """A rank's batch of a step, read here and now."""
        taken = self.order.batch(step).of_rank(rank, ranks)
        found = [self.data[place] for place in taken.places]
        made: dict[str, Any] = {
            name: torch.stack([getattr(one, name) for one in found]) if getattr(found[0], name) is not None else None
            for name in Sample.__struct_fields__
        }
        numbers = list(range(taken.first, taken.first + len(found)))
        return Batch(step, samples=numbers, places=list(taken.places), **made)

    def of_rank(self, rank: int, ranks: int, first_step: int = 0, workers: int = 0, ahead: int = 2) -> Iterator[Batch]:
        """A rank's batches from a step on, without end. workers: processes that read; ahead: batches of each that wait.
        What is yielded does not depend on either."""
        self.order.batch(first_step).of_rank(rank, ranks)  # a share that is none shows here, not in a worker
        for batch, waited in stream(functools.partial(self.at, rank=rank, ranks=ranks), first_step, workers, ahead):
            batch.waited = waited
            yield batch
