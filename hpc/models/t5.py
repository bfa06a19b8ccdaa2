"""Encoders of the T5 family: words -> one vector for each token, by transformers.

T5 (Raffel et al., "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer", 2019,
https://arxiv.org/abs/1910.10683), mT5 and UMT5. What comes out is what padding to the longest length and cutting to the
attention mask gives (cosmos_curate 29f1358, t5_encoder.py), but for rounding: texts of about the same length go through
the model together, padded to the longest of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from hpc.models import hub

FAMILIES = ("t5", "mt5", "umt5")
OTHER = ("decoder.", "lm_head.")  # of the model, but not of its encoder
BATCH = 8192  # tokens, padded ones too


def load_encoder(where: str, precision: str, device: str | None = None) -> Encoder:
    """where: a path, or owner/name@revision on the Hugging Face hub. Raises ModuleNotFoundError without transformers,
    FileNotFoundError where the model is not to be had, RuntimeError for another kind of model or other weights."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"text embeddings need {error.name}, which is not installed here: pip install 'hpc[curate-models]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it would warn of is checked here
    folder = hub.folder(where)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type not in FAMILIES:
        raise RuntimeError(f"{folder}: a model of the type {config.model_type!r}; encoders of {', '.join(FAMILIES)} "
                           "are known")  # fmt: skip
    model, found = transformers.AutoModelForTextEncoding.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True,
        dtype=getattr(torch, precision),
    )  # fmt: skip
    hub.accounted(folder, found, OTHER)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Encoder(model.eval().requires_grad_(False).to(device), tokenizer, folder)


class Encoder:
    def __init__(self, model: Any, tokenizer: Any, folder: Path) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.dim = int(model.config.d_model)
        self.revision = folder.name if folder.parent.name == "snapshots" else ""
        """The hub's commit, where it is known."""

    def tokens(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text, with the end of the text behind them; all of them, however long."""
        return self.tokenizer([text.strip() for text in texts], verbose=False)["input_ids"] if texts else []

    @torch.inference_mode()
    def encode(self, ids: Sequence[Sequence[int]]) -> Iterator[tuple[int, npt.NDArray[np.float16]]]:
        """(which of them, float16 [tokens, dim]) of each text, the shortest first. Raises RuntimeError where a number
        is too large for float16, or none."""
        device = self.model.device
        for batch in batches([len(one) for one in ids]):
            longest = len(ids[batch[-1]])
            padded = torch.full((len(batch), longest), self.tokenizer.pad_token_id)
            mask = torch.zeros((len(batch), longest), dtype=torch.long)
            for row, i in enumerate(batch):
                padded[row, : len(ids[i])] = torch.tensor(ids[i])
                mask[row, : len(ids[i])] = 1
            states = self.model(input_ids=padded.to(device), attention_mask=mask.to(device)).last_hidden_state
            arrays = states.to(torch.float16).cpu().numpy()
            for row, i in enumerate(batch):
                found = arrays[row, : len(ids[i])]
                if not np.isfinite(found).all():
                    raise RuntimeError("the encoder gave numbers that float16 cannot hold, or none: are its weights "
                                       "those of its config.json?")  # fmt: skip
                yield i, found


def batches(lengths: Sequence[int], most: int = BATCH) -> list[list[int]]:
    """Places of texts of such lengths, in batches of about the same length; shortest first. A batch has no more than
    `most` tokens with its padding, unless it is a single text."""
    found: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if found and (len(found[-1]) + 1) * lengths[i] <= most:
            found[-1].append(i)
        else:
            found.append([i])
    return found
