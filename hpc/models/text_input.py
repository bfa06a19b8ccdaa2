"""Texts as diffusion transformers read them: always 512 tokens, and no mask.

    t5            of Predict1 and 2: the encoder's vectors of the prompt's own tokens, then zeros
    qwen2.5-vl    of Predict2.5: the states after each layer of a language model, each normalised, side by side;
                  28 x 3584 channels of a 7B. After the prompt's end those of padding tokens, which the published model
                  was trained with: they see the prompt, and the prompt, before them, does not see them

cosmos_predict1 4ed35fa: utils/t5_text_encoder.py; cosmos_predict2.5 50369b8: text_encoders/text_encoder.py
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from hpc.models import hub, t5

TOKENS = 512
SYSTEM = "You are a helpful assistant who will provide prompts to an image generator."
EPS = 1e-8

TextInput = Callable[[Sequence[str]], Tensor]
"""Prompts -> [prompts, 512, channels], bfloat16, on the encoder's device."""


def load_text_input(kind: Literal["t5", "qwen2.5-vl"], where: str, device: str | None = None) -> TextInput:
    """The encoder of a Preset's `text`. where: a path, or owner/name@revision on the Hugging Face hub.

    Raises ModuleNotFoundError without transformers, FileNotFoundError where the model is not to be had, RuntimeError
    for another kind of model or other weights."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    precision = "bfloat16" if torch.device(device).type == "cuda" else "float32"
    if kind == "t5":
        return T5Input(t5.load_encoder(where, precision, device))
    return QwenInput(*load_qwen(where, precision, device))


def padded(arrays: Sequence[np.ndarray], channels: int) -> Tensor:
    """Vectors of each prompt's tokens [tokens, channels] -> [prompts, 512, channels] with zeros after them; what is
    longer is cut. As a folder's t5_xxl/*.pickle are read."""
    whole = torch.zeros(len(arrays), TOKENS, channels, dtype=torch.bfloat16)
    for row, array in enumerate(arrays):
        found = torch.from_numpy(np.asarray(array)[:TOKENS])
        whole[row, : len(found)] = found.to(torch.bfloat16)
    return whole


class T5Input:
    def __init__(self, encoder: t5.Encoder) -> None:
        self.encoder, self.channels = encoder, encoder.dim

    def __call__(self, texts: Sequence[str]) -> Tensor:
        ids = self.encoder.tokens(texts)
        cut = [one if len(one) <= TOKENS else [*one[: TOKENS - 1], one[-1]] for one in ids]  # its end is an own token
        found: list[Any] = [None] * len(texts)
        for i, array in self.encoder.encode(cut):
            found[i] = array
        return padded(found, self.channels).to(self.encoder.model.device)


def load_qwen(where: str, precision: str, device: str) -> tuple[Any, Any]:
    """The model and its tokenizer."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"text states need {error.name}, which is not installed here: pip install 'hpc[curate-models]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it would warn of is checked here
    folder = hub.folder(where)
    config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    if config.model_type != "qwen2_5_vl":
        raise RuntimeError(f"{folder}: a model of the type {config.model_type!r}; Predict2.5 reads states of "
                           "qwen2_5_vl, such as nvidia/Cosmos-Reason1-7B")  # fmt: skip
    model, found = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True,
        dtype=getattr(torch, precision),
    )  # fmt: skip
    hub.accounted(folder, found)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if (template := folder / "chat_template.json").is_file():  # of a processor, from before templates had files
        tokenizer.chat_template = json.loads(template.read_bytes())["chat_template"]
    language = model.model.language_model  # the vision tower and the head are of no use, and take memory
    return language.eval().requires_grad_(False).to(device), tokenizer


class QwenInput:
    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.channels = model.config.num_hidden_layers * model.config.hidden_size

    def ids(self, text: str) -> list[int]:
        """512 of them: the chat with the prompt, and padding; what is longer is cut at its end."""
        chat = [
            {"role": role, "content": [{"type": "text", "text": words}]}
            for role, words in (("system", SYSTEM), ("user", text))
        ]
        found = self.tokenizer.apply_chat_template(chat, tokenize=True, add_generation_prompt=False, return_dict=True)
        ids = list(found["input_ids"])[:TOKENS]
        return ids + [self.tokenizer.pad_token_id] * (TOKENS - len(ids))

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """One prompt after the other: the states of one alone are 100 MB."""
        device = next(self.model.parameters()).device
        whole = torch.empty(len(texts), TOKENS, self.channels, dtype=torch.bfloat16, device=device)
        for row, text in enumerate(texts):
            ids = torch.tensor([self.ids(text)], device=device)
            # no mask but that of time: all 512 are tokens like any other
            states = self.model(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[1:]
            if len(states) * states[0].shape[-1] != self.channels:
                raise RuntimeError(f"{len(states)} states of {states[0].shape[-1]} channels; {self.channels} were "
                                   "expected: is this version of transformers another one?")  # fmt: skip
            whole[row] = torch.cat([normalised(state[0]) for state in states], dim=-1)
        return whole


def normalised(state: Tensor) -> Tensor:
    """Each token's vector to mean 0 and standard deviation 1, in float32."""
    x = state.float()
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + EPS)
