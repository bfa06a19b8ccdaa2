"""Vectors of clips by models, through transformers; in bfloat16 on a GPU, in float32 without one.

CLIP, SigLIP    transformers' own towers for pictures: the mean of the embeddings of 8 frames, each brought to length 1,
                brought to length 1 again
Cosmos-Embed1   and others with code of their own that has `get_video_embeddings`, and a processor for videos: as many
                frames as that says, from the first to the last (model card of nvidia/Cosmos-Embed1-224p)
InternVideo2    where it comes with code of its own that has `get_vid_feat`: 4 frames of 224x224, evenly spaced, less
                ImageNet's mean and by its deviation (OpenGVLab/InternVideo, InternVideo2/multi_modality/demo). Its
                stage-2 checkpoints on the hub are a bare .pt without such code; those do not load.

Code of a model's own is written for the transformers of its day: Cosmos-Curate (29f1358, pixi.toml) has 4.55.4 for
these two. Each model is tried once when it is opened, so that one that does not work is found out at once.
"""

from __future__ import annotations

import abc
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from hpc.models import hub
from hpc.models.embed import Embedder, Vectors

TOWERS = {
    "clip": ("CLIPVisionModelWithProjection", "CLIPImageProcessorPil", "image_embeds"),
    "clip_vision_model": ("CLIPVisionModelWithProjection", "CLIPImageProcessorPil", "image_embeds"),
    "siglip": ("SiglipVisionModel", "SiglipImageProcessorPil", "pooler_output"),
    "siglip_vision_model": ("SiglipVisionModel", "SiglipImageProcessorPil", "pooler_output"),
}
"""config.json's model_type -> (class, processor, what of its output is a picture's embedding). The processors without
torchvision: the same numbers whether that is installed or not."""
OTHER = ("text_model.", "text_projection.", "logit_scale", "logit_bias")  # of the model, but not of its tower
FRAMES = 8  # of a clip, where the model does not say
OLD = "4.55.4"
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's


def open_model(settings: Any) -> Embedder:
    """Raises as `hpc.models.embed.open_embedder` does."""
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"embeddings by a model need {error.name}, which is not installed here: pip install 'hpc[curate-models]'"
        ) from error
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()  # what it would warn of is checked here
    [where] = settings.models()
    folder = hub.folder(where)
    config = json.loads((folder / "config.json").read_bytes())
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if config.get("model_type") in TOWERS:
        made: Model = Tower(folder, config["model_type"], device)
    elif "auto_map" not in config:
        raise RuntimeError(
            f"{folder}: models of the type {config.get('model_type')!r} are not known here, and this one brings no "
            f"code of its own. Known are {', '.join(TOWERS)}, and code with get_video_embeddings (as Cosmos-Embed1 "
            "has) or get_vid_feat (as InternVideo2 has)"
        )
    elif not (settings.trust_remote_code or settings.model != where):  # short names stand for known revisions
        raise RuntimeError(
            f"{where} brings Python code of its own, which can do whatever this job can. Read {folder}/*.py, pin the "
            "revision (owner/name@commit), and say `trust_remote_code: true`"
        )
    else:
        made = own_code(folder, device)
    made.model = settings.model
    made.revision = folder.name if folder.parent.name == "snapshots" else ""
    made.try_out()
    return made


class Model(Embedder):
    model = ""
    device: str
    dtype: torch.dtype

    def times(self, frames: int) -> list[int]:
        return [int(at) for at in np.linspace(0, frames - 1, self.frames)]

    def size(self, width: int, height: int) -> tuple[int, int]:
        return width, height

    @abc.abstractmethod
    def forward(self, clips: Sequence[Tensor]) -> Tensor:
        """[clips, dim]"""

    @torch.inference_mode()
    def embed(self, clips: Sequence[Tensor]) -> Vectors:
        return self.forward(clips).float().cpu().numpy()

    def try_out(self) -> None:
        """Embed a made-up clip: how long vectors are, and whether they are numbers at all."""
        width, height = self.size(64, 48)
        random = np.random.default_rng(0)
        [vector] = self.embed([self.prepare(random.integers(0, 256, (self.frames, height, width, 3), np.uint8))])
        if vector.ndim != 1 or not np.isfinite(vector).all():
            raise RuntimeError(
                f"{self.model}: the model gives {vector.shape} numbers for a clip, and some are no numbers; its code "
                f"may be made for another transformers (Cosmos-Curate has {OLD})"
            )
        self.dim = len(vector)
        self.normalised = bool(abs(np.linalg.norm(vector) - 1) < 0.01)


class Tower(Model):
    frames = FRAMES

    def __init__(self, folder: Path, kind: str, device: str) -> None:
        import transformers

        tower, processor, self.output = TOWERS[kind]
        self.device, self.dtype = device, torch.bfloat16 if device == "cuda" else torch.float32
        model, found = getattr(transformers, tower).from_pretrained(
            folder, local_files_only=True, output_loading_info=True, ignore_mismatched_sizes=True, dtype=self.dtype
        )
        hub.accounted(folder, found, OTHER)
        self.tower = model.eval().requires_grad_(False).to(device)
        self.processor = getattr(transformers, processor).from_pretrained(folder, local_files_only=True)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """To which the processor would bring it: it finds nothing left to resize."""
        size = self.processor.size
        if "shortest_edge" not in size:
            return size["width"], size["height"]
        short = size["shortest_edge"]
        long = int(short * max(width, height) / min(width, height))
        return (short, long) if width < height else (long, short)

    def prepare(self, pictures: npt.NDArray[np.uint8]) -> Tensor:
        return self.processor(list(pictures), return_tensors="pt", input_data_format="channels_last")["pixel_values"]

    def forward(self, clips: Sequence[Tensor]) -> Tensor:
        pixels = torch.cat(list(clips)).to(self.device, self.dtype)
        found = F.normalize(getattr(self.tower(pixels), self.output).float(), dim=-1)
        return F.normalize(found.view(len(clips), -1, found.shape[-1]).mean(1), dim=-1)


def own_code(folder: Path, device: str) -> Model:
    """A model that brings its own code, which runs now. Raises RuntimeError if it does not load."""
    import transformers

    try:
        model, found = transformers.AutoModel.from_pretrained(
            folder, trust_remote_code=True, local_files_only=True, output_loading_info=True
        )
        if hasattr(model, "get_video_embeddings"):
            processor = transformers.AutoProcessor.from_pretrained(
                folder, trust_remote_code=True, local_files_only=True
            )
    except Exception as error:  # someone else's code: anything can come out of it
        raise RuntimeError(
            f"{folder}: the model's own code does not load with transformers {transformers.__version__} "
            f"({type(error).__name__}: {error}). Code for Cosmos-Embed1 and InternVideo2 was written for "
            f"transformers {OLD}, which is what Cosmos-Curate runs them with"
        ) from error
    hub.accounted(folder, {**found, "unexpected_keys": []})
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    model = model.eval().requires_grad_(False).to(device, dtype=dtype)
    if hasattr(model, "get_video_embeddings"):
        return Videos(model, processor, device, dtype)
    if hasattr(model, "get_vid_feat"):
        return Features(model, device, dtype)
    raise RuntimeError(
        f"{folder}: the model's own code has neither get_video_embeddings (as Cosmos-Embed1 has) nor get_vid_feat (as "
        "InternVideo2 has): it is not known here how it embeds a video"
    )


class Videos(Model):
    """In the manner of Cosmos-Embed1."""

    def __init__(self, model: Any, processor: Any, device: str, dtype: torch.dtype) -> None:
        self.network, self.processor, self.device, self.dtype = model, processor, device, dtype
        self.frames = int(getattr(processor, "num_video_frames", FRAMES))

    def prepare(self, pictures: npt.NDArray[np.uint8]) -> Tensor:
        batch = np.moveaxis(pictures, -1, 1)[None]  # [1, frames, 3, height, width]
        return self.processor(videos=batch, return_tensors="pt")["videos"]

    def forward(self, clips: Sequence[Tensor]) -> Tensor:
        videos = torch.cat(list(clips)).to(self.device, self.dtype)
        return self.network.get_video_embeddings(videos=videos).visual_proj


class Features(Model):
    """In the manner of InternVideo2."""

    frames = 4
    SIDE = 224

    def __init__(self, model: Any, device: str, dtype: torch.dtype) -> None:
        self.network, self.device, self.dtype = model, device, dtype

    def times(self, frames: int) -> list[int]:
        return [i * frames // self.frames for i in range(self.frames)]

    def size(self, width: int, height: int) -> tuple[int, int]:
        return self.SIDE, self.SIDE

    def prepare(self, pictures: npt.NDArray[np.uint8]) -> Tensor:
        pixels = (pictures.astype(np.float32) / 255 - np.array(MEAN, np.float32)) / np.array(DEVIATION, np.float32)
        return torch.from_numpy(np.moveaxis(pixels, -1, 1)[None].copy())

    def forward(self, clips: Sequence[Tensor]) -> Tensor:
        found = self.network.get_vid_feat(torch.cat(list(clips)).to(self.device, self.dtype))
        return found[:, 0] if found.ndim == 3 and found.shape[1] == 1 else found
