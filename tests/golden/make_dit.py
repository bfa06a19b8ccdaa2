"""Made dit_predict1.npz, dit_predict2.npz, dit_predict25.npz and dit.json, once, by running published code, one
generation at a time; needs clones of it, diffusers, megatron-core, attrs, einops, hydra-core, loguru, omegaconf:

    git clone https://github.com/nvidia-cosmos/cosmos-predict1 && git -C cosmos-predict1 checkout 4ed35fa
    git clone https://github.com/nvidia-cosmos/cosmos-predict2 && git -C cosmos-predict2 checkout 661da47
    git clone https://github.com/nvidia-cosmos/cosmos-predict2.5 && git -C cosmos-predict2.5 checkout 50369b8
    PYTHONPATH=cosmos-predict1:tests python tests/golden/make_dit.py predict1
    PYTHONPATH=cosmos-predict2:tests python tests/golden/make_dit.py predict2
    PYTHONPATH=cosmos-predict2.5:tests python tests/golden/make_dit.py predict25

What that code imports and is not installed is replaced by nothing at all, but for the four functions of
transformer-engine and torchvision that it computes with, which are given below in plain PyTorch. Weights and inputs
come from tests/made.py, so that only what the code made of them is stored.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import sys
import types
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

import diffusers
import numpy as np
import torch
import torch.nn.functional as F
from diffusers import FlowMatchEulerDiscreteScheduler, KDPM2DiscreteScheduler, ModelMixin  # noqa: F401
from diffusers.schedulers.scheduling_utils import SchedulerMixin  # noqa: F401
from made import made, weight
from torch import nn
from transformers import AutoProcessor, AutoTokenizer, SiglipModel, T5EncoderModel  # noqa: F401

# imported while what is not installed is not there: these libraries look for it

FOLDER = Path(__file__).parent
COMMITS = {"predict1": "4ed35faafd01cf3d18e8b98c3875eae63032027a",
           "predict2": "661da4774b0ca41d082a0ecbeb47550bcf07e03f",
           "predict25": "50369b8dba911cd5c49a3ca97f247718ebf5276e"}
SMALL = {"model_channels": 48, "num_blocks": 2, "num_heads": 2, "max_img_h": 32, "max_img_w": 32, "max_frames": 16}
LATENTS = (2, 16, 4, 8, 12)
ABSENT = """natten pandas peft iopath nltk amp_C better_profanity transformer_engine tyro apex flash_attn ftfy pynvml
flash_attn_3 qwen_vl_utils decord wandb torchcodec multistorageclient flash_attn_interface s3fs mediapy torchvision
ffmpegcv fvcore retinaface sentencepiece vllm cv2 imageio boto3 botocore attr webdataset megatron""".split()
UNUSED = ("cosmos_predict2._src.reason1", "imaginaire.models.vlm_qwen", "imaginaire.auxiliary.guardrail")
"""Of the published code itself: what asserts that flash-attn is there."""


class RMSNorm(nn.Module):
    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(channels)), eps

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight


class DotProductAttention(nn.Module):
    def __init__(self, *_, qkv_format: str, **__) -> None:
        super().__init__()
        self.order = (1, 2, 0, 3) if qkv_format == "sbhd" else (0, 2, 1, 3)
        self.back = (2, 0, 1, 3) if qkv_format == "sbhd" else (0, 2, 1, 3)

    def forward(self, q, k, v, **_):
        y = F.scaled_dot_product_attention(*(x.permute(self.order) for x in (q, k, v)))
        return y.permute(self.back).flatten(-2)

    def set_context_parallel_group(self, *_) -> None:
        pass


def apply_rotary_pos_emb(x, freqs_S11D, tensor_format="sbhd", fused=False):
    freqs = freqs_S11D if tensor_format == "sbhd" else freqs_S11D.transpose(0, 1)
    first, second = x.chunk(2, dim=-1)
    return x * freqs.cos() + torch.cat([-second, first], dim=-1) * freqs.sin()


class Nothing(types.ModuleType):
    __path__: tuple[str, ...] = ()

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        setattr(self, name, MagicMock(name=name))
        return getattr(self, name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    missing = frozenset(name for name in ABSENT if importlib.util.find_spec(name) is None)

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in self.missing or name.startswith(UNUSED):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Nothing(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.insert(0, Finder())
torch.cuda.current_device = lambda: 0
version = importlib.metadata.version
importlib.metadata.version = lambda name: "1.12.0" if name == "transformer-engine" else version(name)

import torchvision.transforms  # noqa: E402
import torchvision.transforms.functional  # noqa: E402
import transformer_engine as te  # noqa: E402
import transformer_engine.pytorch.attention as te_attention  # noqa: E402

te.pytorch = sys.modules["transformer_engine.pytorch"]
te.pytorch.RMSNorm = RMSNorm
te_attention.DotProductAttention = DotProductAttention
te_attention.apply_rotary_pos_emb = apply_rotary_pos_emb
torchvision.transforms.functional.resize = lambda x, size, interpolation: F.interpolate(x, size, mode="nearest")


def tensor(name: str, *shape: int) -> torch.Tensor:
    return torch.from_numpy(made(name, *shape))


def parameters(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """By published names, without those of activation checkpointing."""
    return sorted((name.replace("_checkpoint_wrapped_module.", ""), p) for name, p in module.named_parameters())


def fill(module: nn.Module) -> nn.Module:
    """Weights by published names."""
    for name, parameter in parameters(module):
        parameter.data = torch.from_numpy(weight(name, *parameter.shape)).to(parameter.dtype)
    return module


def grads(module: nn.Module) -> np.ndarray:
    """Of each parameter's gradient: its length, and its projection on a vector; by name."""
    return np.array([
        [p.grad.double().norm(), (p.grad.double() * tensor("probe." + name, *p.shape)).sum()]
        for name, p in parameters(module)
    ])  # fmt: skip


def padding() -> torch.Tensor:
    """Of pixels, [1, 1, 64, 96]: the right third."""
    mask = torch.zeros(2, 1, 64, 96)
    mask[..., 64:] = 1
    return mask


def given(*frames: int) -> torch.Tensor:
    """[B, 1, T, H, W]: the first frames of each."""
    mask = torch.zeros(len(frames), 1, *LATENTS[2:])
    for row, count in enumerate(frames):
        mask[row, :, :count] = 1
    return mask


def names(module: nn.Module) -> dict[str, list[int]]:
    state = {name.replace("_checkpoint_wrapped_module.", ""): value for name, value in module.state_dict().items()}
    return {name: list(value.shape) for name, value in state.items() if hasattr(value, "shape")}


def predict1() -> tuple[dict, dict]:
    from cosmos_predict1.diffusion.module.blocks import FourierFeatures
    from cosmos_predict1.diffusion.modules.denoiser_scaling import EDMScaling
    from cosmos_predict1.diffusion.modules.res_sampler import Sampler
    from cosmos_predict1.diffusion.training.conditioner import DataType
    from cosmos_predict1.diffusion.training.models.extend_model import ExtendDiffusionModel
    from cosmos_predict1.diffusion.training.modules.edm_sde import EDMSDE
    from cosmos_predict1.diffusion.training.networks.general_dit import GeneralDIT
    from cosmos_predict1.diffusion.training.networks.general_dit_lvg import VideoExtendGeneralDIT

    published = {
        "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "concat_padding_mask": True,
        "block_config": "FA-CA-MLP", "pos_emb_cls": "rope3d", "block_x_format": "THWBD", "affline_emb_norm": True,
        "use_adaln_lora": True, "legacy_patch_emb": False, "extra_per_block_abs_pos_emb": True,
        "extra_per_block_abs_pos_emb_type": "learnable", "rope_t_extrapolation_ratio": 2.0,
    }  # fmt: skip
    net = VideoExtendGeneralDIT(**published, **SMALL, adaln_lora_dim=8, crossattn_emb_channels=32,
                                rope_h_extrapolation_ratio=2.0, rope_w_extrapolation_ratio=2.0)  # fmt: skip
    logvar = nn.Sequential(FourierFeatures(num_channels=128, normalize=True), nn.Linear(128, 1, bias=False))
    logvar[0].freqs.copy_(tensor("freqs", 128) * 10)
    logvar[0].phases.copy_(tensor("phases", 128) * 3)
    model = nn.ModuleDict({"net": net, "logvar": logvar})
    fill(model)
    arrays = {}
    x = tensor("x", *LATENTS).requires_grad_()
    text = tensor("text", 2, 6, 32)
    common = {"fps": torch.tensor([12.0, 12.0]), "padding_mask": padding(), "data_type": DataType.VIDEO}
    levels = torch.tensor([0.3, -0.7])
    out = net(x=x, timesteps=levels, crossattn_emb=text, condition_video_input_mask=given(0, 2), **common)
    u = logvar(levels)
    ((out * tensor("gradient", *out.shape)).sum() + u.sum()).backward()
    arrays |= {"out": out.detach().numpy(), "x.grad": x.grad.numpy(), "logvar": u.detach().numpy()}
    arrays["grads"] = grads(model)

    # the loss of a training step, with two given latent frames that have noise of their own
    trainer = ExtendDiffusionModel.__new__(ExtendDiffusionModel)
    nn.Module.__init__(trainer)
    trainer.model, trainer.sigma_data, trainer.scaling, trainer.sde = model, 0.5, EDMScaling(0.5), EDMSDE()
    trainer.loss_reduce = "mean"
    trainer.tensor_kwargs = {"dtype": torch.float32}
    trainer.input_data_key, trainer.input_image_key = "video", "image"
    trainer.config = SimpleNamespace(
        loss_add_logvar=True, loss_mask_enabled=False,
        conditioner=SimpleNamespace(video_cond_bool=SimpleNamespace(
            normalize_condition_latent=False, apply_corruption_to_condition_region="noise_with_sigma",
            augment_sigma_sample_p_mean=-3.0, augment_sigma_sample_p_std=2.0, augment_sigma_sample_multiplier=1.0,
            condition_on_augment_sigma=False, compute_loss_for_condition_region=False,
            cfg_unconditional_type="zero_condition_region_condition_mask",
        )),
    )  # fmt: skip
    sigma, own = torch.tensor([0.4, 3.0]), torch.tensor([0.02, 0.1])
    trainer.draw_augment_sigma_and_epsilon = lambda *_: (own, None)
    torch.randn = lambda *shape, **_: tensor("given noise", *LATENTS)
    x0 = tensor("x0", *LATENTS)
    condition = SimpleNamespace(
        data_type=DataType.VIDEO, gt_latent=x0, video_cond_bool=True,
        condition_video_indicator=given(2, 2)[..., :1, :1], condition_video_input_mask=given(2, 2),
    )  # fmt: skip
    condition.to_dict = lambda: {
        "crossattn_emb": text, "condition_video_input_mask": given(2, 2), **common
    }  # fmt: skip
    parallel = sys.modules["cosmos_predict1.diffusion.training.models.extend_model"].parallel_state
    parallel.get_context_parallel_world_size = lambda: 1
    batch, kendall, mse, weighted = trainer.compute_loss_with_epsilon_and_sigma(
        {"video": x0}, x0, x0, condition, tensor("noise", *LATENTS), sigma
    )
    arrays |= {"loss": kendall.mean().detach().numpy(), "mse": mse.mean().detach().numpy(),
               "weighted": weighted.mean().detach().numpy(), "x0": batch["model_pred"].x0.detach().numpy()}  # fmt: skip

    # the sampler, of a denoiser that is no straight line
    start = tensor("start", 2, 3).double() * 80
    for steps in (4, 9):
        samples = Sampler()(lambda x, s: torch.tanh(x / (1 + s[:, None])), start, num_steps=steps)
        arrays[f"sampled.{steps}"] = samples.numpy()
    with torch.device("meta"):
        full = {"model_channels": 4096, "num_blocks": 2, "num_heads": 32, "max_img_h": 240, "max_img_w": 240,
                "max_frames": 128}  # fmt: skip
        found = {
            "predict1-7b-text2world": names(GeneralDIT(in_channels=16, **published, **full)),
            "predict1-7b-video2world": names(VideoExtendGeneralDIT(**published, **full)),
        }
    facts = {"grads": [name for name, _ in parameters(model)], "names": found, "logvar": names(logvar)}
    return arrays, facts


def predict2() -> tuple[dict, dict]:
    from cosmos_predict2.conditioner import DataType
    from cosmos_predict2.models.video2world_dit import MinimalV1LVGDiT
    from cosmos_predict2.module.denoiser_scaling import RectifiedFlowScaling
    from cosmos_predict2.pipelines.video2world import Video2WorldPipeline

    net = fill(MinimalV1LVGDiT(
        **SMALL, in_channels=16, out_channels=16, patch_spatial=2, patch_temporal=1, crossattn_emb_channels=32,
        crossattn_proj_in_channels=32, pos_emb_cls="rope3d", use_adaln_lora=True, adaln_lora_dim=8,
        atten_backend="torch", rope_h_extrapolation_ratio=2.0, rope_w_extrapolation_ratio=2.0,
        rope_t_extrapolation_ratio=20 / 24, rope_enable_fps_modulation=False,
    ))  # fmt: skip
    x0 = tensor("x0", *LATENTS)
    text = tensor("text", 2, 6, 32)
    condition = SimpleNamespace(is_video=True, gt_frames=x0, use_video_condition=True,
                                condition_video_input_mask_B_C_T_H_W=given(1, 2))  # fmt: skip
    condition.to_dict = lambda: {
        "crossattn_emb": text, "fps": torch.tensor([12.0, 12.0]), "padding_mask": padding(),
        "condition_video_input_mask_B_C_T_H_W": given(1, 2), "data_type": DataType.VIDEO,
    }  # fmt: skip
    pipe = SimpleNamespace(
        scaling=RectifiedFlowScaling(1.0), dit=net, tensor_kwargs={"dtype": torch.float32},
        config=SimpleNamespace(conditioning_strategy="frame_replace", sigma_data=1.0, sigma_conditional=0.0001),
    )  # fmt: skip
    sigma = torch.tensor([0.4, 30.0])
    xt = x0 + tensor("noise", *LATENTS) * sigma[:, None, None, None, None]
    prediction = Video2WorldPipeline.denoise(pipe, xt, sigma, condition)
    weights = (1 + sigma) ** 2 / sigma**2  # get_per_sigma_loss_weights
    loss = ((x0 - prediction.x0) ** 2 * weights[:, None, None, None, None]).mean() * 10
    loss.backward()
    return {"x0": prediction.x0.detach().numpy(), "loss": loss.detach().numpy(), "grads": grads(net)}, {
        "grads": [name for name, _ in parameters(net)]
    }


def predict25() -> tuple[dict, dict]:
    from cosmos_predict2._src.predict2.conditioner import DataType
    from cosmos_predict2._src.predict2.models.fm_solvers_unipc import FlowUniPCMultistepScheduler
    from cosmos_predict2._src.predict2.models.video2world_model_rectified_flow import Video2WorldModelRectifiedFlow
    from cosmos_predict2._src.predict2.networks.minimal_v1_lvg_dit import MinimalV1LVGDiT
    from cosmos_predict2._src.predict2.schedulers.rectified_flow import RectifiedFlow

    published = {
        "in_channels": 16, "out_channels": 16, "patch_spatial": 2, "patch_temporal": 1, "pos_emb_cls": "rope3d",
        "use_adaln_lora": True, "atten_backend": "torch", "rope_h_extrapolation_ratio": 3.0,
        "rope_w_extrapolation_ratio": 3.0, "rope_t_extrapolation_ratio": 1.0, "rope_enable_fps_modulation": False,
        "timestep_scale": 0.001, "use_crossattn_projection": True, "use_wan_fp32_strategy": True,
    }  # fmt: skip
    net = fill(MinimalV1LVGDiT(**published, **SMALL, adaln_lora_dim=8, crossattn_emb_channels=32,
                               crossattn_proj_in_channels=80))  # fmt: skip
    x0 = tensor("x0", *LATENTS)
    text = tensor("text", 2, 6, 80)
    noise = tensor("noise", *LATENTS)
    condition = SimpleNamespace(is_video=True, gt_frames=x0, use_video_condition=True,
                                condition_video_input_mask_B_C_T_H_W=given(1, 2))  # fmt: skip
    condition.to_dict = lambda: {
        "crossattn_emb": text, "fps": torch.tensor([12.0, 12.0]), "padding_mask": padding(),
        "condition_video_input_mask_B_C_T_H_W": given(1, 2), "data_type": DataType.VIDEO,
    }  # fmt: skip
    arrays = {}
    flow = RectifiedFlow(net, "logitnormal", shift=5)
    u = torch.tensor([0.0, 0.0004, 0.25, 0.5, 0.77, 0.999])
    steps = flow.get_discrete_timestamp(u, {"dtype": torch.float32})
    arrays |= {"u": u.numpy(), "timesteps": steps.numpy()}
    arrays["sigmas"] = flow.get_sigmas(steps, {"dtype": torch.float32}).numpy()
    timesteps = flow.get_discrete_timestamp(torch.tensor([0.3, 0.9]), {"dtype": torch.float32})
    sigmas = flow.get_sigmas(timesteps, {"dtype": torch.float32})
    xt, target = flow.get_interpolation(noise, x0, sigmas)
    # a timestep of its own for given frames, as of the published post-trained model; then none
    for own in (0.1, -1.0):
        net.zero_grad()
        model = SimpleNamespace(net=net, tensor_kwargs={"dtype": torch.float32}, config=SimpleNamespace(
            conditional_frame_timestep=own, denoise_replace_gt_frames=True))  # fmt: skip
        level = timesteps[:, None] if own < 0 else timesteps[:, None, None, None, None]  # upstream's is for one video
        velocity = Video2WorldModelRectifiedFlow.denoise(model, noise, xt, level, condition)
        loss = ((velocity - target) ** 2).mean()
        loss.backward()
        arrays |= {f"velocity.{own}": velocity.detach().numpy(), f"loss.{own}": loss.detach().numpy(),
                   f"grads.{own}": grads(net)}  # fmt: skip
    # the solver, of a velocity that is no straight line; both spreads of noise levels
    for steps, karras in ((1, False), (2, False), (3, False), (10, False), (10, True)):
        solver = FlowUniPCMultistepScheduler(num_train_timesteps=1000, shift=1, use_dynamic_shifting=False)
        solver.set_timesteps(steps, shift=5.0, use_kerras_sigma=karras)
        x = tensor("start", 2, 3, 4)
        for i, step in enumerate(solver.timesteps):
            x = solver.step(torch.tanh(2 * x + solver.sigmas[i]) - 0.3 * x, step, x, return_dict=False)[0]
        name = f"unipc.{steps}{'.karras' if karras else ''}"
        arrays |= {f"{name}.sigmas": solver.sigmas.numpy(), f"{name}.told": solver.timesteps.numpy(), name: x.numpy()}
    with torch.device("meta"):
        full = MinimalV1LVGDiT(**published, model_channels=2048, num_blocks=2, num_heads=16, max_img_h=240,
                               max_img_w=240, max_frames=128, crossattn_proj_in_channels=100352)  # fmt: skip
    return arrays, {"grads": [name for name, _ in parameters(net)], "names": {"predict2.5-2b": names(full)}}


generation = sys.argv[1]
torch.set_num_threads(1)
arrays, facts = {"predict1": predict1, "predict2": predict2, "predict25": predict25}[generation]()
np.savez_compressed(FOLDER / f"dit_{generation}.npz", **arrays)
path = FOLDER / "dit.json"
whole = json.loads(path.read_text()) if path.exists() else {}
whole[generation] = {"commit": COMMITS[generation], "torch": torch.__version__.partition("+")[0],
                     "diffusers": diffusers.__version__, "small": SMALL, "latents": LATENTS, **facts}  # fmt: skip
path.write_text(json.dumps(whole, separators=(",", ":"), sort_keys=True).replace("},", "},\n") + "\n")
for name, value in arrays.items():
    print(name, value.shape, float(np.abs(value).max()))
