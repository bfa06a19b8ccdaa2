"""How much people would like a picture: CLIP's embedding of it, rated by a small head.

The tower is CLIP's (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021,
https://arxiv.org/abs/2103.00020), as transformers has it, and the heads are the published ones on its embeddings, which
they expect to be of length 1:

linear    one layer, of https://github.com/LAION-AI/aesthetic-predictor
mlp       five layers with nothing between them, of https://github.com/christophschuhmann/improved-aesthetic-predictor
mlp-relu  the same with ReLU between them, of the same place

    model, processor = load_aesthetic("openai/clip-vit-large-patch14@32bd642...", "/models/head.pth", "cuda")
    ratings = model(processor(pictures, return_tensors="pt")["pixel_values"].to("cuda"))
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpc.models.hub import accounted, located, shorten

WIDTHS = (1024, 128, 64, 16, 1)
DROPOUT = (0.2, 0.2, 0.1)  # of no effect here: it keeps the numbers of the layers, by which the files name them
TOWER = ("vision_model.", "visual_projection.")  # a tower's keys in a file that has tower and head
OTHER = ("text_model.", "text_projection.", "logit_scale")  # a CLIP's keys that are not of its tower for pictures


def linear(size: int) -> nn.Module:
    return nn.Linear(size, 1)


def mlp(size: int, relu: bool = False) -> nn.Module:
    layers: list[nn.Module] = []
    for i, (inside, outside) in enumerate(zip((size, *WIDTHS), WIDTHS, strict=False)):
        layers.append(nn.Linear(inside, outside))
        if relu and i < len(WIDTHS) - 1:
            layers.append(nn.ReLU())
        if i < len(DROPOUT):
            layers.append(nn.Dropout(DROPOUT[i]))
    return nn.Sequential(*layers)


HEADS: dict[str, Callable[[int], nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "mlp-relu": lambda size: mlp(size, relu=True),
}


class Aesthetic(nn.Module):
    def __init__(self, tower: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.tower, self.head = tower, head

    def forward(self, pictures: Tensor) -> Tensor:
        """pictures: float [batch, 3, height, width], as the model's processor makes them. Returns float32 [batch]: the
        heads are trained on ratings from 1 to 10."""
        embeddings = self.tower(pictures.to(next(self.tower.parameters()).dtype)).image_embeds
        return self.head(F.normalize(embeddings.float(), dim=-1))[:, 0]


def load_aesthetic(clip: str, head: str, device: str | torch.device) -> tuple[Aesthetic, Callable[..., Any]]:
    """The model, ready for inference (its tower in bfloat16 on a GPU), and the processor that makes its input.

    clip, head: a path, or owner/name@revision on the Hugging Face hub. Raises ModuleNotFoundError without transformers,
    FileNotFoundError where a file is neither here nor to be had, RuntimeError where it holds something else.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"aesthetic scores need {error.name}, which is not installed here: pip install 'hpc[curate-models]'"
        ) from error
    folder = located(clip, "config.json", "preprocessor_config.json", "model.safetensors")[0].parent
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it would warn of is checked here
    tower, found = transformers.CLIPVisionModelWithProjection.from_pretrained(
        folder,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        dtype=torch.bfloat16 if torch.device(device).type == "cuda" else torch.float32,
    )
    accounted(folder, found, OTHER)
    rating = load_head(located(head, "model.safetensors")[0], tower.config.projection_dim)
    # The processor without torchvision: the same numbers whether that is installed or not.
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folder, local_files_only=True)
    return Aesthetic(tower, rating).eval().requires_grad_(False).to(device), processor


def load_head(path: Path, size: int) -> nn.Module:
    """The head in a file, told by its keys, for embeddings of `size`. Raises RuntimeError if no head has these keys."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        state = torch.load(path, map_location="cpu", weights_only=True)
    state = {key: value for key, value in state.items() if not key.startswith(TOWER)}
    found = {key.removeprefix("predictor.").removeprefix("layers."): value for key, value in state.items()}
    known: dict[str, list[str]] = {}
    for name, make in HEADS.items():
        head = make(size)
        known[name] = list(head.state_dict())
        if set(known[name]) == set(found):
            head.load_state_dict(found)  # raises RuntimeError where a shape differs
            return head.float()
    choice = "; ".join(f"{name}: {' '.join(keys)}" for name, keys in known.items())
    raise RuntimeError(f"{path}: no known head has these weights: {shorten(list(state))}. Known are {choice}")
