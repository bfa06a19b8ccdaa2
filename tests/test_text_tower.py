"""Vectors of texts are those of the whole model that transformers has, and of code that models bring along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_embed_models as own
import tiny_models
import tokenizers
import torch
import transformers

from hpc.models.text_tower import open_text_tower

pytestmark = pytest.mark.usefixtures("code_of_models")
TEXTS = ["a cat on a sofa", "Rain.", "", "a street with many cars and people " * 9]
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "max_position_embeddings": 24}  # fmt: skip


def saved(kind: str, folder: Path) -> tuple[Any, Any]:
    """(the whole model, its tokenizer), with random weights, saved as published ones are."""
    words = tiny_models.tokenizer()
    words.backend_tokenizer.post_processor = tokenizers.processors.TemplateProcessing(  # as CLIP's has it
        single="$A <|im_end|>", special_tokens=[("<|im_end|>", words.eos_token_id)]
    )
    text = SIZES | {"vocab_size": len(words), "eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id,
                    "bos_token_id": words.pad_token_id}  # fmt: skip
    torch.manual_seed(0)
    if kind == "clip":
        more = {"projection_dim": 20}
        config = transformers.CLIPConfig(text_config=text | more, vision_config=own.VISION | more, **more)
        model = transformers.CLIPModel(config)
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=own.VISION))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return model.eval(), words


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_vectors_are_those_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    model, words = saved(kind, tmp_path)
    found = open_text_tower(str(tmp_path), False)(TEXTS)
    assert found.dtype == np.float32 and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    for text, vector in zip(TEXTS, found, strict=True):  # each alone: padding says nothing
        padding = "max_length" if kind == "siglip" else False
        tokens = words(text, return_tensors="pt", truncation=True, max_length=24, padding=padding)
        with torch.no_grad():
            expected = model.get_text_features(input_ids=tokens["input_ids"])
        expected = getattr(expected, "pooler_output", expected)[0].numpy()
        assert np.allclose(vector, expected / np.linalg.norm(expected), atol=1e-4)
    assert abs(found[0] @ found[1]) < 0.999, "texts differ"
    assert open_text_tower(str(tmp_path), False)([]).shape[0] == 0


def test_other_weights_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    saved("clip", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["text_model.encoder.layers.7.mlp.fc1.weight"] = state.pop("text_model.encoder.layers.1.mlp.fc1.weight")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match="not the weights of the model"):
        open_text_tower(str(tmp_path), False)


TEXT = """
    def get_text_embeddings(self, input_ids, attention_mask):
        letters = nn.functional.one_hot(input_ids, 48).float() * attention_mask[..., None]
        return VideoOutput(visual_proj=None, text_proj=self.proj(letters.sum(1)))
"""


def test_in_the_manner_of_cosmos_embed1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    both = own.MODELING.replace("visual_proj: torch.Tensor = None", "visual_proj: torch.Tensor = None\n"
                                "    text_proj: torch.Tensor = None")  # fmt: skip
    spelled = (
        "        if text is not None:\n"
        "            ids = [[ord(letter) % 48 for letter in one] for one in text]\n"
        "            longest = max(map(len, ids))\n"
        "            pad = lambda one, fill: one + [fill] * (longest - len(one))\n"
        "            return BatchFeature({'input_ids': torch.tensor([pad(one, 0) for one in ids]),\n"
        "                                 'attention_mask': torch.tensor([pad([1] * len(one), 0) for one in ids])})\n"
    )
    head, call, rest = own.PROCESSING.partition("        assert videos.dtype")
    monkeypatch.setattr(own, "PROCESSING", head + spelled + call + rest)
    folder = own.own_code(tmp_path / "model", both + TEXT)
    with pytest.raises(RuntimeError, match=r"brings Python code of its own.*trust_remote_code: true"):
        open_text_tower(str(folder), False)
    found = open_text_tower(str(folder), True)(["abc", "a longer text"])
    assert found.shape == (2, 12) and np.allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    alone = open_text_tower(str(folder), True)(["abc"])
    assert np.allclose(found[0], alone[0], atol=1e-5)


def test_a_model_of_clips_alone_says_so(tmp_path: Path) -> None:
    folder = own.own_code(tmp_path / "model")
    with pytest.raises(RuntimeError, match="embeds no texts"):
        open_text_tower(str(folder), True)
