"""Texts as diffusion transformers read them, by tiny encoders with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from test_text_embed import save

from hpc.models import text_input
from hpc.models.text_input import SYSTEM, TOKENS, load_text_input

PROMPT = "A robot lifts a cup."


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.qwen2_5_vl(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("t5"), d_model=32)


def by_hand(folder: Path, texts: list[str]) -> tuple[list[torch.Tensor], Any]:
    """What each layer of the whole model gives for ids put together here, all texts at once; the tokenizer."""
    import transformers

    model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(folder)
    chats = [f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{text}<|im_end|>\n" for text in texts]
    ids = [words(chat)["input_ids"] for chat in chats]
    ids = [one[:TOKENS] + [words.pad_token_id] * (TOKENS - len(one)) for one in ids]
    outs: list[torch.Tensor] = []
    for layer in model.model.language_model.layers:
        layer.register_forward_hook(lambda _, __, out: outs.append(out[0] if isinstance(out, tuple) else out))
    with torch.no_grad():
        model(input_ids=torch.tensor(ids))
        last = model.model.language_model.norm(outs[-1])  # the last layer's state has the norm behind it
    return [*outs[:-1], last], words


def test_states_of_all_layers_side_by_side(qwen: Path) -> None:
    encode = load_text_input("qwen2.5-vl", str(qwen))
    texts = [PROMPT, "Another one, which is a little longer."]
    found = encode(texts)
    assert found.shape == (2, TOKENS, 2 * 32) and found.dtype == torch.bfloat16
    states, _ = by_hand(qwen, texts)
    for i, state in enumerate(states):
        wanted = (state - state.mean(-1, keepdim=True)) / (state.std(-1, keepdim=True) + 1e-8)
        torch.testing.assert_close(found[..., 32 * i : 32 * i + 32].float(), wanted, rtol=0.01, atol=0.01)
    assert not torch.allclose(found[0], found[1])


def test_a_prompt_is_alone_what_it_is_among_others(qwen: Path) -> None:
    encode = load_text_input("qwen2.5-vl", str(qwen))
    assert torch.equal(encode(["x" * 90, PROMPT])[1], encode([PROMPT])[0])


def test_padding_has_states_and_the_prompt_does_not_see_it(qwen: Path) -> None:
    encode = load_text_input("qwen2.5-vl", str(qwen))
    ids = encode.ids(PROMPT)
    length = ids.index(encode.tokenizer.pad_token_id)
    assert len(ids) == TOKENS and set(ids[length:]) == {encode.tokenizer.pad_token_id}
    whole = encode([PROMPT])[0].float()
    assert whole[length:].abs().sum(-1).min() > 0
    with torch.no_grad():
        alone = encode.model(input_ids=torch.tensor([ids[:length]]), output_hidden_states=True).hidden_states[-1][0]
    torch.testing.assert_close(whole[:length, -32:], text_input.normalised(alone), rtol=0.01, atol=0.01)


def test_long_prompts_are_cut_at_512_tokens(qwen: Path) -> None:
    encode = load_text_input("qwen2.5-vl", str(qwen))
    assert len(encode.ids("x" * 2000)) == TOKENS and encode.tokenizer.pad_token_id not in encode.ids("x" * 2000)
    assert torch.equal(encode(["x" * 2000])[0], encode(["x" * 2500])[0])


def test_vectors_of_t5_and_zeros_after_them(t5: Path) -> None:
    import transformers

    encode = load_text_input("t5", str(t5))
    found = encode([PROMPT, "x", "a " * 700])
    assert found.shape == (3, TOKENS, 32) and found.dtype == torch.bfloat16
    model = transformers.T5EncoderModel.from_pretrained(t5).eval()
    words = transformers.AutoTokenizer.from_pretrained(t5)
    for row, text in enumerate([PROMPT, "x", "a " * 700]):
        ids = words(text)["input_ids"]
        ids = ids if len(ids) <= TOKENS else ids[:511] + ids[-1:]
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        torch.testing.assert_close(found[row, : len(ids)].float(), wanted, rtol=0.02, atol=0.02)
        assert found[row, len(ids) :].abs().max().item() == 0 if len(ids) < TOKENS else len(ids) == TOKENS


def test_embeddings_of_a_folder_get_zeros_too() -> None:
    arrays = [np.full((3, 4), 2, np.float16), np.full((600, 4), 3, np.float16)]
    found = text_input.padded(arrays, 4)
    assert found[0].float().sum(-1).tolist() == [8] * 3 + [0] * 509 and (found[1] == 3).all()


def test_another_model_is_refused(t5: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"a model of the type 't5'; Predict2\.5 reads states of qwen2_5_vl"):
        load_text_input("qwen2.5-vl", str(t5))
    with pytest.raises(FileNotFoundError, match="there is no"):
        load_text_input("qwen2.5-vl", str(tmp_path / "gone"))
