"""The other half of models that embed texts and clips alike: vectors of texts, beside hpc.models.embed's of clips.

    tower = open_text_tower("clip-vit-large", folder)
    vectors = tower(["a cat on a sofa", "rain"])        # float32 [texts, dim], of length 1

CLIP and SigLIP through transformers' own classes; Cosmos-Embed1, and others with code of their own that has
`get_text_embeddings` (model card of nvidia/Cosmos-Embed1-224p). Texts are cut to what the model takes: 77 tokens of
CLIP, 64 of SigLIP, 128 of Cosmos-Embed1.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hpc.models import hub
from hpc.models.embed import Vectors

TOWERS = {
    "clip": ("CLIPTextModelWithProjection", "text_embeds"),
    "clip_text_model": ("CLIPTextModelWithProjection", "text_embeds"),
    "siglip": ("SiglipTextModel", "pooler_output"),
    "siglip_text_model": ("SiglipTextModel", "pooler_output"),
}
"""config.json's model_type -> (class, what of its output is a text's embedding)."""
OTHER = ("vision_model.", "visual_projection.", "logit_scale", "logit_bias")  # of the model, but not of its tower
BATCH = 64
Tower = Callable[[Sequence[str]], Vectors]


def open_text_tower(where: str, trust_remote_code: bool) -> Tower:
    """where: as hub.folder takes it. Raises FileNotFoundError for a model that is not to be had, RuntimeError for one
    that embeds no texts."""
    import transformers

    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it would warn of is checked here
    folder = hub.folder(where)
    kind = json.loads((folder / "config.json").read_bytes()).get("model_type")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    embed = own(folder, kind, device) if kind in TOWERS else of_its_code(folder, where, trust_remote_code, device)

    @torch.inference_mode()
    def tower(texts: Sequence[str]) -> Vectors:
        found = [embed(list(texts[at : at + BATCH])).float().cpu().numpy() for at in range(0, len(texts), BATCH)]
        return np.concatenate(found) if found else np.empty((0, 0), np.float32)

    return tower


def own(folder: Path, kind: str, device: str) -> Callable[[list[str]], Tensor]:
    import transformers

    name, output = TOWERS[kind]
    tower, found = getattr(transformers, name).from_pretrained(
        folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, dtype=torch.float32
    )
    hub.accounted(folder, found, OTHER)
    tower = tower.eval().requires_grad_(False).to(device)
    words = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    most = tower.config.max_position_embeddings
    # SigLIP was trained on texts padded to their full length, and takes no mask.
    padding = "max_length" if kind.startswith("siglip") else True

    def embed(texts: list[str]) -> Tensor:
        tokens = words(texts, padding=padding, truncation=True, max_length=most, return_tensors="pt").to(device)
        takes = {name: tokens[name] for name in ("input_ids", "attention_mask") if name in tokens}
        if padding == "max_length":
            takes.pop("attention_mask", None)
        return F.normalize(getattr(tower(**takes), output).float(), dim=-1)

    return embed


def of_its_code(folder: Path, where: str, trusted: bool, device: str) -> Callable[[list[str]], Tensor]:
    import transformers

    if not trusted:
        raise RuntimeError(
            f"{where} brings Python code of its own, which can do whatever this job can. Read {folder}/*.py, pin the "
            "revision (owner/name@commit), and say `trust_remote_code: true`"
        )
    model: Any = transformers.AutoModel.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    if not hasattr(model, "get_text_embeddings"):
        raise RuntimeError(f"{folder}: the model's own code has no get_text_embeddings: it embeds no texts")
    processor: Any = transformers.AutoProcessor.from_pretrained(folder, trust_remote_code=True, local_files_only=True)
    model = model.eval().requires_grad_(False).to(device)

    def embed(texts: list[str]) -> Tensor:
        tokens = processor(text=texts, return_tensors="pt").to(device)
        return F.normalize(model.get_text_embeddings(**tokens).text_proj.float(), dim=-1)

    return embed
