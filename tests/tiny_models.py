"""Tiny models of transformers' own classes with random weights, saved as published ones are; and prompts for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
           "<|video_pad|>")  # fmt: skip
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""As Qwen's models have it, but for their own system message."""


def tokenizer(special: tuple[str, ...] = SPECIAL, template: str = TEMPLATE) -> Any:
    """A token for each byte, then the special ones."""
    import tokenizers
    import transformers

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(list(special))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>" if "<|im_end|>" in special else special[0],
        pad_token=special[0], chat_template=template,
    )  # fmt: skip


def save(model: Any, words: Any, folder: Path, likely_end: float = 0.0) -> Path:
    """likely_end: how much likelier than the others the end of an answer is."""
    import torch

    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # far apart for prompts and frames that differ
                parameter.mul_(3)
        model.get_output_embeddings().weight[words.eos_token_id] *= 1 + likely_end
    model.generation_config.eos_token_id = words.eos_token_id
    model.generation_config.pad_token_id = words.pad_token_id
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def text_config(words: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(words), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096,
        "tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id, **more,
    }  # fmt: skip


def tokens(words: Any) -> dict[str, int]:
    """The ids that a config of a vision-language model names."""
    return {f"{name}_token_id": words.convert_tokens_to_ids(f"<|{token}|>") for name, token in
            (("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"),
             ("vision_end", "vision_end"))}  # fmt: skip


def qwen2_5_vl(folder: Path, seed: int = 0, likely_end: float = 0.0, positions: int = 4096) -> Path:
    import torch
    import transformers

    words = tokenizer()
    config = transformers.Qwen2_5_VLConfig(
        text_config=text_config(words, max_position_embeddings=positions, rope_parameters={
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}),
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
                       "fullatt_block_indexes": [1], "tokens_per_second": 2},
        **tokens(words),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.Qwen2_5_VLForConditionalGeneration(config)
    transformers.Qwen2VLImageProcessorPil(image_mean=[0.48, 0.46, 0.41], image_std=[0.27, 0.26, 0.28]
                                          ).save_pretrained(folder)  # fmt: skip
    return save(model, words, folder, likely_end)


def qwen3_vl(folder: Path, seed: int = 0, likely_end: float = 0.0) -> Path:
    import torch
    import transformers

    words = tokenizer()
    config = transformers.Qwen3VLConfig(
        text_config=text_config(words, head_dim=8, rope_parameters={
            "rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1], "mrope_interleaved": True}),
        vision_config={"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
                       "patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        **tokens(words),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.Qwen3VLForConditionalGeneration(config)
    transformers.Qwen2VLImageProcessorPil(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3
                                          ).save_pretrained(folder)  # fmt: skip
    return save(model, words, folder, likely_end)


def relative(folder: Path, name: str) -> Path:
    """Another vision-language model of the family: qwen2_vl, qwen3_vl_moe or qwen3_5."""
    import torch
    import transformers

    words = tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32,
              "patch_size": 16, "num_position_embeddings": 64}  # fmt: skip
    if name == "qwen2_vl":
        kind, config = transformers.Qwen2VLForConditionalGeneration, transformers.Qwen2VLConfig(
            text_config=text_config(words, rope_parameters=rope), **tokens(words),
            vision_config={"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2},
        )  # fmt: skip
    elif name == "qwen3_vl_moe":
        kind, config = transformers.Qwen3VLMoeForConditionalGeneration, transformers.Qwen3VLMoeConfig(
            text_config=text_config(words, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32,
                                    rope_parameters=rope | {"mrope_section": [2, 1, 1], "mrope_interleaved": True}),
            vision_config=vision | {"deepstack_visual_indexes": [0]}, **tokens(words),
        )  # fmt: skip
    else:
        kind, config = transformers.Qwen3_5ForConditionalGeneration, transformers.Qwen3_5Config(
            text_config=text_config(words, head_dim=16, num_hidden_layers=4, linear_num_key_heads=2,
                                    linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8,
                                    rope_parameters=rope | {"mrope_section": [1, 1, 0], "mrope_interleaved": True,
                                                            "partial_rotary_factor": 0.25}),
            vision_config=vision, **tokens(words),
        )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = kind(config)
    transformers.Qwen2VLImageProcessorPil(patch_size=14 if name == "qwen2_vl" else 16).save_pretrained(folder)
    return save(model, words, folder)


def qwen2(folder: Path, seed: int = 0, likely_end: float = 0.0) -> Path:
    """A language model."""
    import torch
    import transformers

    words = tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**text_config(words)))
    return save(model, words, folder, likely_end)


def llava(folder: Path, seed: int = 0) -> Path:
    """A model for pictures, whose processor needs no torchvision: for servers."""
    import torch
    import transformers

    words = tokenizer(
        ("<unk>", "</s>", "<image>"),
        "{% for m in messages %}{{ m['role'] }}: {% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for part in m['content'] %}{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
    )
    words.eos_token = "</s>"
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **text_config(words)},
        vision_config={"model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 32,
                       "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28, "patch_size": 14},
        image_token_id=words.convert_tokens_to_ids("<image>"), image_token_index=words.convert_tokens_to_ids("<image>"),
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = transformers.LlavaForConditionalGeneration(config)
    pictures = transformers.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    save(model, words, folder)
    transformers.LlavaProcessor(pictures, words, patch_size=14, vision_feature_select_strategy="default",
                                image_token="<image>", num_additional_image_tokens=1,
                                chat_template=words.chat_template).save_pretrained(folder)  # fmt: skip
    return folder
