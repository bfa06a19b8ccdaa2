"""Vectors of clips by models: tiny ones of transformers' own classes, and ones that bring code of their own, as
Cosmos-Embed1 and InternVideo2 do, in folders like those on the hub."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file, save_file

from hpc.curate.settings.embed import Embed
from hpc.models import embed_models
from hpc.models.embed import open_embedder

pytestmark = pytest.mark.usefixtures("code_of_models")


SIDE = 32
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
          "image_size": SIDE, "patch_size": 8}  # fmt: skip
TEXT = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64,
        "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("clip")
    config = transformers.CLIPConfig(text_config=TEXT, vision_config={**VISION, "projection_dim": 20},
                                     projection_dim=20)  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(folder)
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    transformers.CLIPImageProcessorPil(**size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("siglip")
    transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)).save_pretrained(folder)
    transformers.SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def pictures(count: int, width: int, height: int, seed: int = 0) -> np.ndarray:
    """Frames with something to see in them: noise is a mean for every model."""
    random = np.random.default_rng(seed)
    small = torch.from_numpy(random.integers(0, 256, (count, 3, 4, 4)).astype(np.float32))
    large = F.interpolate(small, (height, width), mode="bilinear").clamp(0, 255)
    return large.permute(0, 2, 3, 1).to(torch.uint8).numpy()


# --- towers


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_mean_of_frames_of_length_one(kind: str, clip: Path, siglip: Path) -> None:
    folder = {"clip": clip, "siglip": siglip}[kind]
    embedder = open_embedder(Embed(model=str(folder)))
    size = embedder.size(640, 360)
    assert size == {"clip": (56, 32), "siglip": (32, 32)}[kind]
    clips = [pictures(8, *size, seed=seed) for seed in range(3)]
    found = embedder.embed([embedder.prepare(one) for one in clips])
    assert found.shape == (3, embedder.dim) == (3, {"clip": 20, "siglip": 32}[kind]) and found.dtype == np.float32
    assert embedder.frames == 8 and embedder.normalised and embedder.revision == ""

    model = transformers.AutoModel.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    for vector, one in zip(found, clips, strict=True):
        pixels = processor(list(one), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        with torch.no_grad():
            features = model.get_image_features(pixel_values=pixels)
        features = F.normalize(getattr(features, "pooler_output", features), dim=-1)
        expected = F.normalize(features.mean(0), dim=0).numpy()
        assert np.allclose(vector, expected, atol=2e-5)
    assert found[0] @ found[1] < 0.9999


def test_frames_are_spread_from_the_first_to_the_last(clip: Path) -> None:
    embedder = open_embedder(Embed(model=str(clip)))
    assert embedder.times(100) == [0, 14, 28, 42, 56, 70, 84, 99]
    assert embedder.times(3) == [0, 0, 0, 0, 1, 1, 1, 2] and embedder.times(1) == [0] * 8


def test_other_weights_are_refused(clip: Path, tmp_path: Path) -> None:
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / name).write_bytes((clip / name).read_bytes())
    state = load_file(clip / "model.safetensors")
    state.pop("visual_projection.weight")
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(RuntimeError, match=r"missing: visual_projection\.weight"):
        open_embedder(Embed(model=str(tmp_path)))


def test_another_kind_of_model_is_named(tmp_path: Path) -> None:
    transformers.BertModel(transformers.BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1,
                                                   num_attention_heads=1, intermediate_size=8)
                           ).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(RuntimeError, match="'bert' are not known here"):
        open_embedder(Embed(model=str(tmp_path)))


def test_a_bare_checkpoint_is_no_model(tmp_path: Path) -> None:
    """As InternVideo2's stage-2 repository on the hub: one .pt."""
    (tmp_path / "InternVideo2-stage2_1b-224p-f4.pt").write_bytes(b"x")
    with pytest.raises(FileNotFoundError, match=r"there is no .*config\.json"):
        open_embedder(Embed(model=str(tmp_path), trust_remote_code=True))


# --- models with code of their own

CONFIGURATION = """
from transformers import PretrainedConfig

class TinyConfig(PretrainedConfig):
    model_type = "NAME"

    def __init__(self, embed_dim=12, num_video_frames=8, resolution=32, **kwargs):
        super().__init__(**kwargs)
        self.embed_dim, self.num_video_frames, self.resolution = embed_dim, num_video_frames, resolution
"""
MODELING = """
from dataclasses import dataclass
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from .configuration_tiny import TinyConfig

@dataclass
class VideoOutput(ModelOutput):
    visual_proj: torch.Tensor = None

class TinyModel(PreTrainedModel):
    config_class = TinyConfig

    def __init__(self, config):
        super().__init__(config)
        self.proj = nn.Linear(3 * 4 * 4, config.embed_dim)
        self.post_init()

    def get_video_embeddings(self, videos):
        frames = nn.functional.adaptive_avg_pool2d(videos.flatten(0, 1), 4).flatten(1)
        mean = self.proj(frames).view(*videos.shape[:2], -1).mean(1)
        return VideoOutput(visual_proj=nn.functional.normalize(mean, dim=-1))
"""
PROCESSING = """
import numpy as np
import torch
from transformers import BatchFeature
from transformers.processing_utils import ProcessorMixin

class TinyProcessor(ProcessorMixin):
    attributes = []

    def __init__(self, num_video_frames=8, resolution=32, **kwargs):
        super().__init__()
        self.num_video_frames, self.resolution = num_video_frames, resolution

    def __call__(self, videos=None, text=None, return_tensors=None):
        assert videos.dtype == np.uint8 and videos.shape[1] == self.num_video_frames and videos.shape[2] == 3
        pixels = torch.from_numpy(np.ascontiguousarray(videos)).float() / 255
        size = (self.resolution, self.resolution)
        small = torch.nn.functional.interpolate(pixels.flatten(0, 1), size, mode="bilinear")
        return BatchFeature({"videos": small.view(*pixels.shape[:3], *size)})
"""
FEATURES = """
    def get_vid_feat(self, frames):
        pooled = nn.functional.adaptive_avg_pool2d(frames.flatten(0, 1), 4).flatten(1)
        mean = self.proj(pooled).view(*frames.shape[:2], -1).mean(1, keepdim=True)
        return mean / mean.norm(dim=-1, keepdim=True)
"""


def own_code(folder: Path, modeling: str = MODELING, processor: bool = True) -> Path:
    """A folder as the hub has it: weights, configs with auto_map, and the code. Each is of a type of its own, since
    transformers remembers the code of a type as long as the process lives."""
    folder.mkdir(exist_ok=True)
    name = f"tiny-{folder.parent.name.replace('_', '-')}"
    auto = {"AutoConfig": "configuration_tiny.TinyConfig", "AutoModel": "modeling_tiny.TinyModel"}
    (folder / "config.json").write_text(json.dumps({
        "model_type": name, "architectures": ["TinyModel"], "auto_map": auto, "embed_dim": 12,
        "num_video_frames": 8, "resolution": 32, "torch_dtype": "float32"}))  # fmt: skip
    (folder / "configuration_tiny.py").write_text(CONFIGURATION.replace("NAME", name))
    (folder / "modeling_tiny.py").write_text(modeling)
    if processor:
        (folder / "preprocessing_tiny.py").write_text(PROCESSING)
        words = {"processor_class": "TinyProcessor", "auto_map": {"AutoProcessor": "preprocessing_tiny.TinyProcessor"},
                 "num_video_frames": 8, "resolution": 32}  # fmt: skip
        (folder / "processor_config.json").write_text(json.dumps(words))
    torch.manual_seed(2)
    linear = torch.nn.Linear(48, 12)
    state = {"proj.weight": linear.weight.detach(), "proj.bias": linear.bias.detach()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})
    return folder


def test_code_of_its_own_is_not_run_unless_it_is_trusted(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    folder = own_code(tmp_path / "model", f"open({str(flag)!r}, 'w')\n{MODELING}")
    with pytest.raises(RuntimeError, match=r"brings Python code of its own.*trust_remote_code: true"):
        open_embedder(Embed(model=str(folder)))
    assert not flag.exists()
    open_embedder(Embed(model=str(folder), trust_remote_code=True))
    assert flag.exists()


def test_in_the_manner_of_cosmos_embed1(tmp_path: Path) -> None:
    folder = own_code(tmp_path / "model")
    embedder = open_embedder(Embed(model=str(folder), trust_remote_code=True))
    assert (embedder.dim, embedder.frames, embedder.normalised) == (12, 8, True)
    assert embedder.size(640, 360) == (640, 360) and embedder.times(16) == [0, 2, 4, 6, 8, 10, 12, 15]
    clips = [pictures(8, 64, 48, seed=1), pictures(8, 80, 40, seed=2)]  # sizes differ within a batch
    found = embedder.embed([embedder.prepare(one) for one in clips])
    weights = load_file(folder / "model.safetensors")
    for vector, one in zip(found, clips, strict=True):
        pixels = torch.from_numpy(one).permute(0, 3, 1, 2).float() / 255
        small = F.adaptive_avg_pool2d(F.interpolate(pixels, (32, 32), mode="bilinear"), 4).flatten(1)
        mean = F.linear(small, weights["proj.weight"], weights["proj.bias"]).mean(0)
        assert np.allclose(vector, F.normalize(mean, dim=0).numpy(), atol=1e-5)


def test_in_the_manner_of_internvideo2(tmp_path: Path) -> None:
    folder = own_code(tmp_path / "model", MODELING.partition("    def get_video")[0] + FEATURES, processor=False)
    embedder = open_embedder(Embed(model=str(folder), trust_remote_code=True))
    assert (embedder.dim, embedder.frames, embedder.normalised) == (12, 4, True)
    assert embedder.size(640, 360) == (224, 224) and embedder.times(10) == [0, 2, 5, 7]
    one = pictures(4, 224, 224)
    pixels = (torch.from_numpy(one).permute(0, 3, 1, 2) / 255 - torch.tensor([0.485, 0.456, 0.406])[:, None, None]) / (
        torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    )
    weights = load_file(folder / "model.safetensors")
    mean = F.linear(F.adaptive_avg_pool2d(pixels, 4).flatten(1), weights["proj.weight"], weights["proj.bias"]).mean(0)
    [found] = embedder.embed([embedder.prepare(one)])
    assert np.allclose(found, F.normalize(mean, dim=0).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("modeling", "words"),
    [
        (f"import package_that_nobody_has\n{MODELING}", "package_that_nobody_has"),
        (MODELING.replace("def __init__(self, config):", "def __init__(self, config):\n        config.gone"), "gone"),
        (MODELING.replace("get_video_embeddings", "embed"), "neither get_video_embeddings"),
        (MODELING.replace("dim=-1))", "dim=-1) * float('nan'))"), "some are no numbers"),
        (MODELING.replace("self.post_init()", "self.more = nn.Linear(2, 2); self.post_init()"), "missing: more"),
    ],
)
def test_code_that_does_not_work_says_so_at_once(tmp_path: Path, modeling: str, words: str) -> None:
    folder = own_code(tmp_path / "model", modeling)
    with pytest.raises(RuntimeError, match=words):
        open_embedder(Embed(model=str(folder), trust_remote_code=True))


def test_many_threads_make_clips_ready(tmp_path: Path, clip: Path) -> None:
    embedder = open_embedder(Embed(model=str(clip)))
    one = pictures(8, *embedder.size(64, 48))
    found: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: found.append(embedder.prepare(one))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(found[0], other) for other in found) and len(found) == 8


def test_names_stand_for_pinned_revisions() -> None:
    for name in ("cosmos-embed1-224p", "cosmos-embed1-336p", "cosmos-embed1-448p", "clip-vit-large"):
        [where] = Embed(model=name).models()
        assert len(where.partition("@")[2]) == 40
    assert set(embed_models.TOWERS) >= {"clip", "siglip"}
