"""The published diffusion transformers by name: sizes, objective, how they generate, and where their weights are.

Imports nothing heavy, so that a spec can be checked, and `hpc models pull` run, where there is no torch.

cosmos_predict1 4ed35fa: diffusion/config/inference/; cosmos_predict2 661da47: configs/base/config_text2image.py,
config_video2world.py, experiment/; cosmos_predict2.5 50369b8: configs/video2world/, imaginaire/utils/checkpoint_db.py
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

Form = Literal["predict1", "predict2"]
"""Of published files: their names, and those of the weights in them."""
PATCH = 2
"""Latent pixels along an edge of what becomes a token; of time it is one latent frame."""
MLP = 4
"""Channels of the MLP inside, for each outside."""
FOURIER = 128
"""Features of a noise level that the log-variance is made of."""


@dataclass(frozen=True)
class Config:
    """The sizes and differences of a DiT (hpc.models.dit)."""

    channels: int
    blocks: int
    heads: int
    condition_mask: bool
    """Is there an input channel that says which latent frames are given?"""
    rope_stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """Of time, height, width: how much longer than in training to count, by a larger base (NTK)."""
    rope_fps: bool = False
    """Do positions in time follow the frame rate?"""
    learned_positions: bool = False
    log_variance: bool = False
    text_channels: int = 1024
    text_projection: int | None = None
    """Channels of texts that are projected to `text_channels` first."""
    timestep_scale: float = 1.0
    adaln_rank: int = 256
    latent_channels: int = 16
    max_frames: int = 128
    """Latent ones, as the two below are latent pixels."""
    max_height: int = 240
    max_width: int = 240

    @property
    def head_channels(self) -> int:
        return self.channels // self.heads

    @property
    def text_input(self) -> int:
        """Channels of the texts that the network takes."""
        return self.text_projection or self.text_channels


ENCODERS = {
    "t5": "google-t5/t5-11b@90f37703b3334dfe9d2b009bfcbfbf1ac9d28ea3",
    "qwen2.5-vl": "nvidia/Cosmos-Reason1-7B",
}
"""Of the texts that published models read."""


def parameters(c: Config) -> int:
    """How many weights a DiT of these sizes has."""
    d, rank = c.channels, c.adaln_rank
    patch = PATCH * PATCH * (c.latent_channels + c.condition_mask + 1)
    attention = 4 * d * d + 2 * d * d + 2 * d * c.text_channels + 4 * c.head_channels
    block = attention + 2 * MLP * d * d + 3 * (d * rank + 3 * rank * d)
    last = PATCH * PATCH * c.latent_channels * d + d * rank + 2 * rank * d
    text = (c.text_projection + 1) * c.text_channels if c.text_projection else 0
    places = (c.max_frames + (c.max_height + c.max_width) // PATCH) * d if c.learned_positions else 0
    return c.blocks * block + patch * d + 4 * d * d + d + last + text + places + (FOURIER if c.log_variance else 0)


def flops(c: Config, frames: int, height: int, width: int, text: int = 512) -> float:
    """Of one forward pass over one sample's latents, of `text` tokens: multiplications and additions of the blocks'
    matrices and of attention, all to all. Training without recompute takes three times as many."""
    tokens = frames * (height // PATCH) * (width // PATCH)
    matrices = (4 + 2 + 2 * MLP) * c.channels**2 * tokens + 2 * c.text_channels * c.channels * text
    attention = 2 * c.channels * tokens * (tokens + text)
    projection = (c.text_projection or 0) * c.text_channels * text
    return 2.0 * (c.blocks * (matrices + attention) + projection)


SOLVERS: dict[str, tuple[str, ...]] = {
    "multistep": ("karras",),
    "heun": ("karras",),
    "euler": ("karras-zero", "shifted", "flow-karras"),
    "unipc": ("shifted", "flow-karras"),
}
"""Each with the noise levels that it goes over; hpc.models.samplers has them."""


OVER_SIGMA = ("karras", "karras-zero")
"""The schedules of sigma; the others are of t."""


def unfit(solver: str, schedule: str, objective: str) -> str | None:
    """Why these do not go together; None if they do."""
    if schedule not in SOLVERS.get(solver, ()):
        pairs = "; ".join(f"{one} over {' or '.join(levels)}" for one, levels in SOLVERS.items())
        return f"solver {solver}, schedule {schedule}: there are {pairs}"
    if objective == "edm" and schedule not in OVER_SIGMA:
        return f"schedule {schedule} is of flows; the model was trained as an EDM: karras, or karras-zero for euler"
    return None


@dataclass(frozen=True)
class Preset:
    config: Config
    objective: Literal["edm", "flow", "sigma-flow"]
    """hpc.models.diffusion has them."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Of the objective, where they are not its defaults."""
    text: Literal["t5", "qwen2.5-vl"] = "t5"
    tokenizer: str = ""
    """Of its latents: for hpc.models.tokenizers. "" of presets without published weights."""
    repository: str = ""
    file: str = ""
    """The weights in it."""
    frames: int = 93
    height: int = 704
    width: int = 1280
    fps: float = 16.0
    """Of the videos that it was trained with."""
    solver: str = "multistep"
    schedule: str = "karras"
    """How it was shown to generate, one of SOLVERS."""
    steps: int = 35
    guidance: float = 7.0

    @property
    def form(self) -> Form:
        """Of its generation."""
        return "predict1" if self.objective == "edm" else "predict2"


_1 = Config(channels=4096, blocks=28, heads=32, condition_mask=False, rope_stretch=(2.0, 1.0, 1.0), rope_fps=True,
            learned_positions=True, log_variance=True)  # fmt: skip
_1_14B = dataclasses.replace(_1, channels=5120, blocks=36, heads=40, rope_stretch=(2.0, 2.0, 2.0))
_2 = Config(channels=2048, blocks=28, heads=16, condition_mask=True, rope_stretch=(1.0, 3.0, 3.0))
_2_14B = dataclasses.replace(_2, channels=5120, blocks=36, heads=40, rope_stretch=(20 / 24, 2.0, 2.0))
_picture = dataclasses.replace(_2, condition_mask=False, rope_stretch=(1.0, 4.0, 4.0))
_25 = dataclasses.replace(_2, text_projection=28 * 3584, timestep_scale=0.001)
_25_14B = dataclasses.replace(_25, channels=5120, blocks=36, heads=40)
_tiny = {"channels": 48, "blocks": 2, "heads": 2, "adaln_rank": 8, "text_channels": 32, "max_frames": 16,
         "max_height": 64, "max_width": 64}  # fmt: skip

_CV = "nvidia/Cosmos-Tokenize1-CV8x8x8-720p"
_WAN = "nvidia/Cosmos-Predict2.5-2B"
_THIRDS: dict[str, Any] = {"given_frames": (1 / 3, 1 / 3, 1 / 3)}  # 0 to 2 of them
_GIVEN_1 = {"multiplier": 4.0} | _THIRDS  # sqrt(16 latent frames); so has the larger Text2World, the smaller has not
_AS_1: dict[str, Any] = {"tokenizer": _CV, "file": "model.pt", "frames": 121, "fps": 24.0, "solver": "euler",
                         "schedule": "karras-zero"}  # fmt: skip
_AS_25: dict[str, Any] = {"text": "qwen2.5-vl", "tokenizer": _WAN, "solver": "unipc", "schedule": "shifted"}

PRESETS: dict[str, Preset] = {
    "predict1-7b-text2world": Preset(_1, "edm", repository="nvidia/Cosmos-Predict1-7B-Text2World", **_AS_1),
    "predict1-14b-text2world": Preset(
        _1_14B, "edm", {"multiplier": 4.0}, repository="nvidia/Cosmos-Predict1-14B-Text2World", **_AS_1
    ),
    "predict1-7b-video2world": Preset(
        dataclasses.replace(_1, condition_mask=True), "edm", _GIVEN_1,
        repository="nvidia/Cosmos-Predict1-7B-Video2World", **_AS_1,
    ),
    "predict1-14b-video2world": Preset(
        dataclasses.replace(_1_14B, condition_mask=True), "edm", _GIVEN_1,
        repository="nvidia/Cosmos-Predict1-14B-Video2World", **_AS_1,
    ),
    "predict2-0.6b-text2image": Preset(
        dataclasses.replace(_picture, channels=1280, blocks=20, heads=20), "sigma-flow", {"given_frames": (1.0,)},
        tokenizer=_WAN, repository="nvidia/Cosmos-Predict2-0.6B-Text2Image", file="model.pt",
        frames=1, height=768, width=1360,
    ),
    "predict2-2b-text2image": Preset(
        _picture, "sigma-flow", {"given_frames": (1.0,)},
        tokenizer=_WAN, repository="nvidia/Cosmos-Predict2-2B-Text2Image", file="model.pt",
        frames=1, height=768, width=1360,
    ),
    "predict2-14b-text2image": Preset(
        dataclasses.replace(_picture, channels=5120, blocks=36, heads=40), "sigma-flow", {"given_frames": (1.0,)},
        tokenizer=_WAN, repository="nvidia/Cosmos-Predict2-14B-Text2Image", file="model.pt",
        frames=1, height=768, width=1360,
    ),
    "predict2-2b-video2world": Preset(
        _2, "sigma-flow", tokenizer=_WAN, repository="nvidia/Cosmos-Predict2-2B-Video2World",
        file="model-720p-16fps.pt",
    ),
    "predict2-14b-video2world": Preset(
        _2_14B, "sigma-flow", tokenizer=_WAN, repository="nvidia/Cosmos-Predict2-14B-Video2World",
        file="model-720p-16fps.pt",
    ),
    "predict2.5-2b": Preset(
        _25, "flow", repository="nvidia/Cosmos-Predict2.5-2B",
        file="base/pre-trained/d20b7120-df3e-4911-919d-db6e08bad31c_ema_bf16.pt", **_AS_25,
    ),
    # made of models trained as an EDM: given frames have a noise level of their own, and levels are spread otherwise
    "predict2.5-2b-post-trained": Preset(
        _25, "flow", {"given_level": 0.1}, repository="nvidia/Cosmos-Predict2.5-2B",
        file="base/post-trained/81edfebe-bd6a-4039-8c1d-737df1a790bf_ema_bf16.pt",
        **(_AS_25 | {"schedule": "flow-karras"}),
    ),
    "predict2.5-14b": Preset(
        _25_14B, "flow", {"high": 0.05}, repository="nvidia/Cosmos-Predict2.5-14B",
        file="base/pre-trained/54937b8c-29de-4f04-862c-e67b04ec41e8_ema_bf16.pt", **_AS_25,
    ),
    # to try things out on a CPU: 0.1M parameters
    "tiny-predict1": Preset(
        Config(**_tiny, condition_mask=True, rope_stretch=(2.0, 1.0, 1.0), rope_fps=True, learned_positions=True,
               log_variance=True),
        "edm", {"given_frames": (1 / 3, 1 / 3, 1 / 3)}, frames=17, height=64, width=96, fps=24.0, steps=4,
    ),
    "tiny-predict2": Preset(
        Config(**_tiny, condition_mask=True, rope_stretch=(1.0, 3.0, 3.0)),
        "sigma-flow", frames=17, height=64, width=96, steps=4,
    ),
    "tiny-predict2.5": Preset(
        Config(**_tiny, condition_mask=True, rope_stretch=(1.0, 3.0, 3.0), timestep_scale=0.001, text_projection=64),
        "flow", text="qwen2.5-vl", frames=17, height=64, width=96, steps=4, solver="unipc", schedule="shifted",
    ),
}  # fmt: skip

for _name in ("predict2-2b-video2world", "predict2-14b-video2world"):
    for _height, _width, _size in ((432, 768, "480p"), (704, 1280, "720p")):
        for _fps, _frames in ((10, 16), (16, 24)):  # latent ones
            if (_size, _fps) != ("720p", 16):  # which is the one above
                PRESETS[f"{_name}-{_size}-{_fps}fps"] = dataclasses.replace(
                    PRESETS[_name], settings={"multiplier": math.sqrt(_frames)}, file=f"model-{_size}-{_fps}fps.pt",
                    frames=1 + 4 * (_frames - 1), height=_height, width=_width, fps=float(_fps),
                )  # fmt: skip

EXPERIMENTS: dict[str, str] = {
    "text2world_7b_example_hdvila": "predict1-7b-text2world",
    "text2world_14b_example_hdvila": "predict1-14b-text2world",
    "video2world_7b_example_hdvila": "predict1-7b-video2world",
    **{f"{kind}_7b_example_cosmos_nemo_assets{gpus}": f"predict1-7b-{kind}"
       for kind in ("text2world", "video2world") for gpus in ("", "_4gpu_80gb", "_8gpu_40gb", "_4gpu_40gb")},
    "text2world_14b_example_cosmos_nemo_assets": "predict1-14b-text2world",
    "text2world_7b_lora_example_cosmos_nemo_assets": "predict1-7b-text2world",
    "video2world_7b_lora_example_cosmos_nemo_assets": "predict1-7b-video2world",
    "Cosmos_Predict1_Text2World_7B": "predict1-7b-text2world",
    "Cosmos_Predict1_Text2World_7B_Post_trained": "predict1-7b-text2world",
    "Cosmos_Predict1_Text2World_14B": "predict1-14b-text2world",
    "Cosmos_Predict1_Text2World_14B_Post_trained": "predict1-14b-text2world",
    "Cosmos_Predict1_Video2World_7B": "predict1-7b-video2world",
    "Cosmos_Predict1_Video2World_7B_Post_trained": "predict1-7b-video2world",
    "Cosmos_Predict1_Video2World_14B": "predict1-14b-video2world",
    "Cosmos_Predict1_Video2World_14B_Post_trained": "predict1-14b-video2world",
    # Predict2 and 2.5 have experiments of the first two of these names: the later ones are meant here
    "predict2_video2world_training_2b_cosmos_nemo_assets": "predict2.5-2b",
    "predict2_video2world_training_2b_groot_gr1_480": "predict2.5-2b",
    "predict2_lora_training_2b_cosmos_nemo_assets_txt": "predict2.5-2b",
    "predict2_lora_training_2b_cosmos_nemo_assets_json": "predict2.5-2b",
    "predict2_video2world_training_14b_cosmos_nemo_assets": "predict2-14b-video2world",
    "predict2_video2world_training_14b_groot_gr1_480": "predict2-14b-video2world",
    "predict2_video2world_lora_training_2b_cosmos_nemo_assets": "predict2-2b-video2world",
    "predict2_video2world_lora_training_14b_cosmos_nemo_assets": "predict2-14b-video2world",
    "predict2_video2world_training_2b_video2world_data": "predict2-2b-video2world",
    "predict2_video2world_training_14b_video2world_data": "predict2-14b-video2world",
    **{f"predict2_video2world_training_{size}_agibot_head_center_fisheye_color{more}":
       f"predict2-{size}-video2world{more.replace('_', '-') if more != '_720p_16fps' else ''}"
       for size in ("2b", "14b") for more in ("", "_480p_10fps", "_480p_16fps", "_720p_10fps", "_720p_16fps")},
    "predict2_text2image_training_2b_cosmos_nemo_assets": "predict2-2b-text2image",
    "predict2_text2image_training_14b_cosmos_nemo_assets": "predict2-14b-text2image",
    "Stage-c_pt_4-reason_embeddings-v1p1-Index-26-Size-2B-Res-720-Fps-16-Note-"
    "T2V_high_sigma_loss_reweighted_1_1_rectified_flow_only_resume2": "predict2.5-2b",
    "Stage-c_pt_4-Index-2-Size-2B-Res-720-Fps-16-Note-rf_with_edm_ckpt": "predict2.5-2b-post-trained",
    "Stage-c_pt_4-reason_embeddings-v1p1-Index-43-Size-14B-Res-720-Fps-16_"
    "resume_from_reason1p1_rectified_flow_shift5_high_sigma": "predict2.5-14b",
}  # fmt: skip
"""Published experiments -> the preset of the network that they train or run."""

EXPERIMENT_SETTINGS = {f"predict2_lora_training_2b_cosmos_nemo_assets_{form}": _THIRDS for form in ("txt", "json")}
"""Of the objective, where an experiment's are not its preset's."""


def preset(name: str) -> Preset:
    """By its own name or that of a published experiment. Raises ValueError."""
    if found := PRESETS.get(EXPERIMENTS.get(name, name)):
        more = EXPERIMENT_SETTINGS.get(name)
        return dataclasses.replace(found, settings=found.settings | more) if more else found
    near = difflib.get_close_matches(name, [*PRESETS, *EXPERIMENTS], n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise ValueError(f"{name!r} is no diffusion model that is known here{hint} Known are {', '.join(PRESETS)}, and the "
                     "names of the published experiments")  # fmt: skip
