"""Networks that make features of videos, for distances between sets of them.

    backbone = load("MCG-NJU/videomae-base", None, "cuda")
    features = backbone(pictures)        # uint8 [N, backbone.clip, height, width, 3], RGB -> float32 [N, backbone.dim]

perceptual      hpc.models.perceptual; no weights, no GPU
i3d             of FVD: a TorchScript archive that takes [N, 3, T, 224, 224] from -1 to 1 and gives 400 numbers, those
                before the softmax; windows of 16 frames, stretched (stylegan-v: src/metrics/frechet_video_distance.py)
inception       of FID: a TorchScript archive that takes uint8 [N, 3, H, W], resizes by itself and gives 2,048 numbers
                (stylegan2-ada-pytorch: metrics/metric_utils.py)
VideoMAE        by transformers: windows of as many frames as its config says, the mean of its last states
image models    by transformers: the `pooler_output` of a picture where there is one, else the mean of the last states
module:make     a function that is called with the device and returns a Backbone: torchvision's, timm's, your own

TorchScript archives are programs: they are run, without Python, as any that torch.jit.load reads.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from hpc.models import hub, perceptual
from hpc.models.features import DEVIATION, HEADS, MEAN

VIDEO = {"videomae": "VideoMAEModel"}
"""config.json's model_type -> transformers' class, of models that take windows of frames."""
DECODERS = ("decoder.", "encoder_to_decoder.", "mask_token", "fc_norm.", *HEADS)  # of what VideoMAE is trained with


@runtime_checkable
class Backbone(Protocol):
    dim: int
    clip: int
    """Frames of what it makes one feature of; 1: pictures."""
    whole: bool
    """Are these frames spread over the whole video, rather than following one another?"""
    size: tuple[int, int] | None
    """Height and width that it takes; None: any."""

    def __call__(self, pictures_NTHWC: Tensor) -> Tensor:
        """uint8 [N, clip, height, width, 3], RGB -> float32 [N, dim]"""
        ...


def load(network: str, archive: tuple[str, str] | None, device: str | torch.device = "cpu") -> Backbone:
    """archive: of i3d and inception (path or owner/name@revision, name of the file there). Raises FileNotFoundError
    where weights are not to be had, RuntimeError for weights of another model, ValueError and TypeError for a function
    that is not there or returns something else."""
    if network == "perceptual":
        return Perceptual()
    if network in ("i3d", "inception"):
        assert archive
        [path] = hub.located(*archive)
        return (I3D if network == "i3d" else Inception)(path, device)
    if ":" in network:
        return imported(network, device)
    return of_transformers(network, device)


class Perceptual:
    dim, clip, whole, size = perceptual.DIMENSIONS, perceptual.FRAMES, True, (perceptual.SIDE, perceptual.SIDE)

    def __call__(self, pictures_NTHWC: Tensor) -> Tensor:
        return torch.from_numpy(np.stack([perceptual.describe(one.cpu().numpy()) for one in pictures_NTHWC]))


class Archive:
    """A TorchScript archive."""

    def __init__(self, path: Path, device: str | torch.device) -> None:
        self.device = device
        try:
            self.script = torch.jit.load(path, map_location=device).eval()
        except RuntimeError as error:
            words = str(error).strip().splitlines()[0]
            raise RuntimeError(f"{path} is no TorchScript archive that can be loaded: {words}") from error


class I3D(Archive):
    dim, clip, whole, size = 400, 16, False, (224, 224)

    @torch.inference_mode()
    def __call__(self, pictures_NTHWC: Tensor) -> Tensor:
        x_NCTHW = pictures_NTHWC.to(self.device).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        return self.script(x_NCTHW, rescale=False, resize=False, return_features=True).float().cpu()


class Inception(Archive):
    dim, clip, whole, size = 2048, 1, False, None

    @torch.inference_mode()
    def __call__(self, pictures_NTHWC: Tensor) -> Tensor:
        x_NCHW = pictures_NTHWC[:, 0].to(self.device).permute(0, 3, 1, 2)
        return self.script(x_NCHW, return_features=True).float().cpu()


class Transformers:
    """A model of transformers' in float32."""

    whole = False

    def __init__(self, model: torch.nn.Module, folder: Path, clip: int, side: int, device: str | torch.device) -> None:
        self.model = model.eval().requires_grad_(False).to(device)
        self.device, self.clip, self.size, self.dim = device, clip, (side, side), 0
        said = folder / "preprocessor_config.json"
        told = json.loads(said.read_bytes()) if said.is_file() else {}
        self.mean, self.deviation = (torch.tensor(told.get(key) or usual, device=device).view(3, 1, 1) for key, usual in
                                     (("image_mean", MEAN), ("image_std", DEVIATION)))  # fmt: skip
        self.dim = self(torch.zeros(1, clip, side, side, 3, dtype=torch.uint8)).shape[1]

    @torch.inference_mode()
    def __call__(self, pictures_NTHWC: Tensor) -> Tensor:
        x_NTCHW = pictures_NTHWC.to(self.device).permute(0, 1, 4, 2, 3).float() / 255
        x_NTCHW = (x_NTCHW - self.mean) / self.deviation
        out = self.model(x_NTCHW if self.clip > 1 else x_NTCHW[:, 0])
        pooled = getattr(out, "pooler_output", None)
        if pooled is not None and self.clip == 1:
            return pooled.flatten(1).float().cpu()
        states = out.last_hidden_state
        return (states.mean(1) if states.ndim == 3 else states.flatten(2).mean(2)).float().cpu()


def of_transformers(where: str, device: str | torch.device) -> Transformers:
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{where} is loaded by {error.name}, which is not installed here: pip install 'hpc[curate-models]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    folder = hub.folder(where)
    config = json.loads((folder / "config.json").read_bytes())
    name = VIDEO.get(config.get("model_type"), "AutoModel")
    model, found = getattr(transformers, name).from_pretrained(
        folder, local_files_only=True, output_loading_info=True, dtype=torch.float32
    )
    if hasattr(model, "vision_model"):  # a CLIP: pictures alone
        model = model.vision_model
    hub.accounted(folder, found, DECODERS if name != "AutoModel" else HEADS)
    own = model.config
    side = getattr(own, "image_size", None) or 224
    return Transformers(model, folder, getattr(own, "num_frames", 1) if name != "AutoModel" else 1, side, device)


def imported(where: str, device: str | torch.device) -> Backbone:
    """Of `package.module:make`."""
    module, _, name = where.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"network {where}: {error}; it is package.module:function, importable here") from error
    backbone = make(device)
    if not isinstance(backbone, Backbone):
        lacks = [one for one in ("dim", "clip", "whole", "size", "__call__") if not hasattr(backbone, one)]
        raise TypeError(f"{where} returned a {type(backbone).__name__}, which lacks {', '.join(lacks)} of a Backbone")
    return backbone


def observed(backbone: Backbone, frames: int, count: int | None) -> list[list[int]]:
    """Which frames of a video of so many make a feature, each: `count` pictures or windows, evenly spaced; None: 16
    pictures, or one window from the beginning. A video that is shorter than a window is held at its last frame."""
    if backbone.whole:
        return [[min(int((i + 0.5) / backbone.clip * frames), frames - 1) for i in range(backbone.clip)]]
    wanted = count or (16 if backbone.clip == 1 else 1)
    last = max(frames - backbone.clip, 0)
    wanted = min(wanted, last + 1)  # no two alike
    starts = [round(i * last / max(wanted - 1, 1)) for i in range(wanted)]
    return [[min(start + i, frames - 1) for i in range(backbone.clip)] for start in starts]
