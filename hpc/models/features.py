"""How differently an image model sees two pictures: a loss for pictures that should look alike, not only be near.

    d = mean over levels, mean over places of |a / |a| - b / |b||^2

with a and b the channels of the model's hidden states at a place, of each level (stage of a ConvNeXt, layer of a ViT).
That is LPIPS (Zhang, Isola, Efros, Shechtman and Wang, "The Unreasonable Effectiveness of Deep Features as a Perceptual
Metric", 2018) without its learned weights of channels: its numbers are not LPIPS's.
"""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hpc.models import hub

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, where the model says none
HEADS = ("classifier.", "head.")  # of the model, but not of what makes hidden states


class Features(nn.Module):
    def __init__(self, model: nn.Module, mean: Tensor, deviation: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", mean.view(3, 1, 1))
        self.register_buffer("deviation", deviation.view(3, 1, 1))

    def forward(self, one_NCHW: Tensor, other_NCHW: Tensor) -> Tensor:
        """float32 [N], with a gradient; pictures from -1 to 1."""
        pairs = zip(self.levels(one_NCHW), self.levels(other_NCHW), strict=True)
        return torch.stack([(a - b).square().sum(-1).mean(1) for a, b in pairs]).mean(0)

    def levels(self, pictures_NCHW: Tensor) -> list[Tensor]:
        """Of each level [N, places, channels], of length 1."""
        scaled = ((pictures_NCHW + 1) / 2 - self.mean) / self.deviation
        states = self.model(scaled, output_hidden_states=True).hidden_states[1:]
        places = [one.flatten(2).transpose(1, 2) if one.ndim == 4 else one for one in states]
        return [F.normalize(one.float(), dim=-1) for one in places]


def load(where: str, device: str | torch.device = "cpu") -> Features:
    """where: an image model of transformers that has hidden states (ConvNeXt, DINOv2, ...): a path, or
    owner/name@revision on the Hugging Face hub. Raises FileNotFoundError where it is not to be had, RuntimeError where
    its weights are others than its config.json says."""
    import transformers

    folder = hub.folder(where)
    transformers.utils.logging.disable_progress_bar()
    model, found = transformers.AutoModel.from_pretrained(
        folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
    )
    hub.accounted(folder, found, HEADS)
    said = folder / "preprocessor_config.json"
    told = json.loads(said.read_bytes()) if said.is_file() else {}
    mean, deviation = (torch.tensor(told.get(key, usual)) for key, usual in (("image_mean", MEAN),
                                                                            ("image_std", DEVIATION)))  # fmt: skip
    return Features(model, mean, deviation).eval().requires_grad_(False).to(device)
